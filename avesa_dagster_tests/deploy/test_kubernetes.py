"""The values for Dagster's Helm chart name what there is, and say what the stack says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dagster._cli.code_server import start_command
from dagster._config import process_config, resolve_to_config_type

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.defs import aws_home, homes
from avesa_dagster.settings import Settings
from avesa_dagster_tests.deploy.template import ROOT

VALUES = ROOT / "deploy" / "kubernetes" / "values.yaml"


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(VALUES.read_text("utf-8"))
    return loaded


def test_the_run_queue_is_the_one_of_the_aws_profile(
    values: dict[str, Any], tmp_path: Path
) -> None:
    said = values["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    coordinator = getattr(importlib.import_module(said["module"]), said["class"])
    checked = process_config(resolve_to_config_type(coordinator.config_type()), said["config"])
    assert checked.success, checked.errors

    scheduling = load_catalog(Settings.from_environment({}).mappings).backfill.scheduling
    stack = yaml.safe_load(aws_home.files(scheduling, homes.LOCATION)["dagster.yaml"])
    expected = {**stack["run_coordinator"]["config"], **stack["concurrency"]["runs"]}
    assert said["config"] == expected
    daemon = values["dagsterDaemon"]
    assert daemon["runRetries"]["maxRetries"] == stack["run_retries"]["max_retries"]
    assert daemon["runRetries"]["retryOnAssetOrOpFailure"] is False
    monitoring = stack["run_monitoring"]
    assert daemon["runMonitoring"]["startTimeoutSeconds"] == monitoring["start_timeout_seconds"]


def test_the_code_server_is_reloadable_and_found(values: dict[str, Any]) -> None:
    (server,) = values["dagsterWebserver"]["workspace"]["servers"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert "dagsterApiGrpcArgs" not in deployment
    assert (server["host"], server["port"]) == (deployment["name"], deployment["port"])
    assert server["name"] == homes.LOCATION
    arguments = deployment["codeServerArgs"]
    assert arguments[arguments.index("--module-name") + 1] == homes.MODULE
    assert arguments[arguments.index("--location-name") + 1] == homes.LOCATION
    known = {option for parameter in start_command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known
    assert CliRunner().invoke(start_command, ["--help"]).exit_code == 0


def test_everybody_has_settings_that_avesa_takes(values: dict[str, Any]) -> None:
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    for component in (values["dagsterWebserver"], values["dagsterDaemon"], deployment):
        variables = {said["name"]: said["value"] for said in component["env"]}
        settings = Settings.from_environment({**variables, "AVESA_BUCKET": "a-bucket"})
        assert settings.aws is not None and settings.aws.environment == "dev"
        assert component["image"] == {
            "repository": "IMAGE",
            "tag": "TAG",
            "pullPolicy": "IfNotPresent",
        }


def test_output_lies_where_the_stack_has_it_expire(values: dict[str, Any]) -> None:
    assert values["computeLogManager"]["config"]["s3ComputeLogManager"]["prefix"] == aws_home.OUTPUT


def test_there_is_no_credential_and_no_registry_in_it() -> None:
    text = VALUES.read_text("utf-8")
    assert "postgresqlPassword" not in text
    assert "docker.io" not in text and ".dkr." not in text and "ghcr.io" not in text
