"""`avesa backfill`, `jobs`, `job`, `pause`, `resume`, `cancel`, `retry`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live

from avesa_dagster.backfill.estimate import Estimate
from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.backfill.progress import counted, ends_at, job_chunks
from avesa_dagster.cli.output import as_json_option, console, print_json
from avesa_dagster.cli.progress import drawn, job_line, print_jobs, print_plan
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked

_LOOK_SECONDS = 1.0
_SAY_EVERY = 5.0
"""Seconds between two lines where there is no terminal to draw on."""


class Day(click.ParamType):  # type: ignore[type-arg]
    """A day, `YYYY-MM-DD`."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no day; write it like 2026-03-01", param, ctx)


@click.command(
    epilog="""\b
Examples:
  avesa backfill acme connectwise --dry-run
  avesa backfill acme connectwise --start 2025-01-01 --table tickets --wait
  avesa backfill --auto-detect
"""
)
@click.argument("tenant", required=False)
@click.argument("service", required=False)
@click.option("--table", "tables", multiple=True, help="A table; may be repeated. Default: all.")
@click.option("--start", type=Day(), help="First day. Default: by the lookback.")
@click.option("--end", type=Day(), help="First day that is not asked for. Default: today included.")
@click.option("--chunk-size-days", type=int, help="About the length of a chunk, 1 to 366.")
@click.option("--now", "at_once", is_flag=True, help="Do not wait for the off-peak hours.")
@click.option("--missing", is_flag=True, help="Only what the ledger does not show as covered.")
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and what it will cost; start nothing."
)
@click.option("--auto-detect", is_flag=True, help="Start what every tenant service still needs.")
@click.option("--wait", is_flag=True, help="Follow it to its end; exit code 1 unless all arrived.")
@as_json_option
def backfill(
    tenant: str | None,
    service: str | None,
    tables: tuple[str, ...],
    start: date | None,
    end: date | None,
    chunk_size_days: int | None,
    at_once: bool,
    missing: bool,
    dry_run: bool,
    auto_detect: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Fetch TENANT's SERVICE again, or what of it was never fetched: starts a job.

    Dates are widened to whole partitions. The daemon (avesa dev) runs the job, recent months first.
    """
    installation = Installation.from_environment()
    if auto_detect:
        if (
            any((tenant, service, tables, start, end, at_once, missing))
            or chunk_size_days is not None
        ):
            raise click.UsageError("--auto-detect looks at every tenant service by itself.")
        _detect(installation, dry_run=dry_run, wait=wait, as_json=as_json)
        return
    if tenant is None or service is None:
        raise click.UsageError("Name TENANT and SERVICE, or use --auto-detect.")
    checked("tenant", tenant)
    wish = Wish(
        tenant=tenant,
        service=service,
        tables=tables or None,
        start=start,
        end=end,
        chunk_size_days=chunk_size_days,
        at_once=at_once,
        only_missing=missing,
    )
    if dry_run:
        _dry_run(installation, wish, as_json)
        return
    job, joined = installation.backfills.start(wish)
    if joined and not as_json:
        click.echo(f"Job {job.job_id} fetches all of this already; it was joined.", err=True)
    [job] = _followed(installation, [job], wait=wait, as_json=as_json)
    if as_json:
        print_json({**_described(job), "joined": joined})
    elif wait:
        click.echo(job_line(job, (), installation.clock()))
    else:
        click.echo(job.job_id)
        click.echo(f"Follow it: avesa job {job.job_id} --watch", err=True)
    _fail_unless_complete([job] if wait else [])


@click.command(
    epilog="""\b
Examples:
  avesa jobs
  avesa jobs acme --json
"""
)
@click.argument("tenant", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that ended, beyond the newest.")
@click.option("--rebuild", is_flag=True, help="First make lost jobs anew from Dagster's runs.")
@as_json_option
def jobs(tenant: str | None, everything: bool, rebuild: bool, as_json: bool) -> None:
    """List backfill jobs, newest first."""
    installation = Installation.from_environment()
    if rebuild:
        _rebuild(installation)
    shown = listed(installation, tenant, None if everything else 50)
    if as_json:
        print_json([_described(job) for job in shown])
        return
    if not shown:
        click.echo("There is no job. Start one: avesa backfill TENANT SERVICE")
        return
    print_jobs(console, shown)


@click.command(
    epilog="""\b
Examples:
  avesa job b1a2b3c4 --watch
  avesa job b1a2b3c4 --json
"""
)
@click.argument("job_id")
@click.option("--watch", is_flag=True, help="Follow it to its end.")
@as_json_option
def job(job_id: str, watch: bool, as_json: bool) -> None:
    """Show how far JOB_ID is, table by table and window by window, and when it will end."""
    installation = Installation.from_environment()
    held = installation.backfills.get(job_id)
    if watch:
        held = follow(installation, held, Console(stderr=True, quiet=as_json))
    if as_json:
        held, chunks = _live(installation, held)
        print_json(_described(held, chunks, installation.clock()))
    elif not watch:
        console.print(_picture(installation, held, console))


def _rebuild(installation: Installation) -> None:
    from avesa_dagster.defs.processes import instance_in
    from avesa_dagster.defs.rebuild import rebuild

    with instance_in(installation.settings.dagster_home) as instance:
        done = rebuild(instance, installation)
    click.echo(f"{len(done.jobs)} job(s) made anew from Dagster's runs and the ledger", err=True)
    for job_id, why in done.left.items():
        click.echo(f"{job_id} was not: {why}", err=True)


def listed(installation: Installation, tenant: str | None, limit: int | None) -> list[Job]:
    """Jobs, newest first; of those that may be fetching, how far they are now."""
    found = installation.control.jobs.find(tenant, limit=limit)
    running = JobStatus.RUNNING  # of all others, the row is up to date
    return [_live(installation, job)[0] if job.status is running else job for job in found]


def _steering(name: str, help_text: str) -> click.Command:
    @click.command(name, help=help_text, epilog=f"\b\nExample:\n  avesa {name} b1a2b3c4")
    @click.argument("job_id")
    @as_json_option
    def command(job_id: str, as_json: bool) -> None:
        installation = Installation.from_environment()
        turn: Callable[[str], Job] = getattr(installation.backfills, name)
        job = turn(job_id)
        if as_json:
            print_json(_described(job))
        else:
            click.echo(f"Job {job_id} is {job.status.value}.")
            _hint_of_daemon(installation, [job])

    return command


pause = _steering("pause", "Stop fetching JOB_ID within seconds; resume goes on.")
resume = _steering("resume", "Go on with a paused JOB_ID; what is finished is not fetched again.")
cancel = _steering("cancel", "End JOB_ID within seconds; what is done stays.")
retry = _steering("retry", "Take up JOB_ID that ended with errors: just the windows that lack.")


def follow(installation: Installation, job: Job, talk: Console) -> Job:
    """Shows a job until it has ended; returns it. Ctrl-C leaves it running."""
    said = 0.0
    try:
        with Live(console=talk, refresh_per_second=2, transient=False) as live:
            while True:
                job = installation.backfills.get(job.job_id)
                if talk.is_terminal:
                    live.update(_picture(installation, job, talk))
                elif time.monotonic() - said > _SAY_EVERY or job.status not in UNFINISHED:
                    said = time.monotonic()
                    line = job_line(*_live(installation, job), installation.clock())
                    talk.print(line, soft_wrap=True, markup=False, highlight=False)
                if job.status not in UNFINISHED or job.status is JobStatus.PAUSED:
                    return job
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        talk.print(f"Job {job.job_id} goes on: avesa job {job.job_id} --watch")
        raise


def _detect(installation: Installation, *, dry_run: bool, wait: bool, as_json: bool) -> None:
    needing = installation.backfills.needing()
    if dry_run:
        if as_json:
            print_json([{"tenant": r.tenant, "service": r.service, "why": w} for r, w in needing])
        for row, why in [] if as_json else needing:
            click.echo(f"{row.tenant} {row.service}: {why}")
        return
    filled = [installation.backfills.fill(row) for row, _ in needing]
    started = [job for job in filled if job is not None]
    if not started and not as_json:
        click.echo("Every tenant service has all of its history.")
        return
    started = _followed(installation, started, wait=wait, as_json=as_json)
    if as_json:
        print_json([_described(job) for job in started])
    else:
        for job in started:
            click.echo(job_line(job, (), installation.clock()))
    _fail_unless_complete(started if wait else [])


def _followed(
    installation: Installation, jobs: Sequence[Job], *, wait: bool, as_json: bool
) -> list[Job]:
    """The jobs, at their ends if somebody waits for that."""
    if wait or not as_json:  # who waits has to know why nothing happens, whatever is printed
        _hint_of_daemon(installation, jobs)
    if not wait:
        return list(jobs)
    talk = Console(stderr=True, quiet=as_json)
    return [follow(installation, job, talk) for job in jobs]


def _fail_unless_complete(jobs: Sequence[Job]) -> None:
    if any(job.status is not JobStatus.COMPLETED for job in jobs):
        raise click.exceptions.Exit(1)


def _hint_of_daemon(installation: Installation, jobs: Sequence[Job]) -> None:
    from avesa_dagster.defs.homes import prepare
    from avesa_dagster.defs.processes import daemon_runs

    active = any(job.status in UNFINISHED for job in jobs)
    if active and not daemon_runs(prepare(installation.settings)):
        click.echo("No daemon of avesa dev runs here; it begins as soon as one does.", err=True)


def _dry_run(installation: Installation, wish: Wish, as_json: bool) -> None:
    job = installation.backfills.plan(wish)
    talk = Console(stderr=True, quiet=as_json)
    with talk.status("counting") as status:
        estimate = installation.estimate(job, lambda table: status.update(f"counting {table}"))
    now = installation.clock()
    if as_json:
        print_json(_estimated(job, estimate, now))
        return
    print_plan(console, job, estimate, now)


def _estimated(job: Job, estimate: Estimate, now: datetime) -> dict[str, Any]:
    return {
        "tenant": job.tenant,
        "service": job.service,
        "start": job.start,
        "end": job.end,
        "chunks": estimate.chunks,
        "records": estimate.records,
        "requests": estimate.requests,
        "seconds": round(estimate.seconds, 1),
        "wait_seconds": round(estimate.wait, 1),
        "ends_at": estimate.ends_at(now),
        "asked": estimate.asked,
        "windows": [
            {
                "table": chunk.table,
                "start": chunk.window.start,
                "end": chunk.window.end,
                "records": chunk.records,
                "requests": chunk.requests,
            }
            for piece in estimate.pieces
            for chunk in piece.chunks
        ],
    }


def _live(installation: Installation, job: Job) -> tuple[Job, list[Chunk]]:
    chunks = job_chunks(job, installation.control.ledger)
    return (counted(job, chunks, installation.catalog) if chunks else job), chunks


def _described(
    job: Job, chunks: Sequence[Chunk] | None = None, now: datetime | None = None
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "job_id": job.job_id,
        "tenant": job.tenant,
        "service": job.service,
        "tables": job.tables,
        "start": job.start,
        "end": job.end,
        "trigger": job.trigger.value,
        "status": job.status.value,
        "note": job.note,
        "chunk_size_days": job.chunk_size_days,
        "total_chunks": job.total_chunks,
        "completed_chunks": job.completed_chunks,
        "failed_chunks": job.failed_chunks,
        "records": job.records,
        "requests": job.requests,
        "errors": [{"table": e.table, "window": e.window, "text": e.text} for e in job.errors],
        "run_ids": job.run_ids,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
    }
    if chunks is not None and now is not None:
        said["ends_at"] = ends_at(job, chunks, now)
        said["chunks"] = [
            {
                "table": chunk.table,
                "start": chunk.start,
                "end": chunk.end,
                "state": chunk.state.value,
                "records": chunk.rows,
                "requests": chunk.requests,
                "attempts": chunk.attempts,
                "error": chunk.error,
            }
            for chunk in chunks
        ]
    return said


def _picture(installation: Installation, job: Job, talk: Console) -> RenderableType:
    job, chunks = _live(installation, job)
    return drawn(job, chunks, installation.clock(), talk.width)
