"""Canonical partitions to a history: ours and the plain way, on the same files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from avesa_dagster.canonical.history import rebuild
from avesa_dagster.canonical.observations import ROW_GROUP, versions_schema
from avesa_dagster.lake.layout import history_prefix, table_prefix, versions_key
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work.tickets import SERVICE, TABLE, TENANT, catalog

MONTHS = 24
_DELETED = 0.005
"""Share of the versions that are deletions; their records take the long way."""


def prepare(versions: int, folder: str) -> Measured:
    """Two years of versions, about five a record, in monthly partitions as they are built."""
    rng = np.random.default_rng(7)
    objects = LocalObjects(Path(folder))
    schema = versions_schema(catalog().canonical[TABLE])
    meter = Meter()
    for month in range(MONTHS):
        rows = versions * (month + 1) // MONTHS - versions * month // MONTHS
        partition = f"{2024 + month // 12}-{month % 12 + 1:02d}-01"
        table = _versions(rng, schema, partition, rows, records=max(rows, versions // 5))
        with objects.create(versions_key(TENANT, SERVICE, TABLE, partition)) as path:
            pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
    return meter.measured(versions)


def avesa(folder: str, versions: int) -> Measured:
    """Rebuilds the history from all partitions, and publishes it."""
    objects = LocalObjects(Path(folder))
    for info in objects.list(history_prefix(TENANT, TABLE)):
        objects.delete(info.key)
    known = catalog()
    meter = Meter()
    with meter:
        build = rebuild(objects, known, TENANT, TABLE)
    return meter.measured(versions, rows=build.rows)


def plain(folder: str) -> Measured:
    """pandas: everything in one frame, sorted, each version's end shifted up from the next."""
    objects = LocalObjects(Path(folder))
    prefix = table_prefix(TENANT, "canonical", SERVICE, TABLE)
    paths = [objects.location(info.key) for info in objects.list(prefix)]
    target = Path(folder, "plain.parquet")
    meter = Meter()
    with meter:
        frame = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
        versions = len(frame)
        frame = frame.sort_values(["record_id", "updated_at"], ignore_index=True)
        records = frame.groupby("record_id", sort=False)
        frame["effective_end_date"] = records["updated_at"].shift(-1)
        frame["record_version"] = records.cumcount() + 1
        frame["is_current"] = frame["effective_end_date"].isna()
        frame = frame[~frame["is_deleted"]]
        frame.to_parquet(target, compression="zstd")
    return meter.measured(versions)


def _versions(
    rng: np.random.Generator, schema: pa.Schema, partition: str, rows: int, records: int
) -> pa.Table:
    """Versions of `rows` different records, each changed once in the month."""
    numbers = np.sort(rng.choice(records, rows, replace=False))
    ids = pa.array((10_000_000 + numbers).astype(str))
    start = int(datetime.fromisoformat(partition).replace(tzinfo=UTC).timestamp())
    changed = (start + rng.integers(0, 28 * 86_400, rows)) * 1_000_000
    columns = {
        "id": ids,
        "ticket_number": ids,
        "record_id": ids,
        "summary": _texts(rng, "Cannot print the report of customer number {}", 50_000, rows),
        "tenant_id": pa.repeat(pa.scalar(TENANT), rows),
        "source_service": pa.repeat(pa.scalar(SERVICE), rows),
        "source_table": pa.repeat(pa.scalar("service/tickets"), rows),
        "record_hash": _hashes(rng, rows),
        "content_hash": _hashes(rng, rows),
        "is_deleted": pa.array(rng.random(rows) < _DELETED),
        "updated_at": pa.array(changed),
        "ingested_at": pa.array(changed + 3_600_000_000),
        "first_observed_at": pa.array(changed + 3_600_000_000),
        "observed_times": pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32)),
            pa.array(changed + 3_600_000_000).cast(schema.field("updated_at").type),
        ),
    }
    for field in schema:
        if field.name in columns:
            continue
        if pa.types.is_string(field.type):
            columns[field.name] = _texts(rng, field.name + " {}", 200, rows)
        elif pa.types.is_timestamp(field.type):
            columns[field.name] = pa.array(changed - rng.integers(0, 10**12, rows))
        elif pa.types.is_boolean(field.type):
            columns[field.name] = pa.array(rng.random(rows) < 0.5)
        else:
            columns[field.name] = pa.array(rng.integers(0, 400, rows) / 4)
    return pa.table(
        {field.name: columns[field.name].cast(field.type) for field in schema}, schema=schema
    )


def _texts(rng: np.random.Generator, text: str, different: int, rows: int) -> pa.Array:
    words = pa.array([text.format(number) for number in range(different)])
    return words.take(pa.array(rng.integers(0, different, rows)))


def _hashes(rng: np.random.Generator, rows: int) -> pa.Array:
    digits = rng.bytes(16 * rows).hex()
    return pa.array([digits[n : n + 32] for n in range(0, 32 * rows, 32)])
