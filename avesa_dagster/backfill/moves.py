"""What moves backfill jobs, whoever runs them: follows their runs, and says what to launch next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from avesa_dagster.backfill.jobs import Backfills
from avesa_dagster.backfill.progress import counted, job_chunks
from avesa_dagster.backfill.schedule import Turn, turns
from avesa_dagster.backfill.settle import RunState, Seen, settle
from avesa_dagster.control.base import ChunkState
from avesa_dagster.control.health import Breaker
from avesa_dagster.control.jobs import (
    ACTIVE,
    UNFINISHED,
    Job,
    Piece,
    PieceState,
    Trigger,
)

_ENDED = 50
"""Of so many jobs that ended last it matters when their tenants were served."""


class Runs(Protocol):
    """The runs of jobs, wherever they are executed."""

    def seen(self, job: Job) -> Mapping[int, Seen]:
        """Number of each launched piece of the job to the newest run of its newest launch."""
        ...

    def hold_back(self, job: Job) -> None:
        """Takes the queued runs of a job that may not fetch out of the queue, and says on those
        under way that they are being stopped: they look at the job themselves."""
        ...


def move(
    backfills: Backfills,
    breakers: Sequence[Breaker],
    runs: Runs,
    waits: Callable[[Job], str],
    mine: Callable[[str], bool] = lambda tenant: True,
) -> Iterator[tuple[Job, Piece]]:
    """Brings every job up to date; yields the pieces whose runs are to be requested now.

    A piece is marked as launched before it is yielded. One whose request was lost is yielded
    again, so a launch is named by its job, piece and attempt, and a name is requested once.

    Args:
        breakers: All that are not closed.
        waits: Why a job cannot be launched here at present; empty if it can.
        mine: Whether a tenant's jobs are moved here.
    """
    jobs, now = backfills.jobs, backfills.clock()
    known = {(breaker.tenant, breaker.service): breaker for breaker in breakers}
    lost: list[tuple[Job, Piece]] = []
    for job in [*jobs.find(statuses=UNFINISHED), *jobs.winding_down()]:
        breaker = known.get((job.tenant, job.service))
        if mine(job.tenant) and not _waits(job, breaker):
            lost += _follow(backfills, runs, job, breaker, now)
    unfinished = jobs.find(statuses=UNFINISHED)
    held = {job.job_id: why for job in unfinished if (why := waits(job))}
    served = [*unfinished, *jobs.ended(limit=_ENDED)]
    for turn in turns(served, known, backfills.catalog, now, held):
        if not mine(turn.job.tenant):
            continue
        launched = _launch(backfills, turn, now)
        if launched is not None:
            yield launched
    yield from ((job, piece) for job, piece in lost if not waits(job))


def _waits(job: Job, breaker: Breaker | None) -> bool:
    """Whether nothing of the job was ever launched: hundreds may wait, and cost nothing."""
    untouched = bool(job.pieces) and not any(piece.attempt for piece in job.pieces)
    return untouched and breaker is None


def _follow(
    backfills: Backfills, runs: Runs, job: Job, breaker: Breaker | None, now: datetime
) -> list[tuple[Job, Piece]]:
    """What the job's runs and chunks came to, into its row; its row's end, to its runs.

    Returns:
        The pieces that are launched and whose run was never stored.
    """
    if job.status not in ACTIVE:
        runs.hold_back(job)
    seen = runs.seen(job)
    chunks = job_chunks(job, backfills.ledger)  # after the runs: one that ended has said all
    missing = sum(chunk.state is not ChunkState.COMPLETED for chunk in chunks)

    def change(held: Job) -> Job:
        held = counted(held, chunks, backfills.catalog)
        overdue = backfills.overdue(held)
        held = settle(held, seen, breaker, now, overdue=overdue, missing=missing)
        return counted(held, chunks, backfills.catalog)

    job = backfills.jobs.change(job.job_id, change, now=now)
    if job.status not in ACTIVE:
        runs.hold_back(job)
        return []
    return [(job, piece) for piece in job.pieces if _is_lost(job, piece, seen)]


def _launch(backfills: Backfills, turn: Turn, now: datetime) -> tuple[Job, Piece] | None:
    """Marks the piece as launched; or notes why the job waits."""
    if turn.piece is None:
        if turn.job.note != turn.note or (turn.rests and turn.job.started_at):
            backfills.jobs.change(turn.job.job_id, lambda held: _waiting(held, turn), now=now)
        return None
    planned = turn.piece
    launched = replace(
        planned,
        state=PieceState.LAUNCHED,
        attempt=planned.attempt + 1,
        launched_at=now,
        error=None,
    )

    def change(held: Job) -> Job:
        if held.status not in ACTIVE or held.pieces[planned.number] != planned:
            return held
        pieces = (*held.pieces[: planned.number], launched, *held.pieces[planned.number + 1 :])
        return replace(held, pieces=pieces, note="")

    job = backfills.jobs.change(turn.job.job_id, change, now=now)
    mine = job.status in ACTIVE and job.pieces[planned.number] == launched
    return (job, launched) if mine else None


def _waiting(job: Job, turn: Turn) -> Job:
    """The job with why it waits. A night's rest counts neither as its hours nor as a death."""
    if job.status not in ACTIVE:
        return job
    if not turn.rests:
        return replace(job, note=turn.note)
    pieces = tuple(replace(piece, deaths=0) if piece.deaths else piece for piece in job.pieces)
    return replace(job, note=turn.note, started_at=None, pieces=pieces)


def _is_lost(job: Job, piece: Piece, seen: Mapping[int, Seen]) -> bool:
    """Whether a launched piece has no run; the first ones from Dagster itself come of a run."""
    one = seen.get(piece.number)
    return (
        piece.state is PieceState.LAUNCHED
        and one is not None
        and one.state is RunState.NONE
        and (job.trigger is not Trigger.DAGSTER or piece.attempt > 1)
    )
