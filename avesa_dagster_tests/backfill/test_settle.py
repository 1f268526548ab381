"""What runs came to, and what that makes of a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.backfill.settle import RunState, Seen, settle
from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import (
    ACTIVE,
    UNFINISHED,
    Job,
    JobError,
    JobStatus,
    Piece,
    PieceState,
)

from .support import NOW, SERVICE, job_of, piece_of

LAUNCHED, WAITING, DONE, FAILED = (
    PieceState.LAUNCHED, PieceState.WAITING, PieceState.DONE, PieceState.FAILED,
)  # fmt: skip
UNDER_WAY = (RunState.QUEUED, RunState.RUNNING)
OPEN = Breaker("acme", SERVICE, BreakerState.OPEN, 5, "it answers 500")
REFUSED = replace(OPEN, reason="it refused the credentials", credentials=True)


def run(
    state: RunState, *, breaker: Breaker | None = None, error: str | None = None,
    overdue: bool = False, missing: int = 0, pieces: tuple[Piece, ...] = (), **fields: Any,
) -> Job:  # fmt: skip
    """What a job becomes whose first piece is launched and whose run is so; a second one waits."""
    before = job_of("b1", *(pieces or (piece_of(state=LAUNCHED), piece_of(1))), **fields)
    seen = {0: Seen(state, "run-1", error)}
    return settle(before, seen, breaker, NOW, overdue=overdue, missing=missing)


def states(job: Job) -> list[PieceState]:
    return [piece.state for piece in job.pieces]


@pytest.mark.parametrize(
    ("state", "piece", "status"),
    [
        (RunState.NONE, LAUNCHED, JobStatus.PENDING),
        (RunState.QUEUED, LAUNCHED, JobStatus.PENDING),
        (RunState.RUNNING, LAUNCHED, JobStatus.RUNNING),
        (RunState.SUCCEEDED, DONE, JobStatus.RUNNING),
        (RunState.FAILED, FAILED, JobStatus.RUNNING),
        (RunState.SUSPENDED, WAITING, JobStatus.RUNNING),
        (RunState.DIED, WAITING, JobStatus.RUNNING),
        (RunState.TERMINATED, WAITING, JobStatus.CANCELLED),
    ],
)
def test_what_becomes_of_a_piece(state: RunState, piece: PieceState, status: JobStatus) -> None:
    job = run(state, error="lost" if state is RunState.FAILED else None)
    assert (states(job), job.status) == ([piece, WAITING], status)
    assert job.started_at == (NOW if status is JobStatus.RUNNING else None)
    assert (job.completed_at == NOW) is (status not in UNFINISHED)
    assert job.run_ids == ("run-1",)
    assert job.pieces[0].error == ("lost" if state is RunState.FAILED else None)


def test_a_run_is_noted_once_and_the_start_is_that_of_the_first() -> None:
    early = NOW - timedelta(hours=1)
    job = run(RunState.RUNNING, run_ids=("run-0", "run-1"), started_at=early)
    assert (job.run_ids, job.started_at) == (("run-0", "run-1"), early)


def test_a_run_that_fails_while_the_service_is_suspended_waits_for_it() -> None:
    assert states(run(RunState.FAILED, breaker=OPEN))[0] is WAITING
    half = replace(OPEN, state=BreakerState.HALF_OPEN)
    assert states(run(RunState.FAILED, breaker=half))[0] is WAITING
    counting = replace(OPEN, state=BreakerState.CLOSED, failures=1)
    assert states(run(RunState.FAILED, breaker=counting))[0] is FAILED


def test_a_piece_whose_runs_die_again_and_again_fails_and_says_so() -> None:
    job = job_of("b1", piece_of(state=LAUNCHED), piece_of(1))
    deaths = 0
    while job.pieces[0].state is not FAILED:
        deaths += 1
        relaunched = replace(job.pieces[0], state=LAUNCHED)
        job = replace(job, pieces=(relaunched, job.pieces[1]))
        seen = {0: Seen(RunState.DIED, f"run-{deaths}", "killed")}
        job = settle(job, seen, None, NOW, overdue=False)
        assert job.pieces[0].deaths == deaths
    assert deaths == 50
    assert job.pieces[0].error == "its runs died 50 times; the last: killed"


@pytest.mark.parametrize(
    ("last", "missing", "completed", "status"),
    [
        (RunState.SUCCEEDED, 0, 5, JobStatus.COMPLETED),
        (RunState.SUCCEEDED, 0, 0, JobStatus.COMPLETED),
        (RunState.SUCCEEDED, 1, 5, JobStatus.COMPLETED_WITH_ERRORS),
        (RunState.FAILED, 0, 5, JobStatus.COMPLETED_WITH_ERRORS),
        (RunState.FAILED, 3, 0, JobStatus.FAILED),
        (RunState.SUCCEEDED, 3, 0, JobStatus.FAILED),
    ],
)
def test_a_job_is_complete_if_all_of_it_arrived(
    last: RunState, missing: int, completed: int, status: JobStatus
) -> None:
    pieces = (piece_of(state=LAUNCHED), piece_of(1, state=DONE))
    job = run(last, missing=missing, pieces=pieces, completed_chunks=completed, note="waits")
    assert (job.status, job.completed_at, job.note) == (status, NOW, "")


def test_what_did_arrive_of_a_piece_that_failed_is_derived_once() -> None:
    pieces = (piece_of(state=LAUNCHED, tables=("a", "b")), piece_of(1, state=DONE))
    job = run(RunState.FAILED, pieces=pieces, failed_chunks=1, completed_chunks=3)
    assert job.status is JobStatus.RUNNING, "not before it is queryable"
    assert job.pieces[2] == Piece(2, ("a", "b"), "2026-05-01", "2026-06-01", True, derive=True)
    again = settle(job, {}, None, NOW, overdue=False, missing=1)
    assert again.pieces == job.pieces
    launched = replace(job, pieces=(*job.pieces[:2], replace(job.pieces[2], state=LAUNCHED)))
    for state in (RunState.SUCCEEDED, RunState.FAILED):
        ended = settle(launched, {2: Seen(state)}, None, NOW, overdue=False, missing=1)
        assert len(ended.pieces) == 3
        assert ended.status is JobStatus.COMPLETED_WITH_ERRORS
    assert len(run(RunState.FAILED, pieces=pieces).pieces) == 2, "nothing arrived in part"


def test_refused_credentials_end_a_job_and_say_why() -> None:
    job = run(RunState.RUNNING, breaker=REFUSED)
    assert (job.status, job.note) == (JobStatus.FAILED, REFUSED.reason)
    assert job.errors == (JobError(REFUSED.reason),)
    assert states(job) == [LAUNCHED, WAITING], "until its run has ended"
    assert states(settle(job, {0: Seen(RunState.DIED)}, None, NOW, overdue=False))[0] is WAITING
    assert run(RunState.RUNNING, breaker=OPEN).status is JobStatus.RUNNING
    healed = replace(REFUSED, state=BreakerState.CLOSED)
    assert run(RunState.RUNNING, breaker=healed).status is JobStatus.RUNNING


def test_a_job_that_takes_too_long_ends_and_says_so() -> None:
    job = run(RunState.RUNNING, overdue=True)
    assert job.status is JobStatus.FAILED
    assert "longer than it may" in job.note
    assert "retry" in job.note
    all_done = (piece_of(state=LAUNCHED),)
    assert run(RunState.SUCCEEDED, overdue=True, pieces=all_done).status is JobStatus.COMPLETED


def test_what_somebody_paused_and_resumed_meanwhile_is_left_alone() -> None:
    for state in RunState:
        job = run(state, pieces=(piece_of(state=WAITING, attempt=1), piece_of(1)))
        assert job.status is JobStatus.PENDING, state
        assert states(job) == [WAITING, WAITING]


@pytest.mark.parametrize("status", sorted(set(JobStatus) - ACTIVE))
def test_a_job_that_may_not_fetch_stays_so_and_its_pieces_end_with_their_runs(
    status: JobStatus,
) -> None:
    for state in RunState:
        job = run(state, status=status, overdue=True, breaker=REFUSED)
        assert job.status is status
        assert states(job) == [LAUNCHED if state in UNDER_WAY else WAITING, WAITING]
        assert job.run_ids == ("run-1",)


PIECES = st.lists(st.sampled_from(PieceState), min_size=1, max_size=5).map(
    lambda found: tuple(piece_of(n, state=state) for n, state in enumerate(found))
)


@given(
    pieces=PIECES,
    status=st.sampled_from(JobStatus),
    seen=st.lists(st.sampled_from(RunState), min_size=5, max_size=5),
    breaker=st.sampled_from([None, OPEN, REFUSED]),
    overdue=st.booleans(),
    missing=st.integers(0, 2),
    failed=st.integers(0, 1),
    completed=st.integers(0, 1),
)
def test_whatever_is_seen_a_second_look_at_the_same_changes_nothing(
    pieces: tuple[Piece, ...],
    status: JobStatus,
    seen: list[RunState],
    breaker: Breaker | None,
    overdue: bool,
    missing: int,
    failed: int,
    completed: int,
) -> None:
    before = job_of("b1", *pieces, status=status, failed_chunks=failed, completed_chunks=completed)
    found = {n: Seen(seen[n], f"r{n}") for n, p in enumerate(pieces) if p.state is LAUNCHED}
    after = settle(before, found, breaker, NOW, overdue=overdue, missing=missing)
    for old, new in zip(before.pieces, after.pieces, strict=False):
        assert new.state is old.state or old.state is LAUNCHED, "only what was launched moves"
    if status not in ACTIVE:
        assert after.status is status
    if after.status is JobStatus.COMPLETED and status in ACTIVE:
        assert states(after) == [DONE] * len(after.pieces)
        assert not missing
    if after.status not in UNFINISHED and status in ACTIVE:
        assert after.completed_at == NOW
    open_still = {
        n: one for n, one in found.items() if after.pieces[n].state is LAUNCHED
    }  # fmt: skip
    again = settle(after, open_still, breaker, NOW, overdue=overdue, missing=missing)
    assert again == after
