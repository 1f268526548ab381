"""Homes full of tenants to erase, and what is left of one."""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from avesa_dagster.aws import client
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.dynamo_tables import TABLES
from avesa_dagster.control.health import Alarm, Drift, FieldSeen, Sample
from avesa_dagster.control.jobs import Job, Processing, Trigger
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Aws

SERVICE = "connectwise"


def furnish(installation: Installation, tenant: str, *, objects: int = 4) -> None:
    """Gives a tenant something in every place; its contents all contain `{tenant}-content`."""
    content = f"{tenant}-content"
    control, now = installation.control, installation.clock()
    control.registry.connect(
        tenant, SERVICE, history_start=now, tables=["tickets"], requests_per_minute=None, now=now
    )
    installation.secrets.put(tenant, SERVICE, {"private_key": f"key of {content}"})
    control.watermarks.advance(tenant, SERVICE, "tickets", lower=now, upper=now, now=now)
    chunk = Chunk("run", tenant, SERVICE, "tickets", "c1", "2026-01-01", "window", now, now)
    control.ledger.plan([chunk], now=now)
    control.ledger.fail(chunk, error=content, requests=1, now=now)
    control.jobs.create(
        Job(
            job_id=f"job-{tenant}",
            tenant=tenant,
            service=SERVICE,
            tables=("tickets",),
            start=now,
            end=now,
            trigger=Trigger.PERSON,
            created_at=now,
            updated_at=now,
            note=content,
        )
    )
    control.processing.beat(processing(installation, tenant, status="completed"))
    control.breakers.failed(tenant, SERVICE, content, credentials=True, now=now)
    control.counters.add([Sample("records", (("tenant", tenant),), 3.0)])
    control.alarms.put(Alarm(f"breaker_open/{tenant}/{SERVICE}", tenant, content, now))
    field = FieldSeen("summary", ("string",), now, now)
    line = Drift(tenant, SERVICE, "tickets", "new", "summary", content, now)
    control.drift.note(tenant, SERVICE, "tickets", lambda known: ({"summary": field}, [line]))
    with installation.budget.request(f"{SERVICE}/{tenant}", 100):
        pass
    for number in range(objects):
        key = f"{tenant}/raw/{SERVICE}/tickets/dt=2026-01-01/{number:04}.parquet"
        installation.objects.put(key, f"{content} {number}".encode())
    if installation.settings.aws is None:
        (installation.settings.lake / ".staging" / f"{tenant}.killed").write_text(content)
    else:
        name = {"Bucket": installation.settings.aws.bucket, "Key": f"{tenant}/raw/killed"}
        client("s3").create_multipart_upload(**name)
    installation.refresh_snapshot()


def processing(installation: Installation, tenant: str, status: str = "running") -> Processing:
    """A run over the tenant's tickets that has just said that it lives."""
    now = installation.clock()
    return Processing(
        run_id=f"run-of-{tenant}",
        tenant=tenant,
        service=SERVICE,
        table="tickets",
        lane=f"backfill/{tenant}/{SERVICE}/tickets",
        mode="backfill",
        started_at=now,
        beat_at=now,
        status=status,
    )


def rows(path: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Table and values of every row of a SQLite file; compressed values are shown in plain."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f"SELECT * FROM {table}"):
                yield table, tuple(_plain(value) for value in row)


def _plain(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return zlib.decompress(value).decode()
    except zlib.error:
        return value.decode("latin-1")


def rows_of(home: Path, tenant: str) -> set[tuple[str, str, str]]:
    """File, table and content of all rows that name a tenant."""
    named = re.compile(rf"(?<![A-Za-z0-9-]){re.escape(tenant)}(?![A-Za-z0-9-])")
    return {
        (path.name, table, repr(row))
        for path in _databases(home)
        for table, row in rows(path)
        if any(isinstance(value, str) and named.search(value) for value in row)
    }


def files_of(home: Path, tenant: str) -> dict[str, bytes]:
    """The tenant's objects and credentials."""
    found = [*(home / "lake" / tenant).rglob("*"), home / "secrets" / f"{tenant}.json"]
    return {str(path.relative_to(home)): path.read_bytes() for path in found if path.is_file()}


def traces(home: Path, pattern: str) -> list[str]:
    """Where in a home a pattern is found: in names, bytes of files, and compressed values."""
    wanted = re.compile(pattern.encode())
    found = []
    for path in sorted(home.rglob("*")):
        if wanted.search(path.name.encode()):
            found.append(f"name {path.relative_to(home)}")
        if path.is_file():
            hits = wanted.finditer(path.read_bytes())
            found += [f"{path.relative_to(home)} at {hit.start()}" for hit in hits]
    for path in _databases(home):
        for table, row in rows(path):
            if any(isinstance(value, str) and wanted.search(value.encode()) for value in row):
                found.append(f"{path.relative_to(home)} {table}")
    return found


def traces_on_aws(where: Aws, pattern: str) -> list[str]:
    """Where in an environment a pattern is found: in versions, uploads, items and secrets."""
    wanted = re.compile(pattern)
    s3, tables, secrets = client("s3"), client("dynamodb"), client("secretsmanager")
    held: list[tuple[str, str]] = []
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=where.bucket):
        held += [("mark", said["Key"]) for said in page.get("DeleteMarkers", ())]
        for said in page.get("Versions", ()):
            one = {"Bucket": where.bucket, "Key": said["Key"], "VersionId": said["VersionId"]}
            body = s3.get_object(**one)["Body"].read().decode("latin-1")
            held.append((f"version of {said['Key']}", f"{said['Key']} {body}"))
    for upload in s3.list_multipart_uploads(Bucket=where.bucket).get("Uploads", ()):
        held.append(("upload", upload["Key"]))
    for table in TABLES:
        pages = tables.get_paginator("scan").paginate(TableName=where.table(table.name))
        for item in (item for page in pages for item in page["Items"]):
            values = [next(iter(value.values())) for value in item.values()]
            held.append((f"item of {table.name}", repr([_plain(value) for value in values])))
    for secret in secrets.list_secrets(IncludePlannedDeletion=True)["SecretList"]:
        if secret["Name"].endswith(f"/{where.environment}"):
            held.append(("secret", secret["Name"]))
    return [f"{place}: {text[:200]}" for place, text in held if wanted.search(text)]


def _databases(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*.db") if path.is_file())
