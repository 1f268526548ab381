"""Observations to versions: one canonical file a partition, a pure function of its raw objects.

A version is (record_id, updated_at, is_deleted). Of several observations of one version the
latest observed wins; of those observed at one moment, the greatest content hash. The order of
the observations, their number and how they lie in objects make no difference to the file's bytes.
"""

# ruff: noqa: S608 - SQL is built from checked names and quoted literals only.
from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avesa_dagster.canonical.mapping import ARROW, Projection, fingerprint, projection
from avesa_dagster.catalog.models import CanonicalTable, Catalog, Source
from avesa_dagster.errors import ConfigurationError, DataError, StoreError, Where
from avesa_dagster.lake.database import (
    MEMORY_LIMIT,
    THREADS,
    connect,
    explained,
    identifier,
    literal,
    parquet,
)
from avesa_dagster.lake.layout import UTC_MICROS, partition_prefix, versions_key
from avesa_dagster.lake.objects import Conflict, ObjectInfo, Objects

ROW_GROUP = 65_536
"""Rows of a row group; fixed, so that equal rows make equal bytes."""

ATTEMPTS = 20
"""Rounds of building while others build. A round is lost only to one that somebody else won."""

ROUNDS = 3
"""Rounds of publishing while raw grows."""

ADDED = (
    pa.field("tenant_id", pa.string()),
    pa.field("source_service", pa.string()),
    pa.field("source_table", pa.string()),
    pa.field("record_hash", pa.string()),
    pa.field("ingested_at", UTC_MICROS),
    pa.field("record_id", pa.string()),
    pa.field("updated_at", UTC_MICROS),
    pa.field("is_deleted", pa.bool_()),
    pa.field("content_hash", pa.string()),
    pa.field("first_observed_at", UTC_MICROS),
    pa.field("observed_times", pa.list_(UTC_MICROS)),
)
"""What every version carries beside its fields. `ingested_at` is when the winning observation was
made, `observed_times` are all moments at which the version was seen, ascending."""


@dataclass(frozen=True, slots=True)
class PartitionBuild:
    """What a canonical partition holds after it was built.

    Attributes:
        key: The versions file.
        changed: Whether this build replaced it; false if it held the same bytes.
        raw_objects: Raw objects that were read.
        observations: Rows in them.
        versions: Rows of the versions file, deletions among them.
        records: Distinct record ids.
        deletions: Versions that say "deleted".
        cast_failures: field -> versions whose value did not fit the field's type and is null.
        bytes: Size of the versions file.
    """

    key: str
    changed: bool
    raw_objects: int
    observations: int
    versions: int
    records: int
    deletions: int
    cast_failures: dict[str, int] = field(default_factory=dict)
    bytes: int = 0


def versions_schema(table: CanonicalTable) -> pa.Schema:
    """Columns of a versions file: the fields in the mapping file's order, then `ADDED`."""
    fields = [pa.field(name, ARROW[kind]) for name, kind in table.fields.items()]
    return pa.schema([*fields, *ADDED])


def mapping_fingerprint(catalog: Catalog, service: str, table: str) -> str:
    """Changes when the table's partitions have to be built anew.

    Raises:
        ConfigurationError: The table is unknown or feeds no canonical table.
    """
    canonical, mapping = _mapping(catalog, service, table)
    return fingerprint(canonical, mapping)


