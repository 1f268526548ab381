"""What every Watermarks does: it never moves back and never skips a gap."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.errors import ConfigurationError

from .conftest import Control, Opener, day

WINDOWS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 8)).map(lambda w: (w[0], w[0] + w[1])),
    max_size=25,
)


def advance(control: Control, lower: int, upper: int, now: int = 100, table: str = "t") -> int:
    held = control.watermarks.advance(
        "acme", "connectwise", table, lower=day(lower), upper=day(upper), now=day(now)
    )
    return (held.upper - day(0)).days


def test_there_is_none_before_the_first_sync(control: Control) -> None:
    assert control.watermarks.get("acme", "connectwise", "t") is None
    assert control.watermarks.of("acme", "connectwise") == {}


def test_those_of_a_connection_are_found_by_table(control: Control) -> None:
    advance(control, 0, 2, table="tickets")
    advance(control, 0, 3, table="companies")
    for tenant, service in (("acme", "connectwise2"), ("acme2", "connectwise"), ("acme", "other")):
        control.watermarks.advance(
            tenant, service, "tickets", lower=day(0), upper=day(9), now=day(9)
        )
    found = control.watermarks.of("acme", "connectwise")
    assert found == {
        table: control.watermarks.get("acme", "connectwise", table)
        for table in ("tickets", "companies")
    }
    assert {table: (mark.upper - day(0)).days for table, mark in found.items()} == {
        "tickets": 2,
        "companies": 3,
    }


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(windows=WINDOWS)
def test_it_follows_the_rule(
    opener: Opener, tmp_path_factory: pytest.TempPathFactory, windows: list[tuple[int, int]]
) -> None:
    control = opener(tmp_path_factory.mktemp("control"))
    expected: int | None = None
    updated = None
    for now, (lower, upper) in enumerate(windows):
        if expected is None or lower <= expected < upper:
            expected, updated = upper, day(now)
        assert advance(control, lower, upper, now) == expected
        held = control.watermarks.get("acme", "connectwise", "t")
        assert held is not None
        assert held.updated_at == updated


@pytest.mark.parametrize("seed", range(6))
def test_in_any_interleaving_it_never_moves_back_and_never_skips_a_gap(
    opener: Opener, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    controls = [opener(tmp_path) for _ in range(4)]
    start = advance(controls[0], 0, 1)
    windows = [(n, n + chance.randint(1, 3)) for n in range(25) if chance.random() < 0.9]
    chance.shuffle(windows)

    def work(index: int) -> list[int]:
        return [advance(controls[index], *window) for window in windows[index::4]]

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(work, range(4)))
    assert all(one == sorted(one) for one in seen)
    final = advance(controls[0], 0, 0)
    asked = {n for lower, upper in windows for n in range(lower, upper)}
    assert set(range(start, final)) <= asked


def test_tables_do_not_share_a_watermark(control: Control) -> None:
    advance(control, 0, 5)
    assert advance(control, 0, 1, table="other") == 1


def test_a_window_that_ends_before_it_begins_is_refused(control: Control) -> None:
    with pytest.raises(ConfigurationError):
        advance(control, 2, 1)
