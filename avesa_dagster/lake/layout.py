"""Where data lies: keys of objects, which say the same as the asset keys.

    {tenant}/raw/{service}/{table}/dt=YYYY-MM-DD/{chunk}-{observed}-{writer}.parquet
    {tenant}/raw/{service}/{table}/rejected/dt=YYYY-MM-DD/{chunk}-{observed}-{writer}.json
    {tenant}/canonical/{service}/{table}/dt=YYYY-MM-DD/versions.parquet
    {tenant}/history/{table}/manifest.json
    {tenant}/history/{table}/generation-{hash}-{writer}.parquet

`dt` is the partition's key: the first day of its window.
"""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa

from avesa_dagster.names import checked

UTC_MICROS = pa.timestamp("us", tz="UTC")

RAW_SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("updated_at", UTC_MICROS, nullable=False),
        pa.field("observed_at", UTC_MICROS, nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("is_deleted", pa.bool_(), nullable=False),
        pa.field("payload", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("chunk_id", pa.string(), nullable=False),
        pa.field("job_id", pa.string()),
        pa.field("mode", pa.string(), nullable=False),
    ]
)
"""One row an observation. `payload` is the record's JSON as the service sent it, byte for byte,
null for a deletion; `updated_at` is the source's change time, or the moment a deletion was seen;
`content_hash` is 32 hex digits of BLAKE2b over the payload. `run_id`, `chunk_id`, `job_id` (null
outside of a backfill job) and `mode` (backfill, sync or full) say how it came here."""


def table_prefix(tenant: str, layer: str, service: str, table: str) -> str:
    """`{tenant}/{layer}/{service}/{table}/`; every part is checked."""
    names = (checked("tenant", tenant), layer, checked("service", service), checked("table", table))
    return "/".join(names) + "/"


def partition_prefix(tenant: str, layer: str, service: str, table: str, partition: str) -> str:
    """`{tenant}/{layer}/{service}/{table}/dt={partition}/`"""
    datetime.strptime(partition, "%Y-%m-%d")
    return f"{table_prefix(tenant, layer, service, table)}dt={partition}/"


def raw_key(
    tenant: str,
    service: str,
    table: str,
    partition: str,
    *,
    chunk_id: str,
    observed_at: datetime,
    writer: str,
) -> str:
    """Key of a new raw object; `writer` tells apart two that write at one moment."""
    stamp = observed_at.strftime("%Y%m%dT%H%M%S%fZ")
    prefix = partition_prefix(tenant, "raw", service, table, partition)
    return f"{prefix}{chunk_id}-{stamp}-{writer}.parquet"


DELETIONS = "deletions-"
"""Begins the names of raw objects that hold deletions: they are looked for over all partitions."""


def holds_deletions(key: str) -> bool:
    """Whether a raw object holds deletions."""
    return key.rsplit("/", 1)[1].startswith(DELETIONS)


def rejected_key(raw: str) -> str:
    """Where the records lie that could not be stored in the raw object `raw`."""
    folder, name = raw.rsplit("/dt=", 1)
    return f"{folder}/rejected/dt={name.removesuffix('.parquet')}.json"


def versions_key(tenant: str, service: str, table: str, partition: str) -> str:
    """The one file of a canonical partition."""
    return partition_prefix(tenant, "canonical", service, table, partition) + "versions.parquet"


def history_prefix(tenant: str, table: str) -> str:
    """`{tenant}/history/{table}/`"""
    return f"{checked('tenant', tenant)}/history/{checked('table', table)}/"


def manifest_key(tenant: str, table: str) -> str:
    """The manifest that says which generation of a history holds."""
    return history_prefix(tenant, table) + "manifest.json"


def never_replaced(key: str) -> bool:
    """Whether an object, once it is there, is what it is until it is removed: raw objects and
    generations are, whose names have a writer in them."""
    layer = key.split("/", 2)[1:2]
    return key.endswith(".parquet") and layer in (["raw"], ["history"])


def partition_of(key: str) -> str:
    """The partition key in an object's key."""
    return key.rsplit("/dt=", 1)[1].split("/", 1)[0]
