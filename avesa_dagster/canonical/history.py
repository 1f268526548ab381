"""Histories as generations: derived whole, published by one conditional write of a manifest.

A generation is named after what it was derived from and never replaced. The manifest says which
generation holds, and the canonical partitions, with their tags, that it covers; a reader derives
what came later.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import duckdb

from avesa_dagster.canonical.derivation import derive, fingerprint
from avesa_dagster.catalog.models import CanonicalTable, Catalog, ScdType
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.lake.database import MEMORY_LIMIT, THREADS, connect, explained, literal
from avesa_dagster.lake.layout import history_prefix, manifest_key, table_prefix
from avesa_dagster.lake.objects import Conflict, ObjectInfo, Objects

ATTEMPTS = 10
"""Rounds of deriving while partitions are replaced, before giving up."""

READING = timedelta(minutes=15)
"""A generation stays for so long after another one took its place: somebody may be reading it."""


class Restless(StoreError):
    """The partitions were replaced each time that they were read. Try again later."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which generation holds.

    Attributes:
        inputs: Key and tag of each canonical partition that the generation covers.
        fingerprint: Of the fields and the derivation.
        generation: Key of the generation's object.
        rows: Rows in it.
        records: Records in it.
        built_at: When it was built, if the builder said.
    """

    inputs: dict[str, str]
    fingerprint: str
    generation: str
    rows: int
    records: int
    built_at: datetime | None = None

    def to_json(self) -> bytes:
        said = {
            "generation": self.generation,
            "rows": self.rows,
            "records": self.records,
            "built_at": self.built_at.isoformat() if self.built_at else None,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
        }
        return json.dumps(said, indent=1).encode()


@dataclass(frozen=True, slots=True)
class HistoryBuild:
    """What a history holds after it was rebuilt.

    Attributes:
        generation: Key of the generation that holds now.
        changed: Whether this rebuild published it; false if it already covered every partition.
        inputs: Canonical partitions that it covers.
        rows: Rows in it.
        records: Records in it.
    """

    generation: str
    changed: bool
    inputs: int
    rows: int
    records: int


def canonical_table(catalog: Catalog, table: str) -> CanonicalTable:
    """The canonical table of that name.

    Raises:
        ConfigurationError: There is none; the hint names those that there are.
    """
    if table not in catalog.canonical:
        raise ConfigurationError(
            f"there is no canonical table {table!r}",
            hint=f"known: {', '.join(catalog.canonical)}",
        )
    return catalog.canonical[table]


def canonical_inputs(objects: Objects, catalog: Catalog, tenant: str, table: str) -> dict[str, str]:
    """Key and tag of each partition, of any service, that feeds a tenant's canonical table."""
    return {
        info.key: info.tag
        for service, known in catalog.services.items()
        for name, service_table in known.tables.items()
        if service_table.canonical == table
        for info in objects.list(table_prefix(tenant, "canonical", service, name))
        if info.key.endswith("/versions.parquet")
    }


def read_manifest(objects: Objects, tenant: str, table: str) -> Manifest | None:
    """The manifest; None before the first rebuild.

    Raises:
        StoreError: It cannot be read as a manifest.
    """
    key = manifest_key(tenant, table)
    try:
        said = json.loads(objects.get(key))
        built_at = said["built_at"]
        return Manifest(
            inputs=dict(said["inputs"]),
            fingerprint=said["fingerprint"],
            generation=said["generation"],
            rows=said["rows"],
            records=said["records"],
            built_at=datetime.fromisoformat(built_at) if built_at else None,
        )
    except KeyError as error:
        if error.args == (key,):
            return None
        raise _unreadable(key, tenant, table) from error
    except (ValueError, TypeError) as error:
        raise _unreadable(key, tenant, table) from error


