"""Damaged records: each kind is something that a connector must survive, quarantine or report.

A kind takes a sound record and the current second, and gives the lastUpdated that the *database*
holds (what filters and orderings see; None is SQL null, which no range matches) and the bytes
that lists serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from avesa_dagster.sandbox.records import Payload, to_bytes
from avesa_dagster.sandbox.timestamps import seconds, stamp

Poisoned = tuple[int | None, bytes]
_HUGE_CHARACTERS = 5 * 1024 * 1024


def _without(name: str) -> Callable[[Payload, int], Poisoned]:
    def make(record: Payload, at: int) -> Poisoned:
        return at, to_bytes({key: value for key, value in record.items() if key != name})

    return make


def _with(**changes: object) -> Callable[[Payload, int], Poisoned]:
    return lambda record, at: (at, to_bytes(record | changes))


def _last_updated(
    text: str | None, database: int | None = None
) -> Callable[[Payload, int], Poisoned]:
    def make(record: Payload, at: int) -> Poisoned:
        info = {key: value for key, value in record["_info"].items() if key != "lastUpdated"}
        if text is not None:
            info["lastUpdated"] = text
        return (at if database is None else database), to_bytes(record | {"_info": info})

    return make


def _null_last_updated(record: Payload, at: int) -> Poisoned:
    return None, _last_updated(None)(record, at)[1]


def _literal(json_text: str) -> Callable[[Payload, int], Poisoned]:
    """An extra field `damage` whose value is this JSON, which Python would not write itself."""
    return lambda record, at: (at, to_bytes(record)[:-1] + f',"damage":{json_text}}}'.encode())


_YEAR_1 = math.floor(seconds("0001-01-01T00:00:00Z"))
_YEAR_9999 = math.floor(seconds("9999-12-31T23:59:59Z"))

POISONS: dict[str, Callable[[Payload, int], Poisoned]] = {
    "no_id": _without("id"),
    "null_id": _with(id=None),
    "text_id": _with(id="not-a-number"),
    "no_info": _without("_info"),
    "no_last_updated": _last_updated(None),
    "null_last_updated": _null_last_updated,
    "last_updated_garbage": _last_updated("yesterday"),
    "year_0001": _last_updated(stamp(_YEAR_1), _YEAR_1),
    "year_9999": _last_updated(stamp(_YEAR_9999), _YEAR_9999),
    "huge_text": _with(summary="x" * _HUGE_CHARACTERS),
    "nuls": _with(summary="\x00" * 50, notes="a\x00b"),
    "wide_integer": _literal(str(2**70)),
    "wide_float": _literal("1e400"),
    "lone_surrogate": _literal('"\\ud800"'),
    "deep_nesting": _literal("[" * 400 + "]" * 400),
}
"""Kind to maker. `no_last_updated` is hidden only from the payload: filters still find the row."""
