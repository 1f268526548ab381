"""Records as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from avesa_dagster.sandbox.salesforce.fields import COMPOUND, Field
from avesa_dagster.sandbox.salesforce.finding import column
from avesa_dagster.sandbox.salesforce.ids import IdMaker
from avesa_dagster.sandbox.salesforce.instants import bulk_text
from avesa_dagster.sandbox.salesforce.plan import Plan, Resolved, Schema
from avesa_dagster.sandbox.salesforce.table import Table
from avesa_dagster.sandbox.salesforce.values import ABSENT, Batch, Column

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_SAFE = frozenset(["id", "reference", "datetime", "date"])
_LARGE = 1e7
DELIMITERS = {
    "COMMA": ",", "TAB": "\t", "PIPE": "|", "SEMICOLON": ";", "CARET": "^", "BACKQUOTE": "`",
}  # fmt: skip
LINE_ENDINGS = {"LF": "\n", "CRLF": "\r\n"}


def to_bytes(text: str) -> bytes:
    """UTF-8; what is no text (a lone surrogate) becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def _texts(about: Field, values: Column, odd: bool) -> list[str]:
    """The JSON of each value. `odd`: some may be of another type than the field's."""
    if odd:
        return ["" if value is ABSENT else _encode(value) for value in values]
    if about.type in _SAFE:
        return ["null" if value is None else f'"{value}"' for value in values]
    if about.type == "boolean":
        return ["true" if value else "false" for value in values]
    if about.type in ("int", "double", "currency", "percent"):
        return ["null" if value is None else repr(value) for value in values]
    known: dict[Any, str] = {None: "null"}
    texts = []
    for value in values:
        if value.__class__ is dict:
            texts.append(_encode(value))
            continue
        text = known.get(value)
        if text is None:
            text = known[value] = encode_basestring(value)
        texts.append(text)
    return texts


def as_json(
    schema: Schema,
    table: Table,
    batch: Batch,
    fields: Sequence[Resolved],
    version: str,
    nested: Mapping[str, list[str]] | None = None,
) -> list[str]:
    """The objects of a batch, each with its `attributes`; relationships are objects in objects.

    Args:
        version: of the API, for the URLs: `v60.0`.
        nested: JSON of the results of child subqueries, by relationship name.
    """
    name = table.info.name
    make = IdMaker(table.info.prefix).make
    names: list[str] = []
    columns: list[list[str]] = []
    for key, group in _groups(fields).items():
        names.append(key)
        if not group[0].steps:
            about = group[0].about
            odd = any(about.name in changed for changed in batch.changes.values())
            columns.append(_texts(about, batch.column(about.name), odd))
        else:
            columns.append(_parents(schema, batch, group, version))
    for key, column_of in (nested or {}).items():
        names.append(key)
        columns.append(column_of)
    head = f'{{"attributes":{{"type":"{name}","url":"/services/data/{version}/sobjects/{name}/'
    form = head + '%s"}' + "".join(f',"{key}":%s' for key in names) + "}"
    ids = [make(number) for number in batch.numbers]
    rows = [form % row for row in zip(ids, *columns, strict=True)]
    for at, changed in batch.changes.items():
        if ABSENT in changed.values():
            kept = [(key, texts[at]) for key, texts in zip(names, columns, strict=True)]
            body = "".join(f',"{key}":{text}' for key, text in kept if text)
            rows[at] = f'{head}{ids[at]}"}}{body}}}'
    return rows


def _groups(fields: Sequence[Resolved]) -> dict[str, list[Resolved]]:
    """The fields by the first name of their path, in the order of first mention."""
    groups: dict[str, list[Resolved]] = {}
    for one in fields:
        groups.setdefault(one.path[0], []).append(one)
    return groups


def _parents(schema: Schema, batch: Batch, group: list[Resolved], version: str) -> list[str]:
    """JSON of the records that a reference leads to, `null` where it leads nowhere."""
    step = group[0].steps[0]
    there = schema.tables[step.refers[0]]
    maker = IdMaker(there.info.prefix)
    numbers = [None if id is None else maker.number(id) for id in batch.raw(step.name)]
    distinct = sorted({n for n in numbers if n is not None and there.exists(n)})
    rest = [Resolved(one.path[1:], one.steps[1:], one.about) for one in group]
    texts = as_json(schema, there, there.batch(distinct), rest, version)
    found = dict(zip(distinct, texts, strict=True))
    return ["null" if n is None else found.get(n, "null") for n in numbers]


def values_of(
    table: Table, batch: Batch, wanted: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Values of records, as JSON has them, for the truth.

    Args:
        wanted: the fields; None: all but the compound ones.
    """
    simple = [name for name, about in table.fields.items() if about.type not in COMPOUND]
    names = simple if wanted is None else [name for name in wanted if name in table.fields]
    columns = [batch.column(name) for name in names]
    return [
        {k: v for k, v in zip(names, row, strict=True) if v is not ABSENT}
        for row in zip(*columns, strict=True)
    ]


# ---- CSV


def header(plan: Plan, version: float) -> list[Resolved]:
    """The columns of a result: in SELECT order from v50, by name before. [INF]"""
    fields = list(plan.fields)
    if version < 50:
        fields.sort(key=lambda one: ".".join(one.path).lower())
    return fields


def as_csv(
    read: Callable[[int, int], tuple[Schema, Batch]],
    fields: Sequence[Resolved],
    size: int,
    *,
    delimiter: str = ",",
    line_ending: str = "\n",
    short_ids: bool = False,
    twice: bool = False,
    at_once: int = 2000,
) -> Iterator[bytes]:
    """Pieces of a CSV with its header: everything quoted, null as the empty text.

    Args:
        read: gives the records from one place up to another.
        size: how many records there are.
        twice: the first column once more at the end, under the same name.
    """
    shown = [*fields, fields[0]] if twice else list(fields)
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=line_ending, quoting=csv.QUOTE_ALL)
    writer.writerow(".".join(one.path) for one in shown)
    for start in range(0, size, at_once):
        schema, batch = read(start, min(size, start + at_once))
        columns = [
            _cells(one.about, column(schema, batch, one), batch.numbers, short_ids) for one in shown
        ]
        writer.writerows(zip(*columns, strict=True))
        yield to_bytes(out.getvalue())
        out.seek(0)
        out.truncate()
    if out.tell():
        yield to_bytes(out.getvalue())


def _cells(about: Field, values: Column, numbers: Sequence[int], short_ids: bool) -> Column:
    """Values as CSV has them. Whole numbers come with `.0` now and then, large ones as 1.2E7."""
    match about.type:
        case "boolean":
            return ["true" if value else "false" for value in values]
        case "int":
            return [
                value if value is None or (value and n % 3) else f"{value}.0"
                for n, value in zip(numbers, values, strict=True)
            ]
        case "double" | "currency" | "percent":
            return [None if value is None else _double(value) for value in values]
        case "datetime":
            return [bulk_text(v) if isinstance(v, str) else v for v in values]
        case "reference" if short_ids:
            return [None if value is None else value[:15] for value in values]
    return ["" if value is ABSENT else value for value in values]


def _double(value: float) -> str:
    """As Java writes it. [GK]"""
    if abs(value) < _LARGE:
        return repr(value)
    digits, _, exponent = f"{value:.15e}".partition("e")
    digits = digits.rstrip("0")
    return f"{digits}{'0' if digits.endswith('.') else ''}E{int(exponent)}"
