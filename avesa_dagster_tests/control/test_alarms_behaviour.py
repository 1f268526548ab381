"""What every Alarms does: a row is there as long as the thing is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from avesa_dagster.control.health import Alarm
from avesa_dagster.errors import ConfigurationError

from .conftest import Control, Opener, day

OPEN = Alarm("breaker_open/acme/connectwise", "acme", "The breaker is open — Störung", day(1))
HOLE = Alarm("hole/acme/connectwise/tickets", "acme", "A hole", day(0), said_at=day(2))
OTHER = Alarm("hole/initech/connectwise/tickets", "initech", "A hole", day(0))


def test_what_was_put_is_there_until_it_is_removed(opener: Opener, tmp_path: Path) -> None:
    alarms = opener(tmp_path).alarms
    assert alarms.all() == []
    for alarm in (OPEN, HOLE):
        alarms.put(alarm)
    assert opener(tmp_path).alarms.all() == [HOLE, OPEN], "the oldest first"
    alarms.remove(HOLE.key)
    alarms.remove(HOLE.key)
    alarms.remove("unknown")
    assert alarms.all() == [OPEN]


def test_putting_again_replaces(control: Control) -> None:
    control.alarms.put(OPEN)
    said = dataclasses.replace(OPEN, text="It is still open", said_at=day(3))
    control.alarms.put(said)
    assert control.alarms.all() == [said]
    control.alarms.put(OPEN)
    assert control.alarms.all() == [OPEN]


def test_a_tenant_is_forgotten(control: Control) -> None:
    for alarm in (OPEN, HOLE, OTHER):
        control.alarms.put(alarm)
    assert control.alarms.forget("acme") == 2
    assert control.alarms.all() == [OTHER]
    assert control.alarms.forget("acme") == 0


def test_what_cannot_be_kept_is_refused_or_mended(control: Control) -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        control.alarms.put(dataclasses.replace(OPEN, said_at=day(1).replace(tzinfo=None)))
    assert control.alarms.all() == []
    control.alarms.put(dataclasses.replace(OPEN, text="half \ud83d"))
    assert control.alarms.all()[0].text == "half ?"
