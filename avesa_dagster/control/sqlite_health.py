"""The state of health in SQLite: breakers, counters, alarms and schema drift."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control.health import (
    Alarm,
    Breaker,
    BreakerState,
    Drift,
    Fields,
    FieldSeen,
    Sample,
)
from avesa_dagster.control.health_rules import (
    after_failure,
    counter_labels,
    probing,
    storable,
)
from avesa_dagster.control.sqlite_database import Database, to_micros, to_moment
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.names import checked

# Breakers: no row is a closed one. Counters: labels is a JSON object sorted by name; tenant is its
# label of that name. DriftFields: document is the JSON list of an endpoint's fields.
SCHEMA = (
    """
    CREATE TABLE Breakers (
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        state TEXT NOT NULL,
        failures INTEGER NOT NULL,
        reason TEXT NOT NULL,
        credentials INTEGER NOT NULL,
        opened_at INTEGER,
        probe_at INTEGER,
        openings INTEGER NOT NULL,
        PRIMARY KEY (tenant, service)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE Counters (
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        tenant TEXT,
        value REAL NOT NULL,
        PRIMARY KEY (name, labels)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX Counters_tenant ON Counters (tenant) WHERE tenant IS NOT NULL",
    """
    CREATE TABLE Alarms (
        key TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        text TEXT NOT NULL,
        since INTEGER NOT NULL,
        said_at INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE DriftFields (
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        table_name TEXT NOT NULL,
        document BLOB NOT NULL,
        PRIMARY KEY (tenant, service, table_name)
    ) STRICT
    """,
    """
    CREATE TABLE DriftLog (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        table_name TEXT NOT NULL,
        kind TEXT NOT NULL,
        path TEXT NOT NULL,
        detail TEXT NOT NULL,
        seen_at INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX DriftLog_tenant ON DriftLog (tenant, seen_at)",
)

_fields = msgspec.json.Decoder(list[FieldSeen])


class SqliteBreakers:
    """Implements `control.health.Breakers`. Each method is one transaction.

    Args:
        settings: When one opens, and for how long.
    """

    def __init__(self, database: Database, settings: BreakerSettings) -> None:
        self._database = database
        self._settings = settings

    def get(self, tenant: str, service: str) -> Breaker:
        """See Breakers.get."""
        with self._database.read() as connection:
            return _breaker(connection, tenant, service) or Breaker(tenant, service)

    def all(self) -> list[Breaker]:
        """See Breakers.all. Ordered by (tenant, service)."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM Breakers ORDER BY tenant, service").fetchall()
        return [_to_breaker(row) for row in rows]

    def failed(
        self,
        tenant: str,
        service: str,
        reason: str,
        *,
        credentials: bool,
        now: datetime,
        at_once: bool = False,
    ) -> Breaker:
        """See Breakers.failed. Characters of `reason` that are not valid Unicode become `?`.

        While it is open, further failures are counted and change no time.

        Raises:
            ConfigurationError: A name is invalid, or `now` has no zone.
            StoreError: The file cannot be written.
        """
        checked("tenant", tenant)
        checked("service", service)
        with self._database.write() as connection:
            before = _breaker(connection, tenant, service) or Breaker(tenant, service)
            after = after_failure(
                before,
                self._settings,
                reason,
                credentials=credentials,
                now=now,
                at_once=at_once,
            )
            _put_breaker(connection, after)
        return after

    def succeeded(self, tenant: str, service: str) -> Breaker:
        """See Breakers.succeeded. Writes nothing if nothing was wrong."""
        with self._database.read() as connection:
            known = _breaker(connection, tenant, service)
        if known is not None:
            with self._database.write() as connection:
                connection.execute(
                    "DELETE FROM Breakers WHERE tenant = ? AND service = ?", (tenant, service)
                )
        return Breaker(tenant, service)

    def probe(self, tenant: str, service: str, *, now: datetime) -> bool:
        """See Breakers.probe. `probe_at` is then when the prober counts as dead.

        Raises:
            ConfigurationError: `now` has no zone.
            StoreError: The file cannot be written.
        """
        if not _due(self.get(tenant, service), now):  # asked often: the answer mostly needs no lock
            return False
        with self._database.write() as connection:
            known = _breaker(connection, tenant, service)
            if known is None or not _due(known, now):
                return False
            _put_breaker(connection, probing(known, now))
        return True

    def forget(self, tenant: str) -> int:
        """See Breakers.forget. Returns how many rows were removed."""
        return _forget(self._database, tenant, "Breakers")


class SqliteCounters:
    """Implements `control.health.Counters`. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, amounts: Sequence[Sample]) -> None:
        """See Counters.add. A counter that is named twice gets both amounts.

        Raises:
            ConfigurationError: An amount is negative or no number, or a label is named twice;
                nothing is added.
            StoreError: The file cannot be written; nothing is added.
        """
        rows = [_counter_row(amount) for amount in amounts]
        if not rows:
            return
        with self._database.write() as connection:
            connection.executemany(
                "INSERT INTO Counters VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET value = value + excluded.value",
                rows,
            )

    def all(self) -> list[Sample]:
        """See Counters.all. Ordered by (name, labels)."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, labels, value FROM Counters").fetchall()
        samples = [
            Sample(name, tuple(json.loads(text).items()), value) for name, text, value in rows
        ]
        return sorted(samples, key=lambda sample: (sample.name, sample.labels))

    def forget(self, tenant: str) -> int:
        """See Counters.forget."""
        return _forget(self._database, tenant, "Counters")


