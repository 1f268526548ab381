"""`avesa coverage`: what was fetched, as a calendar, a picture or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from avesa_dagster.backfill.covered import connection_coverage
from avesa_dagster.catalog.models import Grain
from avesa_dagster.cli.ask import known_tenant
from avesa_dagster.cli.calendar import print_calendar, print_holes
from avesa_dagster.cli.output import as_json_option, print_json
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.coverage import PartitionCoverage, holes
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.installation import Installation


@click.command(
    epilog="""\b
Examples:
  avesa coverage acme
  avesa coverage acme connectwise --table tickets --table time_entries
  avesa coverage acme --png coverage.png
  avesa coverage acme --json
"""
)
@click.argument("tenant")
@click.argument("service", required=False)
@click.option("--table", "tables", multiple=True, help="This table only; may be repeated.")
@click.option(
    "--png",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the calendar into a picture.",
)
@as_json_option
def coverage(
    tenant: str, service: str | None, tables: tuple[str, ...], png: Path | None, as_json: bool
) -> None:
    """Show what of TENANT's history was fetched, as of when, and where holes are.

    A partition is proven when the service counted its records and at least as many came.
    """
    installation = Installation.from_environment()
    now = installation.clock()
    covered = [
        _covered(installation, connection, chosen, now)
        for connection, chosen in _chosen(installation, tenant, service, tables)
    ]
    if png:
        # Drawing needs a large library, which no other command does.
        from avesa_dagster.backfill.picture import write_picture

        services = ", ".join(one.connection.service for one in covered)
        panels = {one.connection.service: one.items for one in covered}
        write_picture(png, f"Coverage of {tenant}: {services}", panels, now)
    if as_json:
        print_json([_plain(one, item) for one in covered for item in one.items])
    elif png:
        click.echo(f"drawn: {png}")
    else:
        for one in covered:
            print_calendar(one.title, one.items, one.grain)
            print_holes(holes(one.items))


@dataclass(frozen=True, slots=True)
class _Covered:
    """The coverage of one connection."""

    connection: TenantService
    grain: Grain
    items: list[PartitionCoverage]

    @property
    def title(self) -> str:
        name = f"{self.connection.tenant} {self.connection.service}"
        if self.connection.enabled:
            return name
        return f"{name}, disconnected since {self.connection.updated_at:%Y-%m-%d %H:%M} UTC"


def _covered(
    installation: Installation,
    connection: TenantService,
    tables: Sequence[str] | None,
    now: datetime,
) -> _Covered:
    control = installation.control
    items = connection_coverage(
        connection, installation.catalog, control.ledger, control.watermarks, now, tables
    )
    grain = installation.catalog.settings(connection.tenant, connection.service).partitions
    return _Covered(connection, grain, items)


def _chosen(
    installation: Installation, tenant: str, service: str | None, tables: Sequence[str]
) -> list[tuple[TenantService, Sequence[str] | None]]:
    """The tenant's connections that are meant, each with those of its tables (None: all).

    Raises:
        ConfigurationError: The tenant, service or a table is unknown; says what is known.
    """
    known_tenant(installation, tenant)
    own = [row for row in installation.control.registry.all() if row.tenant == tenant]
    meant = [row for row in own if service in (None, row.service)]
    if not meant:
        raise ConfigurationError(
            f"this tenant has not connected {service!r}",
            where=Where(tenant),
            hint=f"connected: {', '.join(row.service for row in own)}",
        )
    for table in tables:
        if not any(table in row.tables for row in meant):
            known = sorted({name for row in meant for name in row.tables})
            raise ConfigurationError(
                f"this tenant has no table {table!r}",
                where=Where(tenant, service),
                hint=f"connected: {', '.join(known) or 'none'}",
            )
    if not tables:
        return [(row, None) for row in meant]
    found = [(row, [table for table in tables if table in row.tables]) for row in meant]
    return [(row, chosen) for row, chosen in found if chosen]


def _plain(one: _Covered, item: PartitionCoverage) -> dict[str, object]:
    return {
        "service": one.connection.service,
        "table": item.table,
        "partition": item.partition.key,
        "state": item.state.value,
        "share": math.floor(item.share * 10_000) / 10_000,
        "reconciled": item.reconciled,
        "as_of": item.as_of,
        "newest": item.newest,
        "rows": item.rows,
        "holes": [{"start": hole.start, "end": hole.end} for hole in item.holes],
    }
