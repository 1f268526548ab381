"""The records of one root table and of the tables that extend it.

A record is a number; its columns are computed from it (`content`), so that what is kept of a record
nobody has touched is a class and two instants. Those that were touched keep every version.

An index is a sorted list of keys, one for each record that the service now shows in a table:
`instant << RANK_BITS | rank of the sys_id` on the axes "updated" and "created", the bare rank on
the axis "id". Indexes are made when first wanted and kept up from then on.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from avesa_dagster.sandbox.servicenow.ids import RANK_BITS, Ids, rank
from avesa_dagster.sandbox.servicenow.schema import descendants, lineage

UNSEEN = -1
"""The `shown` of a record of which no version is visible yet."""
NULL = -(1 << 60)
"""Stands in indexes for an instant that the database does not hold: before every other."""
_RANK = (1 << RANK_BITS) - 1


@dataclass(frozen=True, slots=True)
class Splice:
    """Damage to a record's JSON: columns replaced by JSON texts or left out, or all of it."""

    columns: tuple[tuple[str, str | None], ...] = ()
    whole: str | None = None


@dataclass(slots=True)
class Version:
    """One state of a record.

    Attributes:
        updated: the database's sys_updated_on, whole seconds since 1970 UTC; None is null.
        kind: the class, which is the table's name.
        held: columns that are held and go before the computed ones.
    """

    updated: int | None
    revision: int
    kind: str
    held: dict[str, Any] | None = None
    splice: Splice | None = None


@dataclass(slots=True)
class Record:
    """A touched record and its history, oldest version first; `shown` is what the API serves."""

    number: int
    created: int
    versions: list[Version]
    shown: int = 0
    deleted_at: int | None = None
    poison: str | None = None

    @property
    def live(self) -> bool:
        return self.deleted_at is None and self.shown != UNSEEN

    @property
    def visible(self) -> Version:
        return self.versions[self.shown]


