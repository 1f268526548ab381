"""ChunkProgress in SQLite: which windows were fetched, how far, when and as of what."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from avesa_dagster.control.base import Chunk, ChunkState, Covered
from avesa_dagster.control.sqlite_database import Database, to_micros, to_moment
from avesa_dagster.errors import StoreError, Where
from avesa_dagster.names import checked

# The key begins with the tenant, so that no question about one tenant reads another's rows.
# forgotten_objects: written before a restart. No chunk shows them any more, but they lie in the
# lake and are observations, so `objects` still names them.
SCHEMA = (
    """
    CREATE TABLE ChunkProgress (
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        table_name TEXT NOT NULL,
        token TEXT NOT NULL,
        chunk_id TEXT NOT NULL,
        partition TEXT NOT NULL,
        kind TEXT NOT NULL,
        window_start INTEGER NOT NULL,
        window_end INTEGER NOT NULL,
        state TEXT NOT NULL,
        cursor TEXT,
        rows INTEGER NOT NULL,
        stored INTEGER NOT NULL,
        source_count INTEGER,
        requests INTEGER NOT NULL,
        objects TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        error TEXT,
        planned_at INTEGER NOT NULL,
        started_at INTEGER,
        finished_at INTEGER,
        as_of INTEGER,
        forgotten_objects TEXT NOT NULL DEFAULT '[]',
        PRIMARY KEY (tenant, service, table_name, token, chunk_id)
    ) STRICT
    """,
    """
    CREATE INDEX ChunkProgress_covered ON ChunkProgress (tenant, service, table_name)
    WHERE state = 'completed'
    """,
    """
    CREATE INDEX ChunkProgress_partition
    ON ChunkProgress (tenant, service, table_name, partition)
    """,
)

# In the order of `covered` and with all that it reads (as_of, planned_at and state, too), so that
# it sorts nothing and touches no row: 25,000 chunks of one table come in 30 ms.
UPGRADE_2 = (
    """
    CREATE INDEX ChunkProgress_coverage ON ChunkProgress (
        tenant, service, table_name, window_start, coalesce(as_of, planned_at), window_end, kind,
        partition, rows, source_count, as_of, planned_at, state
    ) WHERE state = 'completed'
    """,
    "DROP INDEX ChunkProgress_covered",
)

_STATES = {state.value: state for state in ChunkState}
_names = msgspec.json.Decoder(list[str])
_KEY = "tenant = ? AND service = ? AND table_name = ? AND token = ? AND chunk_id = ?"
_COLUMNS = (
    "tenant, service, table_name, token, chunk_id, partition, kind, window_start, window_end,"
    " state, cursor, rows, stored, source_count, requests, objects, attempts, error, planned_at,"
    " started_at, finished_at, as_of"
)
_INSERT = (
    f"INSERT INTO ChunkProgress ({_COLUMNS})"
    f" VALUES ({', '.join('?' * len(_COLUMNS.split(',')))}) ON CONFLICT DO NOTHING"
)
_UPDATE = (
    "UPDATE ChunkProgress SET state = ?, cursor = ?, rows = ?, stored = ?, source_count = ?,"
    " requests = ?, objects = ?, attempts = ?, error = ?, planned_at = ?, started_at = ?,"
    f" finished_at = ?, as_of = ?, forgotten_objects = ? WHERE {_KEY}"
)


class SqliteLedger:
    """Implements `control.base.Ledger`. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def plan(self, chunks: Sequence[Chunk], *, now: datetime) -> list[Chunk]:
        """See Ledger.plan. A new row's planned_at is `now`.

        Raises:
            ConfigurationError: If a name is invalid or a time has no zone; no row is inserted.
            StoreError: If the file cannot be written; no row is inserted.
        """
        planned = [dataclasses.replace(chunk, planned_at=now) for chunk in chunks]
        for chunk in planned:
            checked("tenant", chunk.tenant)
            checked("service", chunk.service)
            checked("table", chunk.table)
        if not planned:
            return []
        with self._database.write() as connection:
            connection.executemany(
                _INSERT, [(*_key(chunk), *_frozen(chunk), *_moving(chunk)) for chunk in planned]
            )
            return [_stored(connection, chunk)[0] for chunk in planned]

    def rows(self, token: str, tenant: str, service: str, table: str) -> list[Chunk]:
        """See Ledger.rows."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM ChunkProgress"
                " WHERE tenant = ? AND service = ? AND table_name = ? AND token = ?"
                " ORDER BY window_start DESC, window_end DESC, chunk_id",
                (tenant, service, table, token),
            ).fetchall()
        return [_chunk(row) for row in rows]

    def split(self, chunk: Chunk, parts: Sequence[Chunk], *, now: datetime) -> list[Chunk]:
        """See Ledger.split."""
        with self._database.write() as connection:
            removed = connection.execute(
                f"DELETE FROM ChunkProgress WHERE {_KEY} AND cursor IS NULL"
                " AND objects = '[]' AND forgotten_objects = '[]'"
                " AND state IN ('planned', 'failed') RETURNING requests",
                _key(chunk),
            ).fetchone()
            if removed is None:
                return []
            first = dataclasses.replace(parts[0], requests=removed[0])
            planned = [dataclasses.replace(part, planned_at=now) for part in (first, *parts[1:])]
            connection.executemany(
                _INSERT, [(*_key(part), *_frozen(part), *_moving(part)) for part in planned]
            )
            return [_stored(connection, part)[0] for part in planned]

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

        return self._change(chunk, change, forget_objects=True)

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
        """See Ledger.progress. `now` is not stored: no column holds it."""
        to_micros(now)

        def change(held: Chunk) -> Chunk:
            return dataclasses.replace(
                held,
                cursor=cursor,
                rows=held.rows + rows,
                stored=held.stored + stored,
                requests=held.requests + requests,
                objects=(*held.objects, *objects),
            )

        return self._change(chunk, change)

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
        """See Ledger.fail. Characters that are not valid Unicode become `?`."""
        text = error.encode("utf-8", "replace").decode("utf-8")

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
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM ChunkProgress"
                " WHERE tenant = ? AND service = ? AND table_name = ? AND state <> 'completed'"
                " AND cursor IS NOT NULL"
                " AND max(coalesce(started_at, 0), coalesce(finished_at, 0)) < ?"
                " ORDER BY window_start, token, chunk_id",
                (tenant, service, table, to_micros(before)),
            ).fetchall()
        return [_chunk(row) for row in rows]

    def covered(
        self, tenant: str, service: str | None = None, table: str | None = None
    ) -> list[Covered]:
        """See Ledger.covered.

        A chunk that was completed without ever being begun counts as of its planning: that is
        before its fetch, so it promises less, never more.
        """
        conditions, values = ["tenant = ?", "state = 'completed'"], [tenant]
        if service is not None:
            conditions.append("service = ?")
            values.append(service)
        if table is not None:
            conditions.append("table_name = ?")
            values.append(table)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT table_name, partition, kind, window_start, window_end,"
                " coalesce(as_of, planned_at) AS seen, rows, source_count FROM ChunkProgress"
                f" WHERE {' AND '.join(conditions)}"
                " ORDER BY table_name, window_start, seen, service, window_end, kind, partition,"
                " rows, source_count",
                values,
            )
            return [
                Covered(n, partition, kind, to_moment(a), to_moment(z), to_moment(seen), r, count)
                for n, partition, kind, a, z, seen, r, count in rows
            ]

    def stretches(self, tenant: str, service: str, table: str) -> list[tuple[datetime, datetime]]:
        """See Ledger.stretches. Half a microsecond a chunk."""
        merged: list[tuple[int, int]] = []
        with self._database.read() as connection:
            for start, end in connection.execute(
                "SELECT window_start, window_end FROM ChunkProgress"
                " WHERE tenant = ? AND service = ? AND table_name = ? AND state = 'completed'"
                " AND kind IN ('full', 'window') AND window_start < window_end"
                " ORDER BY window_start",
                (tenant, service, table),
            ):
                if not merged or start > merged[-1][1]:
                    merged.append((start, end))
                elif end > merged[-1][1]:
                    merged[-1] = (merged[-1][0], end)
        return [(to_moment(start), to_moment(end)) for start, end in merged]

    def objects(self, tenant: str, service: str, table: str, partition: str) -> list[str]:
        """See Ledger.objects. Sorted, each once; those written before a restart are among them."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT objects, forgotten_objects FROM ChunkProgress"
                " WHERE tenant = ? AND service = ? AND table_name = ? AND partition = ?",
                (tenant, service, table, partition),
            ).fetchall()
        return sorted({name for row in rows for names in row for name in json.loads(names)})

    def forget(self, tenant: str) -> int:
        """See Ledger.forget."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM ChunkProgress WHERE tenant = ?", (tenant,)
            ).rowcount

    def _change(
        self, chunk: Chunk, change: Callable[[Chunk], Chunk], *, forget_objects: bool = False
    ) -> Chunk:
        with self._database.write() as connection:
            before, forgotten = _stored(connection, chunk)
            after = change(before)
            if forget_objects:
                forgotten = [*forgotten, *before.objects]
            connection.execute(_UPDATE, (*_moving(after), json.dumps(forgotten), *_key(after)))
        return after


def _key(chunk: Chunk) -> tuple[str, ...]:
    return chunk.tenant, chunk.service, chunk.table, chunk.token, chunk.chunk_id


def _frozen(chunk: Chunk) -> tuple[str | int, ...]:
    return chunk.partition, chunk.kind, to_micros(chunk.start), to_micros(chunk.end)


def _moving(chunk: Chunk) -> tuple[str | int | None, ...]:
    return (
        chunk.state.value,
        chunk.cursor,
        chunk.rows,
        chunk.stored,
        chunk.source_count,
        chunk.requests,
        json.dumps(chunk.objects),
        chunk.attempts,
        chunk.error,
        _optional_micros(chunk.planned_at),
        _optional_micros(chunk.started_at),
        _optional_micros(chunk.finished_at),
        _optional_micros(chunk.as_of),
    )


def _stored(connection: sqlite3.Connection, chunk: Chunk) -> tuple[Chunk, list[str]]:
    row = connection.execute(
        f"SELECT {_COLUMNS}, forgotten_objects FROM ChunkProgress WHERE {_KEY}", _key(chunk)
    ).fetchone()
    if row is None:
        raise StoreError(
            f"the ledger has no chunk {chunk.chunk_id} of token {chunk.token}",
            where=Where(chunk.tenant, chunk.service, chunk.table),
            hint="plan it first; nothing was written",
        )
    forgotten: list[str] = json.loads(row[-1])
    return _chunk(row[:-1]), forgotten


def _chunk(row: tuple[Any, ...]) -> Chunk:
    """The chunk of a row of `_COLUMNS`. Made thousands of times for one answer: kept quick."""
    (tenant, service, table, token, chunk_id, partition, kind, start, end, state, cursor) = row[:11]
    (rows, stored, source_count, requests, objects, attempts, error) = row[11:18]
    planned_at, started_at, finished_at, as_of = row[18:]
    return Chunk(
        token,
        tenant,
        service,
        table,
        chunk_id,
        partition,
        kind,
        to_moment(start),
        to_moment(end),
        _STATES[state],
        cursor,
        rows,
        stored,
        source_count,
        requests,
        tuple(_names.decode(objects)),
        attempts,
        error,
        None if planned_at is None else to_moment(planned_at),
        None if started_at is None else to_moment(started_at),
        None if finished_at is None else to_moment(finished_at),
        None if as_of is None else to_moment(as_of),
    )


def _optional_micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)
