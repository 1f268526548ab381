"""The `conditions` language is read as ConnectWise documents it, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.sandbox.conditions import (
    ConditionError,
    Interval,
    matches,
    parse,
    plan,
    without_keyset,
)
from avesa_dagster.sandbox.table import reach

ROW: dict[str, Any] = {
    "id": 7,
    "summary": "Printer [3rd floor] offline",
    "closedFlag": True,
    "actualHours": 1.5,
    "company": {"id": 5, "name": "Litware"},
    "types": [{"name": "Client"}, {"name": "Vendor"}],
    "_info": {"lastUpdated": "2024-01-01T00:00:00Z"},
}


def holds(text: str) -> bool:
    return matches(parse(text), lambda path: reach(ROW, path.split("/")))


@pytest.mark.parametrize(
    "text",
    [
        "id > 5",
        "id=7",
        "id in (1, 7)",
        "id not in (1,2)",
        "closedFlag = True",
        "closedFlag=true",
        "actualHours >= 1.5",
        "company/id=5 and company/name = 'x' or id=7".replace("'", '"'),
        'summary like "print*"',
        'summary like "*[[]3rd floor]*"',
        'summary contains "FLOOR"',
        'summary not contains "lift"',
        "closedDate = null",
        "summary != null",
        'types/name = "vendor"',
        "lastUpdated = [2024-01-01T00:00:00Z]",
        "lastUpdated >= [2024-01-01]",
        "_info/lastUpdated < [2024-01-01T00:00:00.5Z]",
        "_info/lastUpdated >= [2024-01-01T01:00:00+01:00]",
        "not (id = 8)",
        "id = 8 OR (id > 6 AND id < 8)",
    ],
)
def test_matches(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "id > 7",
        "id = 8 AND id = 7 OR id = 9",
        "closedDate < [2030-01-01T00:00:00Z]",
        "not (closedDate < [2030-01-01T00:00:00Z])",
        'owner/name != "Bob"',
        "lastUpdated > [2024-01-01T00:00:00Z]",
        'summary like "rinter*"',
        'company/name in ("A", "B")',
    ],
)
def test_does_not_match(text: str) -> None:
    assert not holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "id >",
        "id > 5 AND",
        "(id > 5",
        "id > 5)",
        "id == 5",
        'id > "5"',
        "_info.lastUpdated > [2024-01-01T00:00:00Z]",
        'lastUpdated > "2024-01-01T00:00:00Z"',
        "lastUpdated > 2024-01-01",
        "lastUpdated > [yesterday]",
        "lastUpdated > [2024-01-01T00:00:00 00:00]",
        "summary = 'single quotes'",
        'summary = "open',
        "id > 5; drop",
        "summary like 5",
        "id < null",
        "id in ()",
        "id > 5 id < 9",
    ],
)
def test_malformed_conditions_are_refused(text: str) -> None:
    with pytest.raises(ConditionError):
        parse(text)


def test_a_field_that_the_object_lacks_is_refused() -> None:
    with pytest.raises(ConditionError, match="sys_updated_on"):
        parse("sys_updated_on > [2024-01-01]", frozenset({"id"}))


def test_windows_and_keysets_go_to_the_indexes() -> None:
    split = plan(
        parse("(lastUpdated >= [1970-01-01T00:01:00Z] AND lastUpdated < [1970-01-02]) AND id > 4")
    )
    assert split.updated == Interval(60, 86_400)
    assert split.ids.low == 5
    assert split.residual is None


def test_the_stream_of_a_request_does_not_depend_on_its_keyset() -> None:
    first = without_keyset(parse("lastUpdated >= [2024-01-01] AND id > 0"))
    later = without_keyset(parse("lastUpdated >= [2024-01-01] AND id > 900"))
    other = without_keyset(parse("lastUpdated >= [2024-01-02] AND id > 900"))
    assert first == later != other


@given(
    number=st.integers(-5, 5),
    tests=st.lists(
        st.tuples(
            st.sampled_from(["<", "<=", "=", ">", ">="]),
            st.sampled_from([-2, -1.5, -1, 0, 0.5, 1, 2]),
        )
    ),
)
def test_an_interval_holds_exactly_the_numbers_that_compare(
    number: int, tests: list[tuple[str, float]]
) -> None:
    verdict = {
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        "=": lambda a, b: a == b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }
    interval = Interval()
    for op, value in tests:
        interval = interval.also(op, value)
    assert (number in interval) == all(verdict[op](number, value) for op, value in tests)
