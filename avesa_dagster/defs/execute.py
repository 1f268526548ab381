"""Running a launch in this process, as a run that the Dagster UI lists like any other."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from avesa_dagster.defs import tags
from avesa_dagster.defs.homes import LOCATION, MODULE
from avesa_dagster.defs.launches import Launch
from avesa_dagster.errors import ConfigurationError

_SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        failures: One text a failed step: what, where, and what to do.
    """

    run_id: str
    success: bool
    failures: tuple[str, ...]


def execute(launch: Launch, dagster_home: Path, *, quiet: bool = True) -> Outcome:
    """Runs a launch to its end, in this process, on the installation's Dagster instance.

    Args:
        quiet: Write the run's log for the UI only, not to the terminal.

    Raises:
        ConfigurationError: The assets are not among the definitions of this process.
    """
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    repository = ReconstructableRepository.for_module(MODULE, "defs", str(Path.cwd()))
    definition = repository.get_definition()
    unknown = [key for key in launch.keys if not definition.asset_graph.has(key)]
    if unknown:
        names = ", ".join(key.to_user_string() for key in unknown)
        raise ConfigurationError(
            f"the definitions hold no {names}",
            hint="write the registry snapshot anew: avesa tenants --refresh",
        )
    keys = frozenset(launch.keys)
    whole = definition.get_implicit_job_def_for_assets(keys)
    if whole is None:
        raise ConfigurationError(
            "these assets have different partitions", hint="run each service by itself"
        )
    job_name = whole.name
    job = repository.get_reconstructable_job(job_name).get_subset(asset_selection=keys)
    origin = RemoteRepositoryOrigin(
        ManagedGrpcPythonEnvCodeLocationOrigin(
            LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE),
            location_name=LOCATION,
        ),
        definition.name,
    ).get_job_origin(job_name)
    with dg.DagsterInstance.get() as instance:
        run = instance.create_run_for_job(
            job_def=job.get_definition(),
            asset_selection=keys,
            run_config=_SILENT if quiet else {},
            # A lane is for runs that queue; this one does not, and must block none if it dies.
            tags={
                **{name: value for name, value in launch.tags.items() if name != tags.LANE},
                "dagster/code_location": LOCATION,
            },
            remote_job_origin=origin,
            job_code_origin=job.get_python_origin(),
        )
        result = execute_run(job, run, instance, raise_on_error=False)
        failures = []
        for event in result.all_events:
            if event.event_type_value == "STEP_FAILURE":
                failures.append(_reason(event))
        return Outcome(run.run_id, result.success, tuple(failures))


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else "failed without a reason"
