"""`avesa erase`: everything of one tenant goes for good."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from avesa_dagster.cli.output import print_json
from avesa_dagster.control.base import TenantService
from avesa_dagster.erasure.erasing import Receipt, erase, survey
from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked

_TRIES = 2


@click.command(
    "erase",
    epilog="""\b
Examples:
  avesa erase acme                                            (asks twice)
  avesa erase acme --receipt acme-erased.json
  avesa erase acme --yes-erase acme --receipt acme-erased.json (for scripts)

\b
The receipt says how many objects, rows and runs were removed, and nothing of what was in them.
Running it again after an error goes on where it stopped.
""",
)
@click.argument("tenant")
@click.option("--receipt", type=click.Path(path_type=Path), help="Write the receipt here too.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    help="Seconds that its runs may take to end.",
)
@click.option(
    "--yes-erase",
    metavar="TENANT",
    help="Do not ask; takes the tenant's name once more.",
)
def erase_tenant(
    tenant: str, receipt: Path | None, wait_seconds: float, yes_erase: str | None
) -> None:
    """Remove TENANT: its records, its credentials, and all that was noted of it. For good.

    It is disconnected, its jobs are cancelled, and its runs are waited for; then its part of the
    lake, of the control tables and of Dagster's history is removed. Other tenants go on meanwhile.
    Prints a receipt as JSON.
    """
    from avesa_dagster.defs.erase import DagsterHistory
    from avesa_dagster.defs.homes import prepare
    from avesa_dagster.defs.processes import instance_in

    checked("tenant", tenant)
    installation = Installation.from_environment()
    if receipt is not None:
        _check_receipt(receipt)

    def deliver(done: Receipt) -> None:
        if receipt is not None:
            _write_whole(receipt, json.dumps(done.document(), indent=1) + "\n")
        print_json(done.document())
        for left in done.not_erased:
            click.echo(f"not erased: {left}", err=True)

    def say(text: str) -> None:
        click.echo(text, err=True)

    home = prepare(installation.settings)
    with instance_in(home) as instance:
        history = DagsterHistory(instance, home, _services(installation, tenant), say=say)
        _confirm(tenant, yes_erase, *survey(installation, tenant, history))
        erase(
            installation,
            tenant,
            history,
            deliver,
            wait_seconds=wait_seconds,
            say=say,
        )


def _services(installation: Installation, tenant: str) -> set[str]:
    """Names of all services that the tenant may have connected."""
    rows = installation.control.registry.all()
    return {*installation.catalog.services, *(r.service for r in rows if r.tenant == tenant)}


def _check_receipt(path: Path) -> None:
    """A receipt that cannot be written is found out before anything is removed."""
    if path.exists() and path.stat().st_size:
        raise ConfigurationError(
            f"the receipt {path} is there already", hint="give another name, or move it away"
        )
    try:
        _write_whole(path, "")
    except StoreError as error:
        raise ConfigurationError(error.what, hint=error.hint) from None
    path.unlink()


def _confirm(
    tenant: str, given: str | None, rows: list[TenantService], objects: int, size: int
) -> None:
    """Asks for the tenant's name, then whether to do it.

    Raises:
        ConfigurationError: The name that was given is another one.
        Abort: The answer was no, or nobody answers.
    """
    if given is not None:
        if given != tenant:
            raise _other_name(tenant, given)
        return
    services = ", ".join(row.service for row in rows) or "no service"
    click.echo(
        f"This removes all of {tenant} ({services}; {objects} objects, {size / 2**20:.1f} MB) "
        "for good.",
        err=True,
    )
    for attempt in range(_TRIES):
        typed = click.prompt("Type the tenant's name", err=True).strip()
        if typed == tenant:
            break
        if attempt == _TRIES - 1:
            raise _other_name(tenant, typed)
        click.echo("That is another name.", err=True)
    click.confirm(f"Erase {tenant}?", abort=True, err=True)


def _other_name(tenant: str, given: str) -> ConfigurationError:
    return ConfigurationError(
        f"the name given, {given[:80]!r}, is not {tenant!r}", hint="nothing was erased"
    )


def _write_whole(path: Path, text: str) -> None:
    """Replaces a file, for its owner only: all of it or nothing.

    Raises:
        StoreError: It cannot be written.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror}",
            hint="check the folder's owner and its free space",
        ) from error
