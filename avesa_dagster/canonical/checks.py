"""Invariants of canonical partitions and histories, asked of the files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avesa_dagster.lake.database import connect, parquet
from avesa_dagster.lake.layout import partition_prefix, versions_key
from avesa_dagster.lake.objects import Objects


@dataclass(frozen=True, slots=True)
class Finding:
    """How often an invariant is broken, and one example."""

    broken: int
    example: str | None = None


def doubled_keys(
    objects: Objects, tenant: str, service: str, table: str, partitions: Sequence[str]
) -> Finding:
    """Versions whose (record_id, updated_at, is_deleted) stands twice within a partition."""
    files = _versions(objects, tenant, service, table, partitions)
    return _find(
        f"""select filename, record_id, updated_at from {parquet(files, "filename=true")}
        group by filename, record_id, updated_at, is_deleted having count(*) > 1"""
        if files
        else None
    )


def lost_versions(
    objects: Objects, tenant: str, service: str, table: str, partitions: Sequence[str]
) -> Finding:
    """Versions that raw holds and canonical does not, partition by partition."""
    found = Finding(0)
    for partition in partitions:
        prefix = partition_prefix(tenant, "raw", service, table, partition)
        raw = [objects.location(i.key) for i in objects.list(prefix) if i.key.endswith(".parquet")]
        if not raw:
            continue
        held = _versions(objects, tenant, service, table, [partition])
        columns = "record_id, updated_at, is_deleted"
        here = f"select {columns} from {parquet(raw)}"
        if held:
            here += f" except select {columns} from {parquet(held)}"
        one = _find(here)
        found = Finding(found.broken + one.broken, found.example or one.example)
    return found


def broken_intervals(objects: Objects, key: str) -> Finding:
    """Rows of a generation that overlap the next one, leave a gap that no deletion explains, end
    before they start, or whose record_version does not count up from 1."""
    return _find(
        f"""
        with steps as (
            select source_service, id, record_version, effective_start_date s,
                   effective_end_date e, effective_end_origin o, is_current,
                   lead(effective_start_date) over w next_start,
                   row_number() over w n
            from {parquet([objects.location(key)])}
            window w as (partition by source_service, id order by effective_start_date))
        select id, s, e, next_start from steps
        where e <= s or next_start < e or record_version <> n
           or (next_start is not null and (e is null or (next_start > e and o <> 'observed')))
           or (is_current and e is not null)
        """
    )


def doubled_current(objects: Objects, key: str) -> Finding:
    """Records with more than one current row."""
    return _find(
        f"""select source_service, id, count(*) from {parquet([objects.location(key)])}
        where is_current group by all having count(*) > 1"""
    )


def _versions(
    objects: Objects, tenant: str, service: str, table: str, partitions: Sequence[str]
) -> list[str]:
    keys = [versions_key(tenant, service, table, partition) for partition in partitions]
    return [objects.location(key) for key in keys if objects.stat(key)]


def _find(sql: str | None) -> Finding:
    if sql is None:
        return Finding(0)
    with connect() as db:
        row = db.execute(
            f"select count(*), any_value(found::varchar) from ({sql}) found"
        ).fetchone()
    return Finding(int(row[0]), row[1]) if row else Finding(0)
