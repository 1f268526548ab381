"""Each thing is said once while it is wrong, and once when it is over, to each notifier."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.control import sqlite_health
from avesa_dagster.control.health import Alarm
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.control.sqlite_database import Database
from avesa_dagster.control.sqlite_health import SqliteAlarms
from avesa_dagster.errors import RetriableError, StoreError
from avesa_dagster.watch import alerts
from avesa_dagster.watch.alerts import settle, standing
from avesa_dagster.watch.findings import Finding, Kind
from avesa_dagster.watch.notify import Message, Severity

from .conftest import NOW

FINDINGS = [
    Finding(Kind.STALE, "acme", "connectwise", f"table{number}", Severity.ERROR, f"text {number}")
    for number in range(8)
]
KEYS = [finding.key for finding in FINDINGS]


class Ear:
    """A notifier that may be deaf."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.deaf = False
        self.heard: list[Message] = []

    def send(self, message: Message) -> None:
        if self.deaf:
            raise RetriableError(f"{self.name} is deaf")
        self.heard.append(message)

    def take(self) -> Counter[tuple[bool, str]]:
        """(over, text) -> how often it was said since the last time."""
        lines = [
            (line.severity is Severity.HEALED, line.text)
            for line in self.heard
            if line.key != "several"
        ]
        lines += [
            (said.startswith("HEALED: "), said.rpartition(": ")[2])
            for message in self.heard
            if message.key == "several"
            for said in message.text.split("\n")
        ]
        self.heard.clear()
        return Counter((over, text.removeprefix("no longer found: ")) for over, text in lines)


def quick(folder: str) -> Database:
    """The tables of health in a file that need not survive a power loss."""
    return Database(Path(folder, "health.db"), schema=sqlite_health.SCHEMA, durable=False)


steps = st.lists(
    st.tuples(
        st.sets(st.integers(0, 7)), st.sets(st.sampled_from(["log", "webhook", "email"]))
    ),
    max_size=12,
)  # fmt: skip


@given(steps=steps)
@settings(max_examples=80, deadline=None)
def test_whatever_comes_and_goes_and_whoever_is_deaf(
    steps: list[tuple[set[int], set[str]]],
) -> None:
    ears = [Ear("log"), Ear("webhook"), Ear("email")]
    believes: dict[str, set[int]] = {ear.name: set() for ear in ears}
    with tempfile.TemporaryDirectory() as folder, closing(quick(folder)) as database:
        alarms = SqliteAlarms(database)
        for step, (wrong, deaf) in enumerate(steps):
            for ear in ears:
                ear.deaf = ear.name in deaf
            found = [FINDINGS[number] for number in wrong]
            failures = settle(found, alarms, ears, NOW + timedelta(minutes=step))
            for ear in ears:
                new, over = wrong - believes[ear.name], believes[ear.name] - wrong
                assert (ear.name in failures) == (ear.deaf and bool(new | over))
                if ear.deaf:
                    assert not ear.take()
                    continue
                assert ear.take() == Counter(
                    [(False, f"text {n}") for n in new] + [(True, f"text {n}") for n in over]
                )
                believes[ear.name] = set(wrong)
            left = {KEYS[number] for number in wrong}
            left |= {KEYS[number] for told in believes.values() for number in told}
            assert {alarm.key for alarm in standing(alarms)} == left
            heard = {KEYS[n] for told in believes.values() for n in told} & {KEYS[n] for n in wrong}
            said = {a.key for a in standing(alarms) if a.said_at is not None}
            assert heard <= said


def test_since_is_when_it_was_found_and_said_when_somebody_heard(control: SqliteControl) -> None:
    ear = Ear("log")
    ear.deaf = True
    settle(FINDINGS[:1], control.alarms, [ear], NOW)
    assert standing(control.alarms) == [Alarm(KEYS[0], "acme", "text 0", NOW)]
    ear.deaf = False
    later = NOW + timedelta(hours=1)
    settle([replace(FINDINGS[0], text="worse")], control.alarms, [ear], later)
    assert standing(control.alarms) == [Alarm(KEYS[0], "acme", "text 0", NOW, later)]
    [message] = ear.heard
    assert message == Message(
        subject="acme connectwise table0: sync has stopped",
        text="text 0",
        severity=Severity.ERROR,
        tenant="acme",
        service="connectwise",
        key=KEYS[0],
    )
    settle([], control.alarms, [ear], later)
    assert ear.heard[1].subject == "over: acme connectwise table0: sync has stopped"
    assert ear.heard[1].severity is Severity.HEALED
    assert control.alarms.all() == []


