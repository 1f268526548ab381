"""The live sync: hourly from the watermarks, daily with master data whole and deletions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import dagster as dg

from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import tags
from avesa_dagster.defs.launches import sync_launches
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.extract.request import Mode

_ALL_ASSETS = "__ASSET_JOB"
"""Dagster's implicit job over all assets. A schedule with a target must have one partitions
definition; with the job's name it may request any range (measured on 1.13.27)."""


def live_sync_schedules(rows: Sequence[TenantService]) -> list[dg.ScheduleDefinition]:
    """Both schedules, running by default.

    Args:
        rows: What the definitions were built from: a run can only be requested for assets that
            they hold. A tenant that connected since is synced once it is loaded.
    """
    loaded = {(row.tenant, row.service): row for row in rows}
    return [
        _schedule(
            "live_sync_hourly",
            "5 * * * *",
            "Every connected tenant service, from its watermark less the overlap to now less the "
            "lag. After a month's end the closed month is finished off.",
            loaded,
            full=False,
        ),
        _schedule(
            "full_sync_daily",
            "0 2 * * *",
            "As the hourly sync, with master data pulled whole and deletions found.",
            loaded,
            full=True,
        ),
    ]


def _schedule(
    name: str,
    cron: str,
    description: str,
    loaded: Mapping[tuple[str, str], TenantService],
    *,
    full: bool,
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=name,
        cron_schedule=cron,
        job_name=_ALL_ASSETS,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
    def sync(
        context: dg.ScheduleEvaluationContext, avesa: AvesaResource
    ) -> Iterator[dg.RunRequest]:
        yield from _requests(context, avesa, loaded, full=full)

    return sync


def _requests(
    context: dg.ScheduleEvaluationContext,
    avesa: AvesaResource,
    loaded: Mapping[tuple[str, str], TenantService],
    *,
    full: bool,
) -> Iterator[dg.RunRequest]:
    installation = avesa.installation()
    now = installation.clock()
    suspended = {(b.tenant, b.service) for b in installation.control.breakers.all() if b.opened_at}
    queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
    waiting = {(r.tags.get(tags.LANE), tags.mode_of(r)) for r in context.instance.get_runs(queued)}
    for row in installation.control.registry.all():
        held = loaded.get((row.tenant, row.service))
        if held is None or not row.enabled or (row.tenant, row.service) in suspended:
            continue  # the upkeep sensor probes the suspended ones
        connection = replace(row, tables=tuple(t for t in row.tables if t in held.tables))
        name = (
            f"sync-{context.scheduled_execution_time:%Y%m%dT%H%M}"
            f"-{connection.tenant}-{connection.service}"
        )
        for launch in sync_launches(installation.extractor, connection, now, full=full, name=name):
            same = (launch.tags[tags.LANE], Mode(launch.tags[tags.MODE]))
            if same not in waiting:  # else the one before has not begun, and will fetch this too
                yield launch.request()
