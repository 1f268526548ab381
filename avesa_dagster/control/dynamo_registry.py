"""TenantServices and LastUpdated in DynamoDB: who is connected, up to when we have asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from avesa_dagster.control.base import TenantService, Watermark
from avesa_dagster.control.dynamo_database import DynamoDatabase, Row, to_text
from avesa_dagster.control.dynamo_tables import HEALTH, LAST_UPDATED, TENANT_SERVICES
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.names import checked

_NUMBERS = ("numbers", TENANT_SERVICES.name)


class DynamoRegistry:
    """Implements `control.base.Registry`."""

    def __init__(self, database: DynamoDatabase) -> None:
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
        """See Registry.connect. Of numbers, some may be left out, none is given twice.

        Raises:
            ConfigurationError: If a name is invalid, a time has no zone, or the budget is below 1.
        """
        where = Where(checked("tenant", tenant), checked("service", service))
        if requests_per_minute is not None and requests_per_minute < 1:
            raise ConfigurationError(
                f"requests_per_minute is {requests_per_minute}",
                where=where,
                hint="set at least 1, or none for the service's own budget",
            )
        start, moment = to_text(history_start), to_text(now)
        given: Mapping[str, Any] = {
            "enabled": True,
            "tables": sorted({checked("table", table) for table in tables}),
            "requests_per_minute": requests_per_minute,
            "updated_at": moment,
        }
        new_number = cache(self._new_number)

        def connected(row: Row | None) -> Mapping[str, Any]:
            if row is None:
                return {
                    **given,
                    "number": new_number(),
                    "generation": 1,
                    "history_start": start,
                    "created_at": moment,
                }
            earlier = min(start, to_text(row.moment("history_start")))
            return {
                **given, "generation": row.number("generation") + 1, "history_start": earlier,
            }  # fmt: skip

        row = self._database.change(TENANT_SERVICES, (tenant, service), connected, where)
        assert row is not None, "written above"
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
        changes = {"enabled": enabled, "updated_at": to_text(now)}
        row = self._database.change(
            TENANT_SERVICES,
            (tenant, service),
            lambda row: None if row is None else changes,
            Where(tenant, service),
        )
        return None if row is None else _tenant_service(row)

    def get(self, tenant: str, service: str) -> TenantService | None:
        """See Registry.get."""
        row = self._database.get(TENANT_SERVICES, (tenant, service), Where(tenant, service))
        return None if row is None else _tenant_service(row)

    def all(self) -> list[TenantService]:
        """See Registry.all. Reads the whole table, which is the answer: a page for some thousands
        of connections."""
        rows = [_tenant_service(row) for row in self._database.scan(TENANT_SERVICES)]
        return sorted(rows, key=lambda row: (row.tenant, row.service))

    def forget(self, tenant: str) -> int:
        """See Registry.forget."""
        where = Where(tenant)
        rows = list(self._database.query(TENANT_SERVICES, tenant, where=where))
        return sum(self._removed(row, where) for row in rows)

    def _removed(self, held: Row | None, where: Where) -> bool:
        """Removes a row unless it is, or is meanwhile, enabled."""
        while held is not None and not held.flag("enabled"):
            if self._database.delete(TENANT_SERVICES, held, where):
                return True
            held = self._database.get(TENANT_SERVICES, held.key, where)
        return False

    def _new_number(self) -> int:
        """A number that nobody has and nobody had."""
        rows = self._database.scan(TENANT_SERVICES, ("number",))
        # The counter knows those that were forgotten; the rows, if it was lost or restored.
        highest = max((row.number("number") for row in rows), default=0)
        counter = self._database.change(
            HEALTH,
            _NUMBERS,
            lambda row: {"number": max(highest, row.number("number") if row else 0) + 1},
        )
        assert counter is not None, "written above"
        return counter.number("number")


class DynamoWatermarks:
    """Implements `control.base.Watermarks`."""

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def get(self, tenant: str, service: str, table: str) -> Watermark | None:
        """See Watermarks.get."""
        row = self._database.get(
            LAST_UPDATED, (tenant, f"{service}#{table}"), Where(tenant, service, table)
        )
        return None if row is None else _watermark(row, tenant, service, table)

    def of(self, tenant: str, service: str) -> dict[str, Watermark]:
        """See Watermarks.of."""
        prefix = f"{service}#"
        rows = self._database.query(LAST_UPDATED, tenant, prefix, where=Where(tenant, service))
        tables = {row.text(LAST_UPDATED.keys[1]).removeprefix(prefix): row for row in rows}
        return {table: _watermark(row, tenant, service, table) for table, row in tables.items()}

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
        """
        where = Where(
            checked("tenant", tenant), checked("service", service), checked("table", table)
        )
        if to_text(lower) > to_text(upper):
            raise ConfigurationError(
                f"the window from {lower.isoformat()} to {upper.isoformat()} ends before it begins",
                where=where,
            )
        changes = {"last_updated": to_text(upper), "updated_at": to_text(now)}
        row = self._database.change(
            LAST_UPDATED, (tenant, f"{service}#{table}"), _forwards(lower, upper, changes), where
        )
        assert row is not None, "written above"
        return _watermark(row, tenant, service, table)

    def forget(self, tenant: str) -> int:
        """See Watermarks.forget."""
        rows = self._database.query(
            LAST_UPDATED, tenant, attributes=("tenant_id",), where=Where(tenant)
        )
        return self._database.remove(LAST_UPDATED, (row.key for row in rows), Where(tenant))


def _forwards(
    lower: datetime, upper: datetime, changes: Mapping[str, Any]
) -> Callable[[Row | None], Mapping[str, Any] | None]:
    def change(row: Row | None) -> Mapping[str, Any] | None:
        if row is None or lower <= row.moment("last_updated") < upper:
            return changes
        return None

    return change


def _watermark(row: Row, tenant: str, service: str, table: str) -> Watermark:
    return Watermark(tenant, service, table, row.moment("last_updated"), row.moment("updated_at"))


def _tenant_service(row: Row) -> TenantService:
    return TenantService(
        tenant=row.text("tenant_id"),
        service=row.text("service"),
        number=row.number("number"),
        generation=row.number("generation"),
        enabled=row.flag("enabled"),
        history_start=row.moment("history_start"),
        tables=row.texts("tables"),
        requests_per_minute=row.maybe_number("requests_per_minute"),
        connected_at=row.moment("created_at"),
        updated_at=row.moment("updated_at"),
    )
