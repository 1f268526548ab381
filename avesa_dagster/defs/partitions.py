"""Time windows as Dagster partitions, one definition a tenant service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from avesa_dagster.catalog.grain import Partition, floor, partitions
from avesa_dagster.catalog.models import Catalog, Grain
from avesa_dagster.control.base import TenantService

_CRON = {
    Grain.DAILY: "0 0 * * *",
    Grain.WEEKLY: "0 0 * * 0",
    Grain.SEMI_MONTHLY: "0 0 1,16 * *",
    Grain.MONTHLY: "0 0 1 * *",
}


def partitions_def(connection: TenantService, grain: Grain) -> dg.TimeWindowPartitionsDefinition:
    """The connection's windows, from history_start to the open one (end_offset=1).

    Two tenants with the same windows must not have equal definitions, or Dagster merges their
    backfills into one run. The start lies 1 + number seconds before the first window: the keys
    are the same, the definitions are not (facts/dagster.md, trap A1).
    """
    first = floor(grain, connection.history_start)
    start = first - timedelta(seconds=1 + connection.number)
    return dg.TimeWindowPartitionsDefinition(
        cron_schedule=_CRON[grain],
        start=start.replace(tzinfo=None),
        fmt="%Y-%m-%d",
        timezone="UTC",
        end_offset=1,
    )


def known_partitions(
    connection: TenantService, catalog: Catalog, now: datetime
) -> list[Partition]:
    """Every partition of the connection, the open one last."""
    grain = catalog.settings(connection.tenant, connection.service).partitions
    return list(partitions(grain, connection.history_start, now))


def chosen_partitions(
    keys: Sequence[str], connection: TenantService, catalog: Catalog
) -> tuple[Partition, ...]:
    """The partitions with these keys, oldest first."""
    grain = catalog.settings(connection.tenant, connection.service).partitions
    days = [datetime.strptime(key, "%Y-%m-%d").replace(tzinfo=UTC) for key in keys]
    return tuple(next(partitions(grain, day, day)) for day in sorted(days))
