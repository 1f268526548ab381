"""From partitions to chunks: half-open windows, newest first, none across a partition."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import RetriableError, Suspended
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.extract.sizing import Count, Sizes, by_calendar, by_volume
from avesa_dagster.sources.base import Window

WHOLE = "all"
"""The partition of a chunk that spans several: a full pull or a sweep."""


def plan(
    request: Request,
    *,
    upper: datetime,
    sync_from: datetime | None,
    reached: datetime | None = None,
    wanted: Sequence[Window] | None = None,
    sizes: Sizes,
    count: Count | None = None,
    whole: bool,
    lists_deletions: bool = False,
) -> list[Chunk]:
    """The chunks of a request.

    Args:
        upper: Nothing at or after it is asked for: the present less the service's lag.
        sync_from: For SYNC and FULL: where the windows begin. None: at the requested start.
        reached: For a request that was planned in part before: the partition in which that plan
            ended goes on from here.
        wanted: Only what lies in these; None: everything.
        sizes: What bounds a chunk.
        count: Asks the service; None: by the calendar alone.
        whole: Master data: one full pull in place of windows.
        lists_deletions: Whether the service may keep a list of what was deleted.
    """
    if whole:
        start, end = request.start, min(request.end, upper)
        asked = wanted is None or any(w.start < end and w.end > start for w in wanted)
        return [_chunk(request, WHOLE, "full", Window(start, end))] if start < end and asked else []
    stretches = []
    for partition in request.partitions:
        start = max(partition.start, sync_from) if sync_from else partition.start
        if reached is not None and partition.start < reached < partition.end:
            start = max(start, reached)
        end = min(partition.end, upper)
        for window in _clipped(start, end, wanted):
            stretches.append((partition, window))
    chunks = [
        _chunk(request, partition.key, "window", window)
        for partition, window in reversed(_sized(stretches, sizes, count))
    ]
    if lists_deletions and sync_from is not None and sync_from < upper:
        chunks.append(_chunk(request, WHOLE, "deletions", Window(sync_from, upper)))
    if request.mode is Mode.FULL:
        chunks.append(_chunk(request, WHOLE, "sweep", Window(request.start, upper)))
    return chunks


def _sized(
    stretches: Sequence[tuple[Partition, Window]], sizes: Sizes, count: Count | None
) -> list[tuple[Partition, Window]]:
    if count is not None:
        try:
            return [(sized.partition, sized.window) for sized in by_volume(stretches, sizes, count)]
        except Suspended:
            raise
        except RetriableError:
            pass  # one window that cannot be counted must not keep the others back
    return [
        (partition, part)
        for partition, window in stretches
        for part in by_calendar(partition, window, sizes.days)
    ]


def _clipped(start: datetime, end: datetime, wanted: Sequence[Window] | None) -> list[Window]:
    """What of [start, end) is wanted, oldest first; whole seconds, as services date in those."""
    if start >= end:
        return []
    if wanted is None:
        return [Window(start, end)]
    parts = [Window(max(start, _floor(w.start)), min(end, _ceil(w.end))) for w in wanted]
    return sorted((part for part in parts if part.start < part.end), key=lambda w: w.start)


def _floor(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _ceil(moment: datetime) -> datetime:
    floor = _floor(moment)
    return floor if floor == moment else floor + timedelta(seconds=1)


def _chunk(request: Request, partition: str, kind: str, window: Window) -> Chunk:
    return Chunk(
        token=request.token,
        tenant=request.tenant,
        service=request.service,
        table=request.table,
        chunk_id=name_of(window) if kind == "window" else f"{kind}-{name_of(window)}",
        partition=partition,
        kind=kind,
        start=window.start,
        end=window.end,
    )


def name_of(window: Window) -> str:
    """A chunk's id within its token, for example `20260301-20260401`."""
    return f"{_compact(window.start)}-{_compact(window.end)}"


def _compact(moment: datetime) -> str:
    text = moment.strftime("%Y%m%dT%H%M%S")
    return text.removesuffix("T000000")
