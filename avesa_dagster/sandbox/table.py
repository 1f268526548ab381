"""One table of records: every version of each, and indexes over what the service now shows.

A record's payload is kept as the bytes that lists serve, so one version is always the same bytes.
Two sorted indexes, on id and on (lastUpdated, id), answer the filters that a sync uses; any other
condition reads the rows, once for each state of the table.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from avesa_dagster.sandbox.conditions import Filter, matches

UNSEEN = -1
"""The `shown` of a record of which no version is visible yet."""
_REMEMBERED_ANSWERS = 32


@dataclass(slots=True)
class Version:
    """One state of a record.

    `updated` is the service's own lastUpdated, in whole seconds since 1970 UTC, or None where the
    database holds none; a poisoned payload may say otherwise.
    """

    updated: int | None
    payload: bytes


@dataclass(slots=True)
class Record:
    """A record and its history, oldest version first; `shown` is the version that lists serve."""

    id: int
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


class Table:
    """Records by id. Not thread-safe: the instance that owns it holds a lock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: dict[int, Record] = {}
        self.revision = 0
        self.next_id = 1
        self._ids: list[int] = []
        self._updated: list[tuple[int, int]] = []
        self._pending: list[tuple[float, int, int]] = []
        self._answers: dict[tuple[int, Filter], list[int]] = {}

    def load(self, records: Iterable[Record]) -> None:
        """Add many visible records at once, then sort."""
        for record in records:
            self.records[record.id] = record
        self.next_id = max(self.records, default=0) + 1
        live = [record for record in self.records.values() if record.live]
        self._ids = sorted(record.id for record in live)
        self._updated = sorted(
            (record.visible.updated, record.id)
            for record in live
            if record.visible.updated is not None
        )
        self.revision += 1

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def pending(self) -> int:
        """How many versions exist that lists do not show yet."""
        return len(self._pending)

    def live_ids(self) -> Sequence[int]:
        """Ids of the records that lists show, ascending."""
        return self._ids

    def add(self, record: Record, visible_at: float | None = None) -> None:
        """Put in a new record; with `visible_at` (simulator seconds) it shows only from then."""
        self.records[record.id] = record
        self.next_id = max(self.next_id, record.id + 1)
        record.shown = UNSEEN
        if visible_at is None:
            self._show(record, 0)
        else:
            heapq.heappush(self._pending, (visible_at, record.id, 0))

    def revise(self, id: int, version: Version, visible_at: float | None = None) -> None:
        """Give a record a new version, shown at once or from `visible_at` on."""
        record = self.records[id]
        record.versions.append(version)
        latest = len(record.versions) - 1
        if visible_at is None:
            self._show(record, latest)
        else:
            heapq.heappush(self._pending, (visible_at, id, latest))

    def delete(self, id: int, at: int) -> None:
        """Take a record away; its history stays in the truth."""
        record = self.records[id]
        self._hide(record)
        record.deleted_at = at

    def undelete(self, id: int) -> None:
        """Bring a deleted record back as it was."""
        record = self.records[id]
        shown = record.shown
        record.deleted_at, record.shown = None, UNSEEN
        if shown != UNSEEN:
            self._show(record, shown)

    def settle(self, now: float) -> None:
        """Show the versions whose time has come."""
        while self._pending and self._pending[0][0] <= now:
            _, id, version = heapq.heappop(self._pending)
            record = self.records[id]
            if record.deleted_at is not None:
                record.shown = max(record.shown, version)
            elif version > record.shown:
                self._show(record, version)

    def select(self, filter: Filter) -> Sequence[int]:
        """Ids of the visible records that satisfy the filter, ascending."""
        if filter.everything:
            return self._ids
        if filter.residual is None:
            return self._by_index(filter)
        known = (self.revision, filter)
        if known not in self._answers:
            if len(self._answers) >= _REMEMBERED_ANSWERS:
                self._answers.clear()
            residual = filter.residual
            self._answers[known] = [
                id for id in self._by_index(filter) if matches(residual, self.lookup(id))
            ]
        return self._answers[known]

    def lookup(self, id: int) -> Callable[[str], Any]:
        """Reads a visible record's values by path; id and lastUpdated as the database has them."""
        version = self.records[id].visible
        row: dict[str, Any] | None = None

        def value(path: str) -> Any:
            nonlocal row
            if path == "id":
                return id
            if path == "_info/lastUpdated":
                return version.updated
            if row is None:
                row = json.loads(version.payload)
            return reach(row, path.split("/"))

        return value

    def _by_index(self, filter: Filter) -> list[int]:
        low, high = filter.ids.low, filter.ids.high
        if filter.one_of is not None:
            wanted = (id for id in filter.one_of if id in filter.ids)
            found = [id for id in wanted if (row := self.records.get(id)) and row.live]
            return sorted(id for id in found if self._updated_in(id, filter))
        first, last = bisect_left(self._ids, low), bisect_left(self._ids, high)
        if filter.updated.everything:
            return self._ids[first:last]
        start = bisect_left(self._updated, (filter.updated.low, -1))
        end = bisect_left(self._updated, (filter.updated.high, -1))
        if end - start <= last - first:
            window = self._updated[start:end]
            return sorted([id for _, id in window if low <= id < high])
        return [id for id in self._ids[first:last] if self._updated_in(id, filter)]

    def _updated_in(self, id: int, filter: Filter) -> bool:
        if filter.updated.everything:
            return True
        updated = self.records[id].visible.updated
        return updated is not None and filter.updated.low <= updated < filter.updated.high

    def _show(self, record: Record, version: int) -> None:
        self._hide(record)
        record.shown = version
        if not record.live:
            return
        insort(self._ids, record.id)
        updated = record.visible.updated
        if updated is not None:
            insort(self._updated, (updated, record.id))

    def _hide(self, record: Record) -> None:
        self.revision += 1
        if not record.live:
            return
        del self._ids[bisect_left(self._ids, record.id)]
        updated = record.visible.updated
        if updated is not None:
            del self._updated[bisect_left(self._updated, (updated, record.id))]


def reach(value: Any, path: Sequence[str]) -> Any:
    """The value at a path of a record; through a list, the list of what its elements hold."""
    for depth, name in enumerate(path):
        if isinstance(value, list):
            return [reach(element, path[depth:]) for element in value]
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