def build_partition(
    objects: Objects,
    catalog: Catalog,
    tenant: str,
    service: str,
    table: str,
    partition: str,
    *,
    memory_limit: str = MEMORY_LIMIT,
    threads: int = THREADS,
    scratch: Path | None = None,
) -> PartitionBuild:
    """Builds a canonical partition from all of its raw objects and replaces it whole.

    Safe to run at once with itself and with writers of raw: what it publishes holds every raw
    object that was there when it began, and no older build replaces a newer one. The partition's
    tag is read before raw is listed, and the file is published only if that tag still holds; so
    whoever publishes has listed raw after the one before had published. A lost race, or raw
    objects that came meanwhile, make another round.

    Args:
        objects: The lake.
        catalog: Where the mapping is.
        tenant: Whose data.
        service: The service that it came from.
        table: The service's table, which must feed a canonical table.
        partition: The partition's key, `YYYY-MM-DD`.
        memory_limit: Of the engine; the file's bytes (zstd) come on top when it is published.
        threads: Of the engine.
        scratch: Folder for temporary files, by default the system's.

    Raises:
        ConfigurationError: The table is unknown or feeds no canonical table.
        DataError: A payload is no JSON object; the text names record ids. Nothing was replaced.
        StoreError: A raw object cannot be read, or the file cannot be written.
    """
    canonical, mapping = _mapping(catalog, service, table)
    where = Where(tenant, service, table, partition)
    key = versions_key(tenant, service, table, partition)
    prefix = partition_prefix(tenant, "raw", service, table, partition)
    added = {
        "tenant_id": tenant,
        "source_service": service,
        "source_table": catalog.services[service].tables[table].endpoint,
    }
    changed = False
    grown = 0
    for _ in range(ATTEMPTS):
        before = objects.stat(key)
        raw = _raw(objects, prefix)
        with tempfile.TemporaryDirectory(prefix="avesa-versions-", dir=scratch) as folder:
            target = Path(folder, "versions.parquet")
            spill = Path(folder, "spill")
            with (
                explained("building versions", where),
                connect(memory_limit=memory_limit, threads=threads, scratch=spill) as connection,
            ):
                counts = _build(connection, objects, raw, canonical, mapping, added, target, where)
            if not _holds(objects, before, target):
                try:
                    objects.put_if(key, target.read_bytes(), tag=before.tag if before else None)
                except Conflict:
                    continue
                changed = True
            size = target.stat().st_size
        grown += 1
        # What grows on and on is built by whoever lets it grow; this holds what it began with.
        if grown == ROUNDS or _raw(objects, prefix) == raw:
            return PartitionBuild(key, changed, len(raw), *counts, bytes=size)
    raise StoreError(
        f"versions were built {ATTEMPTS} times, and each time somebody else wrote them first",
        where=where,
        hint="build the partition again when fewer builds of it run at once",
    )


def _raw(objects: Objects, prefix: str) -> list[ObjectInfo]:
    return [info for info in objects.list(prefix) if info.key.endswith(".parquet")]


def _mapping(
    catalog: Catalog, service: str, table: str
) -> tuple[CanonicalTable, dict[str, Source]]:
    known = catalog.services.get(service)
    if known is None or table not in known.tables:
        have = ", ".join(known.tables if known else catalog.services)
        raise ConfigurationError(
            f"there is no {'table' if known else 'service'} {table if known else service!r}",
            where=Where(service=service, table=table),
            hint=f"known: {have}",
        )
    found = catalog.mapping(service, table)
    if found is None:
        feeding = ", ".join(name for name, t in known.tables.items() if t.canonical)
        raise ConfigurationError(
            "this table feeds no canonical table",
            where=Where(service=service, table=table),
            hint=f"map it in mappings/canonical/ and name that there; mapped: {feeding}",
        )
    return found


def _holds(objects: Objects, published: ObjectInfo | None, target: Path) -> bool:
    """Whether the published file has these bytes; then it keeps its tag."""
    if published is None or published.size != target.stat().st_size:
        return False
    try:
        held = objects.get(published.key)
    except KeyError:
        return False
    return held == target.read_bytes()


def _build(
    connection: duckdb.DuckDBPyConnection,
    objects: Objects,
    raw: list[ObjectInfo],
    canonical: CanonicalTable,
    mapping: Mapping[str, Source],
    added: Mapping[str, str],
    target: Path,
    where: Where,
) -> tuple[int, int, int, int, dict[str, int]]:
    """Writes the file; returns observations, versions, records, deletions, cast failures."""
    schema = versions_schema(canonical).with_metadata(
        {"avesa.mapping": fingerprint(canonical, mapping)}
    )
    typed = projection(canonical, mapping)
    failures = dict.fromkeys((name for group in typed.checked for name in group), 0)
    if not raw:
        pq.write_table(schema.empty_table(), target, compression="zstd")
        return 0, 0, 0, 0, {}
    source = parquet(objects.location(info.key) for info in raw)
    connection.execute(_WINNERS.format(source=source))
    try:
        _write(connection, typed, source, added, schema, target, failures)
    except duckdb.InvalidInputException as error:
        _name_the_broken(connection, source, where, error)
        raise
    counts = connection.execute(
        "SELECT sum(seen)::BIGINT, count(*), count(DISTINCT record_id), "
        "count(*) FILTER (is_deleted) FROM winners"
    ).fetchone()
    if counts is None:
        raise StoreError("the engine counted nothing", where=where)
    observations, versions, records, deletions = counts
    return observations, versions, records, deletions, {f: n for f, n in failures.items() if n}


