"""An installation, put together: settings in, working parts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from avesa_dagster.backfill.estimate import Estimate, Estimator
from avesa_dagster.backfill.jobs import Backfills
from avesa_dagster.backfill.overhead import slowness
from avesa_dagster.catalog import grain
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import BudgetUse, ChunkState, Secrets, TenantService
from avesa_dagster.control.jobs import Job
from avesa_dagster.control.snapshot import Snapshot
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.extract.fetching import Attempted
from avesa_dagster.extract.runner import Extractor
from avesa_dagster.lake.objects import Objects
from avesa_dagster.lake.reader import Reader
from avesa_dagster.names import checked
from avesa_dagster.profiles import Control, Profile, profile_of
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.budget import Budget
from avesa_dagster.sources.declared import Speaker, speaker
from avesa_dagster.sources.http import Allowance, Retrying
from avesa_dagster.sources.vault import MemoryVault, StoredVault, Vault
from avesa_dagster.watch.metrics import Meter

_LEARNT_FROM = 20
"""The newest jobs, of which an estimate takes how long runs last on this machine."""


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
    def profile(self) -> Profile:
        """Where the parts lie."""
        return profile_of(self.settings, self.catalog.backfill.breaker, self.clock())

    @property
    def objects(self) -> Objects:
        return self.profile.objects

    @property
    def control(self) -> Control:
        return self.profile.control

    @property
    def secrets(self) -> Secrets:
        return self.profile.secrets

    @property
    def budget(self) -> Budget:
        return self.profile.budget

    @property
    def snapshot(self) -> Snapshot:
        """The registry snapshot that definitions are built from."""
        return self.profile.snapshot

    @cached_property
    def extractor(self) -> Extractor:
        return Extractor(
            catalog=self.catalog,
            registry=self.control.registry,
            watermarks=self.control.watermarks,
            ledger=self.control.ledger,
            breakers=self.control.breakers,
            drift=self.control.drift,
            objects=self.objects,
            open_source=self.open_source,
            clock=self.clock,
            note=self._metered,
        )

    @cached_property
    def backfills(self) -> Backfills:
        return Backfills(
            catalog=self.catalog,
            registry=self.control.registry,
            jobs=self.control.jobs,
            ledger=self.control.ledger,
            watermarks=self.control.watermarks,
            clock=self.clock,
        )

    def estimate(self, job: Job, report: Callable[[str], None]) -> Estimate:
        """What a planned job will cost; asks the service, within the budget.

        Raises:
            AvesaError: The service cannot be asked.
        """
        connection = self.backfills.connection(job.tenant, job.service)
        source = self.open_source(connection, False, lambda: False)()
        try:
            use = self.use(connection)
            estimator = Estimator(
                self.catalog,
                source,
                wanted=lambda table: self.backfills.wanted(job, table),
                limit=use.limit,
                free=use.limit - use.used,
                wait=self.backfills.seconds_until(job),
                slowness=slowness(
                    self.control.jobs.find(limit=_LEARNT_FROM),
                    self.control.processing.of_job,
                    self.catalog,
                ),
            )
            return estimator.estimate(job, report)
        finally:
            source.close()

    def use(self, connection: TenantService) -> BudgetUse:
        """What a connection's budget used."""
        return self.budget.use(self._budget_key(connection), self._limit(connection))

    def reader(self) -> Reader:
        """The public door to what analysts read: `current`, `history`, `as_of`, `query`."""
        tenants = {row.tenant for row in self.control.registry.all()}
        return Reader(self.objects, self.catalog, tenants=tenants)

    def open_source(
        self, connection: TenantService, live: bool, cancelled: Cancelled
    ) -> Callable[[], Source]:
        """What opens a source for a thread, with the tenant's credentials and budget."""
        values = self.secrets.get(connection.tenant, connection.service)
        vault = StoredVault(self.secrets, connection.tenant, connection.service)
        return self.open_with(connection, values, live=live, cancelled=cancelled, vault=vault)

    def open_once(
        self, connection: TenantService, cancelled: Cancelled = lambda: False
    ) -> Callable[[], Source]:
        """What opens a source that tries each request once: for probes, which must not last."""
        values = self.secrets.get(connection.tenant, connection.service)
        once = replace(self.retrying, attempts=1)
        vault = StoredVault(self.secrets, connection.tenant, connection.service)
        return self.open_with(
            connection, values, live=True, cancelled=cancelled, retrying=once, vault=vault
        )

    def open_with(
        self,
        connection: TenantService,
        values: Mapping[str, object],
        *,
        live: bool,
        cancelled: Cancelled,
        retrying: Retrying | None = None,
        vault: Vault | None = None,
    ) -> Callable[[], Source]:
        """Like `open_source`, with credentials that are not stored yet.

        Args:
            retrying: None: as configured; the live sync, which comes again soon, half as often.
            vault: Where the service puts the credentials that it changes; None: nowhere.
        """
        if retrying is None:
            half = (self.retrying.attempts + 1) // 2
            retrying = replace(self.retrying, attempts=half) if live else self.retrying
        key, limit = self._budget_key(connection), self._limit(connection)
        settings = self.catalog.settings(connection.tenant, connection.service)
        allowance = Allowance(self.budget, key, limit, live, settings.live_reserve)
        return self.speaker(connection.service).connect(
            self.catalog.services[connection.service],
            values,
            Where(connection.tenant, connection.service),
            allowance,
            clock=self.clock,
            cancelled=cancelled,
            retrying=retrying,
            vault=vault or MemoryVault(values),
        )

    def speaker(self, service: str) -> Speaker:
        """What speaks to a service: its own code, or what its service file says.

        Raises:
            ConfigurationError: There is no such service.
        """
        return speaker(service, self.catalog.services)

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
        spoken = self.speaker(service)
        known = self.catalog.services[service]
        spoken.check(values, Where(tenant, service))
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
            values = self._probe(tenant, service, values, chosen[0], requests_per_minute)
        self.secrets.put(tenant, service, {name: str(value) for name, value in values.items()})
        connection = self.control.registry.connect(
            tenant,
            service,
            history_start=start,
            tables=chosen,
            requests_per_minute=requests_per_minute,
            now=now,
        )
        self.control.breakers.succeeded(tenant, service)
        self.refresh_snapshot()
        self.backfills.enabled(connection)
        return connection

    def disconnect(self, tenant: str, service: str) -> TenantService:
        """Stops syncing, removes the credentials, keeps the data."""
        connection = self.disable(tenant, service)
        self.secrets.remove(tenant, service)
        return connection

    def disable(self, tenant: str, service: str) -> TenantService:
        """Stops everything for a tenant's service; its data and its credentials stay.

        Its jobs under way are paused; enabling it goes on with them.
        """
        self._known(tenant, service)
        self.control.registry.disconnect(tenant, service, now=self.clock())
        self.refresh_snapshot()
        connection = self._known(tenant, service)
        self.backfills.disabled(connection)
        return connection

    def enable(self, tenant: str, service: str) -> tuple[TenantService, list[Job]]:
        """Goes on: with the jobs that disabling paused, and with what is missing since.

        Raises:
            ConfigurationError: It was never connected, or its credentials were removed.
        """
        self._known(tenant, service)
        self.secrets.get(tenant, service)
        self.control.registry.enable(tenant, service, now=self.clock())
        self.control.breakers.succeeded(tenant, service)
        self.refresh_snapshot()
        connection = self._known(tenant, service)
        jobs = self.backfills.enabled(connection)
        filled = self.backfills.fill(connection)
        if filled is not None and filled not in jobs:
            jobs.append(filled)
        return connection, jobs

    def _metered(self, attempted: Attempted) -> None:
        chunk, meter = attempted.chunk, Meter(self.control.counters)
        if attempted.stopped:
            spent, again = attempted.requests, attempted.retries
            meter.requests(chunk.tenant, chunk.service, chunk.table, requests=spent, retries=again)
            return
        meter.chunk(
            chunk.tenant,
            chunk.service,
            chunk.table,
            seconds=attempted.seconds,
            records=attempted.records,
            requests=attempted.requests,
            retries=attempted.retries,
            state=ChunkState.COMPLETED if attempted.ok else ChunkState.FAILED,
        )

    def _budget_key(self, connection: TenantService) -> str:
        return f"{connection.service}/{connection.tenant}"

    def _limit(self, connection: TenantService) -> int:
        settings = self.catalog.settings(connection.tenant, connection.service)
        return connection.requests_per_minute or settings.requests_per_minute

    def _switched(self, connection: TenantService | None) -> None:
        if connection is not None:
            self.refresh_snapshot()

    def _known(self, tenant: str, service: str) -> TenantService:
        connection = self.control.registry.get(tenant, service)
        if connection is None:
            raise ConfigurationError(
                "this tenant has not connected this service",
                where=Where(tenant, service),
                hint="avesa tenants lists what is connected",
            )
        return connection

    def refresh_snapshot(self) -> None:
        """Writes what the registry says now to where definitions read it."""
        self.snapshot.refresh(self.control.registry.all)

    def _probe(
        self,
        tenant: str,
        service: str,
        values: Mapping[str, object],
        table: str,
        requests_per_minute: int | None,
    ) -> Mapping[str, object]:
        """Asks the service once. Returns the credentials, which that may have changed."""
        now = self.clock()
        candidate = TenantService(
            tenant, service, 0, 0, True, now, (table,), requests_per_minute, now, now
        )
        vault = MemoryVault(values)
        source = self.open_with(
            candidate, values, live=True, cancelled=lambda: False, vault=vault
        )()
        try:
            source.newest_id(table)
        finally:
            source.close()
        return vault.get()
