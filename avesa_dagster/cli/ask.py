"""`avesa coverage` and `avesa query`."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta

import click
from rich.table import Table
from rich.text import Text

from avesa_dagster.catalog.grain import partitions
from avesa_dagster.cli.output import as_json_option, console, print_json, print_records
from avesa_dagster.control.coverage import PartitionCoverage
from avesa_dagster.control.coverage import coverage as cover
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked

_SYNC_INTERVAL = timedelta(hours=2)
"""The live sync is hourly; what it has not fetched after two hours is a hole."""
_FULL, _PART, _NONE = "■", "◧", "·"


@click.command(
    epilog="""\b
Examples:
  avesa query acme "select status, count(*) from tickets group by all order by 2 desc"
  avesa query acme "select * from tickets_history where id = '1001' order by record_version"
  avesa query acme "select count(*) n from time_entries" --json
"""
)
@click.argument("tenant")
@click.argument("sql")
@as_json_option
@click.option("--limit", type=click.IntRange(1), default=100, help="Rows to print as a table.")
def query(tenant: str, sql: str, as_json: bool, limit: int) -> None:
    """Ask TENANT's tables in SQL (DuckDB's), read-only.

    Each table has two views: TABLE holds the records as they are now, TABLE_history every version
    with its effective dates.
    """
    installation = Installation.from_environment()
    _known(installation, tenant)
    table = installation.reader().query(tenant, sql)
    if as_json:
        print_json(table.to_pylist())
        return
    print_records(table.slice(0, limit).to_pylist(), table.column_names)
    if table.num_rows > limit:
        click.echo(f"{table.num_rows - limit} more rows; --limit shows more, --json all")


@click.command(
    epilog="""\b
Examples:
  avesa coverage acme
  avesa coverage acme --json
"""
)
@click.argument("tenant")
@as_json_option
def coverage(tenant: str, as_json: bool) -> None:
    """Show what of TENANT's history was fetched, month by month, and where holes are."""
    installation = Installation.from_environment()
    _known(installation, tenant)
    covered = tenant_coverage(installation, tenant)
    if as_json:
        print_json(
            [
                {
                    "service": service,
                    "table": item.table,
                    "partition": item.partition.key,
                    "share": round(item.share, 4),
                    "as_of": item.as_of,
                    "rows": item.rows,
                    "holes": [{"start": h.start, "end": h.end} for h in item.holes],
                }
                for service, items in covered.items()
                for item in items
            ]
        )
        return
    for service, items in covered.items():
        print_calendar(f"{tenant} {service}", items)


def tenant_coverage(installation: Installation, tenant: str) -> dict[str, list[PartitionCoverage]]:
    """service -> coverage of each table and partition, from the ledger."""
    found = {}
    for connection in installation.control.registry.all():
        if connection.tenant != tenant:
            continue
        service = connection.service
        lag = timedelta(seconds=installation.catalog.services[service].lag_seconds)
        now = installation.clock()
        grain = installation.catalog.settings(tenant, service).partitions
        windows = list(partitions(grain, connection.history_start, now))
        marks = installation.control.watermarks
        items: list[PartitionCoverage] = []
        for table in connection.tables:
            mark = marks.get(tenant, service, table)
            until = now - lag
            if mark and mark.upper > until - _SYNC_INTERVAL:
                until = min(until, mark.upper)  # the next sync is not due yet
            chunks = installation.control.ledger.covered(tenant, service, table)
            items += cover(table, chunks, windows, until)
        found[service] = items
    return found


def print_calendar(title: str, items: list[PartitionCoverage]) -> None:
    """A row a table and year, a sign a partition."""
    rows: defaultdict[tuple[str, int], list[PartitionCoverage]] = defaultdict(list)
    for item in items:
        rows[item.table, item.partition.start.year].append(item)
    calendar = Table(title=title, title_justify="left", box=None, header_style="bold")
    monthly = all(item.partition.start.day == 1 for item in items)
    calendar.add_column("table")
    calendar.add_column("year")
    calendar.add_column(" J F M A M J J A S O N D" if monthly else "partitions", no_wrap=True)
    calendar.add_column("covered", justify="right")
    calendar.add_column("as of", no_wrap=True)
    last = None
    for (table, year), parts in rows.items():
        signs = Text()
        if monthly:
            signs.append("  " * (parts[0].partition.start.month - 1))
        for part in parts:
            sign, style = _sign(part)
            signs.append(f" {sign}" if monthly else sign, style=style)
        share = sum(part.share for part in parts) / len(parts)
        as_of = min((part.as_of for part in parts if part.as_of), default=None)
        calendar.add_row(
            table if table != last else "",
            str(year),
            signs,
            f"{share:.0%}" if share in (0.0, 1.0) else f"{min(share, 0.999):.1%}",
            f"{as_of:%Y-%m-%d %H:%M}" if as_of else "never",
        )
        last = table
    console.print(calendar)
    console.print(f"{_FULL} covered  {_PART} in part  {_NONE} not yet", style="dim")


def _sign(part: PartitionCoverage) -> tuple[str, str]:
    if part.share >= 1.0:
        return _FULL, "green"
    return (_PART, "yellow") if part.share > 0 else (_NONE, "red")


def _known(installation: Installation, tenant: str) -> None:
    checked("tenant", tenant)
    known = sorted({row.tenant for row in installation.control.registry.all()})
    if tenant not in known:
        raise ConfigurationError(
            f"there is no tenant {tenant!r} in {installation.settings.home}",
            hint=f"connected: {', '.join(known) or 'none'}",
        )
