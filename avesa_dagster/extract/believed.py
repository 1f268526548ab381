"""What the lake believes to be a table's present, and how a service's list differs from it.

Which observation holds is decided as in `held`: a record is what its latest observation says, and
a version that was last seen before the record was seen deleted is not held any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from avesa_dagster.errors import Where
from avesa_dagster.lake import layout
from avesa_dagster.lake.database import connect, explained, parquet
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Record, Window

# A record that states no change time has the moment of its observation for it (extract/raw.py), so
# the two are equal: such a record lies in no window of the service.
_SCHEMA = """
create table versions (record_id varchar, updated_at timestamptz, seen_at timestamptz);
create table gone (record_id varchar, gone_at timestamptz);
create table latest (
    record_id varchar, seen_at timestamptz, updated_at timestamptz, is_deleted boolean);
create table moved (record_id varchar);
create table listed (record_id varchar, updated_at timestamptz);
create table missing (record_id varchar, updated_at timestamptz);
create view held as select record_id, updated_at from versions left join gone using (record_id)
    where gone_at is null or seen_at > gone_at;
create view present as select record_id, updated_at from latest
    where not is_deleted and updated_at <> seen_at
        and record_id not in (select record_id from moved);
create view undated as select record_id from latest where not is_deleted and updated_at = seen_at;
"""
_READ = """
create or replace table versions as
select record_id, updated_at, max(seen_at) as seen_at from (
    from versions
    union all select record_id, updated_at, observed_at from {source} where not is_deleted)
group by all;
create or replace table gone as
select record_id, max(gone_at) as gone_at from (
    from gone union all select record_id, observed_at from {source} where is_deleted)
group by all;
create or replace table latest as
select record_id, last.seen_at, last.updated_at, last.is_deleted from (
    select record_id, max({{'seen_at': seen_at, 'updated_at': updated_at,
        'is_deleted': is_deleted}}) as last
    from (
        from latest
        union all select record_id, observed_at, updated_at, is_deleted from {source})
    group by record_id);
"""
_MISSING = """
insert into missing
select distinct record_id, updated_at from listed l
where updated_at >= $start and updated_at < $end and not exists (
    select 1 from held h where h.record_id = l.record_id and h.updated_at = l.updated_at
        and h.updated_at >= $start and h.updated_at < $end);
"""
_MISSING_UNDATED = """
insert into missing
select distinct record_id, null from listed where updated_at is null
    and record_id not in (select record_id from undated)
    and record_id not in (
        select record_id from held where updated_at >= $start and updated_at < $end);
"""
_EXTRA = """
from present where updated_at >= $start and updated_at < $end
    and record_id not in (select record_id from listed)
"""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a service lists of a window and the lake does not hold.

    Attributes:
        versions: How many versions.
        undated: Those of them that the list gave no change time for.
        closed: Those of them that the lake holds, of a record that was seen deleted since.
        ids: The first ten record ids.
    """

    versions: int
    undated: int
    closed: int
    ids: tuple[str, ...]


