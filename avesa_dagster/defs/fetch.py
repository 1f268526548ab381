"""One table's fetch inside of a run: whose job it is, how far it is, and when it has to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from avesa_dagster.backfill.beats import Stopping, beating
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import Processing
from avesa_dagster.defs import tags
from avesa_dagster.errors import Stopped
from avesa_dagster.extract.request import Extracted, Mode, Progress, Request
from avesa_dagster.installation import Installation
from avesa_dagster.sources.base import Window

STOPPED_ITSELF = "The run stops by itself: "
"""Begins what a run says that noticed that it has to stop; nobody ended it in Dagster."""
_TAG_EVERY = 4.0
"""Seconds between two writings of the run's progress tag."""


def request_of(
    context: dg.AssetExecutionContext,
    installation: Installation,
    connection: TenantService,
    table: str,
    partitions: Sequence[Partition],
) -> Request:
    """What the run asks of this table; a backfill that was launched by hand becomes a job here."""
    run = context.run
    mode = tags.mode_of(run)
    job_id = tags.job_of(run)
    if mode is Mode.BACKFILL and job_id is None:
        job_id = adopt(context.instance, installation, run, connection, partitions)
    job = None if job_id is None else installation.backfills.jobs.get(job_id)
    stretches = [s for s in job.stretches if s.table == table] if job else []
    return Request(
        tenant=connection.tenant,
        service=connection.service,
        table=table,
        partitions=tuple(partitions),
        mode=mode,
        token=job_id or tags.token_of(run),
        run_id=run.run_id,
        job_id=job_id,
        chunk_days=job.chunk_size_days if job else None,
        stretches=tuple(Window(s.start, s.end) for s in stretches),
        only_missing=job.only_missing if job else False,
    )


def adopt(
    instance: dg.DagsterInstance,
    installation: Installation,
    run: dg.DagsterRun,
    connection: TenantService,
    partitions: Sequence[Partition],
) -> str:
    """Makes a run that was launched in Dagster a job's; returns the job's id."""
    tables = raw_tables(run, connection)
    job, piece = installation.backfills.adopt(tags.new_job_id(run), connection, tables, partitions)
    instance.add_run_tags(
        run.run_id, {tags.JOB: job.job_id, tags.PIECE: f"{piece.number}.{piece.attempt}"}
    )
    return job.job_id


def raw_tables(run: dg.DagsterRun, connection: TenantService) -> list[str]:
    """Tables of the connection that the run fetches."""
    begin = [connection.tenant, "raw", connection.service]
    chosen = run.asset_selection
    if chosen is None:
        return list(connection.tables)
    return [key.path[3] for key in chosen if list(key.path[:3]) == begin]


def fetch(
    context: dg.AssetExecutionContext, installation: Installation, request: Request
) -> Extracted:
    """Extracts, while the run beats, says how far it is, and looks whether it has to stop.

    Raises:
        DagsterExecutionInterruptedError: It was told to stop; the run ends as cancelled.
        AvesaError: As Extractor.extract.
    """
    title = f"{request.tenant} {request.service} {request.table}"
    stopping = Stopping(
        lambda: installation.backfills.stop_reason(request.job_id, request.tenant, request.service)
    )
    began = time.monotonic()
    tagged_at = -_TAG_EVERY
    now = installation.clock()
    most = installation.catalog.backfill.scheduling.max_tenants
    lane = "backfill" if request.mode is Mode.BACKFILL else "live"
    row = Processing(
        run_id=request.run_id,
        tenant=request.tenant,
        service=request.service,
        table=request.table,
        lane=f"{lane}/{request.tenant}/{request.service}/{request.table}",
        mode=request.mode.value,
        started_at=now,
        beat_at=now,
        job_id=request.job_id,
    )
    context.log.info(
        f"{title}: {request.mode.value} of {len(request.partitions)} partition(s), "
        f"{request.partitions[0].key} to {request.partitions[-1].key}"
    )

    def ended(holder: Processing) -> bool:
        run = context.instance.get_run_by_id(holder.run_id)
        return run is not None and run.is_finished

    def waiting(holder: Processing) -> None:
        what = "the same table" if holder.lane == row.lane else f"for {holder.tenant}"
        context.log.info(f"{title}: waits for run {holder.run_id}, which fetches {what}")

    try:
        with beating(
            installation.control.processing,
            row,
            installation.clock,
            stopping,
            waiting,
            ended,
            tenants=most if request.mode is Mode.BACKFILL else None,
        ) as alive:

            def report(progress: Progress) -> None:
                nonlocal tagged_at
                alive.told(progress)
                if progress.ended:
                    context.log.info(_line(title, progress))
                finished = progress.done >= progress.total
                if finished or time.monotonic() - began - tagged_at >= _TAG_EVERY:
                    tagged_at = time.monotonic() - began
                    said = {tags.PROGRESS: _short(request.table, progress)}
                    context.instance.add_run_tags(request.run_id, said)

            return installation.extractor.extract(request, report, stopping)
    except Stopped as error:
        reason = stopping.reason or error.what
        context.log.warning(f"{title}: stopped: {reason}")
        # Dagster calls a run that was interrupted failed, and retries it, unless this was said.
        context.instance.report_run_canceling(context.run, f"{STOPPED_ITSELF}{reason}")
        raise DagsterExecutionInterruptedError(reason) from None


def _line(title: str, progress: Progress) -> str:
    return (
        f"{title}: chunk {progress.done}/{progress.total} ({_share(progress)} %) "
        f"{progress.ended} done, {progress.rows} rows, {progress.requests} requests"
        f"{_left(progress)}"
    )


def _short(table: str, progress: Progress) -> str:
    return (
        f"{table} {_share(progress)} %: {progress.done} of {progress.total} chunks, "
        f"{progress.rows} rows{_left(progress)}"
    )


def _share(progress: Progress) -> int:
    return round(100 * progress.done / max(1, progress.total))


def _left(progress: Progress) -> str:
    if progress.seconds_left is None or progress.done >= progress.total:
        return ""
    return f", about {progress.seconds_left:.0f} s left"
