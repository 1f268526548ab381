"""A small catalog, and lakes made of observations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avesa_dagster.canonical.versions import PartitionBuild, build_partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.lake.layout import RAW_SCHEMA, raw_key
from avesa_dagster.lake.objects import Objects

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TICKS = 3_600_000_000
"""Microseconds an hour."""


def at(hour: float) -> datetime:
    """A moment, in hours after START."""
    return START + hour * HOUR


def small_catalog(fields: dict[str, str] | None = None, **sources: Any) -> Catalog:
    """Services `east` and `west`, each with tables `things` (type 2) and `places` (type 1)."""
    fields = fields or {"id": "string", "name": "string"}
    mapping = {field: field for field in fields} | sources
    service = {
        "title": "A service",
        "page_size": 10,
        "lag_seconds": 0,
        "overlap_seconds": 0,
        "request_timeout_seconds": 1,
        "tables": {
            name: {
                "endpoint": f"api/{name}",
                "enabled": True,
                "id": "id",
                "change_field": "changed",
                "canonical": name,
            }
            for name in ("things", "places")
        },
    }
    service["tables"]["unmapped"] = {  # type: ignore[index]
        "endpoint": "api/unmapped",
        "enabled": False,
        "id": "id",
        "change_field": "changed",
    }
    return Catalog.model_validate(
        {
            "services": {name: service | {"service": name} for name in ("east", "west")},
            "canonical": {
                name: {
                    "table": name,
                    "scd_type": scd_type,
                    "fields": fields,
                    "sources": {s: {f"api/{name}": mapping} for s in ("east", "west")},
                }
                for name, scd_type in (("things", "type_2"), ("places", "type_1"))
            },
            "backfill": {
                "services": {},
                "sweep": {"max_deleted_share": 0.5, "min_deleted_records": 10},
            },
        }
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation: a record's change time and when it was seen, in hours after START."""

    record: str
    changed: float
    seen: float
    name: str | None = "a"
    payload: str | None = None

    @property
    def dead(self) -> bool:
        return self.name is None

    @property
    def text(self) -> str | None:
        if self.dead:
            return None
        return self.payload or json.dumps({"id": self.record, "name": self.name})

    @property
    def content_hash(self) -> str:
        return hashlib.blake2b((self.text or "").encode(), digest_size=16).hexdigest()


_writes = iter(range(10**9))


def store(
    objects: Objects,
    observations: Iterable[Seen],
    *,
    tenant: str = "acme",
    service: str = "east",
    table: str = "things",
    partition: str = "2024-01-01",
) -> str:
    """Writes one raw object; returns its key."""
    seen = list(observations)
    columns = {
        "record_id": [o.record for o in seen],
        "updated_at": [at(o.changed) for o in seen],
        "observed_at": [at(o.seen) for o in seen],
        "content_hash": [o.content_hash for o in seen],
        "is_deleted": [o.dead for o in seen],
        "payload": [o.text for o in seen],
        "run_id": ["run"] * len(seen),
        "chunk_id": ["chunk"] * len(seen),
        "job_id": [None] * len(seen),
        "mode": ["backfill"] * len(seen),
    }
    key = raw_key(
        tenant,
        service,
        table,
        partition,
        chunk_id="chunk",
        observed_at=START,
        writer=f"{next(_writes):08x}",
    )
    with objects.create(key) as path:
        pq.write_table(pa.table(columns, schema=RAW_SCHEMA), path)
    return key


def build(
    objects: Objects,
    catalog: Catalog,
    *,
    tenant: str = "acme",
    service: str = "east",
    table: str = "things",
    partition: str = "2024-01-01",
) -> PartitionBuild:
    return build_partition(objects, catalog, tenant, service, table, partition)
