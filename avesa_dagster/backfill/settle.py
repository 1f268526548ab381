"""What the runs of a job came to: from what Dagster says of them to the job, without effects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import ACTIVE, Job, JobError, JobStatus, Piece, PieceState

_MOST_DEATHS = 50
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
    SUSPENDED = "suspended"
    """It failed because the breaker of its service was open, which may have closed since."""
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
    job: Job,
    seen: Mapping[int, Seen],
    breaker: Breaker | None,
    now: datetime,
    *,
    overdue: bool,
    missing: int = 0,
) -> Job:
    """The job after its runs came to this.

    Args:
        seen: Piece number to its newest run, of the pieces that are launched.
        breaker: Of the tenant's service, unless it is closed.
        overdue: It took longer than it may.
        missing: Chunks that are planned and not completed.
    """
    runs = [one.run_id for one in seen.values() if one.run_id and one.run_id not in job.run_ids]
    job = replace(job, run_ids=(*job.run_ids, *runs))
    if job.status not in ACTIVE:
        return _wound_down(job, seen, now)
    # Somebody may have paused and resumed it since these runs were looked at.
    seen = {number: one for number, one in seen.items() if _is_launched(job.pieces[number])}
    if any(one.state is RunState.TERMINATED for one in seen.values()):
        cancelled = replace(
            job,
            status=JobStatus.CANCELLED,
            note="a run of it was terminated in Dagster",
            completed_at=now,
        )
        return _wound_down(cancelled, seen, now)
    suspended = breaker is not None and breaker.state is not BreakerState.CLOSED
    pieces = tuple(
        _since(_piece(piece, seen[piece.number], suspended), now) if piece.number in seen else piece
        for piece in job.pieces
    )
    failed = [
        piece
        for piece, before in zip(pieces, job.pieces, strict=True)
        if piece.state is PieceState.FAILED and before.state is PieceState.LAUNCHED
    ]
    if job.failed_chunks:
        pieces = (*pieces, *_derived(failed, len(pieces)))
    begun = any(one.state not in (RunState.NONE, RunState.QUEUED) for one in seen.values())
    job = replace(
        job,
        pieces=pieces,
        started_at=job.started_at or (now if begun else None),
        status=JobStatus.RUNNING if begun else job.status,
    )
    if all(piece.state in (PieceState.DONE, PieceState.FAILED) for piece in job.pieces):
        return _ended(job, missing, now)
    if suspended and breaker is not None and breaker.credentials:
        return _wound_down(_failed(job, breaker.reason, now), seen, now)
    if overdue:
        text = "it took longer than it may; avesa retry goes on where it stopped"
        return _wound_down(_failed(job, text, now), seen, now)
    return job


def _piece(piece: Piece, seen: Seen, suspended: bool) -> Piece:
    match seen.state:
        case RunState.SUCCEEDED:
            return replace(piece, state=PieceState.DONE, error=None)
        case RunState.SUSPENDED:
            return replace(piece, state=PieceState.WAITING)
        case RunState.FAILED if suspended:
            return replace(piece, state=PieceState.WAITING)
        case RunState.FAILED:
            return replace(piece, state=PieceState.FAILED, error=seen.error)
        case RunState.DIED if piece.deaths + 1 >= _MOST_DEATHS:
            error = f"its runs died {piece.deaths + 1} times; the last: {seen.error}"
            return replace(piece, state=PieceState.FAILED, deaths=piece.deaths + 1, error=error)
        case RunState.DIED:
            return replace(piece, state=PieceState.WAITING, deaths=piece.deaths + 1)
        case _:
            return piece


def _is_launched(piece: Piece) -> bool:
    return piece.state is PieceState.LAUNCHED


def _since(piece: Piece, now: datetime) -> Piece:
    """The piece with when its run was seen to have ended."""
    return piece if _is_launched(piece) else replace(piece, ended_at=now)


def _wound_down(job: Job, seen: Mapping[int, Seen], now: datetime) -> Job:
    """A job that may not fetch keeps its pieces as launched until their runs have ended."""
    under_way = (RunState.QUEUED, RunState.RUNNING)
    ended = {number for number, one in seen.items() if one.state not in under_way}
    return replace(
        job,
        pieces=tuple(
            replace(piece, state=PieceState.WAITING, ended_at=now)
            if _is_launched(piece) and piece.number in ended
            else piece
            for piece in job.pieces
        ),
    )


def _derived(failed: Sequence[Piece], known: int) -> Iterator[Piece]:
    """What makes the windows queryable that did arrive of pieces that failed."""
    fetched = (piece for piece in failed if not piece.derive)
    for number, piece in enumerate(fetched, known):
        yield Piece(number, piece.tables, piece.first, piece.last, recent=True, derive=True)


def _failed(job: Job, text: str, now: datetime) -> Job:
    """Its runs under way look at the job themselves, and stop."""
    return replace(
        job,
        status=JobStatus.FAILED,
        note=text,
        errors=(JobError(text), *job.errors),
        completed_at=now,
    )


def _ended(job: Job, missing: int, now: datetime) -> Job:
    clean = all(piece.state is PieceState.DONE for piece in job.pieces) and not missing
    status = JobStatus.COMPLETED if clean else JobStatus.COMPLETED_WITH_ERRORS
    if not clean and not job.completed_chunks:
        status = JobStatus.FAILED
    return replace(job, status=status, note="", completed_at=now)
