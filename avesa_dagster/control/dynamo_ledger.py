"""ChunkProgress in DynamoDB: which windows were fetched, how far, when and as of what.

A tenant's items lie together, ordered by `service#table#job_id#chunk_id`; job_id is the chunk's
token. There are three kinds:

- A chunk. `place`, the key of TenantTableIndex, is `completed#service#table#start` once it is
  completed, `open#service#table#start` while it has a cursor, and else not there.
- A part of its objects, `…#chunk_id#number`, written with the progress that tells of them: an item
  holds 400 KB, and a chunk of a million rows writes hundreds of objects. The chunk shows the parts
  from `first_part` to before `next_part`; those before were written before a restart, and are
  observations still. Their `place` is `objects#service#table#partition#`.
- A plan, `service#table#job_id##id`: chunks that are more than a transaction takes. Written whole,
  so that a plan is there whole or not at all. Whoever meets it makes its rows, then removes it.

TenantTableIndex is a local index: its reads are as consistent as the table's.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from avesa_dagster.control.base import COVERING, Chunk, ChunkState, Covered
from avesa_dagster.control.dynamo_database import (
    MOST_IN_A_TRANSACTION,
    Delete,
    DynamoDatabase,
    Item,
    Key,
    Pause,
    Put,
    Row,
    Unchanged,
    Write,
    optional_text,
    to_text,
)
from avesa_dagster.control.dynamo_tables import CHUNK_PROGRESS
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.names import checked

_TENANT, _SORT = CHUNK_PROGRESS.keys
_PLACES = CHUNK_PROGRESS.index("TenantTableIndex")
_STATES = {state.value: state for state in ChunkState}
_PART_BYTES = 200_000
_PLAN_BYTES = 300_000
_MOST_PLANNED = 5_000
"""A transaction takes 4 MB; a row has some 700 bytes."""
_LONGEST_ERROR = 50_000


class DynamoLedger:
    """Implements `control.base.Ledger`."""

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def plan(self, chunks: Sequence[Chunk], *, now: datetime) -> list[Chunk]:
        """See Ledger.plan. A new row's planned_at is `now`. All rows are inserted, or none.

        Raises:
            ConfigurationError: If a name is invalid or a time has no zone; no row is inserted.
            StoreError: More than 5,000 rows at once; no row is inserted.
        """
        planned: dict[Key, Chunk] = {}
        for chunk in chunks:
            planned.setdefault(_key(chunk), dataclasses.replace(chunk, planned_at=now))
        items = {key: _items(_checked(chunk)) for key, chunk in planned.items()}
        for group in dict.fromkeys(map(_group, chunks)):
            self._finish(self._plans(*group))
        pause = Pause("others keep planning the same chunks")
        while True:
            found = self._database.get_many(CHUNK_PROGRESS, planned)
            absent = {key: own for key, own in items.items() if key not in found}
            if sum(map(len, absent.values())) > MOST_IN_A_TRANSACTION:
                self._insert_many(absent)
                found = self._database.get_many(CHUNK_PROGRESS, planned)
                break
            writes = [put for own in absent.values() for put in _puts(own)]
            if self._database.transact(writes) is None:
                break
            pause.wait()
        stored = {key: self._chunk(row) for key, row in found.items()}
        return [stored.get(key) or planned[key] for key in map(_key, chunks)]

    def rows(self, token: str, tenant: str, service: str, table: str) -> list[Chunk]:
        """See Ledger.rows."""
        where = Where(tenant, service, table)
        prefix = f"{service}#{table}#{token}#"
        held: list[Row] = []
        plans: list[Row] = []
        parts: dict[str, dict[int, Row]] = {}
        for row in self._database.query(CHUNK_PROGRESS, tenant, prefix, where=where):
            _, _, _, chunk_id, *more = row.key[1].split("#")
            if not more:
                held.append(row)
            elif chunk_id:
                parts.setdefault(chunk_id, {})[int(more[0])] = row
            else:
                plans.append(row)
        if plans:
            self._finish(plans)
            return self.rows(token, tenant, service, table)
        chunks = [self._chunk(row, parts.get(row.text("chunk_id"), {})) for row in held]
        chunks.sort(key=lambda chunk: chunk.chunk_id)
        chunks.sort(key=lambda chunk: (chunk.start, chunk.end), reverse=True)
        return chunks

    def split(self, chunk: Chunk, parts: Sequence[Chunk], *, now: datetime) -> list[Chunk]:
        """See Ledger.split.

        Raises:
            StoreError: There are more than 99 parts.
        """
        where = _where(chunk)
        pause = Pause(f"others keep changing chunk {chunk.chunk_id}", where)
        while True:
            held = self._database.get(CHUNK_PROGRESS, _key(chunk), where)
            if held is None or not _splittable(held):
                return []
            first = dataclasses.replace(parts[0], requests=held.number("requests"))
            planned: dict[Key, Chunk] = {}
            for part in (first, *parts[1:]):
                planned.setdefault(_key(part), dataclasses.replace(part, planned_at=now))
            found = self._database.get_many(CHUNK_PROGRESS, planned, where)
            writes: list[Write] = [Delete(CHUNK_PROGRESS, held)]
            for key, part in planned.items():
                if key not in found:
                    writes += _puts(_items(_checked(part)))
            if self._database.transact(writes, where) is None:
                stored = {key: self._chunk(row) for key, row in found.items()}
                return [stored.get(key) or planned[key] for key in map(_key, parts)]
            pause.wait()

    def begin(self, chunk: Chunk, *, now: datetime) -> Chunk:
        """See Ledger.begin. finished_at of an earlier attempt is cleared."""

        def change(stored: Chunk) -> Chunk:
            return dataclasses.replace(
                stored,
                state=ChunkState.RUNNING,
                attempts=stored.attempts + 1,
                started_at=now,
                finished_at=None,
                error=None,
                as_of=now if stored.cursor is None else stored.as_of,
            )

        return self._change(chunk, change)

    def restart(self, chunk: Chunk, *, now: datetime) -> Chunk:
        """See Ledger.restart. `objects` still names what was written before."""

        def change(stored: Chunk) -> Chunk:
            return dataclasses.replace(
                stored, cursor=None, rows=0, stored=0, source_count=None, objects=(), as_of=now
            )

        return self._change(chunk, change)

    def progress(
        self,
        chunk: Chunk,
        *,
        cursor: str,
        rows: int,
        stored: int,
        requests: int,
        objects: Sequence[str],
        now: datetime,
    ) -> Chunk:
        """See Ledger.progress. `now` is not stored: no attribute holds it."""
        to_text(now)

        def change(held: Chunk) -> Chunk:
            return dataclasses.replace(
                held,
                cursor=cursor,
                rows=held.rows + rows,
                stored=held.stored + stored,
                requests=held.requests + requests,
                objects=(*held.objects, *objects),
            )

        return self._change(chunk, change, objects)

    def complete(
        self, chunk: Chunk, *, source_count: int | None, requests: int, now: datetime
    ) -> Chunk:
        """See Ledger.complete."""

        def change(stored: Chunk) -> Chunk:
            return dataclasses.replace(
                stored,
                state=ChunkState.COMPLETED,
                source_count=source_count,
                requests=stored.requests + requests,
                finished_at=now,
            )

        return self._change(chunk, change)

    def fail(self, chunk: Chunk, *, error: str, requests: int, now: datetime) -> Chunk:
        """See Ledger.fail. Characters that are not valid Unicode become `?`; of a text that is
        very long, the beginning is kept."""
        text = error[:_LONGEST_ERROR].encode("utf-8", "replace").decode("utf-8")

        def change(stored: Chunk) -> Chunk:
            spent = dataclasses.replace(stored, requests=stored.requests + requests)
            if stored.state is ChunkState.COMPLETED:
                return spent
            return dataclasses.replace(spent, state=ChunkState.FAILED, error=text, finished_at=now)

        return self._change(chunk, change)

    def release(self, chunk: Chunk, *, requests: int) -> Chunk:
        """See Ledger.release."""

        def change(stored: Chunk) -> Chunk:
            running = stored.state is ChunkState.RUNNING
            return dataclasses.replace(
                stored,
                state=ChunkState.PLANNED if running else stored.state,
                requests=stored.requests + requests,
            )

        return self._change(chunk, change)

    def resting(self, tenant: str, service: str, table: str, *, before: datetime) -> list[Chunk]:
        """See Ledger.resting."""
        limit = to_text(before)
        where = Where(tenant, service, table)
        open_ = self._places(tenant, "open", service, table, attributes=(_SORT,))
        found = self._database.get_many(CHUNK_PROGRESS, (row.key for row in open_), where)
        chunks = [
            self._chunk(row)
            for row in found.values()
            if _place_of(row) == "open" and _touched(row) < limit
        ]
        return sorted(chunks, key=lambda chunk: (chunk.start, chunk.token, chunk.chunk_id))

    def covered(
        self, tenant: str, service: str | None = None, table: str | None = None
    ) -> list[Covered]:
        """See Ledger.covered. About a call for each 2,000 chunks.

        A chunk that was completed without ever being begun counts as of its planning: that is
        before its fetch, so it promises less, never more.
        """
        found = []
        for row in self._places(tenant, "completed", service, table):
            own_service, own_table = row.key[1].split("#")[:2]
            if table in (None, own_table):
                found.append((own_service, _covered(row, own_table)))
        found.sort(key=_covered_order)
        return [covered for _, covered in found]

    def stretches(self, tenant: str, service: str, table: str) -> list[tuple[datetime, datetime]]:
        """See Ledger.stretches. The index is in order of the start."""
        merged: list[tuple[datetime, datetime]] = []
        for row in self._places(
            tenant, "completed", service, table, ("window_start", "window_end", "kind")
        ):
            start, end = row.moment("window_start"), row.moment("window_end")
            if row.text("kind") not in COVERING or start >= end:
                continue
            if not merged or start > merged[-1][1]:
                merged.append((start, end))
            elif end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        return merged

    def objects(self, tenant: str, service: str, table: str, partition: str) -> list[str]:
        """See Ledger.objects. Sorted, each once; those written before a restart are among them."""
        parts = self._database.query(
            CHUNK_PROGRESS,
            tenant,
            _parts_place(service, table, partition),
            index=_PLACES,
            attributes=("objects",),
            where=Where(tenant, service, table),
        )
        return sorted({name for part in parts for name in part.texts("objects")})

    def forget(self, tenant: str) -> int:
        """See Ledger.forget."""
        where = Where(tenant)
        rows = self._database.query(CHUNK_PROGRESS, tenant, attributes=(_SORT,), where=where)
        keys = [row.key for row in rows]
        self._database.remove(CHUNK_PROGRESS, keys, where)
        return sum(key[1].count("#") == 3 for key in keys)

    # Changes of one chunk.

    def _change(
        self, chunk: Chunk, change: Callable[[Chunk], Chunk], written: Sequence[str] = ()
    ) -> Chunk:
        """Replaces the row by what `change` makes of it; `written` are objects to append."""
        where, key = _where(chunk), _key(chunk)
        pause = Pause(f"others keep changing chunk {chunk.chunk_id}", where)
        held = self._database.get(CHUNK_PROGRESS, key, where)
        while True:
            if held is None:
                raise StoreError(
                    f"the ledger has no chunk {chunk.chunk_id} of token {chunk.token}",
                    where=where,
                    hint="plan it first; nothing was written",
                )
            before = self._chunk(held)
            after = change(before)
            refused = self._database.transact(_replacing(held, before, after, written), where)
            if refused is None:
                return after
            pause.wait()
            held = refused[0] or self._database.get(CHUNK_PROGRESS, key, where)

    def _chunk(self, row: Row, parts: Mapping[int, Row] | None = None) -> Chunk:
        """The chunk of a row, with the objects that it shows; reads the parts that are not given.

        Raises:
            StoreError: The row or a part is unreadable, or a part is not there.
        """
        numbers = range(row.number("first_part", 0), row.number("next_part", 0))
        given = parts or {}
        if any(number not in given for number in numbers):
            own = self._database.query(CHUNK_PROGRESS, row.key[0], f"{row.key[1]}#")
            given = {int(part.key[1].rpartition("#")[2]): part for part in own}
        objects: list[str] = []
        for number in numbers:
            if number not in given:
                raise StoreError(
                    f"table {row.table}, item {'/'.join(row.key)}: the item of its objects"
                    f" {_part_number(number)} is not there",
                    where=Where(row.key[0]),
                    hint="AVESA writes them together: restore the table to a moment before",
                )
            objects += given[number].texts("objects")
        return _chunk(row, tuple(objects))

    def _places(
        self,
        tenant: str,
        kind: str,
        service: str | None,
        table: str | None,
        attributes: Sequence[str] = (),
    ) -> Iterator[Row]:
        """Entries of the index, in order of service, table and start."""
        prefix = f"{kind}#"
        if service is not None:
            prefix += f"{service}#" if table is None else f"{service}#{table}#"
        return self._database.query(
            CHUNK_PROGRESS,
            tenant,
            prefix,
            index=_PLACES,
            attributes=attributes,
            where=Where(tenant, service, table),
        )

    # Plans.

    def _insert_many(self, chunks: Mapping[Key, Sequence[Item]]) -> None:
        """Inserts those that are not there: all of them at once for whoever reads rows."""
        if len(chunks) > _MOST_PLANNED:
            raise StoreError(
                f"{len(chunks)} chunks cannot be planned at once",
                hint=f"at most {_MOST_PLANNED}: ask for fewer partitions, or larger chunks; none "
                "is planned",
            )
        plans = list(_plans(chunks))
        if self._database.transact([Put(CHUNK_PROGRESS, plan) for plan in plans]) is not None:
            raise StoreError("a plan of chunks has the id of another", hint="run it again")
        for tenant, sort in dict.fromkeys(map(_key_of, plans)):
            self._finish(self._plans(tenant, sort.partition("##")[0]))

    def _plans(self, tenant: str, group: str) -> list[Row]:
        """Plans of which not all rows may be there yet."""
        return list(self._database.query(CHUNK_PROGRESS, tenant, f"{group}##"))

    def _finish(self, plans: Iterable[Row]) -> None:
        """Makes the rows of plans, and removes the plans.

        Rows are made only while the plan is there: afterwards one that is missing was split.
        """
        for plan in plans:
            waiting = [_planned(plan, text) for text in plan.texts("chunks")]
            pause = Pause("others keep making the rows of the same plan", Where(plan.key[0]))
            there = True
            while waiting and there:
                group = _first(waiting)
                writes = [put for items in group for put in _puts(items)]
                refused = self._database.transact([Unchanged(CHUNK_PROGRESS, plan), *writes])
                if refused is None:
                    waiting = waiting[len(group) :]
                    continue
                keys = [_key_of(items[0]) for items in group]
                found = self._database.get_many(CHUNK_PROGRESS, [plan.key, *keys])
                there = plan.key in found
                waiting = [items for items in waiting if _key_of(items[0]) not in found]
                pause.wait()
            if there:
                self._database.delete(CHUNK_PROGRESS, plan)


def _checked(chunk: Chunk) -> Chunk:
    checked("tenant", chunk.tenant)
    checked("service", chunk.service)
    checked("table", chunk.table)
    for what, text in (
        ("token", chunk.token),
        ("chunk_id", chunk.chunk_id),
        ("partition", chunk.partition),
    ):
        if not text or "#" in text:
            raise ConfigurationError(
                f"{text!r} cannot be the {what} of a chunk",
                where=_where(chunk),
                hint="it is a part of a key in DynamoDB: not empty, and without '#'",
            )
    return chunk


def _where(chunk: Chunk) -> Where:
    return Where(chunk.tenant, chunk.service, chunk.table)


def _group(chunk: Chunk) -> tuple[str, str]:
    return chunk.tenant, f"{chunk.service}#{chunk.table}#{chunk.token}"


def _key(chunk: Chunk) -> Key:
    tenant, group = _group(chunk)
    return tenant, f"{group}#{chunk.chunk_id}"


def _key_of(item: Item) -> tuple[str, str]:
    return item[_TENANT], item[_SORT]


def _items(chunk: Chunk) -> list[Item]:
    """A new chunk's row, and the parts of its objects."""
    parts = list(_parts(chunk, 0, chunk.objects))
    tenant, sort = _key(chunk)
    return [{_TENANT: tenant, _SORT: sort, **_attributes(chunk, 0, len(parts))}, *parts]


