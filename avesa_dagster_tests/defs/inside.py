"""Definitions, sensors and runs of an installation in this process, on the installation's clock.

What the daemon and a run's worker do, one after another and without waiting: sensors are
evaluated, what they request is executed at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import UNFINISHED, Job
from avesa_dagster.control.snapshot import read_snapshot
from avesa_dagster.definitions import build
from avesa_dagster.defs import backfills, resources, upkeep
from avesa_dagster.defs.homes import LOCATION, MODULE, prepare
from avesa_dagster.defs.live_sync import live_sync_schedules
from avesa_dagster.installation import Installation

_MOST_ROUNDS = 200
_SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_ORIGIN = RemoteRepositoryOrigin(
    ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE),
        location_name=LOCATION,
    ),
    SINGLETON_REPOSITORY_NAME,
)
"""Where a run says that it comes from."""


class Inside:
    """An installation's code location without processes.

    Args:
        instance: Where runs and events go.
    """

    def __init__(self, installation: Installation, instance: dg.DagsterInstance) -> None:
        self.installation = installation
        self.instance = instance
        self._rows = read_snapshot(installation.settings.snapshot)
        self._repository = build(installation.settings).get_repository_def()

    @property
    def loaded(self) -> dict[tuple[str, str], TenantService]:
        return {(row.tenant, row.service): row for row in self._rows}

    def tick(self) -> list[dg.RunRequest]:
        """One tick of the sensor `backfills`: what it requests."""
        graph = self._repository.asset_graph
        return list(backfills.tick(self.instance, self.installation, self.loaded, graph))

    def queued(self, request: dg.RunRequest) -> dg.DagsterRun:
        """The run of a request as it stands in Dagster's queue."""
        keys = frozenset(request.asset_selection or ())
        job = self._repository.get_implicit_job_def_for_assets(keys)
        assert job is not None
        return self.instance.create_run_for_job(
            job_def=job.get_subset(asset_selection=keys),
            asset_selection=keys,
            tags=dict(request.tags),
            status=dg.DagsterRunStatus.QUEUED,
            remote_job_origin=_ORIGIN.get_job_origin(job.name),
        )

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Executes what a request asks for."""
        keys = list(request.asset_selection or ())
        job = self._repository.get_implicit_job_def_for_assets(keys)
        assert job is not None
        with patch.object(resources, "installation_of_this_process", lambda: self.installation):
            return job.execute_in_process(
                instance=self.instance,
                asset_selection=keys,
                tags=dict(request.tags),
                run_config=_SILENT,
                raise_on_error=False,
            )

    def settle(self) -> list[Job]:
        """Ticks, and executes what is requested, until no job is under way; returns all jobs."""
        jobs = self.installation.control.jobs
        for _ in range(_MOST_ROUNDS):
            for request in self.tick():
                self.run(request)
            if not jobs.find(statuses=UNFINISHED):
                self.tick()
                return jobs.find()
        raise AssertionError(f"jobs do not end: {jobs.find(statuses=UNFINISHED)}")

    def sync(self) -> list[dg.ExecuteInProcessResult]:
        """One tick of the hourly schedule, executed."""
        hourly, _ = live_sync_schedules(self._rows)
        now = self.installation.clock()
        with (
            patch.object(resources, "installation_of_this_process", lambda: self.installation),
            dg.build_schedule_context(
                instance=self.instance,
                scheduled_execution_time=now,
                resources={"avesa": resources.AvesaResource()},
            ) as context,
        ):
            requests = hourly.evaluate_tick(context).run_requests or []
        return [self.run(request) for request in requests]

    def look_after(self) -> list[str]:
        """One tick of the sensor `upkeep`: ids of the jobs that it started."""
        before = {job.job_id for job in self.installation.control.jobs.find()}
        sensor = upkeep.upkeep_sensor(self._rows)
        with (
            patch.object(resources, "installation_of_this_process", lambda: self.installation),
            dg.build_sensor_context(
                instance=self.instance, resources={"avesa": resources.AvesaResource()}
            ) as context,
        ):
            sensor(context)
        found = self.installation.control.jobs.find()
        return [job.job_id for job in found if job.job_id not in before]


@contextmanager
def inside(installation: Installation) -> Iterator[Inside]:
    """On the installation's own Dagster instance, with its queue."""
    home = prepare(installation.settings)
    with (
        patch.dict("os.environ", {"DAGSTER_HOME": str(home)}),
        dg.DagsterInstance.get() as instance,
    ):
        yield Inside(installation, instance)
