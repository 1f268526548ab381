"""A real embedded home, and the installation in AWS that it moves into."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from avesa_dagster.conformance.ground import make
from avesa_dagster.control.health import Sample
from avesa_dagster.control.jobs import Job, JobStatus, Trigger
from avesa_dagster.extract import raw
from avesa_dagster.extract.request import Mode
from avesa_dagster.installation import Installation
from avesa_dagster.lake.layout import partition_of, table_prefix
from avesa_dagster.migration.deriving import build
from avesa_dagster.settings import Aws, Settings
from avesa_dagster.sources.base import Rejected
from avesa_dagster_tests.extract.support import (
    HASTY,
    MAPPINGS,
    SERVICE,
    TENANT,
    Bench,
    catalog,
    small_segments,
)

TABLES = ("tickets", "companies")
SECRET = "Sx7-never-shown"


def derive(installation: Installation, tenant: str = TENANT) -> None:
    """Builds all canonical partitions of a tenant, and its histories."""
    touched = {}
    for table in TABLES:
        listed = installation.objects.list(table_prefix(tenant, "raw", SERVICE, table))
        keys = {partition_of(info.key) for info in listed if "/rejected/" not in info.key}
        touched[tenant, SERVICE, table] = keys
    build(installation.objects, installation.catalog, touched)


def furnish(bench: Bench) -> None:
    """Fetches, has records change and go, fetches again, derives; leaves jobs and the rest too."""
    before = small_segments(40)
    for table in TABLES:
        bench.extract(table)
    bench.control("mutate", table="tickets", count=9)
    bench.control("delete", table="tickets", count=3)
    bench.advance(600)
    bench.extract("tickets", Mode.FULL)
    small_segments(before)
    installation = bench.installation
    control, now = installation.control, bench.clock()
    chunk = bench.chunks("token-1", "tickets")[0]
    reason = [Rejected("it has no usable id", b"{}")]
    raw.write_rejected(installation.objects, reason, chunk, chunk.partition, now)
    derive(installation)
    for name, status in (("done1", JobStatus.COMPLETED), ("rests", JobStatus.PAUSED)):
        job = Job(name, TENANT, SERVICE, TABLES, now - timedelta(9), now, Trigger.PERSON, now, now)
        control.jobs.create(job)
        ended = now if status is JobStatus.COMPLETED else None
        control.jobs.change(name, partial(_with, status=status, ended=ended), now=now)
    control.counters.add([Sample("records", (("tenant", TENANT),), 3.0)])
    control.registry.connect(
        "globex", SERVICE, history_start=now, tables=TABLES, requests_per_minute=9, now=now
    )
    control.registry.disconnect("globex", SERVICE, now=now)
    installation.secrets.put("globex", SERVICE, {"private_key": SECRET})
    for number in range(3):  # numbers that were given and are gone
        name = f"gone{number}"
        control.registry.connect(
            name, SERVICE, history_start=now, tables=[], requests_per_minute=None, now=now
        )
        control.registry.disconnect(name, SERVICE, now=now)
        control.registry.forget(name)


def _with(job: Job, status: JobStatus, ended: datetime | None) -> Job:
    return replace(job, status=status, completed_at=ended, records=7, requests=3)


def installation_at(home: Path, clock: Any, where: Aws | None = None) -> Installation:
    """An installation with the bench's catalog."""
    installation = Installation(Settings(home=home, mappings=MAPPINGS, aws=where), clock, HASTY)
    installation.__dict__["catalog"] = catalog(max_deleted_share=1.0)
    return installation


def new_target(folder: Path) -> Aws:
    """A bucket and tables of a folder's own."""
    name = hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
    where = Aws(f"t{name}", f"avesa-moved-{name}")
    make(where)
    return where


def files(home: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, with its bytes and when it was changed."""
    return {
        str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def answers(installation: Installation, tenant: str = TENANT) -> dict[str, Any]:
    """What the reader says of each table, as comparable rows."""
    reader = installation.reader()
    found: dict[str, Any] = {}
    for table in reader.tables(tenant):
        for name in ("current", "history"):
            rows = getattr(reader, name)(tenant, table).fetchall()
            found[f"{name} {table}"] = sorted(rows, key=repr)
    return found
