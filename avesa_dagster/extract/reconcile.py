"""Does the lake hold what the service counted? Reads the stored objects back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import Where
from avesa_dagster.lake.database import connect, explained, parquet
from avesa_dagster.lake.layout import partition_prefix, table_prefix
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Window


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A window of which the lake holds fewer records than the service counted.

    Attributes:
        shown: Records that the service showed; fewer than it counted are hidden from this user.
    """

    window: str
    counted: int
    shown: int
    held: int

    @property
    def lost(self) -> bool:
        """Whether the lake lacks what the service showed."""
        return self.held < self.shown


def reconcile(objects: Objects, chunks: Sequence[Chunk]) -> list[Disagreement]:
    """Compares what the service counted in each fetched window with what the lake holds of it.

    A record that moved on is held beyond the count; fewer is a loss. Full pulls are proven while
    they are read (extract/proof.py).
    """
    found = []
    for chunk in chunks:
        if chunk.kind != "window" or not chunk.source_count:
            continue
        held = _records(objects, chunk, chunk.partition)
        if held < chunk.source_count:  # a service whose clock is ahead: beside its partition
            held = _records(objects, chunk, None)
        if held < chunk.source_count:
            window = str(Window(chunk.start, chunk.end))
            found.append(Disagreement(window, chunk.source_count, chunk.rows, held))
    return found


def _records(objects: Objects, chunk: Chunk, partition: str | None) -> int:
    """Distinct records that were listed with a change in the chunk's window, in a partition or in
    the table; those that were listed as deleted, too."""
    place = (chunk.tenant, "raw", chunk.service, chunk.table)
    prefix = partition_prefix(*place, partition) if partition else table_prefix(*place)
    keys = [info.key for info in objects.list(prefix) if info.key.endswith(".parquet")]
    if not keys:
        return 0
    files = parquet(objects.location(key) for key in keys)
    where = Where(chunk.tenant, chunk.service, chunk.table, str(Window(chunk.start, chunk.end)))
    what = "raw cannot be compared with what the service counted"
    with explained(what, where), connect(objects) as db:
        row = db.execute(
            f"select count(distinct record_id) from {files} "
            "where payload is not null and updated_at >= ? and updated_at < ?",
            [chunk.start, chunk.end],
        ).fetchone()
    return int(row[0]) if row else 0
