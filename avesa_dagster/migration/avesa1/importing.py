"""Raw files of the platform before become raw observations here.

Each file becomes an object a partition, of which the key says file and content, and then a receipt:
so a file is imported once however often this is killed and run again, and anew if it was replaced.
The ledger is not told: the platform before left gaps, so nothing counts as covered by what it had.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avesa_dagster.catalog import grain
from avesa_dagster.control.base import Chunk, TenantService
from avesa_dagster.errors import StoreError
from avesa_dagster.extract import raw
from avesa_dagster.installation import Installation
from avesa_dagster.lake import layout
from avesa_dagster.migration.avesa1.connecting import Connecting
from avesa_dagster.migration.avesa1.identity import identified
from avesa_dagster.migration.avesa1.places import Place, Unplaced, place_of
from avesa_dagster.migration.avesa1.records import Shape, Unreadable, shape_of, told
from avesa_dagster.migration.avesa1.shelves import Shelf, Shelved
from avesa_dagster.migration.telling import Progress, quiet
from avesa_dagster.sources.base import Page, Rejected
from avesa_dagster.sources.records import RecordDecoder

ORIGIN = raw.Origin(run_id="avesa1", mode="import")
_PREFIX = "avesa1-"
_Table = tuple[str, str, str]


@dataclass(slots=True)
class TableReport:
    """What became of the files of one table.

    Attributes:
        files: That there are; the next four add up to them.
        imported: Now.
        already: Before.
        empty: Without a record.
        unreadable: Their keys, and why. They are looked at again next time.
        records: Rows of the files that were imported now; the next three add up to them.
        observations: Stored.
        repeated: The same record with the same content, once more in one file.
        rejected: Lie beside raw, each with its reason.
        objects: Raw objects written.
        partitions: Keys of all partitions that hold imported observations.
    """

    tenant: str
    service: str
    table: str
    files: int = 0
    imported: int = 0
    already: int = 0
    empty: int = 0
    unreadable: list[Unplaced] = field(default_factory=list)
    records: int = 0
    observations: int = 0
    repeated: int = 0
    rejected: int = 0
    objects: int = 0
    partitions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """Files of the platform before.

    Attributes:
        tables: (tenant, service, table) -> its files, oldest first.
        unplaced: Files that belong nowhere.
    """

    tables: Mapping[_Table, Sequence[tuple[Shelved, Place]]]
    unplaced: Sequence[Unplaced]


def find(shelf: Shelf, installation: Installation, tenants: Sequence[str] = ()) -> Found:
    """The files that there are; of these tenants, or of all."""
    tables: dict[_Table, list[tuple[Shelved, Place]]] = defaultdict(list)
    unplaced = []
    for file in shelf.list():
        place = place_of(file.key, installation.catalog)
        if isinstance(place, Unplaced) and (not tenants or file.key.split("/")[0] in tenants):
            unplaced.append(place)
        elif isinstance(place, Place) and (not tenants or place.tenant in tenants):
            tables[place.tenant, place.service, place.table].append((file, place))
    for files in tables.values():
        files.sort(key=lambda one: (one[1].observed_at, one[0].key))
    return Found(dict(sorted(tables.items())), unplaced)


def import_files(
    shelf: Shelf,
    found: Found,
    installation: Installation,
    connecting: Connecting,
    progress: Progress = quiet,
) -> list[TableReport]:
    """Imports all files that were not imported yet.

    Raises:
        AvesaError: Something cannot be read or written; what was imported stays.
    """
    total = sum(file.size for files in found.tables.values() for file, _ in files)
    done = 0
    reports = []
    for (tenant, service, table), files in found.tables.items():
        importer = _Importer(shelf, installation, connecting(tenant, service), table)
        for file, place in files:
            progress(f"importing {tenant} {service} {table}", done, total)
            importer.take(file, place)
            done += file.size
        importer.report.partitions = imported_partitions(installation, tenant, service, table)
        reports.append(importer.report)
    return reports


def imported_partitions(
    installation: Installation, tenant: str, service: str, table: str
) -> list[str]:
    """Keys of the partitions that hold imported observations of a table."""
    prefix = layout.table_prefix(tenant, "raw", service, table)
    keys = (info.key for info in installation.objects.list(prefix))
    return sorted({layout.partition_of(k) for k in keys if f"/{_PREFIX}" in k and _is_raw(k)})


class _Importer:
    """Of one table."""

    def __init__(
        self, shelf: Shelf, installation: Installation, connection: TenantService, table: str
    ) -> None:
        tenant, service = connection.tenant, connection.service
        self._shelf = shelf
        self._objects = installation.objects
        self._clock = installation.clock
        self._place = (tenant, service, table)
        known = installation.catalog.services[service].tables[table]
        self._decoder = RecordDecoder(known)
        self._shape: Shape = shape_of(installation.catalog, service, table)
        self._grain = installation.catalog.settings(tenant, service).partitions
        self._first = grain.floor(self._grain, connection.history_start)
        self._receipts = f"{tenant}/imported/avesa1/{service}/{table}/"
        self._taken = {
            info.key.removeprefix(self._receipts).removesuffix(".json")
            for info in self._objects.list(self._receipts)
        }
        self.report = TableReport(tenant, service, table)

    def take(self, file: Shelved, place: Place) -> None:
        """Imports a file unless it was."""
        self.report.files += 1
        name, seen = _short(file.key), _short(f"{file.key}\n{file.size}\n{file.tag}")
        if any(taken.startswith(f"{name}-{seen}-") for taken in self._taken):
            self.report.already += 1
            return
        data = self._shelf.read(file.key)
        content = hashlib.sha256(data).hexdigest()[:16]
        known = any(t.startswith(f"{name}-") and t.endswith(f"-{content}") for t in self._taken)
        if known:
            self.report.already += 1
            return
        where = _File(file.key, name, content, place.observed_at)
        try:
            said = self._import(data, where) if data else {"records": 0}
        except Unreadable as error:
            self.report.unreadable.append(Unplaced(file.key, error.what))
            self._reject([Rejected(error.what, b"")], where)
            return
        if said["records"]:
            self.report.imported += 1
        else:
            self.report.empty += 1
        receipt = f"{name}-{seen}-{content}"
        text = json.dumps({"file": file.key, "sha256": hashlib.sha256(data).hexdigest(), **said})
        self._objects.put(f"{self._receipts}{receipt}.json", text.encode())
        self._taken.add(receipt)

    def _import(self, data: bytes, where: _File) -> dict[str, Any]:
        """Stores what a file holds. Reads all of it before it writes."""
        pages, rejected, rows = [], list[Rejected](), 0
        for part in told(data, self._shape):
            rows += len(part.payloads) + len(part.rejected)
            rejected += part.rejected
            records, refused = self._decoder.decode(b"[" + b",".join(part.payloads) + b"]")
            rejected += refused
            records = identified(self._place[1], records, rejected)
            pages.append(Page(records, [], None, where.observed_at))
        pages, ahead = raw.future_records(pages, self._clock())
        rejected += ahead
        table = raw.observations(pages, self._chunk(where), ORIGIN)
        repeated = sum(len(page.records) for page in pages) - table.num_rows
        if table.num_rows + repeated + len(rejected) != rows:
            raise StoreError(
                f"of {rows} records of {where.key}, {table.num_rows} would be stored, {repeated} "
                f"left out as repeated and {len(rejected)} rejected",
                hint="this is a bug; report it. Nothing of the file was stored",
            )
        parts = self._spread(table)
        for partition, part in parts:
            self._write(part, partition, where)
        if rejected:
            self._reject(rejected, where)
        report = self.report
        report.records += rows
        report.observations += table.num_rows
        report.repeated += repeated
        report.rejected += len(rejected)
        return {
            "records": rows,
            "observations": table.num_rows,
            "repeated": repeated,
            "rejected": len(rejected),
            "partitions": [partition for partition, _ in parts],
        }

    def _spread(self, table: pa.Table) -> list[tuple[str, pa.Table]]:
        """Rows by the partition of their change time; what is older than the first one belongs
        there, what is newer than the open one there: as a full pull's."""
        last = grain.floor(self._grain, self._clock())
        changed = table.column("updated_at").to_pylist()
        starts = [min(max(grain.floor(self._grain, at), self._first), last) for at in changed]
        keys = pa.array([f"{start:%Y-%m-%d}" for start in starts], pa.string())
        return [(key, table.filter(pc.equal(keys, key))) for key in sorted(set(keys.to_pylist()))]

    def _write(self, rows: pa.Table, partition: str, where: _File) -> None:
        key = self._key(partition, where)
        if self._objects.stat(key) is not None:
            return  # by an attempt that was killed before the receipt
        with self._objects.create(key) as path:
            pq.write_table(rows, path, compression="zstd", compression_level=1)
        self.report.objects += 1

    def _reject(self, rejected: Sequence[Rejected], where: _File) -> None:
        """Keeps what could not be taken beside raw, in the partition of the file's time."""
        last = grain.floor(self._grain, self._clock())
        start = min(max(grain.floor(self._grain, where.observed_at), self._first), last)
        tenant, service, table = self._place
        document = {
            "where": f"tenant={tenant} service={service} table={table} file={where.key}",
            "records": [
                {"reason": item.reason, "payload": item.payload.decode("utf-8", "replace")}
                for item in rejected
            ],
        }
        key = layout.rejected_key(self._key(f"{start:%Y-%m-%d}", where))
        self._objects.put(key, json.dumps(document, indent=1).encode())

    def _chunk(self, where: _File) -> Chunk:
        tenant, service, table = self._place
        at = where.observed_at
        token, chunk_id = ORIGIN.run_id, f"{_PREFIX}{where.name}"
        return Chunk(token, tenant, service, table, chunk_id, "", "window", at, at)

    def _key(self, partition: str, where: _File) -> str:
        return layout.raw_key(
            *self._place,
            partition,
            chunk_id=f"{_PREFIX}{where.name}",
            observed_at=where.observed_at,
            writer=where.content,
        )


@dataclass(frozen=True, slots=True)
class _File:
    """A file: its key, hashes of key and content, and when it was fetched."""

    key: str
    name: str
    content: str
    observed_at: datetime


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_raw(key: str) -> bool:
    return key.endswith(".parquet") and "/dt=" in key
