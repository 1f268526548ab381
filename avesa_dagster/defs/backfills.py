"""The sensor that moves backfill jobs: launches their pieces, and keeps their rows true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph

from avesa_dagster.backfill.schedule import Turn, turns
from avesa_dagster.backfill.settle import RunState, settle
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.health import Breaker
from avesa_dagster.control.jobs import (
    ACTIVE,
    UNFINISHED,
    Job,
    JobStatus,
    Piece,
    PieceState,
    Trigger,
)
from avesa_dagster.defs import tags, umbrella
from avesa_dagster.defs.fetch import adopt, raw_tables
from avesa_dagster.defs.job_runs import hold_back, launched, runs_of, seen
from avesa_dagster.defs.launches import piece_launch
from avesa_dagster.defs.partitions import chosen_partitions
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.extract.request import Mode
from avesa_dagster.installation import Installation

Loaded = Mapping[tuple[str, str], TenantService]
_UNSEEN = timedelta(minutes=10)
"""A run that was launched in Dagster and is not there any more after so long was deleted."""
_ENDED = 50
"""Of the jobs that ended, so many of the newest may still have a run that winds down."""
_QUEUED = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED]


def backfills_sensor(rows: Sequence[TenantService]) -> dg.SensorDefinition:
    """The sensor of definitions that were built from these rows."""
    loaded = {(row.tenant, row.service): row for row in rows}

    @dg.sensor(
        name="backfills",
        asset_selection=dg.AssetSelection.all(),
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Launches the pieces of backfill jobs: few at once, fair between tenants, "
        "recent months first. Follows their runs, and takes up what was launched in Dagster.",
    )
    def backfills(
        context: dg.SensorEvaluationContext, avesa: AvesaResource
    ) -> dg.SensorResult | dg.SkipReason:
        installation = avesa.installation()
        graph = context.repository_def.asset_graph if context.repository_def else None
        requests = list(tick(context.instance, installation, loaded, graph))
        if not requests:
            return dg.SkipReason("nothing to launch")
        return dg.SensorResult(run_requests=requests)

    return backfills


def tick(
    instance: dg.DagsterInstance,
    installation: Installation,
    loaded: Loaded,
    graph: BaseAssetGraph | None,  # type: ignore[type-arg]
) -> Iterator[dg.RunRequest]:
    """Brings every job up to date; yields the runs to launch now."""
    jobs = installation.control.jobs
    now = installation.clock()
    _take_up(instance, installation, loaded)
    breakers = {(b.tenant, b.service): b for b in installation.control.breakers.all()}
    ended = jobs.find(statuses=set(JobStatus) - UNFINISHED, limit=_ENDED)
    for job in [*jobs.find(statuses=UNFINISHED), *filter(_has_launched, ended)]:
        if installation.settings.holds(job.tenant):
            _update(instance, installation, job, breakers.get((job.tenant, job.service)), graph)
    unfinished = jobs.find(statuses=UNFINISHED)
    for turn in turns(unfinished, breakers, installation.catalog, now):
        request = _launch(installation, turn, loaded, now)
        if request is not None:
            yield request
    for job in unfinished:  # a tick that died before its requests were stored
        for piece, run in launched(job, runs_of(instance, job)) if job.status in ACTIVE else ():
            if run is None and (job.trigger is not Trigger.DAGSTER or piece.attempt > 1):
                request = _request(installation, job, piece, loaded)
                if request is not None:
                    yield request


def _has_launched(job: Job) -> bool:
    return any(piece.state is PieceState.LAUNCHED for piece in job.pieces)


def _update(
    instance: dg.DagsterInstance,
    installation: Installation,
    job: Job,
    breaker: Breaker | None,
    graph: BaseAssetGraph | None,  # type: ignore[type-arg]
) -> None:
    """What the job's runs and chunks came to, into its row; its row's end, to its runs."""
    now = installation.clock()
    hold_back(instance, job)
    found = {}
    for piece, run in launched(job, runs_of(instance, job)):
        found[piece.number] = one = seen(instance, run)
        gone = piece.launched_at is not None and now - piece.launched_at > _UNSEEN
        if one.state is RunState.NONE and job.trigger is Trigger.DAGSTER and gone:
            found[piece.number] = replace(one, state=RunState.TERMINATED)
        if run is None or graph is None:
            continue
        if umbrella.ensure_shown(instance, graph, job, piece, run):
            found[piece.number] = replace(one, state=RunState.TERMINATED)
    if job.status is not JobStatus.PAUSED:
        job = installation.backfills.refresh(job)
    overdue = installation.backfills.overdue(job)

    def change(held: Job) -> Job:
        return _unlaunched(settle(held, found, breaker, now, overdue=overdue), found)

    job = installation.control.jobs.change(job.job_id, change, now=now)
    if job.status not in ACTIVE:
        hold_back(instance, job)


def _unlaunched(job: Job, found: Mapping[int, object]) -> Job:
    """A job that may not fetch keeps its pieces as launched until their runs have ended."""
    if job.status in ACTIVE:
        return job
    ended = {
        number
        for number, one in found.items()
        if getattr(one, "state", None) not in (RunState.QUEUED, RunState.RUNNING)
    }
    return replace(
        job,
        pieces=tuple(
            replace(piece, state=PieceState.WAITING)
            if piece.state is PieceState.LAUNCHED and piece.number in ended
            else piece
            for piece in job.pieces
        ),
    )


def _launch(
    installation: Installation, turn: Turn, loaded: Loaded, now: datetime
) -> dg.RunRequest | None:
    """Marks the piece as launched, then requests its run; or notes why the job waits."""
    job, piece = turn.job, turn.piece
    note = turn.note
    if piece is not None and (job.tenant, job.service) not in loaded:
        piece, note = None, "waits until its assets are loaded"
    if piece is None:
        if job.note != note:
            installation.control.jobs.change(
                job.job_id,
                lambda held: replace(held, note=note) if held.status in ACTIVE else held,
                now=now,
            )
        return None
    number = piece.number

    def change(held: Job) -> Job:
        mine = held.pieces[number]
        if held.status not in ACTIVE or mine.state is not PieceState.WAITING:
            return held
        mine = replace(
            mine, state=PieceState.LAUNCHED, attempt=mine.attempt + 1, launched_at=now, error=None
        )
        pieces = (*held.pieces[:number], mine, *held.pieces[number + 1 :])
        return replace(held, pieces=pieces, note="")

    job = installation.control.jobs.change(job.job_id, change, now=now)
    mine = job.pieces[number]
    if mine.launched_at != now or job.status not in ACTIVE:
        return None
    return _request(installation, job, mine, loaded)


def _request(
    installation: Installation, job: Job, piece: Piece, loaded: Loaded
) -> dg.RunRequest | None:
    held = loaded.get((job.tenant, job.service))
    row = installation.control.registry.get(job.tenant, job.service)
    if held is None or row is None or not row.enabled:
        return None
    tables = tuple(table for table in row.tables if table in held.tables)
    launch = piece_launch(job, piece, replace(row, tables=tables), installation.catalog)
    return launch.request()


def _take_up(instance: dg.DagsterInstance, installation: Installation, loaded: Loaded) -> None:
    """Makes jobs of the backfills that were launched in Dagster and wait there."""
    for run in instance.get_runs(dg.RunsFilter(statuses=_QUEUED)):
        if tags.mode_of(run) is not Mode.BACKFILL or tags.job_of(run) is not None:
            continue
        connection = loaded.get((run.tags.get(tags.TENANT, ""), run.tags.get(tags.SERVICE, "")))
        keys = tags.partition_keys(run)
        if connection is None or keys is None or not raw_tables(run, connection):
            continue
        partitions = chosen_partitions(keys, connection, installation.catalog)
        adopt(instance, installation, run, connection, partitions)
