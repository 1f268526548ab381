"""The sensor that moves backfill jobs: launches their pieces, and keeps their rows true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph

from avesa_dagster.backfill.moves import move
from avesa_dagster.backfill.settle import RunState, Seen
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import Job, Piece, Trigger
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
    _take_up(instance, installation, loaded)

    def waits(job: Job) -> str:
        held = loaded.get((job.tenant, job.service))
        row = installation.control.registry.get(job.tenant, job.service)
        if row is None or not row.enabled:
            return "waits until the tenant service is connected"
        on = set(job.tables) & set(row.tables)
        if held is None or not on <= set(held.tables) or held.history_start > row.history_start:
            return "waits until its assets are loaded"
        return ""

    for job, piece in move(
        installation.backfills,
        installation.control.breakers.all(),
        _DagsterRuns(instance, installation, graph),
        waits,
        installation.settings.holds,
    ):
        request = _request(installation, job, piece, loaded)
        if request is not None:
            yield request


@dataclass(frozen=True)
class _DagsterRuns:
    """The runs of jobs as Dagster knows them."""

    instance: dg.DagsterInstance
    installation: Installation
    graph: BaseAssetGraph | None  # type: ignore[type-arg]

    def seen(self, job: Job) -> dict[int, Seen]:
        """See Runs.seen."""
        now = self.installation.clock()
        row = self.installation.control.registry.get(job.tenant, job.service)
        found = {}
        for piece, run in launched(job, runs_of(self.instance, job)):
            found[piece.number] = one = seen(self.instance, run)
            gone = piece.launched_at is not None and now - piece.launched_at > _UNSEEN
            if one.state is RunState.NONE and job.trigger is Trigger.DAGSTER and gone:
                found[piece.number] = replace(one, state=RunState.TERMINATED)
            if run is None and row is not None and not set(piece.tables) & set(row.tables):
                found[piece.number] = Seen(RunState.FAILED, error="its tables were switched off")
            if run is None or self.graph is None:
                continue
            if umbrella.ensure_shown(self.instance, self.graph, job, piece, run):
                found[piece.number] = replace(one, state=RunState.TERMINATED)
        return found

    def hold_back(self, job: Job) -> None:
        """See Runs.hold_back."""
        hold_back(self.instance, job)


def _request(
    installation: Installation, job: Job, piece: Piece, loaded: Loaded
) -> dg.RunRequest | None:
    held = loaded.get((job.tenant, job.service))
    row = installation.control.registry.get(job.tenant, job.service)
    if held is None or row is None or not row.enabled:
        return None
    tables = tuple(table for table in row.tables if table in held.tables)
    if not set(piece.tables) & set(tables):
        return None
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