class Believed:
    """Keys and times of a table's raw objects in a database of their own, never the payloads.

    DuckDB bounds its memory, and spills. One instance belongs to one thread.

    Raises:
        StoreError: Raw cannot be read.
    """

    def __init__(self, objects: Objects, tenant: str, service: str, table: str) -> None:
        self._objects = objects
        self._prefix = layout.table_prefix(tenant, "raw", service, table)
        self._where = Where(tenant, service, table)
        self._read: set[str] = set()
        self._db = connect(objects)
        self._db.execute(_SCHEMA)
        self.refresh()

    def refresh(self) -> bool:
        """Reads the raw objects that are new; False if there are none."""
        keys = {info.key for info in self._objects.list(self._prefix)}
        new = sorted(k for k in keys - self._read if k.endswith(".parquet"))
        if not new:
            return False
        source = parquet(self._objects.location(key) for key in new)
        with explained("raw cannot be compared with the service", self._where):
            self._db.execute(_READ.format(source=source))
        self._read.update(new)
        return True

    def note_moved(self, record_ids: Iterable[str]) -> None:
        """Remembers records whose change is newer than what the lake promises: they are in none
        of the windows that are compared, whatever the lake holds of them."""
        self._insert("moved", pa.table({"record_id": pa.array(record_ids, pa.string())}))

    def begin_list(self) -> None:
        """Forgets the list that was noted."""
        self._db.execute("delete from listed")

    def note_listed(self, records: Iterable[Record]) -> None:
        """Adds to what the service lists of a window."""
        pairs = [(record.record_id, record.updated_at) for record in records]
        ids = pa.array([record_id for record_id, _ in pairs], pa.string())
        moments = pa.array([moment for _, moment in pairs], layout.UTC_MICROS)
        self._insert("listed", pa.table({"record_id": ids, "updated_at": moments}))

    def count(self, window: Window) -> int:
        """Records that should lie in the window: their latest change is there, they are alive and
        not noted as moved."""
        return self._number(
            "select count(*) from present where updated_at >= $start and updated_at < $end", window
        )

    def days(self, window: Window) -> list[tuple[datetime, int]]:
        """(midnight in UTC, `count` of that day within the window) of days that hold any; newest
        first."""
        found = self._db.execute(
            """
            select date_trunc('day', updated_at) as day, count(*) from present
            where updated_at >= $start and updated_at < $end group by day order by day desc
            """,
            _bounds(window),
        ).fetchall()
        return [(day, count) for day, count in sorted(found, reverse=True)]

    def listed(self, window: Window) -> int:
        """Distinct records that were noted as listed, in this part of what was listed."""
        return self._number(
            "select count(distinct record_id) from listed "
            "where updated_at is null or (updated_at >= $start and updated_at < $end)",
            window,
        )

    def missing(self, window: Window) -> Missing:
        """What was listed of the window and is not held: a version (id and change time), or, where
        the list states no change time, any version of the record in the window."""
        self._db.execute("delete from missing")
        self._db.execute(_MISSING, _bounds(window))
        self._db.execute(_MISSING_UNDATED, _bounds(window))
        ((versions, undated, closed),) = self._db.execute(
            """
            select count(*), count(*) filter (m.updated_at is null), count(v.record_id)
            from missing m left join versions v on v.record_id = m.record_id
                and v.updated_at = m.updated_at and v.updated_at >= $start and v.updated_at < $end
            """,
            _bounds(window),
        ).fetchall()
        some = self._db.execute(
            "select distinct record_id from missing order by record_id limit 10"
        ).fetchall()
        return Missing(versions, undated, closed, tuple(sorted(i for (i,) in some)))

    def missing_by_day(self) -> list[tuple[datetime, datetime]]:
        """The first and the last change time of what `missing` found, for each day; newest
        first."""
        found = self._db.execute(
            "select min(updated_at), max(updated_at) from missing where updated_at is not null "
            "group by date_trunc('day', updated_at)"
        ).fetchall()
        return sorted(found, reverse=True)

    def unlisted(self, window: Window, most: int) -> tuple[int, list[str]]:
        """Records that should lie in the window and were not listed: how many, and at most `most`
        of their ids."""
        total = self._number(f"select count(*) from ({_EXTRA})", window)
        if not total or most <= 0:
            return total, []
        some = self._db.execute(
            f"select record_id from ({_EXTRA}) order by record_id limit {int(most)}",
            _bounds(window),
        ).fetchall()
        return total, [record_id for (record_id,) in some]

    def moved(self, window: Window) -> int:
        """Records that would lie in the window if they were not noted as moved."""
        return self._number(
            "select count(*) from latest semi join moved using (record_id) where not is_deleted "
            "and updated_at <> seen_at and updated_at >= $start and updated_at < $end",
            window,
        )

    def holds(self, record_id: str, moment: datetime) -> bool:
        """Whether the version is held."""
        found = self._db.execute(
            "select 1 from held where record_id = ? and updated_at = ?", [record_id, moment]
        ).fetchall()
        return bool(found)

    def close(self) -> None:
        self._db.close()

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._db.register("rows_to_add", rows)
        self._db.execute(f"insert into {table} select distinct * from rows_to_add")
        self._db.unregister("rows_to_add")

    def _number(self, query: str, window: Window) -> int:
        # All of the result: what is left of one keeps the connection from its next query.
        ((number,),) = self._db.execute(query, _bounds(window)).fetchall()
        return int(number)


def _bounds(window: Window) -> dict[str, datetime]:
    return {"start": window.start, "end": window.end}
