"""`avesa bootstrap`: makes what is missing, once, and leaves alone what is there."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avesa_dagster import aws as boto
from avesa_dagster.cli.main import main
from avesa_dagster.control.dynamo_tables import TABLES
from avesa_dagster.doctor import bootstrap
from avesa_dagster.doctor.account import identity
from avesa_dagster.doctor.bucket import tls_policy
from avesa_dagster.settings import Aws
from avesa_dagster_tests.doctor.support import Twisted, everything, own, refusal, steady
from avesa_dagster_tests.lossy import Answer, Call, Faults
from avesa_dagster_tests.moto import Moto

Command = Callable[..., tuple[int, str]]
STEPS = 6 + len(TABLES) + sum(table.recoverable for table in TABLES)


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    yield from steady(moto, monkeypatch)


@pytest.fixture
def where(aws: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Aws:
    found = own()
    monkeypatch.setenv("AVESA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AVESA_PROFILE", "aws")
    monkeypatch.setenv("AVESA_ENVIRONMENT", found.environment)
    monkeypatch.setenv("AVESA_BUCKET", found.bucket)
    return found


@pytest.fixture
def avesa(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str, answer: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["avesa", "bootstrap", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out + said.err

    return run


def tables(where: Aws) -> set[str]:
    pages = boto.client("dynamodb").get_paginator("list_tables").paginate()
    names = {name for page in pages for name in page["TableNames"]}
    return {name for name in names if name.endswith(f"-{where.environment}")}


def buckets() -> set[str]:
    return {one["Name"] for one in boto.client("s3").list_buckets()["Buckets"]}


def test_the_embedded_profile_needs_nothing(
    avesa: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AVESA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AVESA_PROFILE", raising=False)
    code, out = avesa("--yes")
    assert code == 0 and "needs nothing" in out and not (tmp_path / "home").exists()


def test_a_dry_run_says_all_and_makes_nothing(avesa: Command, where: Aws) -> None:
    code, out = avesa("--dry-run", "--yes", "--topic")
    assert code == 0 and f"{STEPS + 1} step(s) would be done. Nothing was made." in out
    assert all(f"  + table {where.table(table.name)}\n" in out for table in TABLES)
    assert f"  + bucket {where.bucket} in us-east-2\n" in out
    assert not tables(where) and where.bucket not in buckets()


def test_it_asks_first(avesa: Command, where: Aws) -> None:
    code, out = avesa(answer="n\n")
    assert code == 130 and "Do these" in out
    assert not tables(where) and where.bucket not in buckets()


def test_it_makes_all_once_and_the_second_time_nothing(avesa: Command, where: Aws) -> None:
    code, out = avesa("--topic", answer="y\n")
    assert code == 0 and out.count("✓") == STEPS + 1
    arn = f"arn:aws:sns:us-east-2:123456789012:avesa-alarms-{where.environment}"
    assert f"AVESA_ALERT_TOPIC={arn}" in out
    assert boto.client("sns").get_topic_attributes(TopicArn=arn)
    s3, dynamodb = boto.client("s3"), boto.client("dynamodb")
    assert s3.get_bucket_versioning(Bucket=where.bucket)["Status"] == "Enabled"
    assert "aws:SecureTransport" in s3.get_bucket_policy(Bucket=where.bucket)["Policy"]
    for table in TABLES:
        name = where.table(table.name)
        said = dynamodb.describe_table(TableName=name)["Table"]
        assert said["TableStatus"] == "ACTIVE"
        assert said["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        assert said["DeletionProtectionEnabled"] is table.protected
        backups = dynamodb.describe_continuous_backups(TableName=name)
        recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
        assert (recovery["PointInTimeRecoveryStatus"] == "ENABLED") is table.recoverable
    s3.delete_bucket_policy(Bucket=where.bucket)  # moto reads no condition of it
    before = everything(where)
    s3.put_bucket_policy(
        Bucket=where.bucket,
        Policy=json.dumps(tls_policy(where.bucket, identity())),
    )
    code, out = avesa("--yes", "--topic")
    assert code == 0 and "Nothing is missing." in out and "✓" not in out
    s3.delete_bucket_policy(Bucket=where.bucket)
    assert everything(where) == before


def test_it_goes_on_where_an_earlier_one_died(avesa: Command, where: Aws) -> None:
    for step in bootstrap.planned(where).steps[:9]:
        step.make()
    code, out = avesa("--yes")
    assert code == 0 and out.count("✓") == STEPS - 9
    assert len(tables(where)) == len(TABLES)
    assert not bootstrap.planned(where).steps


def test_answers_that_are_lost_do_no_harm(
    avesa: Command, where: Aws, aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Twisted(aws.url, Faults(drop=3)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        boto.client.cache_clear()
        code, out = avesa("--yes")
        assert proxy.lost >= 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    boto.client.cache_clear()
    assert code == 0, out
    assert not bootstrap.planned(where).steps


def test_it_refuses_before_anything_is_made(avesa: Command, where: Aws) -> None:
    name = where.table("LastUpdated")
    boto.client("dynamodb").create_table(  # as the platform before had it
        TableName=name,
        KeySchema=[
            {"AttributeName": "tenant_id", "KeyType": "HASH"},
            {"AttributeName": "table_name", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "tenant_id", "AttributeType": "S"},
            {"AttributeName": "table_name", "AttributeType": "S"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    code, out = avesa("--yes")
    assert code == 1 and "Nothing is made" in out
    assert f"{name}: has other keys: (tenant_id, table_name)" in out and "AVESA_ENVIRONMENT" in out
    assert tables(where) == {name} and where.bucket not in buckets()


def test_a_bucket_of_another_account_ends_it_before_anything_is_made(
    avesa: Command, where: Aws, aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Twisted(aws.url, twist=lambda call: refusal(call, "AccessDenied", 403)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        boto.client.cache_clear()
        code, out = avesa("--yes")
    assert code == 1 and "another account" in out and "AVESA_BUCKET" in out
    assert not tables(where)


def test_a_name_that_was_taken_meanwhile_ends_it(
    avesa: Command, where: Aws, aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(call: Call) -> Answer | None:
        return refusal(call, "BucketAlreadyExists", 409) if call.operation == "PUT" else None

    with Twisted(aws.url, twist=taken) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        boto.client.cache_clear()
        code, out = avesa("--yes")
    assert code == 1 and "belongs to somebody else" in out
    assert not tables(where)


def test_what_is_set_otherwise_is_told_and_left(avesa: Command, where: Aws) -> None:
    avesa("--yes")
    name = where.table("Health")
    dynamodb = boto.client("dynamodb")
    dynamodb.update_table(TableName=name, DeletionProtectionEnabled=False)
    boto.client("s3").put_bucket_versioning(
        Bucket=where.bucket, VersioningConfiguration={"Status": "Suspended"}
    )
    code, out = avesa("--yes")
    assert "it stays as it is" in out and "--deletion-protection-enabled" in out
    assert "versioning is suspended" in out and "Status=Enabled" in out
    assert code == 1
    assert not dynamodb.describe_table(TableName=name)["Table"]["DeletionProtectionEnabled"]
    versioning = boto.client("s3").get_bucket_versioning(Bucket=where.bucket)
    assert versioning["Status"] == "Suspended"


def test_tables_of_another_environment_are_never_touched(avesa: Command, where: Aws) -> None:
    other = Aws(f"x{where.environment[1:]}", own().bucket)
    for step in bootstrap.planned(other).steps:
        step.make()
    dynamodb = boto.client("dynamodb")
    names = [other.table(table.name) for table in TABLES]
    before = [dynamodb.describe_table(TableName=name)["Table"] for name in names]
    assert avesa("--yes")[0] == 0
    assert [dynamodb.describe_table(TableName=name)["Table"] for name in names] == before
