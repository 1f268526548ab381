"""What the lake holds of a table already, by its raw objects.

A fetch stores what differs from what is held, so a repeated one changes nothing: not raw, and not
the bytes of canonical and history. That it looked, and when, is in the ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from datetime import datetime

import pyarrow as pa

from avesa_dagster.errors import Where
from avesa_dagster.lake import layout
from avesa_dagster.lake.database import connect, explained, parquet
from avesa_dagster.lake.objects import Objects

_VERSIONS = """
create table versions as
with seen as (select record_id, updated_at, observed_at, content_hash, is_deleted from {source}),
gone as (select record_id, max(observed_at) as gone_at from seen where is_deleted group by all)
select * exclude (gone_at, seen_at) from (
    select record_id, updated_at, max(observed_at) as seen_at,
        max_by(content_hash, {{o: observed_at, h: content_hash}}) as content_hash
    from seen where not is_deleted group by record_id, updated_at)
left join gone using (record_id) where gone_at is null or seen_at > gone_at
"""
_LATEST = """
create table latest as
select record_id, last.updated_at, last.content_hash, last.is_deleted from (
    select record_id, max_by(
        {{updated_at: updated_at, content_hash: content_hash, is_deleted: is_deleted}},
        {{o: observed_at, u: updated_at, h: content_hash}}) as last
    from {source} group by record_id)
"""
_CLOSED = """
create table closed as
select record_id, max(updated_at) as updated_at from {source} where is_deleted group by record_id
"""


class Held:
    """What was held at the moment of opening. Reads keys and hashes, never the payloads.

    Serves two questions: which of these rows say something new, and which records are gone.
    Threads may share it.

    Args:
        partitions: Only what lies in these, besides every deletion: enough to tell what is new
            in their windows. None: the whole table, which the search for the gone needs.
    """

    def __init__(
        self,
        objects: Objects,
        tenant: str,
        service: str,
        table: str,
        partitions: Sequence[str] | None = None,
    ) -> None:
        prefix = layout.table_prefix(tenant, "raw", service, table)
        files = [
            objects.location(info.key)
            for info in objects.list(prefix)
            if info.key.endswith(".parquet")
            and (
                partitions is None
                or layout.holds_deletions(info.key)
                or layout.partition_of(info.key) in partitions
            )
        ]
        self._lock = threading.Lock()
        self._whole = partitions is None
        self._empty = not files
        self._db = connect(objects)
        self._db.execute("create table listed (record_id varchar)")
        if not files:
            return
        source = parquet(files)
        with explained("raw cannot be read", Where(tenant, service, table)):
            self._db.execute(_VERSIONS.format(source=source))
            self._db.execute(_CLOSED.format(source=source))
            if self._whole:
                self._db.execute(_LATEST.format(source=source))

    def new(self, rows: pa.Table, unstamped: frozenset[str] = frozenset()) -> pa.Table:
        """The rows that say something new: a version that is not held, other content of one that
        is, or life after a deletion.

        Args:
            rows: Of RAW_SCHEMA.
            unstamped: Ids of records that state no change time: new if their content is another
                than at their latest observation. Needs the whole table.
        """
        if self._empty or not rows.num_rows:
            return rows
        keys = rows.select(["record_id", "updated_at", "content_hash"])
        stamped = [i not in unstamped for i in keys.column("record_id").to_pylist()]
        keys = keys.append_column("stamped", pa.array(stamped))
        keys = keys.append_column("n", pa.array(range(rows.num_rows), pa.int64()))
        known = """select n from candidates c join versions h
            using (record_id, updated_at, content_hash) where stamped"""
        if unstamped:
            known += """ union all select n from candidates c join latest h
                using (record_id, content_hash) where not stamped and not is_deleted"""
        with self._lock:
            self._db.register("candidates", keys)
            found = self._db.sql(
                f"select n from candidates where n not in ({known}) order by n"
            ).to_arrow_table()
            self._db.unregister("candidates")
        return rows.take(found.column("n"))

    def new_deletions(self, rows: pa.Table) -> pa.Table:
        """Of rows that close records, those that no deletion that is held says already."""
        if self._empty or not rows.num_rows:
            return rows
        keys = rows.select(["record_id", "updated_at"])
        keys = keys.append_column("n", pa.array(range(rows.num_rows), pa.int64()))
        with self._lock:
            self._db.register("candidates", keys)
            found = self._db.sql(
                """select n from candidates c where not exists (select 1 from closed h
                where h.record_id = c.record_id and h.updated_at >= c.updated_at) order by n"""
            ).to_arrow_table()
            self._db.unregister("candidates")
        return rows.take(found.column("n"))

    def note_listed(self, record_ids: Iterable[str]) -> None:
        """Remembers that the service lists these ids."""
        with self._lock:
            self._db.register("page", pa.table({"record_id": pa.array(record_ids, pa.string())}))
            self._db.execute("insert into listed select record_id from page")
            self._db.unregister("page")

    def alive(self) -> int:
        """How many records are held and not deleted."""
        if self._empty:
            return 0
        found = self._db.execute("select count(*) from latest where not is_deleted").fetchone()
        return int(found[0]) if found else 0

    def missing(self) -> list[tuple[str, datetime]]:
        """Records held alive that the service did not list, with their latest change time."""
        if self._empty:
            return []
        return self._db.execute(
            """
            select record_id, updated_at from latest
            where not is_deleted and record_id not in (select record_id from listed)
            order by record_id
            """
        ).fetchall()

    def returned(self) -> list[str]:
        """Records held as deleted that the service lists."""
        if self._empty:
            return []
        found = self._db.execute(
            "select record_id from latest where is_deleted "
            "and record_id in (select record_id from listed) order by record_id"
        ).fetchall()
        return [row[0] for row in found]

    def close(self) -> None:
        self._db.close()
