"""`avesa`: connect tenants, sync, and ask. Every command takes --help."""

from __future__ import annotations

import os
import sys

import click

from avesa_dagster import __version__, logs
from avesa_dagster.cli import (
    ask,
    bootstrap,
    checking,
    connections,
    coverage,
    develop,
    doctor,
    jobs,
    live,
    migrate,
    offboard,
    watch,
)
from avesa_dagster.errors import AvesaError


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Everything of an installation lives under AVESA_HOME (default: the nearest .avesa "
    "folder upwards, else ~/.avesa).",
)
@click.version_option(__version__, prog_name="avesa")
def cli() -> None:
    """AVESA: every tenant's business records, complete and historised."""


for command in (
    connections.connect,
    connections.disconnect,
    connections.disable,
    connections.enable,
    connections.tenants,
    offboard.erase_tenant,
    live.sync,
    jobs.backfill,
    jobs.jobs,
    jobs.job,
    jobs.pause,
    jobs.resume,
    jobs.cancel,
    jobs.retry,
    checking.verify,
    coverage.coverage,
    ask.query,
    watch.alerts,
    watch.metrics,
    doctor.doctor,
    bootstrap.bootstrap,
    migrate.migrate,
    develop.simulate,
    develop.dev,
    develop.env,
    develop.demo,
):
    cli.add_command(command)


def main() -> None:
    """Runs the command; an error is one text on standard error and exit code 1."""
    try:
        logs.configure(os.environ)
        # Without its standalone mode click returns the code of an Exit in place of raising it.
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AvesaError as error:
        click.echo(f"avesa: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
