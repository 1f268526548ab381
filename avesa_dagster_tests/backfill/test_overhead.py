"""How slow the machine is, by the jobs that ended last: only those that went smoothly teach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avesa_dagster.backfill.overhead import LOOK_SECONDS, run_seconds, slowness
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.control.jobs import Job, JobStatus, Piece, PieceState, Processing, Trigger

CATALOG = load_catalog(Path(__file__).parents[2] / "mappings")
BEGAN = datetime(2026, 7, 1, 10, tzinfo=UTC)
BESIDE = LOOK_SECONDS + run_seconds(2, 6) + run_seconds(1, 2) + run_seconds(1, 4)
FETCHED = 4 + 5 + 20 + 10


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def piece(number: int, tables: Sequence[str], first: str, last: str) -> Piece:
    return Piece(number, tuple(tables), first, last, True, state=PieceState.DONE, attempt=1)


def row(run: str, table: str, start: float, end: float) -> Processing:
    return Processing(
        run, "acme", "connectwise", table, f"backfill/acme/connectwise/{table}", "backfill",
        at(start), at(end), job_id="b1", status="completed", ended_at=at(end),
    )  # fmt: skip


def job(slow: float) -> Job:
    """Half a year, on a machine that is so slow."""
    return Job(
        "b1", "acme", "connectwise", ("companies", "contacts", "tickets"),
        datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC), Trigger.PERSON,
        BEGAN, BEGAN, status=JobStatus.COMPLETED, completed_at=at(FETCHED + slow * BESIDE),
        pieces=(
            piece(0, ("companies", "contacts"), "2026-01-01", "2026-06-01"),
            piece(1, ("tickets",), "2026-05-01", "2026-06-01"),
            piece(2, ("tickets",), "2026-01-01", "2026-04-01"),
        ),
    )  # fmt: skip


ROWS = (
    row("r0", "companies", 10, 14),
    row("r0", "contacts", 15, 20),
    row("r1", "tickets", 30, 50),
    row("r2", "tickets", 60, 70),
)


def learnt(jobs: Sequence[Job], rows: Sequence[Processing] = ROWS) -> float:
    return slowness(jobs, lambda job_id: rows, CATALOG)


def test_it_is_what_the_job_took_beside_fetching_against_what_is_stated() -> None:
    assert learnt([job(1.0)]) == pytest.approx(1.0)
    assert learnt([job(2.5)]) == pytest.approx(2.5)
    assert learnt([job(0.5)], ROWS[::-1]) == pytest.approx(0.5)


def test_of_several_jobs_the_middle_one_counts() -> None:
    jobs = [
        replace(
            job(slow),
            job_id=f"b{slow}",
            created_at=at(day * 86_400),
            completed_at=at(day * 86_400 + FETCHED + slow * BESIDE),
        )
        for day, slow in enumerate((1.5, 9.0, 1.2))
    ]
    assert learnt(jobs) == pytest.approx(1.5)


def test_without_a_job_that_shows_it_it_is_one() -> None:
    assert learnt([]) == 1.0
    assert learnt([job(3.0)], ()) == 1.0


def test_a_job_beside_another_teaches_nothing() -> None:
    other = replace(job(3.0), job_id="b2", tenant="globex", created_at=at(5), completed_at=None)
    assert learnt([job(3.0), other]) == 1.0
    later = replace(other, created_at=at(100_000))
    assert learnt([job(3.0), later]) == pytest.approx(3.0)


@pytest.mark.parametrize("status", sorted(set(JobStatus) - {JobStatus.COMPLETED}))
def test_a_job_that_did_not_end_well_teaches_nothing(status: JobStatus) -> None:
    assert learnt([replace(job(3.0), status=status)]) == 1.0


def test_a_piece_that_was_launched_twice_or_failed_teaches_nothing() -> None:
    first, *others = job(3.0).pieces
    for odd in (replace(first, attempt=2), replace(first, state=PieceState.FAILED)):
        assert learnt([replace(job(3.0), pieces=(odd, *others))]) == 1.0


def test_a_run_too_many_too_few_or_one_that_stopped_teaches_nothing() -> None:
    assert learnt([job(3.0)], [*ROWS, row("r3", "tickets", 80, 90)]) == 1.0
    assert learnt([job(3.0)], ROWS[:-1]) == 1.0
    assert learnt([job(3.0)], [*ROWS[:3], replace(ROWS[3], status="stopped")]) == 1.0
    assert learnt([job(3.0)], [*ROWS[:3], replace(ROWS[3], table="contacts")]) == 1.0


def test_a_machine_that_slept_between_two_runs_teaches_nothing() -> None:
    late = [*ROWS[:3], row("r2", "tickets", 60 + 3600, 70 + 3600)]
    assert learnt([replace(job(3.0), completed_at=at(4000))], late) == 1.0