def rebuild(
    objects: Objects,
    catalog: Catalog,
    tenant: str,
    table: str,
    *,
    built_at: datetime | None = None,
    memory_limit: str = MEMORY_LIMIT,
    threads: int = THREADS,
) -> HistoryBuild:
    """Derives a tenant's history from all canonical partitions and publishes it.

    Safe to run at once with itself and with builds of partitions: the manifest's tag is read
    before the partitions are listed, so the manifest never goes back to older inputs; and a
    generation is published only if no partition was replaced while it was being read.

    Args:
        objects: The lake.
        catalog: Which service tables feed the canonical table.
        tenant: Whose history.
        table: The canonical table.
        built_at: To be noted in the manifest.
        memory_limit: Of the engine.
        threads: Of the engine.

    Raises:
        ConfigurationError: There is no such canonical table.
        StoreError: A file cannot be read or written.
        Restless: The partitions never stood still for as long as it takes.
    """
    canonical = canonical_table(catalog, table)
    where = Where(tenant, table=table)
    key = manifest_key(tenant, table)
    for _ in range(ATTEMPTS):
        held = objects.stat(key)
        previous = read_manifest(objects, tenant, table)
        inputs = canonical_inputs(objects, catalog, tenant, table)
        if previous and covers(objects, previous, canonical, inputs):
            return _build(previous, changed=False)
        old = _generations(objects, tenant, table)
        generation = _generation_key(tenant, canonical, inputs)
        try:
            with (
                explained("deriving the history", where),
                objects.create(generation) as path,
                standing(objects, catalog, tenant, table, inputs),
            ):
                rows, records = _write(objects, canonical, inputs, str(path), memory_limit, threads)
            manifest = Manifest(inputs, fingerprint(canonical), generation, rows, records, built_at)
            objects.put_if(key, manifest.to_json(), tag=held.tag if held else None)
        except Conflict:
            objects.delete(generation)
            continue
        # They were listed before the manifest was written, so none is among them that somebody
        # can still publish. The store's clock wrote them, so it says what time it is.
        latest = objects.stat(generation)
        kept = previous.generation if previous else None
        for info, successor in pairwise(old):
            if latest and successor.written < latest.written - READING and info.key != kept:
                objects.delete(info.key)
        return _build(manifest, changed=True)
    raise Restless(
        f"the history was derived {ATTEMPTS} times, and each time its partitions had changed",
        where=where,
        hint="readers are exact without it; rebuild when fewer partitions are being written",
    )


@contextmanager
def standing(
    objects: Objects, catalog: Catalog, tenant: str, table: str, inputs: dict[str, str]
) -> Iterator[None]:
    """Whatever is read in the block was read from these inputs.

    An engine that opens a file twice, and finds another one the second time, reads anything or
    fails with anything; so what was read counts only if the inputs' tags are what they were.

    Raises:
        Conflict: An input was replaced meanwhile; what was read counts for nothing.
    """
    replaced = Conflict(
        "a partition was replaced while it was read",
        where=Where(tenant, table=table),
        hint="read it again",
    )
    try:
        yield
    except duckdb.Error as error:
        if canonical_inputs(objects, catalog, tenant, table) != inputs:
            raise replaced from error
        raise
    if canonical_inputs(objects, catalog, tenant, table) != inputs:
        raise replaced


def covers(
    objects: Objects, manifest: Manifest, canonical: CanonicalTable, inputs: dict[str, str]
) -> bool:
    """Whether a manifest's generation is there and is the history of these inputs."""
    return (
        manifest.inputs == inputs
        and manifest.fingerprint == fingerprint(canonical)
        and objects.stat(manifest.generation) is not None
    )


def _write(
    objects: Objects,
    canonical: CanonicalTable,
    inputs: dict[str, str],
    path: str,
    memory_limit: str,
    threads: int,
) -> tuple[int, int]:
    """Writes the generation; returns its rows and records."""
    with connect(objects, memory_limit=memory_limit, threads=threads) as connection:
        wide = derive(
            connection,
            canonical,
            [objects.location(name) for name in inputs],
            every_version=canonical.scd_type == ScdType.TYPE_2,
        )
        connection.execute(
            f"COPY ({wide}) TO {literal(path)} "
            "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, USE_TMP_FILE false)"
        )
        counts = connection.execute(
            "SELECT count(*), count(*) FILTER (number = 1) FROM pieces"
        ).fetchall()
        rows, records = counts[0]
        return rows, records


def _generations(objects: Objects, tenant: str, table: str) -> list[ObjectInfo]:
    """All that there are, published or not, from the oldest to the newest."""
    held = objects.list(history_prefix(tenant, table))
    return sorted(
        (info for info in held if info.key.endswith(".parquet")), key=lambda info: info.written
    )


def _generation_key(tenant: str, canonical: CanonicalTable, inputs: dict[str, str]) -> str:
    said = json.dumps([fingerprint(canonical), sorted(inputs.items())])
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    # A generation is never replaced: two that derive the same at once write two objects.
    writer = uuid.uuid4().hex[:8]
    return f"{history_prefix(tenant, canonical.table)}generation-{digest}-{writer}.parquet"


def _build(manifest: Manifest, *, changed: bool) -> HistoryBuild:
    return HistoryBuild(
        manifest.generation, changed, len(manifest.inputs), manifest.rows, manifest.records
    )


def _unreadable(key: str, tenant: str, table: str) -> StoreError:
    return StoreError(
        f"{key} is no manifest",
        where=Where(tenant, table=table),
        hint="delete it: readers are exact without it, and the next rebuild writes it anew",
    )