def _puts(items: Sequence[Item]) -> list[Write]:
    """Inserts a new chunk."""
    row, *parts = items
    return [Put(CHUNK_PROGRESS, row), *(Put(CHUNK_PROGRESS, one, anyhow=True) for one in parts)]


def _replacing(held: Row, before: Chunk, after: Chunk, written: Sequence[str]) -> list[Write]:
    first, next_part = held.number("first_part", 0), held.number("next_part", 0)
    if before.objects and not after.objects:
        first = next_part
    parts = list(_parts(after, next_part, written))
    row = {**held.item, **_attributes(after, first, next_part + len(parts))}
    return [
        Put(CHUNK_PROGRESS, row, held),
        *(Put(CHUNK_PROGRESS, part, anyhow=True) for part in parts),
    ]


def _attributes(chunk: Chunk, first_part: int, next_part: int) -> Item:
    return {
        "place": _place(chunk),
        "job_id": chunk.token,
        "service": chunk.service,
        "table_name": chunk.table,
        "chunk_id": chunk.chunk_id,
        "partition": chunk.partition,
        "kind": chunk.kind,
        "window_start": to_text(chunk.start),
        "window_end": to_text(chunk.end),
        "status": chunk.state.value,
        "cursor": chunk.cursor,
        "records_processed": chunk.rows,
        "records_stored": chunk.stored,
        "source_count": chunk.source_count,
        "requests": chunk.requests,
        "attempts": chunk.attempts,
        "error_message": chunk.error,
        "planned_at": optional_text(chunk.planned_at),
        "started_at": optional_text(chunk.started_at),
        "finished_at": optional_text(chunk.finished_at),
        "as_of": optional_text(chunk.as_of),
        "first_part": first_part,
        "next_part": next_part,
    }


