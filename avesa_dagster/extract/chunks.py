"""Fetching one chunk: proven segments become raw objects, then the ledger says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import (
    AvesaError,
    BulkGone,
    BulkUnusable,
    DataError,
    RecordsRejected,
    Stopped,
    StoreError,
    TooMuch,
    Where,
)
from avesa_dagster.extract import bulk, raw
from avesa_dagster.extract.deletions import close_missing, reopen_returned
from avesa_dagster.extract.proof import Segment, segments
from avesa_dagster.extract.sizing import halved
from avesa_dagster.extract.workshop import Swept, Workshop
from avesa_dagster.lake import layout
from avesa_dagster.sources.base import Page, Rejected, Source, Span, Window


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
            case "deletions":
                chunk, swept = _fetch_deletions(chunk, source, shop, spent)
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


_log = logging.getLogger(__name__)
T = TypeVar("T")
_TRIES = 5
_JOBS = 2
"""Bulk jobs for a span, if the first one is gone."""
_OLDEST = datetime(1900, 1, 1, tzinfo=UTC)


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
    span = Span(Window(chunk.start, chunk.end))

    def take(held: Chunk, parts: Iterable[Segment]) -> Chunk:
        return _take_window(held, parts, shop, spent)

    done, chunk, counted = _in_bulk(chunk, source, span, shop, take)
    if done is not None:
        return done
    span = replace(span, after=chunk.cursor)
    return take(chunk, segments(source, chunk.table, span, counted=counted))


def _in_bulk(
    chunk: Chunk,
    source: Source,
    span: Span,
    shop: Workshop,
    take: Callable[[Chunk, Iterable[Segment]], T],
) -> tuple[T | None, Chunk, int | None]:
    """Fetches a large span as a job of the service, or goes on with one.

    Args:
        take: Stores what it is given, and completes the chunk.

    Returns:
        What `take` returned, or None if the span is to be read by pages; the chunk as it stands
        then; and what the service counted in the span just now, None if it was not asked.

    Raises:
        TooMuch: The window is too large for a job, and can be halved.
    """
    able = bulk.able(source)
    if able is None or able.bulk_records is None or span.window is None:
        if bulk.Begun.of(chunk) is not None:  # it was, when this chunk was begun
            chunk = shop.ledger.restart(chunk, now=shop.clock())
        return None, chunk, None
    for _ in range(_JOBS):
        begun = bulk.Begun.of(chunk)
        if begun is None and chunk.cursor is not None:  # by pages already
            break
        if begun is None:
            count = source.count(chunk.table, span)
            if count < able.bulk_records:
                return None, chunk, count
            bulk.tidy(able, chunk, shop.ledger, shop.clock())
            begun = bulk.Begun(count)
        try:
            taken = take(chunk, bulk.segments(able, chunk, span, begun))
        except (BulkUnusable, TooMuch) as error:
            bulk.abandon(able, _now(chunk, shop))
            chunk = shop.ledger.restart(chunk, now=shop.clock())
            whole = Window(chunk.start, chunk.end)
            if isinstance(error, TooMuch) and chunk.kind == "window" and len(halved(whole)) > 1:
                raise
            again = "by a new job" if isinstance(error, BulkGone) else "by pages"
            where = Where(chunk.tenant, chunk.service, chunk.table, str(whole))
            _log.warning("%s; it is read %s [%s]", error.what, again, where)
            if not isinstance(error, BulkGone):
                break
        else:
            bulk.abandon(able, _now(chunk, shop))
            return taken, chunk, None
    return None, chunk, None


def _now(chunk: Chunk, shop: Workshop) -> Chunk:
    """The chunk as the ledger has it."""
    rows = shop.ledger.rows(chunk.token, chunk.tenant, chunk.service, chunk.table)
    return next(row for row in rows if row.chunk_id == chunk.chunk_id)


def _take_window(chunk: Chunk, parts: Iterable[Segment], shop: Workshop, spent: _Spent) -> Chunk:
    """Stores the parts of a window as they come, and completes the chunk."""
    counted = chunk.rows
    rejected: list[Rejected] = []
    for segment in parts:
        counted += segment.count
        rejected += _rejected(segment)
        rows = shop.held.new(raw.observations(segment.pages, chunk, shop.origin))
        shop.profile.sample(rows.column("payload"))
        keys = [raw.write(shop.objects, rows, chunk, chunk.partition)] if rows.num_rows else []
        closed, buried = _bury(segment.pages, chunk, chunk.partition, shop)
        if not rejected:  # a retry has to meet the rejected ones again
            stored = rows.num_rows + closed
            chunk = _checkpoint(chunk, segment, stored, [*keys, *buried], shop, spent)
    _refuse(rejected, chunk, chunk.partition, shop)
    return shop.ledger.complete(
        chunk, source_count=counted, requests=spent.take(), now=shop.clock()
    )


def _fetch_full(chunk: Chunk, source: Source, shop: Workshop, spent: _Spent) -> tuple[Chunk, Swept]:
    """Pulls the whole table and stores what differs from what is held.

    Begins anew after a crash: what was stored is held by then, and is not stored again.
    """
    if (able := bulk.able(source)) is not None:
        bulk.abandon(able, chunk)
    chunk = shop.ledger.restart(chunk, now=shop.clock())
    span, doubt = _whole(source, chunk)

    def take(held: Chunk, parts: Iterable[Segment]) -> tuple[Chunk, Swept]:
        return _take_full(held, parts, doubt, source, shop, spent)

    done, chunk, counted = _in_bulk(chunk, source, span, shop, take)
    if done is not None:
        return done
    return take(chunk, segments(source, chunk.table, span, counted=counted))


def _take_full(
    chunk: Chunk,
    parts: Iterable[Segment],
    doubt: DataError | None,
    source: Source,
    shop: Workshop,
    spent: _Spent,
) -> tuple[Chunk, Swept]:
    """Stores the parts of a table as they come, closes what is gone, and completes the chunk."""
    counted = 0
    rejected: list[Rejected] = []
    for segment in parts:
        counted += segment.count
        pages, ahead = raw.future_records(segment.pages, shop.clock())
        rejected += [*_rejected(segment), *ahead]
        rows = raw.observations(pages, chunk, shop.origin)
        shop.profile.sample(rows.column("payload"))
        if shop.sweeping:
            shop.held.note_listed(rows.column("record_id").to_pylist())
        closed, buried = _bury(pages, chunk, shop.partitions[-1].key, shop)
        unstamped = (r.record_id for p in pages for r in p.records if r.updated_at is None)
        rows = shop.held.new(rows, frozenset(unstamped))
        keys, stored = list(buried), closed
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


def _fetch_deletions(
    chunk: Chunk, source: Source, shop: Workshop, spent: _Spent
) -> tuple[Chunk, Swept]:
    """Stores what the service's own list of deletions says, where the record is gone indeed."""
    told = source.deletions(chunk.table, Window(chunk.start, chunk.end)) or []
    latest = {one.record_id: one.deleted_at for one in sorted(told, key=lambda d: d.deleted_at)}
    now = shop.clock()
    ids, moments = list(latest), list(latest.values())
    rows = shop.held.new_deletions(raw.deletions(ids, moments, now, chunk, shop.origin))
    gone = [not source.exists(chunk.table, i) for i in rows.column("record_id").to_pylist()]
    rows = rows.filter(pa.array(gone, pa.bool_()))
    if rows.num_rows:
        last = shop.partitions[-1].key
        key = raw.write(shop.objects, rows, chunk, last, name=layout.DELETIONS)
        chunk = shop.ledger.progress(
            chunk,
            cursor=ids[-1],
            rows=0,
            stored=rows.num_rows,
            requests=spent.take(),
            objects=[key],
            now=now,
        )
    chunk = shop.ledger.complete(
        chunk, source_count=len(told), requests=spent.take(), now=shop.clock()
    )
    return chunk, Swept(rows.num_rows, 0)


