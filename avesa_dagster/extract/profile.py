"""What raw payloads look like: which fields, of which JSON types, in how many records.

A path is field names joined by dots, elements of an array are `[]`: `company.id`,
`customFields[].value`. A character that would be ambiguous in a name is written as in a URL: `.`
is `%2E`. An object with more names than a schema has keys that are data; its names become `{}`.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from typing import Any

import msgspec
import pyarrow as pa

MOST_PATHS = 2_000
"""Fields of one table that are told apart: the least deep ones."""
ANY = "{}"
"""Stands for the names in an object whose keys are data."""

_MOST_NAMES = 200
_MOST_TOP_NAMES = 1_000
"""Of a record itself: some services have tables with hundreds of columns."""
_MOST_PLACES = 1_000
_DEEPEST = 12
_LONGEST_NAME = 100
_SAMPLE = 200
_SMALL = 20
_EVERY = 150
_TYPES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
_AMBIGUOUS = re.compile(r"[%.\[\]{}\x00-\x1f\x7f]")
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Found:
    """A field as a profile saw it.

    Attributes:
        types: Names of the JSON types.
        records: Records that had it, null or not. Below an object whose keys are data: records
            times keys.
    """

    types: frozenset[str]
    records: int


def sample(payloads: Sequence[bytes | str | None] | pa.ChunkedArray) -> list[bytes | str]:
    """Some of the payloads, spread evenly, so that looking at them costs little.

    All of up to 20; of more one in 150, but at least 20 and at most 200. A null (the row of a
    deletion) is left out. A payload of 3 kB costs 60 to 80 us, so this is 4 % of the CPU that
    writing a raw object of 20,000 records takes, and under 2 ms for a small one.

    Args:
        payloads: JSON texts, for example a raw object's column `payload`.
    """
    count = len(payloads)
    size = min(count, _SAMPLE, max(_SMALL, count // _EVERY))
    picked = (payloads[number * count // size] for number in range(size))
    texts = (one.as_py() if isinstance(one, pa.Scalar) else one for one in picked)
    return [text for text in texts if text is not None]


@dataclass(slots=True)
class _Place:
    """What the objects at one path hold, by name; or what the arrays at it hold, by no name."""

    records: Counter[str] = field(default_factory=Counter)
    types: set[tuple[str, type]] = field(default_factory=set)

    def absorb(self, other: _Place, *, any_name: bool) -> None:
        if any_name:
            self.records[ANY] += other.records.total()
            self.types.update((ANY, kind) for _, kind in other.types)
        else:
            self.records.update(other.records)
            self.types |= other.types


class Profile:
    """The fields of the payloads that were added. May be shared by threads.

    Adding in any order, in any split, and merging profiles in any order gives the same fields. It
    holds at most 1,000 objects and arrays; of more (no schema has so many), which are left out
    depends on the order.

    Attributes:
        records: Payloads that were looked at.
        unreadable: Payloads that are no JSON objects; they count for nothing else.
    """

    def __init__(self) -> None:
        self.records = 0
        self.unreadable = 0
        self._objects: dict[str, _Place] = {}
        self._arrays: dict[str, _Place] = {}
        self._keyed: set[str] = set()  # paths of objects whose keys are data
        self._lock = threading.Lock()

    def sample(self, payloads: Sequence[bytes | str | None] | pa.ChunkedArray) -> None:
        """Adds some of the payloads of a chunk, see `sample`."""
        self.add(sample(payloads))

    def add(self, payloads: Iterable[bytes | str]) -> None:
        """Adds every one of these JSON texts."""
        records = [_record(payload) for payload in payloads]
        with self._lock:
            for record in records:
                if record is None:
                    self.unreadable += 1
                else:
                    self.records += 1
                    self._take("", [record], 0)

    def merge(self, other: Profile) -> None:
        """Adds what another one saw, to which nobody adds meanwhile."""
        with self._lock:
            self.records += other.records
            self.unreadable += other.unreadable
            self._fold(other._keyed, other)
            self._settle()

    def fields(self) -> dict[str, Found]:
        """By path, the least deep ones first; at most MOST_PATHS."""
        types: dict[str, set[str]] = {}
        records: dict[str, int] = {}
        with self._lock:
            for place, at in self._placed():
                for name, kind in place.types:
                    types.setdefault(at[name], set()).add(_TYPES[kind])
                for name, count in place.records.items():
                    records[at[name]] = max(records.get(at[name], 0), count)
        first = sorted(types, key=by_depth)[:MOST_PATHS]
        return {path: Found(frozenset(types[path]), records[path]) for path in first}

    def _placed(self) -> Iterator[tuple[_Place, dict[str, str]]]:
        """Each place, and the path of each name in it."""
        for path, place in self._arrays.items():
            yield place, dict.fromkeys(place.records, path)
        for path, place in self._objects.items():
            yield place, {name: self._path(path, name) for name in place.records}

    def _path(self, path: str, name: str) -> str:
        """Of a field, by its name in the object at `path`."""
        return _join(path, ANY if path in self._keyed else _segment(name))

    def _take(self, path: str, objects: Sequence[dict[str, Any]], depth: int) -> None:
        """Notes the objects that one record has at a path."""
        place = self._place(self._objects, path)
        if place is None:
            return
        names: Iterable[str] = objects[0] if len(objects) == 1 else set().union(*objects)
        nested = False
        keyed = path in self._keyed
        counts = place.records
        for name in names:
            counts[ANY if keyed else name] += 1
        for one in objects:
            kinds = list(map(type, one.values()))
            place.types.update(zip(repeat(ANY) if keyed else one, kinds, strict=False))
            nested = nested or dict in kinds or list in kinds
        if len(counts) > _most_names(path):
            self._settle()
        if nested and depth < _DEEPEST:
            self._take_inner(path, objects, depth + 1)

    def _take_inner(self, path: str, objects: Sequence[dict[str, Any]], depth: int) -> None:
        inner: dict[str, list[dict[str, Any]]] = {}
        lists: dict[str, list[list[Any]]] = {}
        for one in objects:
            for name, value in one.items():
                kind = type(value)
                if kind is dict:
                    inner.setdefault(name, []).append(value)
                elif kind is list:
                    lists.setdefault(name, []).append(value)
        for name, found in inner.items():
            self._take(self._path(path, name), found, depth)
        for name, arrays in lists.items():
            self._take_arrays(f"{self._path(path, name)}[]", arrays, depth)

    def _take_arrays(self, path: str, arrays: Sequence[list[Any]], depth: int) -> None:
        """Notes the arrays that one record has at a path."""
        elements = [element for array in arrays for element in array]
        place = self._place(self._arrays, path) if elements else None
        if place is None:
            return
        place.records[""] += 1
        place.types.update(("", type(element)) for element in elements)
        if depth >= _DEEPEST:
            return
        if objects := [element for element in elements if type(element) is dict]:
            self._take(path, objects, depth + 1)
        if inner := [element for element in elements if type(element) is list]:
            self._take_arrays(f"{path}[]", inner, depth + 1)

    def _place(self, places: dict[str, _Place], path: str) -> _Place | None:
        place = places.get(path)
        if place is None and len(self._objects) + len(self._arrays) < _MOST_PLACES:
            place = places[path] = _Place()
        return place

    def _settle(self) -> None:
        """Folds objects that have too many names until none is left, and bounds what is held."""
        while crowded := [
            path
            for path, place in self._objects.items()
            if path not in self._keyed and len(place.records) > _most_names(path)
        ]:
            self._fold(crowded)
        for path in sorted((*self._objects, *self._arrays), key=by_depth)[_MOST_PLACES:]:
            self._objects.pop(path, None)
            self._arrays.pop(path, None)

    def _fold(self, keyed: Iterable[str], other: Profile | None = None) -> None:
        """Notes that the keys of these objects are data; takes in the places of another one."""
        closed = {*self._keyed, *keyed}
        while closed != (folded := {fold(path, closed) for path in closed}):
            closed = folded
        self._keyed = closed
        sources = (self,) if other is None else (self, other)
        objects: dict[str, _Place] = {}
        arrays: dict[str, _Place] = {}
        for source in sources:
            for path, place in source._objects.items():
                target = fold(path, closed)
                into = objects.setdefault(target, _Place())
                into.absorb(place, any_name=target in closed)
            for path, place in source._arrays.items():
                arrays.setdefault(fold(path, closed), _Place()).absorb(place, any_name=False)
        self._objects, self._arrays = objects, arrays


def absent(profile: Profile, paths: Iterable[str]) -> list[str]:
    """The paths that no record of the profile has: mapped, and hidden from us, or not used.

    Args:
        paths: As mappings write them, for example `company.id`.

    Returns:
        In the order given. None if the profile saw no record at all.
    """
    if not profile.records:
        return []
    found = profile.fields()
    keyed = crowded(found)
    return [path for path in paths if fold(path, keyed) not in found]


def crowded(paths: Iterable[str]) -> set[str]:
    """The paths of objects that have more names than a schema has, or were folded already."""
    names: dict[str, set[str]] = {}
    for path in paths:
        head, _, last = path.rpartition(".")
        names.setdefault(head, set()).add(last.partition("[")[0])
    return {head for head, own in names.items() if ANY in own or len(own) > _most_names(head)}


def fold(path: str, keyed: Collection[str]) -> str:
    """The path with ANY for each name in an object of `keyed`."""
    if not path or not keyed:
        return path
    folded = ""
    for segment in path.split("."):
        name, mark, rest = segment.partition("[")
        folded = _join(folded, f"{ANY if folded in keyed else name}{mark}{rest}")
    return folded


def parent(path: str) -> str:
    """The path of the object or array that a path stands in; empty for the record itself."""
    return path[:-2] if path.endswith("[]") else path.rpartition(".")[0]


def by_depth(path: str) -> tuple[int, str]:
    """Sorts paths so that a parent comes before what is in it."""
    return path.count(".") + path.count("[]"), path


def _record(payload: bytes | str) -> dict[str, Any] | None:
    try:
        record = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        record = _leniently(payload)
    return record if isinstance(record, dict) else None


def _leniently(payload: bytes | str) -> Any:
    """The standard library reads texts that hold half of a surrogate pair, which are in raw."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _most_names(path: str) -> int:
    return _MOST_NAMES if path else _MOST_TOP_NAMES


def _join(path: str, segment: str) -> str:
    return f"{path}.{segment}" if path else segment


@lru_cache(maxsize=8_192)
def _segment(name: str) -> str:
    """A name as it stands in a path: unambiguous, printable, of bounded length, never empty."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    text = _AMBIGUOUS.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(text) > _LONGEST_NAME:
        text = f"{text[:_LONGEST_NAME]}…"
    return text or "%"
