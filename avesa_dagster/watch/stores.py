"""The control tables that are watched."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import Ledger, Registry, TenantService, Watermarks
from avesa_dagster.control.health import Alarms, Breakers, Counters
from avesa_dagster.control.jobs import Jobs


class Stores(Protocol):
    """What every profile's control tables offer, `SqliteControl` among them."""

    @property
    def registry(self) -> Registry: ...

    @property
    def watermarks(self) -> Watermarks: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def breakers(self) -> Breakers: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def alarms(self) -> Alarms: ...


def connections(stores: Stores, catalog: Catalog) -> list[TenantService]:
    """The connected services, with those of their tables that the mappings still describe."""
    known = ((row, catalog.services.get(row.service)) for row in stores.registry.all())
    return [
        replace(row, tables=tuple(table for table in row.tables if table in service.tables))
        for row, service in known
        if row.enabled and service is not None
    ]
