"""The records of one object, kept small: a million of them in about 40 MB.

Of a record that nothing has happened to only two instants are kept; its values are computed (see
`values`). A record that changed has a `Record` with every version that it ever had. A sorted index
over (change time, number) answers the windows that a sync asks for, once with and once without the
records that only queryAll shows; ids ascend as numbers do.

`sequence` counts what was shown: a snapshot is a list of numbers and the sequence of its moment,
and reads the versions of that moment for as long as it is needed.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, overload

from avesa_dagster.sandbox.salesforce.fields import Field
from avesa_dagster.sandbox.salesforce.schema import ObjectInfo
from avesa_dagster.sandbox.salesforce.values import Batch, Lookup, mixed

DELETED, ARCHIVED, GONE, UNSEEN = 1, 2, 4, 8
_BITS = 24
_NUMBER = (1 << _BITS) - 1
_MANY = 200
_ALL_VISIBLE = bytes(not flags & (GONE | UNSEEN) for flags in range(256))
_LIVE_VISIBLE = bytes(flags == 0 for flags in range(256))
Span = tuple[float, int, float, int]
"""Rows from (change time, number) up to, not including, (change time, number)."""


@dataclass(slots=True)
class Version:
    """One state of a record.

    Attributes:
        revision: which values it has; a version that differs only in its stamp keeps the number.
        stamp: the field that changes are followed by (SystemModstamp), seconds since 1970 UTC.
        modified: LastModifiedDate.
        changed: values that are as here instead of computed.
        shown_at: the sequence from which reads see it; None: not yet.
    """

    revision: int
    stamp: int
    modified: int
    deleted: bool = False
    changed: dict[str, Any] = field(default_factory=dict)
    shown_at: int | None = 0


class Numbers(Sequence[int]):
    """The record numbers of entries of the index."""

    def __init__(self, keys: array[int]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return array("q", [key & _NUMBER for key in self._keys[place]])
        return self._keys[place] & _NUMBER


@dataclass(slots=True)
class Record:
    """The history of a record, oldest version first; `shown` is the version that reads see (-1:
    none). `poison` is the kind of damage that was done to it."""

    versions: list[Version]
    shown: int = 0
    deleted_at: int | None = None
    gone_at: int | None = None
    poison: str | None = None

    def at(self, sequence: int | None) -> Version:
        """The version that was seen at a sequence (None: now)."""
        if sequence is None:
            return self.versions[max(self.shown, 0)]
        seen = [v for v in self.versions if v.shown_at is not None and v.shown_at <= sequence]
        return seen[-1] if seen else self.versions[0]


class Table:
    """Records by number. Not thread-safe: the org that owns it holds a lock."""

    def __init__(self, info: ObjectInfo, lookup: Lookup, seed: int) -> None:
        self.info = info
        self.fields: dict[str, Field] = dict(info.fields)
        self.hidden: set[str] = set()
        self.accessible = True
        self.epoch = 0
        self.sequence = 0
        self.created = array("q")
        self.stamps = array("q")
        self.flags = bytearray()
        self.records: dict[int, Record] = {}
        self._lookup = lookup
        self._seed = seed
        self._all = array("q")
        self._live = array("q")
        self._pending: list[tuple[float, int, int]] = []

    def __len__(self) -> int:
        """How many records there ever were."""
        return len(self.created)

    def load(self, created: Sequence[int], stamps: Sequence[int]) -> None:
        """Put in the records that were there when the org was made."""
        self.created = array("q", created)
        self.stamps = array("q", created if not self.info.changes else stamps)
        self.flags = bytearray(len(created))
        self._index()

    @property
    def visible_fields(self) -> dict[str, Field]:
        """The fields that the caller may see, by name."""
        if not self.hidden:
            return self.fields
        return {name: about for name, about in self.fields.items() if name not in self.hidden}

    @property
    def pending(self) -> int:
        """How many versions exist that reads do not show yet."""
        return len(self._pending)

    # ---- what there is

    def exists(self, number: int) -> bool:
        return 0 <= number < len(self.created)

    def version(self, number: int, sequence: int | None = None) -> Version:
        """The state of a record that reads see, now or at a sequence."""
        record = self.records.get(number)
        return self.untouched(number) if record is None else record.at(sequence)

    def latest(self, number: int) -> Version:
        """The newest state of a record, shown or not."""
        record = self.records.get(number)
        return self.untouched(number) if record is None else record.versions[-1]

    def untouched(self, number: int) -> Version:
        """The state that a record had when the org was made."""
        stamp, created = self.stamps[number], self.created[number]
        modified = stamp if number % 7 != 3 else (stamp + created) // 2
        return Version(0, stamp, modified)

    def record(self, number: int) -> Record:
        """The history of a record, kept from now on if it was not."""
        if number not in self.records:
            self.records[number] = Record([self.untouched(number)])
        return self.records[number]

    def batch(
        self, numbers: Sequence[int], sequence: int | None = None, *, bulk: bool = False
    ) -> Batch:
        """Values of records as reads see them, now or at a sequence."""
        records = self.records
        touched = [n for n, number in enumerate(numbers) if number in records] if records else []
        versions = [records[numbers[n]].at(sequence) for n in touched]
        return self._batch(numbers, dict(zip(touched, versions, strict=True)), bulk)

    def states(self, numbers: Sequence[int], versions: Sequence[Version]) -> Batch:
        """Values of certain versions of records, one for each number."""
        return self._batch(numbers, dict(enumerate(versions)), False)

    def _batch(self, numbers: Sequence[int], touched: dict[int, Version], bulk: bool) -> Batch:
        seed, flags = self._seed, self.flags
        created = [self.created[n] for n in numbers]
        stamps = [self.stamps[n] for n in numbers]
        modified = [
            at if n % 7 != 3 else (at + began) // 2
            for n, at, began in zip(numbers, stamps, created, strict=True)
        ]
        first = [mixed(n, 0, seed) for n in numbers]
        hashes, deleted = first, [False] * len(numbers)
        changes: dict[int, dict[str, Any]] = {}
        if touched:
            hashes = list(first)
            for at, version in touched.items():
                stamps[at], modified[at] = version.stamp, version.modified
                deleted[at] = version.deleted
                if version.revision:
                    hashes[at] = mixed(numbers[at], version.revision, seed)
                if version.changed:
                    changes[at] = version.changed
        return Batch(
            self.info, self.fields, self._lookup, numbers, first, hashes, created, stamps,
            modified, deleted, [bool(flags[n] & ARCHIVED) for n in numbers], changes, self.epoch,
            bulk,
        )  # fmt: skip

    # ---- finding

    def spans(self, spans: Iterable[Span], everything: bool) -> array[int]:
        """Numbers of the visible records in disjoint ascending spans, by (change time, number)."""
        index = self._all if everything else self._live
        found: array[int] = array("q")
        for low, above, high, below in spans:
            found += index[self._place(index, low, above) : self._place(index, high, below)]
        return array("q", [key & _NUMBER for key in found])

    def first_of(self, spans: Iterable[Span], everything: bool, limit: int | None) -> Sequence[int]:
        """As `spans`, at most the first `limit`; the numbers are read when they are asked for."""
        index = self._all if everything else self._live
        found: array[int] = array("q")
        for low, above, high, below in spans:
            start, end = self._place(index, low, above), self._place(index, high, below)
            if limit is not None:
                end = min(end, start + limit - len(found))
            found += index[start:end]
        return Numbers(found)

    def span_count(self, spans: Iterable[Span], everything: bool) -> int:
        """How many visible records the spans hold."""
        index = self._all if everything else self._live
        return sum(
            max(0, self._place(index, high, below) - self._place(index, low, above))
            for low, above, high, below in spans
        )

    def by_number(self, low: int, high: int, everything: bool) -> array[int]:
        """Numbers of the visible records from `low` up to, not including, `high`, ascending."""
        low, high = max(0, low), min(len(self.created), high)
        if low >= high:
            return array("q")
        visible = _ALL_VISIBLE if everything else _LIVE_VISIBLE
        return array("q", compress(range(low, high), self.flags[low:high].translate(visible)))

    def number_count(self, low: int, high: int, everything: bool) -> int:
        low, high = max(0, low), min(len(self.created), high)
        if low >= high:
            return 0
        visible = _ALL_VISIBLE if everything else _LIVE_VISIBLE
        return self.flags[low:high].translate(visible).count(1)

    def _place(self, index: array[int], at: float, number: int) -> int:
        if at == float("-inf"):
            return 0
        if at == float("inf"):
            return len(index)
        return bisect_left(index, (int(at) << _BITS) + number)

    # ---- what happens to records

    def add(self, count: int, at: int, visible_at: float | None = None) -> list[int]:
        """Enter records; with `visible_at` (simulator seconds) they show only from then."""
        made = list(range(len(self.created), len(self.created) + count))
        self.created.extend([at] * count)
        self.stamps.extend([at] * count)
        self.flags.extend([UNSEEN] * count)
        for number in made:
            version = Version(0, at, at, shown_at=None)
            self.records[number] = Record([version], shown=-1)
        self._show_all([(number, 0) for number in made], visible_at)
        return made

    def revise(
        self, changes: Iterable[tuple[int, Version]], visible_at: float | None = None
    ) -> None:
        """Give records new versions, shown at once or from `visible_at` on."""
        shown = []
        for number, version in changes:
            record = self.record(number)
            version.shown_at = None
            record.versions.append(version)
            shown.append((number, len(record.versions) - 1))
        self._show_all(shown, visible_at)

    def vanish(self, numbers: Iterable[int], at: int) -> list[int]:
        """Take records away for good: hard-deleted, or purged from the recycle bin."""
        gone = [n for n in numbers if not self.flags[n] & GONE]
        many = len(gone) > _MANY
        for number in gone:
            record = self.record(number)
            if not many:
                self._forget(number)
            record.gone_at = at
            if record.deleted_at is None:
                record.deleted_at = at
            self.flags[number] |= GONE
        self.sequence += 1
        if many:
            self._index()
        return gone

    def archive(self, before: int) -> int:
        """Archive the records entered before an instant; returns how many."""
        found = [
            n
            for n, at in enumerate(self.created)
            if at < before and not self.flags[n] & (ARCHIVED | GONE)
        ]
        for number in found:
            self.flags[number] |= ARCHIVED
        self.sequence += 1
        self._index()
        return len(found)

    def settle(self, now: float) -> None:
        """Show the versions whose time has come."""
        due: list[tuple[int, int]] = []
        while self._pending and self._pending[0][0] <= now:
            _, number, place = heapq.heappop(self._pending)
            if place > self.records[number].shown:
                due.append((number, place))
        if due:
            self._show_all(due, None)

    def _show_all(self, due: list[tuple[int, int]], visible_at: float | None) -> None:
        if visible_at is not None:
            for number, place in due:
                heapq.heappush(self._pending, (visible_at, number, place))
            return
        self.sequence += 1
        many = len(due) > _MANY
        for number, place in due:
            record = self.records[number]
            version = record.versions[place]
            if not many:
                self._forget(number)
            record.shown, version.shown_at = place, self.sequence
            self.stamps[number] = version.stamp
            kept = self.flags[number] & (ARCHIVED | GONE)
            self.flags[number] = kept | (DELETED if version.deleted else 0)
            if not many:
                self._remember(number)
        if many:
            self._index()

    def _remember(self, number: int) -> None:
        flags, key = self.flags[number], (self.stamps[number] << _BITS) + number
        if not flags & (GONE | UNSEEN):
            insort(self._all, key)
            if not flags:
                insort(self._live, key)

    def _forget(self, number: int) -> None:
        flags, key = self.flags[number], (self.stamps[number] << _BITS) + number
        if not flags & (GONE | UNSEEN):
            del self._all[bisect_left(self._all, key)]
            if not flags:
                del self._live[bisect_left(self._live, key)]

    def _index(self) -> None:
        keys = [
            (at << _BITS) + number
            for number, at in enumerate(self.stamps)
            if not self.flags[number] & (GONE | UNSEEN)
        ]
        keys.sort()
        self._all = array("q", keys)
        self._live = array("q", [key for key in keys if not self.flags[key & _NUMBER]])
