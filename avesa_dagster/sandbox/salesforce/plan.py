"""Asks a statement's names of the org's schema, and finds the rows that it means.

Conditions on the change time and the id become spans of an index; what else there is, is asked of
each row. Field-level security hides a field as if it did not exist: INVALID_FIELD.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.salesforce.fields import NUMERIC, Field
from avesa_dagster.sandbox.salesforce.ids import LARGEST, IdMaker, shorten
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.soql import (
    Both,
    Compare,
    Either,
    Item,
    Literal,
    Node,
    Not,
    Order,
    Path,
    Query,
    malformed,
)
from avesa_dagster.sandbox.salesforce.table import Span, Table

_MOST_RECTANGLES = 200
_MOST_STEPS = 5
Rectangle = tuple[float, float, int, int]
"""Rows with low <= change time < high, and low <= record number < high."""
_END = LARGEST + 1
_EVERYTHING: Rectangle = (-math.inf, math.inf, 0, _END)
_MIXED = {"date": "date", "datetime": "dateTime", "boolean": "boolean"}


class Schema(Protocol):
    """The tables of an org, as its caller may see them."""

    tables: Mapping[str, Table]

    def table(self, name: str) -> Table:
        """The table of an object that SOQL names, in whatever case.

        Raises:
            ApiError: INVALID_TYPE.
        """
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """A path of SOQL with its names as they are in the schema.

    `steps` are the reference fields to follow, `about` the field at the end.
    """

    path: Path
    steps: tuple[Field, ...]
    about: Field


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked statement.

    Attributes:
        fields: what is selected, FIELDS() written out; empty of an aggregate.
        children: child relationship name to the plan of the subquery and its reference field.
        spans: where the rows are, by change time and number; None: look in `numbers`.
        numbers: ranges of record numbers.
        residual: what must be asked of each row found there.
        changed: the hull of the change times that the condition allows.
        above: the record number that all rows reach, among those of the least change time.
    """

    query: Query
    table: Table
    fields: tuple[Resolved, ...]
    children: Mapping[str, tuple[Plan, str]]
    spans: tuple[Span, ...] | None
    numbers: tuple[tuple[int, int], ...]
    residual: Node | None
    order: tuple[tuple[Resolved, Order], ...]
    changed: Interval
    above: int

    @property
    def natural(self) -> bool:
        """Whether the index has the rows in the order that is asked for."""
        asked = [(found.path, one.descending) for found, one in self.order]
        by_time = (((self.table.info.cursor,), False), (("Id",), False))
        if self.spans is not None:
            return asked in ([by_time[0]], [*by_time])
        return asked == [by_time[1]]


def without_condition(plan: Plan) -> Plan:
    """The statement as a service understands it that forgets its WHERE."""
    spans: tuple[Span, ...] = ((-math.inf, 0, math.inf, 0),)
    return replace(plan, spans=spans, numbers=(), residual=None, changed=Interval(), above=0)


def number_of(table: Table, id: str) -> int | None:
    """The number of the record with this id; None if there never was one."""
    number = IdMaker(table.info.prefix).number(id)
    return number if number is not None and table.exists(number) else None


def only(plan: Plan, numbers: Sequence[int]) -> Plan:
    """The statement over just these records, ascending."""
    ranges = _joined_ranges((number, number + 1) for number in numbers)
    return replace(plan, spans=None, numbers=ranges, residual=None)


def resolve(schema: Schema, table: Table, path: Path) -> Resolved:
    """Find the field that a path leads to.

    Raises:
        ApiError: INVALID_FIELD.
    """
    steps: list[Field] = []
    names: list[str] = []
    here = table
    for step in path[:-1]:
        wanted = step.lower()
        found = next(
            (
                about
                for about in here.visible_fields.values()
                if (about.relationship or "").lower() == wanted
            ),
            None,
        )
        if found is None or found.refers[0] not in schema.tables or len(steps) >= _MOST_STEPS:
            raise ApiError(
                "INVALID_FIELD", f"Didn't understand relationship '{step}' in field path."
            )
        steps.append(found)
        names.append(found.relationship or "")
        here = schema.table(found.refers[0])
    return Resolved((*names, field_of(here, path[-1]).name), tuple(steps), field_of(here, path[-1]))


