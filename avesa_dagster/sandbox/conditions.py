"""The `conditions` language of ConnectWise, read strictly.

Source: fact page, Conditions [DG]. Strings `"x"`, integers bare, `True`/`False`, `null`, dates
`[2024-01-01T00:00:00Z]`; `= != < <= > >= contains like in not`; `AND`/`OR`, parentheses; the path
separator is `/`. Anything else is a `ConditionError`, which the service answers with 400: a
simulator that guessed at a malformed filter would hide the mistake.

Comparison follows SQL: a missing value compares as unknown, so `x != 5` does not match a row
without `x`, and text compares without regard to case. [INF]
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from avesa_dagster.sandbox.timestamps import seconds

Value = str | int | float | bool | None
Lookup = Callable[[str], Any]
"""Gives a row's value at a path; lists stand for any of their elements."""


class ConditionError(ValueError):
    """The filter cannot be read, or compares a field with a value of the wrong type."""


@dataclass(frozen=True, slots=True)
class Date:
    """A date literal, in seconds since 1970 UTC."""

    epoch: float


Literal = Value | Date


@dataclass(frozen=True, slots=True)
class Compare:
    """`path op value`; op is one of `= != < <= > >= like contains`."""

    path: str
    op: str
    value: Literal


@dataclass(frozen=True, slots=True)
class In:
    """`path in (a, b, …)`."""

    path: str
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Not:
    term: Node


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Node, ...]