def _place(chunk: Chunk) -> str | None:
    if chunk.state is ChunkState.COMPLETED:
        kind = "completed"
    elif chunk.cursor is not None:
        kind = "open"
    else:
        return None
    return f"{kind}#{chunk.service}#{chunk.table}#{to_text(chunk.start)}"


def _place_of(row: Row) -> str:
    place = row.maybe_text("place") or ""
    return place.partition("#")[0]


def _parts_place(service: str, table: str, partition: str) -> str:
    return f"objects#{service}#{table}#{partition}#"


def _parts(chunk: Chunk, first: int, objects: Sequence[str]) -> Iterator[Item]:
    tenant, sort = _key(chunk)
    for place, names in enumerate(_by_size(objects, _PART_BYTES)):
        yield {
            _TENANT: tenant,
            _SORT: f"{sort}#{_part_number(first + place)}",
            "place": _parts_place(chunk.service, chunk.table, chunk.partition),
            "objects": names,
        }


def _part_number(number: int) -> str:
    return f"{number:06}"


def _by_size(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """The texts in order, in lists of at most so many bytes (or of one text)."""
    own: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode("utf-8", "surrogatepass"))
        if own and size + length > most:
            yield own
            own, size = [], 0
        own.append(text)
        size += length
    if own:
        yield own


