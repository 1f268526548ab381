"""Verifying an installation's tables: what may be compared, and what is to be fetched again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from avesa_dagster.control.base import COVERING, TenantService
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.extract.comparison import Limits
from avesa_dagster.extract.runner import Extractor
from avesa_dagster.extract.verify import Step, Verified, joined, verify
from avesa_dagster.sources.base import Cancelled, Window

OLDEST = datetime(1900, 1, 1, tzinfo=UTC)
"""Master data is held however old it is; no service dates records earlier, but by mistake."""
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Promise:
    """What the lake should hold of a table.

    Attributes:
        covered: What was fetched, oldest first.
        until: Of what changed before, everything has been asked for: the watermark less the
            overlap, which the next sync asks for again.
    """

    covered: tuple[Window, ...]
    until: datetime


@dataclass(frozen=True, slots=True)
class Verifier:
    """Compares tables with their services, with what the extractor works with."""

    extractor: Extractor

    def connection(self, tenant: str, service: str) -> TenantService:
        """The tenant's connection.

        Raises:
            ConfigurationError: There is none, or it is disconnected.
        """
        row = self.extractor.registry.get(tenant, service)
        if row is None or not row.enabled:
            said = "has not connected this service" if row is None else "disconnected this service"
            raise ConfigurationError(
                f"this tenant {said}",
                where=Where(tenant, service),
                hint="avesa tenants lists what is connected",
            )
        return row

    def tables(self, connection: TenantService, asked: Sequence[str] = ()) -> tuple[str, ...]:
        """The tables asked for, or all that the connection has.

        Raises:
            ConfigurationError: One is unknown, or off for this connection.
        """
        known = self.extractor.catalog.services[connection.service].tables
        where = Where(connection.tenant, connection.service)
        for table in asked:
            if table not in known:
                raise ConfigurationError(
                    f"{connection.service} has no table {table!r}",
                    where=where,
                    hint=f"this tenant has: {', '.join(connection.tables)}",
                )
            if table not in connection.tables:
                raise ConfigurationError(
                    f"the table {table!r} is off for this tenant",
                    where=where,
                    hint=f"it has: {', '.join(connection.tables)}; avesa connect turns others on",
                )
        return tuple(dict.fromkeys(asked)) or connection.tables

    def check_range(
        self, connection: TenantService, start: datetime | None, end: datetime | None
    ) -> None:
        """Raises ConfigurationError for a range that is empty or reaches out of the history."""
        where = Where(connection.tenant, connection.service)
        first, now = connection.history_start, self.extractor.clock()
        if start is not None and end is not None and start >= end:
            raise ConfigurationError(
                f"the range is empty: it starts {start:%Y-%m-%d} and ends {end:%Y-%m-%d}",
                where=where,
                hint="the end is exclusive: 2026-03-01 to 2026-04-01 is March",
            )
        if start is not None and start >= now:
            raise ConfigurationError(f"{start:%Y-%m-%d} lies in the future", where=where)
        if (start is not None and start < first) or (end is not None and end <= first):
            raise ConfigurationError(
                f"the range begins before the history, which begins {first:%Y-%m-%d}",
                where=where,
                hint="what is older was never asked for",
            )

    def promise(self, connection: TenantService, table: str) -> Promise:
        """What is covered and promised, as the control tables say now.

        Read it before the lake: objects are written first, then the ledger, then the watermark.
        """
        place = (connection.tenant, connection.service, table)
        service = self.extractor.catalog.services[connection.service]
        mark = self.extractor.watermarks.get(*place)
        chunks = [c for c in self.extractor.ledger.covered(*place) if c.kind in COVERING]
        windows = []
        for chunk in chunks:
            older_too = chunk.kind == "full" and chunk.start <= connection.history_start
            windows.append(Window(OLDEST if older_too else chunk.start, chunk.end))
        if not windows:
            return Promise((), connection.history_start)
        upper = mark.upper if mark else max(window.end for window in windows)
        return Promise(tuple(joined(windows)), upper - timedelta(seconds=service.overlap_seconds))

    def verify(
        self,
        connection: TenantService,
        table: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        only: Sequence[Window] | None = None,
        keys: bool = False,
        max_requests: int | None = None,
        cancelled: Cancelled = lambda: False,
        report: Callable[[Step], None] = lambda step: None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Verified:
        """Compares a table as backfill traffic: the live sync has its reserve beside it.

        Args:
            start, end: The range [start, end); None: all that was fetched, old master data too.
            only: Compares only these windows.
            keys, max_requests, cancelled, report, limits: See `verify`.

        Raises:
            Suspended: The breaker of the tenant's service is open.
            FatalError, StoreError: See `verify`.
        """
        self.check_range(connection, start, end)
        tenant, service = connection.tenant, connection.service
        open_source = self.extractor.open_source(connection, False, cancelled)
        self.extractor.guard(tenant, service, table, open_source).admit()
        promise = self.promise(connection, table)
        first = min((w.start for w in promise.covered), default=connection.history_start)
        covered = promise.covered if only is None else _common(promise.covered, joined(only))
        source = open_source()
        try:
            return verify(
                source,
                self.extractor.objects,
                tenant=tenant,
                service=service,
                table=table,
                start=first if start is None else start,
                end=promise.until if end is None else end,
                covered=covered,
                promised=promise.until,
                keys=keys,
                max_requests=max_requests,
                cancelled=cancelled,
                report=report,
                limits=limits,
            )
        finally:
            source.close()

    def to_fetch(self, connection: TenantService, verified: Verified) -> list[Window]:
        """The bad windows, within the history: what is older lies in its first partition."""
        first = connection.history_start
        windows = []
        for bad in verified.bad:
            start = max(bad.window.start, first)
            windows.append(Window(start, max(bad.window.end, start + _SECOND)))
        return joined(windows)


def _common(some: Sequence[Window], others: Sequence[Window]) -> list[Window]:
    """What lies in both."""
    pairs = (Window(max(a.start, b.start), min(a.end, b.end)) for a in some for b in others)
    return [window for window in pairs if window.start < window.end]
