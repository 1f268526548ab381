"""From pages to raw objects: one row an observation, the payload byte for byte."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import Where
from avesa_dagster.lake import layout
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Page, Rejected, Window

_FUTURE = timedelta(days=1)
_GROUP_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Origin:
    """What brought an observation: written beside it."""

    run_id: str
    mode: str
    job_id: str | None = None


def content_hash(payload: bytes) -> str:
    """32 hex digits of BLAKE2b over the payload, or over what stands for it."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


def observations(pages: Iterable[Page], chunk: Chunk, origin: Origin) -> pa.Table:
    """The rows of RAW_SCHEMA that the pages hold; the same content seen twice is one row.

    A record without a change time gets the moment of its observation. What the service lists as
    deleted is left to `tombstones`.
    """
    return _observed(pages, chunk, origin, deleted=False)


def tombstones(pages: Iterable[Page], chunk: Chunk, origin: Origin) -> pa.Table:
    """Rows that close the records that the pages list as deleted, from their change time on; with
    the payload that the service still shows."""
    return _observed(pages, chunk, origin, deleted=True)


def _observed(pages: Iterable[Page], chunk: Chunk, origin: Origin, *, deleted: bool) -> pa.Table:
    ids: list[str] = []
    updated: list[datetime] = []
    observed: list[datetime] = []
    hashes: list[str] = []
    payloads: list[bytes] = []
    seen: set[tuple[str, str]] = set()
    for page in pages:
        for record in page.records:
            if record.deleted is not deleted:
                continue
            digest = content_hash(record.payload if record.content is None else record.content)
            key = (record.record_id, digest)
            if key in seen:
                continue
            seen.add(key)
            ids.append(record.record_id)
            updated.append(record.updated_at or page.received_at)
            observed.append(page.received_at)
            hashes.append(digest)
            payloads.append(record.payload)
    return _table(ids, updated, observed, hashes, payloads, chunk, origin, deleted=deleted)


def deletions(
    record_ids: Sequence[str],
    closed: Sequence[datetime],
    observed_at: datetime,
    chunk: Chunk,
    origin: Origin,
) -> pa.Table:
    """Rows that close each record from its moment on."""
    count = len(record_ids)
    hashes = [content_hash(b"")] * count
    nothing = [None] * count
    return _table(
        record_ids, closed, [observed_at] * count, hashes, nothing, chunk, origin, deleted=True
    )


def future_records(pages: Iterable[Page], now: datetime) -> tuple[list[Page], list[Rejected]]:
    """Takes records out that claim a change more than a day ahead: they would stay current."""
    kept: list[Page] = []
    rejected: list[Rejected] = []
    for page in pages:
        ahead = [r for r in page.records if r.updated_at and r.updated_at > now + _FUTURE]
        if ahead:
            rejected += [
                Rejected(f"its change time {r.updated_at} is in the future", r.payload)
                for r in ahead
            ]
            taken = {id(record) for record in ahead}
            records = [record for record in page.records if id(record) not in taken]
            page = Page(records, page.rejected, page.last_id, page.received_at)
        kept.append(page)
    return kept, rejected


def write(
    objects: Objects, table: pa.Table, chunk: Chunk, partition: str, *, name: str = ""
) -> str:
    """Writes one raw object and returns its key; whole, or not at all.

    Args:
        name: Begins the object's name.
    """
    key = _key(chunk, partition, table.column("observed_at")[0].as_py(), name)
    with objects.create(key) as path:
        pq.write_table(
            table,
            path,
            compression="zstd",
            compression_level=1,
            row_group_size=_GROUP_ROWS,
            use_dictionary=["run_id", "chunk_id", "job_id", "mode"],
            write_statistics=["record_id", "updated_at", "observed_at"],
        )
    return key


def write_rejected(
    objects: Objects, rejected: Sequence[Rejected], chunk: Chunk, partition: str, now: datetime
) -> str:
    """Keeps what could not be taken, with the reasons, beside the raw objects."""
    where = Where(chunk.tenant, chunk.service, chunk.table, str(Window(chunk.start, chunk.end)))
    document = {
        "where": str(where),
        "records": [
            {"reason": item.reason, "payload": item.payload.decode("utf-8", "replace")}
            for item in rejected
        ],
    }
    key = layout.rejected_key(_key(chunk, partition, now))
    objects.put(key, json.dumps(document, indent=1).encode())
    return key


def _key(chunk: Chunk, partition: str, observed_at: datetime, name: str = "") -> str:
    return layout.raw_key(
        chunk.tenant,
        chunk.service,
        chunk.table,
        partition,
        chunk_id=f"{name}{chunk.chunk_id}",
        observed_at=observed_at,
        writer=uuid.uuid4().hex[:8],
    )


def _table(
    ids: Sequence[str],
    updated: Sequence[datetime],
    observed: Sequence[datetime],
    hashes: Sequence[str],
    payloads: Sequence[bytes | None],
    chunk: Chunk,
    origin: Origin,
    *,
    deleted: bool,
) -> pa.Table:
    count = len(ids)
    columns = [
        pa.array(ids, pa.string()),
        pa.array(updated, layout.UTC_MICROS),
        pa.array(observed, layout.UTC_MICROS),
        pa.array(hashes, pa.string()),
        pa.repeat(pa.scalar(deleted), count),
        _texts(payloads),
        pa.repeat(pa.scalar(origin.run_id), count),
        pa.repeat(pa.scalar(chunk.chunk_id), count),
        pa.repeat(pa.scalar(origin.job_id, pa.string()), count),
        pa.repeat(pa.scalar(origin.mode), count),
    ]
    return pa.Table.from_arrays(columns, schema=layout.RAW_SCHEMA)


def _texts(payloads: Sequence[bytes | None]) -> pa.Array:
    """The payloads as one column. Made in one piece: an array that grows to 48 MB is copied, and
    its memory fetched from the system, several times over."""
    sizes = pa.array([None if text is None else len(text) for text in payloads], pa.int32())
    ends = pc.cumulative_sum_checked(pc.fill_null(sizes, 0))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    joined = pa.py_buffer(b"".join(text for text in payloads if text is not None))
    column = pa.StringArray.from_buffers(
        len(payloads), offsets.buffers()[1], joined, sizes.buffers()[0], sizes.null_count
    )
    column.validate(full=True)  # that it is UTF-8
    return column
