"""What every Registry does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from avesa_dagster.control.base import TenantService
from avesa_dagster.errors import ConfigurationError

from .conftest import Control, Opener, day


def connect(
    control: Control, tenant: str = "acme", service: str = "connectwise", at: float = 10
) -> TenantService:
    return control.registry.connect(
        tenant,
        service,
        history_start=day(0),
        tables=["tickets", "companies", "tickets"],
        requests_per_minute=90,
        now=day(at),
    )


def test_a_connection_is_kept_as_given(control: Control) -> None:
    row = connect(control)
    assert row == TenantService(
        "acme", "connectwise", row.number, 1, True, day(0), ("companies", "tickets"), 90, day(10),
        day(10),
    )  # fmt: skip
    assert control.registry.get("acme", "connectwise") == row
    assert control.registry.get("acme", "salesforce") is None


def test_reconnecting_counts_the_generation_and_keeps_number_and_date(control: Control) -> None:
    first = connect(control)
    control.registry.disconnect("acme", "connectwise", now=day(11))
    again = control.registry.connect(
        "acme",
        "connectwise",
        history_start=day(5),
        tables=[],
        requests_per_minute=None,
        now=day(12),
    )
    assert (again.number, again.connected_at, again.generation) == (first.number, day(10), 2)
    assert (again.enabled, again.tables, again.requests_per_minute) == (True, (), None)
    assert (again.history_start, again.updated_at) == (day(0), day(12))


def test_enabling_again_changes_nothing_else(control: Control) -> None:
    first = connect(control)
    control.registry.disconnect("acme", "connectwise", now=day(11))
    again = control.registry.enable("acme", "connectwise", now=day(12))
    assert again == replace(first, enabled=True, updated_at=day(12))
    assert control.registry.get("acme", "connectwise") == again
    assert control.registry.enable("acme", "salesforce", now=day(12)) is None


def test_history_may_grow_to_the_left(control: Control) -> None:
    connect(control)
    again = control.registry.connect(
        "acme",
        "connectwise",
        history_start=day(-400),
        tables=[],
        requests_per_minute=None,
        now=day(12),
    )
    assert again.history_start == day(-400)


def test_disconnecting_keeps_the_row(control: Control) -> None:
    first = connect(control)
    row = control.registry.disconnect("acme", "connectwise", now=day(11))
    assert row is not None
    assert (row.enabled, row.number, row.generation) == (False, first.number, 1)
    assert control.registry.all() == [row]
    assert control.registry.disconnect("acme", "nothing", now=day(11)) is None


def test_all_is_ordered_and_numbers_are_unique(control: Control) -> None:
    names = [("b", "z"), ("a", "z"), ("b", "a"), ("a_b", "z"), ("a-b", "z")]
    rows = [connect(control, *name) for name in names]
    assert [(row.tenant, row.service) for row in control.registry.all()] == sorted(names)
    assert len({row.number for row in rows}) == len(rows)


def test_connections_made_at_once_get_numbers_of_their_own(opener: Opener, tmp_path: Path) -> None:
    controls = [opener(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda n: connect(controls[n % 4], f"t{n // 2}"), range(40)))
    assert len({row.number for row in rows}) == 20
    assert sorted(row.generation for row in rows) == [1] * 20 + [2] * 20


@pytest.mark.parametrize("tenant", ["", "../x", "Acme", "a" * 64, "a/b", "-a", "a\n"])
def test_bad_names_are_refused(control: Control, tenant: str) -> None:
    with pytest.raises(ConfigurationError):
        connect(control, tenant)
    assert control.registry.all() == []


def test_a_budget_below_one_is_refused(control: Control) -> None:
    with pytest.raises(ConfigurationError):
        control.registry.connect(
            "a", "b", history_start=day(0), tables=[], requests_per_minute=0, now=day(0)
        )


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 3, 29, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_times_are_kept_exactly_and_come_back_in_utc(control: Control, moment: datetime) -> None:
    control.registry.connect(
        "a", "b", history_start=moment, tables=[], requests_per_minute=None, now=moment
    )
    row = control.registry.get("a", "b")
    assert row is not None
    assert row.history_start == moment
    assert row.history_start.utcoffset() == timedelta(0)


def test_a_time_without_zone_is_refused(control: Control) -> None:
    naive = datetime(2026, 1, 1)
    with pytest.raises(ConfigurationError, match="time zone"):
        control.registry.connect(
            "a", "b", history_start=naive, tables=[], requests_per_minute=None, now=day(0)
        )
