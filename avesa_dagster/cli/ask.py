"""`avesa query`."""

from __future__ import annotations

import click

from avesa_dagster.cli.output import as_json_option, print_json, print_records
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked


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
    known_tenant(installation, tenant)
    table = installation.reader().query(tenant, sql)
    if as_json:
        print_json(table.to_pylist())
        return
    print_records(table.slice(0, limit).to_pylist(), table.column_names)
    if table.num_rows > limit:
        click.echo(f"{table.num_rows - limit} more rows; --limit shows more, --json all")


def known_tenant(installation: Installation, tenant: str) -> None:
    """Raises ConfigurationError for a tenant that has connected nothing; names those that have."""
    checked("tenant", tenant)
    known = sorted({row.tenant for row in installation.control.registry.all()})
    if tenant not in known:
        raise ConfigurationError(
            f"there is no tenant {tenant!r} in {installation.settings.home}",
            hint=f"connected: {', '.join(known) or 'none'}",
        )
