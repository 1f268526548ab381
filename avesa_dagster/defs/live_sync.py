"""The live sync: hourly from the watermarks, daily with master data whole and deletions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import dagster as dg

from avesa_dagster.control.base import TenantService
from avesa_dagster.defs.launches import sync_launches
from avesa_dagster.defs.resources import AvesaResource

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

    @dg.schedule(
        name="live_sync_hourly",
        cron_schedule="5 * * * *",
        job_name=_ALL_ASSETS,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every connected tenant service, from its watermark less the overlap to now "
        "less the lag. After a month's end the closed month is finished off.",
    )
    def hourly(
        context: dg.ScheduleEvaluationContext, avesa: AvesaResource
    ) -> Iterator[dg.RunRequest]:
        yield from _requests(context, avesa, loaded, full=False)

    @dg.schedule(
        name="full_sync_daily",
        cron_schedule="0 2 * * *",
        job_name=_ALL_ASSETS,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="As the hourly sync, with master data pulled whole and deletions found.",
    )
    def daily(
        context: dg.ScheduleEvaluationContext, avesa: AvesaResource
    ) -> Iterator[dg.RunRequest]:
        yield from _requests(context, avesa, loaded, full=True)

    return [hourly, daily]


def _requests(
    context: dg.ScheduleEvaluationContext,
    avesa: AvesaResource,
    loaded: Mapping[tuple[str, str], TenantService],
    *,
    full: bool,
) -> Iterator[dg.RunRequest]:
    installation = avesa.installation()
    now = installation.clock()
    for row in installation.control.registry.all():
        held = loaded.get((row.tenant, row.service))
        if held is None or not row.enabled:
            continue
        connection = replace(row, tables=tuple(t for t in row.tables if t in held.tables))
        name = (
            f"sync-{context.scheduled_execution_time:%Y%m%dT%H%M}"
            f"-{connection.tenant}-{connection.service}"
        )
        for launch in sync_launches(installation.extractor, connection, now, full=full, name=name):
            yield launch.request()
