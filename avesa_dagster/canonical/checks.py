"""Invariants of canonical partitions and histories, asked of the files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from avesa_dagster.errors import StoreError, Where
from avesa_dagster.lake.database import connect, explained, parquet
from avesa_dagster.lake.layout import partition_prefix
from avesa_dagster.lake.objects import Objects

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """How often an invariant is broken, and one example."""

    broken: int
    example: str | None = None


def raw_objects(
    objects: Objects, tenant: str, service: str, table: str, partition: str
) -> list[str]:
    """Keys of the raw objects of a partition at this moment."""
    prefix = partition_prefix(tenant, "raw", service, table, partition)
    return [info.key for info in objects.list(prefix) if info.key.endswith(".parquet")]


def doubled_keys(objects: Objects, versions: str) -> Finding:
    """Versions whose (record_id, updated_at, is_deleted) stands twice within a partition.

    Args:
        versions: Key of the partition's versions file.
    """
    return _find(
        objects,
        versions,
        f"""select record_id, updated_at from {parquet([objects.location(versions)])}
        group by record_id, updated_at, is_deleted having count(*) > 1""",
    )


def lost_versions(objects: Objects, versions: str, raw: Sequence[str]) -> Finding:
    """Versions that these raw objects hold and the versions file does not.

    Args:
        raw: Keys that were listed before the file was built: raw may have grown since.
    """
    if not raw:
        return Finding(0)
    columns = "record_id, updated_at, is_deleted"
    return _find(
        objects,
        versions,
        f"""select {columns} from {parquet(objects.location(key) for key in raw)}
        except select {columns} from {parquet([objects.location(versions)])}""",
    )


def doubled_observations(objects: Objects, raw: Sequence[str]) -> Finding:
    """Observations whose version and content is stored twice, without a deletion between.

    Two fetches of one window that overlap in time store it twice; canonical takes no harm.

    Args:
        objects: The lake.
        raw: Keys of a partition's raw objects.
    """
    if not raw:
        return Finding(0)
    files = parquet(objects.location(key) for key in raw)
    with explained("raw cannot be read", Where()), connect(objects) as db:
        row = db.execute(
            f"""
            with seen as (
                select record_id, updated_at, content_hash, is_deleted from {files}),
            doubled as (select record_id, updated_at from seen where not is_deleted
                group by record_id, updated_at, content_hash having count(*) > 1)
            select count(*), any_value(doubled::varchar) from doubled
            where record_id not in (select record_id from seen where is_deleted)
            """
        ).fetchone()
    return Finding(int(row[0]), row[1]) if row else Finding(0)


def together(findings: Sequence[Finding]) -> Finding:
    """One finding over several partitions."""
    example = next((finding.example for finding in findings if finding.example), None)
    return Finding(sum(finding.broken for finding in findings), example)


def broken_intervals(objects: Objects, key: str) -> Finding:
    """Rows of a generation that overlap the next one, leave a gap that no deletion explains, end
    before they start, or whose record_version does not count up from 1."""
    return _find(
        objects,
        key,
        f"""
        with steps as (
            select record_id, record_version, effective_start_date s,
                   effective_end_date e, effective_end_origin o, is_current,
                   lead(effective_start_date) over w next_start,
                   row_number() over w n
            from {parquet([objects.location(key)])}
            window w as (partition by source_service, source_table, record_id
                order by effective_start_date))
        select record_id, s, e, next_start from steps
        where e <= s or next_start < e or record_version <> n
           or (next_start is not null and (e is null or (next_start > e and o <> 'observed')))
           or (is_current and e is not null)
        """,
    )


def doubled_current(objects: Objects, key: str) -> Finding:
    """Records with more than one current row."""
    return _find(
        objects,
        key,
        f"""select source_service, source_table, record_id, count(*)
        from {parquet([objects.location(key)])}
        where is_current group by all having count(*) > 1""",
    )


def _find(objects: Objects, key: str, sql: str) -> Finding:
    """Asks, and asks again if the object was replaced meanwhile: then the answer is of neither."""
    for _ in range(_TRIES):
        before = objects.stat(key)
        if before is None:
            raise StoreError(f"{key} is gone", hint="somebody else has built a newer one")
        try:
            with connect(objects) as db:
                row = db.execute(
                    f"select count(*), any_value(found::varchar) from ({sql}) found"
                ).fetchone()
        except duckdb.Error:
            if objects.stat(key) == before:
                raise
            continue
        if row is not None and objects.stat(key) == before:
            return Finding(int(row[0]), row[1])
    raise StoreError(f"{key} is replaced all the time", hint="check it when less is running")
