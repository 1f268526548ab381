"""Which records a query selects, in which order, without looking at more of them than it must.

A query whose blocks bound only one instant, or the sys_id, selects stretches of an index: counting
and turning pages are then arithmetic, whatever the size of the table. All else reads records, once
for each state of the table.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.servicenow.ids import RANK_BITS
from avesa_dagster.sandbox.servicenow.query import Alternatives, Block, Query, Value, matches
from avesa_dagster.sandbox.servicenow.store import NULL, Store

_AXES = {"sys_updated_on": "updated", "sys_created_on": "created"}
_INFINITE = float("inf")
_REMEMBERED = 8
_JITTER = 200
"""Without an ordering, records come in groups of so many whose inside changes at each request."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one block asks of the instants and of the sys_id; `rest` is everything else."""

    updated: Interval = field(default_factory=Interval)
    created: Interval = field(default_factory=Interval)
    id_from: str = ""
    id_after: bool = False
    id_to: str | None = None
    id_including: bool = False
    ids: tuple[str, ...] | None = None
    rest: tuple[Alternatives, ...] = ()

    def instants(self, axis: str) -> Interval:
        return self.updated if axis == "updated" else self.created

    @property
    def bounds_id(self) -> bool:
        return self.id_from != "" or self.id_to is not None


def bounds_of(block: Block) -> Bounds:
    """Take the bounds out of a block."""
    found = Bounds()
    rest: list[Alternatives] = []
    for group in block:
        narrowed = _narrow(found, group) if len(group) == 1 else None
        if narrowed is None:
            rest.append(group)
        else:
            found = narrowed
    return replace(found, rest=tuple(rest))


def _narrow(bounds: Bounds, group: Alternatives) -> Bounds | None:
    """The bounds with one more clause in them; None if it is of another sort."""
    (clause,) = group
    if clause.field in _AXES and "" not in clause.operands and clause.operands:
        interval = _interval(clause.op, clause.operands)
        if interval is None:
            return None
        axis = _AXES[clause.field]
        both = _both(bounds.instants(axis), interval)
        updated = axis == "updated"
        return replace(bounds, updated=both) if updated else replace(bounds, created=both)
    if clause.field != "sys_id":
        return None
    return _narrow_id(bounds, clause.op, tuple(str(one) for one in clause.operands))


def _narrow_id(bounds: Bounds, op: str, ids: tuple[str, ...]) -> Bounds | None:
    if op in ("=", "IN"):
        kept = ids if bounds.ids is None else tuple(one for one in bounds.ids if one in ids)
        return replace(bounds, ids=kept)
    if op in (">", ">=") and (ids[0], op == ">") >= (bounds.id_from, bounds.id_after):
        return replace(bounds, id_from=ids[0], id_after=op == ">")
    if op in ("<", "<=") and bounds.id_to is None:
        return replace(bounds, id_to=ids[0], id_including=op == "<=")
    return None


def _interval(op: str, operands: tuple[Any, ...]) -> Interval | None:
    low = operands[0]
    match op:
        case ">=":
            return Interval(low, _INFINITE)
        case ">":
            return Interval(low + 1, _INFINITE)
        case "<":
            return Interval(-_INFINITE, low)
        case "<=":
            return Interval(-_INFINITE, low + 1)
        case "=":
            return Interval(low, low + 1)
        case "BETWEEN":
            return Interval(low, operands[1] + 1)
    return None


def _both(one: Interval, other: Interval) -> Interval:
    low = max(one.low, other.low)
    return Interval(low, max(low, min(one.high, other.high)))


@dataclass(frozen=True, slots=True)
class Window:
    """What a query means for page accounting: the instants, and the sys_id that rows exceed."""

    instants: Interval
    above: str


def window_of(query: Query) -> Window:
    """The hull of the blocks on sys_updated_on, or where that is unbounded on sys_created_on.

    `above` is the sys_id that the rows of the window's first second exceed, as a keyset has it.
    """
    blocks = [bounds_of(block) for block in query.blocks]
    if not blocks:
        return Window(Interval(), "")
    axis = "updated" if any(not b.updated.everything for b in blocks) else "created"
    low = min(b.instants(axis).low for b in blocks)
    high = max(b.instants(axis).high for b in blocks)
    first = [b for b in blocks if b.instants(axis).low == low]
    return Window(Interval(low, high), max((b.id_from for b in first), default=""))


