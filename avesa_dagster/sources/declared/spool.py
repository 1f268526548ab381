"""What a listing brought, on disk: as much as there is, in the order of ids, in flat memory.

A private SQLite file that vanishes with the process, however that ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from avesa_dagster.errors import StoreError
from avesa_dagster.sources.base import Record, Rejected, Window

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TABLES = """
pragma journal_mode = off;
pragma synchronous = off;
pragma cache_size = -16000;
create table listed (
    id text not null unique, changed integer, received integer not null, deleted integer not null,
    reading integer not null, payload blob not null
);
create index places on listed (id, changed, deleted, reading);
create table unusable (
    payload blob primary key, id text not null, reason text not null, reading integer not null
);
"""
_PUT = """
insert into listed values (?, ?, ?, ?, ?, ?)
on conflict (id) do update set changed = excluded.changed, received = excluded.received,
    deleted = excluded.deleted, payload = excluded.payload, reading = excluded.reading
where excluded.reading > reading or coalesce(excluded.changed >= changed, 1)
"""


@dataclass(frozen=True, slots=True)
class Part:
    """Which records are meant: those of a reading, of a window, between two ids.

    Attributes:
        window: None: any change time, or none.
        alive: Without those that are marked as deleted.
    """

    window: Window | None = None
    after: str | None = None
    upto: str | None = None
    alive: bool = False
    reading: int | None = None

    def where(self) -> tuple[str, list[object]]:
        """The condition and its values."""
        parts: list[str] = ["true"]
        values: list[object] = []
        if self.window is not None:
            parts.append("changed >= ? and changed < ?")
            values += [_ticks(self.window.start), _ticks(self.window.end)]
        for condition, value in (
            ("id > ?", self.after),
            ("id <= ?", self.upto),
            ("reading = ?", self.reading),
        ):
            if value is not None:
                parts.append(condition)
                values.append(value)
        if self.alive:
            parts.append("not deleted")
        return " and ".join(parts), values


class Spool:
    """Records of one table, each once, as they were read last; ids in the order of their bytes."""

    def __init__(self) -> None:
        self.reading = 0
        # Whoever made it may be closed from another thread; it is used by one at a time.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.executescript(_TABLES)

    def begin(self) -> int:
        """Begins another reading, and returns its number."""
        self.reading += 1
        return self.reading

    def add(
        self,
        records: Sequence[Record],
        rejected: Sequence[tuple[str, Rejected]],
        received_at: datetime,
    ) -> None:
        """Adds a page to the reading. Of a record that comes twice, the latest change counts.

        Args:
            rejected: Each with its id, by which it has its place; empty if it has none.
        """
        received = _ticks(received_at)
        rows = (
            (
                record.record_id,
                None if record.updated_at is None else _ticks(record.updated_at),
                received,
                record.deleted,
                self.reading,
                record.payload,
            )
            for record in records
        )
        bad = ((item.payload, place, item.reason, self.reading) for place, item in rejected)
        try:
            self._db.execute("begin")
            self._db.executemany(_PUT, rows)
            self._db.executemany("insert or replace into unusable values (?, ?, ?, ?)", bad)
            self._db.execute("commit")
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"what a listing brings cannot be kept: {error}",
                hint="it lies in the system's folder for temporary files; make room there",
            ) from None

    def holds(self, record_ids: Sequence[str]) -> bool:
        """Whether all of them came in this reading."""
        return all(
            self._db.execute(
                "select 1 from listed where id = ? and reading = ?", (record_id, self.reading)
            ).fetchone()
            for record_id in record_ids
        )

    def count(self, part: Part) -> int:
        """How many records it holds of a part."""
        condition, values = part.where()
        found = self._db.execute(f"select count(*) from listed where {condition}", values)
        return int(found.fetchone()[0])

    def holds_any(self, part: Part) -> bool:
        """Whether it holds a record of a part."""
        condition, values = part.where()
        found = self._db.execute(f"select 1 from listed where {condition} limit 1", values)
        return found.fetchone() is not None

    def unusable(
        self, reading: int | None = None, *, after: str | None = None, upto: str | None = None
    ) -> list[Rejected]:
        """What cannot be taken, of one reading or of all, with a place between two ids."""
        condition, values = Part(after=after, upto=upto, reading=reading).where()
        found = self._db.execute(
            f"select reason, payload from unusable where {condition} order by id, payload", values
        )
        return [Rejected(reason, bytes(payload)) for reason, payload in found]

    def displaced(self) -> list[Rejected]:
        """What cannot be taken, and has no place among the ids."""
        return self.unusable(upto="")

    def page(self, part: Part, limit: int) -> tuple[list[Record], datetime | None]:
        """The first records of a part, and when the earliest of them was received."""
        condition, values = part.where()
        rows = self._db.execute(
            "select id, changed, payload, deleted, received from listed "
            f"where {condition} order by id limit ?",
            (*values, limit),
        ).fetchall()
        received = min((row[4] for row in rows), default=None)
        return [_record(*row[:4]) for row in rows], None if received is None else _moment(received)

    def records(self, part: Part) -> Iterator[Record]:
        """All records of a part."""
        condition, values = part.where()
        found = self._db.execute(
            f"select id, changed, payload, deleted from listed where {condition} order by id",
            values,
        )
        return (_record(*row) for row in found)

    def middle(self, window: Window) -> datetime | None:
        """The change time that halves what is known of a window; None if nothing is."""
        condition, values = Part(window).where()
        found = self._db.execute(
            f"select changed from listed where {condition} order by changed "
            f"limit 1 offset (select count(*) / 2 from listed where {condition})",
            (*values, *values),
        ).fetchone()
        return None if found is None else _moment(found[0])

    def settle(self, window: Window | None, reading: int) -> None:
        """Forgets what only other readings hold of a window: it has left."""
        condition, values = Part(window).where()
        self._db.execute(
            f"delete from listed where {condition} and reading <> ?", (*values, reading)
        )

    def forget(self, reading: int) -> None:
        """Forgets what a reading could not take: another one takes its place."""
        self._db.execute("delete from unusable where reading = ?", (reading,))

    def close(self) -> None:
        self._db.close()


def _record(record_id: str, changed: int | None, payload: bytes, deleted: int) -> Record:
    moment = None if changed is None else _moment(changed)
    return Record(record_id, moment, bytes(payload), bool(deleted))


def _ticks(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(ticks: int) -> datetime:
    return _EPOCH + ticks * _MICROSECOND
