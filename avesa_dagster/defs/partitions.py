"""Time windows as Dagster partitions, one definition a tenant service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from avesa_dagster.catalog.grain import Partition, floor, partitions
from avesa_dagster.catalog.models import Catalog, Grain
from avesa_dagster.control.base import TenantService
from avesa_dagster.errors import ConfigurationError, Where

_BEYOND_ANY_RANGE = 1_000_000
_CRON = {
    Grain.DAILY: "0 0 * * *",
    Grain.WEEKLY: "0 0 * * 0",
    Grain.SEMI_MONTHLY: "0 0 1,16 * *",
    Grain.MONTHLY: "0 0 1 * *",
}


def partitions_def(connection: TenantService, grain: Grain) -> dg.TimeWindowPartitionsDefinition:
    """The connection's windows, from history_start to the open one (end_offset=1).

    Tenants with the same windows have equal definitions: the UI then offers one range over both
    (it refuses a selection whose definitions differ). `backfill_policy` keeps their runs apart.
    """
    return dg.TimeWindowPartitionsDefinition(
        cron_schedule=_CRON[grain],
        start=floor(grain, connection.history_start).replace(tzinfo=None),
        fmt="%Y-%m-%d",
        timezone="UTC",
        end_offset=1,
    )


def backfill_policy(connection: TenantService) -> dg.BackfillPolicy:
    """One run for a range, and never one run for two tenants.

    Dagster puts assets into one run of a backfill if their partitions definition, keys and policy
    are equal (facts/dagster.md, trap A1). In a code server the policy is therefore a number of
    partitions that no range reaches, another for each connection. Elsewhere it is `single_run`,
    which `dagster asset materialize --partition-range` insists on; that command launches no
    backfill, and refuses what would mix tenants of different windows.
    """
    if {"code-server", "grpc"} & set(sys.argv):
        return dg.BackfillPolicy.multi_run(_BEYOND_ANY_RANGE + connection.number)
    return dg.BackfillPolicy.single_run()


def known_partitions(connection: TenantService, catalog: Catalog, now: datetime) -> list[Partition]:
    """Every partition of the connection, the open one last."""
    grain = catalog.settings(connection.tenant, connection.service).partitions
    return list(partitions(grain, connection.history_start, now))


def chosen_partitions(
    keys: Sequence[str], connection: TenantService, catalog: Catalog
) -> tuple[Partition, ...]:
    """The partitions with these keys, oldest first.

    Raises:
        ConfigurationError: There is none: Dagster takes a range whose start is after its end for
            an empty one, and would call the run a success.
    """
    if not keys:
        raise ConfigurationError(
            "the partition range is empty",
            where=Where(connection.tenant, connection.service),
            hint="give the older partition first: 2026-01-01...2026-03-01",
        )
    grain = catalog.settings(connection.tenant, connection.service).partitions
    days = [datetime.strptime(key, "%Y-%m-%d").replace(tzinfo=UTC) for key in keys]
    return tuple(next(partitions(grain, day, day)) for day in sorted(days))
