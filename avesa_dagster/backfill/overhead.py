"""What a job takes beside fetching: the start of its runs, their work on partitions, the sensor.

The shape is fixed, its scale is the machine's: learnt from the jobs that ended last.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from avesa_dagster.backfill.span import job_partitions
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.jobs import Job, JobStatus, Piece, PieceState, Processing

LOOK_SECONDS = 12.0
"""From a job's creation to the first run's launch, and from the last one's end to the job's: the
sensor looks every five seconds."""
_START_SECONDS = 9.0
"""A run's process, from its launch to its first request, and from its last step to its end."""
_PARTITION_SECONDS = 0.22
"""Making a partition of one table canonical, checking and describing it."""
_LONGEST_GAP = timedelta(minutes=10)
"""More than this between two runs was something else: off-peak hours, a machine that slept."""


def run_seconds(tables: int, partitions: int) -> float:
    """About how long a run takes beside fetching, on a machine of slowness 1."""
    return _START_SECONDS + _PARTITION_SECONDS * tables * partitions


def slowness(
    jobs: Sequence[Job], rows_of: Callable[[str], Sequence[Processing]], catalog: Catalog
) -> float:
    """How many times as long as here stated this machine needed lately; 1 if no job shows it.

    Only jobs teach it that had everything for themselves and went smoothly.

    Args:
        jobs: That were under way lately.
        rows_of: job_id -> what its runs said of themselves.
    """
    found = []
    for job in jobs:
        rows = rows_of(job.job_id) if _is_alone(job, jobs) else ()
        if _is_smooth(job, rows) and job.completed_at is not None:
            whole = (job.completed_at - job.created_at).total_seconds()
            beside = whole - sum(map(_fetching, rows))
            found.append(max(0.0, beside) / _expected(job, catalog))
    return statistics.median(found) if found else 1.0


def _expected(job: Job, catalog: Catalog) -> float:
    known = job_partitions(job, catalog)
    return LOOK_SECONDS + sum(
        run_seconds(len(piece.tables), sum(piece.first <= p.key <= piece.last for p in known))
        for piece in job.pieces
    )


def _is_alone(job: Job, jobs: Iterable[Job]) -> bool:
    """Whether no other of these jobs was under way at the same time."""
    if job.completed_at is None:
        return False
    return not any(
        other.job_id != job.job_id
        and other.created_at < job.completed_at
        and (other.completed_at is None or other.completed_at > job.created_at)
        for other in jobs
    )


def _is_smooth(job: Job, rows: Sequence[Processing]) -> bool:
    """Whether each piece had just one run, which fetched everything, one soon after another."""
    runs: dict[str, list[Processing]] = {}
    for row in sorted(rows, key=lambda row: row.started_at):
        runs.setdefault(row.run_id, []).append(row)
    if job.status is not JobStatus.COMPLETED or len(runs) != len(job.pieces):
        return False
    ends = [row.ended_at or row.started_at for own in runs.values() for row in own[-1:]]
    starts = [own[0].started_at for own in runs.values()]
    gaps = [start - end for end, start in zip(ends, starts[1:], strict=False)]
    return all(gap < _LONGEST_GAP for gap in gaps) and all(
        itertools.starmap(_is_run_of, zip(job.pieces, runs.values(), strict=True))
    )


def _is_run_of(piece: Piece, rows: Sequence[Processing]) -> bool:
    return (
        piece.state is PieceState.DONE
        and piece.attempt == 1
        and {row.table for row in rows} == set(piece.tables)
        and all(row.status == "completed" for row in rows)
    )


def _fetching(row: Processing) -> float:
    return ((row.ended_at or row.started_at) - row.started_at).total_seconds()
