"""Who may what: the template's policies, evaluated, against what the package calls."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import dagster_aws.ecs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.control.dynamo_tables import TABLES, TENANT_SERVICES
from avesa_dagster.defs import aws_home
from avesa_dagster.lake import layout
from avesa_dagster.names import NAME
from avesa_dagster_tests.deploy import calls
from avesa_dagster_tests.deploy.iam import Context, allowed
from avesa_dagster_tests.deploy.template import ACCOUNT, KNOWN, PARAMETERS, REGION, Stack

BUCKET = f"arn:aws:s3:::{PARAMETERS['BucketName']}"
TABLE = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:"
MEMBERS = ("CodeServerRole", "RunRole")
"""Whoever reads and writes tenants' data without being asked."""
ALL = (*MEMBERS, "OperatorRole")

_RUN, _CODE, _OPERATOR = "RunRole", "CodeServerRole", "OperatorRole"

_ON_ALL_TABLES = [f"{TABLE}{table.name}-dev" for table in TABLES]
_ON_INDEXES = [
    f"{TABLE}{table.name}-dev/index/{index.name}" for table in TABLES for index in table.indexes
]
_TENANTS = [f"{TABLE}{TENANT_SERVICES.name}-dev"]
_ACME = ("acme", "connectwise", "tickets")
_KEYS = [
    layout.table_prefix(_ACME[0], "raw", *_ACME[1:]) + "dt=2026-01-01/a-b-c.parquet",
    layout.partition_prefix("acme", "canonical", "connectwise", "tickets", "2026-01-01") + "v",
    layout.manifest_key("acme", "tickets"),
]
_OBJECTS = [f"{BUCKET}/{key}" for key in _KEYS]
_GENERATION = [f"{BUCKET}/{layout.history_prefix('acme', 'tickets')}generation-1-2.parquet"]
_SECRETS = [f"{SECRET}acme/dev-AbCd12", f"{SECRET}acme/dev"]
"""One that is there, and one that is not."""
_TOPIC = [KNOWN["Topic"]]

Needs = dict[str, list[str]]
"""Actions, and examples of the resources that they are needed on."""


def _needs(action: str, on: list[str]) -> Needs:
    return {action: on}


_WRITES = ("ConditionCheckItem", "DeleteItem", "PutItem", "UpdateItem")
_MULTIPART: Needs = _needs("s3:PutObject", _OBJECTS)

