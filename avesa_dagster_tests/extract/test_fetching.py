"""Chunks are tried a few times, then set aside while the others go on; what times out is halved."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import BreakerSettings, ChunkRetry, SweepGuard
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.health import BreakerState
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import (
    AvesaError,
    CredentialsRefused,
    DataError,
    FatalError,
    PermissionRefused,
    RecordsRejected,
    RetriableError,
    Stopped,
    StoreError,
    Suspended,
    TimedOut,
    Where,
)
from avesa_dagster.extract.fetching import Attempted, Fetching
from avesa_dagster.extract.guard import Guard
from avesa_dagster.extract.held import Held
from avesa_dagster.extract.planner import name_of
from avesa_dagster.extract.raw import Origin
from avesa_dagster.extract.request import Progress
from avesa_dagster.extract.workshop import Workshop
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.sources.base import Page, Span, Window

MAY = datetime(2026, 5, 1, tzinfo=UTC)
NOW = datetime(2026, 7, 14, 10, tzinfo=UTC)
PART = Partition("2026-05-01", MAY, datetime(2026, 6, 1, tzinfo=UTC))
Fault = Callable[[Window], AvesaError | None]


def day(number: float) -> datetime:
    return MAY + timedelta(days=number)


def chunk(first: float, last: float, kind: str = "window") -> Chunk:
    window = Window(day(first), day(last))
    name = name_of(window) if kind == "window" else f"{kind}-{name_of(window)}"
    return Chunk(
        "b1", "acme", "connectwise", "tickets", name, PART.key, kind, window.start, window.end
    )


def days(count: int) -> list[Chunk]:
    """So many days of May, newest first."""
    return [chunk(number, number + 1) for number in reversed(range(count))]


@dataclass
class Service:
    """Has no records; each question may meet a fault. Counts per window of a day."""

    fault: Fault = lambda window: None
    asked: list[Window] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    opened: list[Asking] = field(default_factory=list)

    def open(self) -> Asking:
        self.opened.append(Asking(self))
        return self.opened[-1]

    def times(self, number: int) -> int:
        return sum(window.start == day(number) for window in self.asked)


@dataclass
class Asking:
    """One thread's source."""

    service: Service
    requests: int = 0
    retries: int = 0
    closed: bool = False
    lists_deletions: bool = False
    ids_ascend: bool = True

    def now(self) -> datetime:
        return NOW

    def count(self, table: str, span: Span) -> int:
        self.requests += 1
        window = span.window or Window(MAY, MAY)
        self.service.asked.append(window)
        self.service.at.append(time.monotonic())
        error = self.service.fault(window)
        if error is not None:
            raise error
        return 0

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        self.requests += 1
        return Page([], [], None, NOW)

    def newest_id(self, table: str) -> str | None:
        return None

    def exists(self, table: str, record_id: str) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Work:
    """A fetching of these chunks, over a real ledger."""

    def __init__(
        self, folder: Path, chunks: list[Chunk], fault: Fault = lambda window: None, *,
        retry: ChunkRetry = ChunkRetry(first_wait_seconds=0.001), threshold: int = 1000,  # noqa: B008
        probe: Callable[[], None] = lambda: None, cancelled: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        settings = BreakerSettings(failures=threshold)
        self.control = SqliteControl(folder / "control.db", breaker=settings)
        self.service = Service(fault)
        self.said: list[Progress] = []
        self.notes: list[Attempted] = []
        self.stop = threading.Event()
        objects = LocalObjects(folder / "lake")
        where = Where("acme", "connectwise", "tickets")
        shop = Workshop(
            objects, self.control.ledger, lambda: NOW, Origin("run", "backfill", "b1"), (PART,),
            PART.start, PART.end, SweepGuard(max_deleted_share=1, min_deleted_records=10),
            Held(objects, "acme", "connectwise", "tickets"), False,
        )  # fmt: skip
        self.fetching = Fetching(
            self.control.ledger.plan(chunks, now=NOW), [], self.service.open, shop,
            Guard(self.control.breakers, where, threshold, probe, lambda: NOW), retry,
            stop=self.stop, cancelled=cancelled, report=self.said.append, note=self.notes.append,
        )  # fmt: skip

    def all(self, threads: int = 2) -> list[AvesaError]:
        self.fetching.all(threads)
        assert all(source.closed for source in self.service.opened)
        assert len(self.service.opened) <= threads
        return self.fetching.failures

    def rows(self) -> list[Chunk]:
        return self.control.ledger.rows("b1", "acme", "connectwise", "tickets")

    def states(self) -> dict[int, ChunkState]:
        """Day of the month, from 0, to the state of its chunk."""
        return {(row.start - MAY).days: row.state for row in self.rows()}


def bad(error: Callable[[], AvesaError], *numbers: int, times: int = 10**9) -> Fault:
    """These days raise it, so often each."""
    left = dict.fromkeys(numbers, times)
    lock = threading.Lock()

    def fault(window: Window) -> AvesaError | None:
        number = (window.start - MAY).days
        with lock:
            if left.get(number, 0) <= 0:
                return None
            left[number] -= 1
            return error()

    return fault


@pytest.mark.parametrize("kind", [RetriableError, DataError])
def test_a_chunk_is_tried_three_times(tmp_path: Path, kind: type[AvesaError]) -> None:
    work = Work(tmp_path, days(3), bad(lambda: kind("no answer"), 1, times=2))
    assert work.all() == []
    assert set(work.states().values()) == {ChunkState.COMPLETED}
    assert [row.attempts for row in work.rows()] == [1, 3, 1]
    assert [row.error for row in work.rows()] == [None] * 3


@pytest.mark.parametrize("threads", [1, 2])
def test_then_it_is_set_aside_and_the_others_go_on(tmp_path: Path, threads: int) -> None:
    work = Work(tmp_path, days(6), bad(lambda: RetriableError("no answer"), 5, 2))
    failures = work.all(threads)
    assert {number for number, state in work.states().items() if state is ChunkState.FAILED} == {
        5, 2,
    }  # fmt: skip
    assert sorted(str(error.where.window) for error in failures) == [
        "[2026-05-03, 2026-05-04)", "[2026-05-06, 2026-05-07)",
    ]  # fmt: skip
    assert all("tenant=acme service=connectwise table=tickets" in str(e) for e in failures)
    assert [work.service.times(number) for number in range(6)] == [1, 1, 3, 1, 1, 3]
    assert (work.said[-1].done, work.said[-1].total) == (4, 6)
    assert sum(row.requests for row in work.rows()) == work.fetching.requests


def test_newest_first_and_sweeps_last(tmp_path: Path) -> None:
    sweep = chunk(0, 30, "sweep")
    work = Work(tmp_path, [sweep, *days(4)])
    assert work.all(1) == []
    assert [window.start for window in work.service.asked][:4] == [day(3), day(2), day(1), MAY]
    assert [note.chunk.kind for note in work.notes] == ["window"] * 4 + ["sweep"]


def gaps(work: Work) -> list[float]:
    return [later - earlier for earlier, later in pairwise(work.service.at)]


def test_the_waits_double_up_to_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 1.0

    monkeypatch.setattr(random, "uniform", uniform)
    retry = ChunkRetry(attempts=5, first_wait_seconds=0.05, longest_wait_seconds=0.15)
    work = Work(tmp_path, days(1), bad(lambda: RetriableError("no"), 0), retry=retry)
    work.all(1)
    waits = gaps(work)
    assert len(waits) == 4
    for waited, least in zip(waits, [0.05, 0.1, 0.15, 0.15], strict=True):
        assert least <= waited < least + 5
    assert set(drawn) == {(0.5, 1.5)}, "no two chunks come back together"


def test_a_wait_that_the_service_asks_for_is_kept(tmp_path: Path) -> None:
    def busy() -> AvesaError:
        return RetriableError("wants fewer requests", retry_after=0.25)

    retry = ChunkRetry(attempts=2, first_wait_seconds=0.001, longest_wait_seconds=1)
    work = Work(tmp_path, days(1), bad(busy, 0), retry=retry)
    work.all(1)
    assert gaps(work)[0] >= 0.25


@pytest.mark.parametrize("error", [CredentialsRefused, PermissionRefused, StoreError, Suspended])
def test_what_all_chunks_would_meet_ends_it_at_once(
    tmp_path: Path, error: type[AvesaError]
) -> None:
    work = Work(tmp_path, days(5), bad(lambda: error("no"), 3))
    assert [type(failure) for failure in work.all(1)] == [error]
    assert work.service.times(3) == 1
    assert [work.service.times(number) for number in range(3)] == [0, 0, 0]
    left = {number for number, state in work.states().items() if state is ChunkState.PLANNED}
    assert left == {0, 1, 2}
    refused = work.control.breakers.get("acme", "connectwise").state is BreakerState.OPEN
    assert refused is (error in (CredentialsRefused, Suspended))


@pytest.mark.parametrize("error", [FatalError, RecordsRejected])
def test_what_will_not_change_is_not_tried_again_and_the_others_go_on(
    tmp_path: Path, error: type[AvesaError]
) -> None:
    work = Work(tmp_path, days(4), bad(lambda: error("no"), 2))
    assert [type(failure) for failure in work.all()] == [error]
    assert [work.service.times(number) for number in range(4)] == [1, 1, 1, 1]
    assert list(work.states().values()).count(ChunkState.COMPLETED) == 3


def test_a_dead_service_is_left_alone_within_a_few_requests(tmp_path: Path) -> None:
    def no() -> AvesaError:
        return RetriableError("no answer")

    def probe() -> None:
        raise no()

    work = Work(tmp_path, days(30), bad(no, *range(30)), threshold=5, probe=probe)
    failures = work.all(2)
    assert isinstance(failures[-1], Suspended)
    assert len(work.service.asked) <= 5 + 2
    assert list(work.states().values()).count(ChunkState.PLANNED) >= 25


def test_five_bad_windows_do_not_suspend_a_service_that_answers(tmp_path: Path) -> None:
    asked: list[int] = []
    work = Work(
        tmp_path, days(12), bad(lambda: RetriableError("no"), *range(4, 10)), threshold=5,
        probe=lambda: asked.append(1),
    )  # fmt: skip
    assert len(work.all()) == 6
    assert list(work.states().values()).count(ChunkState.COMPLETED) == 6
    assert asked
    assert work.control.breakers.get("acme", "connectwise").state is BreakerState.CLOSED


# What takes too long.


def slow(longest: timedelta) -> Fault:
    """Whoever asks for more than that waits for ever."""

    def fault(window: Window) -> AvesaError | None:
        return TimedOut("no answer in time") if window.end - window.start > longest else None

    return fault


def assert_covers(rows: list[Chunk], first: float, last: float) -> None:
    ordered = sorted(rows, key=lambda row: row.start)
    assert (ordered[0].start, ordered[-1].end) == (day(first), day(last))
    assert all(older.end == newer.start for older, newer in pairwise(ordered))


def test_what_times_out_is_halved_until_it_does_not(tmp_path: Path) -> None:
    work = Work(tmp_path, [chunk(0, 16)], slow(timedelta(days=4)))
    assert work.all(1) == []
    rows = work.rows()
    assert [row.chunk_id for row in rows] == [
        "20260513-20260517", "20260509-20260513", "20260505-20260509", "20260501-20260505",
    ]  # fmt: skip
    assert {row.state for row in rows} == {ChunkState.COMPLETED}
    asked = [(window.end - window.start).days for window in work.service.asked]
    assert asked == [16, 8, 4, 4, 8, 4, 4], "the newer half first, with its own halves"
    assert (work.said[-1].done, work.said[-1].total) == (4, 4)
    assert sum(row.requests for row in rows) == work.fetching.requests


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=st.integers(0, 30 * 86_400),
    seconds=st.integers(1, 86_400),
    longest=st.integers(3600, 86_400),
    threads=st.integers(1, 3),
)
def test_the_halves_cover_exactly_and_stay_in_their_partition(
    first: int, seconds: int, longest: int, threads: int
) -> None:
    one = chunk(first / 86_400, (first + seconds) / 86_400)
    with TemporaryDirectory() as folder:
        work = Work(
            Path(folder), [one], slow(timedelta(seconds=longest)),
            retry=ChunkRetry(first_wait_seconds=0),
        )  # fmt: skip
        failures = work.all(threads)
        rows = work.rows()
        work.control.close()
    assert_covers(rows, first / 86_400, (first + seconds) / 86_400)
    assert {row.partition for row in rows} == {PART.key}
    assert all(row.start.microsecond == 0 == row.end.microsecond for row in rows)
    for row in rows:
        length = (row.end - row.start).total_seconds()
        assert (row.state is ChunkState.COMPLETED) is (length <= longest)
        assert length <= longest or length < 7200, "it could be halved once more"
        assert len(rows) == 1 or length >= 3600
        assert row.chunk_id == name_of(Window(row.start, row.end))
    assert len(failures) == sum(row.state is ChunkState.FAILED for row in rows)
    assert all(isinstance(error, TimedOut) for error in failures)


