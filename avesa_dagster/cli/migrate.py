"""`avesa migrate`: an installation moves into AWS; what the platform before left is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from avesa_dagster.cli.output import as_json_option, print_json, print_table
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked

if TYPE_CHECKING:
    from avesa_dagster.migration.avesa1.importing import Found, TableReport
    from avesa_dagster.migration.avesa1.places import Unplaced
    from avesa_dagster.migration.avesa1.tables import Before, TablesReport
    from avesa_dagster.migration.moving import Report
    from avesa_dagster.migration.telling import Progress

_NAMED = 10
_MB = 2**20


@click.command(
    epilog="""\b
Examples, moving an installation into AWS (stop avesa dev first):
  AVESA_PROFILE=aws AVESA_BUCKET=my-lake avesa migrate ~/.avesa --dry-run
  AVESA_PROFILE=aws AVESA_BUCKET=my-lake avesa migrate ~/.avesa
  AVESA_PROFILE=aws AVESA_BUCKET=my-lake avesa migrate ~/.avesa --verify-only

\b
Examples, importing from the platform before (into either profile):
  avesa migrate --from-avesa1 s3://data-storage-msp-prod --old-tables prod --build
  avesa migrate --from-avesa1 /mnt/copy-of-the-bucket --tenant acme

\b
Both may be killed and run again: they go on where they were.
"""
)
@click.argument("from_home", required=False, type=click.Path(path_type=Path))
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--verify-only", is_flag=True, help="Compare both sides; write nothing.")
@click.option("--from-avesa1", "place", help="Raw files of the platform before: s3://… or path.")
@click.option("--old-tables", metavar="ENV", help="Its DynamoDB tables, those that end in -ENV.")
@click.option("--old-profile", help="The AWS profile that reads them, if it is another one.")
@click.option("--old-region", help="The AWS region where they lie, if it is another one.")
@click.option("--build", is_flag=True, help="Build canonical tables and histories afterwards.")
@as_json_option
def migrate(
    from_home: Path | None,
    tenants: tuple[str, ...],
    dry_run: bool,
    verify_only: bool,
    place: str | None,
    old_tables: str | None,
    old_profile: str | None,
    old_region: str | None,
    build: bool,
    as_json: bool,
) -> None:
    """Move the embedded installation in FROM_HOME into AWS, or import from the platform before.

    A move copies objects, control tables and credentials, compares all of it by hashes, and only
    then lets the tenants work there. FROM_HOME is read and never changed; nothing that the target
    holds otherwise is ever replaced.

    An import adds what the platform before had observed as observations. Nothing counts as fetched
    by that: the backfill still fetches everything.

    Exit code 0: all is there. 1: something differs or could not be used; it is named.
    """
    for name in tenants:
        checked("tenant", name)
    importing = place is not None or old_tables is not None
    if importing == (from_home is not None):
        raise click.UsageError("give FROM_HOME, or --from-avesa1 and --old-tables, to come from")
    if importing and verify_only:
        raise click.UsageError("--verify-only compares a move; an import has nothing to compare")
    installation = Installation.from_environment()
    talk = Console(stderr=True)
    if from_home is not None:
        if build or old_profile or old_region:
            raise click.UsageError("--build, --old-profile and --old-region are for an import")
        _move(installation, from_home, tenants, dry_run, verify_only, as_json, talk)
        return
    _import(
        installation,
        place,
        _before(old_tables, old_profile, old_region),
        (old_profile, old_region),
        tenants,
        dry_run=dry_run,
        build=build,
        as_json=as_json,
        talk=talk,
    )


def _move(
    installation: Installation,
    from_home: Path,
    tenants: tuple[str, ...],
    dry_run: bool,
    verify_only: bool,
    as_json: bool,
    talk: Console,
) -> None:
    if installation.settings.aws is None:
        raise ConfigurationError(
            "an embedded installation is moved into AWS, and AVESA_PROFILE is embedded",
            hint="set AVESA_PROFILE=aws, AVESA_BUCKET and AVESA_ENVIRONMENT",
        )
    from avesa_dagster.migration.moving import Options
    from avesa_dagster.migration.moving import migrate as move

    home = from_home.expanduser().absolute()
    if not verify_only:
        _keep_off_daemon(home)
    options = Options(tenants, dry_run, verify_only)
    with _shown(talk, quiet=as_json) as progress:
        report = move(home, installation, options, progress)
    if as_json:
        print_json(report.document())
    else:
        _say_moved(report, dry_run=dry_run, verify_only=verify_only)
    if not report.well:
        raise click.exceptions.Exit(1)


def _keep_off_daemon(home: Path) -> None:
    if not (home / "dagster" / ".daemon.lock").exists():
        return
    from avesa_dagster.defs.processes import daemon_runs

    if daemon_runs(home / "dagster"):
        raise ConfigurationError(
            f"an `avesa dev` or `avesa demo` runs on {home}", hint="stop it, then run it again"
        )


def _say_moved(report: Report, *, dry_run: bool, verify_only: bool) -> None:
    click.echo(
        f"{report.source} → s3://{report.bucket}, tables -{report.environment}, "
        f"{report.seconds:.0f} s"
    )
    print_table(
        ("tenant", "state", "objects", "MB", "copied", "rows", "credentials", "sha256"),
        [
            (
                one.tenant,
                one.state,
                f"{one.objects:,}",
                f"{one.bytes / _MB:,.1f}",
                f"{one.copied:,}",
                f"{sum(n for name, n in one.rows.items() if name != 'secrets'):,}",
                one.rows.get("secrets", 0),
                one.digest[:16],
            )
            for one in report.tenants
        ],
    )
    for tenant in report.tenants:
        for text in tenant.since:
            click.echo(f"{tenant.tenant}: since it arrived: {text}")
        for text in tenant.differs:
            click.echo(f"✗ {tenant.tenant}: {text}")
    if not report.well:
        click.echo("Nothing that was there was replaced. Move the others with --tenant.")
    elif dry_run:
        click.echo("Nothing was written.")
    elif not verify_only:
        click.echo(
            "All of it is there. Do not start avesa dev on the old folder again: both would fetch. "
            "Dagster's own history of runs stays there; avesa coverage knows what was fetched."
        )


def _before(environment: str | None, profile: str | None, region: str | None) -> Before | None:
    if environment is None:
        return None
    from avesa_dagster.migration.avesa1.shelves import elsewhere
    from avesa_dagster.migration.avesa1.tables import Before

    clients = (elsewhere(name, profile, region) for name in ("dynamodb", "secretsmanager"))
    return Before(environment, *clients)


def _import(
    installation: Installation,
    place: str | None,
    before: Before | None,
    elsewhere: tuple[str | None, str | None],
    tenants: tuple[str, ...],
    *,
    dry_run: bool,
    build: bool,
    as_json: bool,
    talk: Console,
) -> None:
    from avesa_dagster.migration.avesa1 import importing
    from avesa_dagster.migration.avesa1.connecting import connected
    from avesa_dagster.migration.avesa1.shelves import shelf
    from avesa_dagster.migration.deriving import build as derive

    files = None if place is None else shelf(place, profile=elsewhere[0], region=elsewhere[1])
    said: dict[str, Any] = {"dry_run": dry_run}
    unplaced: list[Unplaced] = []
    with _shown(talk, quiet=as_json) as progress:
        if before is not None:
            report = _import_tables(installation, before, tenants, progress, dry_run)
            unplaced += report.unplaced
            said["tables"] = asdict(report)
        if files is not None:
            progress("looking for files", 0, 0)
            found = importing.find(files, installation, tenants)
            unplaced += found.unplaced
            if dry_run:
                said["files"] = _counted(found)
            else:

                def connecting(tenant: str, service: str) -> Any:
                    own = [name for t, s, name in found.tables if (t, s) == (tenant, service)]
                    return connected(installation, tenant, service, own)[0]

                done = importing.import_files(files, found, installation, connecting, progress)
                unplaced += [one for table in done for one in table.unreadable]
                said["files"] = [asdict(table) for table in done]
                touched = {(t.tenant, t.service, t.table): t.partitions for t in done}
                if build:
                    built = derive(installation.objects, installation.catalog, touched, progress)
                    said["built"] = asdict(built)
                else:
                    said["to_build"] = _to_build(installation, done)
    said["unplaced"] = [asdict(one) for one in unplaced]
    if as_json:
        print_json(said)
    else:
        _say_imported(said, unplaced)
    if unplaced:
        raise click.exceptions.Exit(1)


def _import_tables(
    installation: Installation,
    before: Before,
    tenants: tuple[str, ...],
    progress: Progress,
    dry_run: bool,
) -> TablesReport:
    from avesa_dagster.migration.avesa1.tables import TablesReport, import_tables, read_tables

    progress("reading the old tables", 0, 0)
    rows = read_tables(before, tenants)
    if dry_run:
        return TablesReport({n: None if own is None else len(own) for n, own in rows.items()})
    return import_tables(installation, before, rows, progress)


def _counted(found: Found) -> list[dict[str, Any]]:
    return [
        {
            "tenant": tenant,
            "service": service,
            "table": table,
            "files": len(files),
            "bytes": sum(file.size for file, _ in files),
            "first": files[0][1].observed_at,
            "last": files[-1][1].observed_at,
        }
        for (tenant, service, table), files in found.tables.items()
    ]


def _to_build(installation: Installation, tables: Sequence[TableReport]) -> list[dict[str, Any]]:
    """The assets to materialize, with the range of partitions."""
    return [
        {
            "canonical": f"{one.tenant}/canonical/{one.service}/{one.table}",
            "history": f"{one.tenant}/history/{canonical}",
            "first": one.partitions[0],
            "last": one.partitions[-1],
        }
        for one in tables
        if one.partitions
        and (canonical := installation.catalog.services[one.service].tables[one.table].canonical)
    ]


def _say_imported(said: dict[str, Any], unplaced: Sequence[Unplaced]) -> None:
    if tables := said.get("tables"):
        for name, rows in tables["rows"].items():
            click.echo(f"{name}: {'no such table' if rows is None else f'{rows:,} rows'}")
        for name, text in tables["connections"].items():
            click.echo(f"  {name}: {text}")
    files: list[dict[str, Any]] = said.get("files", [])
    names: tuple[str, ...]
    if said["dry_run"]:
        names = ("tenant", "service", "table", "files", "bytes", "first", "last")
    else:
        names = (
            "tenant", "service", "table", "files", "already", "empty", "records", "observations",
            "repeated", "rejected",
        )  # fmt: skip
    if files:
        print_table(names, [[one[name] for name in names] for one in files])
    for one in unplaced[:_NAMED]:
        click.echo(f"✗ {one.key}: {one.reason}")
    if len(unplaced) > _NAMED:
        click.echo(f"✗ … and {len(unplaced) - _NAMED} more; --json names them")
    if said["dry_run"]:
        click.echo("Nothing was written.")
    if built := said.get("built"):
        click.echo(
            f"Built {built['partitions']:,} partitions and {len(built['histories'])} tables."
        )
    if to_build := said.get("to_build"):
        click.echo("Not built yet: run it again with --build, or materialize in Dagster")
        for one in to_build:
            click.echo(
                f"  {one['canonical']} {one['first']} … {one['last']}, then {one['history']}"
            )


@contextmanager
def _shown(talk: Console, *, quiet: bool) -> Iterator[Progress]:
    """Shows on standard error how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Bar(*columns, TimeRemainingColumn(), console=talk, transient=True, disable=quiet) as bar:
        task = bar.add_task("looking", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield progress