NEEDED: dict[tuple[str, str], tuple[tuple[str, ...], Needs]] = {
    ("dynamodb", "batch_get_item"): (ALL, _needs("dynamodb:BatchGetItem", _ON_ALL_TABLES)),
    ("dynamodb", "batch_write_item"): (ALL, _needs("dynamodb:BatchWriteItem", _ON_ALL_TABLES)),
    ("dynamodb", "delete_item"): (ALL, _needs("dynamodb:DeleteItem", _ON_ALL_TABLES)),
    ("dynamodb", "get_item"): (ALL, _needs("dynamodb:GetItem", _ON_ALL_TABLES)),
    ("dynamodb", "put_item"): (ALL, _needs("dynamodb:PutItem", _ON_ALL_TABLES)),
    ("dynamodb", "query"): (ALL, _needs("dynamodb:Query", _ON_ALL_TABLES + _ON_INDEXES)),
    ("dynamodb", "scan"): (ALL, _needs("dynamodb:Scan", _TENANTS)),
    ("dynamodb", "transact_write_items"): (
        ALL,
        {f"dynamodb:{write}": _ON_ALL_TABLES for write in _WRITES},
    ),
    ("dynamodb", "update_item"): (ALL, _needs("dynamodb:UpdateItem", _ON_ALL_TABLES)),
    ("dynamodb", "create_table"): ((_OPERATOR,), _needs("dynamodb:CreateTable", _ON_ALL_TABLES)),
    ("dynamodb", "describe_table"): (
        (_OPERATOR,),
        _needs("dynamodb:DescribeTable", _ON_ALL_TABLES),
    ),
    ("dynamodb", "describe_continuous_backups"): (
        (_OPERATOR,),
        _needs("dynamodb:DescribeContinuousBackups", _ON_ALL_TABLES),
    ),
    ("dynamodb", "list_tags_of_resource"): (
        (_OPERATOR,),
        _needs("dynamodb:ListTagsOfResource", _ON_ALL_TABLES),
    ),
    ("dynamodb", "list_tables"): ((_OPERATOR,), _needs("dynamodb:ListTables", ["*"])),
    ("dynamodb", "tag_resource"): ((_OPERATOR,), _needs("dynamodb:TagResource", _ON_ALL_TABLES)),
    ("dynamodb", "update_continuous_backups"): (
        (_OPERATOR,),
        _needs("dynamodb:UpdateContinuousBackups", _ON_ALL_TABLES),
    ),
    ("dynamodb", "update_table"): ((_OPERATOR,), _needs("dynamodb:UpdateTable", _ON_ALL_TABLES)),
    ("s3", "abort_multipart_upload"): (ALL, _needs("s3:AbortMultipartUpload", _OBJECTS)),
    ("s3", "complete_multipart_upload"): (ALL, _MULTIPART),
    ("s3", "create_multipart_upload"): (ALL, _MULTIPART),
    ("s3", "upload_part"): (ALL, _MULTIPART),
    ("s3", "put_object"): (ALL, _needs("s3:PutObject", _OBJECTS)),
    ("s3", "get_object"): (
        ALL,
        _needs("s3:GetObject", _OBJECTS) | _needs("s3:GetObjectVersion", _OBJECTS),
    ),
    ("s3", "head_object"): (
        ALL,
        _needs("s3:GetObject", _OBJECTS) | _needs("s3:GetObjectVersion", _OBJECTS),
    ),
    # Without ListBucket a missing object is no 404.
    ("s3", "head_bucket"): (ALL, _needs("s3:ListBucket", [BUCKET])),
    ("s3", "list_objects_v2"): (ALL, _needs("s3:ListBucket", [BUCKET])),
    ("s3", "list_object_versions"): (ALL, _needs("s3:ListBucketVersions", [BUCKET])),
    ("s3", "list_multipart_uploads"): (ALL, _needs("s3:ListBucketMultipartUploads", [BUCKET])),
    # `canonical.history` removes old generations, `erasure` anything.
    ("s3", "delete_object"): (ALL, _needs("s3:DeleteObject", _GENERATION)),
    ("s3", "delete_objects"): (
        (_OPERATOR,),
        _needs("s3:DeleteObject", _OBJECTS) | _needs("s3:DeleteObjectVersion", _OBJECTS),
    ),
    ("s3", "create_bucket"): ((_OPERATOR,), _needs("s3:CreateBucket", [BUCKET])),
    ("s3", "get_bucket_versioning"): ((_OPERATOR,), _needs("s3:GetBucketVersioning", [BUCKET])),
    ("s3", "get_bucket_encryption"): (
        (_OPERATOR,),
        _needs("s3:GetEncryptionConfiguration", [BUCKET]),
    ),
    ("s3", "get_bucket_lifecycle_configuration"): (
        (_OPERATOR,),
        _needs("s3:GetLifecycleConfiguration", [BUCKET]),
    ),
    ("s3", "get_bucket_location"): ((_OPERATOR,), _needs("s3:GetBucketLocation", [BUCKET])),
    ("s3", "get_bucket_policy"): ((_OPERATOR,), _needs("s3:GetBucketPolicy", [BUCKET])),
    ("s3", "get_public_access_block"): (
        (_OPERATOR,),
        _needs("s3:GetBucketPublicAccessBlock", [BUCKET]),
    ),
    ("s3", "put_bucket_encryption"): (
        (_OPERATOR,),
        _needs("s3:PutEncryptionConfiguration", [BUCKET]),
    ),
    ("s3", "put_bucket_lifecycle_configuration"): (
        (_OPERATOR,),
        _needs("s3:PutLifecycleConfiguration", [BUCKET]),
    ),
    ("s3", "put_bucket_policy"): ((_OPERATOR,), _needs("s3:PutBucketPolicy", [BUCKET])),
    ("s3", "put_bucket_versioning"): ((_OPERATOR,), _needs("s3:PutBucketVersioning", [BUCKET])),
    ("s3", "put_public_access_block"): (
        (_OPERATOR,),
        _needs("s3:PutBucketPublicAccessBlock", [BUCKET]),
    ),
    ("secretsmanager", "get_secret_value"): (
        ALL,
        _needs("secretsmanager:GetSecretValue", _SECRETS),
    ),
    ("secretsmanager", "describe_secret"): (
        (_OPERATOR,),
        _needs("secretsmanager:DescribeSecret", _SECRETS),
    ),
    ("secretsmanager", "put_secret_value"): (
        ALL,
        _needs("secretsmanager:PutSecretValue", _SECRETS),
    ),
    ("secretsmanager", "update_secret_version_stage"): (
        ALL,
        _needs("secretsmanager:UpdateSecretVersionStage", _SECRETS),
    ),
    ("secretsmanager", "create_secret"): (
        (_CODE, _OPERATOR),
        _needs("secretsmanager:CreateSecret", _SECRETS),
    ),
    ("secretsmanager", "tag_resource"): (
        (_CODE, _OPERATOR),
        _needs("secretsmanager:TagResource", _SECRETS),
    ),
    ("secretsmanager", "delete_secret"): (
        (_OPERATOR,),
        _needs("secretsmanager:DeleteSecret", _SECRETS),
    ),
    ("secretsmanager", "restore_secret"): (
        (_OPERATOR,),
        _needs("secretsmanager:RestoreSecret", _SECRETS),
    ),
    ("secretsmanager", "list_secrets"): ((_OPERATOR,), _needs("secretsmanager:ListSecrets", ["*"])),
    ("sns", "publish"): ((_CODE, _OPERATOR), _needs("sns:Publish", _TOPIC)),
    ("sns", "get_topic_attributes"): ((_OPERATOR,), _needs("sns:GetTopicAttributes", _TOPIC)),
    ("sns", "create_topic"): ((_OPERATOR,), _needs("sns:CreateTopic", _TOPIC)),
    ("sns", "subscribe"): ((_OPERATOR,), _needs("sns:Subscribe", _TOPIC)),
    ("sns", "list_subscriptions_by_topic"): (
        (_OPERATOR,),
        _needs("sns:ListSubscriptionsByTopic", _TOPIC),
    ),
    ("cloudwatch", "put_metric_data"): (
        (_CODE, _OPERATOR),
        _needs("cloudwatch:PutMetricData", ["*"]),
    ),
    ("sts", "get_caller_identity"): ((_OPERATOR,), _needs("sts:GetCallerIdentity", ["*"])),
    ("iam", "simulate_principal_policy"): (
        (_OPERATOR,),
        _needs("iam:SimulatePrincipalPolicy", ["*"]),
    ),
}
"""What the package may call, who does, and what that wants. A call that is not here is a question
to answer here and in deploy/aws/avesa.yaml: who makes it, on what?"""