def _splittable(row: Row) -> bool:
    return (
        row.text("status") in (ChunkState.PLANNED, ChunkState.FAILED)
        and row.maybe_text("cursor") is None
        and row.number("next_part", 0) == 0
    )


def _touched(row: Row) -> str:
    """When it was begun or failed last."""
    return max(
        optional_text(row.maybe_moment(name)) or "" for name in ("started_at", "finished_at")
    )


def _plans(chunks: Mapping[Key, Sequence[Item]]) -> Iterator[Item]:
    groups: dict[tuple[str, str], list[str]] = {}
    for (tenant, sort), items in chunks.items():
        text = json.dumps(items, ensure_ascii=False, separators=(",", ":"))
        groups.setdefault((tenant, sort.rpartition("#")[0]), []).append(text)
    for (tenant, group), texts in groups.items():
        for own in _by_size(texts, _PLAN_BYTES):
            yield {_TENANT: tenant, _SORT: f"{group}##{secrets.token_hex(6)}", "chunks": own}


def _planned(plan: Row, text: str) -> list[Item]:
    """A chunk's items, as a plan has them."""
    try:
        items: list[Item] = json.loads(text)
    except ValueError as error:
        raise StoreError(
            f"table {plan.table}, item {'/'.join(plan.key)}: attribute chunks is no JSON",
            hint="AVESA writes it whole: look who else writes there, or restore the item",
        ) from error
    return items


