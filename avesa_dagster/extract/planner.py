"""From partitions to chunks: half-open windows, newest first, none across a partition."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import Chunk
from avesa_dagster.extract.request import Mode, Request

WHOLE = "all"
"""The partition of a chunk that spans several: a full pull or a sweep."""


def plan(
    request: Request,
    *,
    upper: datetime,
    sync_from: datetime | None,
    reached: datetime | None = None,
    chunk_days: int,
    whole: bool,
) -> list[Chunk]:
    """The chunks of a request.

    Args:
        upper: Nothing at or after it is asked for: the present less the service's lag.
        sync_from: For SYNC and FULL: where the windows begin. None: at the requested start.
        reached: For a request that was planned in part before: the partition in which that plan
            ended goes on from here.
        chunk_days: About the length of a chunk, in days.
        whole: Master data: one full pull in place of windows.
    """
    if whole:
        end = min(request.end, upper)
        return [_chunk(request, WHOLE, "full", request.start, end)] if request.start < end else []
    chunks = []
    for partition in reversed(request.partitions):
        start = max(partition.start, sync_from) if sync_from else partition.start
        if reached is not None and partition.start < reached < partition.end:
            start = max(start, reached)
        end = min(partition.end, upper)
        windows = reversed(list(_split(partition, start, end, chunk_days)))
        chunks += [_chunk(request, partition.key, "window", *window) for window in windows]
    if request.mode is Mode.FULL:
        chunks.append(_chunk(request, WHOLE, "sweep", request.start, upper))
    return chunks


def _split(
    partition: Partition, start: datetime, end: datetime, chunk_days: int
) -> Iterator[tuple[datetime, datetime]]:
    """Equal parts of the partition, in whole days, clipped to [start, end)."""
    days = (partition.end - partition.start).days
    parts = max(1, round(days / chunk_days))
    for part in range(parts):
        left = max(start, partition.start + timedelta(days=days * part // parts))
        right = min(end, partition.start + timedelta(days=days * (part + 1) // parts))
        if left < right:
            yield left, right


def _chunk(request: Request, partition: str, kind: str, start: datetime, end: datetime) -> Chunk:
    name = f"{_compact(start)}-{_compact(end)}"
    return Chunk(
        token=request.token,
        tenant=request.tenant,
        service=request.service,
        table=request.table,
        chunk_id=name if kind == "window" else f"{kind}-{name}",
        partition=partition,
        kind=kind,
        start=start,
        end=end,
    )


def _compact(moment: datetime) -> str:
    text = moment.strftime("%Y%m%dT%H%M%S")
    return text.removesuffix("T000000")
