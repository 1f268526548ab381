"""Tables in DynamoDB that are missing, another's, or not as they should be."""

from __future__ import annotations

from typing import Any

import pytest

from avesa_dagster import aws as boto
from avesa_dagster.control.dynamo_tables import (
    BACKFILL_JOBS,
    CHUNK_PROGRESS,
    HEALTH,
    TABLES,
    TENANT_SERVICES,
    create_arguments,
)
from avesa_dagster.doctor import tables
from avesa_dagster.doctor.bootstrap import planned
from avesa_dagster.doctor.findings import Level
from avesa_dagster.settings import Aws
from avesa_dagster_tests.doctor.support import Twisted, everything, only, own, refusal, said, shared
from avesa_dagster_tests.moto import Moto


def dynamodb() -> Any:
    return boto.client("dynamodb")


def test_what_bootstrap_made_is_well(aws: Moto) -> None:
    where = shared()
    (found,) = tables.look(where)
    assert found.level is Level.WELL and where.environment in found.what


def test_missing_tables_are_named_with_the_environments_that_are_there(aws: Moto) -> None:
    there = shared()
    missing = Aws("x" + there.environment[1:], there.bucket)
    (text,) = said(tables.look(missing))
    assert all(missing.table(table.name) in text for table in TABLES)
    assert "avesa bootstrap" in text and there.environment in text.partition("→")[2]


def make(where: Aws, **other: Any) -> str:
    """A table of another program, under the name of ours; returns the name."""
    name = where.table(CHUNK_PROGRESS.name)
    arguments = {
        "TableName": name,
        "KeySchema": [
            {"AttributeName": "job_id", "KeyType": "HASH"},
            {"AttributeName": "chunk_id", "KeyType": "RANGE"},
        ],
        "AttributeDefinitions": [
            {"AttributeName": "job_id", "AttributeType": "S"},
            {"AttributeName": "chunk_id", "AttributeType": "S"},
        ],
        "BillingMode": "PAY_PER_REQUEST",
    }
    dynamodb().create_table(**(arguments | other))
    return name


def test_a_table_of_the_platform_before_is_found_and_refused_by_bootstrap(aws: Moto) -> None:
    where = own()
    name = make(where)
    found = [text for text in said(tables.look(where)) if text.startswith(name)]
    keys, *_ = found
    assert "has other keys: (job_id, chunk_id), not (tenant_id, " in keys
    assert "AVESA_ENVIRONMENT" in keys and "avesa migrate" in keys
    plan = planned(where)
    assert any("other keys" in finding.what for finding in plan.refused)


def test_keys_that_are_no_texts_are_found(aws: Moto) -> None:
    where = own()
    arguments = create_arguments(HEALTH, where.table(HEALTH.name))
    arguments["AttributeDefinitions"][0]["AttributeType"] = "N"
    dynamodb().create_table(**arguments)
    texts = said(tables.look(where))
    assert any("keys that are no texts: item" in text for text in texts)


def test_indexes_that_lack_or_differ_are_found(aws: Moto) -> None:
    where = own()
    arguments = create_arguments(CHUNK_PROGRESS, where.table(CHUNK_PROGRESS.name))
    del arguments["LocalSecondaryIndexes"]
    used = ("tenant_id", "service#table#job_id#chunk_id", "job_id", "chunk_id")
    arguments["AttributeDefinitions"] = [
        said for said in arguments["AttributeDefinitions"] if said["AttributeName"] in used
    ]
    dynamodb().create_table(**arguments)
    arguments = create_arguments(BACKFILL_JOBS, where.table(BACKFILL_JOBS.name))
    first, second = arguments["GlobalSecondaryIndexes"]
    first["Projection"] = {"ProjectionType": "KEYS_ONLY"}
    second["Projection"] = {"ProjectionType": "ALL"}
    dynamodb().create_table(**arguments)
    texts = said(tables.look(where))
    local = next(text for text in texts if "lacks the index TenantTableIndex" in text)
    assert "made with its table only" in local
    fewer = next(text for text in texts if "another index TenantServiceIndex" in text)
    assert "update-table" in fewer and "HASH=tenant_id RANGE=service_name" in fewer
    assert not any("EndedIndex" in text for text in texts)


def test_recovery_protection_and_capacity_are_looked_at(aws: Moto) -> None:
    where = only(TENANT_SERVICES)
    name = where.table(TENANT_SERVICES.name)
    dynamodb().update_continuous_backups(
        TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": False}
    )
    dynamodb().update_table(
        TableName=name,
        DeletionProtectionEnabled=False,
        BillingMode="PROVISIONED",
        ProvisionedThroughput={"ReadCapacityUnits": 1, "WriteCapacityUnits": 1},
    )
    _, recovery = said(tables.look(where))
    assert recovery.startswith(f"{name}: cannot be recovered")
    protection, capacity = said(tables.look(where), Level.WARNING)
    assert "no deletion protection" in protection and "--deletion-protection-enabled" in protection
    assert "fixed capacity" in capacity and "PAY_PER_REQUEST" in capacity
    plan = planned(where)
    steps = [step.what for step in plan.steps]
    assert f"table {name}: point-in-time recovery" in steps and f"table {name}" not in steps
    assert len(plan.differing) == 2 and not plan.refused


@pytest.mark.parametrize("tag", [tables.ENVIRONMENT_TAG, tables.BUCKET_TAG])
def test_tables_of_another_environment_under_our_names_are_found(aws: Moto, tag: str) -> None:
    where = only(HEALTH)
    name = where.table(HEALTH.name)
    arn = dynamodb().describe_table(TableName=name)["Table"]["TableArn"]
    dynamodb().tag_resource(ResourceArn=arn, Tags=[{"Key": tag, "Value": "staging"}])
    _, text, *_ = said(tables.look(where))
    assert text.startswith(f"{name}: belongs to another installation") and "staging" in text
    assert [finding.where for finding in planned(where).refused] == [name]


def test_two_installations_with_one_environment_are_found(aws: Moto) -> None:
    where = shared()
    other = Aws(where.environment, "another-lake")
    texts = said(tables.look(other))
    assert len(texts) == len(TABLES)
    assert all(where.bucket in text and "AVESA_BUCKET" in text for text in texts)


def test_a_table_that_may_not_be_looked_at_is_no_missing_one(
    aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = shared()
    hidden = {"DescribeTable", "ListTables", "DescribeContinuousBackups"}
    with Twisted(aws.url, twist=lambda c: refusal(c) if c.operation in hidden else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
        boto.client.cache_clear()
        (text,) = said(tables.look(where), Level.WARNING)
        assert not said(tables.look(where))
        assert "dynamodb:DescribeTable is denied" in text and "operator" in text
        with pytest.raises(Exception, match="may not be looked at"):
            planned(where)


def test_looking_changes_nothing(aws: Moto) -> None:
    where = shared()
    before = everything(where)
    list(tables.look(where))
    assert everything(where) == before
