"""What exists: services, their tables, the canonical tables, and how backfills run.

Typed models of `mappings/*.json`. Each model forbids what it does not know, so a typing mistake in
a file is an error that names file, path and the allowed values (see `catalog.load`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from avesa_dagster.names import NAME

PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name is 1 to 63 of a-z, 0-9, '_' and '-', starting with a-z or 0-9")
    return value


def _path(value: str) -> str:
    if not PATH.fullmatch(value):
        raise ValueError("a path is field names joined by dots, for example company.id")
    return value


Name = Annotated[str, AfterValidator(_name)]
Path = Annotated[str, AfterValidator(_path)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    where: dict[Path, str] = {}
    prefer: Path | None = None
    take: Path

    def paths(self) -> tuple[str, ...]:
        return (self.list,)


Source = Path | FirstOf | ListPick


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
        canonical: Canonical table that it feeds, or None while it has no mapping.
        record_fields: Known top-level fields; when given, mapping paths are checked against them.
    """

    endpoint: str = Field(pattern=r"^[A-Za-z0-9_./-]+$")
    enabled: bool
    id: Path
    change_field: Path
    master_data: bool = False
    canonical: Name | None = None
    record_fields: tuple[str, ...] = ()


class Service(Model):
    """One file of `mappings/services/`.

    Attributes:
        page_size: Records asked for in a page.
        lag_seconds: A window of the present ends this long ago: records become visible late.
        overlap_seconds: A sync starts this long before the previous requested bound.
        request_timeout_seconds: Wait for an answer at most this long.
    """

    service: Name
    title: str
    page_size: int = Field(ge=1, le=100_000)
    lag_seconds: int = Field(ge=0)
    overlap_seconds: int = Field(ge=0)
    request_timeout_seconds: float = Field(gt=0)
    tables: dict[Name, ServiceTable] = Field(min_length=1)

    def table_of(self, endpoint: str) -> str | None:
        """Name of the table with this endpoint."""
        return next((n for n, t in self.tables.items() if t.endpoint == endpoint), None)


class CanonicalTable(Model):
    """One file of `mappings/canonical/`: fields and types, and where each service keeps them.

    Attributes:
        sources: service -> endpoint -> field -> path, FirstOf or ListPick. A field that a service
            lacks is null there.
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
                for name in mapping:
                    if name not in self.fields:
                        raise ValueError(
                            f"sources.{service}.{endpoint}: unknown field {name!r}; "
                            f"fields has: {', '.join(self.fields)}"
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
        parallel_chunks: Chunks that one run fetches at once.
    """

    lookback_days: int = Field(ge=1, le=36_500)
    chunk_size_days: int = Field(ge=1)
    partitions: Grain
    requests_per_minute: int = Field(ge=1)
    parallel_chunks: int = Field(ge=1, le=64)


class TenantOverrides(Model):
    lookback_days: int | None = Field(default=None, ge=1, le=36_500)
    chunk_size_days: int | None = Field(default=None, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    parallel_chunks: int | None = Field(default=None, ge=1, le=64)


class SweepGuard(Model):
    """A sweep that finds more deletions than both of these stops and says so."""

    max_deleted_share: float = Field(gt=0, le=1)
    min_deleted_records: int = Field(ge=0)


class BackfillConfig(Model):
    """`mappings/backfill_config.json`."""

    services: dict[Name, BackfillSettings]
    tenants: dict[Name, dict[Name, TenantOverrides]] = {}
    sweep: SweepGuard


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