# Narrow: payloads are not read before it is known which are wanted. A row's place is its file's
# number in the list and its number in that file.
_PLACE = "(file_index::BIGINT << 40) | file_row_number"
_WINNERS = f"""
CREATE TEMP TABLE winners AS
SELECT record_id, updated_at, is_deleted, best.observed AS ingested_at, best.hash AS content_hash,
    best.place AS place, first_observed_at, observed_times, seen
FROM (
    SELECT record_id, updated_at, is_deleted, count(*) AS seen,
        max({{{{'observed': observed_at, 'hash': content_hash, 'place': {_PLACE}}}}}) AS best,
        min(observed_at) AS first_observed_at,
        list_sort(list_distinct(list(observed_at))) AS observed_times
    FROM {{source}}
    GROUP BY record_id, updated_at, is_deleted
)"""


def _write(
    connection: duckdb.DuckDBPyConnection,
    typed: Projection,
    source: str,
    added: Mapping[str, str],
    schema: pa.Schema,
    target: Path,
    failures: dict[str, int],
) -> None:
    """Streams the typed winners into the file, in order, and counts what did not fit."""
    columns = [
        f"{_of_deleted(name, sql)} AS {identifier(name)}" for name, sql in typed.columns.items()
    ]
    named = ", ".join(identifier(name) for name in typed.columns)
    constants = ", ".join(f"{literal(value)} AS {name}" for name, value in added.items())
    masks = [f"failed_{number}" for number in range(len(typed.failed))]
    failed = "".join(f", {sql} AS {name}" for name, sql in zip(masks, typed.failed, strict=True))
    order = ", ".join([*(identifier(name) for name in schema.names), *masks])
    # Without this, the result was seen to come out in another order than ORDER BY gives it.
    connection.execute("SET preserve_insertion_order = true")
    relation = connection.sql(f"""
        SELECT {order} FROM (
            SELECT *, {constants}, md5(to_json(row({named}))::VARCHAR) AS record_hash{failed}
            FROM (
                SELECT * EXCLUDE (payload), {", ".join(columns)} FROM (
                    SELECT *, {typed.texts} AS texts,
                        contains(payload, '\\u0000') AS has_nul
                    FROM (
                        SELECT w.*, CASE WHEN w.is_deleted THEN NULL
                            WHEN starts_with(ltrim(r.payload, chr(32) || chr(9) || chr(10) ||
                                chr(13)), '{{') THEN r.payload
                            ELSE error('{_NO_OBJECT}') END AS payload
                        FROM {source} r JOIN winners w ON {_PLACE} = w.place
                    )
                )
            )
        ) ORDER BY record_id, updated_at, is_deleted""")
    reader = relation.to_arrow_reader(ROW_GROUP)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in _row_groups(reader):
            for mask, names in zip(masks, typed.checked, strict=True):
                _count(group.column(mask), names, failures)
            rows = group.select(schema.names).cast(schema).combine_chunks()
            writer.write_table(rows, row_group_size=ROW_GROUP)


_NO_OBJECT = "payload is no JSON object"


def _of_deleted(name: str, sql: str) -> str:
    return f"CASE WHEN is_deleted THEN record_id ELSE {sql} END" if name == "id" else sql


def _row_groups(reader: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of exactly ROW_GROUP rows, the last one shorter."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        held.append(batch)
        rows += batch.num_rows
        while rows >= ROW_GROUP:
            table = pa.Table.from_batches(held)
            yield table.slice(0, ROW_GROUP)
            rest = table.slice(ROW_GROUP)
            held, rows = rest.to_batches(), rest.num_rows
    if rows:
        yield pa.Table.from_batches(held)


def _count(mask: pa.ChunkedArray, names: tuple[str, ...], failures: dict[str, int]) -> None:
    for value in mask.filter(pc.not_equal(mask, 0)).to_pylist():
        for bit, name in enumerate(names):
            failures[name] += value >> bit & 1


def _name_the_broken(
    connection: duckdb.DuckDBPyConnection, source: str, where: Where, cause: Exception
) -> None:
    """Raises DataError with the ids of the records whose payload is no JSON object."""
    broken = connection.execute(f"""
        SELECT record_id FROM {source} r SEMI JOIN winners w ON {_PLACE} = w.place
        WHERE NOT is_deleted
            AND CASE WHEN json_valid(payload) THEN json_type(payload) <> 'OBJECT' ELSE true END
        ORDER BY record_id""").fetchall()
    if broken:
        shown = ", ".join(repr(record) for (record,) in broken[:5])
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise DataError(
            f"payload is no JSON object: record {shown}{more}",
            where=where,
            hint="the versions were not replaced; the raw objects keep what was sent",
        ) from cause
