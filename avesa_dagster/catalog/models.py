"""What exists: services, their tables, the canonical tables, and how backfills run.

Typed models of `mappings/*.json`. Each model forbids what it does not know, so a typing mistake in
a file is an error that names file, path and the allowed values (see `catalog.load`).
"""

from __future__ import annotations

import zoneinfo
from datetime import time
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from avesa_dagster.catalog.basics import PATH as PATH
from avesa_dagster.catalog.basics import Model as Model
from avesa_dagster.catalog.basics import Name as Name
from avesa_dagster.catalog.basics import Path as Path
from avesa_dagster.catalog.http import HttpService


def _zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {value!r}; write one like Europe/Berlin or UTC"
        ) from None
    return value


Zone = Annotated[str, AfterValidator(_zone)]


class ScdType(StrEnum):
    TYPE_1 = "type_1"
    TYPE_2 = "type_2"


class FieldType(StrEnum):
    STRING = "string"
    BOOL = "bool"
    INT64 = "int64"
    FLOAT64 = "float64"
    DATETIME = "datetime"


class Grain(StrEnum):
    DAILY = "daily"
    WEEKLY = "weekly"
    SEMI_MONTHLY = "semi-monthly"
    MONTHLY = "monthly"


class FirstOf(Model):
    """The first of several paths that holds a value."""

    first: tuple[Path, ...] = Field(min_length=1)

    def paths(self) -> tuple[str, ...]:
        return self.first


class ListPick(Model):
    """A value of one element of a list of objects: `contacts.communicationItems[]`.

    Of the elements whose text fields equal `where`, those with a true `prefer` come first, then
    list order decides; `take` names the field of the element whose value is wanted.
    """

    list: Path
    where: dict[Path, str] = Field(default_factory=dict)
    prefer: Path | None = None
    take: Path

    def paths(self) -> tuple[str, ...]:
        return (self.list,)


class Opposite(Model):
    """The other one of true and false: what the service keeps as `active` is `inactive_flag`."""

    path: Path = Field(alias="not")

    def paths(self) -> tuple[str, ...]:
        return (self.path,)


Source = Path | FirstOf | ListPick | Opposite


def source_paths(source: Source) -> tuple[str, ...]:
    """The record paths that a source expression reads."""
    return (source,) if isinstance(source, str) else source.paths()


class ServiceTable(Model):
    """One table of a service: where its records are and what identifies and dates them.

    Attributes:
        endpoint: The service's own name for it.
        enabled: Whether a connection has it without asking (`--table` chooses otherwise).
        id: Path of the record id; unique and comparable in the service's order.
        change_field: Path of the time of the record's latest change.
        master_data: Pulled whole, without a date filter, when backfilled or fully synced.
        priority: Lower ones are backfilled first.
        canonical: Canonical table that it feeds, or None while it has no mapping.
        record_fields: Known top-level fields; when given, mapping paths are checked against them.
        never_stored: Top-level fields that are taken out of each record: passwords and the like.
    """

    endpoint: str = Field(pattern=r"^[A-Za-z0-9_./-]+$")
    enabled: bool
    id: Path
    change_field: Path
    master_data: bool = False
    priority: int = Field(default=5, ge=1, le=9)
    canonical: Name | None = None
    record_fields: tuple[str, ...] = ()
    never_stored: tuple[str, ...] = ()