def field_of(table: Table, name: str) -> Field:
    about = table.visible_fields.get(name)
    if about is None:
        wanted = name.lower()
        fields = table.visible_fields.values()
        about = next((one for one in fields if one.name.lower() == wanted), None)
    if about is None:
        raise ApiError(
            "INVALID_FIELD",
            f"No such column '{name}' on entity '{table.info.name}'. If you are attempting to use "
            "a custom field, be sure to append the '__c' after the custom field name. Please "
            "reference your WSDL or the describe call for the appropriate names.",
        )
    return about


def check(schema: Schema, query: Query, *, unbounded_fields: bool = False) -> Plan:
    """Check a statement and plan it.

    Args:
        unbounded_fields: whether FIELDS(ALL) and FIELDS(CUSTOM) need no LIMIT.

    Raises:
        ApiError: a name is unknown or hidden, or may not be used so.
    """
    table = schema.table(query.table)
    if not table.info.queryable:
        raise ApiError(
            "INVALID_TYPE_FOR_OPERATION",
            f"entity type {table.info.name} does not support query",
        )
    fields = _selected(schema, table, query, unbounded_fields)
    for item in query.group_by:
        resolve(schema, table, item.path)
    if query.where is not None:
        _check_node(schema, table, query.where)
    order = []
    if not query.aggregate:
        for one in query.order:
            found = resolve(schema, table, one.path)
            if not found.about.sortable:
                raise ApiError(
                    "INVALID_FIELD", f"field '{found.about.name}' can not be sorted in a query call"
                )
            order.append((found, one))
    return _planned(schema, table, query, fields, tuple(order))


def _selected(
    schema: Schema, table: Table, query: Query, unbounded_fields: bool
) -> tuple[Resolved, ...]:
    if query.counts_only:
        return ()
    if query.aggregate:
        for item in query.items:
            if not isinstance(item, Item) or (not item.function and item not in query.group_by):
                raise malformed("Field must be grouped or aggregated")
            if item.path:
                resolve(schema, table, item.path)
        return ()
    found: list[Resolved] = []
    for item in query.items:
        if not isinstance(item, Item):
            continue
        if item.function == "fields":
            kind = item.path[0].upper()
            if kind != "STANDARD" and not unbounded_fields and (query.limit or 201) > 200:
                raise malformed(
                    "The SOQL FIELDS function must have a LIMIT of at most 200 in this context."
                )
            for about in table.visible_fields.values():
                if kind == "ALL" or about.custom == (kind == "CUSTOM"):
                    found.append(Resolved((about.name,), (), about))
        elif item.function:
            raise malformed(f"unexpected token: '{item.function}'")
        else:
            found.append(resolve(schema, table, item.path))
    paths = [one.path for one in found]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise malformed(f"duplicate field selected: {'.'.join(twice)}")
    return tuple(found)


# ---- conditions


def _check_node(schema: Schema, table: Table, node: Node) -> None:
    if isinstance(node, (Both, Either)):
        for part in node.parts:
            _check_node(schema, table, part)
    elif isinstance(node, Not):
        _check_node(schema, table, node.part)
    else:
        about = resolve(schema, table, node.path).about
        if not about.filterable:
            raise ApiError(
                "INVALID_FIELD", f"field '{about.name}' can not be filtered in a query call"
            )
        for value in node.values:
            _check_value(about, node.op, value)


def _check_value(about: Field, op: str, value: Literal) -> None:
    if value.kind == "null":
        if op in ("<", "<=", ">", ">="):
            raise malformed("unexpected token: 'null'")
        return
    if about.type in ("id", "reference"):
        if value.kind != "string" or shorten(str(value.value)) is None:
            raise ApiError("INVALID_QUERY_FILTER_OPERATOR", f"invalid ID field: {value.value}")
        return
    if about.type in _MIXED:
        wanted, fits = _MIXED[about.type], value.kind == about.type
    elif about.type in NUMERIC:
        wanted, fits = "double", value.kind == "number"
    else:
        wanted, fits = "string", value.kind == "string"
    if not fits:
        quotes = "should be" if wanted == "string" else "should not be"
        raise ApiError(
            "INVALID_FIELD",
            f"value of filter criterion for field '{about.name}' must be of type {wanted} and "
            f"{quotes} enclosed in quotes",
        )
    if op == "LIKE" and wanted != "string":
        raise ApiError("INVALID_QUERY_FILTER_OPERATOR", f"invalid operator on {about.type} field")


