"""`avesa demo`, and what `avesa dev` shares with it: the simulated service, Dagster's processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from avesa_dagster.backfill.covered import connection_coverage
from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.cli.calendar import print_calendar
from avesa_dagster.cli.jobs import follow
from avesa_dagster.cli.output import console, print_records, print_table
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.coverage import PartitionCoverage
from avesa_dagster.control.jobs import Job, JobStatus
from avesa_dagster.defs import processes
from avesa_dagster.defs.execute import execute
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.launches import sync_launches
from avesa_dagster.errors import ConfigurationError, RetriableError
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import SECOND_FORMAT

TENANT, SERVICE = "acme", "connectwise"
_SEED = 7
_LIMIT = 200
_PORT = 8750
_PATIENCE = 180
_CHANGED = 250
_QUERIES = (
    (
        "Open tickets by priority",
        "select priority, count(*) as tickets, count(distinct company_id) as companies "
        "from tickets where closed_date is null group by all order by tickets desc",
    ),
    (
        "Who works most for whom",
        "select c.company_name, count(*) as entries, round(sum(t.actual_hours)) as hours "
        "from time_entries t join companies c on c.id = t.company_id "
        "group by all order by 3 desc limit 5",
    ),
    (
        "What happened to the ticket that changed last",
        "select id, record_version, status, effective_start_date, effective_end_date, is_current "
        "from tickets_history where id = (select id from tickets_history "
        "where record_version > 1 order by effective_start_date desc, id limit 1) order by 2",
    ),
)


def demonstrate(installation: Installation, sizes: Mapping[str, int]) -> int:
    """Runs the demonstration to its end; returns the exit code."""
    began = time.monotonic()
    settings = installation.settings
    _keep_off_real_tenants(installation)
    console.print(f"[bold]AVESA demo[/bold] in {settings.home}\n")
    with _demo_simulator(settings, sizes) as simulator:
        console.print(f"  simulated ConnectWise on {simulator.url}, {_LIMIT} requests a minute")
        with dagster(settings, port=processes.free_port(), quiet=True):
            console.print("  Dagster's daemon and webserver are up")
            again = installation.control.registry.get(TENANT, SERVICE) is not None
            connection = installation.connect(
                TENANT, SERVICE, simulator.credentials, requests_per_minute=_LIMIT
            )
            console.print(
                f"  {TENANT} connected {SERVICE}: {', '.join(connection.tables)} from "
                f"{connection.history_start:%Y-%m-%d}"
            )
            job = _again(installation) if again else _onboarded(installation)
            console.print(f"  job {job.job_id}: avesa job {job.job_id} --watch\n")
            job = follow(installation, job, console)
            failures = [] if job.status is JobStatus.COMPLETED else _what_failed(job)
            if not failures:
                failures = _change_and_sync(installation, simulator)
        used = simulator.control("stats")
    if failures:
        for failure in failures:
            click.echo(f"avesa: {failure}", err=True)
        return 1
    _say_what_arrived(installation, connection, used, time.monotonic() - began)
    return 0


@contextmanager
def dagster(
    settings: Settings, *, port: int, host: str = "127.0.0.1", quiet: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """Webserver and daemon as one child process; ended with the block, also by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    home = prepare(settings)
    if not processes.is_free(port):
        raise ConfigurationError(
            f"port {port} is taken", hint="give another one: --port 3333, or make dev PORT=3333"
        )
    with processes.sole_daemon(home):
        with processes.instance_in(home) as instance:
            processes.fail_dead_runs(instance, at_start=True)
        process = processes.start(settings, port=port, host=host, quiet=quiet)
        try:
            yield process
        finally:
            processes.stop(process)


@contextmanager
def simulator_of(installation: Installation) -> Iterator[str | None]:
    """Runs the demo's simulated service while a demo installation is open; yields its address."""
    if not _notes(installation.settings).exists():
        yield None
        return
    with _demo_simulator(installation.settings, {}) as simulator:
        connection = installation.control.registry.get(TENANT, SERVICE)
        if connection is not None and connection.enabled:
            installation.secrets.put(TENANT, SERVICE, simulator.credentials)  # its port may differ
        yield simulator.url


def _keep_off_real_tenants(installation: Installation) -> None:
    if _notes(installation.settings).exists():
        return
    if installation.control.registry.get(TENANT, SERVICE) is not None:
        raise ConfigurationError(
            f"{installation.settings.home} has a tenant {TENANT} of its own, which the demo would "
            "connect to a simulated service",
            hint="give the demo another folder: AVESA_HOME=… avesa demo (a demo's own folder "
            f"holds {_notes(installation.settings).name})",
        )