def test_without_a_notifier_alarms_are_kept_all_the_same(control: SqliteControl) -> None:
    settle(FINDINGS[:2], control.alarms, [], NOW)
    assert [alarm.key for alarm in standing(control.alarms)] == KEYS[:2]
    settle(FINDINGS[:1], control.alarms, [], NOW)
    assert [alarm.key for alarm in standing(control.alarms)] == KEYS[:1]


def test_a_notifier_that_comes_later_is_told_and_one_that_left_is_forgotten(
    control: SqliteControl,
) -> None:
    early, late = Ear("log"), Ear("webhook")
    settle(FINDINGS[:1], control.alarms, [early], NOW)
    settle(FINDINGS[:1], control.alarms, [late], NOW)
    assert len(late.heard) == len(early.heard) == 1
    settle([], control.alarms, [late], NOW)
    assert len(late.heard) == 2
    assert control.alarms.all() == []


@pytest.mark.parametrize("number", [5, 6, 51, 120])
def test_many_at_once_are_put_together(control: SqliteControl, number: int) -> None:
    ear = Ear("webhook")
    many = [
        replace(FINDINGS[0], about=f"t{n}", text="x" * 400, severity=Severity.WARNING)
        for n in range(number - 1)
    ]
    settle([*many, replace(FINDINGS[0], about="worst")], control.alarms, [ear], NOW)
    assert len(ear.heard) == {5: 5, 6: 1, 51: 2, 120: 3}[number]
    said = "\n".join(f"{message.subject} {message.text}" for message in ear.heard)
    for n in range(number - 1):
        assert said.count(f" t{n}: ") == 1
    assert max(len(message.text) for message in ear.heard) < 40_000
    if number == 6:
        assert ear.heard[0].subject == "several: 6 wrong"
        assert ear.heard[0].severity is Severity.ERROR
        assert (ear.heard[0].tenant, ear.heard[0].service) == (None, None)


def test_one_that_fails_is_asked_once_a_call(control: SqliteControl) -> None:
    class Broken(Ear):
        asked = 0

        def send(self, message: Message) -> None:
            self.asked += 1
            raise RetriableError("no")

    broken, fine = Broken("webhook"), Ear("log")
    failures = settle(FINDINGS[:4], control.alarms, [broken, fine], NOW)
    assert broken.asked == 1
    assert list(failures) == ["webhook"]
    assert len(fine.heard) == 4


def test_a_slow_one_is_left_when_its_time_is_up(
    control: SqliteControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_TALKING", 0.1)

    class Slow(Ear):
        def send(self, message: Message) -> None:
            time.sleep(0.07)
            super().send(message)

    slow = Slow("webhook")
    for _ in range(2):
        assert settle(FINDINGS[:4], control.alarms, [slow], NOW) == {}
        assert len(slow.heard) in (2, 4)
    assert Counter(slow.take().values()) == {1: 4}


class Crash(BaseException):
    """The process dies."""


@given(
    wrong=st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=4),
    dies=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_a_crash_anywhere_repeats_at_most_one_message(wrong: list[set[int]], dies: int) -> None:
    """Every write may be the last one. What follows is as if that call came again."""
    ears = [Ear("log"), Ear("webhook")]
    left = dies

    class Fragile(SqliteAlarms):
        def put(self, *alarms: Alarm) -> None:
            self.survive()
            super().put(*alarms)

        def remove(self, *keys: str) -> None:
            self.survive()
            super().remove(*keys)

        def survive(self) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash

    with tempfile.TemporaryDirectory() as folder, closing(quick(folder)) as database:
        fragile = Fragile(database)
        believes: dict[str, set[int]] = {ear.name: set() for ear in ears}
        for numbers in wrong:
            found = [FINDINGS[number] for number in numbers]
            repeated = 0
            try:
                settle(found, fragile, ears, NOW)
            except Crash:
                settle(found, fragile, ears, NOW)
            for ear in ears:
                new, over = numbers - believes[ear.name], believes[ear.name] - numbers
                expected = {(False, f"text {n}") for n in new} | {(True, f"text {n}") for n in over}
                taken = ear.take()
                assert set(taken) == expected
                repeated += sum(taken.values()) - len(expected)
                believes[ear.name] = set(numbers)
            assert repeated <= 1
            assert {a.key for a in standing(fragile)} == {KEYS[n] for n in numbers}


def test_a_store_that_fails_is_said(control: SqliteControl, tmp_path: Path) -> None:
    control.close()
    (tmp_path / "control.db").write_bytes(b"no database at all" * 100)
    for suffix in ("-wal", "-shm"):
        Path(f"{tmp_path / 'control.db'}{suffix}").unlink(missing_ok=True)
    with pytest.raises(StoreError):
        settle(FINDINGS, control.alarms, [Ear("log")], NOW)
