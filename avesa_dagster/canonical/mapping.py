"""Mappings as SQL: from a record's JSON to typed columns.

Every path of a mapping is taken from the payload in one pass (67,000 records a second and core).
A value that does not fit its field's type becomes null and is counted, never dropped in silence.

What the JSON says, and what a field holds:

| JSON | string | bool, int64, float64, datetime |
|---|---|---|
| absent, null | null | null |
| `""` | `''` | null, not counted: services write an empty value that way |
| a number | an integer's digits, all of them; else the nearest double, shortest | cast |
| true, false | `true`, `false` | cast |
| an object or a list | its JSON text | null, counted |
| text | itself, without NUL characters (raw keeps them) | cast |

Of a service that writes null as `""` (`blank_is_null`), a string field holds null there too.

int64 takes whole numbers within 64 bits; float64 takes the nearest double, which must be finite;
datetime takes ISO 8601 within the years 0001 to 9999 in UTC, and a text without a zone is UTC.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from avesa_dagster.catalog.models import (
    CanonicalTable,
    FieldType,
    FirstOf,
    ListPick,
    Opposite,
    Source,
)
from avesa_dagster.lake.database import identifier, literal
from avesa_dagster.lake.layout import UTC_MICROS

MAPPING_VERSION = 1
"""Goes up when the same mapping would give other values: every partition is then built anew."""

ARROW: dict[FieldType, pa.DataType] = {
    FieldType.STRING: pa.string(),
    FieldType.BOOL: pa.bool_(),
    FieldType.INT64: pa.int64(),
    FieldType.FLOAT64: pa.float64(),
    FieldType.DATETIME: UTC_MICROS,
}
SQL: dict[FieldType, str] = {
    FieldType.STRING: "VARCHAR",
    FieldType.BOOL: "BOOLEAN",
    FieldType.INT64: "BIGINT",
    FieldType.FLOAT64: "DOUBLE",
    FieldType.DATETIME: "TIMESTAMPTZ",
}

_WHOLE = r"\s*[+-]?[0-9]+(\.0*)?\s*"
_NUMBER = r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*"


@dataclass(frozen=True, slots=True)
class Projection:
    """A mapping as SQL, in three layers that are selected one over the other.

    Attributes:
        texts: A `VARCHAR[]` over column `payload`: the text at every path.
        columns: field -> typed expression over columns `texts`, `has_nul` and `payload`, one a
            field of the canonical table, in its order.
        failed: A `BIGINT` over `texts` and the typed columns: bit i is set if `checked[i]` had a
            value that did not fit.
        checked: The fields that can fail, at most 60 a mask; one tuple a mask.
    """

    texts: str
    columns: dict[str, str]
    failed: tuple[str, ...]
    checked: tuple[tuple[str, ...], ...]


def projection(
    table: CanonicalTable, mapping: Mapping[str, Source], *, blank_is_null: bool = False
) -> Projection:
    """The SQL of one service table's mapping.

    Args:
        table: The canonical table with its fields and types.
        mapping: field -> where the service keeps it; a field that is missing is null.
        blank_is_null: Whether an empty text is null.
    """
    paths = list(dict.fromkeys(path for source in mapping.values() for path in _paths(source)))
    slots = {path: f"texts[{number}]" for number, path in enumerate(paths, start=1)}
    listed = ", ".join(literal(_json_path(path)) for path in paths)
    values = {field: _value(source, slots) for field, source in mapping.items()}
    if blank_is_null:
        values = {field: f"nullif({value}, '')" for field, value in values.items()}
    columns = {}
    for field, kind in table.fields.items():
        value = values.get(field)
        columns[field] = f"NULL::{SQL[kind]}" if value is None else _typed(value, kind)
    fallible = [f for f, kind in table.fields.items() if f in values and kind != FieldType.STRING]
    groups = tuple(tuple(fallible[n : n + 60]) for n in range(0, len(fallible), 60))
    masks = tuple(
        " + ".join(
            f"CASE WHEN {values[field]} <> '' AND {identifier(field)} IS NULL "
            f"THEN {1 << bit} ELSE 0 END"
            for bit, field in enumerate(group)
        )
        for group in groups
    )
    return Projection(
        texts=f"json_extract_string(payload, [{listed}])",
        columns=columns,
        failed=tuple(f"({mask})::BIGINT" for mask in masks),
        checked=groups,
    )


def fingerprint(
    table: CanonicalTable, mapping: Mapping[str, Source], *, blank_is_null: bool = False
) -> str:
    """16 hex digits that change when the mapping, or what it means, changes."""
    said: dict[str, object] = {
        "version": MAPPING_VERSION,
        "fields": [[field, kind.value] for field, kind in table.fields.items()],
        "mapping": {
            field: source if isinstance(source, str) else source.model_dump(mode="json")
            for field, source in mapping.items()
        },
    }
    if blank_is_null:
        said["blank_is_null"] = True
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _paths(source: Source) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else source.paths()


def _json_path(path: str) -> str:
    return "$" + "".join(f'."{part}"' for part in path.split("."))


def _value(source: Source, slots: Mapping[str, str]) -> str:
    """The text of a source; null if it has none."""
    if isinstance(source, str):
        return slots[source]
    if isinstance(source, FirstOf):
        # An empty text holds no value as long as a later path has one.
        texts = [slots[path] for path in source.first]
        return f"coalesce({', '.join(f'''nullif({t}, '')''' for t in texts)}, {', '.join(texts)})"
    if isinstance(source, Opposite):
        # What is no bool stays as it is, and does not fit the field.
        text = slots[source.path]
        return f"coalesce((NOT TRY_CAST({text} AS BOOLEAN))::VARCHAR, {text})"
    return _picked(source, slots[source.list])


def _picked(source: ListPick, text: str) -> str:
    # A text at the list's place is no list, and need not be JSON.
    elements = f"json_extract(CASE WHEN json_valid({text}) THEN {text} END, '$[*]')"
    wanted = " AND ".join(
        f"json_extract_string(e, {literal(_json_path(path))}) = {literal(value)}"
        for path, value in source.where.items()
    )
    if wanted:
        elements = f"list_filter({elements}, lambda e: {wanted})"
    element = f"({elements})[1]"
    if source.prefer:
        true = f"json_extract_string(e, {literal(_json_path(source.prefer))}) = 'true'"
        element = f"coalesce(list_filter({elements}, lambda e: {true})[1], {element})"
    return f"json_extract_string({element}, {literal(_json_path(source.take))})"


def _typed(value: str, kind: FieldType) -> str:
    match kind:
        case FieldType.STRING:
            return f"CASE WHEN has_nul THEN replace({value}, chr(0), '') ELSE {value} END"
        case FieldType.BOOL:
            return f"TRY_CAST({value} AS BOOLEAN)"
        case FieldType.INT64:
            # Alone, TRY_CAST rounds 1.5 to 2 and reads 0x10 and 1_000.
            return _where_text(value, _WHOLE, f"TRY_CAST({value} AS BIGINT)")
        case FieldType.FLOAT64:
            cast = f"TRY_CAST({value} AS DOUBLE)"
            finite = f"CASE WHEN isfinite({cast}) THEN {cast} END"
            return _where_text(value, _NUMBER, finite)
        case FieldType.DATETIME:
            # DuckDB also takes 'epoch', 'infinity' and years that Python and pandas cannot hold.
            cast = f"TRY_CAST({value} AS TIMESTAMPTZ)"
            return (
                f"CASE WHEN left({value}, 1) BETWEEN '0' AND '9' AND {cast} BETWEEN "
                "TIMESTAMPTZ '0001-01-01 00:00:00+00' AND "
                f"TIMESTAMPTZ '9999-12-31 23:59:59.999999+00' THEN {cast} END"
            )


def _where_text(value: str, pattern: str, cast: str) -> str:
    return f"CASE WHEN regexp_full_match({value}, {literal(pattern)}) THEN {cast} END"
