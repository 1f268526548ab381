"""A run says that it lives, one at a time in its lane, and notices soon that it has to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.backfill import beats
from avesa_dagster.backfill.beats import STALE, Stopping, beating
from avesa_dagster.control.jobs import Processing
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.control.sqlite_jobs import SqliteProcessingJobs
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    DataError,
    RetriableError,
    Stopped,
    StoreError,
)
from avesa_dagster.extract.request import Progress

LANE = "backfill/acme/connectwise/tickets"


def present() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(beats, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def table(tmp_path: Path) -> SqliteProcessingJobs:
    return SqliteControl(tmp_path / "control.db").processing


def row(run_id: str = "r1", **fields: Any) -> Processing:
    now = fields.pop("at", present())
    return Processing(
        run_id, "acme", "connectwise", "tickets", LANE, "backfill", now, now, "b1", **fields
    )


def hold(
    table: SqliteProcessingJobs, run_id: str = "r1", *,
    cancelled: Callable[[], bool] = lambda: False,
    waiting: Callable[[Processing], None] = lambda holder: None,
    ended: Callable[[Processing], bool] = lambda holder: False,
) -> Any:  # fmt: skip
    return beating(table, row(run_id), present, cancelled, waiting, ended)


def held(table: SqliteProcessingJobs, run_id: str = "r1") -> Processing:
    (found,) = [one for one in table.of_job("b1") if one.run_id == run_id]
    return found


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def test_it_beats_while_it_works_and_says_how_far_it_is(table: SqliteProcessingJobs) -> None:
    with hold(table) as alive:
        began = held(table).beat_at
        alive.told(Progress("[2026-05-01, 2026-06-01)", 3, 9, 70, 8, None))
        until(lambda: held(table).completed_chunks == 3)
        said = held(table)
        assert (said.status, said.total_chunks, said.records, said.requests) == (
            "running", 9, 70, 8,
        )  # fmt: skip
        alive.told(Progress(None, 3, 9, 71, 9, None))
        until(lambda: held(table).records == 71)
        assert held(table).window == "[2026-05-01, 2026-06-01)", "the last one that ended"
        until(lambda: held(table).beat_at > began + timedelta(seconds=0.1))
    last = held(table)
    assert (last.status, last.error, last.records) == ("completed", None, 71)
    assert last.ended_at == last.beat_at >= began
    time.sleep(0.1)
    assert held(table) == last, "it beats no more"


@pytest.mark.parametrize(
    ("error", "status"),
    [(DataError("counts disagree"), "failed"), (Stopped("was told to"), "stopped"),
     (KeyboardInterrupt(), "stopped"), (ZeroDivisionError("a bug"), "failed")],
)  # fmt: skip
def test_the_row_says_how_it_ended(
    table: SqliteProcessingJobs, error: BaseException, status: str
) -> None:
    threads = threading.active_count()
    with pytest.raises(type(error)), hold(table):
        raise error
    last = held(table)
    assert (last.status, last.error) == (status, str(error) or None)
    assert last.ended_at is not None
    assert threading.active_count() == threads


def test_the_second_in_a_lane_waits_for_the_first_and_hears_of_it_once(
    table: SqliteProcessingJobs,
) -> None:
    heard: list[str] = []
    order: list[str] = []

    def second() -> None:
        with hold(table, "r2", waiting=lambda holder: heard.append(holder.run_id)):
            order.append("second")

    with hold(table, "r1"):
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: bool(heard))
        time.sleep(0.1)
        order.append("first")
    thread.join(20)
    assert (order, heard) == (["first", "second"], ["r1"])
    assert [one.status for one in table.of_job("b1")] == ["completed", "completed"]


def test_who_waits_can_be_stopped_and_leaves_nothing(table: SqliteProcessingJobs) -> None:
    asked = iter([False, False, False, True])
    with hold(table, "r1"):
        refused = pytest.raises(Stopped, match=r"waited for run r1.*table=tickets")
        with refused, hold(table, "r2", cancelled=lambda: next(asked)):
            pytest.fail("it works beside the first")
        assert held(table).status == "running"
    assert [one.run_id for one in table.of_job("b1")] == ["r1"]


def test_nobody_waits_for_one_that_is_silent(table: SqliteProcessingJobs) -> None:
    table.claim(row("dead", at=present() - STALE - timedelta(seconds=1)), stale_before=present())
    with hold(table, "r2", waiting=lambda holder: pytest.fail("it waits")):
        assert held(table, "dead").status == "failed"


def test_nobody_waits_for_one_that_is_known_to_have_ended(table: SqliteProcessingJobs) -> None:
    table.claim(row("dead"), stale_before=present())
    with hold(table, "r2", ended=lambda holder: holder.run_id == "dead"):
        died = held(table, "dead")
        assert (died.status, died.error) == ("failed", "its process died")


@pytest.mark.parametrize(
    "error", [StoreError("the disk is full"), RetriableError("AWS is busy"), ConfigurationError("")]
)
def test_a_beat_that_cannot_be_stored_does_not_end_the_run(
    table: SqliteProcessingJobs, monkeypatch: pytest.MonkeyPatch, error: AvesaError
) -> None:
    with hold(table) as alive:
        full: list[int] = []

        def beat(self: SqliteProcessingJobs, one: Processing) -> None:
            full.append(1)
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(SqliteProcessingJobs, "beat", beat)
            until(lambda: len(full) > 3)
        alive.told(Progress(None, 1, 1, 5, 1, None))
        until(lambda: held(table).records == 5)
    assert held(table).status == "completed"


def test_stopping_is_asked_at_most_twice_a_second_and_remembers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = [100.0], []
    monkeypatch.setattr(beats, "_LOOK_SECONDS", 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reason: list[str | None] = [None]

    def ask() -> str | None:
        asked.append(now[0])
        return reason[0]

    stopping = Stopping(ask)
    assert not any(stopping() for _ in range(1000))
    assert asked == [100.0]
    reason[0] = "job b1 was paused"
    now[0] += 0.499
    assert not stopping()
    now[0] += 0.001
    assert stopping()
    reason[0], now[0] = None, 200.0
    assert stopping(), "a run that was told to stop does not go on"
    assert (stopping.reason, asked) == ("job b1 was paused", [100.0, 100.5])
