"""Dagster's files of the aws profile, as Dagster itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import JobPythonOrigin
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._grpc.types import ExecuteRunArgs
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager
from dagster_postgres import DagsterPostgresStorage

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.defs import aws_home, homes, tags
from avesa_dagster.defs.coordinator import LaneCoordinator
from avesa_dagster.logs import JsonFormatter
from avesa_dagster.settings import Settings
from avesa_dagster_tests.deploy.template import Stack

ENVIRONMENT = {
    "AVESA_BUCKET": "avesa-lake-dev",
    "AVESA_CODE_HOST": "code.avesa-dev.internal",
    "AVESA_DATABASE_HOST": "db.example.invalid",
    "AVESA_DATABASE_PASSWORD": "p%40ss/word",
    "AVESA_DATABASE_PORT": "5432",
    "AVESA_RUN_TASK": "arn:aws:ecs:us-east-2:1:task-definition/avesa-dev-run:1",
    "AWS_DEFAULT_REGION": "us-east-2",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    aws_home.main(tmp_path)
    return tmp_path


def test_dagster_takes_its_configuration(home: Path) -> None:
    """`from_dir` checks every field against the schema; `rehydrate` makes what it describes."""
    ref = InstanceRef.from_dir(str(home))
    assert isinstance(ref.run_coordinator, LaneCoordinator)
    assert isinstance(ref.compute_log_manager, S3ComputeLogManager)
    assert ref.run_launcher_data is not None
    launcher = ref.run_launcher_data.class_name, ref.run_launcher_data.config_dict
    assert launcher[0] == "EcsRunLauncher"
    assert launcher[1]["task_definition"] == {"env": "AVESA_RUN_TASK"}
    assert launcher[1]["secrets_tag"] is None, "else it lists all secrets of the account"
    assert ref.storage_data is not None
    assert ref.storage_data.class_name == DagsterPostgresStorage.__name__


def test_the_password_stands_in_no_file_and_in_no_reference(home: Path) -> None:
    assert ENVIRONMENT["AVESA_DATABASE_PASSWORD"] not in (home / "dagster.yaml").read_text()
    assert ENVIRONMENT["AVESA_DATABASE_PASSWORD"] not in repr(InstanceRef.from_dir(str(home)))


def test_the_queue_is_the_one_of_the_mappings(home: Path) -> None:
    scheduling = load_catalog(Settings.from_environment({}).mappings).backfill.scheduling
    runs = InstanceRef.from_dir(str(home)).settings["concurrency"]["runs"]
    assert runs["max_concurrent_runs"] == scheduling.max_concurrent_runs
    limits = {limit["key"]: limit for limit in runs["tag_concurrency_limits"]}
    assert limits[tags.LANE]["limit"] == 1
    assert limits[tags.LANE]["value"] == {"applyLimitPerUniqueValue": True}
    assert limits[tags.MODE]["limit"] == scheduling.max_jobs


def test_it_differs_from_the_embedded_one_in_where_things_are_and_in_patience(
    home: Path, tmp_path: Path
) -> None:
    """Lanes, retries and retention are decisions about runs, not about where they run."""
    embedded = tmp_path / "embedded"
    homes.prepare(Settings.from_environment({"AVESA_HOME": str(embedded)}))
    ours = InstanceRef.from_dir(str(home)).settings
    theirs = InstanceRef.from_dir(str(embedded / "dagster")).settings
    assert ours.keys() - {"python_logs"} == theirs.keys()
    assert {name for name in theirs if ours[name] != theirs[name]} == {"run_monitoring"}


def test_a_runs_command_fits_into_what_ecs_takes(home: Path) -> None:
    """ECS takes 8192 characters of overrides, and Dagster's whole configuration is among them."""
    reference = InstanceRef.from_dir(str(home))
    origin = JobPythonOrigin(
        job_name="__ASSET_JOB",
        repository_origin=ReconstructableRepository.for_module(
            homes.MODULE, "defs", container_image="1" * 200
        )
        .get_python_origin()
        ._replace(entry_point=["dagster"]),
    )
    arguments = ExecuteRunArgs(job_origin=origin, run_id="0" * 36, instance_ref=reference)
    overrides = {
        "containerOverrides": [{"name": "run", "command": list(arguments.get_command_args())}]
    }
    assert len(json.dumps(overrides)) < 7000


def test_dagsters_events_are_logged_as_json(home: Path, tmp_path: Path) -> None:
    said = yaml.safe_load((home / "dagster.yaml").read_text())["python_logs"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with dg.DagsterInstance.local_temp(str(elsewhere), {"python_logs": said}) as instance:
        formatters = [handler.formatter for handler in instance.get_handlers()]
    assert [one for one in formatters if isinstance(one, JsonFormatter)]


def test_the_workspace_is_the_code_server(home: Path) -> None:
    (origin,) = location_origins_from_yaml_paths([str(home / "workspace.yaml")])
    assert isinstance(origin, GrpcServerCodeLocationOrigin)
    assert origin.host == ENVIRONMENT["AVESA_CODE_HOST"]
    assert (origin.port, origin.location_name) == (aws_home.CODE_PORT, homes.LOCATION)


def test_the_stack_starts_runs_in_the_container_that_the_launcher_looks_for() -> None:
    stack = Stack()
    (container,) = stack.properties("RunTask")["ContainerDefinitions"]
    assert container["Name"] == aws_home.RUN_CONTAINER
    family = stack.properties("RunTask")["Family"]
    launch = stack.policies("DaemonRole")[0]["Statement"][0]
    assert launch["Resource"].endswith(f"task-definition/{family}:*")
