"""The Aggregate API: `/api/now/stats/{table}`; every figure is a string.

Source: fact page, Counts [SND c_AggregateAPI]. It counts what the query selects, before row ACLs.
[INF] Of `sysparm_having` it reads `count^field^operator^number`, and passes over all else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from avesa_dagster.sandbox.servicenow import stamps
from avesa_dagster.sandbox.servicenow.ids import RANK_BITS
from avesa_dagster.sandbox.servicenow.listing import Ask, read_query, select
from avesa_dagster.sandbox.servicenow.query import Value
from avesa_dagster.sandbox.servicenow.schema import Column
from avesa_dagster.sandbox.servicenow.selection import Selected
from avesa_dagster.sandbox.servicenow.site import Instance, Site
from avesa_dagster.sandbox.servicenow.store import NULL
from avesa_dagster.sandbox.wire import Request

_INDEXED = {"updated": "sys_updated_on", "created": "sys_created_on"}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
}


def statistics(site: Site, instance: Instance, table: str, request: Request) -> tuple[Any, int]:
    """(the body, how many records the query selects)."""
    given = request.query
    ask = Ask(table, read_query(given.get("sysparm_query", ""), instance, table))
    axis, selected = select(site, instance, ask)
    reader = _Reader(instance, table, given)
    groups = [name for name in _names(given, "sysparm_group_by") if name in reader.columns]
    if groups:
        return {"result": reader.grouped(groups, selected)}, len(selected)
    return {"result": {"stats": reader.figures(selected, axis)}}, len(selected)


def _names(given: dict[str, str], parameter: str) -> list[str]:
    return [name for name in given.get(parameter, "").split(",") if name]


class _Reader:
    """Reads the figures that one request asks for."""

    def __init__(self, instance: Instance, table: str, given: dict[str, str]) -> None:
        self._instance, self._table, self._given = instance, table, given
        self.columns = instance.world.schema.columns(table)
        self._shows = given.get("sysparm_display_value", "false") in ("true", "all")

    def figures(self, numbers: Sequence[int], axis: str = "") -> dict[str, Any]:
        """count, min, max, sum and avg, as far as asked for."""
        found: dict[str, Any] = {}
        if self._given.get("sysparm_count") == "true":
            found["count"] = str(len(numbers))
        for what in ("min", "max", "sum", "avg"):
            names = [n for n in _names(self._given, f"sysparm_{what}_fields") if n in self.columns]
            if names:
                found[what] = {name: self._figure(what, name, numbers, axis) for name in names}
        return found

    def grouped(self, names: list[str], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """A line for each combination of the values of some columns, in their order."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number in numbers:
            value = self._value(number)
            groups.setdefault(tuple(value(name) for name in names), []).append(number)
        lines = []
        for values in sorted(groups, key=lambda one: tuple(map(str, one))):
            members = groups[values]
            if self._wanted(len(members)):
                fields = [
                    {"field": name, "value": self._text(name, value)}
                    for name, value in zip(names, values, strict=True)
                ]
                lines.append({"stats": self.figures(members), "groupby_fields": fields})
        return lines

    def _wanted(self, count: int) -> bool:
        parts = self._given.get("sysparm_having", "").split("^")
        if len(parts) != 4 or parts[0].lower() != "count" or parts[2] not in _COMPARISONS:
            return True
        return not parts[3].isdigit() or _COMPARISONS[parts[2]](count, int(parts[3]))

    def _value(self, number: int) -> Value:
        return self._instance.world.value_of(self._table, number)

    def _figure(self, what: str, name: str, numbers: Sequence[int], axis: str) -> str:
        quick = self._from_index(what, name, numbers, axis)
        if quick is not None:
            return quick
        values = [value for n in numbers if (value := self._value(n)(name)) not in ("", None)]
        column = self.columns[name]
        if column.kind in ("integer", "decimal"):
            values = [float(value) for value in values]
        if not values:
            return ""
        if what in ("min", "max"):
            best = min(values) if what == "min" else max(values)
            return self._text(name, _number(best) if isinstance(best, float) else best)
        if not all(isinstance(value, (int, float)) for value in values):
            return ""
        total = sum(values)
        return _number(total if what == "sum" else total / len(values))

    def _from_index(self, what: str, name: str, numbers: Sequence[int], axis: str) -> str | None:
        """The least or greatest instant of records that are in the order of that instant."""
        if _INDEXED.get(axis) != name or what not in ("min", "max") or not numbers:
            return None
        assert isinstance(numbers, Selected)
        instant = numbers.key(0 if what == "min" else len(numbers) - 1) >> RANK_BITS
        return None if instant == NULL else self._text(name, instant)

    def _text(self, name: str, value: Any) -> str:
        column: Column = self.columns[name]
        if value is None or value == "":
            return ""
        if column.kind in ("glide_date_time", "glide_duration"):
            instant = column.kind == "glide_date_time"
            return (
                self._instance.zone.display(value)
                if self._shows and instant
                else stamps.stored(value)
            )
        return str(value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.10g}"
