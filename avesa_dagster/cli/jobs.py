"""`avesa backfill`, `jobs`, `job`, `pause`, `resume`, `cancel`, `retry`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from avesa_dagster.backfill.estimate import Estimate
from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.backfill.progress import counted, ends_at, job_chunks
from avesa_dagster.cli.output import as_json_option, console, print_json, print_table
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus, PieceState
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked

_LOOK_SECONDS = 1.0
_SAY_EVERY = 5.0
"""Seconds between two lines where there is no terminal to draw on."""
_MARKS = {
    ChunkState.COMPLETED: ("■", "green"),
    ChunkState.RUNNING: ("◧", "yellow"),
    ChunkState.FAILED: ("✗", "red"),
    ChunkState.PLANNED: ("·", "dim"),
}


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
        if tenant or service or tables or start or end:
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
    _started(installation, [job], wait=wait, as_json=as_json, one=True)


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
    columns = ("job", "tenant", "service", "status", "from", "to", "chunks", "records", "note")
    print_table(columns, [_row(job) for job in shown])


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
        console.print(_drawn(installation, held))


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
    return [_live(installation, job)[0] if job.status in UNFINISHED else job for job in found]


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
                    live.update(_drawn(installation, job))
                elif time.monotonic() - said > _SAY_EVERY or job.status not in UNFINISHED:
                    said = time.monotonic()
                    talk.print(_line(*_live(installation, job), installation.clock()))
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
    _started(installation, started, wait=wait, as_json=as_json, one=False)


def _started(
    installation: Installation, jobs: Sequence[Job], *, wait: bool, as_json: bool, one: bool
) -> None:
    if wait:
        talk = Console(stderr=True, quiet=as_json)
        jobs = [follow(installation, job, talk) for job in jobs]
    if as_json:
        described = [_described(job) for job in jobs]
        print_json(described[0] if one else described)
    else:
        for job in jobs:
            click.echo(job.job_id if one and not wait else _line(job, (), installation.clock()))
    if not wait and not as_json:
        _hint_of_daemon(installation, jobs)
    if wait and any(job.status is not JobStatus.COMPLETED for job in jobs):
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
    rows = []
    for planned in estimate.pieces:
        piece = planned.piece
        rows.append(
            (
                piece.number + 1,
                ", ".join(piece.tables),
                f"{piece.first} … {piece.last}",
                len(planned.chunks),
                f"{planned.records:,}",
                f"{planned.requests:,}",
                _duration(planned.seconds),
            )
        )
    columns = ("run", "tables", "partitions", "chunks", "records", "requests", "takes")
    print_table(columns, rows, f"{job.tenant} {job.service}: what a backfill would do")
    waits = f" after waiting {_duration(estimate.wait)}" if estimate.wait else ""
    console.print(
        f"\n{estimate.chunks} chunks, {estimate.records:,} records, "
        f"{estimate.requests:,} requests: about {_duration(estimate.seconds)}{waits}; "
        f"started now, it would end at {estimate.ends_at(now):%Y-%m-%d %H:%M:%S} UTC. "
        f"({estimate.asked} requests told this.)"
    )


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


def _row(job: Job) -> tuple[object, ...]:
    return (
        job.job_id,
        job.tenant,
        job.service,
        job.status.value,
        f"{job.start:%Y-%m-%d}",
        f"{job.end:%Y-%m-%d}",
        f"{job.completed_chunks} of {job.total_chunks}"
        + (f", {job.failed_chunks} failed" if job.failed_chunks else ""),
        f"{job.records:,}",
        job.note or (job.errors[0].text if job.errors else ""),
    )


def _line(job: Job, chunks: Sequence[Chunk], now: datetime) -> str:
    ends = ends_at(job, chunks, now)
    told = f", ends about {ends:%H:%M:%S} UTC" if ends else ""
    note = f" ({job.note})" if job.note else ""
    return (
        f"job {job.job_id}: {job.status.value}{note}, {job.completed_chunks} of "
        f"{job.total_chunks} chunks, {job.records:,} records, {job.requests:,} requests{told}"
    )


def _drawn(installation: Installation, job: Job) -> RenderableType:
    """The job as a picture: a bar, and a row a table with a sign a chunk."""
    now = installation.clock()
    job, chunks = _live(installation, job)
    share = 100 * job.completed_chunks / max(1, job.total_chunks)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=100, completed=share, width=40), f"{share:.0f} %")
    parts: list[RenderableType] = [_line(job, chunks, now), bar]
    grid = Table(box=None, header_style="bold")
    for name in ("table", "newest … oldest", "chunks", "records", "requests"):
        grid.add_column(name, overflow="fold")
    for table in job.tables:
        own = [chunk for chunk in chunks if chunk.table == table]
        done = sum(chunk.state is ChunkState.COMPLETED for chunk in own)
        grid.add_row(
            table,
            "".join(_signs(own)),
            f"{done} of {len(own)}" if own else "not planned yet",
            f"{sum(chunk.rows for chunk in own):,}",
            f"{sum(chunk.requests for chunk in own):,}",
        )
    parts.append(grid)
    running = [c for c in chunks if c.state is ChunkState.RUNNING and job.status in UNFINISHED]
    for chunk in running[:8]:
        since = (
            f" for {_duration((now - chunk.started_at).total_seconds())}"
            if chunk.started_at
            else ""
        )
        parts.append(
            f"  {chunk.table} {chunk.start:%Y-%m-%d} … {chunk.end:%Y-%m-%d}: fetching{since}"
        )
    for error in job.errors[:8]:
        parts.append(
            f"  [red]✗[/red] {error.table or ''} {error.window or ''} {_plain(error.text)}"
        )
    waiting = sum(piece.state is PieceState.WAITING for piece in job.pieces)
    if waiting and job.status in UNFINISHED:
        parts.append(f"  {waiting} of {len(job.pieces)} runs are still to come")
    return Group(*parts)


def _signs(chunks: Sequence[Chunk]) -> Iterator[str]:
    for chunk in chunks[:120]:
        mark, style = _MARKS[chunk.state]
        yield f"[{style}]{mark}[/{style}]"
    if len(chunks) > 120:
        yield "…"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _duration(seconds: float) -> str:
    whole = timedelta(seconds=round(seconds))
    return f"{round(seconds)} s" if seconds < 120 else str(whole)
