"""How far a job is, by the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from avesa_dagster.backfill.estimate import RUN_SECONDS
from avesa_dagster.backfill.span import job_partitions
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import Chunk, ChunkState, Ledger
from avesa_dagster.control.jobs import ACTIVE, Job, JobError, JobStatus, Piece, PieceState
from avesa_dagster.extract.sizing import by_calendar
from avesa_dagster.sources.base import Window

MOST_ERRORS = 100


def job_chunks(job: Job, ledger: Ledger) -> list[Chunk]:
    """Every chunk of the job that is planned, table by table, newest window first."""
    return [
        chunk
        for table in job.tables
        for chunk in ledger.rows(job.job_id, job.tenant, job.service, table)
    ]


def counted(job: Job, chunks: Sequence[Chunk], catalog: Catalog) -> Job:
    """The job with what its chunks came to; pieces without chunks yet count by the calendar."""
    planned = sum(_unplanned(job, piece, chunks, catalog) for piece in job.pieces)
    failed = [chunk for chunk in chunks if chunk.state is ChunkState.FAILED]
    errors = [JobError(job.note)] if job.status is JobStatus.FAILED and job.note else []
    errors += [
        JobError(chunk.error or "failed", chunk.table, str(Window(chunk.start, chunk.end)))
        for chunk in failed
    ]
    errors += [JobError(piece.error) for piece in job.pieces if piece.error and not failed]
    return replace(
        job,
        total_chunks=len(chunks) + planned,
        completed_chunks=sum(chunk.state is ChunkState.COMPLETED for chunk in chunks),
        failed_chunks=len(failed),
        records=sum(chunk.rows for chunk in chunks),
        requests=sum(chunk.requests for chunk in chunks),
        errors=tuple(errors[:MOST_ERRORS]),
    )


def ends_at(job: Job, chunks: Sequence[Chunk], now: datetime) -> datetime | None:
    """When the job will end at the speed at which it fetched since it was started.

    That is what it took while chunks were being fetched, and a fixed time for each run that is
    still to come: most of a short job's time goes into the start of its runs.

    Returns:
        None: not known yet, or it does not go on.
    """
    since = job.started_at
    if since is None or job.status not in ACTIVE:
        return None
    own = [chunk for chunk in chunks if (chunk.finished_at or now) >= since]
    done = sum(c.state is ChunkState.COMPLETED and c.finished_at is not None for c in own)
    left = job.total_chunks - job.completed_chunks - job.failed_chunks
    if not done:
        return None
    runs = sum(_is_to_come(piece, own) for piece in job.pieces)
    return now + _fetching(own, since, now) / done * left + timedelta(seconds=RUN_SECONDS * runs)


def _is_to_come(piece: Piece, chunks: Sequence[Chunk]) -> bool:
    """Whether the piece's run is to be launched, or has not begun any chunk yet."""
    if piece.state is not PieceState.LAUNCHED or piece.launched_at is None:
        return piece.state is PieceState.WAITING
    return not any(
        chunk.started_at is not None
        and chunk.started_at >= piece.launched_at
        and chunk.table in piece.tables
        and piece.first <= chunk.partition <= piece.last
        for chunk in chunks
    )


def _fetching(chunks: Sequence[Chunk], since: datetime, now: datetime) -> timedelta:
    """For how long at least one of the chunks was being fetched."""
    total, until = timedelta(), since
    ended = {ChunkState.COMPLETED, ChunkState.FAILED}
    spans = [
        (chunk.started_at, (chunk.finished_at or now) if chunk.state in ended else now)
        for chunk in chunks
        if chunk.started_at is not None and chunk.state is not ChunkState.PLANNED
    ]
    for start, end in sorted(spans):
        total += max(timedelta(), end - max(start, until))
        until = max(until, end)
    return total


def _unplanned(job: Job, piece: Piece, chunks: Sequence[Chunk], catalog: Catalog) -> int:
    """About how many chunks a piece will have whose tables are not planned yet."""
    if piece.derive or piece.state in (PieceState.DONE, PieceState.FAILED):
        return 0
    parts = [p for p in job_partitions(job, catalog) if piece.first <= p.key <= piece.last]
    if not parts:
        return 0
    span = Window(parts[0].start, parts[-1].end)
    known = {c.table for c in chunks if c.start < span.end and c.end > span.start}
    service = catalog.services[job.service]
    days = job.chunk_size_days or catalog.settings(job.tenant, job.service).chunk_size_days
    calendar = sum(
        len(list(by_calendar(p, Window(p.start, min(p.end, job.end)), days))) for p in parts
    )
    return sum(
        1 if service.tables[table].master_data else calendar
        for table in piece.tables
        if table not in known
    )
