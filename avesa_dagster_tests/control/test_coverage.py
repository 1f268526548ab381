"""Coverage: what the ledger's chunks leave open, and how old the rest is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.catalog.grain import Partition, partitions
from avesa_dagster.catalog.models import Grain
from avesa_dagster.control.base import Covered
from avesa_dagster.control.coverage import coverage

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = int((END - START).total_seconds() // 3600)


def chunk(start: int, end: int, as_of: int, kind: str = "window") -> Covered:
    def at(hours: int) -> datetime:
        return START + timedelta(hours=hours)

    return Covered("tickets", "2026-01-01", kind, at(start), at(end), at(as_of), 1, 1)


def windows() -> list[Partition]:
    return list(partitions(Grain.MONTHLY, START, END - timedelta(hours=1)))


chunks = st.lists(
    st.builds(
        lambda a, length, as_of: chunk(a, min(a + length, HOURS), as_of),
        st.integers(0, HOURS - 1),
        st.integers(1, 400),
        st.integers(0, 10_000),
    ),
    max_size=8,
)


@given(chunks, st.integers(1, HOURS))
def test_share_holes_and_age_are_those_of_each_hour(fetched: list[Covered], until: int) -> None:
    limit = START + timedelta(hours=until)
    for part in coverage("tickets", fetched, windows(), limit):
        hours = [
            START + timedelta(hours=hour)
            for hour in range(HOURS)
            if part.partition.start
            <= START + timedelta(hours=hour)
            < min(part.partition.end, limit)
        ]
        newest = {
            hour: max((c.as_of for c in fetched if c.start <= hour < c.end), default=None)
            for hour in hours
        }
        open_hours = {hour for hour, as_of in newest.items() if as_of is None}
        assert open_hours == {h for h in hours if any(h in hole for hole in part.holes)}
        assert part.share == (1 - len(open_hours) / len(hours) if hours else 1)
        ages = [as_of for as_of in newest.values() if as_of is not None]
        assert part.as_of == min(ages, default=None)


def test_a_sweep_covers_nothing() -> None:
    (january, _) = coverage("tickets", [chunk(0, HOURS, 1, "sweep")], windows(), END)
    assert january.share == 0