def _notes(settings: Settings) -> Path:
    return settings.home / "demo.json"


@contextmanager
def _demo_simulator(settings: Settings, sizes: Mapping[str, int]) -> Iterator[Simulator]:
    """The same world as the last time; at another address if the port is taken."""
    notes = _notes(settings)
    try:
        held: dict[str, Any] = json.loads(notes.read_text("utf-8"))
    except FileNotFoundError:
        held = {"now": datetime.now(UTC).strftime(SECOND_FORMAT), "sizes": dict(sizes)}
        settings.make_home()
        notes.write_text(json.dumps(held, indent=1), "utf-8")
    options = {**held["sizes"], "now": held["now"], "seed": _SEED}
    port = _PORT if processes.is_free(_PORT) else 0
    with Simulator(port=port, requests_per_minute=_LIMIT, **options) as simulator:
        simulator.control("clock", offset_seconds=0)
        yield simulator


def _again(installation: Installation) -> Job:
    """The second demonstration fetches everything once more, and stores what differs."""
    console.print("  it was connected before: a new job fetches everything once more")
    return installation.backfills.start(Wish(TENANT, SERVICE, at_once=True))[0]


def _onboarded(installation: Installation) -> Job:
    """Waits for the job that the onboarding sensor starts."""
    console.print("  the onboarding sensor finds it, and starts a backfill")
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        jobs = installation.control.jobs.find(TENANT, SERVICE)
        if jobs:
            return jobs[0]
        time.sleep(0.5)
    raise RetriableError(
        f"the onboarding sensor has not found the tenant in {_PATIENCE} s",
        hint="look into the daemon's log, or with: make dev",
    )


def _what_failed(job: Job) -> list[str]:
    said = [error.text for error in job.errors] or [job.note]
    return [f"job {job.job_id} is {job.status.value}: {text}" for text in said]


def _covered(installation: Installation, connection: TenantService) -> list[PartitionCoverage]:
    control = installation.control
    return connection_coverage(
        connection, installation.catalog, control.ledger, control.watermarks, installation.clock()
    )


def _change_and_sync(installation: Installation, simulator: Simulator) -> list[str]:
    """Lets tickets change at the service, and the live sync bring their new versions."""
    now = installation.clock()
    lag = installation.catalog.services[SERVICE].lag_seconds
    changed = (now - timedelta(seconds=lag + 2)).strftime(SECOND_FORMAT)
    simulator.control("mutate", table="tickets", count=_CHANGED, at=changed)
    failures: list[str] = []
    connection = installation.control.registry.get(TENANT, SERVICE)
    if connection is None:
        return ["the tenant was disconnected meanwhile"]
    launches = sync_launches(
        installation.extractor, connection, now, full=False, name=f"demo-{now:%Y%m%dT%H%M%S}"
    )
    for launch in launches:
        failures += execute(launch, installation.settings.dagster_home).failures
    console.print(f"\n  {_CHANGED} tickets changed at the service; the live sync has fetched them")
    return failures


def _say_what_arrived(
    installation: Installation,
    connection: TenantService,
    used: Mapping[str, Any],
    seconds: float,
) -> None:
    reader = installation.reader()
    covered = _covered(installation, connection)
    rows = []
    for table in connection.tables:
        counts = reader.query(
            TENANT,
            f"select (select count(*) from {table}) records, "
            f"(select count(*) from {table}_history) versions",
        ).to_pylist()[0]
        windows = [item for item in covered if item.table == table]
        full = sum(item.share >= 1.0 for item in windows)
        rows.append(
            (
                table,
                f"{counts['records']:,}",
                f"{counts['versions']:,}",
                f"{full} of {len(windows)}",
            )
        )
    console.print()
    print_table(("table", "records", "versions", "windows covered"), rows, "What arrived")
    busiest = max(used["max_accepted_in_60s_by_credential"].values(), default=0)
    console.print(
        f"\n{used['total']} requests in {seconds:.0f} s; the busiest minute took {busiest} of "
        f"{_LIMIT} as the service counted, {used['refused']} were refused\n"
    )
    grain = installation.catalog.settings(TENANT, SERVICE).partitions
    print_calendar(f"Coverage of {TENANT} {SERVICE}", covered, grain)
    for title, sql in _QUERIES:
        console.print(f'\n[bold]{title}[/bold]\n[dim]avesa query {TENANT} "{sql}"[/dim]')
        table_ = reader.query(TENANT, sql)
        print_records(table_.to_pylist(), table_.column_names)
    console.print(
        "\nThe service is gone; the queries still answer. Open the UI: [bold]make dev[/bold]"
    )
