"""Records that are gone, and records that came back: what a list of all ids tells."""

from __future__ import annotations

from datetime import timedelta

from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import MassDeletionSuspected
from avesa_dagster.extract import raw
from avesa_dagster.extract.workshop import Swept, Workshop
from avesa_dagster.lake import layout
from avesa_dagster.sources.base import Source, Span


def close_missing(chunk: Chunk, source: Source, shop: Workshop) -> Swept:
    """Confirms each missing record with the service, by its id, and stores its deletion.

    Raises:
        MassDeletionSuspected: More are missing than a sweep may close; nothing was closed.
    """
    missing = shop.held.missing()
    alive = shop.held.alive()
    limit = _most(shop, alive)
    if len(missing) > limit:
        raise MassDeletionSuspected(
            f"{len(missing)} of {alive} records that are held are not listed any more, which is "
            f"more than the sweep may close ({limit})",
            hint="nothing was closed. Look whether the API member lost a permission; if so many "
            "really were deleted, raise sweep.max_deleted_share in backfill_config.json",
        )
    gone = [row for row in missing if not source.exists(chunk.table, row[0])]
    if gone:
        now = shop.clock()
        ids = [record_id for record_id, _ in gone]
        closed = [max(now, changed + timedelta(microseconds=1)) for _, changed in gone]
        rows = raw.deletions(ids, closed, now, chunk, shop.origin)
        last = shop.partitions[-1].key
        key = raw.write(shop.objects, rows, chunk, last, name=layout.DELETIONS)
        shop.ledger.progress(
            chunk, cursor=ids[-1], rows=0, stored=len(ids), requests=0, objects=[key], now=now
        )
    return Swept(len(gone), len(missing) - len(gone))


def reopen_returned(chunk: Chunk, source: Source, shop: Workshop) -> None:
    """Fetches the records that are held as deleted and are listed again, and stores them.

    Their change time may be long past, in a window that nobody asks for again. The observation
    goes to the newest requested partition; history unites what lies in several.
    """
    pages = [source.page(chunk.table, Span(only=record_id)) for record_id in shop.held.returned()]
    rows = shop.held.new(raw.observations(pages, chunk, shop.origin))
    if rows.num_rows:
        raw.write(shop.objects, rows, chunk, shop.partitions[-1].key)


def _most(shop: Workshop, alive: int) -> int:
    """How many records a sweep may close; of a small table, at most half, and always one."""
    few = min(shop.guard.min_deleted_records, max(1, alive // 2))
    return max(few, int(shop.guard.max_deleted_share * alive))
