"""Fetching one chunk: proven segments become raw objects, then the ledger says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import AvesaError, DataError, RecordsRejected, Stopped, StoreError
from avesa_dagster.extract import raw
from avesa_dagster.extract.deletions import close_missing, reopen_returned
from avesa_dagster.extract.proof import Segment, segments
from avesa_dagster.extract.workshop import Swept, Workshop
from avesa_dagster.sources.base import Rejected, Source, Span, Window


def fetch(chunk: Chunk, source: Source, shop: Workshop) -> tuple[Chunk, Swept]:
    """Fetches one chunk from where the ledger says, and completes it.

    Raises:
        AvesaError: With tenant, service, table and window. The ledger holds the failure, and what
            was stored before stays stored.
    """
    before = source.requests
    chunk = shop.ledger.begin(chunk, now=shop.clock())
    spent = _Spent(source, before)
    try:
        match chunk.kind:
            case "window":
                chunk, swept = _fetch_window(chunk, source, shop, spent), Swept()
            case "full":
                chunk, swept = _fetch_full(chunk, source, shop, spent)
            case _:
                chunk, swept = _sweep(chunk, source, shop, spent)
    except Stopped:  # nothing failed: whoever resumes goes on from the last checkpoint
        shop.ledger.release(chunk, requests=spent.take())
        raise
    except AvesaError as error:
        error.at(
            tenant=chunk.tenant,
            service=chunk.service,
            table=chunk.table,
            window=str(Window(chunk.start, chunk.end)),
        )
        if not isinstance(error, StoreError):
            shop.ledger.fail(chunk, error=str(error), requests=spent.take(), now=shop.clock())
        raise
    return chunk, swept


_TRIES = 5


@dataclass(slots=True)
class _Spent:
    """Counts the requests since the last checkpoint."""

    source: Source
    mark: int

    def take(self) -> int:
        count = self.source.requests - self.mark
        self.mark = self.source.requests
        return count


def _fetch_window(chunk: Chunk, source: Source, shop: Workshop, spent: _Spent) -> Chunk:
    span = Span(Window(chunk.start, chunk.end), after=chunk.cursor)
    counted = chunk.rows
    rejected: list[Rejected] = []
    for segment in segments(source, chunk.table, span):
        counted += segment.count
        rejected += _rejected(segment)
        rows = shop.held.new(raw.observations(segment.pages, chunk, shop.origin))
        shop.profile.sample(rows.column("payload"))
        keys = [raw.write(shop.objects, rows, chunk, chunk.partition)] if rows.num_rows else []
        if not rejected:  # a retry has to meet the rejected ones again
            chunk = _checkpoint(chunk, segment, rows.num_rows, keys, shop, spent)
    _refuse(rejected, chunk, chunk.partition, shop)
    return shop.ledger.complete(
        chunk, source_count=counted, requests=spent.take(), now=shop.clock()
    )


def _fetch_full(chunk: Chunk, source: Source, shop: Workshop, spent: _Spent) -> tuple[Chunk, Swept]:
    """Pulls the whole table and stores what differs from what is held.

    Begins anew after a crash: what was stored is held by then, and is not stored again.
    """
    chunk = shop.ledger.restart(chunk, now=shop.clock())
    counted = 0
    rejected: list[Rejected] = []
    span, doubt = _whole(source, chunk.table)
    for segment in segments(source, chunk.table, span):
        counted += segment.count
        pages, ahead = raw.future_records(segment.pages, shop.clock())
        rejected += [*_rejected(segment), *ahead]
        rows = raw.observations(pages, chunk, shop.origin)
        shop.profile.sample(rows.column("payload"))
        if shop.sweeping:
            shop.held.note_listed(rows.column("record_id").to_pylist())
        unstamped = (r.record_id for p in pages for r in p.records if r.updated_at is None)
        rows = shop.held.new(rows, frozenset(unstamped))
        keys, stored = [], 0
        for partition, part in _spread(rows, shop):
            keys.append(raw.write(shop.objects, part, chunk, partition.key))
            stored += part.num_rows
        chunk = _checkpoint(chunk, segment, stored, keys, shop, spent)
    _refuse(rejected, chunk, shop.partitions[-1].key, shop)
    if doubt:
        raise doubt
    swept = close_missing(chunk, source, shop) if shop.sweeping else Swept()
    chunk = shop.ledger.complete(
        chunk, source_count=counted, requests=spent.take(), now=shop.clock()
    )
    return chunk, swept


def _whole(source: Source, table: str) -> tuple[Span, DataError | None]:
    """All records of a table that there are now; what is created later belongs to a later fetch.

    Returns:
        The span, and, if the service says of its newest record what cannot be true, the error to
        raise once everything that it lists is stored: without a sure bound, what is created
        meanwhile would make up in the counts for what a page lacks.
    """
    newest: str | None = None
    for _ in range(_TRIES):
        newest = newest or source.newest_id(table)
        if newest is None:
            if source.count(table, Span()) == 0:
                return Span(), None
            continue
        beyond = source.count(table, Span(after=newest))
        if beyond == 0:
            return Span(upto=newest), None
        # Created meanwhile, or kept back? A newer id that takes all of them in tells.
        newer = source.newest_id(table)
        if newer and source.count(table, Span(after=newest, upto=newer)) >= beyond:
            return Span(upto=newer), None
    return Span(), DataError(
        f"the service counts records of {table} after {newest or 'none'}, which it says is newest",
        hint="what it lists is stored. Run it again; if it stays so, it does not obey orderBy",
    )


def _sweep(chunk: Chunk, source: Source, shop: Workshop, spent: _Spent) -> tuple[Chunk, Swept]:
    """Lists every id of the table, closes the records that are gone and reopens the returned."""
    chunk = shop.ledger.restart(chunk, now=shop.clock())
    counted = 0
    span, doubt = _whole(source, chunk.table)
    for segment in segments(source, chunk.table, span, ids_only=True):
        counted += segment.count
        if rejected := _rejected(segment):
            raise DataError(f"a record in a list of ids: {rejected[0].reason}")
        shop.held.note_listed(r.record_id for page in segment.pages for r in page.records)
    if doubt:
        raise doubt
    reopen_returned(chunk, source, shop)
    swept = close_missing(chunk, source, shop)
    chunk = shop.ledger.complete(
        chunk, source_count=counted, requests=spent.take(), now=shop.clock()
    )
    return chunk, swept


def _checkpoint(
    chunk: Chunk,
    segment: Segment,
    stored: int,
    keys: Sequence[str],
    shop: Workshop,
    spent: _Spent,
) -> Chunk:
    """Says in the ledger what is readable now."""
    if segment.last_id is None:
        return chunk
    shop.tally.add(segment.count)
    return shop.ledger.progress(
        chunk,
        cursor=segment.last_id,
        rows=segment.count,
        stored=stored,
        requests=spent.take(),
        objects=keys,
        now=shop.clock(),
    )


def _spread(rows: pa.Table, shop: Workshop) -> list[tuple[Partition, pa.Table]]:
    """Each row to the requested partition of its change time; others belong to no requested one."""
    changed = rows.column("updated_at")
    parts = []
    for partition in shop.partitions:
        start = None if partition.start <= shop.first else partition.start
        end = None if partition.end >= shop.last else partition.end
        here: pa.ChunkedArray | None = None
        if start is not None:
            here = pc.greater_equal(changed, pa.scalar(start, changed.type))
        if end is not None:
            below = pc.less(changed, pa.scalar(end, changed.type))
            here = below if here is None else pc.and_(here, below)
        part = rows if here is None else rows.filter(here)
        if part.num_rows:
            parts.append((partition, part))
    return parts


def _rejected(segment: Segment) -> list[Rejected]:
    return [item for page in segment.pages for item in page.rejected]


def _refuse(rejected: Sequence[Rejected], chunk: Chunk, partition: str, shop: Workshop) -> None:
    """Keeps what could not be taken, and fails: the chunk is not the whole truth."""
    if not rejected:
        return
    unique = list({(item.reason, item.payload): item for item in rejected}.values())
    key = raw.write_rejected(shop.objects, unique, chunk, partition, shop.clock())
    raise RecordsRejected(
        f"{len(unique)} record(s) cannot be taken; the first: {unique[0].reason}",
        hint=f"every other record of the window is stored, these lie in {key}. Correct them at "
        "the service and run it again",
    )
