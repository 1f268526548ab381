"""What the lake holds of a table: each record's latest observation, by the raw objects."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import duckdb
import pyarrow as pa

from avesa_dagster.lake import layout
from avesa_dagster.lake.database import connect
from avesa_dagster.lake.objects import Objects


class Held:
    """The latest observation of each record at the moment of opening.

    Serves two questions: which of these rows say something new, and which records are gone.
    Reads keys and hashes only, never the payloads.
    """

    def __init__(self, objects: Objects, tenant: str, service: str, table: str) -> None:
        prefix = layout.table_prefix(tenant, "raw", service, table)
        files = [
            objects.location(info.key)
            for info in objects.list(prefix)
            if info.key.endswith(".parquet")
        ]
        self._db: duckdb.DuckDBPyConnection = connect()
        self._db.execute(
            "create table held (record_id varchar, updated_at timestamptz, "
            "content_hash varchar, is_deleted boolean)"
        )
        self._db.execute("create table listed (record_id varchar)")
        if files:
            self._db.execute(
                """
                insert into held
                select record_id, latest.updated_at, latest.content_hash, latest.is_deleted
                from (
                    select record_id, max_by(
                        {updated_at: updated_at, content_hash: content_hash,
                         is_deleted: is_deleted},
                        {o: observed_at, u: updated_at, h: content_hash}) as latest
                    from read_parquet(?) group by record_id)
                """,
                [files],
            )

    def new(self, rows: pa.Table, unstamped: set[str]) -> pa.Table:
        """The rows that differ from what is held: another content or change time, or deleted.

        Args:
            rows: Of RAW_SCHEMA.
            unstamped: Ids of records that state no change time; only their content counts.
        """
        keys = rows.select(["record_id", "updated_at", "content_hash"])
        keys = keys.append_column(
            "stamped",
            pa.array([i not in unstamped for i in keys.column("record_id").to_pylist()]),
        ).append_column("n", pa.array(range(rows.num_rows), pa.int64()))
        self._db.register("candidates", keys)
        kept = self._db.sql(
            """
            select n from candidates c where not exists (
                select 1 from held h
                where h.record_id = c.record_id and h.content_hash = c.content_hash
                  and not h.is_deleted and (h.updated_at = c.updated_at or not c.stamped))
            order by n
            """
        ).to_arrow_table()
        self._db.unregister("candidates")
        return rows.take(kept.column("n"))

    def note_listed(self, record_ids: Iterable[str]) -> None:
        """Remembers that the service lists these ids."""
        self._db.register("page", pa.table({"record_id": pa.array(record_ids, pa.string())}))
        self._db.execute("insert into listed select record_id from page")
        self._db.unregister("page")

    def alive(self) -> int:
        """How many records are held and not deleted."""
        found = self._db.execute("select count(*) from held where not is_deleted").fetchone()
        return int(found[0]) if found else 0

    def missing(self) -> list[tuple[str, datetime]]:
        """Records held alive that the service did not list, with their latest change time."""
        return self._db.execute(
            """
            select record_id, updated_at from held
            where not is_deleted and record_id not in (select record_id from listed)
            order by record_id
            """
        ).fetchall()

    def close(self) -> None:
        self._db.close()
