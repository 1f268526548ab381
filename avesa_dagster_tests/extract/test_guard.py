"""The breaker as a run meets it: failures count, a probe decides, and all processes share it."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    FatalError,
    PermissionRefused,
    RetriableError,
    Stopped,
    Suspended,
    TimedOut,
    Where,
)
from avesa_dagster.extract.guard import Guard

NOON = datetime(2026, 7, 14, 12, tzinfo=UTC)
THRESHOLD = 3
SETTINGS = BreakerSettings(failures=THRESHOLD, wait_seconds=60, longest_wait_seconds=3600)
CLOSED, OPEN, HALF = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@dataclass
class Door:
    """A guard of acme's service over its own opening of the shared file."""

    folder: Path
    says: AvesaError | None = None
    now: datetime = NOON
    asked: int = 0
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.breakers = SqliteControl(self.folder / "control.db", breaker=SETTINGS).breakers
        where = Where("acme", "connectwise", "tickets")
        self.guard = Guard(self.breakers, where, THRESHOLD, self._probe, lambda: self.now)

    def _probe(self) -> None:
        self.asked += 1
        if self.says is not None:
            raise self.says

    @property
    def breaker(self) -> Breaker:
        return self.breakers.get("acme", "connectwise")

    def opened(self) -> None:
        self.breakers.failed(
            "acme", "connectwise", "it answers 500", credentials=True, now=self.now
        )


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_a_closed_one_lets_everybody_through_and_asks_nothing(door: Door) -> None:
    door.guard.admit()
    door.guard.failed(RetriableError("no answer"))
    door.guard.admit()
    assert (door.asked, door.breaker.failures) == (0, 1)


def test_at_the_threshold_the_service_is_asked_and_if_it_answers_all_is_forgotten(
    door: Door,
) -> None:
    for _ in range(THRESHOLD - 1):
        door.guard.failed(RetriableError("no answer"))
    assert door.asked == 0
    door.guard.failed(TimedOut("no answer in time"))
    assert (door.asked, door.breaker) == (1, Breaker("acme", "connectwise"))


def test_if_it_does_not_answer_either_the_breaker_opens_and_says_until_when(door: Door) -> None:
    door.says = RetriableError("it answers 500")
    for _ in range(THRESHOLD - 1):
        door.guard.failed(RetriableError("no answer"))
    with pytest.raises(Suspended, match=r"it answers 500.*table=tickets.*again at 12:01:00"):
        door.guard.failed(RetriableError("no answer"))
    assert (door.asked, door.breaker.state, door.breaker.reason) == (1, OPEN, "it answers 500")
    with pytest.raises(Suspended):
        door.guard.admit()
    assert door.asked == 1, "nothing is asked while it is open"


