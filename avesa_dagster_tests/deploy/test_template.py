"""The template says what it has to say, for every environment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster import logs
from avesa_dagster.control.dynamo_tables import TABLES, create_arguments
from avesa_dagster.defs import aws_home
from avesa_dagster.doctor.tables import BUCKET_TAG, ENVIRONMENT_TAG
from avesa_dagster.settings import Settings
from avesa_dagster.watch import recipients
from avesa_dagster_tests.deploy.tables import brought_up_to_date
from avesa_dagster_tests.deploy.template import KNOWN, PARAMETERS, TEMPLATE, Stack, load

ENVIRONMENTS = ("dev", "staging", "prod")
OTHER_NETWORK = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"}


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack()


def test_cfn_lint_finds_nothing() -> None:
    lint = Path(sys.executable).parent / "cfn-lint"
    said = subprocess.run([lint, TEMPLATE], capture_output=True, text=True, timeout=120)
    assert (said.returncode, said.stdout) == (0, ""), said.stdout + said.stderr


def test_the_template_is_small_enough_for_cloudformation() -> None:
    assert len(TEMPLATE.read_bytes()) < 1_000_000
    assert not re.search(r": [&*]\w", TEMPLATE.read_text("utf-8")), "CloudFormation has no aliases"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_tables_are_those_of_the_package(environment: str) -> None:
    tables = Stack(Environment=environment).of_type("AWS::DynamoDB::Table")
    expected = {
        f"{table.name}Table": {
            **create_arguments(table, f"{table.name}-{environment}"),
            "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": table.recoverable},
            "Tags": [
                {"Key": ENVIRONMENT_TAG, "Value": environment},
                {"Key": BUCKET_TAG, "Value": PARAMETERS["BucketName"]},
            ],
        }
        for table in TABLES
    }
    assert tables == expected, "python -m avesa_dagster_tests.deploy.tables brings it up to date"


def test_bringing_the_tables_up_to_date_changes_nothing_now() -> None:
    text = TEMPLATE.read_text("utf-8")
    assert brought_up_to_date(text) == text


def test_what_is_brought_up_to_date_is_what_was_missing() -> None:
    text = TEMPLATE.read_text("utf-8")
    without = text.replace("LastUpdated-", "Other-").replace("LastUpdatedTable", "OtherTable")
    assert without != text
    assert brought_up_to_date(without).count("table/LastUpdated-") == text.count(
        "table/LastUpdated-"
    )


@pytest.mark.parametrize(
    "kind", ["AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::S3::BucketPolicy"]
)
def test_what_holds_data_outlives_the_stack(stack: Stack, kind: str) -> None:
    held = [said for said in stack.resources.values() if said["Type"] == kind]
    assert held
    for said in held:
        assert said["DeletionPolicy"] == said["UpdateReplacePolicy"] == "Retain"


def test_a_stack_can_be_made_again_over_the_data_that_it_left() -> None:
    kept = Stack(Data="keep")
    assert not kept.of_type("AWS::S3::Bucket") and not kept.of_type("AWS::DynamoDB::Table")
    # Nothing else depends on them: what is left says the same.
    made = Stack()
    holding = {"AWS::S3::Bucket", "AWS::S3::BucketPolicy", "AWS::DynamoDB::Table"}
    assert kept.resources == {
        name: said for name, said in made.resources.items() if said["Type"] not in holding
    }


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_database_is_private_encrypted_and_backed_up(environment: str) -> None:
    stack = Stack(Environment=environment)
    database = stack.properties("Database")
    assert database["StorageEncrypted"] is True
    assert database["PubliclyAccessible"] is False
    assert database["ManageMasterUserPassword"] is True and "MasterUserPassword" not in database
    assert database["BackupRetentionPeriod"] >= 7
    assert stack.resources["Database"]["DeletionPolicy"] == "Snapshot"
    assert database["MultiAZ"] is (environment == "prod")
    assert database["DBName"] == aws_home.DATABASE
    open_to = stack.properties("DatabaseGroup")["SecurityGroupIngress"]
    assert all("SourceSecurityGroupId" in rule and "CidrIp" not in rule for rule in open_to)


def test_limits_differ_by_environment() -> None:
    stacks = [Stack(Environment=environment) for environment in ENVIRONMENTS]
    for alarm, limits in (("ErrorRate", [5, 3, 1]), ("Stale", [24, 12, 6])):
        assert [stack.properties(alarm)["Threshold"] for stack in stacks] == limits


def test_every_alarm_tells_the_topic_and_only_cloudwatch_may_write_there(stack: Stack) -> None:
    alarms = stack.of_type("AWS::CloudWatch::Alarm")
    assert len(alarms) >= 10
    topic = stack.properties("TopicPolicy")["Topics"][0]
    for alarm in alarms.values():
        assert alarm["AlarmActions"] == alarm["OKActions"] == [topic]
    assert len({alarm["AlarmName"] for alarm in alarms.values()}) == len(alarms)
    assert stack.properties("Topic")["Subscription"] == [
        {"Protocol": "email", "Endpoint": "ops@example.org"}
    ]
    assert "Subscription" not in Stack(AlarmEmail="").properties("Topic")


def test_a_service_that_does_not_run_is_an_alarm(stack: Stack) -> None:
    silent = {
        dimension["Value"]
        for alarm in stack.of_type("AWS::CloudWatch::Alarm").values()
        if alarm["TreatMissingData"] == "breaching"
        for dimension in alarm["Dimensions"]
        if dimension["Name"] == "ServiceName"
    }
    services = stack.of_type("AWS::ECS::Service")
    assert silent == {f"{name}.Name" for name in services}


def test_dashboards_are_json_and_named_as_their_users_know_them(stack: Stack) -> None:
    boards = stack.of_type("AWS::CloudWatch::Dashboard").values()
    assert {board["DashboardName"] for board in boards} == {
        "AVESA-Pipeline-Overview-dev",
        "DataQuality-Pipeline-Dashboard-dev",
    }
    services = {said["ServiceName"] for said in stack.of_type("AWS::ECS::Service").values()}
    for board in boards:
        for widget in json.loads(board["DashboardBody"])["widgets"]:
            for metric in widget["properties"]["metrics"]:
                dimensions = dict(zip(metric[2::2], metric[3::2], strict=True))
                assert dimensions.get("ServiceName", "daemon") in services
                assert dimensions.get("Environment", "dev") == "dev"


def test_alarms_and_dashboards_speak_of_the_same_metrics(stack: Stack) -> None:
    """An alarm about a metric that no dashboard shows, or nobody writes, would never be noticed."""
    shown = {
        tuple(metric[:2])
        for board in stack.of_type("AWS::CloudWatch::Dashboard").values()
        for widget in json.loads(board["DashboardBody"])["widgets"]
        for metric in widget["properties"]["metrics"]
    }
    watched = {
        (metric["Namespace"], metric["MetricName"])
        for alarm in stack.of_type("AWS::CloudWatch::Alarm").values()
        for metric in [alarm, *(one["MetricStat"]["Metric"] for one in _measured(alarm))]
        if "MetricName" in metric
    }
    own = {metric for metric in watched if not metric[0].startswith("AWS/")}
    assert own <= shown


def _measured(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in alarm.get("Metrics", ()) if "MetricStat" in one]


@pytest.mark.parametrize("parameters", [{}, OTHER_NETWORK], ids=["own network", "another's"])
def test_nothing_is_open_to_the_internet(parameters: dict[str, str]) -> None:
    stack = Stack(**parameters)
    for group in stack.of_type("AWS::EC2::SecurityGroup").values():
        for rule in group.get("SecurityGroupIngress", ()):
            assert rule.get("CidrIp", "10.73.0.0/16") == "10.73.0.0/16"
    assert stack.properties("Balancer")["Scheme"] == "internal"


def test_a_network_that_exists_is_taken_as_it_is() -> None:
    stack = Stack(**OTHER_NETWORK)
    for kind in ("VPC", "Subnet", "InternetGateway", "Route", "VPCEndpoint"):
        assert not stack.of_type(f"AWS::EC2::{kind}")
    for service in stack.of_type("AWS::ECS::Service").values():
        network = service["NetworkConfiguration"]["AwsvpcConfiguration"]
        assert network["AssignPublicIp"] == "DISABLED"
        assert network["Subnets"] == "subnet-1,subnet-2"


@pytest.mark.parametrize(
    ("parameters", "refusals"),
    [
        ({}, 0),
        (OTHER_NETWORK, 0),
        ({"VpcId": "vpc-1"}, 1),
        ({"RunCpu": "4096"}, 1),
        ({"RunCpu": "4096", "RunMemory": "16384"}, 0),
        ({"RunCpu": "512", "RunMemory": "8192"}, 1),
        ({"RunCpu": "2048", "RunMemory": "2048"}, 1),
    ],
)
def test_what_cannot_be_deployed_is_refused_first(
    parameters: dict[str, str], refusals: int
) -> None:
    assert len(Stack(**parameters).refusals()) == refusals


def test_https_if_there_is_a_certificate() -> None:
    listener = Stack(CertificateArn="arn:aws:acm:us-east-2:1:certificate/x").properties("Listener")
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert (Stack().properties("Listener")["Port"]) == 80


def test_one_daemon_and_one_code_server_at_a_time(stack: Stack) -> None:
    for name in ("DaemonService", "CodeService"):
        service = stack.properties(name)
        assert service["DesiredCount"] == 1
        assert service["DeploymentConfiguration"]["MaximumPercent"] == 100


def test_the_code_server_can_load_its_definitions_again(stack: Stack) -> None:
    command = stack.container("CodeTask", "code")["Command"]
    assert command[:3] == ["dagster", "code-server", "start"]
    assert command[command.index("--port") + 1] == str(aws_home.CODE_PORT)
    assert "json" in command
    host = f"{stack.properties('CodeName')['Name']}.{stack.properties('Names')['Name']}"
    for task in ("DaemonTask", "WebserverTask", "CodeTask"):
        name = task.removesuffix("Task").lower()
        assert _environment(stack.container(task, name))["AVESA_CODE_HOST"] == host


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {said["Name"]: said["Value"] for said in container["Environment"]}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_container_has_settings_that_avesa_takes(environment: str) -> None:
    stack = Stack(Environment=environment)
    for name, task in stack.of_type("AWS::ECS::TaskDefinition").items():
        for container in task["ContainerDefinitions"]:
            variables = _environment(container)
            assert "PASSWORD" not in " ".join(variables), "a secret is no plain variable"
            if container["Name"] == "database":
                continue
            settings = Settings.from_environment(variables)
            assert settings.aws is not None, name
            assert (settings.aws.environment, settings.aws.bucket) == (
                environment,
                "avesa-lake-dev",
            )
            assert variables[recipients.TOPIC] == KNOWN["Topic"]
            assert variables[logs.VARIABLE] == "json"


def test_the_files_of_dagster_name_no_variable_that_the_tasks_lack(stack: Stack) -> None:
    from avesa_dagster.catalog.load import load_catalog

    scheduling = load_catalog(Settings.from_environment({}).mappings).backfill.scheduling
    texts = "".join(aws_home.files(scheduling, "avesa_dagster").values())
    named = set(re.findall(r"env: (\w+)", texts))
    assert "AVESA_DATABASE_PASSWORD" in named
    for task in ("DaemonTask", "WebserverTask", "CodeTask", "OperatorTask"):
        container = stack.container(task, task.removesuffix("Task").lower())
        secret = {said["Name"] for said in container["Secrets"]}
        assert named <= _environment(container).keys() | secret, task
    run = stack.container("RunTask", aws_home.RUN_CONTAINER)
    launching = {"AVESA_RUN_TASK", "AVESA_CODE_HOST"}
    assert named - launching <= _environment(run).keys() | {s["Name"] for s in run["Secrets"]}


def test_logs_are_kept_for_a_while_and_not_for_ever() -> None:
    for environment in ENVIRONMENTS:
        groups = Stack(Environment=environment).of_type("AWS::Logs::LogGroup").values()
        assert groups and all(0 < group["RetentionInDays"] <= 365 for group in groups)


def test_every_value_of_an_environment_is_given() -> None:
    for mapping in load()["Mappings"].values():
        assert tuple(mapping) == ENVIRONMENTS
        assert len({tuple(sorted(said)) for said in mapping.values()}) == 1
