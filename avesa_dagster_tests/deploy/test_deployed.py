"""What moto can deploy of the stack is deployed there by CloudFormation, looked at, and used.

moto's CloudFormation makes buckets and tables, but leaves out what a bucket has besides its
encryption, policies, and recovery. These are set here from the template by the calls that
CloudFormation makes, so that they are checked by an API all the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from avesa_dagster import settings
from avesa_dagster.control.dynamo_database import DynamoDatabase
from avesa_dagster.control.dynamo_registry import DynamoRegistry, DynamoWatermarks
from avesa_dagster.control.dynamo_tables import TABLES
from avesa_dagster.lake.s3 import S3Objects
from avesa_dagster_tests.deploy.template import PARAMETERS, Stack, load, referred
from avesa_dagster_tests.moto import Moto

ENVIRONMENT = "staging"
BUCKET = f"avesa-stack-{uuid.uuid4().hex[:12]}"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DEPLOYABLE = {
    "AWS::CloudWatch::Dashboard",
    "AWS::DynamoDB::Table",
    "AWS::ECS::Cluster",
    "AWS::IAM::ManagedPolicy",
    "AWS::IAM::Role",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SNS::Topic",
}


def part_for_moto() -> dict[str, Any]:
    """The template without what moto cannot make, and without what refers to that."""
    written = load()
    resources = {n: s for n, s in written["Resources"].items() if s["Type"] in DEPLOYABLE}
    while True:
        loose = {
            name
            for name, said in resources.items()
            if any(r in written["Resources"] and r not in resources for r in referred(said))
        }
        if not loose:
            return {
                **{k: v for k, v in written.items() if k not in ("Outputs", "Metadata")},
                "Resources": resources,
            }
        resources = {name: said for name, said in resources.items() if name not in loose}


@pytest.fixture(scope="module")
def aws_module(moto: Moto) -> Iterator[Moto]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.environment.items():
            patch.setenv(name, value)
        yield moto


@pytest.fixture(scope="module")
def deployed(aws_module: Moto) -> Stack:
    """The stack in moto, as it would be in AWS."""
    given = {**PARAMETERS, "Environment": ENVIRONMENT, "BucketName": BUCKET}
    formation = boto3.client("cloudformation")
    formation.create_stack(
        StackName="avesa-staging",
        TemplateBody=json.dumps(part_for_moto()),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    made = formation.describe_stacks(StackName="avesa-staging")["Stacks"][0]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    stack = Stack(**given)
    _complete(stack)
    return stack


def _complete(stack: Stack) -> None:
    """What moto's CloudFormation leaves out, by the calls that it stands for."""
    bucket, s3 = stack.properties("Bucket"), boto3.client("s3")
    s3.put_bucket_versioning(
        Bucket=BUCKET, VersioningConfiguration=bucket["VersioningConfiguration"]
    )
    s3.put_public_access_block(
        Bucket=BUCKET,
        PublicAccessBlockConfiguration=bucket["PublicAccessBlockConfiguration"],
    )
    s3.put_bucket_ownership_controls(Bucket=BUCKET, OwnershipControls=bucket["OwnershipControls"])
    policy = stack.properties("BucketPolicy")["PolicyDocument"]
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    s3.put_bucket_lifecycle_configuration(
        Bucket=BUCKET,
        LifecycleConfiguration={
            "Rules": [_rule(rule) for rule in bucket["LifecycleConfiguration"]["Rules"]]
        },
    )
    tables = boto3.client("dynamodb")
    for table in stack.of_type("AWS::DynamoDB::Table").values():
        wanted = table["PointInTimeRecoverySpecification"]
        if wanted["PointInTimeRecoveryEnabled"]:
            tables.update_continuous_backups(
                TableName=table["TableName"], PointInTimeRecoverySpecification=wanted
            )


def _rule(said: dict[str, Any]) -> dict[str, Any]:
    """A rule of CloudFormation as S3's API has it."""
    days = {"TransitionInDays": "Days"}
    older = {"TransitionInDays": "NoncurrentDays"}
    rule: dict[str, Any] = {"ID": said["Id"], "Status": said["Status"], "Filter": {"Prefix": ""}}
    if "Prefix" in said:
        rule["Filter"] = {"Prefix": said["Prefix"]}
    if "ObjectSizeGreaterThan" in said:
        rule["Filter"] = {"ObjectSizeGreaterThan": int(said["ObjectSizeGreaterThan"])}
    for name, names in (("Transitions", days), ("NoncurrentVersionTransitions", older)):
        if name in said:
            rule[name] = [{names.get(k, k): v for k, v in one.items()} for one in said[name]]
    if "ExpirationInDays" in said:
        rule["Expiration"] = {"Days": said["ExpirationInDays"]}
    if "ExpiredObjectDeleteMarker" in said:
        rule["Expiration"] = {"ExpiredObjectDeleteMarker": said["ExpiredObjectDeleteMarker"]}
    for name in ("NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload"):
        if name in said:
            rule[name] = said[name]
    return rule


