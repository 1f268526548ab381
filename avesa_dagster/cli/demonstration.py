"""`avesa demo`, and what `avesa dev` shares with it: Dagster's processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click

from avesa_dagster.backfill.covered import connection_coverage
from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.cli.calendar import print_calendar
from avesa_dagster.cli.jobs import follow
from avesa_dagster.cli.output import console, print_records, print_table
from avesa_dagster.cli.staged import STAGED, TENANT, keep_off_real_tenants, simulators
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

_PATIENCE = 180
_CHANGED = 250
_OPEN = (
    "Open tickets by priority",
    "select priority, count(*) as tickets, count(distinct company_id) as companies "
    "from tickets where closed_date is null group by all order by tickets desc limit 10",
)
_WHO = (
    "Who works most for whom",
    "select c.company_name, count(*) as entries, round(sum(t.actual_hours)) as hours "
    "from time_entries t join companies c on c.id = t.company_id "
    "group by all order by 3 desc limit 5",
)
_UNITED = (
    "Tickets of all services together",
    "select source_service, count(*) as tickets, min(created_date) as first, "
    "max(last_updated) as last_change from tickets group by all order by 1",
)
_HISTORY = (
    "What happened to the ticket that changed last",
    "select id, record_version, status, effective_start_date, effective_end_date, is_current "
    "from tickets_history where id = (select id from tickets_history "
    "where record_version > 1 order by effective_start_date desc, id limit 1) order by 2",
)


def demonstrate(
    installation: Installation,
    services: Sequence[str],
    sizes: Mapping[str, Mapping[str, float]],
) -> int:
    """Runs the demonstration to its end; returns the exit code.

    Args:
        services: Those that the tenant connects.
        sizes: service -> sizes of its simulated world, where they differ from the usual ones.
    """
    began = time.monotonic()
    settings = installation.settings
    keep_off_real_tenants(installation, services)
    console.print(f"[bold]AVESA demo[/bold] in {settings.home}\n")
    with simulators(settings, services, sizes) as running:
        for service, simulator in running.items():
            one = STAGED[service]
            said = f"{simulator.url}, {one.limit} requests a minute"
            console.print(f"  simulated {one.title} on {said}")
        with dagster(settings, port=processes.free_port(), quiet=True):
            console.print("  Dagster's daemon and webserver are up")
            connections = [_connect(installation, s, running[s]) for s in services]
            failures = []
            for connection, again in connections:
                failures += _backfilled(installation, connection, again)
            if not failures:
                for connection, _ in connections:
                    service = connection.service
                    failures += _change_and_sync(installation, service, running[service])
        used = {service: simulator.control("stats") for service, simulator in running.items()}
    if failures:
        for failure in failures:
            click.echo(f"avesa: {failure}", err=True)
        return 1
    rows = [connection for connection, _ in connections]
    _say_what_arrived(installation, rows, used, time.monotonic() - began)
    return 0


def _connect(
    installation: Installation, service: str, simulator: Simulator
) -> tuple[TenantService, bool]:
    """The connection, and whether there was one before."""
    again = installation.control.registry.get(TENANT, service) is not None
    connection = installation.connect(
        TENANT,
        service,
        simulator.credentials,
        requests_per_minute=STAGED[service].limit,
    )
    console.print(
        f"  {TENANT} connected {service}: {', '.join(connection.tables)} from "
        f"{connection.history_start:%Y-%m-%d}"
    )
    return connection, again


def _backfilled(installation: Installation, connection: TenantService, again: bool) -> list[str]:
    """Follows the connection's job to its end; returns what failed."""
    service = connection.service
    job = _again(installation, service) if again else _onboarded(installation, service)
    console.print(f"  job {job.job_id}: avesa job {job.job_id} --watch\n")
    job = follow(installation, job, console)
    return [] if job.status is JobStatus.COMPLETED else _what_failed(job)


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


def _again(installation: Installation, service: str) -> Job:
    """The second demonstration fetches everything once more, and stores what differs."""
    console.print("  it was connected before: a new job fetches everything once more")
    return installation.backfills.start(Wish(TENANT, service, at_once=True))[0]


def _onboarded(installation: Installation, service: str) -> Job:
    """Waits for the job that the onboarding sensor starts."""
    console.print("  the onboarding sensor finds it, and starts a backfill")
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        jobs = installation.control.jobs.find(TENANT, service)
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


def _change_and_sync(installation: Installation, service: str, simulator: Simulator) -> list[str]:
    """Lets tickets change at the service, and the live sync bring their new versions."""
    now = installation.clock()
    lag = installation.catalog.services[service].lag_seconds
    changed = (now - timedelta(seconds=lag + 2)).strftime(SECOND_FORMAT)
    simulator.control("mutate", table=STAGED[service].changes, count=_CHANGED, at=changed)
    failures: list[str] = []
    connection = installation.control.registry.get(TENANT, service)
    if connection is None:
        return ["the tenant was disconnected meanwhile"]
    launches = sync_launches(
        installation.extractor,
        connection,
        now,
        full=False,
        name=f"demo-{service}-{now:%Y%m%dT%H%M%S}",
    )
    for launch in launches:
        failures += execute(launch, installation.settings.dagster_home).failures
    title = STAGED[service].title
    console.print(f"\n  {_CHANGED} tickets changed in {title}; the live sync has fetched them")
    return failures


def _say_what_arrived(
    installation: Installation,
    connections: Sequence[TenantService],
    used: Mapping[str, Mapping[str, Any]],
    seconds: float,
) -> None:
    reader = installation.reader()
    rows = []
    covered = {c.service: _covered(installation, c) for c in connections}
    for connection in connections:
        service = connection.service
        for table in connection.tables:
            mapping = installation.catalog.mapping(service, table)
            if mapping is None:
                continue
            name = mapping[0].table
            counts = reader.query(
                TENANT,
                f"select (select count(*) from {name} where source_service = '{service}') records, "
                f"(select count(*) from {name}_history where source_service = '{service}') "
                "versions",
            ).to_pylist()[0]
            windows = [item for item in covered[service] if item.table == table]
            full = sum(item.share >= 1.0 for item in windows)
            figures = (f"{counts['records']:,}", f"{counts['versions']:,}")
            rows.append((service, table, name, *figures, f"{full} of {len(windows)}"))
    console.print()
    columns = ("service", "table", "queried as", "records", "versions", "windows covered")
    print_table(columns, rows, "What arrived")
    console.print()
    for service, stats in used.items():
        busiest = max(stats["max_accepted_in_60s_by_credential"].values(), default=0)
        console.print(
            f"{STAGED[service].title}: {stats['total']} requests; the busiest minute took "
            f"{busiest} of {STAGED[service].limit} as the service counted, {stats['refused']} "
            "were refused"
        )
    console.print(f"All of it took {seconds:.0f} s\n")
    for service, items in covered.items():
        grain = installation.catalog.settings(TENANT, service).partitions
        print_calendar(f"Coverage of {TENANT} {service}", items, grain)
    own = _WHO if "connectwise" in used else None
    queries = [_OPEN, _UNITED if len(used) > 1 else own, _HISTORY]
    for title, sql in filter(None, queries):
        console.print(f'\n[bold]{title}[/bold]\n[dim]avesa query {TENANT} "{sql}"[/dim]')
        table_ = reader.query(TENANT, sql)
        print_records(table_.to_pylist(), table_.column_names)
    gone = "The services are" if len(used) > 1 else "The service is"
    console.print(f"\n{gone} gone; the queries still answer. Open the UI: [bold]make dev[/bold]")
