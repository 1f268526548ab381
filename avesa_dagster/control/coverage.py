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
        as_of: The oldest fetch that the coverage rests on; None without any.
        rows: Records that the newest fetches counted.
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
        (chunk for chunk in chunks if chunk.kind != "sweep"), key=lambda c: (c.start, c.end)
    )
    return [_of_partition(table, fetched, partition, until) for partition in partitions]


def _of_partition(
    table: str, fetched: Sequence[Covered], partition: Partition, until: datetime
) -> PartitionCoverage:
    end = min(partition.end, until)
    here = [c for c in fetched if c.start < end and c.end > partition.start]
    holes = []
    reached = partition.start
    for chunk in here:
        if chunk.start > reached:
            holes.append(Window(reached, chunk.start))
        reached = max(reached, chunk.end)
    if reached < end:
        holes.append(Window(reached, end))
    length = (end - partition.start).total_seconds()
    missing = sum((hole.end - hole.start).total_seconds() for hole in holes)
    newest = {(c.start, c.end): c for c in sorted(here, key=lambda c: c.as_of)}.values()
    return PartitionCoverage(
        table=table,
        partition=partition,
        share=1.0 if length <= 0 else max(0.0, 1 - missing / length),
        holes=tuple(holes) if length > 0 else (),
        as_of=min((c.as_of for c in newest), default=None),
        rows=sum(c.rows for c in newest if c.kind == "window"),
    )
