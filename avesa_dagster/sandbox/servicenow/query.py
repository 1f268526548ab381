"""Encoded queries, read the way the service reads them: what it does not understand, it drops.

`^` AND, `^OR`, `^NQ` (OR of whole blocks), `= != > >= < <=`, `IN`, `LIKE`, `STARTSWITH`,
`ENDSWITH`, `BETWEENa@b`, `ISEMPTY`, `ISNOTEMPTY`, `ORDERBY`, `ORDERBYDESC` [SND]. A clause on a
column that the table has not, with an operator that there is not, comparing a date-time with
something else than a date, or anything with less or more than nothing, disappears without a word,
and more rows match. Date literals are UTC;
`javascript:gs.dateGenerate('2024-01-01','00:00:00')` is in the time zone of the user. A value that
is missing satisfies only `ISEMPTY`, `=` with nothing, and `!=`; text compares without regard to
case. [INF]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from avesa_dagster.sandbox.servicenow import stamps
from avesa_dagster.sandbox.servicenow.schema import Column
from avesa_dagster.sandbox.servicenow.stamps import Zone

_CLAUSE = re.compile(
    r"(?P<field>[a-z][a-z0-9_]*)"
    r"(?P<op>>=|<=|!=|=|>|<|ISNOTEMPTY|ISEMPTY|IN|LIKE|STARTSWITH|ENDSWITH|BETWEEN)"
    r"(?P<value>.*)",
    re.DOTALL,
)
_GENERATE = re.compile(
    r"javascript:\s*gs\.dateGenerate\(\s*'([\d-]+)'\s*,\s*'([\d:]+)'\s*\)\s*;?\s*"
)
_INSTANTS = ("glide_date_time",)
_NUMBERS = ("integer", "decimal", "glide_duration")

Value = Callable[[str], Any]
"""Gives a record's stored value of a column."""


@dataclass(frozen=True, slots=True)
class Clause:
    """`field op operands`; instants are whole seconds, numbers floats, all else lower-case text."""

    field: str
    op: str
    operands: tuple[Any, ...] = ()
    kind: str = "string"

    def holds(self, value: Value) -> bool:
        """Whether a record satisfies it."""
        stored = value(self.field)
        missing = stored is None or stored == ""
        if self.op in ("ISEMPTY", "ISNOTEMPTY"):
            return missing == (self.op == "ISEMPTY")
        if missing:
            return self.op == "!=" or (self.op == "=" and self.operands == ("",))
        mine = self._comparable(stored)
        if mine is None:
            return self.op == "!="
        return self._compare(mine)

    def _comparable(self, stored: Any) -> Any:
        if self.kind in _INSTANTS:
            return stored
        if self.kind not in _NUMBERS or self.op not in _ORDERINGS:
            return str(stored).lower()
        try:
            return float(stored)
        except ValueError:
            return None

    def _compare(self, mine: Any) -> bool:
        first = self.operands[0]
        match self.op:
            case "=":
                return bool(mine == first)
            case "!=":
                return bool(mine != first)
            case ">=":
                return bool(mine >= first)
            case ">":
                return bool(mine > first)
            case "<=":
                return bool(mine <= first)
            case "<":
                return bool(mine < first)
            case "IN":
                return mine in self.operands
            case "BETWEEN":
                return bool(first <= mine <= self.operands[1])
            case "STARTSWITH":
                return str(mine).startswith(first)
            case "ENDSWITH":
                return str(mine).endswith(first)
        return first in str(mine)


_ORDERINGS = (">=", ">", "<=", "<", "BETWEEN", "=", "!=")
_NEED_A_VALUE = (">=", ">", "<=", "<", "BETWEEN")
_TEXTUAL = ("LIKE", "STARTSWITH", "ENDSWITH")

Alternatives = tuple[Clause, ...]
Block = tuple[Alternatives, ...]
"""Clauses joined by OR, and those joined by AND; an empty block matches every record."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is left of an encoded query, and what was dropped from it."""

    blocks: tuple[Block, ...] = ((),)
    order: tuple[tuple[str, bool], ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def impossible(self) -> Query:
        """The query that no record satisfies."""
        return Query((), self.order, self.dropped)


def parse(text: str, columns: Mapping[str, Column], zone: Zone) -> Query:
    """Read an encoded query against a table's columns for a user of some time zone."""
    order: list[tuple[str, bool]] = []
    dropped: list[str] = []
    blocks: list[Block] = []
    for part in text.split("^NQ"):
        block: list[list[Clause]] = []
        open_group = False
        for piece in filter(None, part.split("^")):
            if piece.startswith("ORDERBY"):
                _read_order(piece, columns, order, dropped)
                continue
            alternative = piece.startswith("OR")
            clause = _read(piece[2:] if alternative else piece, columns, zone)
            if not alternative:
                open_group = False
            if clause is None:
                dropped.append(piece)
            elif alternative and open_group:
                block[-1].append(clause)
            else:
                block.append([clause])
                open_group = True
        blocks.append(tuple(tuple(group) for group in block))
    return Query(tuple(blocks), tuple(order), tuple(dropped))


def _read_order(
    piece: str, columns: Mapping[str, Column], order: list[tuple[str, bool]], dropped: list[str]
) -> None:
    descending = piece.startswith("ORDERBYDESC")
    name = piece[len("ORDERBYDESC" if descending else "ORDERBY") :]
    if name in columns:
        order.append((name, descending))
    else:
        dropped.append(piece)


def _read(text: str, columns: Mapping[str, Column], zone: Zone) -> Clause | None:
    """One clause, or None if the service would drop it."""
    found = _CLAUSE.fullmatch(text)
    if found is None or found["field"] not in columns:
        return None
    field, op, value = found["field"], found["op"], found["value"]
    kind = columns[field].kind
    if op in ("ISEMPTY", "ISNOTEMPTY"):
        return Clause(field, op, (), kind) if not value else None
    texts = value.split(",") if op == "IN" else [value]
    if op == "BETWEEN":
        texts = value.split("@")
        if len(texts) != 2:
            return None
    operands = tuple(_operand(one, kind, op, zone) for one in texts)
    return None if None in operands else Clause(field, op, operands, kind)


def _operand(text: str, kind: str, op: str, zone: Zone) -> Any:
    """A value to compare with, or None if it makes no sense."""
    if text == "" and op in _NEED_A_VALUE:
        return None
    if kind in _INSTANTS:
        if op in _TEXTUAL:
            return None
        if text == "" and op in ("=", "!="):
            return ""
        generated = _GENERATE.fullmatch(text)
        if generated is not None:
            return zone.instant(f"{generated[1]} {generated[2]}")
        return stamps.read(text)
    if text.startswith("javascript:"):
        return None
    if kind in _NUMBERS and op in _ORDERINGS and text != "":
        try:
            return float(text)
        except ValueError:
            return None
    return text.lower()


def matches(block: Block, value: Value) -> bool:
    """Whether a record satisfies all of a block."""
    return all(any(clause.holds(value) for clause in group) for group in block)