def test_the_halves_of_one_that_failed_before_begin_anew(tmp_path: Path) -> None:
    work = Work(tmp_path, [chunk(0, 16)], slow(timedelta(days=4)))
    (one,) = work.rows()
    work.control.ledger.begin(one, now=NOW)
    failed = work.control.ledger.fail(one, error="no answer", requests=5, now=NOW)
    halves = work.fetching._halved(failed)
    assert [(h.state, h.requests, h.attempts) for h in halves] == [
        (ChunkState.PLANNED, 5, 0), (ChunkState.PLANNED, 0, 0),
    ]  # fmt: skip
    assert {(h.error, h.started_at, h.finished_at, h.as_of) for h in halves} == {(None,) * 4}


def test_an_hour_is_not_halved_but_tried_again(tmp_path: Path) -> None:
    work = Work(tmp_path, [chunk(0, 1 / 24)], slow(timedelta(minutes=1)))
    assert [type(error) for error in work.all(1)] == [TimedOut]
    assert [(row.attempts, row.state) for row in work.rows()] == [(3, ChunkState.FAILED)]


def test_what_has_progress_or_is_whole_is_not_halved(tmp_path: Path) -> None:
    work = Work(tmp_path, [chunk(0, 8), chunk(10, 20, "full")])
    for one in work.rows():
        work.control.ledger.begin(one, now=NOW)
        work.control.ledger.progress(
            one, cursor="5", rows=5, stored=5, requests=1, objects=["x"], now=NOW
        )
    work.service.fault = lambda window: TimedOut("no answer in time")
    assert len(work.all(1)) == 2
    assert {row.chunk_id for row in work.rows()} == {
        "20260501-20260509", "full-20260511-20260521",
    }  # fmt: skip


