"""Records as the JSON that lists serve: one compiled template for each way of asking.

Encoding [SND][EL]: every scalar is a string, null is "". A reference is `{link, value}`, or the
plain sys_id with `exclude_link`; with display "true" every value is the displayed one and a
reference `{display_value, link}`; with "all" every column is `{display_value, value}`, a reference
with `link` too. Stored date-times are UTC; displayed ones are in the user's zone and format. A
cost is displayed in the user's currency format [SND].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any

from avesa_dagster.sandbox.servicenow import stamps
from avesa_dagster.sandbox.servicenow.content import FREE_TEXT, Row
from avesa_dagster.sandbox.servicenow.schema import Column
from avesa_dagster.sandbox.servicenow.stamps import Zone
from avesa_dagster.sandbox.servicenow.store import Splice

Display = Callable[[str, str], str]
"""(table, sys_id) to the display value of that record."""
_SAFE = frozenset(["integer", "decimal", "boolean", "glide_date"])
"""Kinds whose computed values need no escaping in JSON."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a list request wants its values. `display` is false, true or all."""

    display: str = "false"
    exclude_link: bool = False


def escaped(text: str) -> str:
    """The inside of a JSON string."""
    return encode_basestring_ascii(text)[1:-1]


class Projection:
    """Renders the columns asked for of the records of one class, seen through one table.

    Args:
        columns: in the order in which they come.
        constants: values of the columns that no record varies.
        varying: the columns that a record's row always has.
        labels: for choice columns, value to display value.
        base: what links begin with, up to the table's name.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        constants: Mapping[str, Any],
        varying: frozenset[str],
        labels: Mapping[str, Mapping[str, str]],
        style: Style,
        zone: Zone,
        base: str,
        display: Display,
    ) -> None:
        self._style, self._zone, self._base, self._display = style, zone, base, display
        self._columns, self._labels = columns, labels
        self._constants = {column.name: constants.get(column.name, "") for column in columns}
        fixed = [c for c in columns if c.name not in varying]
        encoded = dict(self._constants)
        self._encode(encoded, fixed)
        folded = {column.name: self._cell(column) % encoded for column in fixed}
        self._fast = self._template(folded)
        self._full = self._template({})
        self._plan = self._planned([c for c in columns if c.name in varying], FREE_TEXT)
        self._full_plan = self._planned(columns)

    def render(self, row: Row, splice: Splice | None = None, *, held: bool = False) -> str:
        """The JSON object of a row, which is used up.

        Args:
            held: the row has columns beyond those that vary.
        """
        if held:
            row = self._constants | row
            self._run(row, self._full_plan)
            text = self._full % row
        else:
            self._run(row, self._plan)
            text = self._fast % row
        return text if splice is None else spliced(text, splice)

    def _template(self, folded: dict[str, str]) -> str:
        cells = []
        for column in self._columns:
            known = folded.get(column.name)
            text = self._cell(column) if known is None else known.replace("%", "%%")
            cells.append(f'"{column.name}":{text}')
        return "{" + ",".join(cells) + "}"

    def _cell(self, column: Column) -> str:
        """The template of one column's value."""
        name, style = column.name, self._style.display
        if column.kind == "reference":
            return f"%({name})s"
        shown = f"{name}.d" if self._differs(column) else name
        if style == "all":
            return f'{{"display_value":"%({shown})s","value":"%({name})s"}}'
        return f'"%({shown if style == "true" else name})s"'

    def _differs(self, column: Column) -> bool:
        kinds = ("glide_date_time", "glide_duration", "glide_date", "decimal")
        return column.kind in kinds or column.name in self._labels

    def _encode(self, row: Row, columns: Sequence[Column]) -> None:
        self._run(row, self._planned(columns))

    def _planned(
        self, columns: Sequence[Column], texts: frozenset[str] | None = None
    ) -> list[tuple[Callable[..., None], Any]]:
        """The encoders to run over a row of these columns, with the names for each.

        Args:
            texts: the strings that may need escaping; None is all.
        """
        groups: dict[str, list[Any]] = {}
        shows = self._style.display != "false"
        for column in columns:
            name = column.name
            if column.kind == "reference":
                groups.setdefault("reference", []).append((name, column.target))
            elif column.kind in ("glide_date_time", "glide_duration"):
                groups.setdefault(column.kind, []).append(name)
            elif shows and name in self._labels:
                groups.setdefault("choice", []).append((name, self._labels[name]))
            elif shows and column.kind in ("glide_date", "decimal"):
                groups.setdefault(column.kind, []).append(name)
            elif column.kind not in _SAFE and (texts is None or name in texts):
                groups.setdefault("text", []).append(name)
        encoders: dict[str, Callable[..., None]] = {
            "reference": self._references,
            "glide_date_time": self._instants if shows else _stored_instants,
            "glide_duration": self._durations if shows else _stored_instants,
            "choice": _choices,
            "glide_date": self._dates,
            "decimal": self._decimals,
            "text": _texts,
        }
        return [(encoders[kind], names) for kind, names in groups.items()]

    def _run(self, row: Row, plan: list[tuple[Callable[..., None], Any]]) -> None:
        for encode, names in plan:
            encode(row, names)

    def _references(self, row: Row, names: list[tuple[str, str]]) -> None:
        display, link = self._style.display, not self._style.exclude_link
        for name, target in names:
            value = row[name]
            if not value:
                row[name] = '{"display_value":"","value":""}' if display == "all" else '""'
                continue
            there = f'"link":"{self._base}{target}/{value}"'
            if display == "false":
                row[name] = f'{{{there},"value":"{value}"}}' if link else f'"{value}"'
                continue
            shown = encode_basestring_ascii(self._display(target, value))
            if display == "true":
                row[name] = f'{{"display_value":{shown},{there}}}' if link else shown
            else:
                more = f",{there}" if link else ""
                row[name] = f'{{"display_value":{shown},"value":"{value}"{more}}}'

    def _instants(self, row: Row, names: list[str]) -> None:
        shown = self._zone.display
        for name in names:
            value = row[name]
            row[f"{name}.d"] = "" if value == "" else shown(value)
            row[name] = "" if value == "" else stamps.stored(value)

    def _durations(self, row: Row, names: list[str]) -> None:
        for name in names:
            value = row[name]
            row[f"{name}.d"] = "" if value == "" else stamps.duration_display(value)
            row[name] = "" if value == "" else stamps.stored(value)

    def _dates(self, row: Row, names: list[str]) -> None:
        for name in names:
            row[f"{name}.d"] = self._zone.display_day(row[name])

    def _decimals(self, row: Row, names: list[str]) -> None:
        for name in names:
            value = row[name]
            row[f"{name}.d"] = f"${float(value):,.2f}" if value and name == "cost" else value


def _stored_instants(row: Row, names: list[str]) -> None:
    for name in names:
        value = row[name]
        row[name] = "" if value == "" else stamps.stored(value)


def _choices(row: Row, names: list[tuple[str, Mapping[str, str]]]) -> None:
    for name, labels in names:
        value = row[name]
        row[f"{name}.d"] = escaped(labels.get(value, value))
        row[name] = escaped(value)


def _texts(row: Row, names: list[str]) -> None:
    for name in names:
        row[name] = encode_basestring_ascii(row[name])[1:-1]


def spliced(text: str, splice: Splice) -> str:
    """A record's JSON with its damage."""
    if splice.whole is not None:
        return splice.whole
    changes = dict(splice.columns)
    cells = {name: json.dumps(value) for name, value in json.loads(text).items()}
    kept = {name: changes.get(name, cell) for name, cell in cells.items()}
    return "{" + ",".join(f'"{n}":{cell}' for n, cell in kept.items() if cell is not None) + "}"
