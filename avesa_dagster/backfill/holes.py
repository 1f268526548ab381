"""Holes that nobody is filling: an outage, a schedule that was off, a chunk that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from avesa_dagster.catalog.models import Upkeep
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus, Stretch, Trigger
from avesa_dagster.sources.base import Window

_LONGEST_WAIT = timedelta(days=1)


def fillable(
    holes: Mapping[str, Sequence[Window]], jobs: Sequence[Job], upkeep: Upkeep, now: datetime
) -> list[Stretch]:
    """The holes of a connection that a job should fill now.

    Not those that an unfinished job is going to fill, nor those of a job that somebody cancelled,
    nor those that could not be filled a short while ago: the wait doubles each time, up to a day.
    Nor one that began less than `hole_minutes` ago: else, where a table's watermark stays behind,
    each look would start a job for the minute since the last one.

    Args:
        holes: table -> its holes.
        jobs: All that are known of the connection, newest first.
    """
    return [
        Stretch(table, hole.start, hole.end)
        for table, windows in sorted(holes.items())
        for hole in windows
        if not _left_alone(table, hole, jobs, upkeep, now)
    ]


def _left_alone(
    table: str, hole: Window, jobs: Sequence[Job], upkeep: Upkeep, now: datetime
) -> bool:
    if hole.start > now - timedelta(minutes=upkeep.hole_minutes):
        return True
    touching = [job for job in jobs if _touches(job, table, hole)]
    if any(job.status in UNFINISHED for job in touching):
        return True
    newest = touching[0] if touching else None
    if newest is not None and newest.status is JobStatus.CANCELLED:
        return True
    tries = [
        job
        for job in touching
        if job.status in (JobStatus.FAILED, JobStatus.COMPLETED_WITH_ERRORS) and job.completed_at
    ]
    if not tries:
        return False
    again = sum(job.trigger is Trigger.HOLE for job in tries)
    wait = min(timedelta(minutes=upkeep.hole_retry_minutes) * 2.0 ** min(again, 20), _LONGEST_WAIT)
    last = max(job.completed_at for job in tries if job.completed_at)
    return now < last + wait


def _touches(job: Job, table: str, hole: Window) -> bool:
    if table not in job.tables:
        return False
    if job.stretches:
        return any(
            s.table == table and s.start < hole.end and s.end > hole.start for s in job.stretches
        )
    return job.start < hole.end and job.end > hole.start
