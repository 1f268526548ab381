"""Schema drift: how an endpoint's records differ from what they looked like before.

The first observation of a table is the baseline. From then on a field is *new*, *retyped* (a JSON
type that it never had; null is none), *vanished* or *returned*. Of an object that appears or goes
away as a whole one line tells, not one for each field in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from avesa_dagster.control.health import Drift, DriftLog, Fields, FieldSeen
from avesa_dagster.extract.profile import (
    ANY,
    MOST_PATHS,
    Found,
    Profile,
    by_depth,
    crowded,
    fold,
    parent,
)

_SURE = 500
"""So many records in a row without a field that most had: it has vanished."""
_SURE_WHOLE = 20
"""The same, where the records are spread over the whole table."""
_KNOWN = 20
"""Of fewer records nobody can say what most of them have."""
_FADES = 10_000
"""Beyond so many records, what was seen earlier counts half."""


class Scope(StrEnum):
    """Which records a profile is of, and so what it can tell."""

    HISTORY = "history"
    """A backfill's. Old records are not like new ones: what they have or lack tells nothing of a
    change at the service. They complete what is known, and only a new type is drift."""
    CHANGES = "changes"
    """The live sync's: what changed lately. Absence is added up over syncs."""
    WHOLE = "whole"
    """Every record that the service lists at present: a full pull's."""


def note(
    log: DriftLog,
    tenant: str,
    service: str,
    table: str,
    profile: Profile,
    now: datetime,
    *,
    scope: Scope = Scope.CHANGES,
) -> list[Drift]:
    """Compares a profile with what the log knows of the table, and stores both.

    A field has vanished if more than half of the records had it before, and none of the last 500
    (or, in a full pull, none of at least 20) that were looked at. Only records of the present are
    counted for that, never those of a backfill. What is in an object whose keys are data never
    vanishes. Beyond MOST_PATHS fields of a table, no further ones are noted.

    Args:
        profile: Of one run; its records are counted once for each call.

    Returns:
        What is said, and stored in the log. Empty for the very first observation of a table.

    Raises:
        StoreError: The log cannot be read or written; nothing was stored.
    """
    if not profile.records:
        return []
    judgement = _Judgement(tenant, service, table, profile.records, now, scope)
    found = profile.fields()
    return log.note(tenant, service, table, lambda known: judgement.of(known, found))