def _bury(
    pages: Sequence[Page], chunk: Chunk, partition: str, shop: Workshop
) -> tuple[int, list[str]]:
    """Stores the deletions that the pages list: how many were new, and where they lie."""
    rows = shop.held.new_deletions(raw.tombstones(pages, chunk, shop.origin))
    if not rows.num_rows:
        return 0, []
    return rows.num_rows, [raw.write(shop.objects, rows, chunk, partition, name=layout.DELETIONS)]


def _whole(source: Source, chunk: Chunk) -> tuple[Span, DataError | None]:
    """All records of a table that there are now; what is created later belongs to a later fetch.

    The bound is the newest id, or, where ids come in no order, the change time: what changes
    later leaves the window, and is the next sync's.

    Returns:
        The span, and, if the service says of its newest record what cannot be true, the error to
        raise once everything that it lists is stored: without a sure bound, what is created
        meanwhile would make up in the counts for what a page lacks.
    """
    table = chunk.table
    if not source.ids_ascend:
        return Span(Window(_OLDEST, chunk.end)), None
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
    span, doubt = _whole(source, chunk)
    span = replace(span, alive=True)
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
    shown = segment.count - segment.hidden
    shop.tally.add(shown)
    return shop.ledger.progress(
        chunk,
        cursor=segment.last_id,
        rows=shown,
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