OURS: Context = {"cloudwatch:namespace": "AVESA/DataPipeline"}


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack()


def test_the_source_is_read_for_calls() -> None:
    found = calls.called()
    assert {("s3", "put_object"), ("dynamodb", "query")} <= found.keys()


def test_every_call_of_the_package_has_its_permission() -> None:
    unknown = {call: where for call, where in calls.called().items() if call not in NEEDED}
    assert not unknown, "who makes these calls? see NEEDED"


@pytest.mark.parametrize("call", NEEDED, ids=".".join)
def test_whoever_makes_a_call_may(stack: Stack, call: tuple[str, str]) -> None:
    roles, needs = NEEDED[call]
    for role in roles:
        for action, resources in needs.items():
            for resource in resources:
                policies = stack.policies(role)
                assert allowed(policies, action, resource, OURS), (role, action, resource)


@pytest.mark.parametrize("role", MEMBERS)
def test_nobody_may_what_no_call_wants(stack: Stack, role: str) -> None:
    wanted = {action for roles, needs in NEEDED.values() if role in roles for action in needs}
    dagster = {"ecs:DescribeTaskDefinition", "ecs:DescribeTasks", "ecs:StopTask"}
    given = {
        action
        for policy in stack.policies(role)
        for statement in policy["Statement"]
        for action in _list(statement["Action"])
    }
    assert given <= wanted | dagster
    assert not any("*" in action for action in given)


def _list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