def _first(chunks: Sequence[Sequence[Item]]) -> Sequence[Sequence[Item]]:
    """As many of the first as fit into a transaction with one item more; at least one."""
    room = MOST_IN_A_TRANSACTION - 1
    for place, items in enumerate(chunks):
        room -= len(items)
        if room < 0 and place:
            return chunks[:place]
    return chunks


def _covered(row: Row, table: str) -> Covered:
    return Covered(
        table,
        row.text("partition"),
        row.text("kind"),
        row.moment("window_start"),
        row.moment("window_end"),
        row.maybe_moment("as_of") or row.moment("planned_at"),
        row.number("records_processed", 0),
        row.maybe_number("source_count"),
    )


def _covered_order(found: tuple[str, Covered]) -> tuple[Any, ...]:
    service, one = found
    count = -1 if one.source_count is None else one.source_count
    return (
        one.table, one.start, one.as_of, service, one.end, one.kind, one.partition, one.rows, count,
    )  # fmt: skip


def _chunk(row: Row, objects: tuple[str, ...]) -> Chunk:
    state = _STATES.get(row.text("status"))
    if state is None:
        raise StoreError(
            f"table {row.table}, item {'/'.join(row.key)}: attribute status is"
            f" {row.text('status')!r}",
            hint=f"known: {', '.join(_STATES)}",
        )
    return Chunk(
        token=row.text("job_id"),
        tenant=row.text(_TENANT),
        service=row.text("service"),
        table=row.text("table_name"),
        chunk_id=row.text("chunk_id"),
        partition=row.text("partition"),
        kind=row.text("kind"),
        start=row.moment("window_start"),
        end=row.moment("window_end"),
        state=state,
        cursor=row.maybe_text("cursor"),
        rows=row.number("records_processed", 0),
        stored=row.number("records_stored", 0),
        source_count=row.maybe_number("source_count"),
        requests=row.number("requests", 0),
        objects=objects,
        attempts=row.number("attempts", 0),
        error=row.maybe_text("error_message"),
        planned_at=row.maybe_moment("planned_at"),
        started_at=row.maybe_moment("started_at"),
        finished_at=row.maybe_moment("finished_at"),
        as_of=row.maybe_moment("as_of"),
    )