def test_the_bucket_keeps_encrypts_and_shuts_out(deployed: Stack) -> None:
    s3 = boto3.client("s3")
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    said = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]
    default = said["Rules"][0]["ApplyServerSideEncryptionByDefault"]
    assert default["SSEAlgorithm"] == "AES256"
    shut = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert len(shut) == 4 and all(shut.values())
    owned = s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]
    assert owned["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    policy = json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"][0]
    assert policy["Effect"] == "Deny"
    assert policy["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_old_things_get_cheaper_and_what_is_current_stays(deployed: Stack) -> None:
    s3 = boto3.client("s3")
    rules = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    by_name = {rule["ID"]: rule for rule in rules}
    assert len(by_name) == 4
    long = by_name["what-lies-long"]
    assert [one["StorageClass"] for one in long["Transitions"]] == ["INTELLIGENT_TIERING"]
    replaced = by_name["what-was-replaced"]
    assert replaced["NoncurrentVersionExpiration"]["NoncurrentDays"] == 90
    assert replaced["NoncurrentVersionTransitions"][0]["NoncurrentDays"] == 30
    uploads = by_name["uploads-that-nobody-ended"]
    assert uploads["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 3}
    # Only the output of runs ever expires: what a service told us once is never told again.
    expiring = {name for name, rule in by_name.items() if "Days" in rule.get("Expiration", {})}
    assert expiring == {"output-of-runs"}
    assert by_name["output-of-runs"]["Filter"]["Prefix"] == "_dagster/"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_tables_are_there_on_demand_and_recoverable(deployed: Stack, table: Any) -> None:
    tables, name = boto3.client("dynamodb"), f"{table.name}-{ENVIRONMENT}"
    said = tables.describe_table(TableName=name)["Table"]
    assert said["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert said["DeletionProtectionEnabled"] is table.protected
    assert [key["AttributeName"] for key in said["KeySchema"]] == list(table.keys)
    indexes = [*said.get("GlobalSecondaryIndexes", ()), *said.get("LocalSecondaryIndexes", ())]
    assert {index["IndexName"] for index in indexes} == {index.name for index in table.indexes}
    backups = tables.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
    recovery = backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"]
    assert (recovery == "ENABLED") is table.recoverable


def test_the_topic_has_its_reader_and_logs_end_one_day(deployed: Stack) -> None:
    topic = f"avesa-alarms-{ENVIRONMENT}"
    topics = [said["TopicArn"] for said in boto3.client("sns").list_topics()["Topics"]]
    assert [arn for arn in topics if arn.endswith(f":{topic}")]
    groups = boto3.client("logs").describe_log_groups(logGroupNamePrefix=f"/avesa/{ENVIRONMENT}/")[
        "logGroups"
    ]
    assert {group["logGroupName"].rsplit("/", 1)[1] for group in groups} == {
        "code", "daemon", "operator", "run", "webserver",
    }  # fmt: skip
    assert {group["retentionInDays"] for group in groups} == {30}


def test_roles_are_for_tasks_of_this_account_only(deployed: Stack) -> None:
    roles = [
        role
        for role in boto3.client("iam").list_roles()["Roles"]
        if role["RoleName"].startswith("avesa-staging-")
    ]
    assert len(roles) >= 4
    for role in roles:
        statement = role["AssumeRolePolicyDocument"]["Statement"][0]
        assert statement["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
        assert statement["Condition"]["StringEquals"]["aws:SourceAccount"]


def test_the_lake_and_the_registry_work_in_it(deployed: Stack, aws: Moto) -> None:
    # moto heeds a policy's statements and not their conditions, so this one would refuse all.
    s3 = boto3.client("s3")
    policy = s3.get_bucket_policy(Bucket=BUCKET)["Policy"]
    s3.delete_bucket_policy(Bucket=BUCKET)
    try:
        _use(s3)
    finally:
        s3.put_bucket_policy(Bucket=BUCKET, Policy=policy)


def _use(s3: Any) -> None:
    objects = S3Objects(BUCKET)
    first = objects.put_if("acme/history/tickets/manifest.json", b"1", tag=None)
    objects.put_if("acme/history/tickets/manifest.json", b"2", tag=first.tag)
    assert objects.get("acme/history/tickets/manifest.json") == b"2"
    versions = s3.list_object_versions(Bucket=BUCKET)["Versions"]
    assert len(versions) == 2, "what is replaced is kept"

    database = DynamoDatabase(settings.Aws(ENVIRONMENT, BUCKET))
    registry = DynamoRegistry(database)
    registry.connect(
        "acme",
        "connectwise",
        history_start=NOW,
        tables=["tickets"],
        requests_per_minute=None,
        now=NOW,
    )
    assert [row.tenant for row in registry.all()] == ["acme"]
    marks = DynamoWatermarks(database)
    marks.advance("acme", "connectwise", "tickets", lower=NOW, upper=NOW, now=NOW)
    assert marks.get("acme", "connectwise", "tickets") is not None
