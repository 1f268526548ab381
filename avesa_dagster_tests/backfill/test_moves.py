"""What moves jobs: their runs are followed, and what is due is launched, once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest

from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.backfill.moves import move
from avesa_dagster.backfill.settle import RunState
from avesa_dagster.catalog import grain
from avesa_dagster.catalog.models import Catalog, Grain, OffPeak
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import Job, JobStatus, Piece, PieceState, Trigger

from .support import NOW, SERVICE, Books, FakeRuns, Run, catalog_of, job_of, piece_of

LAUNCHED, WAITING, DONE = PieceState.LAUNCHED, PieceState.WAITING, PieceState.DONE


class Yard(Books):
    """Books, and runs that do what a test says."""

    def __init__(self, folder: Path, *tenants: str, catalog: Catalog | None = None) -> None:
        super().__init__(folder, *tenants, catalog=catalog)
        self.runs = FakeRuns()
        self.breakers: list[Breaker] = []

    def tick(
        self,
        *,
        waits: Callable[[Job], str] = lambda job: "",
        mine: Callable[[str], bool] = lambda tenant: True,
    ) -> list[str]:
        """One look; the launches that it asked for, as job-piece.attempt."""
        self.clock.advance(seconds=5)
        asked = []
        for job, piece in move(self.backfills, self.breakers, self.runs, waits, mine):
            held = self.job(job.job_id).pieces[piece.number]
            assert held == piece, "it is marked as launched before it is asked for"
            assert held.state is LAUNCHED
            self.runs.request(job, piece)
            asked.append(f"{job.job_id}-{piece.number}.{piece.attempt}")
        return asked

    def ends(self, job_id: str, state: RunState = RunState.SUCCEEDED) -> Run:
        """The newest run of the job that is under way ends so."""
        run = [run for run in self.runs.of(self.job(job_id)) if run.under_way][-1]
        run.state = state
        return run

    def chunk(self, job_id: str, number: int, *, fails: bool = False) -> None:
        start = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(number)
        one = Chunk(
            job_id, "acme", SERVICE, "tickets", f"c{number}", "2026-05-01", "window", start,
            start + timedelta(1),
        )  # fmt: skip
        ledger, now = self.control.ledger, self.clock()
        ledger.plan([one], now=now)
        ledger.begin(one, now=now)
        if fails:
            ledger.fail(one, error="counts disagree", requests=1, now=now)
        else:
            ledger.complete(one, source_count=0, requests=2, now=now)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def states(job: Job) -> list[PieceState]:
    return [piece.state for piece in job.pieces]


def two(job_id: str = "b1") -> Job:
    return job_of(job_id, piece_of(0), piece_of(1))


def test_a_job_goes_piece_by_piece_to_its_end(yard: Yard) -> None:
    yard.put(two())
    assert yard.tick() == ["b1-0.1"]
    assert yard.job().status is JobStatus.PENDING, "its run is in the queue"
    yard.runs.runs[0].state = RunState.RUNNING
    assert yard.tick() == ["b1-1.1"], "ahead, as nobody else waits"
    assert yard.tick() == []
    assert yard.job().status is JobStatus.RUNNING
    yard.chunk("b1", 0)
    yard.runs.runs[0].state = RunState.SUCCEEDED
    assert yard.tick() == []
    assert states(yard.job()) == [DONE, LAUNCHED]
    assert (yard.job().completed_chunks, yard.job().requests) == (1, 2)
    yard.ends("b1")
    assert yard.tick() == []
    ended = yard.job()
    assert (ended.status, ended.completed_at, ended.run_ids) == (
        JobStatus.COMPLETED, yard.clock(), ("run-0", "run-1"),
    )  # fmt: skip
    before = ended
    assert yard.tick() == []
    assert yard.job() == before


def test_a_request_that_was_lost_is_made_again_under_the_same_name(yard: Yard) -> None:
    yard.put(job_of())
    yard.runs.lose = 2
    assert [yard.tick(), yard.tick(), yard.tick(), yard.tick()] == [
        ["b1-0.1"], ["b1-0.1"], ["b1-0.1"], [],
    ]  # fmt: skip
    assert len(yard.runs.runs) == 1


def test_a_lost_request_waits_while_the_job_is_held(yard: Yard) -> None:
    yard.put(job_of())
    yard.runs.lose = 1
    yard.tick()
    assert yard.tick(waits=lambda job: "waits until its assets are loaded") == []
    assert yard.tick() == ["b1-0.1"]


def test_the_first_run_of_a_backfill_from_dagster_is_never_made_up(yard: Yard) -> None:
    launched = piece_of(state=LAUNCHED, attempt=1, launched_at=NOW)
    yard.put(job_of("b1", launched, trigger=Trigger.DAGSTER, status=JobStatus.RUNNING))
    assert yard.tick() == []
    yard.turn("b1", pieces=(piece_of(state=LAUNCHED, attempt=2, launched_at=NOW),))
    assert yard.tick() == ["b1-0.2"]


@pytest.mark.parametrize("state", [RunState.DIED, RunState.SUSPENDED])
def test_a_run_that_died_or_was_suspended_is_launched_again(yard: Yard, state: RunState) -> None:
    yard.put(job_of())
    yard.tick()
    yard.ends("b1", state)
    assert yard.tick() == ["b1-0.2"]
    assert yard.job().pieces[0].deaths == (1 if state is RunState.DIED else 0)


def test_a_paused_job_is_taken_out_of_the_queue_and_resumes_where_it_was(yard: Yard) -> None:
    yard.put(two())
    yard.tick()
    yard.backfills.pause("b1")
    assert yard.tick() == []
    assert yard.runs.runs[0].state is RunState.TERMINATED, "out of the queue"
    assert yard.job().status is JobStatus.PAUSED, "which cancels nothing"
    assert states(yard.job()) == [WAITING, WAITING]
    yard.backfills.resume("b1")
    assert yard.tick() == ["b1-0.2"]


def test_what_runs_is_told_that_it_is_being_stopped(yard: Yard) -> None:
    yard.put(job_of())
    yard.tick()
    yard.runs.runs[0].state = RunState.RUNNING
    yard.backfills.cancel("b1")
    yard.tick()
    assert yard.runs.runs[0].told
    assert states(yard.job()) == [LAUNCHED], "until its run has ended"
    yard.ends("b1", RunState.DIED)
    yard.tick()
    assert (states(yard.job()), yard.job().status) == ([WAITING], JobStatus.CANCELLED)


def test_what_a_run_fetched_that_was_taken_up_between_two_looks_is_counted(yard: Yard) -> None:
    yard.put(job_of())
    yard.tick()
    yard.runs.runs[0].state = RunState.RUNNING
    yard.backfills.pause("b1")
    yard.backfills.resume("b1")  # and the run goes on, as nobody told it to stop in time
    yard.chunk("b1", 0)
    yard.backfills.cancel("b1")
    yard.ends("b1", RunState.DIED)
    yard.tick()
    assert (yard.job().completed_chunks, yard.job().run_ids) == (1, ("run-0",))
    assert (yard.job().status, states(yard.job())) == (JobStatus.CANCELLED, [WAITING])


def test_a_run_that_a_person_ended_in_dagster_cancels_its_job_and_the_next_piece(
    yard: Yard,
) -> None:
    yard.put(two())
    yard.tick()
    yard.tick()
    first, second = yard.runs.runs
    first.state = RunState.TERMINATED
    assert yard.tick() == []
    assert yard.job().status is JobStatus.CANCELLED
    assert "terminated in Dagster" in yard.job().note
    assert second.state is RunState.TERMINATED, "out of the queue"


def test_runs_of_the_oldest_of_many_that_ended_are_held_back_too(yard: Yard) -> None:
    yard.put(job_of("old", created_at=NOW - timedelta(9)))
    yard.tick()
    for number in range(60):
        yard.put(
            job_of(f"b{number}", piece_of(state=DONE), status=JobStatus.COMPLETED,
                   completed_at=NOW, tenant="globex")
        )  # fmt: skip
    yard.backfills.cancel("old")
    yard.tick()
    assert yard.runs.runs[0].state is RunState.TERMINATED
    assert states(yard.job("old")) == [WAITING]


def test_an_error_ends_a_piece_and_the_others_go_on(yard: Yard) -> None:
    yard.put(two())
    yard.tick()
    yard.chunk("b1", 0)
    yard.chunk("b1", 1, fails=True)
    yard.ends("b1", RunState.FAILED)
    assert yard.tick() == ["b1-1.1"]
    assert yard.tick() == ["b1-2.1"], "what arrived of the first becomes queryable"
    for _ in range(2):
        yard.ends("b1")
        yard.tick()
    ended = yard.job()
    assert ended.status is JobStatus.COMPLETED_WITH_ERRORS
    assert [error.window for error in ended.errors] == ["[2026-05-02, 2026-05-03)"]
    yard.backfills.retry("b1")
    assert states(yard.job()) == [WAITING, DONE, DONE]
    assert yard.tick() == ["b1-0.2"]
    yard.chunk("b1", 1)
    yard.ends("b1")
    yard.tick()
    assert (yard.job().status, yard.job().errors) == (JobStatus.COMPLETED, ())


def test_a_job_is_not_complete_while_a_chunk_is_missing_and_retry_takes_it(yard: Yard) -> None:
    yard.put(job_of())
    yard.tick()
    yard.chunk("b1", 0)
    yard.chunk("b1", 1, fails=True)
    yard.ends("b1")
    yard.tick()
    assert yard.job().status is JobStatus.COMPLETED_WITH_ERRORS
    yard.backfills.retry("b1")
    assert yard.tick() == ["b1-0.2"]


def test_why_a_job_waits_is_noted_and_forgotten_when_it_goes_on(yard: Yard) -> None:
    yard.put(job_of())
    assert yard.tick(waits=lambda job: "waits until its assets are loaded") == []
    assert yard.job().note == "waits until its assets are loaded"
    noted = yard.job()
    yard.tick(waits=lambda job: "waits until its assets are loaded")
    assert yard.job() == noted, "said once"
    assert yard.tick() == ["b1-0.1"]
    assert yard.job().note == ""


def test_refused_credentials_fail_the_jobs_of_that_one(tmp_path: Path) -> None:
    yard = Yard(tmp_path, "acme", "globex")
    yard.put(job_of("b1"))
    yard.put(job_of("b2", tenant="globex"))
    yard.breakers = [Breaker("acme", SERVICE, BreakerState.OPEN, 1, "401", credentials=True)]
    assert yard.tick() == ["b2-0.1"]
    assert (yard.job("b1").status, yard.job("b1").note) == (JobStatus.FAILED, "401")
    yard.breakers = []
    yard.backfills.retry("b1")
    assert yard.tick() == ["b1-0.1"]


def test_a_job_that_takes_longer_than_a_day_stops_and_retry_gives_it_another(yard: Yard) -> None:
    yard.put(job_of())
    yard.tick()
    yard.runs.runs[0].state = RunState.RUNNING
    yard.tick()
    yard.clock.advance(hours=23.9)
    yard.tick()
    assert yard.backfills.stop_reason("b1", "acme", SERVICE) is None
    yard.clock.advance(hours=0.2)
    assert "longer than it may" in str(yard.backfills.stop_reason("b1", "acme", SERVICE))
    yard.tick()
    assert yard.job().status is JobStatus.FAILED
    assert "longer than it may" in yard.job().errors[0].text
    yard.ends("b1", RunState.DIED)
    yard.tick()
    yard.backfills.retry("b1")
    assert yard.tick() == ["b1-0.2"]
    assert yard.job().errors == ()


def test_tenants_of_another_shard_are_left_alone_and_keep_their_places(tmp_path: Path) -> None:
    yard = Yard(tmp_path, "acme", "globex", catalog=catalog_of(max_jobs=1))
    yard.put(job_of("b1"))
    yard.put(job_of("b2", tenant="globex", created_at=NOW + timedelta(1)))
    before = yard.job("b1")
    assert yard.tick(mine=lambda tenant: tenant == "globex") == []
    assert yard.job("b1") == before
    assert "1 backfills are running" in yard.job("b2").note


def test_a_tenant_with_many_jobs_does_not_go_first_each_time_one_of_them_ends(
    tmp_path: Path,
) -> None:
    yard = Yard(tmp_path, "acme", "globex", catalog=catalog_of(max_tenants=1, max_jobs=1))
    for number in range(3):
        yard.put(job_of(f"a{number}", created_at=NOW + timedelta(seconds=number)))
        yard.put(job_of(f"g{number}", tenant="globex", created_at=NOW + timedelta(days=number + 1)))
    order = []
    for _ in range(6):
        (launched,) = yard.tick()
        order.append(launched[:2])
        yard.ends(launched[:2])
    assert order == ["a0", "g0", "a1", "g1", "a2", "g2"]


def test_a_steady_job_is_written_once_and_not_at_each_look(yard: Yard) -> None:
    yard.put(two())
    yard.tick()
    yard.runs.runs[0].state = RunState.RUNNING
    yard.tick()  # launches the second
    yard.tick()  # has seen its run
    before = yard.job()
    for _ in range(3):
        yard.tick()
    assert yard.job().updated_at == before.updated_at


def test_a_year_appears_in_pieces_with_the_recent_months_first(yard: Yard) -> None:
    yard.connect("globex", start=datetime(2024, 1, 1, tzinfo=UTC))
    job, joined = yard.backfills.start(Wish("globex", SERVICE, start=date(2024, 1, 1)))
    assert not joined
    order: list[Piece] = []
    while launched := yard.tick():
        for name in launched:
            order.append(yard.job(job.job_id).pieces[int(name.rsplit("-")[-1].split(".")[0])])
        yard.ends(job.job_id)
        yard.runs.runs = [run for run in yard.runs.runs if run.state is not RunState.QUEUED] + [
            run for run in yard.runs.runs if run.state is RunState.QUEUED
        ]
    assert [(p.tables, p.first, p.last) for p in order] == [
        (("contacts",), "2024-01-01", "2026-07-01"),
        (("tickets",), "2026-06-01", "2026-07-01"),
        (("tickets",), "2025-06-01", "2026-05-01"),
        (("tickets",), "2024-06-01", "2025-05-01"),
        (("tickets",), "2024-01-01", "2024-05-01"),
    ]
    assert yard.job(job.job_id).status is JobStatus.COMPLETED


def test_what_was_launched_in_dagster_becomes_a_job_that_is_followed(yard: Yard) -> None:
    row = yard.backfills.connection("acme", SERVICE)
    months = list(grain.partitions(Grain.MONTHLY, datetime(2026, 3, 1, tzinfo=UTC), NOW))
    job, first = yard.backfills.adopt("ui-1", row, ["tickets"], months[:2])
    again, same = yard.backfills.adopt("ui-1", row, ["tickets"], months[:2])
    assert (again, same) == (job, first), "seen twice, taken up once"
    job, second = yard.backfills.adopt("ui-1", row, ["contacts"], months)
    assert (job.tables, job.start, job.end) == (
        ("contacts", "tickets"), months[0].start, months[-1].end,
    )  # fmt: skip
    for piece in (first, second):
        yard.runs.request(job, piece)
    assert yard.tick() == []
    for run in yard.runs.runs:
        run.state = RunState.SUCCEEDED
    assert yard.tick() == []
    assert yard.job("ui-1").status is JobStatus.COMPLETED


def test_a_nights_rest_counts_neither_as_hours_nor_as_deaths(tmp_path: Path) -> None:
    night = catalog_of(off_peak=OffPeak(start=time(22), end=time(6)))
    yard = Yard(tmp_path, "acme", catalog=night)
    yard.clock.now = NOW.replace(hour=21, minute=59)
    yard.control.jobs.create(job_of("b1", piece_of(0, recent=False)))
    for _ in range(60):  # more nights than a piece may die
        assert yard.tick() == [] and "off-peak" in yard.job("b1").note
        assert yard.job("b1").started_at is None
        yard.clock.advance(hours=1)
        assert len(yard.tick()) == 1
        yard.runs.of(yard.job("b1"))[-1].state = RunState.RUNNING
        yard.tick()
        assert yard.job("b1").started_at is not None
        yard.clock.advance(hours=8)
        yard.ends("b1", RunState.DIED)
        yard.tick()
        assert yard.job("b1").status is JobStatus.RUNNING
        yard.clock.now = yard.clock().replace(hour=21, minute=59)