class Service(Model):
    """One file of `mappings/services/`.

    Attributes:
        page_size: Records asked for in a page.
        lag_seconds: A window of the present ends this long ago: records become visible late.
        overlap_seconds: A sync starts this long before the previous requested bound.
        request_timeout_seconds: Wait for an answer at most this long.
        bulk_records: A window with so many records is fetched in bulk; None: never.
        daily_share: Of the requests that the service allows a customer in a day, which all
            programs share, AVESA stops at this share; None: it does not look.
        blank_is_null: The service writes null as an empty text, so no field holds one.
        http: How to speak to it, where no code of its own does (see `catalog.http`).
    """

    service: Name
    title: str
    page_size: int = Field(ge=1, le=100_000)
    lag_seconds: int = Field(ge=0)
    overlap_seconds: int = Field(ge=0)
    request_timeout_seconds: float = Field(gt=0)
    bulk_records: int | None = Field(default=None, ge=1)
    daily_share: float | None = Field(default=None, gt=0, le=1)
    blank_is_null: bool = False
    http: HttpService | None = None
    tables: dict[Name, ServiceTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _tables_of_http(self) -> Service:
        unknown = sorted(set(self.http.tables if self.http else ()) - set(self.tables))
        if unknown:
            raise ValueError(
                f"http.tables: there is no table {unknown[0]!r}; tables has: "
                f"{', '.join(self.tables)}"
            )
        return self

    def table_of(self, endpoint: str) -> str | None:
        """Name of the table with this endpoint."""
        return next((n for n, t in self.tables.items() if t.endpoint == endpoint), None)


class CanonicalTable(Model):
    """One file of `mappings/canonical/`: fields and types, and where each service keeps them.

    Attributes:
        sources: service -> endpoint -> field -> path, FirstOf, ListPick or (for a bool) Opposite.
            A field that a service lacks is null there.
    """

    table: Name
    scd_type: ScdType
    fields: dict[Name, FieldType] = Field(min_length=1)
    sources: dict[Name, dict[str, dict[str, Source]]]

    @model_validator(mode="after")
    def _known_fields(self) -> CanonicalTable:
        if "id" not in self.fields:
            raise ValueError("fields must have 'id'")
        for service, endpoints in self.sources.items():
            for endpoint, mapping in endpoints.items():
                for name, source in mapping.items():
                    if name not in self.fields:
                        raise ValueError(
                            f"sources.{service}.{endpoint}: unknown field {name!r}; "
                            f"fields has: {', '.join(self.fields)}"
                        )
                    if isinstance(source, Opposite) and self.fields[name] != FieldType.BOOL:
                        raise ValueError(
                            f"sources.{service}.{endpoint}.{name}: 'not' is for a bool field, "
                            f"and {name} is {self.fields[name].value}"
                        )
                if "id" not in mapping:
                    raise ValueError(f"sources.{service}.{endpoint}: 'id' must be mapped")
        return self


class BackfillSettings(Model):
    """How one service is backfilled; a tenant may override all but the partitions.

    Attributes:
        lookback_days: Days of history that a new connection gets.
        chunk_size_days: Length of a chunk; a partition is split into about that.
        partitions: Grain of the partitions.
        requests_per_minute: The budget of one tenant credential.
        live_reserve: Share of the budget that backfills leave to the live sync.
        parallel_chunks: Chunks that one run fetches at once.
        max_chunk_records: A window with more is halved, as long as it can be.
        timezone: Of the tenant, for the off-peak window.
    """

    lookback_days: int = Field(ge=1, le=36_500)
    chunk_size_days: int = Field(ge=1, le=366)
    partitions: Grain
    requests_per_minute: int = Field(ge=1)
    live_reserve: float = Field(default=0.1, ge=0, le=0.9)
    parallel_chunks: int = Field(ge=1, le=64)
    max_chunk_records: int = Field(default=50_000, ge=100)
    timezone: Zone = "UTC"


class TenantOverrides(Model):
    lookback_days: int | None = Field(default=None, ge=1, le=36_500)
    chunk_size_days: int | None = Field(default=None, ge=1, le=366)
    requests_per_minute: int | None = Field(default=None, ge=1)
    live_reserve: float | None = Field(default=None, ge=0, le=0.9)
    parallel_chunks: int | None = Field(default=None, ge=1, le=64)
    max_chunk_records: int | None = Field(default=None, ge=100)
    timezone: Zone | None = None


class OffPeak(Model):
    """Hours of the tenant's day in which deep history is fetched; may reach over midnight."""

    start: time
    end: time

    @model_validator(mode="after")
    def _some_hours(self) -> OffPeak:
        if self.start == self.end:
            raise ValueError("start and end are the same time, which leaves no hours at all")
        return self

    def holds(self, moment: time) -> bool:
        """Whether the time of day is in [start, end)."""
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


class Scheduling(Model):
    """Which backfills run at once, and in what pieces.

    Attributes:
        max_jobs: Backfill jobs that fetch at once.
        max_tenants: Tenants whose backfills fetch at once.
        max_concurrent_runs: Runs at once, the live sync's too; must leave it at least one.
        piece_partitions: Partitions of deep history in one run.
        recent_partitions: The newest ones, which are a piece of their own and never wait for the
            off-peak window.
        max_hours: A job that takes longer stops and says so.
        off_peak: When deep history is fetched; None: at any time.
        keep_finished_days: Finished jobs are removed after so many days.
    """

    max_jobs: int = Field(default=5, ge=1, le=100)
    max_tenants: int = Field(default=3, ge=1, le=100)
    max_concurrent_runs: int = Field(default=8, ge=2, le=200)
    piece_partitions: int = Field(default=12, ge=1, le=1000)
    recent_partitions: int = Field(default=2, ge=1, le=100)
    max_hours: float = Field(default=24, gt=0, le=24 * 31)
    off_peak: OffPeak | None = None
    keep_finished_days: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def _room_for_live(self) -> Scheduling:
        if self.max_concurrent_runs <= self.max_jobs:
            raise ValueError("max_concurrent_runs must exceed max_jobs: the live sync needs room")
        return self


class ChunkRetry(Model):
    """How often a chunk is tried before it is set aside; each wait doubles, with jitter."""

    attempts: int = Field(default=3, ge=1, le=20)
    first_wait_seconds: float = Field(default=2, ge=0)
    longest_wait_seconds: float = Field(default=60, ge=0)


class BreakerSettings(Model):
    """When a tenant's service is not asked any more.

    Attributes:
        failures: Failed chunks or probes in a row that open it.
        wait_seconds: Until the first probe; doubles with each that fails.
        longest_wait_seconds: At most so long.
    """

    failures: int = Field(default=5, ge=1)
    wait_seconds: float = Field(default=60, gt=0)
    longest_wait_seconds: float = Field(default=3600, gt=0)


class Upkeep(Model):
    """What the sensors do by themselves.

    Attributes:
        hole_minutes: A window that the live sync should have fetched so long ago is a hole.
        hole_retry_minutes: After a job that could not fill a hole, the next comes so much later;
            the wait doubles up to a day.
        verify_hours: A tenant service is compared with its source so often; 0: never.
        verify_budget_share: Of the requests per minute, so much at most goes into that.
        verify_days: It compares so many days, the newest and a moving stretch of the older ones.
    """

    hole_minutes: float = Field(default=130, gt=0)
    hole_retry_minutes: float = Field(default=30, gt=0)
    verify_hours: float = Field(default=24, ge=0)
    verify_budget_share: float = Field(default=0.05, gt=0, le=1)
    verify_days: int = Field(default=62, ge=1)


class AlertSettings(Model):
    """What is worth telling somebody.

    Attributes:
        failed_chunks: The newest chunks of a job failed, so many in a row.
        job_hours: A job takes longer.
        completion_share: A job ended with a smaller share of its chunks completed.
        fresh_minutes: A table of a connected service was not synced for longer: a warning.
        stale_hours: The same, for so long that it is an error.
    """

    failed_chunks: int = Field(default=3, ge=1, le=1000)
    job_hours: float = Field(default=20, gt=0)
    completion_share: float = Field(default=0.9, ge=0, le=1)
    fresh_minutes: float = Field(default=180, gt=0)
    stale_hours: float = Field(default=26, gt=0)


class SweepGuard(Model):
    """A sweep that finds more deletions than both of these stops and says so."""

    max_deleted_share: float = Field(gt=0, le=1)
    min_deleted_records: int = Field(ge=0)


class BackfillConfig(Model):
    """`mappings/backfill_config.json`."""

    services: dict[Name, BackfillSettings]
    tenants: dict[Name, dict[Name, TenantOverrides]] = Field(default_factory=dict)
    sweep: SweepGuard
    scheduling: Scheduling = Scheduling()
    retry: ChunkRetry = ChunkRetry()
    breaker: BreakerSettings = BreakerSettings()
    upkeep: Upkeep = Upkeep()
    alerts: AlertSettings = AlertSettings()


class ServiceSettings(Model):
    """The `backfill_config.json` that a package brings with a service: that service's alone."""

    services: dict[Name, BackfillSettings]


class Catalog(Model):
    """Everything that `mappings/` says, cross-checked."""

    services: dict[str, Service]
    canonical: dict[str, CanonicalTable]
    backfill: BackfillConfig

    def settings(self, tenant: str, service: str) -> BackfillSettings:
        """The service's backfill settings with the tenant's overrides."""
        base = self.backfill.services[service]
        own = self.backfill.tenants.get(tenant, {}).get(service)
        return base.model_copy(update=own.model_dump(exclude_none=True)) if own else base

    def mapping(self, service: str, table: str) -> tuple[CanonicalTable, dict[str, Source]] | None:
        """The canonical table that a table of a service feeds, and the mapping; None without."""
        known = self.services[service].tables[table]
        if known.canonical is None:
            return None
        canonical = self.canonical[known.canonical]
        return canonical, canonical.sources[service][known.endpoint]
