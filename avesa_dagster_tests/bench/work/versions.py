"""Raw objects to one canonical partition: ours and the plain way, on the same files."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from avesa_dagster.canonical.versions import build_partition
from avesa_dagster.extract import raw
from avesa_dagster.lake.layout import partition_prefix, versions_key
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.sources.base import Page
from avesa_dagster.sources.records import RecordDecoder
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work import tickets

_PLACE = (tickets.TENANT, tickets.SERVICE, tickets.TABLE, tickets.PARTITION)


def prepare(rows: int, folder: str) -> Measured:
    """Raw objects of one partition; every tenth observation was made twice, a day apart."""
    made = tickets.Tickets()
    catalog = tickets.catalog()
    decoder = RecordDecoder(catalog.services[tickets.SERVICE].tables[tickets.TABLE])
    objects = LocalObjects(Path(folder))
    chunk = tickets.chunk()
    meter = Meter()
    again = rows // 11
    for part, moment in ((rows - again, tickets.END), (again, tickets.END + timedelta(days=1))):
        for bodies in made.segments(part):
            pages = [Page(decoder.decode(body)[0], [], None, moment) for body in bodies]
            raw.write(objects, raw.observations(pages, chunk, "run"), chunk, chunk.partition)
    return meter.measured(rows)


def avesa(folder: str) -> Measured:
    """Builds the partition as a run does: all of its raw objects, to the file in its place."""
    objects = LocalObjects(Path(folder))
    catalog = tickets.catalog()
    objects.delete(versions_key(*_PLACE))
    meter = Meter()
    with meter:
        build = build_partition(objects, catalog, *_PLACE)
    return meter.measured(build.observations, versions=build.versions)


def plain(folder: str, files: int) -> Measured:
    """`json_normalize`, the last observation of each version kept, `to_parquet`.

    Args:
        files: How many of the raw objects it gets.
    """
    tenant, service, table, partition = _PLACE
    objects = LocalObjects(Path(folder))
    prefix = partition_prefix(tenant, "raw", service, table, partition)
    paths = [objects.location(info.key) for info in objects.list(prefix)][:files]
    target = Path(folder, "plain.parquet")
    meter = Meter()
    with meter:
        observed = pd.concat(pq.read_table(path).to_pandas() for path in paths)
        frame = pd.json_normalize([json.loads(text) for text in observed["payload"]])
        frame["observed_at"] = observed["observed_at"].to_numpy()
        frame = frame.sort_values(["id", "_info.lastUpdated", "observed_at"])
        frame = frame.drop_duplicates(["id", "_info.lastUpdated"], keep="last")
        for name in frame.columns[frame.columns.str.contains("date|Date|lastUpdated")]:
            frame[name] = pd.to_datetime(frame[name], errors="coerce", utc=True)
        frame["customFields"] = frame["customFields"].map(json.dumps)
        frame.to_parquet(target, compression="zstd")
    return meter.measured(len(observed))