def test_failures_counted_at_the_same_moment_suspend_nobody_without_asking(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has read the count before the others raised it."""
    before = door.breaker
    monkeypatch.setattr(door.breakers, "get", lambda tenant, service: before)
    for _ in range(THRESHOLD):
        door.guard.failed(RetriableError("no answer"))
    monkeypatch.undo()
    assert (door.asked, door.breaker) == (1, Breaker("acme", "connectwise"))
    door.says = RetriableError("it answers 500")
    monkeypatch.setattr(door.breakers, "get", lambda tenant, service: before)
    with pytest.raises(Suspended):
        for _ in range(THRESHOLD):
            door.guard.failed(RetriableError("no answer"))
    assert door.asked == 2


def test_a_chunk_that_arrives_between_begins_the_count_anew(door: Door) -> None:
    door.says = RetriableError("it answers 500")
    for _ in range(5):
        for _ in range(THRESHOLD - 1):
            door.guard.failed(RetriableError("no answer"))
        door.guard.worked()
        assert door.breaker.failures == 0
    assert door.asked == 0


@pytest.mark.parametrize(
    "error", [DataError("x"), FatalError("x"), PermissionRefused("x"), Stopped("x")]
)
def test_what_does_not_speak_against_the_service_is_not_counted(
    door: Door, error: AvesaError
) -> None:
    for _ in range(THRESHOLD + 1):
        door.guard.failed(error)
    assert (door.asked, door.breaker) == (0, Breaker("acme", "connectwise"))


def test_refused_credentials_open_it_at_once(door: Door) -> None:
    door.guard.failed(CredentialsRefused("it refused them"))
    assert (door.breaker.state, door.breaker.credentials, door.asked) == (OPEN, True, 0)
    with pytest.raises(Suspended, match="it refused them"):
        door.guard.admit()


def test_after_the_wait_one_probes_and_heals_it_for_all(tmp_path: Path) -> None:
    first, second = Door(tmp_path), Door(tmp_path)
    first.opened()
    second.now = NOON + timedelta(seconds=59)
    with pytest.raises(Suspended):
        second.guard.admit()
    assert second.asked == 0
    second.now = NOON + timedelta(seconds=60)
    second.guard.admit()
    assert second.asked == 1
    first.guard.admit()
    assert (first.asked, first.breaker.state) == (0, CLOSED)


def test_while_one_probes_the_others_wait(tmp_path: Path) -> None:
    first, second = Door(tmp_path), Door(tmp_path)
    first.opened()
    first.now = second.now = NOON + timedelta(seconds=61)
    seen: list[BreakerState] = []

    def probe() -> None:
        seen.append(second.breaker.state)
        with pytest.raises(Suspended):
            second.guard.admit()

    where = Where("acme", "connectwise", "tickets")
    Guard(first.breakers, where, THRESHOLD, probe, lambda: first.now).admit()
    assert (seen, second.asked) == ([HALF], 0)
    second.guard.admit()


@pytest.mark.parametrize("error", [RetriableError("still 500"), DataError("no JSON")])
def test_a_probe_that_fails_opens_it_for_longer(door: Door, error: AvesaError) -> None:
    door.opened()
    door.says = error
    for wait, following in ((60, 120), (120, 240)):
        door.now += timedelta(seconds=wait)
        with pytest.raises(Suspended, match=error.what):
            door.guard.admit()
        assert door.breaker.state is OPEN
        assert door.breaker.probe_at == door.now + timedelta(seconds=following)


def test_a_probe_that_is_refused_says_so(door: Door) -> None:
    door.guard.failed(CredentialsRefused("it refused them"))
    door.now += timedelta(seconds=60)
    door.says = CredentialsRefused("it refused them again")
    with pytest.raises(CredentialsRefused, match=r"again.*table=tickets"):
        door.guard.admit()
    assert (door.breaker.state, door.breaker.credentials) == (OPEN, True)


@pytest.mark.parametrize(
    "error", [PermissionRefused("not this table"), FatalError("there is no such table")]
)
def test_a_service_that_answers_no_about_one_table_answers(door: Door, error: AvesaError) -> None:
    door.opened()
    door.now += timedelta(seconds=60)
    door.says = error
    door.guard.admit()
    assert door.breaker.state is CLOSED


def test_a_probe_that_asked_nothing_proves_nothing(door: Door) -> None:
    door.opened()
    door.now += timedelta(seconds=60)
    door.says = ConfigurationError("the credentials cannot be read")
    with pytest.raises(ConfigurationError):
        door.guard.admit()
    assert door.breaker.state is HALF
    with pytest.raises(Suspended):
        door.guard.admit()
    door.now += timedelta(seconds=120)
    door.says = None
    door.guard.admit()
    assert door.breaker.state is CLOSED


def test_nobody_else_waits(door: Door) -> None:
    door.opened()
    for tenant, service in (("globex", "connectwise"), ("acme", "servicenow")):
        where = Where(tenant, service, "tickets")
        Guard(door.breakers, where, THRESHOLD, door._probe, lambda: NOON).admit()
    assert door.asked == 0


def _fail_twice(folder: str) -> None:
    door = Door(Path(folder), RetriableError("it answers 500"))
    for _ in range(2):
        try:
            door.guard.failed(RetriableError("no answer"))
        except Suspended:
            (Path(folder) / "suspended").touch()


def test_processes_count_together(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    for expected in (False, True):
        worker = spawn.Process(target=_fail_twice, args=(str(tmp_path),))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        assert (tmp_path / "suspended").exists() is expected
    assert Door(tmp_path).breaker.state is OPEN
