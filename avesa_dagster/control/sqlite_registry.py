"""TenantServices and LastUpdated in SQLite: who is connected, and up to when we have asked."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from avesa_dagster.control.base import TenantService, Watermark
from avesa_dagster.control.sqlite_database import Database, to_micros, to_moment
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.names import checked

# AUTOINCREMENT: a number is never given twice, not even after its row was deleted by hand.
SCHEMA = (
    """
    CREATE TABLE TenantServices (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        generation INTEGER NOT NULL,
        enabled INTEGER NOT NULL,
        history_start INTEGER NOT NULL,
        tables TEXT NOT NULL,
        requests_per_minute INTEGER,
        connected_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (tenant, service)
    ) STRICT
    """,
    """
    CREATE TABLE LastUpdated (
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        table_name TEXT NOT NULL,
        upper INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (tenant, service, table_name)
    ) STRICT, WITHOUT ROWID
    """,
)

_SERVICE_COLUMNS = (
    "tenant, service, number, generation, enabled, history_start, tables, requests_per_minute,"
    " connected_at, updated_at"
)


class SqliteRegistry:
    """Implements `control.base.Registry`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def connect(
        self,
        tenant: str,
        service: str,
        *,
        history_start: datetime,
        tables: Iterable[str],
        requests_per_minute: int | None,
        now: datetime,
    ) -> TenantService:
        """See Registry.connect.

        Raises:
            ConfigurationError: If a name is invalid, a time has no zone, or the budget is below 1.
            StoreError: If the file cannot be written.
        """
        where = Where(checked("tenant", tenant), checked("service", service))
        if requests_per_minute is not None and requests_per_minute < 1:
            raise ConfigurationError(
                f"requests_per_minute is {requests_per_minute}",
                where=where,
                hint="set at least 1, or none for the service's own budget",
            )
        names = json.dumps(sorted({checked("table", table) for table in tables}))
        start, moment = to_micros(history_start), to_micros(now)
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO TenantServices (tenant, service, generation, enabled, history_start,"
                " tables, requests_per_minute, connected_at, updated_at)"
                " SELECT ?, ?, 0, 1, ?, '[]', NULL, ?, ? WHERE NOT EXISTS"
                " (SELECT 1 FROM TenantServices WHERE tenant = ? AND service = ?)",
                (tenant, service, start, moment, moment, tenant, service),
            )
            row = connection.execute(
                "UPDATE TenantServices SET generation = generation + 1, enabled = 1,"
                " history_start = min(history_start, ?), tables = ?, requests_per_minute = ?,"
                " updated_at = ? WHERE tenant = ? AND service = ?"
                f" RETURNING {_SERVICE_COLUMNS}",
                (start, names, requests_per_minute, moment, tenant, service),
            ).fetchone()
        return _tenant_service(row)

    def disconnect(self, tenant: str, service: str, *, now: datetime) -> TenantService | None:
        """See Registry.disconnect."""
        return self._switch(tenant, service, False, now)

    def enable(self, tenant: str, service: str, *, now: datetime) -> TenantService | None:
        """See Registry.enable."""
        return self._switch(tenant, service, True, now)

    def _switch(
        self, tenant: str, service: str, enabled: bool, now: datetime
    ) -> TenantService | None:
        moment = to_micros(now)
        with self._database.write() as connection:
            row = connection.execute(
                "UPDATE TenantServices SET enabled = ?, updated_at = ?"
                f" WHERE tenant = ? AND service = ? RETURNING {_SERVICE_COLUMNS}",
                (enabled, moment, tenant, service),
            ).fetchone()
        return None if row is None else _tenant_service(row)

    def get(self, tenant: str, service: str) -> TenantService | None:
        """See Registry.get."""
        with self._database.read() as connection:
            row = connection.execute(
                f"SELECT {_SERVICE_COLUMNS} FROM TenantServices WHERE tenant = ? AND service = ?",
                (tenant, service),
            ).fetchone()
        return None if row is None else _tenant_service(row)

    def all(self) -> list[TenantService]:
        """See Registry.all."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_SERVICE_COLUMNS} FROM TenantServices ORDER BY tenant, service"
            ).fetchall()
        return [_tenant_service(row) for row in rows]

    def forget(self, tenant: str) -> int:
        """See Registry.forget."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM TenantServices WHERE tenant = ? AND NOT enabled", (tenant,)
            ).rowcount


class SqliteWatermarks:
    """Implements `control.base.Watermarks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, tenant: str, service: str, table: str) -> Watermark | None:
        """See Watermarks.get."""
        with self._database.read() as connection:
            return _watermark(connection, tenant, service, table)

    def of(self, tenant: str, service: str) -> dict[str, Watermark]:
        """See Watermarks.of."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT table_name, upper, updated_at FROM LastUpdated"
                " WHERE tenant = ? AND service = ?",
                (tenant, service),
            ).fetchall()
        return {
            table: Watermark(tenant, service, table, to_moment(upper), to_moment(updated))
            for table, upper, updated in rows
        }

    def advance(
        self,
        tenant: str,
        service: str,
        table: str,
        *,
        lower: datetime,
        upper: datetime,
        now: datetime,
    ) -> Watermark:
        """See Watermarks.advance.

        Raises:
            ConfigurationError: If a name is invalid, a time has no zone, or lower is after upper.
            StoreError: If the file cannot be written.
        """
        where = Where(
            checked("tenant", tenant), checked("service", service), checked("table", table)
        )
        begin, end, moment = to_micros(lower), to_micros(upper), to_micros(now)
        if begin > end:
            raise ConfigurationError(
                f"the window from {lower.isoformat()} to {upper.isoformat()} ends before it begins",
                where=where,
            )
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO LastUpdated VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET upper = excluded.upper,"
                " updated_at = excluded.updated_at WHERE ? <= upper AND upper < excluded.upper",
                (tenant, service, table, end, moment, begin),
            )
            held = _watermark(connection, tenant, service, table)
        assert held is not None, "inserted above, in the same transaction"
        return held

    def forget(self, tenant: str) -> int:
        """See Watermarks.forget."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM LastUpdated WHERE tenant = ?", (tenant,)
            ).rowcount


def _watermark(
    connection: sqlite3.Connection, tenant: str, service: str, table: str
) -> Watermark | None:
    row = connection.execute(
        "SELECT upper, updated_at FROM LastUpdated"
        " WHERE tenant = ? AND service = ? AND table_name = ?",
        (tenant, service, table),
    ).fetchone()
    if row is None:
        return None
    return Watermark(tenant, service, table, to_moment(row[0]), to_moment(row[1]))


def _tenant_service(row: tuple[Any, ...]) -> TenantService:
    tenant, service, number, generation, enabled, start, tables, budget, connected, updated = row
    return TenantService(
        tenant=tenant,
        service=service,
        number=number,
        generation=generation,
        enabled=bool(enabled),
        history_start=to_moment(start),
        tables=tuple(json.loads(tables)),
        requests_per_minute=budget,
        connected_at=to_moment(connected),
        updated_at=to_moment(updated),
    )