@dataclasses.dataclass(frozen=True, slots=True)
class _Judgement:
    """Judges by what is known; keeps nothing between two calls."""

    tenant: str
    service: str
    table: str
    records: int
    now: datetime
    scope: Scope

    def of(
        self, known: Fields, found: dict[str, Found]
    ) -> tuple[dict[str, FieldSeen], list[Drift]]:
        """What is known from now on, and the lines."""
        before, found = _folded(known, found)
        after = dict(before)
        new: dict[str, str] = {}
        returned: dict[str, str] = {}
        retyped: dict[str, str] = {}
        for path, seen in found.items():
            field = before.get(path)
            if field is None:
                if len(after) < MOST_PATHS:
                    after[path] = self._first(path, seen)
                    new[path] = f"{_listed(seen.types)}; {self._share(seen)}"
                continue
            after[path] = self._again(field, seen)
            if field.gone and not after[path].gone:
                returned[path] = f"{_listed(seen.types)}; {self._share(seen)}"
            if fresh := _fresh_types(field, seen):
                retyped[path] = f"{_listed(_solid(field.types))} before, now also {_listed(fresh)}"
        if not before:
            return after, []
        vanished = self._miss(after, before.keys() - found.keys())
        if self.scope is Scope.HISTORY:
            new = {}
        lines = [
            *self._lines("vanished", _topmost(vanished)),
            *self._lines("returned", _topmost(returned)),
            *self._lines("new", _topmost(new)),
            *self._lines("retyped", retyped),
        ]
        return after, lines

    def _first(self, path: str, seen: Found) -> FieldSeen:
        types = tuple(sorted(seen.types))
        if self.scope is Scope.HISTORY:
            return FieldSeen(path, types, self.now, self.now)
        return FieldSeen(
            path, types, self.now, self.now, looked=self.records, seen=self._count(seen)
        )

    def _again(self, field: FieldSeen, seen: Found) -> FieldSeen:
        field = dataclasses.replace(
            field,
            types=tuple(sorted(seen.types.union(field.types))),
            first_seen=min(field.first_seen, self.now),
            last_seen=max(field.last_seen, self.now),
        )
        if self.scope is Scope.HISTORY:
            return field
        looked = field.looked + field.absent + self.records
        had = field.seen + self._count(seen)
        if looked > _FADES:
            looked, had = looked // 2, had // 2
        return dataclasses.replace(field, looked=looked, seen=had, absent=0, gone=False)

    def _miss(self, after: dict[str, FieldSeen], missed: Iterable[str]) -> dict[str, str]:
        """Adds up the absence of fields; returns those that have vanished now, with details."""
        vanished: dict[str, str] = {}
        if self.scope is Scope.HISTORY:
            return vanished
        for path in missed:
            field = after[path]
            field = dataclasses.replace(field, absent=field.absent + self.records)
            if not field.gone and self._has_vanished(field):
                field = dataclasses.replace(field, gone=True)
                vanished[path] = (
                    f"{_listed(field.types)}; in {field.seen / field.looked:.0%} of the records"
                    f" before, in none of the last {field.absent} that were looked at"
                )
            after[path] = field
        return vanished

    def _has_vanished(self, field: FieldSeen) -> bool:
        if ANY in field.path or field.looked < _KNOWN or 2 * field.seen <= field.looked:
            return False
        whole = self.scope is Scope.WHOLE and self.records >= _SURE_WHOLE
        return whole or field.absent >= _SURE

    def _count(self, seen: Found) -> int:
        return min(seen.records, self.records)

    def _share(self, seen: Found) -> str:
        return f"in {self._count(seen)} of {self.records} records that were looked at"

    def _lines(self, kind: str, details: dict[str, str]) -> list[Drift]:
        return [
            Drift(self.tenant, self.service, self.table, kind, path, details[path], self.now)
            for path in sorted(details, key=by_depth)
        ]


def _topmost(details: dict[str, str]) -> dict[str, str]:
    """Without the fields whose parent is among them, too."""
    return {path: text for path, text in details.items() if parent(path) not in details}


def _fresh_types(field: FieldSeen, seen: Found) -> set[str]:
    """The types that are new; empty if there was no type to compare with."""
    before = set(_solid(field.types))
    if not before:
        return set()
    fresh = set(_solid(seen.types)) - before
    return fresh - {"integer"} if "number" in before else fresh


def _solid(types: Iterable[str]) -> list[str]:
    return [name for name in types if name != "null"]


def _listed(types: Iterable[str]) -> str:
    return ", ".join(sorted(types))


def _folded(
    known: Fields, found: dict[str, Found]
) -> tuple[dict[str, FieldSeen], dict[str, Found]]:
    """Both with ANY for the names in objects that, by both together, have too many."""
    fields, seen = dict(known), found
    while True:
        keyed = crowded((*fields, *seen))
        changed = [path for path in (*fields, *seen) if fold(path, keyed) != path]
        if not changed:
            return fields, seen
        fields, seen = _fold_fields(fields, keyed), _fold_found(seen, keyed)


def _fold_fields(fields: dict[str, FieldSeen], keyed: set[str]) -> dict[str, FieldSeen]:
    folded: dict[str, FieldSeen] = {}
    for path, field in fields.items():
        target = fold(path, keyed)
        other = folded.get(target)
        if target != path or other is not None:
            field = FieldSeen(
                target,
                tuple(sorted({*field.types, *(other.types if other else ())})),
                min(field.first_seen, other.first_seen if other else field.first_seen),
                max(field.last_seen, other.last_seen if other else field.last_seen),
            )
        folded[target] = field
    return folded


def _fold_found(found: dict[str, Found], keyed: set[str]) -> dict[str, Found]:
    folded: dict[str, Found] = {}
    for path, seen in found.items():
        target = fold(path, keyed)
        other = folded.get(target, Found(frozenset(), 0))
        folded[target] = Found(seen.types | other.types, seen.records + other.records)
    return folded
