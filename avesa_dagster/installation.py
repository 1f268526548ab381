"""An installation, put together: settings in, working parts out. The one place that chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.control.snapshot import exclusive, write_snapshot
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.extract.runner import Extractor
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.lake.reader import Reader
from avesa_dagster.names import checked
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.budget import SqliteBudget
from avesa_dagster.sources.http import Allowance, Retrying
from avesa_dagster.sources.registry import source_module


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Installation:
    """The parts of one installation, each made when first used.

    Args:
        settings: Where it lies.
        clock: The present; tests bring their own.
        retrying: How often one request is tried.
    """

    settings: Settings
    clock: Clock = utc_now
    retrying: Retrying = field(default_factory=Retrying)

    @classmethod
    def from_environment(cls) -> Installation:
        return cls(Settings.from_environment())

    @cached_property
    def catalog(self) -> Catalog:
        return load_catalog(self.settings.mappings)

    @cached_property
    def objects(self) -> LocalObjects:
        objects = LocalObjects(self.settings.lake)
        objects.clean(self.clock().timestamp())
        return objects

    @cached_property
    def control(self) -> SqliteControl:
        self.settings.make_home()
        return SqliteControl(
            self.settings.control / "control.db", breaker=self.catalog.backfill.breaker
        )

    @cached_property
    def secrets(self) -> FileSecrets:
        return FileSecrets(self.settings.secrets, os.environ)

    @cached_property
    def budget(self) -> SqliteBudget:
        return SqliteBudget(self.settings.control / "budget.db")

    @cached_property
    def extractor(self) -> Extractor:
        return Extractor(
            catalog=self.catalog,
            registry=self.control.registry,
            watermarks=self.control.watermarks,
            ledger=self.control.ledger,
            breakers=self.control.breakers,
            objects=self.objects,
            open_source=self.open_source,
            clock=self.clock,
        )

    def reader(self) -> Reader:
        """The public door to what analysts read: `current`, `history`, `as_of`, `query`."""
        tenants = {row.tenant for row in self.control.registry.all()}
        return Reader(self.objects, self.catalog, tenants=tenants)

    def open_source(
        self, connection: TenantService, live: bool, cancelled: Cancelled
    ) -> Callable[[], Source]:
        """What opens a source for a thread, with the tenant's credentials and budget."""
        values = self.secrets.get(connection.tenant, connection.service)
        return self.open_with(connection, values, live=live, cancelled=cancelled)

    def open_with(
        self,
        connection: TenantService,
        values: Mapping[str, object],
        *,
        live: bool,
        cancelled: Cancelled,
    ) -> Callable[[], Source]:
        """Like `open_source`, with credentials that are not stored yet."""
        settings = self.catalog.settings(connection.tenant, connection.service)
        limit = connection.requests_per_minute or settings.requests_per_minute
        allowance = Allowance(self.budget, f"{connection.service}/{connection.tenant}", limit, live)
        opened: Callable[[], Source] = source_module(connection.service).connect(
            self.catalog.services[connection.service],
            values,
            Where(connection.tenant, connection.service),
            allowance,
            clock=self.clock,
            cancelled=cancelled,
            # The next live sync comes soon; one that cannot reach its service says so soon.
            retrying=replace(self.retrying, attempts=(self.retrying.attempts + 1) // 2)
            if live
            else self.retrying,
        )
        return opened

    def connect(
        self,
        tenant: str,
        service: str,
        values: Mapping[str, object],
        *,
        lookback_days: int | None = None,
        requests_per_minute: int | None = None,
        tables: tuple[str, ...] = (),
        probe: bool = True,
    ) -> TenantService:
        """Connects a tenant's service: checks, probes, stores, and writes the snapshot.

        Args:
            values: The credentials.
            requests_per_minute: The tenant's own budget; None: as before, else the service's.
            tables: The tables to have; none: as before, else those that the service has on by
                default.
            probe: Ask the service once whether it takes the credentials.

        Raises:
            ConfigurationError, CredentialsRefused, RetriableError: Nothing was stored.
        """
        checked("tenant", tenant)
        module = source_module(service)
        known = self.catalog.services[service]
        module.check(values, Where(tenant, service))
        for table in tables:
            if table not in known.tables:
                raise ConfigurationError(
                    f"{service} has no table {table!r}", hint=f"known: {', '.join(known.tables)}"
                )
        existing = self.control.registry.get(tenant, service)
        if existing is not None:
            tables = tables or existing.tables
            requests_per_minute = requests_per_minute or existing.requests_per_minute
        chosen = tables or tuple(n for n, t in known.tables.items() if t.enabled)
        settings = self.catalog.settings(tenant, service)
        now = self.clock()
        days = lookback_days or settings.lookback_days
        start = grain.floor(settings.partitions, now - timedelta(days=days))
        if probe:
            self._probe(tenant, service, values, chosen[0], requests_per_minute)
        self.secrets.put(tenant, service, {name: str(value) for name, value in values.items()})
        connection = self.control.registry.connect(
            tenant,
            service,
            history_start=start,
            tables=chosen,
            requests_per_minute=requests_per_minute,
            now=now,
        )
        self.refresh_snapshot()
        return connection

    def disconnect(self, tenant: str, service: str) -> TenantService:
        """Stops syncing, removes the credentials, keeps the data."""
        connection = self.control.registry.disconnect(tenant, service, now=self.clock())
        if connection is None:
            raise ConfigurationError(
                "this tenant has not connected this service",
                where=Where(tenant, service),
                hint="avesa tenants lists what is connected",
            )
        self.secrets.remove(tenant, service)
        self.refresh_snapshot()
        return connection

    def refresh_snapshot(self) -> None:
        """Writes what the registry says now to where definitions read it."""
        with exclusive(self.settings.snapshot):
            write_snapshot(self.settings.snapshot, self.control.registry.all())

    def _probe(
        self,
        tenant: str,
        service: str,
        values: Mapping[str, object],
        table: str,
        requests_per_minute: int | None,
    ) -> None:
        now = self.clock()
        candidate = TenantService(
            tenant, service, 0, 0, True, now, (table,), requests_per_minute, now, now
        )
        source = self.open_with(candidate, values, live=True, cancelled=lambda: False)()
        try:
            source.newest_id(table)
        finally:
            source.close()