class Store:
    """Not thread-safe: the instance that owns it holds a lock."""

    def __init__(self, root: str, seed: int) -> None:
        self.root = root
        self.kinds = descendants(root)
        self.revision = 0
        self.records: dict[int, Record] = {}
        self._ids = Ids(f"{seed}:{root}")
        self._odd_ids: dict[int, str] = {}
        self._odd_numbers: dict[str, int] = {}
        self._created = array("q")
        self._updated = array("q")
        self._classes = bytearray()
        self._pending: list[tuple[float, int, int]] = []
        self._indexes: dict[tuple[str, str], list[int]] = {}
        self._lineages = {kind: lineage(kind) for kind in self.kinds}

    def __len__(self) -> int:
        """How many records were ever made; they have the numbers below."""
        return len(self._created)

    def load(self, kinds: Iterable[str], created: Sequence[int], updated: Sequence[int]) -> None:
        """Add many records at once, visible ones that nobody has touched."""
        place = {kind: at for at, kind in enumerate(self.kinds)}
        self._created.extend(created)
        self._updated.extend(updated)
        self._classes.extend(place[kind] for kind in kinds)
        self._indexes.clear()
        self.revision += 1

    @property
    def pending(self) -> int:
        """How many versions exist that the API does not show yet."""
        return len(self._pending)

    def sys_id(self, number: int) -> str:
        return self._odd_ids.get(number) or self._ids.sys_id(number)

    def number(self, sys_id: str) -> int | None:
        """The record of a sys_id, whether it shows or not; None if there never was one."""
        if sys_id in self._odd_numbers:
            return self._odd_numbers[sys_id]
        number = self._ids.number(sys_id)
        known = number is not None and number < len(self) and number not in self._odd_ids
        return number if known else None

    def created(self, number: int) -> int:
        return self._created[number]

    def live(self, number: int) -> bool:
        """Whether the API shows the record."""
        record = self.records.get(number)
        return record is None or record.live

    def visible(self, number: int) -> Version:
        """The version that the API shows."""
        record = self.records.get(number)
        return self._untouched(number) if record is None else record.visible

    def latest(self, number: int) -> Version:
        record = self.records.get(number)
        return self._untouched(number) if record is None else record.versions[-1]

    def _untouched(self, number: int) -> Version:
        return Version(self._updated[number], 0, self.kinds[self._classes[number]])

    def touch(self, number: int) -> Record:
        """The record as an object."""
        record = self.records.get(number)
        if record is None:
            version = self._untouched(number)
            record = self.records[number] = Record(number, self._created[number], [version])
        return record

    def add(
        self,
        version: Version,
        created: int,
        *,
        visible_at: float | None = None,
        odd_id: str | None = None,
        poison: str | None = None,
    ) -> int:
        """Put in a new record; with `visible_at` (simulator seconds) it shows only from then."""
        number = len(self)
        self._created.append(created)
        self._updated.append(NULL if version.updated is None else version.updated)
        self._classes.append(self.kinds.index(version.kind))
        if odd_id is not None:
            self._odd_ids[number] = odd_id
            self._odd_numbers[odd_id] = number
        record = Record(number, created, [version], UNSEEN, poison=poison)
        self.records[number] = record
        self._bring(record, 0, visible_at)
        return number

    def revise(self, number: int, version: Version, visible_at: float | None = None) -> None:
        """Give a record a new version, shown at once or from `visible_at` on."""
        record = self.touch(number)
        record.versions.append(version)
        self._bring(record, len(record.versions) - 1, visible_at)

    def _bring(self, record: Record, version: int, visible_at: float | None) -> None:
        if visible_at is None:
            self._show(record, version)
        else:
            heapq.heappush(self._pending, (visible_at, record.number, version))

    def delete(self, number: int, at: int) -> None:
        record = self.touch(number)
        self._take(record)
        record.deleted_at = at

    def undelete(self, number: int) -> None:
        """Bring a deleted record back just as it was."""
        record = self.records[number]
        record.deleted_at = None
        if record.live:
            self._put(record)

    def settle(self, now: float) -> None:
        """Show the pending versions whose time has come."""
        while self._pending and self._pending[0][0] <= now:
            _, number, version = heapq.heappop(self._pending)
            record = self.records[number]
            if record.deleted_at is not None:
                record.shown = max(record.shown, version)
            elif version > record.shown:
                self._show(record, version)

    def index(self, table: str, axis: str) -> list[int]:
        """The keys of the records that a table shows, ascending. Not to be changed."""
        known = self._indexes.get((table, axis))
        if known is None:
            known = self._indexes[table, axis] = self._build(table, axis)
        return known

    def number_of_key(self, key: int) -> int:
        """The record of an index's key."""
        text = (key & _RANK).to_bytes(8, "big")
        try:
            return self._ids.number_of_rank(key & _RANK)
        except ValueError:
            return self._odd_by_prefix(text)

    def _odd_by_prefix(self, text: bytes) -> int:
        prefix = text.rstrip(b"\0").decode()
        return next(n for odd, n in self._odd_numbers.items() if odd[:8] == prefix)

    def key(self, number: int, axis: str) -> int:
        """The key of a record that shows."""
        odd = self._odd_ids.get(number)
        place = self._ids.rank(number) if odd is None else rank(odd)
        if axis == "id":
            return place
        if axis == "created":
            return self._created[number] << RANK_BITS | place
        updated = self.visible(number).updated
        return (NULL if updated is None else updated) << RANK_BITS | place

    def position(self, table: str, axis: str, instant: int, sys_id: str, *, after: bool) -> int:
        """Where in an index the records begin whose (instant, sys_id) is not below this one.

        Args:
            instant: ignored on the axis "id".
            after: leave out the record that equals it.
        """
        index = self.index(table, axis)
        edge = rank(sys_id) if axis == "id" else instant << RANK_BITS | rank(sys_id)
        at = bisect_left(index, edge)
        while at < len(index) and index[at] == edge:
            there = self.sys_id(self.number_of_key(index[at]))
            if there > sys_id or (there == sys_id and not after):
                break
            at += 1
        return at

    def _build(self, table: str, axis: str) -> list[int]:
        classes = {at for at, kind in enumerate(self.kinds) if table in self._lineages[kind]}
        return sorted(self._keys(classes, axis))

    def _keys(self, classes: set[int], axis: str) -> list[int]:
        """Keys, in no order, of the shown records of some classes."""
        wanted = {self.kinds[at] for at in classes}
        touched = [record for record in self.records.values() if record.live]
        keys = [self.key(r.number, axis) for r in touched if r.visible.kind in wanted]
        place, known = self._ids.rank, self.records
        numbers = (n for n, at in enumerate(self._classes) if at in classes and n not in known)
        if axis == "id":
            keys += [place(n) for n in numbers]
        else:
            instants = self._created if axis == "created" else self._updated
            keys += [instants[n] << RANK_BITS | place(n) for n in numbers]
        return keys

    def _show(self, record: Record, version: int) -> None:
        self._take(record)
        record.shown = version
        if record.live:
            self._put(record)

    def _put(self, record: Record) -> None:
        self.revision += 1
        for table in self._lineages[record.visible.kind]:
            for axis in ("updated", "created", "id"):
                index = self._indexes.get((table, axis))
                if index is not None:
                    insort(index, self.key(record.number, axis))

    def _take(self, record: Record) -> None:
        self.revision += 1
        if not record.live:
            return
        for table in self._lineages[record.visible.kind]:
            for axis in ("updated", "created", "id"):
                index = self._indexes.get((table, axis))
                if index is not None:
                    del index[bisect_left(index, self.key(record.number, axis))]
