"""Finds the rows that a checked statement means, and puts them in its order."""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from avesa_dagster.sandbox.salesforce.fields import NUMERIC, Field
from avesa_dagster.sandbox.salesforce.ids import IdMaker, shorten
from avesa_dagster.sandbox.salesforce.plan import Plan, Resolved, Schema, resolve
from avesa_dagster.sandbox.salesforce.soql import Both, Compare, Either, Node, Not
from avesa_dagster.sandbox.salesforce.table import Table
from avesa_dagster.sandbox.salesforce.values import Batch, Column

BATCH = 4000
"""Rows that are looked at at once."""


def column(schema: Schema, batch: Batch, path: Resolved, *, raw: bool = False) -> Column:
    """The values that a path leads to from each record of a batch."""
    if not path.steps:
        return batch.raw(path.about.name) if raw else batch.column(path.about.name)
    step, rest = path.steps[0], Resolved(path.path[1:], path.steps[1:], path.about)
    there = schema.tables[step.refers[0]]
    maker = IdMaker(there.info.prefix)
    numbers = [None if id is None else maker.number(id) for id in batch.raw(step.name)]
    distinct = sorted({n for n in numbers if n is not None and there.exists(n)})
    further = there.batch(distinct, bulk=batch.bulk)
    values = dict(zip(distinct, column(schema, further, rest, raw=raw), strict=True))
    return [None if n is None else values.get(n) for n in numbers]


Predicate = Callable[[Batch], list[bool]]


def _predicate(schema: Schema, table: Table, node: Node) -> Predicate:
    if isinstance(node, Not):
        inner = _predicate(schema, table, node.part)
        return lambda batch: [not one for one in inner(batch)]
    if isinstance(node, (Both, Either)):
        parts = [_predicate(schema, table, part) for part in node.parts]
        joined = all if isinstance(node, Both) else any
        return lambda batch: [
            joined(row) for row in zip(*(part(batch) for part in parts), strict=True)
        ]
    path = resolve(schema, table, node.path)
    test = _test(path.about, node)
    return lambda batch: [test(value) for value in column(schema, batch, path, raw=True)]


def _test(about: Field, node: Compare) -> Callable[[Any], bool]:
    """What a single value must satisfy. Text compares without case, ids with it."""
    ids = about.type in ("id", "reference")
    texts = about.type not in ("boolean", "datetime", *NUMERIC)

    def plain(value: Any) -> Any:
        if value is None:
            return None
        if ids:
            return shorten(str(value)) or str(value)
        return str(value).lower() if texts else value

    wanted = [plain(value.value) for value in node.values]
    one = wanted[0]
    match node.op:
        case "=" | "IN":
            known = set(wanted)
            return lambda value: plain(value) in known
        case "!=" | "NOT-IN":
            known = set(wanted)
            return lambda value: plain(value) not in known
        case "LIKE":
            form = _like(str(node.values[0].value))
            return lambda value: value is not None and form.fullmatch(str(value)) is not None
        case "<":
            return lambda value: value is not None and plain(value) < one
        case "<=":
            return lambda value: value is not None and plain(value) <= one
        case ">":
            return lambda value: value is not None and plain(value) > one
        case _:
            return lambda value: value is not None and plain(value) >= one


def _like(pattern: str) -> re.Pattern[str]:
    parts = re.findall(r"\\[%_]|[%_]|[^%_\\]+|\\", pattern)
    form = {"%": ".*", "_": "."}
    text = "".join(
        form.get(part, re.escape(part[1:] if part in ("\\%", "\\_") else part)) for part in parts
    )
    return re.compile(text, re.IGNORECASE | re.DOTALL)


def matching(schema: Schema, plan: Plan, everything: bool) -> array[int]:
    """Numbers of all rows of a plan, in the index's order.

    Args:
        everything: with soft-deleted and archived records, as queryAll has them.
    """
    found = _candidates(plan, everything)
    if plan.residual is None:
        return found
    test = _predicate(schema, plan.table, plan.residual)
    kept: array[int] = array("q")
    for at in range(0, len(found), BATCH):
        part = found[at : at + BATCH]
        answers = test(plan.table.batch(part))
        kept.extend(number for number, is_so in zip(part, answers, strict=True) if is_so)
    return kept


def count(schema: Schema, plan: Plan, everything: bool) -> int:
    """How many rows a plan has."""
    if plan.residual is not None:
        return len(matching(schema, plan, everything))
    if plan.spans is not None:
        return plan.table.span_count(plan.spans, everything)
    return sum(plan.table.number_count(low, high, everything) for low, high in plan.numbers)


def _candidates(plan: Plan, everything: bool) -> array[int]:
    if plan.spans is not None:
        return plan.table.spans(plan.spans, everything)
    found: array[int] = array("q")
    for low, high in plan.numbers:
        found += plan.table.by_number(low, high, everything)
    return found


def first_rows(plan: Plan, everything: bool, limit: int | None) -> Sequence[int]:
    """The first rows (None: all) of a plan without residual, in the index's order."""
    if plan.spans is not None:
        return plan.table.first_of(plan.spans, everything, limit)
    return _candidates(plan, everything)[:limit]


def ordered(schema: Schema, plan: Plan, numbers: Sequence[int], ties: int | None) -> Sequence[int]:
    """Rows in the order that is asked for, or in no order to rely on.

    Args:
        ties: decides the order of rows that the ordering leaves equal; None is by the index.
    """
    if not plan.order:
        return unordered(numbers)
    if plan.natural and (ties is None or len(plan.order) > 1 or plan.spans is None):
        return numbers
    ranked = list(numbers)
    if ties is not None:
        ranked.sort(key=lambda n: zlib.crc32(b"%d:%d" % (ties, n)))
    for path, one in reversed(plan.order):
        keys: list[Any] = []
        for at in range(0, len(ranked), BATCH):
            batch = plan.table.batch(ranked[at : at + BATCH])
            keys += column(schema, batch, path, raw=True)
        missing = 0 if one.nulls_first != one.descending else 2
        places = sorted(
            range(len(ranked)),
            key=lambda n: (missing, 0) if keys[n] is None else (1, _rank(keys[n])),
            reverse=one.descending,
        )
        ranked = [ranked[place] for place in places]
    return ranked


def _rank(value: Any) -> Any:
    return value.lower() if isinstance(value, str) and len(value) != 18 else value


def unordered(numbers: Sequence[int]) -> Sequence[int]:
    """The same rows as a service gives them that was asked for no order."""
    size = len(numbers)
    if size < 3:
        return numbers
    stride = int(size * 0.618) | 1
    while math.gcd(stride, size) != 1:
        stride += 2
    return array("q", [numbers[at * stride % size] for at in range(size)])