Node = Compare | In | Not | And | Or

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<date>\[[^\[\]"]*\])
    | (?P<text>"[^"]*")
    | (?P<number>-?\d+(?:\.\d+)?(?![\w.]))
    | (?P<op><=|>=|!=|=|<|>)
    | (?P<mark>[(),])
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*(?:/[A-Za-z0-9_]+)*)
    )""",
    re.VERBOSE,
)
_KEYWORDS = {"and", "or", "not", "in", "like", "contains", "null", "true", "false"}
_INFO_ALIASES = {"lastUpdated", "updatedBy", "dateEntered", "enteredBy"}


class _Reader:
    """Recursive descent: or → and → not → term."""

    def __init__(self, text: str, fields: frozenset[str] | None) -> None:
        self._fields = fields
        self._tokens = list(self._scan(text))
        self._at = 0

    @staticmethod
    def _scan(text: str) -> Iterator[tuple[str, str]]:
        at = 0
        end = len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                raise ConditionError(f"unexpected text at position {at}: {text[at : at + 20]!r}")
            kind = match.lastgroup or ""
            value = match.group(kind)
            if kind == "word" and value.lower() in _KEYWORDS:
                kind, value = "key", value.lower()
            yield kind, value
            at = match.end()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, kind: str, value: str | None = None) -> str:
        found = self._peek()
        if found[0] != kind or (value is not None and found[1] != value):
            raise ConditionError(f"expected {value or kind}, found {found[1] or 'the end'!r}")
        self._at += 1
        return found[1]

    def _accept(self, kind: str, value: str) -> bool:
        if self._peek() == (kind, value):
            self._at += 1
            return True
        return False

    def read(self) -> Node:
        node = self._any()
        if self._peek()[0] != "end":
            raise ConditionError(f"unexpected {self._peek()[1]!r}")
        return node

    def _any(self) -> Node:
        terms = [self._all()]
        while self._accept("key", "or"):
            terms.append(self._all())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _all(self) -> Node:
        terms = [self._one()]
        while self._accept("key", "and"):
            terms.append(self._one())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _one(self) -> Node:
        if self._accept("key", "not"):
            return Not(self._one())
        if self._accept("mark", "("):
            node = self._any()
            self._take("mark", ")")
            return node
        return self._comparison()

    def _comparison(self) -> Node:
        path = self._path()
        negated = self._accept("key", "not")
        node: Node
        if self._accept("key", "in"):
            self._take("mark", "(")
            values = [self._literal(path)]
            while self._accept("mark", ","):
                values.append(self._literal(path))
            self._take("mark", ")")
            node = In(path, tuple(values))
        else:
            kind, op = self._peek()
            wordy = kind == "key" and op in ("like", "contains")
            if not wordy and (negated or kind != "op"):
                raise ConditionError(f"expected a comparison after {path!r}, found {op!r}")
            self._at += 1
            value = self._literal(path)
            if wordy and not isinstance(value, str):
                raise ConditionError(f"{op} needs a string after {path!r}")
            if value is None and op not in ("=", "!="):
                raise ConditionError(f"{path!r} {op} null is not a comparison")
            node = Compare(path, op, value)
        return Not(node) if negated else node

    def _path(self) -> str:
        path = self._take("word")
        if self._fields is not None and path.split("/")[0] not in self._fields:
            raise ConditionError(f"{path!r} is not a field of this object")
        return f"_info/{path}" if path in _INFO_ALIASES else path

    def _literal(self, path: str) -> Literal:
        kind, text = self._peek()
        self._at += 1
        value: Literal
        if kind == "text":
            value = text[1:-1].replace("[[]", "[")
        elif kind == "number":
            value = float(text) if "." in text else int(text)
        elif kind == "date":
            try:
                value = Date(seconds(text[1:-1]))
            except ValueError:
                raise ConditionError(f"{text} is not a date") from None
        elif kind == "key" and text in ("true", "false"):
            value = text == "true"
        elif kind == "key" and text == "null":
            value = None
        else:
            raise ConditionError(f"expected a value after {path!r}, found {text or 'the end'!r}")
        _check_type(path, value)
        return value


def _check_type(path: str, value: Literal) -> None:
    if value is None:
        return
    if path == "id" and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConditionError("id compares with an integer")
    dated = path in ("_info/lastUpdated", "_info/dateEntered")
    if dated and not isinstance(value, Date):
        raise ConditionError(f"{path} compares with a date in square brackets")


def parse(text: str, fields: frozenset[str] | None = None) -> Node:
    """Read one condition.

    Args:
        text: the decoded value of the `conditions` parameter, not empty.
        fields: the root names that may be compared; None allows any.

    Raises:
        ConditionError: it is not a condition.
    """
    return _Reader(text, fields).read()


def matches(node: Node, lookup: Lookup) -> bool:
    """Whether a row satisfies the condition (unknown counts as no)."""
    return _truth(node, lookup) is True


def _truth(node: Node, lookup: Lookup) -> bool | None:
    match node:
        case And(terms):
            return _all_of(_truth(term, lookup) for term in terms)
        case Or(terms):
            verdict = _all_of(_negate(_truth(term, lookup)) for term in terms)
            return _negate(verdict)
        case Not(term):
            return _negate(_truth(term, lookup))
        case In(path, values):
            verdict = _all_of(
                _negate(_compare(lookup(path), "=", v)) for v in values if v is not None
            )
            return _negate(verdict)
        case Compare(path, op, value):
            return _compare(lookup(path), op, value)


def _negate(verdict: bool | None) -> bool | None:
    return None if verdict is None else not verdict


def _all_of(verdicts: Iterator[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


def _compare(found: Any, op: str, value: Literal) -> bool | None:
    if value is None:
        return (found is None) == (op == "=")
    if found is None:
        return None
    if isinstance(found, list):
        return any(_compare(element, op, value) is True for element in found)
    if isinstance(value, Date):
        value = value.epoch
        if isinstance(found, str):
            try:
                found = seconds(found)
            except ValueError:
                return None
    if isinstance(value, str):
        if not isinstance(found, str):
            return None
        return _compare_text(found.casefold(), op, value.casefold())
    if isinstance(found, str) or not isinstance(found, (int, float)):
        return None
    return _ORDER[op](found, value)


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _compare_text(found: str, op: str, value: str) -> bool:
    if op == "contains":
        return value in found
    if op == "like":
        pattern = ".*".join(re.escape(part) for part in value.split("*"))
        return re.fullmatch(pattern, found, re.DOTALL) is not None
    return _ORDER[op](found, value)


@dataclass(frozen=True, slots=True)
class Interval:
    """Whole numbers from `low` up to, not including, `high`."""

    low: float = -math.inf
    high: float = math.inf

    def also(self, op: str, value: float) -> Interval:
        """This interval cut down to the numbers for which `number op value`."""
        low = {">": math.floor(value) + 1, ">=": math.ceil(value), "=": math.ceil(value)}
        high = {"<": math.ceil(value), "<=": math.floor(value) + 1, "=": math.floor(value) + 1}
        return Interval(
            max(self.low, low.get(op, -math.inf)), min(self.high, high.get(op, math.inf))
        )

    def __contains__(self, number: float) -> bool:
        return self.low <= number < self.high

    def overlaps(self, other: Interval) -> bool:
        """Whether some number is in both."""
        return max(self.low, other.low) < min(self.high, other.high)

    @property
    def everything(self) -> bool:
        return self.low == -math.inf and self.high == math.inf


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition split into what the indexes answer and what must be asked of each row."""

    ids: Interval = field(default_factory=Interval)
    updated: Interval = field(default_factory=Interval)
    one_of: frozenset[int] | None = None
    residual: Node | None = None

    @property
    def everything(self) -> bool:
        return (
            self.ids.everything
            and self.updated.everything
            and self.one_of is None
            and self.residual is None
        )


def plan(node: Node | None) -> Filter:
    """Split a condition; a condition of None selects every row."""
    ids, updated = Interval(), Interval()
    one_of: frozenset[int] | None = None
    rest: list[Node] = []
    for term in _conjuncts(node):
        match term:
            case Compare("id", op, int(value)) if op in ("=", "<", "<=", ">", ">="):
                ids = ids.also(op, value)
            case Compare("_info/lastUpdated", op, Date(epoch)) if op != "!=":
                updated = updated.also(op, epoch)
            case In("id", values):
                chosen = frozenset(v for v in values if isinstance(v, int))
                one_of = chosen if one_of is None else one_of & chosen
            case _:
                rest.append(term)
    residual = None if not rest else rest[0] if len(rest) == 1 else And(tuple(rest))
    return Filter(ids, updated, one_of, residual)


def without_keyset(node: Node | None) -> str:
    """A name for the stream of pages a request belongs to: its condition less `id > n`."""
    kept = [
        repr(term)
        for term in _conjuncts(node)
        if not (isinstance(term, Compare) and term.path == "id" and term.op in (">", ">="))
    ]
    return " AND ".join(kept)


def _conjuncts(node: Node | None) -> Iterator[Node]:
    if isinstance(node, And):
        for term in node.terms:
            yield from _conjuncts(term)
    elif node is not None:
        yield node