def _rectangles(table: Table, node: Node) -> list[Rectangle] | None:
    """Disjoint or overlapping rectangles that hold exactly the rows of a condition.

    None if it is about more than the change time and the id.
    """
    if isinstance(node, Not):
        return None
    if isinstance(node, Compare):
        return _rectangles_of(table, node)
    sides = [_rectangles(table, part) for part in node.parts]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides):
        return None
    if isinstance(node, Either):
        found = [one for side in known for one in side]
    else:
        found = [_EVERYTHING]
        for side in known:
            found = [both for a in found for b in side if (both := _overlap(a, b)) is not None]
    return found if len(found) <= _MOST_RECTANGLES else None


def _overlap(a: Rectangle, b: Rectangle) -> Rectangle | None:
    low, high, first, last = max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3])
    return (low, high, first, last) if low < high and first < last else None


def _rectangles_of(table: Table, node: Compare) -> list[Rectangle] | None:
    if len(node.path) != 1 or any(value.kind == "null" for value in node.values):
        return None
    name = node.path[0].lower()
    if name == table.info.cursor.lower() and node.op in ("=", "<", "<=", ">", ">=", "IN"):
        found: list[Rectangle] = []
        for value in node.values:
            assert isinstance(value.value, float)
            within = Interval().also("=" if node.op == "IN" else node.op, value.value)
            if within.low < within.high:
                found.append((within.low, within.high, 0, _END))
        return found
    if name == "id" and node.op in ("=", "<", "<=", ">", ">=", "IN"):
        maker = IdMaker(table.info.prefix)
        return [
            (-math.inf, math.inf, low, high)
            for value in node.values
            for low, high in [_id_range(maker, node.op, str(value.value))]
            if low < high
        ]
    return None


def _id_range(maker: IdMaker, op: str, text: str) -> tuple[int, int]:
    """The record numbers whose ids satisfy `id op text`, half-open."""
    place, exact = maker.bound(text), maker.number(text) is not None
    if op in ("=", "IN"):
        return (place, place + 1) if exact else (0, 0)
    if op in (">", ">="):
        return (place + (exact and op == ">"), _END)
    return (0, place + (exact and op == "<="))


def _planned(
    schema: Schema,
    table: Table,
    query: Query,
    fields: tuple[Resolved, ...],
    order: tuple[tuple[Resolved, Order], ...],
) -> Plan:
    parts = query.where.parts if isinstance(query.where, Both) else ()
    if query.where is not None and not parts:
        parts = (query.where,)
    found, rest = [_EVERYTHING], []
    for part in parts:
        side = _rectangles(table, part)
        if side is None:
            rest.append(part)
        else:
            found = [both for a in found for b in side if (both := _overlap(a, b)) is not None]
    low = min((one[0] for one in found), default=0)
    high = max((one[1] for one in found), default=0)
    above = min((one[2] for one in found if one[0] == low), default=0)
    spans: tuple[Span, ...] | None = None
    numbers: tuple[tuple[int, int], ...] = ()
    by_id = order and order[0][0].path == ("Id",)
    timeless = all(one[:2] == _EVERYTHING[:2] for one in found)
    if timeless and (by_id or any(one != _EVERYTHING for one in found)):
        numbers = _joined_ranges([one[2:] for one in found])
    elif all(one[2:] == _EVERYTHING[2:] or one[1] == one[0] + 1 for one in found):
        spans = _joined_spans(found)
    else:
        spans = ((low, 0, high, 0),)
        rest = list(parts)
    residual = None if not rest else rest[0] if len(rest) == 1 else Both(tuple(rest))
    children = {
        item.table: _child(schema, table, item) for item in query.items if isinstance(item, Query)
    }
    hull = Interval(low, high)
    return Plan(query, table, fields, children, spans, numbers, residual, order, hull, above)


def _child(schema: Schema, parent: Table, query: Query) -> tuple[Plan, str]:
    known = {name.lower(): about for name, about in parent.info.children.items()}
    if query.table.lower() not in known:
        raise ApiError("INVALID_TYPE", f"Didn't understand relationship '{query.table}' in FROM.")
    name, reference = known[query.table.lower()]
    return check(schema, replace(query, table=name)), reference


def _joined_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def _joined_spans(rectangles: Iterable[Rectangle]) -> tuple[Span, ...]:
    spans = []
    for low, high, first, last in rectangles:
        if (first, last) == _EVERYTHING[2:]:
            spans.append(((low, 0), (high, 0)))
        elif last == _END:
            spans.append(((low, first), (low + 1, 0)))
        else:
            spans.append(((low, first), (low, last)))
    joined: list[tuple[tuple[float, int], tuple[float, int]]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple((*start, *end) for start, end in joined)
