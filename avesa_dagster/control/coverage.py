"""What the ledger proves to be covered, partition by partition, and where the holes are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from heapq import heappop, heappush

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import COVERING, Covered
from avesa_dagster.sources.base import Window


class State(StrEnum):
    """How a partition stands."""

    RECONCILED = "reconciled"
    """All of its past is covered, and every fetch that this rests on is proven by a count."""
    COVERED = "covered"
    """All of its past is covered; not every fetch is proven."""
    PARTIAL = "partial"
    NONE = "none"
    """Nothing of it was fetched."""
    NOT_DUE = "not due"
    """It has only just begun, and nothing of it needs to be fetched yet."""


@dataclass(frozen=True, slots=True)
class PartitionCoverage:
    """How much of a partition was fetched.

    Attributes:
        share: 0..1 of the partition's past; 1 while none of it is due yet.
        holes: Stretches of the partition, up to the present, that no completed chunk covers.
        as_of: The oldest fetch that the coverage rests on, where each stretch rests on its newest
            fetch; None without any.
        newest: The newest fetch that it rests on; None without any.
        rows: Records that these fetches counted.
        reconciled: There is no hole, and every fetch that the coverage rests on is proven: the
            service counted, and at least as many records came.
    """

    table: str
    partition: Partition
    share: float
    holes: tuple[Window, ...]
    as_of: datetime | None
    newest: datetime | None
    rows: int
    reconciled: bool

    @property
    def state(self) -> State:
        if self.as_of is None:
            return State.NONE if self.holes else State.NOT_DUE
        if self.holes:
            return State.PARTIAL
        return State.RECONCILED if self.reconciled else State.COVERED


def coverage(
    table: str, chunks: Iterable[Covered], partitions: Sequence[Partition], until: datetime
) -> list[PartitionCoverage]:
    """Coverage of one table, in O(n log n) of its chunks.

    Args:
        chunks: Its completed chunks; sweeps count for nothing. Of two as of the same moment, the
            first wins.
        until: The present less the service's lag: later time needs no cover yet.
    """
    fetched = sorted(_fetching(chunks), key=lambda chunk: chunk.as_of, reverse=True)
    stretches = _stretches(fetched)
    starts = [stretch[0] for stretch in stretches]
    found = []
    for partition in partitions:
        end = min(partition.end, until)
        first = max(bisect_right(starts, partition.start) - 1, 0)
        found.append(_of_partition(table, fetched, partition, end, stretches, first))
    return found


def holes(items: Iterable[PartitionCoverage]) -> dict[str, list[Window]]:
    """table -> its holes, oldest first; those that meet at a partition's end are one.

    Every table of the items is there, also one without a hole. A table's items come in the order
    of their partitions, as `coverage` gives them.
    """
    found: dict[str, list[Window]] = {}
    for item in items:
        own = found.setdefault(item.table, [])
        for hole in item.holes:
            if own and own[-1].end == hole.start:
                hole = Window(own.pop().start, hole.end)
            own.append(hole)
    return found


def union(chunks: Iterable[Covered]) -> list[tuple[datetime, datetime]]:
    """What the chunks of one table cover together, sweeps left out: disjoint half-open stretches,
    oldest first, none touching the next."""
    merged: list[tuple[datetime, datetime]] = []
    for start, end in sorted((chunk.start, chunk.end) for chunk in _fetching(chunks)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def gaps(covered: Iterable[tuple[datetime, datetime]], whole: Window) -> list[Window]:
    """The parts of `whole` that disjoint, sorted stretches leave open."""
    found = []
    reached = whole.start
    for start, end in covered:
        if reached >= whole.end:
            break
        if start > reached:
            found.append(Window(reached, min(start, whole.end)))
        reached = max(reached, end)
    if reached < whole.end:
        found.append(Window(reached, whole.end))
    return found


def _fetching(chunks: Iterable[Covered]) -> Iterable[Covered]:
    return (chunk for chunk in chunks if chunk.kind in COVERING and chunk.start < chunk.end)


_Stretch = tuple[datetime, datetime, int]
"""Start, end, and the place among the fetched of the chunk that it rests on."""


def _stretches(fetched: Sequence[Covered]) -> list[_Stretch]:
    """What is covered, as disjoint stretches in order, each by the first chunk that has it.

    A sweep from left to right; a heap holds the chunks begun so far, the foremost on top.
    """
    stretches: list[_Stretch] = []
    begun: list[int] = []
    here = datetime.min  # compared with nothing while no chunk has begun
    for place in sorted(range(len(fetched)), key=lambda place: fetched[place].start):
        start = fetched[place].start
        _append(stretches, begun, fetched, here, start)
        here = start
        heappush(begun, place)
    _append(stretches, begun, fetched, here, None)
    return stretches


def _append(
    stretches: list[_Stretch],
    begun: list[int],
    fetched: Sequence[Covered],
    here: datetime,
    upto: datetime | None,
) -> None:
    """Appends the stretches from `here` up to `upto` (None: to the end of all that has begun)."""
    while begun and (upto is None or here < upto):
        place = begun[0]
        end = fetched[place].end
        if end <= here:
            heappop(begun)
            continue
        if upto is not None and upto < end:
            end = upto
        stretches.append((here, end, place))
        here = end


def _of_partition(
    table: str,
    fetched: Sequence[Covered],
    partition: Partition,
    end: datetime,
    stretches: Sequence[_Stretch],
    first: int,
) -> PartitionCoverage:
    """Coverage of [partition.start, end); no stretch before `first` reaches into it."""
    here = partition.start
    if end <= here:
        return PartitionCoverage(table, partition, 1.0, (), None, None, 0, True)
    open_: list[Window] = []
    places: set[int] = set()
    for at in range(first, len(stretches)):
        start, stop, place = stretches[at]
        if start >= end:
            break
        if stop <= here:
            continue
        if start > here:
            open_.append(Window(here, start))
        places.add(place)
        here = stop
    if here < end:
        open_.append(Window(here, end))
    rests_on = [fetched[place] for place in places]
    missing = sum((hole.end - hole.start).total_seconds() for hole in open_)
    moments = [chunk.as_of for chunk in rests_on]
    return PartitionCoverage(
        table=table,
        partition=partition,
        share=1 - missing / (end - partition.start).total_seconds(),
        holes=tuple(open_),
        as_of=min(moments, default=None),
        newest=max(moments, default=None),
        rows=sum(chunk.rows for chunk in rests_on if chunk.kind == "window"),
        reconciled=not open_ and all(map(_proven, rests_on)),
    )


def _proven(chunk: Covered) -> bool:
    return chunk.source_count is not None and chunk.rows >= chunk.source_count
