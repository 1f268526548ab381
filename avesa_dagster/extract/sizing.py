"""How large the chunks of a backfill are: by the calendar, and by what the service counts.

One count tells that a quiet year needs no halving; where there is more, the range is halved and
counted again, so a table costs one request, and a busy one a few. The counts size chunks and
nothing else: a chunk proves itself when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.sources.base import Window

Count = Callable[[Window], int]
_SHORTEST = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What bounds a chunk.

    Attributes:
        days: About its length, in days.
        page_size: A stretch within one partition that has no more records is one chunk.
        max_records: A window with more is halved, down to an hour.
    """

    days: int
    page_size: int
    max_records: int


@dataclass(frozen=True, slots=True)
class Sized:
    """A window of one partition, and how many records the service counted in it.

    `records` is an upper bound taken from a wider count where `exact` is False.
    """

    partition: Partition
    window: Window
    records: int
    exact: bool


def by_calendar(partition: Partition, window: Window, days: int) -> Iterator[Window]:
    """Equal parts of the partition, in whole days, clipped to the window; oldest first."""
    length = (partition.end - partition.start).days
    parts = max(1, round(length / days))
    for part in range(parts):
        left = max(window.start, partition.start + _DAY * (length * part // parts))
        right = min(window.end, partition.start + _DAY * (length * (part + 1) // parts))
        if left < right:
            yield Window(left, right)


def by_volume(
    stretches: Sequence[tuple[Partition, Window]], sizes: Sizes, count: Count, *, each: bool = False
) -> list[Sized]:
    """Chunks of these stretches, oldest first: none across a partition, none too large.

    Args:
        stretches: Oldest first; each within its partition.
        count: Asks the service how many records a window holds.
        each: Count every chunk, which an estimate needs and a fetch does not.
    """
    if not stretches:
        return []
    return _descend(stretches, count(_around(stretches)), True, sizes, count, each)


def _descend(
    stretches: Sequence[tuple[Partition, Window]],
    records: int,
    exact: bool,
    sizes: Sizes,
    count: Count,
    each: bool,
) -> list[Sized]:
    """`records` are those around the stretches, or, not exact, at least those."""
    if len(stretches) == 1:
        partition, window = stretches[0]
        return _within(partition, window, records, exact, sizes, count, each)
    settled = records == 0 or (
        not each
        and (
            records <= sizes.page_size
            or (records <= sizes.max_records and not any(_parts(s, sizes) for s in stretches))
        )
    )
    if settled:
        return [
            sized
            for partition, window in stretches
            for sized in _within(partition, window, records, records == 0, sizes, count, False)
        ]
    middle = len(stretches) // 2
    older, newer = stretches[:middle], stretches[middle:]
    below = count(_around(older))
    return [
        *_descend(older, below, True, sizes, count, each),
        *_descend(newer, max(0, records - below), exact, sizes, count, each),
    ]


def _within(
    partition: Partition,
    window: Window,
    records: int,
    exact: bool,
    sizes: Sizes,
    count: Count,
    each: bool,
) -> list[Sized]:
    if records <= sizes.page_size:
        return [Sized(partition, window, records, exact)]
    if records <= sizes.max_records:
        parts = list(by_calendar(partition, window, sizes.days))
        if len(parts) == 1:
            return [Sized(partition, window, records, exact)]
        if not each:
            return [Sized(partition, part, records, False) for part in parts]
        return [Sized(partition, part, count(part), True) for part in parts]
    halves = halved(window)
    if len(halves) == 1:
        return [Sized(partition, window, records, exact)]
    below = count(halves[0])
    return [
        *_within(partition, halves[0], below, True, sizes, count, each),
        *_within(partition, halves[1], max(0, records - below), exact, sizes, count, each),
    ]


def halved(window: Window) -> list[Window]:
    """The window in two, at a whole second; itself if that would be less than an hour each."""
    half = timedelta(seconds=int((window.end - window.start).total_seconds() // 2))
    if half < _SHORTEST:
        return [window]
    middle = window.start + half
    return [Window(window.start, middle), Window(middle, window.end)]


def _parts(stretch: tuple[Partition, Window], sizes: Sizes) -> bool:
    """Whether the calendar would split it."""
    return len(list(by_calendar(*stretch, sizes.days))) > 1


def _around(stretches: Sequence[tuple[Partition, Window]]) -> Window:
    return Window(stretches[0][1].start, stretches[-1][1].end)
