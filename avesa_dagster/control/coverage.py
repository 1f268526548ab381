"""What the ledger proves to be covered, partition by partition, and where the holes are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import Covered
from avesa_dagster.sources.base import Window


@dataclass(frozen=True, slots=True)
class PartitionCoverage:
    """How much of a partition was fetched.

    Attributes:
        holes: Stretches of the partition, up to the present, that no completed chunk covers.
        share: 0..1 of the partition's past.
        as_of: The oldest fetch that the coverage rests on, where each stretch rests on its newest
            fetch; None without any.
        rows: Records that these fetches counted.
    """

    table: str
    partition: Partition
    share: float
    holes: tuple[Window, ...]
    as_of: datetime | None
    rows: int


def coverage(
    table: str, chunks: Iterable[Covered], partitions: Sequence[Partition], until: datetime
) -> list[PartitionCoverage]:
    """Coverage of one table.

    Args:
        chunks: Its completed chunks; sweeps count for nothing.
        until: The present less the service's lag: later time needs no cover yet.
    """
    fetched = sorted(
        (chunk for chunk in chunks if chunk.kind != "sweep"), key=lambda c: c.as_of, reverse=True
    )
    return [_of_partition(table, fetched, partition, until) for partition in partitions]


def _of_partition(
    table: str, fetched: Sequence[Covered], partition: Partition, until: datetime
) -> PartitionCoverage:
    end = min(partition.end, until)
    if end <= partition.start:
        return PartitionCoverage(table, partition, 1.0, (), None, 0)
    holes = [Window(partition.start, end)]
    rests_on: list[Covered] = []
    for chunk in fetched:
        left = [part for hole in holes for part in _without(hole, chunk)]
        if left != holes:
            rests_on.append(chunk)
        holes = left
    missing = sum((hole.end - hole.start).total_seconds() for hole in holes)
    return PartitionCoverage(
        table=table,
        partition=partition,
        share=1 - missing / (end - partition.start).total_seconds(),
        holes=tuple(holes),
        as_of=min((chunk.as_of for chunk in rests_on), default=None),
        rows=sum(chunk.rows for chunk in rests_on if chunk.kind == "window"),
    )


def _without(hole: Window, chunk: Covered) -> list[Window]:
    """The parts of a hole that the chunk leaves open."""
    if chunk.end <= hole.start or chunk.start >= hole.end:
        return [hole]
    parts = [Window(hole.start, chunk.start), Window(chunk.end, hole.end)]
    return [part for part in parts if part.start < part.end]
