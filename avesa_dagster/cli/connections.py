"""`avesa connect`, `disconnect`, `tenants`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from avesa_dagster.catalog.grain import partitions
from avesa_dagster.cli.output import as_json_option, print_json, print_table
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.health import Breaker
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked
from avesa_dagster.sources.declared import Speaker, secret_fields


@click.command(
    epilog="""\b
Examples:
  avesa connect acme connectwise --credentials acme.json
  cat acme.json | avesa connect acme connectwise --credentials - --lookback-days 365
  avesa connect acme connectwise --table tickets --table members   (asks for the credentials)

\b
The credentials of ConnectWise, as JSON:
  {"api_base_url": "https://na.myconnectwise.net", "company_id": "…",
   "public_key": "…", "private_key": "…", "client_id": "…"}
"""
)
@click.argument("tenant")
@click.argument("service")
@click.option(
    "--credentials",
    "credentials_file",
    metavar="FILE",
    help="JSON file with the credentials; - is standard input. Without it, they are asked for.",
)
@click.option("--lookback-days", type=click.IntRange(1, 36_500), help="Days of history to have.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="The tenant's own budget.")
@click.option("--table", "tables", multiple=True, help="A table to have; may be repeated.")
@click.option("--no-check", is_flag=True, help="Do not ask the service whether it accepts them.")
@as_json_option
def connect(
    tenant: str,
    service: str,
    credentials_file: str | None,
    lookback_days: int | None,
    requests_per_minute: int | None,
    tables: tuple[str, ...],
    no_check: bool,
    as_json: bool,
) -> None:
    """Connect TENANT's SERVICE: check its credentials, keep them, and have its history fetched.

    A running daemon finds the new tenant by itself and backfills it, recent months first.
    Connecting again replaces the credentials; history may only grow to the left.
    """
    checked("tenant", tenant)
    installation = Installation.from_environment()
    values = _credentials(installation.speaker(service), credentials_file)
    before = installation.control.registry.get(tenant, service)
    connection = installation.connect(
        tenant,
        service,
        values,
        lookback_days=lookback_days,
        requests_per_minute=requests_per_minute,
        tables=tables,
        probe=not no_check,
    )
    if as_json:
        print_json(_described(connection))
        return
    click.echo(
        f"{tenant} {service} is connected: {', '.join(connection.tables)}, "
        f"from {connection.history_start:%Y-%m-%d} on."
    )
    dropped = sorted(set(before.tables) - set(connection.tables)) if before else []
    if dropped:
        click.echo(f"No longer synced, as --table leaves them out: {', '.join(dropped)}.")
    grain = installation.catalog.settings(tenant, service).partitions
    known = list(partitions(grain, connection.history_start, connection.updated_at))
    click.echo(
        "A running daemon (avesa dev) backfills it now. Without one: "
        f"dagster asset materialize -m avesa_dagster.definitions --select "
        f"'key:\"{tenant}/*/{service}/*\"' --partition-range {known[0].key}...{known[-1].key}"
    )


@click.command(
    epilog="""\b
Example:
  avesa disconnect acme connectwise
"""
)
@click.argument("tenant")
@click.argument("service")
@as_json_option
def disconnect(tenant: str, service: str, as_json: bool) -> None:
    """Stop syncing TENANT's SERVICE and forget its credentials. Its data stays queryable."""
    checked("tenant", tenant)
    connection = Installation.from_environment().disconnect(tenant, service)
    if as_json:
        print_json(_described(connection))
    else:
        click.echo(f"{tenant} {service} is disconnected; its data stays queryable.")


@click.command(
    epilog="""\b
Example:
  avesa disable acme connectwise
"""
)
@click.argument("tenant")
@click.argument("service")
@as_json_option
def disable(tenant: str, service: str, as_json: bool) -> None:
    """Stop everything for TENANT's SERVICE; its data and its credentials stay."""
    checked("tenant", tenant)
    connection = Installation.from_environment().disable(tenant, service)
    if as_json:
        print_json(_described(connection))
    else:
        click.echo(f"{tenant} {service} is disabled; enable it again: avesa enable …")


@click.command(
    epilog="""\b
Example:
  avesa enable acme connectwise
"""
)
@click.argument("tenant")
@click.argument("service")
@as_json_option
def enable(tenant: str, service: str, as_json: bool) -> None:
    """Go on with TENANT's disabled SERVICE; what it lacks since then is backfilled."""
    checked("tenant", tenant)
    connection, jobs = Installation.from_environment().enable(tenant, service)
    if as_json:
        print_json({**_described(connection), "jobs": [job.job_id for job in jobs]})
        return
    click.echo(f"{tenant} {service} is enabled.")
    for job in jobs:
        click.echo(f"Job {job.job_id} fetches what is missing: avesa job {job.job_id} --watch")


@click.command(
    epilog="""\b
Examples:
  avesa tenants
  avesa tenants --json
"""
)
@click.option("--refresh", is_flag=True, help="Write the registry snapshot anew first.")
@as_json_option
def tenants(refresh: bool, as_json: bool) -> None:
    """List what is connected."""
    installation = Installation.from_environment()
    if refresh:
        installation.refresh_snapshot()
    breakers = {(b.tenant, b.service): b for b in installation.control.breakers.all()}
    described = [
        {**_described(row), "breaker": _breaker(breakers.get(whose, Breaker(*whose)))}
        for row in installation.control.registry.all()
        for whose in [(row.tenant, row.service)]
    ]
    if as_json:
        print_json(described)
    elif described:
        rows = [
            (
                row["tenant"],
                row["service"],
                _state(row),
                f"{row['history_start']:%Y-%m-%d}",
                ", ".join(row["tables"]),
            )
            for row in described
        ]
        print_table(("tenant", "service", "state", "history from", "tables"), rows)
    else:
        click.echo("No tenant is connected. Connect one: avesa connect TENANT SERVICE")


def _state(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return "disabled"
    breaker = row["breaker"]
    if breaker["state"] == "closed":
        return "connected"
    since = f" since {breaker['since']:%Y-%m-%d %H:%M} UTC" if breaker["since"] else ""
    return f"suspended{since}: {breaker['reason']}"


def _breaker(breaker: Breaker) -> dict[str, Any]:
    return {
        "state": breaker.state.value,
        "failures": breaker.failures,
        "reason": breaker.reason,
        "since": breaker.opened_at,
        "probe_at": breaker.probe_at,
    }


def _credentials(spoken: Speaker, file: str | None) -> dict[str, object]:
    fields = spoken.FIELDS
    if file is None:
        secret = secret_fields(spoken)
        return {name: click.prompt(name, hide_input=name in secret) for name in fields}
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8"
        raise ConfigurationError(f"the credentials file {file}: {reason}") from None
    try:
        values = json.loads(text)
    except ValueError:  # its text would quote the document
        values = None
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"the credentials in {file} are no JSON object",
            hint=f"write an object with {', '.join(fields)}",
        )
    return values


def _described(row: TenantService) -> dict[str, Any]:
    names = (
        "tenant", "service", "enabled", "generation", "history_start", "tables",
        "requests_per_minute", "connected_at",
    )  # fmt: skip
    return {name: getattr(row, name) for name in names}
