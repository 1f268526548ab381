"""Coverage to draw: any state at any place, made from chunks as the ledger would tell them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from avesa_dagster.catalog.grain import partitions
from avesa_dagster.catalog.models import Grain
from avesa_dagster.control.base import Covered
from avesa_dagster.control.coverage import PartitionCoverage, State, coverage

NOW = datetime(2026, 7, 14, 10, 5, tzinfo=UTC)


def calendar(
    states: Mapping[int, State] | None = None,
    *,
    grain: Grain = Grain.MONTHLY,
    start: datetime = datetime(2024, 7, 1, tzinfo=UTC),
    table: str = "tickets",
    missing: float = 0.5,
    age: timedelta = timedelta(hours=1),
) -> list[PartitionCoverage]:
    """Partitions that are reconciled, but those whose place is named.

    Args:
        missing: Share of a partition in part that is not fetched.
        age: Of the fetches.
    """
    windows = list(partitions(grain, start, NOW))
    chunks = []
    for place, window in enumerate(windows):
        state = (states or {}).get(place, State.RECONCILED)
        begin = window.start + (window.end - window.start) * missing
        match state:
            case State.RECONCILED | State.COVERED:
                begin = window.start
            case State.NONE | State.NOT_DUE:
                continue
        count = None if state is State.COVERED else 1
        chunks.append(Covered(table, window.key, "window", begin, window.end, NOW - age, 1, count))
    return coverage(table, chunks, windows, NOW)
