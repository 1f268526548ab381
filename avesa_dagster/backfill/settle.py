"""What the runs of a job came to: from what Dagster says of them to the job, without effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import ACTIVE, Job, JobError, JobStatus, Piece, PieceState

_MOST_LAUNCHES = 50
"""Runs of one piece that died one after another; each begins where the last one ended."""


class RunState(StrEnum):
    """What Dagster says of the newest run of a piece."""

    NONE = "none"
    """There is none (yet)."""
    QUEUED = "queued"
    RUNNING = "running"
    """Also one that failed and that Dagster is going to retry."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DIED = "died"
    """Its process is gone, or it was stopped without anybody asking for it."""
    TERMINATED = "terminated"
    """A person ended it in Dagster."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest run of a piece; `error` says why it failed."""

    state: RunState
    run_id: str = ""
    error: str | None = None


def settle(
    job: Job, seen: Mapping[int, Seen], breaker: Breaker | None, now: datetime, *, overdue: bool
) -> Job:
    """The job after its runs came to this.

    Args:
        seen: Piece number to its newest run, of the pieces that are launched.
        breaker: Of the tenant's service, unless it is closed.
        overdue: It took longer than it may.
    """
    runs = [one.run_id for one in seen.values() if one.run_id and one.run_id not in job.run_ids]
    job = replace(job, run_ids=(*job.run_ids, *runs))
    if job.status not in ACTIVE:
        return job
    if any(one.state is RunState.TERMINATED for one in seen.values()):
        return replace(
            job,
            status=JobStatus.CANCELLED,
            note="a run of it was terminated in Dagster",
            completed_at=now,
        )
    suspended = breaker is not None and breaker.state is not BreakerState.CLOSED
    pieces = tuple(
        _piece(piece, seen[piece.number], suspended)
        if piece.state is PieceState.LAUNCHED and piece.number in seen
        else piece
        for piece in job.pieces
    )
    begun = any(one.state not in (RunState.NONE, RunState.QUEUED) for one in seen.values())
    job = replace(
        job,
        pieces=pieces,
        started_at=job.started_at or (now if begun else None),
        status=JobStatus.RUNNING if begun else job.status,
    )
    if suspended and breaker is not None and breaker.credentials:
        return _failed(job, breaker.reason, now)
    if all(piece.state in (PieceState.DONE, PieceState.FAILED) for piece in job.pieces):
        return _ended(job, now)
    if overdue:
        return _failed(job, "it took longer than it may; avesa retry goes on where it stopped", now)
    return job


def _piece(piece: Piece, seen: Seen, suspended: bool) -> Piece:
    match seen.state:
        case RunState.SUCCEEDED:
            return replace(piece, state=PieceState.DONE, error=None)
        case RunState.FAILED if suspended:
            return replace(piece, state=PieceState.WAITING)
        case RunState.FAILED:
            return replace(piece, state=PieceState.FAILED, error=seen.error)
        case RunState.DIED if piece.attempt >= _MOST_LAUNCHES:
            error = f"its runs died {piece.attempt} times; the last: {seen.error}"
            return replace(piece, state=PieceState.FAILED, error=error)
        case RunState.DIED:
            return replace(piece, state=PieceState.WAITING)
        case _:
            return piece


def _failed(job: Job, text: str, now: datetime) -> Job:
    return replace(
        job,
        status=JobStatus.FAILED,
        note=text,
        errors=(JobError(text), *job.errors),
        completed_at=now,
    )


def _ended(job: Job, now: datetime) -> Job:
    clean = all(piece.state is PieceState.DONE for piece in job.pieces) and not job.failed_chunks
    status = JobStatus.COMPLETED if clean else JobStatus.COMPLETED_WITH_ERRORS
    if not clean and not job.completed_chunks:
        status = JobStatus.FAILED
    return replace(job, status=status, note="", completed_at=now)
