"""`avesa sync`: the live sync, now."""

from __future__ import annotations

import time

import click
from rich.console import Console

from avesa_dagster.cli.output import as_json_option, print_json
from avesa_dagster.control.base import TenantService
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked


@click.command(
    epilog="""\b
Examples:
  avesa sync acme
  avesa sync acme connectwise --full
"""
)
@click.argument("tenant")
@click.argument("service", required=False)
@click.option("--full", is_flag=True, help="Master data whole, and the search for deletions.")
@click.option("--verbose", is_flag=True, help="Show Dagster's log of the run.")
@as_json_option
def sync(tenant: str, service: str | None, full: bool, verbose: bool, as_json: bool) -> None:
    """Fetch what changed at TENANT's services since the last sync, and update its tables.

    It runs here and now; the Dagster UI lists it like a scheduled one. Exit code 1 if it fails.
    """
    from avesa_dagster.defs.execute import execute
    from avesa_dagster.defs.homes import prepare
    from avesa_dagster.defs.launches import sync_launches
    from avesa_dagster.defs.processes import fail_dead_runs, instance_in

    installation = Installation.from_environment()
    chosen = _chosen(installation, tenant, service)
    home = prepare(installation.settings)
    talk = Console(stderr=True, quiet=as_json)
    with instance_in(home) as instance:
        fail_dead_runs(instance)
    said = []
    failed = False
    for connection in chosen:
        now = installation.clock()
        name = f"cli-{now:%Y%m%dT%H%M%S}"
        for launch in sync_launches(installation.extractor, connection, now, full=full, name=name):
            began = time.monotonic()
            window = " to ".join(launch.stretch)
            with talk.status(f"{tenant} {connection.service}: {window}"):
                outcome = execute(launch, home, quiet=not verbose)
            failed = failed or not outcome.success
            said.append(
                {
                    "tenant": tenant,
                    "service": connection.service,
                    "run_id": outcome.run_id,
                    "success": outcome.success,
                    "seconds": round(time.monotonic() - began, 1),
                    "failures": list(outcome.failures),
                }
            )
            if not as_json:
                word = "synced" if outcome.success else "FAILED"
                click.echo(
                    f"{tenant} {connection.service}: {word} in {said[-1]['seconds']} s "
                    f"(run {outcome.run_id})"
                )
                for failure in outcome.failures:
                    click.echo(f"avesa: {failure}", err=True)
    if as_json:
        print_json(said)
    if failed:
        raise click.exceptions.Exit(1)


def _chosen(installation: Installation, tenant: str, service: str | None) -> list[TenantService]:
    checked("tenant", tenant)
    rows = [row for row in installation.control.registry.all() if row.tenant == tenant]
    chosen = [row for row in rows if row.enabled and service in (None, row.service)]
    if not chosen:
        known = ", ".join(row.service for row in rows if row.enabled)
        raise ConfigurationError(
            "nothing to sync: this tenant has no such service connected",
            where=Where(tenant, service),
            hint=f"connected: {known or 'none'}",
        )
    return chosen
