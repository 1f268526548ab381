"""COUNT, MIN, MAX and the like, over all rows or by groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avesa_dagster.sandbox.salesforce.finding import BATCH, column, count, matching
from avesa_dagster.sandbox.salesforce.plan import Plan, Schema, resolve
from avesa_dagster.sandbox.salesforce.soql import Item, Query


def aggregates(schema: Schema, plan: Plan, everything: bool) -> list[dict[str, Any]]:
    """The rows of a statement with aggregate functions."""
    query = plan.query
    functions = [item for item in query.items if isinstance(item, Item)]
    simple = not query.group_by and all(item.function == "count" for item in functions)
    groups: dict[tuple[Any, ...], list[list[Any]]] = {}
    if simple and all(item.path in ((), ("Id",)) for item in functions):
        total = count(schema, plan, everything)
        return [_aggregate_row(functions, (), [[total]] * len(functions), query, ready=True)]
    keys = [(item, resolve(schema, plan.table, item.path)) for item in query.group_by]
    sources = [
        None if not item.path else resolve(schema, plan.table, item.path) for item in functions
    ]
    numbers = matching(schema, plan, everything)
    for at in range(0, len(numbers), BATCH):
        batch = plan.table.batch(numbers[at : at + BATCH])
        by = [[_grouped(item, value) for value in column(schema, batch, path)]
              for item, path in keys]  # fmt: skip
        values = [
            [1] * len(batch.numbers) if path is None else column(schema, batch, path)
            for path in sources
        ]
        for row in range(len(batch.numbers)):
            kept = groups.setdefault(tuple(one[row] for one in by), [[] for _ in functions])
            for held, one in zip(kept, values, strict=True):
                held.append(one[row])
    if not query.group_by and not groups:
        groups[()] = [[] for _ in functions]
    return [_aggregate_row(functions, key, held, query) for key, held in sorted(
        groups.items(), key=lambda group: [(v is not None, v) for v in group[0]]
    )]  # fmt: skip


def _grouped(item: Item, value: Any) -> Any:
    if value is None or item.function is None:
        return value
    if item.function == "day_only":
        return value[:10]
    return int(value[:4] if item.function == "calendar_year" else value[5:7])


def _aggregate_row(
    items: Sequence[Item],
    key: tuple[Any, ...],
    held: Sequence[Sequence[Any]],
    query: Query,
    *,
    ready: bool = False,
) -> dict[str, Any]:
    row: dict[str, Any] = {"attributes": {"type": "AggregateResult"}}
    unnamed = 0
    for item, values in zip(items, held, strict=True):
        if not item.aggregate:
            plain = Item(item.path, item.function)
            name = item.alias or (item.path[-1] if not item.function else f"expr{unnamed}")
            unnamed += item.alias is None and item.function is not None
            row[name] = key[query.group_by.index(plain)]
            continue
        name = item.alias or f"expr{unnamed}"
        unnamed += item.alias is None
        row[name] = values[0] if ready else _aggregated(item.function or "", values)
    return row


def _aggregated(function: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    match function:
        case "count":
            return len(known)
        case "count_distinct":
            return len(set(known))
        case "sum":
            return sum(known) if known else None
        case "avg":
            return sum(known) / len(known) if known else None
    return (min if function == "min" else max)(known) if known else None
