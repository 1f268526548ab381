"""How far a job is: what the ledger says, and for what is not planned yet, the calendar."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.backfill.progress import MOST_ERRORS, counted, ends_at, job_chunks
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import JobError, JobStatus, PieceState

from .support import NOW, SERVICE, Books, catalog_of, job_of, piece_of

CATALOG = catalog_of()
MAY = datetime(2026, 5, 1, tzinfo=UTC)


def chunk(
    number: int, state: ChunkState = ChunkState.PLANNED, table: str = "tickets", **fields: object
) -> Chunk:
    """The day of that number from 2026-05-01 on."""
    start = MAY + timedelta(number)
    base = Chunk(
        "b1", "acme", SERVICE, table, f"c{number:03}", f"{start:%Y-%m}-01", "window", start,
        start + timedelta(1), state,
    )  # fmt: skip
    return replace(base, **fields)  # type: ignore[arg-type]


def test_before_anything_is_planned_the_calendar_counts() -> None:
    assert counted(job_of(), (), CATALOG).total_chunks == 2, "May and June"
    weekly = job_of(chunk_size_days=7)
    assert counted(weekly, (), CATALOG).total_chunks == 8
    both = job_of("b1", piece_of(tables=("contacts", "companies")), piece_of(1))
    assert counted(both, (), CATALOG).total_chunks == 2 + 2, "master data is one chunk a table"


def test_what_is_planned_counts_instead() -> None:
    job = job_of("b1", piece_of(tables=("tickets", "time_entries")))
    chunks = [chunk(number) for number in range(7)]
    assert counted(job, chunks, CATALOG).total_chunks == 7 + 2
    entries = [chunk(number, table="time_entries") for number in range(3)]
    assert counted(job, chunks + entries, CATALOG).total_chunks == 10


@pytest.mark.parametrize("state", [PieceState.DONE, PieceState.FAILED])
def test_a_piece_that_ended_will_not_plan_any_more(state: PieceState) -> None:
    job = job_of("b1", piece_of(state=state), piece_of(1, derive=True))
    assert counted(job, (), CATALOG).total_chunks == 0


STATES = st.lists(
    st.tuples(st.sampled_from(ChunkState), st.integers(0, 9), st.integers(0, 9)), max_size=60
)


@given(states=STATES, piece=st.sampled_from(PieceState))
def test_the_figures_are_those_of_the_chunks(
    states: list[tuple[ChunkState, int, int]], piece: PieceState
) -> None:
    chunks = [
        chunk(number, state, rows=rows, requests=requests, error="lost")
        for number, (state, rows, requests) in enumerate(states)
    ]
    stale = job_of("b1", piece_of(state=piece), records=99, completed_chunks=99, failed_chunks=9)
    job = counted(stale, chunks, CATALOG)
    said = [state for state, _, _ in states]
    assert job.completed_chunks == said.count(ChunkState.COMPLETED)
    assert job.failed_chunks == said.count(ChunkState.FAILED) == len(job.errors)
    assert job.records == sum(rows for _, rows, _ in states)
    assert job.requests == sum(requests for _, _, requests in states)
    assert job.total_chunks >= len(chunks)
    assert counted(job, chunks, CATALOG) == job


def test_errors_name_their_windows() -> None:
    job = job_of("b1", piece_of(state=PieceState.FAILED, error="2 of 9 windows failed"))
    chunks = [chunk(0, ChunkState.FAILED, error="counts disagree"), chunk(1, ChunkState.FAILED)]
    assert counted(job, chunks, CATALOG).errors == (
        JobError("counts disagree", "tickets", "[2026-05-01, 2026-05-02)"),
        JobError("failed", "tickets", "[2026-05-02, 2026-05-03)"),
    )
    assert counted(job, (), CATALOG).errors == (JobError("2 of 9 windows failed"),)
    failed = replace(job, status=JobStatus.FAILED, note="the credentials were refused")
    assert counted(failed, chunks, CATALOG).errors[0] == JobError("the credentials were refused")
    many = [chunk(number, ChunkState.FAILED) for number in range(MOST_ERRORS + 5)]
    assert len(counted(job, many, CATALOG).errors) == MOST_ERRORS
    assert counted(job, many, CATALOG).failed_chunks == MOST_ERRORS + 5


def test_the_chunks_of_a_job_are_those_of_its_token_and_tables(tmp_path: Path) -> None:
    books = Books(tmp_path)
    own = [chunk(1), chunk(0), chunk(2, table="contacts")]
    foreign = [
        replace(chunk(3), token="b2"), replace(chunk(3), tenant="acme2"),
        chunk(3, table="companies"),
    ]  # fmt: skip
    books.control.ledger.plan(own + foreign, now=NOW)
    found = job_chunks(job_of(tables=("contacts", "tickets")), books.control.ledger)
    assert [(one.table, one.chunk_id) for one in found] == [
        ("contacts", "c002"), ("tickets", "c001"), ("tickets", "c000"),
    ]  # fmt: skip


def done(number: int, minutes: float) -> Chunk:
    """Fetched for a minute, up to so many minutes after NOW."""
    end = NOW + timedelta(minutes=minutes)
    return chunk(
        number, ChunkState.COMPLETED, started_at=end - timedelta(minutes=1), finished_at=end
    )


def test_the_end_is_known_once_something_arrived_since_it_was_taken_up() -> None:
    job = job_of("b1", piece_of(state=PieceState.LAUNCHED, launched_at=NOW), started_at=NOW)
    now = NOW + timedelta(minutes=10)

    def end(chunks: list[Chunk], **fields: object) -> datetime | None:
        return ends_at(counted(replace(job, **fields), chunks, CATALOG), chunks, now)  # type: ignore[arg-type]

    planned = [chunk(number) for number in range(20, 30)]
    arrived = [done(number, number + 1) for number in range(10)]
    assert end(planned) is None
    assert end([done(0, -5), *planned]) is None, "that was before"
    assert end([*arrived, *planned], started_at=None) is None
    for status in set(JobStatus) - {JobStatus.PENDING, JobStatus.RUNNING}:
        assert end([*arrived, *planned], status=status) is None
    assert end([*arrived, *planned]) == now + timedelta(minutes=10), "ten took ten minutes"
    assert end([*arrived, *planned[:5]]) == now + timedelta(minutes=5)
    assert end(arrived) == now