# Being stopped.


def test_a_run_that_is_stopped_leaves_its_chunks_planned(tmp_path: Path) -> None:
    def fault(window: Window) -> AvesaError | None:
        return Stopped("was told to") if window.start <= day(2) else None

    work = Work(tmp_path, days(5), fault)
    with pytest.raises(Stopped):
        work.all(1)
    assert work.states() == {
        4: ChunkState.COMPLETED, 3: ChunkState.COMPLETED, 2: ChunkState.PLANNED,
        1: ChunkState.PLANNED, 0: ChunkState.PLANNED,
    }  # fmt: skip
    assert [note.stopped for note in work.notes] == [False, False, True]
    assert all(source.closed for source in work.service.opened)


def test_one_that_waits_for_its_next_attempt_notices_soon(tmp_path: Path) -> None:
    told = threading.Event()
    retry = ChunkRetry(first_wait_seconds=600, longest_wait_seconds=600)
    work = Work(
        tmp_path, days(1), bad(lambda: RetriableError("no"), 0), retry=retry,
        cancelled=told.is_set,
    )  # fmt: skip
    timer = threading.Timer(0.2, told.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        work.all(1)
    assert time.monotonic() - began < 10
    timer.join()


def test_a_bug_is_no_failure_of_a_chunk(tmp_path: Path) -> None:
    def fault(window: Window) -> AvesaError | None:
        raise ZeroDivisionError

    work = Work(tmp_path, days(3), fault)
    with pytest.raises(ZeroDivisionError):
        work.all(1)
    assert work.stop.is_set()
    assert all(source.closed for source in work.service.opened)
    assert work.fetching.failures == []


def test_every_attempt_is_told_of(tmp_path: Path) -> None:
    work = Work(tmp_path, days(2), bad(lambda: RetriableError("no"), 1, times=1))
    work.all(1)
    assert [(note.chunk.start, note.ok, note.requests) for note in work.notes] == [
        (day(1), False, 1), (day(1), True, 2), (day(0), True, 2),
    ]  # fmt: skip
    assert [replace(p, seconds_left=None) for p in work.said] == [
        Progress(None, 0, 2, 0, 0, None),
        Progress("[2026-05-02, 2026-05-03)", 1, 2, 0, 3, None),
        Progress("[2026-05-01, 2026-05-02)", 2, 2, 0, 5, None),
    ]