_OTHERS = [
    ("dynamodb:GetItem", f"{TABLE}TenantServices-prod"),
    ("dynamodb:GetItem", f"{TABLE}TenantServices-dev2"),
    ("dynamodb:Query", f"{TABLE}BackfillJobs-staging/index/TenantServiceIndex"),
    ("dynamodb:PutItem", f"{TABLE}Payroll-dev"),
    ("dynamodb:PutItem", f"arn:aws:dynamodb:{REGION}:999999999999:table/TenantServices-dev"),
    ("dynamodb:PutItem", f"arn:aws:dynamodb:eu-west-1:{ACCOUNT}:table/TenantServices-dev"),
    ("dynamodb:Scan", f"{TABLE}ChunkProgress-dev"),
    ("dynamodb:DeleteTable", f"{TABLE}TenantServices-dev"),
    ("dynamodb:UpdateTable", f"{TABLE}TenantServices-dev"),
    ("dynamodb:UpdateContinuousBackups", f"{TABLE}TenantServices-dev"),
    ("s3:GetObject", "arn:aws:s3:::avesa-lake-prod/acme/raw/x"),
    ("s3:GetObject", f"{BUCKET}2/acme/raw/x"),
    ("s3:ListBucket", "arn:aws:s3:::another"),
    ("s3:DeleteObject", _OBJECTS[0]),
    ("s3:DeleteObject", _OBJECTS[1]),
    ("s3:DeleteObject", _OBJECTS[2]),
    ("s3:DeleteObjectVersion", _GENERATION[0]),
    ("s3:DeleteBucket", BUCKET),
    ("s3:PutBucketPolicy", BUCKET),
    ("s3:PutBucketVersioning", BUCKET),
    ("s3:PutLifecycleConfiguration", BUCKET),
    ("secretsmanager:GetSecretValue", f"{SECRET}acme/prod-AbCd12"),
    ("secretsmanager:GetSecretValue", f"{SECRET}acme/prod"),
    ("secretsmanager:GetSecretValue", f"{SECRET}acme/dev2-AbCd12"),
    ("secretsmanager:GetSecretValue", f"{SECRET}acme/dev-backup-AbCd12"),
    ("secretsmanager:GetSecretValue", KNOWN["DatabasePassword"]),
    ("secretsmanager:GetSecretValue", KNOWN["Database.MasterUserSecret.SecretArn"]),
    ("secretsmanager:DeleteSecret", f"{SECRET}acme/dev-AbCd12"),
    ("iam:CreateUser", f"arn:aws:iam::{ACCOUNT}:user/x"),
    ("iam:PassRole", KNOWN["RunRole.Arn"]),
    ("iam:PutRolePolicy", KNOWN["RunRole.Arn"]),
    ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/admin"),
    ("ecs:RunTask", f"arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/avesa-dev-run:1"),
    ("rds:DeleteDBInstance", f"arn:aws:rds:{REGION}:{ACCOUNT}:db:dagster"),
    ("lambda:InvokeFunction", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:x"),
]


@pytest.mark.parametrize(("action", "resource"), _OTHERS, ids=lambda said: said.split(":")[-1])
def test_a_run_reaches_nothing_else(stack: Stack, action: str, resource: str) -> None:
    for role in MEMBERS:
        context = OURS | {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
        assert not allowed(stack.policies(role), action, resource, context), role


def test_only_the_code_server_tells_people_and_makes_secrets(stack: Stack) -> None:
    for action, resource in (
        ("sns:Publish", KNOWN["Topic"]),
        ("cloudwatch:PutMetricData", "*"),
        ("secretsmanager:CreateSecret", _SECRETS[0]),
    ):
        assert allowed(stack.policies("CodeServerRole"), action, resource, OURS)
        assert not allowed(stack.policies("RunRole"), action, resource, OURS)
    other = {"cloudwatch:namespace": "AWS/Billing"}
    assert not allowed(stack.policies("CodeServerRole"), "cloudwatch:PutMetricData", "*", other)


_POLICIES = Stack().policies("RunRole")


@given(
    tenant=st.from_regex(NAME, fullmatch=True), end=st.from_regex(r"[A-Za-z0-9]{6}", fullmatch=True)
)
def test_each_environment_has_its_own_secrets(tenant: str, end: str) -> None:
    for environment in ("dev", "staging", "prod"):
        resource = f"{SECRET}{tenant}/{environment}-{end}"
        may = allowed(_POLICIES, "secretsmanager:GetSecretValue", resource)
        assert may == (environment == "dev")


def test_the_daemon_launches_runs_and_touches_no_data(stack: Stack) -> None:
    policies = stack.policies("DaemonRole")
    run = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/avesa-dev-run:7"
    cluster = {"ecs:cluster": KNOWN["Cluster.Arn"]}
    task = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/avesa-dev/0123"
    to_ecs = {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
    assert allowed(policies, "ecs:RunTask", run, cluster)
    assert allowed(policies, "ecs:TagResource", task, {"ecs:CreateAction": "RunTask"})
    assert allowed(policies, "ecs:DescribeTaskDefinition", run)
    assert allowed(policies, "ecs:DescribeTasks", task)
    assert allowed(policies, "ecs:StopTask", task)
    assert allowed(policies, "ec2:DescribeNetworkInterfaces", "*")
    assert allowed(policies, "logs:GetLogEvents", f"{KNOWN['RunLogs.Arn'][:-1]}log-stream:run/1")
    for role in ("RunRole.Arn", "ExecutionRole.Arn"):
        assert allowed(policies, "iam:PassRole", KNOWN[role], to_ecs)
        to_others = {"iam:PassedToService": "lambda.amazonaws.com"}
        assert not allowed(policies, "iam:PassRole", KNOWN[role], to_others)
    assert not allowed(policies, "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", to_ecs)
    another = {"ecs:cluster": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/other"}
    assert not allowed(policies, "ecs:RunTask", run, another)
    assert not allowed(policies, "ecs:RunTask", run.replace("-run:", "-operator:"), cluster)
    assert not allowed(policies, "ecs:RegisterTaskDefinition", "*")
    _touches_no_data(stack, "DaemonRole")


def test_the_webserver_shows_the_output_of_runs_and_no_data(stack: Stack) -> None:
    policies = stack.policies("WebserverRole")
    shown = f"{BUCKET}/{aws_home.OUTPUT}/storage/run/compute_logs/step.err"
    assert allowed(policies, "s3:GetObject", shown)
    assert allowed(policies, "s3:ListBucket", BUCKET, {"s3:prefix": f"{aws_home.OUTPUT}/storage"})
    assert not allowed(policies, "s3:ListBucket", BUCKET, {"s3:prefix": "acme/"})
    assert not allowed(policies, "s3:PutObject", shown)
    _touches_no_data(stack, "WebserverRole")


def test_no_tenant_can_have_the_name_under_which_output_lies() -> None:
    assert NAME.fullmatch(aws_home.OUTPUT) is None


def _touches_no_data(stack: Stack, role: str) -> None:
    for roles, needs in NEEDED.values():
        if "RunRole" in roles:
            for action, resources in needs.items():
                for resource in resources:
                    assert not allowed(stack.policies(role), action, resource), (action, resource)


def test_what_starts_a_task_reads_no_other_secret(stack: Stack) -> None:
    password, admin = KNOWN["DatabasePassword"], KNOWN["Database.MasterUserSecret.SecretArn"]
    read = "secretsmanager:GetSecretValue"
    assert allowed(stack.policies("ExecutionRole"), read, password)
    assert not allowed(stack.policies("ExecutionRole"), read, admin)
    assert allowed(stack.policies("DaemonExecutionRole"), read, admin)
    for role in ("ExecutionRole", "DaemonExecutionRole"):
        assert not allowed(stack.policies(role), read, _SECRETS[0])


def test_dagster_asks_of_ecs_what_the_daemon_may() -> None:
    """The launcher registers no definition if it is given one, and asks for no tagged secret."""
    source = Path(dagster_aws.ecs.__file__).parent
    asked = {name for path in source.glob("*.py") for name in _asked_of_ecs(path)}
    assert asked == {
        "describe_task_definition", "describe_tasks", "register_task_definition", "run_task",
        "stop_task",
    }  # fmt: skip


def _asked_of_ecs(path: Path) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in calls.operations("ecs")
    }


def test_the_operator_mends_and_does_not_destroy(stack: Stack) -> None:
    policies = stack.policies("OperatorRole")
    assert allowed(policies, "s3:DeleteObjectVersion", _OBJECTS[0])
    for action, resource in (
        ("dynamodb:DeleteTable", f"{TABLE}TenantServices-dev"),
        ("dynamodb:GetItem", f"{TABLE}TenantServices-prod"),
        ("s3:DeleteBucket", BUCKET),
        ("s3:GetObject", "arn:aws:s3:::another/x"),
        ("secretsmanager:GetSecretValue", f"{SECRET}acme/prod-AbCd12"),
        ("iam:PutRolePolicy", KNOWN["RunRole.Arn"]),
    ):
        assert not allowed(policies, action, resource), (action, resource)


def test_people_start_the_operators_task_and_no_other(stack: Stack) -> None:
    policies = [stack.properties("PeoplePolicy")["PolicyDocument"]]
    family = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/avesa-dev"
    cluster = {"ecs:cluster": KNOWN["Cluster.Arn"]}
    assert allowed(policies, "ecs:RunTask", f"{family}-operator:3", cluster)
    for other in (f"{family}-daemon:3", f"{family[:-3]}prod-operator:3"):
        assert not allowed(policies, "ecs:RunTask", other, cluster)
    task = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/avesa-dev/0123"
    assert allowed(policies, "ssm:StartSession", task)
    assert not allowed(policies, "ssm:StartSession", f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1")
    assert not allowed(policies, "ecs:ExecuteCommand", task.replace("-dev/", "-prod/"))


def test_the_bucket_takes_nobody_without_tls(stack: Stack) -> None:
    policy = stack.properties("BucketPolicy")["PolicyDocument"]
    everything = {
        "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
    }
    for resource in (BUCKET, _OBJECTS[0]):
        for tls in ("true", "false"):
            context = {"aws:SecureTransport": tls}
            may = allowed([everything, policy], "s3:GetObject", resource, context)
            assert may == (tls == "true")


def test_policies_are_not_too_long_for_iam(stack: Stack) -> None:
    for name, policy in stack.of_type("AWS::IAM::ManagedPolicy").items():
        assert len(json.dumps(policy["PolicyDocument"], separators=(",", ":"))) <= 6144, name
    for name, role in stack.of_type("AWS::IAM::Role").items():
        assert len(role.get("ManagedPolicyArns", ())) <= 10
        own = sum(len(json.dumps(p["PolicyDocument"])) for p in role.get("Policies", ()))
        assert own <= 10_240, name
        trusted = role["AssumeRolePolicyDocument"]["Statement"]
        assert [said["Principal"] for said in trusted] == [{"Service": "ecs-tasks.amazonaws.com"}]


def test_the_evaluator_denies_what_a_statement_denies() -> None:
    allow = {"Effect": "Allow", "Action": ["s3:Get*"], "Resource": ["arn:aws:s3:::b/*"]}
    deny = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/secret-?"}
    documents = [{"Statement": [allow]}, {"Statement": [deny]}]
    assert allowed(documents, "s3:getobject", "arn:aws:s3:::b/a/b")
    assert allowed(documents, "s3:GetObject", "arn:aws:s3:::b/secret-10")
    assert not allowed(documents, "s3:GetObject", "arn:aws:s3:::b/secret-1")
    assert not allowed(documents, "s3:PutObject", "arn:aws:s3:::b/a")
    assert not allowed(documents, "s3:GetObject", "arn:aws:s3:::bb/a")
    conditional = allow | {"Condition": {"StringLike": {"s3:prefix": ["a/*", "b"]}}}
    for prefix, may in (("a/x", True), ("b", True), ("c", False)):
        document = {"Statement": [conditional]}
        context = {"s3:prefix": prefix}
        assert allowed([document], "s3:GetObject", "arn:aws:s3:::b/a", context) is may
    assert not allowed([{"Statement": [conditional]}], "s3:GetObject", "arn:aws:s3:::b/a")


def test_a_new_call_without_permission_is_found(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "from avesa_dagster.aws import client\n"
        "def f():\n"
        "    client('dynamodb').delete_table(TableName='x')\n"
        "    client('s3').get_paginator('list_objects')\n"
        "    getattr(client('sns'), 'delete_topic')()\n",
        "utf-8",
    )
    assert calls.called(tmp_path).keys() == {
        ("dynamodb", "delete_table"),
        ("s3", "list_objects"),
        ("sns", "delete_topic"),
    }
    assert not calls.called(tmp_path).keys() & NEEDED.keys()
