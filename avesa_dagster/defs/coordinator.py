"""The run queue's door: whoever launches a run, it gets its lane and its priority here.

Dagster limits queued runs by their tags, and gives runs from the UI or `dagster launch` none.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._serdes import ConfigurableClass

from avesa_dagster.defs import tags


class LaneCoordinator(QueuedRunCoordinator, ConfigurableClass):
    """Dagster's own queue, with a tenant's lane on each run."""

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        missing = {k: v for k, v in lane_tags(run).items() if k not in run.tags}
        if missing:
            self._instance.add_run_tags(run.run_id, missing)
        return super().submit_run(context)


def lane_tags(run: dg.DagsterRun) -> dict[str, str]:
    """Tenant, service, mode and lane of a run of one tenant's service; else none.

    Two services in one run are in the lane of the first by name: a run has one lane.
    """
    selected = sorted(tuple(key.path) for key in run.asset_selection or ())
    places = [(path[0], path[2]) for path in selected if len(path) == 4]
    if not places:
        return {}
    tenant, service = places[0]
    mode = tags.mode_of(run)
    return {
        tags.TENANT: tenant,
        tags.SERVICE: service,
        tags.MODE: mode.value,
        tags.LANE: tags.lane(mode, tenant, service),
    }
