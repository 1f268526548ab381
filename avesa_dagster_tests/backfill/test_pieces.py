"""A job in pieces: together they are what was asked for, none is long, and the newest go first."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.backfill.pieces import pieces
from avesa_dagster.catalog.grain import Partition, partitions
from avesa_dagster.catalog.models import Grain, Scheduling
from avesa_dagster.control.jobs import Piece, PieceState, Stretch

from .support import CATALOG, SERVICE

CONNECTWISE = CATALOG.services[SERVICE]
MASTER = {name for name, table in CONNECTWISE.tables.items() if table.master_data}
TABLES = ("companies", "contacts", "tickets", "time_entries")


def months(first: int, last: int) -> list[Partition]:
    """So many months from 2024-01 on, both in."""
    every = partitions(
        Grain.MONTHLY, datetime(2024, 1, 1, tzinfo=UTC), datetime(2027, 12, 1, tzinfo=UTC)
    )
    return list(every)[first : last + 1]


def cut(
    parts: list[Partition],
    *,
    tables: tuple[str, ...] = TABLES,
    size: int = 12,
    recent: int = 2,
    stretches: tuple[Stretch, ...] = (),
) -> tuple[Piece, ...]:
    keys = frozenset(part.key for part in months(0, 29)[-recent:])
    scheduling = Scheduling(piece_partitions=size)
    return pieces(tables, parts, CONNECTWISE, scheduling, recent=keys, stretches=stretches)


def said(found: tuple[Piece, ...]) -> list[tuple[str, str, str, bool]]:
    return [("+".join(p.tables), p.first, p.last, p.recent) for p in found]


def test_master_data_first_then_the_recent_months_then_the_years_behind_newest_first() -> None:
    assert said(cut(months(0, 29))) == [
        ("companies+contacts", "2024-01-01", "2026-06-01", True),
        ("tickets+time_entries", "2026-05-01", "2026-06-01", True),
        ("tickets+time_entries", "2025-05-01", "2026-04-01", False),
        ("tickets+time_entries", "2024-05-01", "2025-04-01", False),
        ("tickets+time_entries", "2024-01-01", "2024-04-01", False),
    ]


def test_tables_of_a_higher_priority_come_first_within_a_piece() -> None:
    tables = {**CONNECTWISE.tables}
    tables["time_entries"] = tables["time_entries"].model_copy(update={"priority": 1})
    service = CONNECTWISE.model_copy(update={"tables": tables})
    found = pieces(TABLES, months(0, 0), service, Scheduling(), recent=frozenset())
    assert [piece.tables for piece in found] == [
        ("companies", "contacts"), ("time_entries", "tickets"),
    ]  # fmt: skip


def test_a_hole_in_the_deep_past_touches_nothing_else() -> None:
    hole = Stretch(
        "tickets", datetime(2024, 3, 31, 23, tzinfo=UTC), datetime(2024, 4, 2, tzinfo=UTC)
    )
    assert said(cut(months(0, 29), stretches=(hole,))) == [
        ("tickets", "2024-03-01", "2024-04-01", False)
    ]


def test_a_stretch_that_ends_with_a_month_does_not_touch_the_next() -> None:
    hole = Stretch("tickets", datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC))
    assert said(cut(months(0, 29), stretches=(hole,))) == [
        ("tickets", "2024-03-01", "2024-03-01", False)
    ]


STRETCHES = st.lists(
    st.builds(
        lambda table, start, length: Stretch(
            table, months(start, start)[0].start, months(start + length, start + length)[0].end
        ),
        st.sampled_from(TABLES),
        st.integers(0, 29),
        st.integers(0, 3),
    ),
    max_size=4,
)


@given(
    first=st.integers(0, 29),
    length=st.integers(0, 29),
    tables=st.sets(st.sampled_from(TABLES), min_size=1),
    size=st.integers(1, 14),
    recent=st.integers(1, 4),
    stretches=STRETCHES,
)
def test_they_are_together_what_was_asked_for(
    first: int, length: int, tables: set[str], size: int, recent: int, stretches: list[Stretch]
) -> None:
    parts = months(first, min(first + length, 29))
    found = cut(
        parts, tables=tuple(sorted(tables)), size=size, recent=recent, stretches=tuple(stretches)
    )
    assert [piece.number for piece in found] == list(range(len(found)))
    assert all(piece.state is PieceState.WAITING and not piece.derive for piece in found)
    newest = {part.key for part in months(0, 29)[-recent:]}
    fetched: dict[str, list[str]] = {table: [] for table in tables}
    for piece in found:
        keys = [part.key for part in parts if piece.first <= part.key <= piece.last]
        assert keys[0] == piece.first and keys[-1] == piece.last
        assert piece.recent is (set(piece.tables) <= MASTER or set(keys) <= newest)
        assert not set(piece.tables) & MASTER or set(piece.tables) <= MASTER
        if not set(piece.tables) <= MASTER:
            assert len(keys) <= (recent if piece.recent else size)
        for table in piece.tables:
            fetched[table] += keys
    for table in tables:
        assert len(set(fetched[table])) == len(fetched[table]), "a partition is in one piece"
        touched = [
            part.key
            for part in parts
            if not stretches
            or any(
                s.table == table and s.start < part.end and s.end > part.start for s in stretches
            )
        ]
        assert set(touched) <= set(fetched[table])
        if not stretches or not touched:
            assert bool(fetched[table]) == bool(touched)
    others = [piece for piece in found if not set(piece.tables) <= MASTER]
    assert found[: len(found) - len(others)] == tuple(p for p in found if p not in others)
    assert all(newer.first > older.last for newer, older in pairwise(others))
