"""JSON pages to raw Parquet: ours, the least that it could be, and the plain way."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from avesa_dagster.extract import raw
from avesa_dagster.lake.layout import RAW_SCHEMA
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.sources.base import Page
from avesa_dagster.sources.records import RecordDecoder
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work import tickets

_NOW = datetime(2024, 2, 1, tzinfo=UTC)


def avesa(rows: int, folder: str) -> Measured:
    """The path that extraction takes from an answer's body to a raw object."""
    made = tickets.Tickets()
    decoder = RecordDecoder(tickets.catalog().services[tickets.SERVICE].tables[tickets.TABLE])
    objects = LocalObjects(Path(folder))
    chunk = tickets.chunk()
    stored = 0
    meter = Meter()
    for bodies in made.segments(rows):
        pages = []
        for body in bodies:
            with meter:
                found, rejected = decoder.decode(body)
                pages.append(Page(found, rejected, found[-1].record_id, _NOW))
        with meter:
            table = raw.observations(pages, chunk, "run")
            key = raw.write(objects, table, chunk, chunk.partition)
        stored += table.num_rows
        objects.delete(key)
    if stored != rows:
        raise AssertionError(f"{rows} records were sent and {stored} stored")
    return meter.measured(rows, mean_bytes=made.mean_bytes)


def split_and_write(rows: int, folder: str) -> Measured:
    """The least: each page split into records with msgspec, and the same columns written.

    No value is looked at: no id, no change time, no hash, no check; those columns are constants.
    """
    split = msgspec.json.Decoder(list[msgspec.Raw])
    return _alone(rows, folder, lambda body: [bytes(record) for record in split.decode(body)])


def parse_and_write(rows: int, folder: str) -> Measured:
    """Each page parsed whole with msgspec, to dicts, and its text written as the same columns."""
    split = msgspec.json.Decoder(list[msgspec.Raw])
    parse = msgspec.json.Decoder()

    def payloads(body: bytes) -> list[bytes]:
        parse.decode(body)
        return [bytes(record) for record in split.decode(body)]

    return _alone(rows, folder, payloads)


def plain(rows: int, folder: str) -> Measured:
    """`json.loads`, `json_normalize`, `to_parquet`, an object as large as ours.

    Custom fields change their type from record to record, which `to_parquet` refuses; so they are
    written as text.
    """
    made = tickets.Tickets()
    meter = Meter()
    target = Path(folder, "plain.parquet")
    for bodies in made.segments(rows):
        frames = []
        for body in bodies:
            with meter:
                frames.append(pd.json_normalize(json.loads(body)))
        with meter:
            frame = pd.concat(frames)
            frame["customFields"] = frame["customFields"].map(json.dumps)
            frame.to_parquet(target, compression="zstd")
    return meter.measured(rows)


def _alone(rows: int, folder: str, payloads: Callable[[bytes], list[bytes]]) -> Measured:
    made = tickets.Tickets()
    meter = Meter()
    target = Path(folder, "alone.parquet")
    for bodies in made.segments(rows):
        texts: list[bytes] = []
        for body in bodies:
            with meter:
                texts += payloads(body)
        with meter:
            _write(texts, target)
    return meter.measured(rows)


def _write(texts: list[bytes], target: Path) -> None:
    """The columns of a raw object, written as `raw.write` writes them."""
    constants: dict[str, Any] = {
        "record_id": "10000000",
        "updated_at": _NOW,
        "observed_at": _NOW,
        "content_hash": "0" * 32,
        "is_deleted": False,
        "run_id": "run",
        "chunk_id": "chunk",
        "job_id": "job",
        "mode": "backfill",
    }
    columns = [
        pa.array(texts, pa.string())
        if column.name == "payload"
        else pa.repeat(pa.scalar(constants[column.name], column.type), len(texts))
        for column in RAW_SCHEMA
    ]
    pq.write_table(
        pa.Table.from_arrays(columns, schema=RAW_SCHEMA),
        target,
        compression="zstd",
        compression_level=1,
        row_group_size=5_000,
        use_dictionary=["run_id", "chunk_id", "job_id", "mode"],
        write_statistics=["record_id", "updated_at", "observed_at"],
    )
