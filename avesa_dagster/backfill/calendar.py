"""Where partitions stand in a calendar of years and months, and how each state is coloured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.coverage import PartitionCoverage, State

COLOURS = {
    State.RECONCILED: "#00916A",
    State.COVERED: "#86CBF3",
    State.PARTIAL: "#F0C000",
    State.NONE: "#B0300F",
}
"""Near those of Okabe and Ito: the colour-blind tell them apart, too, by lightness or hue. Nothing
is drawn for what is not due."""

MEANINGS = {
    State.RECONCILED: "covered, counts proven",
    State.COVERED: "covered, not proven",
    State.PARTIAL: "in part",
    State.NONE: "not fetched",
    State.NOT_DUE: "not due yet",
}

Rows = dict[int, list[PartitionCoverage]]
"""year -> the partitions that begin in it, oldest first."""


def tables(items: Iterable[PartitionCoverage]) -> dict[str, Rows]:
    """table -> its rows, both in the order in which they come."""
    found: dict[str, Rows] = {}
    for item in items:
        rows = found.setdefault(item.table, defaultdict(list))
        rows[item.partition.start.year].append(item)
    return {table: dict(rows) for table, rows in found.items()}


def month_of(moment: datetime) -> float:
    """Where in its year a moment lies, in months: 0 is 1 January, 1.5 is mid-February."""
    start = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (start + timedelta(days=32)).replace(day=1)
    return moment.month - 1 + (moment - start) / (end - start)


def spans(partition: Partition) -> list[tuple[int, float, float]]:
    """Year, from and to in months, of a partition; a week may lie in two years."""
    first, last = partition.start.year, partition.end.year
    start, end = month_of(partition.start), month_of(partition.end)
    if first == last:
        return [(first, start, end)]
    return [(first, start, 12.0)] + ([(last, 0.0, end)] if end else [])


def days(partition: Partition) -> int:
    return (partition.end - partition.start).days


def share_of(items: Sequence[PartitionCoverage]) -> float:
    """0..1 of the time in all of these partitions, each as long as it is."""
    whole = sum(days(item.partition) for item in items)
    return sum(item.share * days(item.partition) for item in items) / whole if whole else 1.0


def percent(share: float, complete: bool) -> str:
    """`100%` only for what has no hole, `0%` only for what has nothing."""
    if complete:
        return "100%"
    return "0%" if share <= 0 else f"{min(max(share, 0.001), 0.999):.1%}"


def seen(items: Iterable[PartitionCoverage]) -> tuple[datetime, datetime] | None:
    """The oldest and the newest fetch that these rest on; None without any."""
    found = [(i.as_of, i.newest) for i in items if i.as_of is not None and i.newest is not None]
    if not found:
        return None
    return min(oldest for oldest, _ in found), max(newest for _, newest in found)
