"""Properties of what lies below: ids, conditions that become spans, the index of a table."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.sandbox.salesforce import finding, plan, soql
from avesa_dagster.sandbox.salesforce.ids import LARGEST, IdMaker, lengthen, shorten
from avesa_dagster.sandbox.salesforce.org import Org, OrgSpec
from avesa_dagster.sandbox.salesforce.table import GONE, UNSEEN, Table
from avesa_dagster.sandbox.timestamps import stamp

_NOW = 1_749_643_200
_SMALL = OrgSpec(cases=120, contacts=5, accounts=5, tasks=40)
_ORG = Org("properties", 5, _SMALL, _NOW)
_CASES = _ORG.tables["Case"]
_MAKER = IdMaker("500")

numbers = st.integers(0, LARGEST)


@given(numbers, numbers)
def test_ids_ascend_as_numbers_and_survive_a_loss_of_case(a: int, b: int) -> None:
    first, second = _MAKER.make(a), _MAKER.make(b)
    assert (first[:15] < second[:15]) == (a < b)
    assert lengthen(first[:15]) == first
    assert shorten(first.lower()) == shorten(first.upper()) == first[:15]
    assert _MAKER.number(first) == _MAKER.number(first[:15]) == _MAKER.bound(first) == a
    assert IdMaker("001").number(first) is None


def _instants() -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(_CASES.stamps)).flatmap(
        lambda at: st.sampled_from([stamp(at - 1), stamp(at), stamp(at)[:-1] + ".500Z"])
    )


def _conditions() -> st.SearchStrategy[str]:
    operators = st.sampled_from(["=", "<", "<=", ">", ">="])
    by_time = st.builds("SystemModstamp {} {}".format, operators, _instants())
    ids = st.integers(0, 125).map(_MAKER.make).map(lambda id: id[:15])
    by_id = st.builds("Id {} '{}'".format, operators, ids)
    other = st.sampled_from(["Status = 'Closed'", "IsClosed = false", "Type = null"])

    def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(parts, min_size=2, max_size=3)
        word = st.sampled_from([" AND ", " OR "])
        return st.builds(lambda these, by: "(" + by.join(these) + ")", several, word)

    return st.recursive(by_time | by_id | other, joined, max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(_conditions(), st.booleans())
def test_spans_find_what_the_condition_says(condition: str, everything: bool) -> None:
    def found(where: str) -> Any:
        return plan.check(_ORG, soql.parse(f"SELECT Id FROM Case WHERE {where}"))

    by_index, row_by_row = found(condition), found(f"NOT (NOT {condition})")
    assert row_by_row.residual is not None
    rows = finding.matching(_ORG, by_index, everything)
    expected = set(finding.matching(_ORG, row_by_row, everything))
    assert len(rows) == len(expected) == finding.count(_ORG, by_index, everything)
    assert set(rows) == expected
    inside = by_index.changed
    assert all(inside.low <= _CASES.stamps[n] < inside.high for n in rows)


_steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["mutate", "late", "create", "delete", "undelete", "bump", "gone", "settle"]
        ),
        st.integers(0, 40),
        st.integers(1, 5),
    ),
    max_size=25,
)


def _brute(table: Table, everything: bool) -> list[tuple[int, int]]:
    """(stamp, number) of what reads should see, from the versions alone."""
    seen = []
    for number in range(len(table)):
        if table.flags[number] & (GONE | UNSEEN):
            continue
        version = table.version(number)
        if everything or not table.flags[number]:
            assert version.deleted == bool(table.flags[number] & 1)
            seen.append((version.stamp, number))
    return sorted(seen)


@settings(max_examples=60, deadline=None)
@given(_steps)
def test_the_index_is_what_the_versions_say(steps: list[tuple[str, int, int]]) -> None:
    org = Org("steps", 1, OrgSpec(cases=30), _NOW)
    table = org.tables["Case"]
    now, snapshots = _NOW, []
    for step, first, count in steps:
        now += 60
        chosen = [n % len(table) for n in range(first, first + count)]
        chosen = [n for n in dict.fromkeys(chosen) if not table.flags[n] & GONE]
        match step:
            case "mutate":
                org.mutate("Case", chosen, now)
            case "late":
                org.mutate("Case", chosen, now, now + 90)
            case "create":
                org.create("Case", count, now, now + 90 if first % 2 else None)
            case "delete":
                org.delete("Case", [n for n in chosen if not table.flags[n] & UNSEEN], now)
            case "undelete":
                org.undelete("Case", chosen, now if first % 2 else None)
            case "bump":
                org.bump("Case", chosen, now)
            case "gone":
                org.hard_delete("Case", chosen, now)
            case _:
                org.settle(now)
        whole = [(float("-inf"), 0, float("inf"), 0)]
        for everything in (False, True):
            expected = _brute(table, everything)
            assert list(table.spans(whole, everything)) == [n for _, n in expected]
            assert table.span_count(whole, everything) == len(expected)
            assert list(table.by_number(0, len(table), everything)) == sorted(
                n for _, n in expected
            )
        rows = list(table.by_number(0, len(table), True))
        snapshots.append((rows, table.sequence, table.batch(rows).column("SystemModstamp")))
    for rows, sequence, stamps in snapshots:
        assert table.batch(rows, sequence).column("SystemModstamp") == stamps
