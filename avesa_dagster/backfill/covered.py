"""What of a connection was fetched: the figures of its calendar, and the holes to be filled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from avesa_dagster.catalog.grain import floor, partitions
from avesa_dagster.catalog.models import Catalog, Grain
from avesa_dagster.control.base import Ledger, TenantService, Watermark, Watermarks
from avesa_dagster.control.coverage import PartitionCoverage, coverage, gaps
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.sources.base import Window


def connection_coverage(
    connection: TenantService,
    catalog: Catalog,
    ledger: Ledger,
    watermarks: Watermarks,
    now: datetime,
    tables: Sequence[str] | None = None,
) -> list[PartitionCoverage]:
    """Coverage of each table and partition, in the order of the tables, oldest partition first.

    A disconnected connection is counted like any other: what changed at its service since then is
    not covered.

    Args:
        tables: Of the connection's; None: all of them.

    Raises:
        ConfigurationError: The mappings lack the service, or the connection lacks a table.
    """
    grain = _grain(connection, catalog)
    windows = list(partitions(grain, connection.history_start, now))
    items: list[PartitionCoverage] = []
    marks = watermarks.of(connection.tenant, connection.service)
    for table in _chosen(connection, tables):
        until = due_until(connection, catalog, marks.get(table), now)
        chunks = ledger.covered(connection.tenant, connection.service, table)
        items += coverage(table, chunks, windows, until)
    return items


def connection_holes(
    connection: TenantService,
    catalog: Catalog,
    ledger: Ledger,
    watermarks: Watermarks,
    now: datetime,
    tables: Sequence[str] | None = None,
) -> dict[str, list[Window]]:
    """table -> its holes, oldest first: `holes(connection_coverage(...))` without the rest of it.

    For whoever looks often: half a microsecond a completed chunk, whatever the grain. A
    disconnected connection has holes too; nobody can fill them until it is connected again.

    Raises:
        ConfigurationError: As `connection_coverage`.
    """
    start = floor(_grain(connection, catalog), connection.history_start)
    found: dict[str, list[Window]] = {}
    marks = watermarks.of(connection.tenant, connection.service)
    for table in _chosen(connection, tables):
        whole = Window(start, due_until(connection, catalog, marks.get(table), now))
        covered = ledger.stretches(connection.tenant, connection.service, table)
        found[table] = gaps(covered, whole)
    return found


def due_until(
    connection: TenantService, catalog: Catalog, mark: Watermark | None, now: datetime
) -> datetime:
    """Until when a table's changes need to be fetched by now.

    That is the present less the service's lag. Where the live sync is on time (its watermark is
    less than `upkeep.hole_minutes` behind that), the rest is its next run's, and no hole yet.
    """
    lag = timedelta(seconds=catalog.services[connection.service].lag_seconds)
    grace = timedelta(minutes=catalog.backfill.upkeep.hole_minutes)
    present = now - lag
    if mark is not None and mark.upper > present - grace:
        return min(present, mark.upper)
    return present


def _grain(connection: TenantService, catalog: Catalog) -> Grain:
    if connection.service not in catalog.services:
        raise ConfigurationError(
            "the mappings have no such service",
            where=Where(connection.tenant, connection.service),
            hint=f"known: {', '.join(sorted(catalog.services))}",
        )
    return catalog.settings(connection.tenant, connection.service).partitions


def _chosen(connection: TenantService, tables: Sequence[str] | None) -> Sequence[str]:
    if tables is None:
        return connection.tables
    for table in tables:
        if table not in connection.tables:
            raise ConfigurationError(
                f"{table!r} is no table of this connection",
                where=Where(connection.tenant, connection.service),
                hint=f"connected: {', '.join(connection.tables) or 'none'}",
            )
    return list(dict.fromkeys(tables))
