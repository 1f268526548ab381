"""The DynamoDB tables of the platform before: connections, jobs, and nothing that claims more."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.aws import client
from avesa_dagster.control.jobs import JobStatus
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.migration.avesa1.tables import Before, TablesReport, import_tables, read_tables
from avesa_dagster_tests.extract.support import NOW, SERVICE, TENANT, SharedClock

from .homes import SECRET, installation_at, new_target

CREDENTIALS = {
    "api_base_url": "https://api-na.myconnectwise.net",
    "company_id": "acme",
    "public_key": "pub",
    "private_key": SECRET,
    "client_id": "7d2b1c1e-0000-4000-8000-000000000000",
}
KEYS = {
    "TenantServices": ("tenant_id", "service"),
    "LastUpdated": ("tenant_id", "table_name"),
    "BackfillJobs": ("job_id",),
}
JOB = "0b7c7a3e-93f5-4a55-9a35-6f2f9a4f1c11"
ROWS: dict[str, list[dict[str, Any]]] = {
    "TenantServices": [
        {"tenant_id": TENANT, "service": SERVICE, "enabled": True, "company_name": "Acme",
         "secret_name": f"{TENANT}/dev", "config": {"password": SECRET}},
        {"tenant_id": "globex", "service": SERVICE, "enabled": False},
        {"tenant_id": "Initech Ltd", "service": SERVICE, "enabled": True},
        {"tenant_id": "hooli", "service": "jira", "enabled": True},
    ],
    "LastUpdated": [{"tenant_id": TENANT, "table_name": "tickets", "last_updated": "2025-07-01"}],
    "BackfillJobs": [
        {"job_id": JOB, "tenant_id": TENANT, "service_name": SERVICE, "table_name": "all",
         "start_date": "2024-01-01", "end_date": "2025-01-01T00:00:00Z", "total_records": 2010,
         "job_status": "completed", "created_at": "2025-06-30T10:00:00+00:00"},
        {"job_id": "2", "tenant_id": TENANT, "service": SERVICE, "table_name": "service/tickets",
         "job_status": "processing", "created_at": "2025-06-30T11:00:00"},
        {"job_id": "3", "tenant_id": TENANT, "service": SERVICE, "table_name": "gadgets"},
    ],
}  # fmt: skip


@pytest.fixture
def before(aws: object) -> Before:
    """Its tables and secrets; there are enough jobs of others for several pages."""
    environment = f"o{uuid.uuid4().hex[:8]}"
    dynamodb, secrets = client("dynamodb"), client("secretsmanager")
    for name, keys in KEYS.items():
        dynamodb.create_table(
            TableName=f"{name}-{environment}",
            AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in keys],
            KeySchema=[
                {"AttributeName": k, "KeyType": kind}
                for k, kind in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        for row in ROWS[name]:
            dynamodb.put_item(TableName=f"{name}-{environment}", Item=_wire(row)["M"])
    document = json.dumps({SERVICE: CREDENTIALS})
    secrets.create_secret(Name=f"{TENANT}/{environment}", SecretString=document)
    return Before(environment, dynamodb, secrets)


def _wire(value: Any) -> Any:
    from boto3.dynamodb.types import TypeSerializer

    return TypeSerializer().serialize(value)


@pytest.fixture
def target(tmp_path: Path) -> Installation:
    return installation_at(tmp_path / "new", SharedClock(NOW))


def imported(target: Installation, before: Before, *tenants: str) -> TablesReport:
    return import_tables(target, before, read_tables(before, tenants))


@pytest.mark.parametrize("profile", ["embedded", "aws"])
def test_connections_jobs_and_credentials_arrive(
    before: Before, tmp_path: Path, profile: str
) -> None:
    where = new_target(tmp_path) if profile == "aws" else None
    target = installation_at(tmp_path / "new", SharedClock(NOW), where)
    report = imported(target, before)
    assert report.rows == {name: len(rows) for name, rows in ROWS.items()}
    assert report.connections == {
        f"{TENANT}/{SERVICE}": "new: connected",
        f"globex/{SERVICE}": "new: disabled: it has no credentials; avesa connect",
    }
    enabled = {row.tenant: row.enabled for row in target.control.registry.all()}
    assert enabled == {TENANT: True, "globex": False}
    assert target.secrets.get(TENANT, SERVICE) == CREDENTIALS
    assert [one.key for one in report.unplaced] == [
        "TenantServices Initech Ltd/connectwise",
        "TenantServices hooli/jira",
        "BackfillJobs 3",
    ]
    jobs = [job for job in target.control.jobs.find(TENANT) if job.job_id.startswith("avesa1-")]
    assert [(job.status, job.completed_chunks) for job in jobs] == [(JobStatus.CANCELLED, 0)] * 2
    assert jobs[0].tables == ("tickets",) and "'completed'" in jobs[1].note
    assert jobs[1].records == 2010
    assert target.control.watermarks.get(TENANT, SERVICE, "tickets") is None
    assert target.control.ledger.covered(TENANT) == []
    missing = [job for job in target.control.jobs.find(TENANT) if job.only_missing]
    assert missing and missing[0].status is JobStatus.PENDING, "all of it is fetched anew"
    kept = target.objects.list(f"{TENANT}/imported/avesa1/tables/")
    texts = b"".join(target.objects.get(info.key) for info in kept)
    assert len(kept) == 3 and b"2025-07-01" in texts and JOB.encode() in texts
    assert SECRET not in repr(report) and SECRET.encode() not in texts


def test_again_nothing_changes(target: Installation, before: Before) -> None:
    imported(target, before)
    registry = target.control.registry.all()
    jobs = target.control.jobs.find(TENANT)
    kept = [info.tag for info in target.objects.list(f"{TENANT}/imported/")]
    report = imported(target, before)
    assert report.connections[f"{TENANT}/{SERVICE}"] == "connected"
    assert target.control.registry.all() == registry
    assert target.control.jobs.find(TENANT) == jobs
    assert [info.tag for info in target.objects.list(f"{TENANT}/imported/")] == kept


def test_what_a_person_disabled_stays_so(target: Installation, before: Before) -> None:
    imported(target, before)
    target.clock.set(NOW.replace(hour=20))  # type: ignore[attr-defined]
    target.disable(TENANT, SERVICE)
    assert imported(target, before).connections[f"{TENANT}/{SERVICE}"] == "disabled, as it was"


def test_only_the_tenants_that_are_named(target: Installation, before: Before) -> None:
    assert list(imported(target, before, "globex").connections) == [f"globex/{SERVICE}"]
    assert [row.tenant for row in target.control.registry.all()] == ["globex"]


def test_credentials_that_are_not_complete_leave_it_disabled(
    target: Installation, before: Before
) -> None:
    document = json.dumps({SERVICE: {"private_key": SECRET}})
    name = f"{TENANT}/{before.environment}"
    before.secrets.put_secret_value(SecretId=name, SecretString=document)
    said = imported(target, before).connections[f"{TENANT}/{SERVICE}"]
    assert said.startswith("new: disabled: ") and "avesa connect" in said and SECRET not in said
    with pytest.raises(ConfigurationError):
        target.secrets.get(TENANT, SERVICE)


def test_tables_that_are_not_there_are_said(target: Installation, aws: object) -> None:
    nowhere = Before("nowhere", client("dynamodb"), client("secretsmanager"))
    report = imported(target, nowhere)
    assert report.rows == dict.fromkeys(KEYS) and not report.connections
