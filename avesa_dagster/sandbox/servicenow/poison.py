"""Damaged records: each kind is something that a connector must survive, quarantine or report.

A kind says what the *database* holds as sys_updated_on (None is null, which no range matches), how
the served JSON is damaged, and whether the sys_id is a GUID.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from avesa_dagster.sandbox.servicenow import stamps
from avesa_dagster.sandbox.servicenow.schema import Column
from avesa_dagster.sandbox.servicenow.store import Splice

_HUGE_CHARACTERS = 5 * 1024 * 1024
_TEXTS = ("short_description", "notes", "message", "name", "state", "sys_created_by")


@dataclass(frozen=True, slots=True)
class Poisoned:
    """One damaged record; `odd_id` gives it a sys_id that is no GUID."""

    updated: int | None
    splice: Splice | None = None
    odd_id: bool = False


Maker = Callable[[Mapping[str, Column], int], Poisoned]


def _replaced(name: str, json_text: str | None) -> Maker:
    return lambda columns, at: Poisoned(at, Splice(((name, json_text),)))


def _text(json_text: str) -> Maker:
    """Damage in a text column, whichever the table has."""

    def make(columns: Mapping[str, Column], at: int) -> Poisoned:
        name = next(name for name in _TEXTS if name in columns)
        return Poisoned(at, Splice(((name, json_text),)))

    return make


def _whole(json_text: str) -> Maker:
    return lambda columns, at: Poisoned(at, Splice(whole=json_text))


def _instant(text: str) -> Maker:
    """The database and the row hold this instant alike."""
    return lambda columns, at: Poisoned(stamps.read(text))


def _reference(columns: Mapping[str, Column], at: int) -> Poisoned:
    """A reference as a bare number, not as text or object."""
    references = [column.name for column in columns.values() if column.kind == "reference"]
    return Poisoned(at, Splice(tuple((name, "17") for name in references[:1])))


POISONS: dict[str, Maker] = {
    "no_sys_id": _replaced("sys_id", None),
    "null_sys_id": _replaced("sys_id", "null"),
    "empty_sys_id": _replaced("sys_id", '""'),
    "number_sys_id": _replaced("sys_id", "12345"),
    "odd_sys_id": lambda columns, at: Poisoned(at, None, True),
    "no_updated": _replaced("sys_updated_on", None),
    "empty_updated": _replaced("sys_updated_on", '""'),
    "null_updated": lambda columns, at: Poisoned(None),
    "updated_garbage": _replaced("sys_updated_on", '"yesterday"'),
    "updated_displayed": _replaced("sys_updated_on", '"06/11/2025 05:00:00 AM"'),
    "year_0001": _instant("0001-01-01 00:00:00"),
    "year_9999": _instant("9999-12-31 23:59:59"),
    "huge_text": _text(json.dumps("x" * _HUGE_CHARACTERS)),
    "nuls": _text(json.dumps("\x00" * 50 + "a\x00b")),
    "number_value": _text("3"),
    "null_value": _text("null"),
    "wide_integer": _text(str(2**70)),
    "lone_surrogate": _text('"\\ud800"'),
    "deep_nesting": _text("[" * 400 + "]" * 400),
    "odd_reference": _reference,
    "empty_row": _whole("{}"),
    "null_row": _whole("null"),
    "text_row": _whole('"row"'),
}
"""Kind to maker. Those of one replaced column are hidden only from the JSON: queries find them."""
