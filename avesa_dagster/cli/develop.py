"""`avesa simulate`, `dev`, `env`, `demo`: an installation on one machine."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings

_DEMONSTRATED = ("connectwise", "servicenow", "salesforce")


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    epilog="""\b
Examples:
  avesa simulate connectwise --tickets 20000 --requests-per-minute 200
  avesa simulate connectwise --help
""",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Run a simulated service on loopback until it is stopped.

    Prints one line of JSON with its address and credentials when it is listening.
    """
    from avesa_dagster.sandbox.__main__ import main

    if not arguments or arguments[0] in ("-h", "--help"):
        click.echo(click.get_current_context().get_help())
        raise click.exceptions.Exit(0)
    raise click.exceptions.Exit(main(list(arguments)))


@click.command(
    epilog="""\b
Example:
  eval "$(avesa env)"; dagster asset list -m avesa_dagster.definitions
"""
)
def env() -> None:
    """Print the shell variables that `dagster` needs for this installation."""
    from avesa_dagster.defs.homes import prepare

    settings = Settings.from_environment()
    for name, value in variables(settings).items():
        click.echo(f"export {name}={shlex.quote(value)}")
    prepare(settings)


@click.command(
    epilog="""\b
Examples:
  avesa dev
  avesa dev --port 3333
"""
)
@click.option("--port", type=click.IntRange(1, 65_535), default=3000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
def dev(port: int, host: str) -> None:
    """Open the Dagster UI and its daemon on this installation, until stopped.

    The services that `avesa demo` simulates run along if this installation is the demo's.
    """
    from avesa_dagster.cli import demonstration, staged

    settings = Settings.from_environment()
    with (
        demonstration.dagster(settings, port=port, host=host, quiet=False) as process,
        staged.along(Installation(settings)) as simulated,
    ):
        for address in simulated:
            click.echo(f"A simulated service of the demo: {address}")
        click.echo(f"Dagster UI: http://{host}:{port}  (stop with Ctrl-C)")
        try:
            raise click.exceptions.Exit(process.wait())
        except KeyboardInterrupt:
            click.echo("stopping")


@click.command(
    epilog="""\b
Examples:
  avesa demo --tickets 20000
  avesa demo --service salesforce
  avesa demo --service all
"""
)
@click.option(
    "--service",
    type=click.Choice([*_DEMONSTRATED, "all"]),
    default="connectwise",
    show_default=True,
    help="The service that is simulated and connected.",
)
@click.option("--tickets", type=click.IntRange(1), help="ConnectWise's; 20,000 if not given.")
@click.option("--time-entries", type=click.IntRange(1), help="ConnectWise's; 30,000.")
@click.option("--companies", type=click.IntRange(1), help="ConnectWise's; 500.")
@click.option("--contacts", type=click.IntRange(1), help="ConnectWise's; 2,000.")
def demo(service: str, **sizes: int | None) -> None:
    """Connect tenant acme to a simulated service and backfill its history, through Dagster.

    Ends by itself; what it fetched stays in AVESA_HOME.
    """
    from avesa_dagster.cli import demonstration

    services = _DEMONSTRATED if service == "all" else (service,)
    own = {name: size for name, size in sizes.items() if size is not None}
    installation = Installation.from_environment()
    raise click.exceptions.Exit(
        demonstration.demonstrate(installation, services, {"connectwise": own})
    )


def variables(settings: Settings) -> dict[str, str]:
    """What the environment of a `dagster` process has to say."""
    return {
        "AVESA_HOME": str(settings.home),
        "DAGSTER_HOME": str(settings.dagster_home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