class Selected(Sequence[int]):
    """Numbers of the records that a query selects: stretches of an index, or a list of keys."""

    def __init__(self, store: Store, keys: Sequence[int], parts: list[tuple[int, int]]) -> None:
        self._store, self._keys, self._parts = store, keys, parts
        self._ends = list(accumulate(end - start for start, end in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def key(self, place: int) -> int:
        part = bisect_right(self._ends, place)
        before = self._ends[part - 1] if part else 0
        return self._keys[self._parts[part][0] + place - before]

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._store.number_of_key(self.key(place % len(self)))

    def __iter__(self) -> Iterator[int]:
        for start, end in self._parts:
            for place in range(start, end):
                yield self._store.number_of_key(self._keys[place])


class Selector:
    """Answers queries on the tables of one store."""

    def __init__(self, store: Store, value_of: Callable[[str, int], Value]) -> None:
        """`value_of(table, number)` reads a shown record's stored values."""
        self._store, self._value_of = store, value_of
        self._answers: dict[Any, tuple[str, list[int]]] = {}

    def select(
        self,
        table: str,
        query: Query,
        visible: Callable[[int], bool] | None = None,
        mark: object = None,
    ) -> tuple[str, Selected]:
        """The axis along which the records are selected, and the records in its order.

        Args:
            visible: leaves out records that the caller's queries never see.
            mark: says which such rule it is, so that answers may be remembered.
        """
        blocks = [bounds_of(block) for block in query.blocks]
        axis = _axis(query, blocks)
        if visible is None and all(_exact(block, axis) for block in blocks):
            parts = [self._stretch(table, axis, block) for block in blocks]
            return axis, Selected(self._store, self._store.index(table, axis), _union(parts))
        known = (self._store.revision, table, query, mark)
        if known not in self._answers:
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            keys = self._read(table, axis, query, blocks, visible)
            self._answers[known] = axis, keys
        axis, keys = self._answers[known]
        return axis, Selected(self._store, keys, [(0, len(keys))])

    def _read(
        self,
        table: str,
        axis: str,
        query: Query,
        blocks: list[Bounds],
        visible: Callable[[int], bool] | None,
    ) -> list[int]:
        store, keys = self._store, set[int]()
        for block, bounds in zip(query.blocks, blocks, strict=True):
            for number in self._candidates(table, axis, bounds):
                key = store.key(number, axis)
                if key in keys or (visible is not None and not visible(number)):
                    continue
                if matches(block, self._value_of(table, number)):
                    keys.add(key)
        return sorted(keys)

    def _candidates(self, table: str, axis: str, bounds: Bounds) -> Iterator[int]:
        store = self._store
        if bounds.ids is not None:
            for sys_id in bounds.ids:
                number = store.number(sys_id)
                if number is not None and store.live(number):
                    yield number
            return
        start, end = self._stretch(table, axis, bounds)
        index = store.index(table, axis)
        yield from (store.number_of_key(index[at]) for at in range(start, end))

    def _stretch(self, table: str, axis: str, bounds: Bounds) -> tuple[int, int]:
        """Positions [start, end) in the index that hold all of a block's records."""
        store = self._store
        index = store.index(table, axis)
        start, end = 0, len(index)
        if axis == "id":
            start = store.position(table, axis, 0, bounds.id_from, after=bounds.id_after)
            if bounds.id_to is not None:
                end = store.position(table, axis, 0, bounds.id_to, after=bounds.id_including)
            return start, max(start, end)
        instants = bounds.instants(axis)
        if instants.everything:
            return start, end
        low = NULL + 1 if instants.low == -_INFINITE else int(instants.low)
        sharp = instants.high == instants.low + 1
        start = store.position(
            table, axis, low, bounds.id_from if sharp else "", after=sharp and bounds.id_after
        )
        if sharp and bounds.id_to is not None:
            end = store.position(table, axis, low, bounds.id_to, after=bounds.id_including)
        elif instants.high != _INFINITE:
            end = store.position(table, axis, int(instants.high), "", after=False)
        return start, max(start, end)

    def ordered(
        self,
        table: str,
        query: Query,
        axis: str,
        selected: Selected,
        start: int,
        count: int,
        nonce: int | None,
    ) -> list[int]:
        """The page [start, start + count) of the selection in the order that the query wants.

        Args:
            nonce: a number that decides the order of rows that the ordering leaves equal; None
                puts them by sys_id.
        """
        total = len(selected)
        stop = min(total, start + count)
        if start >= stop:
            return []
        order, column = query.order, {"updated": "sys_updated_on", "created": "sys_created_on"}
        first = "sys_id" if axis == "id" else column[axis]
        reverse = bool(order) and order[0][1]
        along = not order or order[0][0] == first
        unique = axis == "id" or order[1:2] == (("sys_id", reverse),)
        if along and order and unique:
            return _places(selected, start, stop, reverse)
        if not order:
            return self._jittered(selected, start, stop, nonce)
        if along and len(order) == 1:
            return self._with_ties(selected, start, stop, reverse, nonce)
        return self._sorted(table, query, selected, nonce)[start:stop]

    def _jittered(self, selected: Selected, start: int, stop: int, nonce: int | None) -> list[int]:
        if nonce is None:
            return _places(selected, start, stop, False)
        phase = nonce % _JITTER
        low = max(0, (start + phase) // _JITTER * _JITTER - phase)
        placed: list[int] = []
        while low < stop:
            high = min(len(selected), (low + phase) // _JITTER * _JITTER - phase + _JITTER)
            placed += _shuffled(_places(selected, low, high, False), nonce)
            low = high
        first = max(0, (start + phase) // _JITTER * _JITTER - phase)
        return placed[start - first : stop - first]

    def _with_ties(
        self, selected: Selected, start: int, stop: int, reverse: bool, nonce: int | None
    ) -> list[int]:
        """By instant alone: the records of one second come in any order."""
        total = len(selected)

        def instant(place: int) -> int:
            return selected.key(total - 1 - place if reverse else place) >> RANK_BITS

        low, high = start, stop
        while low > 0 and instant(low - 1) == instant(start):
            low -= 1
        while high < total and instant(high) == instant(stop - 1):
            high += 1
        placed: list[int] = []
        group: list[int] = []
        numbers = _places(selected, low, high, reverse)
        for place in range(low, high):
            if group and instant(place) != instant(place - 1):
                placed += _shuffled(group, nonce)
                group = []
            group.append(numbers[place - low])
        placed += _shuffled(group, nonce)
        return placed[start - low : stop - low]

    def _sorted(self, table: str, query: Query, selected: Selected, nonce: int | None) -> list[int]:
        unique = any(name == "sys_id" for name, _ in query.order)
        known = ("sorted", self._store.revision, table, query, len(selected))
        if unique and known in self._answers:
            return self._answers[known][1]
        numbers = _shuffled(list(selected), None if unique else nonce)
        for name, descending in reversed(query.order):
            if name == "sys_id":
                numbers.sort(key=self._store.sys_id, reverse=descending)
            else:
                numbers.sort(key=self._by(table, name), reverse=descending)
        if unique:
            self._answers[known] = "", numbers
        return numbers

    def _by(self, table: str, name: str) -> Callable[[int], tuple[int, Any]]:
        return lambda number: _rank(self._value_of(table, number)(name))


def _axis(query: Query, blocks: list[Bounds]) -> str:
    """The index to read: that of the first ordering where one is wanted, else of the bounds."""
    if any(not block.updated.everything for block in blocks):
        return "updated"
    if any(not block.created.everything for block in blocks):
        return "created"
    first = query.order[0][0] if query.order else "sys_id"
    return _AXES.get(first, "id")


def _exact(bounds: Bounds, axis: str) -> bool:
    """Whether the block's stretch of the index holds nothing but its records."""
    if bounds.rest or bounds.ids is not None:
        return False
    other = {"updated": bounds.created, "created": bounds.updated}
    if axis == "id":
        return bounds.created.everything and bounds.updated.everything
    instants = bounds.instants(axis)
    sharp = instants.high == instants.low + 1
    return other[axis].everything and (sharp or not bounds.bounds_id)


def _union(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches that overlap or touch become one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(part for part in parts if part[0] < part[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _places(selected: Selected, start: int, stop: int, reverse: bool) -> list[int]:
    if not reverse:
        return [selected[place] for place in range(start, stop)]
    last = len(selected) - 1
    return [selected[last - place] for place in range(start, stop)]


def _shuffled(numbers: list[int], nonce: int | None) -> list[int]:
    if nonce is None or len(numbers) < 2:
        return numbers
    return sorted(numbers, key=lambda number: zlib.crc32(b"%d:%d" % (nonce, number)))


def _rank(value: Any) -> tuple[int, Any]:
    """Orders values of unlike types: nothing, then numbers, then text."""
    if isinstance(value, (int, float)):
        return 1, value
    return (0, 0) if value is None or value == "" else (2, str(value).casefold())
