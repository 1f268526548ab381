"""Does the lake hold what the service counted? Reads the stored objects back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avesa_dagster.control.base import Chunk
from avesa_dagster.lake.database import connect, parquet
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Window


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A window of which the lake holds fewer records than the service counted."""

    window: str
    counted: int
    held: int


def reconcile(objects: Objects, chunks: Sequence[Chunk]) -> list[Disagreement]:
    """Compares each fetched window with what its objects hold.

    A record that moved on while it was read is held beyond the count; fewer is a loss. Full pulls
    store differences only and are proven while they are read (extract/proof.py).
    """
    found = []
    for chunk in chunks:
        if chunk.kind != "window" or chunk.source_count is None:
            continue
        held = _records(objects, chunk.objects)
        if held < chunk.source_count:
            window = str(Window(chunk.start, chunk.end))
            found.append(Disagreement(window, chunk.source_count, held))
    return found


def _records(objects: Objects, keys: Sequence[str]) -> int:
    if not keys:
        return 0
    files = parquet(objects.location(key) for key in keys)
    with connect() as db:
        row = db.execute(f"select count(distinct record_id) from {files}").fetchone()  # noqa: S608
    return int(row[0]) if row else 0
