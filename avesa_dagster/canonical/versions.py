"""Observations to versions: one canonical file a partition, a pure function of its raw objects.

A version is (record_id, updated_at, is_deleted). Of several observations of one version the
latest observed wins; of those observed at one moment, the greatest content hash. The order of
the observations, their number and how they lie in objects make no difference to the file's bytes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from avesa_dagster.canonical.mapping import fingerprint
from avesa_dagster.canonical.observations import write_versions
from avesa_dagster.catalog.models import CanonicalTable, Catalog, Source
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.lake.database import MEMORY_LIMIT, THREADS, connect, explained
from avesa_dagster.lake.layout import partition_prefix, versions_key
from avesa_dagster.lake.objects import Conflict, ObjectInfo, Objects

ATTEMPTS = 20
"""Rounds of building while others build. A round is lost only to one that somebody else won."""

ROUNDS = 3
"""Rounds of publishing while raw grows."""


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


def mapping_fingerprint(catalog: Catalog, service: str, table: str) -> str:
    """Changes when the table's partitions have to be built anew.

    Raises:
        ConfigurationError: The table is unknown or feeds no canonical table.
    """
    canonical, mapping = _mapping(catalog, service, table)
    blank_is_null = catalog.services[service].blank_is_null
    return fingerprint(canonical, mapping, blank_is_null=blank_is_null)


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
                connect(
                    objects, memory_limit=memory_limit, threads=threads, scratch=spill
                ) as connection,
            ):
                counts = write_versions(
                    connection,
                    [objects.location(info.key) for info in raw],
                    canonical,
                    mapping,
                    added,
                    target,
                    where,
                    blank_is_null=catalog.services[service].blank_is_null,
                )
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
