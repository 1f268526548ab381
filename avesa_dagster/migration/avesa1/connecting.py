"""Connections for what is imported: partitions and assets need one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from avesa_dagster.catalog import grain
from avesa_dagster.control.base import TenantService
from avesa_dagster.installation import Installation

Connecting = Callable[[str, str], TenantService]
"""(tenant, service) -> its connection, which is there afterwards."""


def connected(
    installation: Installation, tenant: str, service: str, tables: Sequence[str]
) -> tuple[TenantService, bool]:
    """The connection of a tenant's service, and whether it was made now.

    A new one is disabled: `avesa connect` gives it credentials, and the backfill what the platform
    before had not. One that is there stays as it is.

    Args:
        tables: Of which there are files; a new connection has them besides those that the service
            has on by default.
    """
    registry = installation.control.registry
    held = registry.get(tenant, service)
    if held is not None:
        return held, False
    known, settings = (
        installation.catalog.services[service],
        installation.catalog.settings(tenant, service),
    )
    now = installation.clock()
    on = {name for name, table in known.tables.items() if table.enabled}
    registry.connect(
        tenant,
        service,
        history_start=grain.floor(
            settings.partitions, now - timedelta(days=settings.lookback_days)
        ),
        tables=sorted(on | set(tables)),
        requests_per_minute=None,
        now=now,
    )
    made = registry.disconnect(tenant, service, now=now)
    assert made is not None, "it was connected above"
    installation.refresh_snapshot()
    return made, True