class SqliteAlarms:
    """Implements `control.health.Alarms`. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Alarm]:
        """See Alarms.all. Ordered by (since, key)."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT key, tenant, text, since, said_at FROM Alarms ORDER BY since, key"
            ).fetchall()
        return [
            Alarm(key, tenant, text, to_moment(since), _optional_moment(said))
            for key, tenant, text, since, said in rows
        ]

    def put(self, *alarms: Alarm) -> None:
        """See Alarms.put.

        Raises:
            ConfigurationError: A time has no zone.
            StoreError: The file cannot be written.
        """
        rows = [
            (
                alarm.key,
                alarm.tenant,
                storable(alarm.text),
                to_micros(alarm.since),
                _optional_micros(alarm.said_at),
            )
            for alarm in alarms
        ]
        if rows:
            with self._database.write() as connection:
                connection.executemany("INSERT OR REPLACE INTO Alarms VALUES (?, ?, ?, ?, ?)", rows)

    def remove(self, *keys: str) -> None:
        """See Alarms.remove."""
        if keys:
            with self._database.write() as connection:
                connection.executemany("DELETE FROM Alarms WHERE key = ?", [(k,) for k in keys])

    def forget(self, tenant: str) -> int:
        """See Alarms.forget. Returns how many rows were removed."""
        return _forget(self._database, tenant, "Alarms")


class SqliteDriftLog:
    """Implements `control.health.DriftLog`. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def fields(self, tenant: str, service: str, table: str) -> dict[str, FieldSeen]:
        """See DriftLog.fields."""
        with self._database.read() as connection:
            return _known_fields(connection, tenant, service, table)

    def note(
        self,
        tenant: str,
        service: str,
        table: str,
        judge: Callable[[Fields], tuple[Fields, Sequence[Drift]]],
    ) -> list[Drift]:
        """See DriftLog.note. `judge` is called once, while no other process can write.

        Raises:
            ConfigurationError: A name is invalid, or a time has no zone; nothing is written.
            StoreError: The file cannot be written; nothing is written.
        """
        checked("tenant", tenant)
        checked("service", service)
        checked("table", table)
        with self._database.write() as connection:
            fields, drifts = judge(_known_fields(connection, tenant, service, table))
            connection.execute(
                "INSERT OR REPLACE INTO DriftFields VALUES (?, ?, ?, ?)",
                (tenant, service, table, _document(fields)),
            )
            connection.executemany(
                "INSERT INTO DriftLog (tenant, service, table_name, kind, path, detail, seen_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (d.tenant, d.service, d.table, d.kind, d.path, d.detail, to_micros(d.seen_at))
                    for d in drifts
                ],
            )
        return list(drifts)

    def log(
        self, tenant: str, service: str | None = None, table: str | None = None, *, limit: int = 100
    ) -> list[Drift]:
        """See DriftLog.log.

        Raises:
            ConfigurationError: `limit` is below 1.
        """
        if limit < 1:
            raise ConfigurationError(f"limit is {limit}", where=Where(tenant), hint="at least 1")
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT tenant, service, table_name, kind, path, detail, seen_at FROM DriftLog"
                " WHERE tenant = ? AND (? IS NULL OR service = ?) AND (? IS NULL OR table_name = ?)"
                " ORDER BY seen_at DESC, number DESC LIMIT ?",
                (tenant, service, service, table, table, limit),
            ).fetchall()
        return [
            Drift(whose, of, name, kind, path, detail, to_moment(seen))
            for whose, of, name, kind, path, detail, seen in rows
        ]

    def forget(self, tenant: str) -> int:
        """See DriftLog.forget."""
        return _forget(self._database, tenant, "DriftFields", "DriftLog")


def _breaker(connection: sqlite3.Connection, tenant: str, service: str) -> Breaker | None:
    row = connection.execute(
        "SELECT * FROM Breakers WHERE tenant = ? AND service = ?", (tenant, service)
    ).fetchone()
    return None if row is None else _to_breaker(row)


def _to_breaker(row: tuple[Any, ...]) -> Breaker:
    tenant, service, state, failures, reason, credentials, opened, probe, openings = row
    return Breaker(
        tenant=tenant,
        service=service,
        state=BreakerState(state),
        failures=failures,
        reason=reason,
        credentials=bool(credentials),
        opened_at=_optional_moment(opened),
        probe_at=_optional_moment(probe),
        openings=openings,
    )


def _put_breaker(connection: sqlite3.Connection, breaker: Breaker) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO Breakers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            breaker.tenant,
            breaker.service,
            breaker.state.value,
            breaker.failures,
            breaker.reason,
            breaker.credentials,
            _optional_micros(breaker.opened_at),
            _optional_micros(breaker.probe_at),
            breaker.openings,
        ),
    )


def _due(breaker: Breaker, now: datetime) -> bool:
    return breaker.probe_at is not None and to_micros(now) >= to_micros(breaker.probe_at)


def _counter_row(amount: Sample) -> tuple[str, str, str | None, float]:
    labels = counter_labels(amount)
    return amount.name, json.dumps(labels), labels.get("tenant"), amount.value


def _known_fields(
    connection: sqlite3.Connection, tenant: str, service: str, table: str
) -> dict[str, FieldSeen]:
    row = connection.execute(
        "SELECT document FROM DriftFields WHERE tenant = ? AND service = ? AND table_name = ?",
        (tenant, service, table),
    ).fetchone()
    return {} if row is None else {field.path: field for field in _fields.decode(row[0])}


def _document(fields: Fields) -> bytes:
    ordered = [fields[path] for path in sorted(fields)]
    for field in ordered:
        to_micros(field.first_seen)
        to_micros(field.last_seen)
    return msgspec.json.encode(ordered)


def _forget(database: Database, tenant: str, *tables: str) -> int:
    with database.write() as connection:
        return sum(
            connection.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,)).rowcount
            for table in tables
        )


def _optional_micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _optional_moment(micros: int | None) -> datetime | None:
    return None if micros is None else to_moment(micros)
