"""Reads SOQL into a tree; whether the names in it exist is asked in `plan`.

SELECT lists (fields, `a.b`, `FIELDS(ALL|STANDARD|CUSTOM)`, COUNT() and other aggregates, child
subqueries, TYPEOF only to be refused), FROM, WHERE, GROUP BY, ORDER BY, LIMIT, OFFSET. As in the
original, AND and OR do not mix at one level without parentheses, NOT stands only first in its
level, instants and dates are not quoted, and an instant needs its zone. Named dates (`TODAY`),
INCLUDES, HAVING and FOR are not there: MALFORMED_QUERY.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal as Choice

from avesa_dagster.sandbox.salesforce.instants import read_date, read_datetime
from avesa_dagster.sandbox.salesforce.problems import ApiError

LONGEST = 100_000
Kind = Choice["string", "number", "datetime", "date", "boolean", "null"]
Path = tuple[str, ...]
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<datetime>\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:?\d\d))
    | (?P<date>\d{4}-\d\d-\d\d(?![\dTt]))
    | (?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w-]))
    | (?P<string>'(?:[^'\\]|\\.)*')
    | (?P<name>[A-Za-z_][\w.]*)
    | (?P<sign><=|>=|!=|<>|[=<>(),])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_FUNCTIONS = {"count", "count_distinct", "min", "max", "sum", "avg"}
_BY_DAY = {"day_only", "calendar_year", "calendar_month"}
_ENDS = {"from", "where", "group", "order", "limit", "offset", "and", "or", "asc", "desc", "nulls"}
_ENDS |= {"having", "for", "with", "using", "not", "in", "like", "select", "then", "else", "end"}


@dataclass(frozen=True, slots=True)
class Literal:
    """A value: text, a number, seconds since 1970 (`datetime`), a `YYYY-MM-DD`, a boolean, None."""

    kind: Kind
    value: str | float | bool | None


@dataclass(frozen=True, slots=True)
class Compare:
    """`path op literals`; op is one of = != < <= > >= LIKE IN NOT-IN."""

    path: Path
    op: str
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Both:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Node


Node = Compare | Both | Either | Not


@dataclass(frozen=True, slots=True)
class Item:
    """Something selected or grouped by: a field, a function of one, or `FIELDS(kind)`."""

    path: Path
    function: str | None = None
    alias: str | None = None

    @property
    def aggregate(self) -> bool:
        return self.function in _FUNCTIONS


@dataclass(frozen=True, slots=True)
class Order:
    path: Path
    descending: bool
    nulls_first: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A statement. `where_text` and `order_text` are as they were written."""

    items: tuple[Item | Query, ...]
    table: str
    where: Node | None = None
    group_by: tuple[Item, ...] = ()
    order: tuple[Order, ...] = ()
    limit: int | None = None
    offset: int = 0
    typeof: bool = False
    where_text: str | None = None
    order_text: str | None = None

    @property
    def aggregate(self) -> bool:
        own = (item for item in self.items if isinstance(item, Item))
        return bool(self.group_by) or any(item.aggregate for item in own)

    @property
    def counts_only(self) -> bool:
        """Whether it is the `SELECT COUNT()` that answers with no record."""
        return self.items == (Item((), "count"),)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def malformed(message: str) -> ApiError:
    return ApiError("MALFORMED_QUERY", message)


def parse(text: str) -> Query:
    """Read a statement.

    Raises:
        ApiError: MALFORMED_QUERY.
    """
    if len(text) > LONGEST:
        raise malformed(f"SOQL statements cannot be longer than {LONGEST} characters.")
    parser = _Parser(text)
    query = parser.query()
    parser.expect_end()
    return query


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan(text))
        self._at = 0

    def _scan(self, text: str) -> list[_Token]:
        tokens, at = [], 0
        text_end = len(text.rstrip())
        while at < text_end:
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                rest = text[at:].strip()
                raise malformed(f"line 1:{at} no viable alternative at '{rest[:20]}'")
            kind = found.lastgroup
            tokens.append(_Token(kind, found[kind], found.start(kind), found.end()))
            at = found.end()
        return tokens

    # ---- tokens

    def _peek(self, ahead: int = 0) -> _Token:
        place = self._at + ahead
        end = len(self._text)
        return self._tokens[place] if place < len(self._tokens) else _Token("end", "", end, end)

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def _unexpected(self) -> ApiError:
        token = self._peek()
        return malformed(f"unexpected token: '{token.text or '<EOF>'}' at column {token.start + 1}")

    def _is(self, *words: str) -> bool:
        token = self._peek()
        return token.kind in ("name", "sign") and token.text.lower() in words

    def _take(self, *words: str) -> bool:
        if self._is(*words):
            self._at += 1
            return True
        return False

    def _need(self, *words: str) -> None:
        if not self._take(*words):
            raise self._unexpected()

    def _name(self) -> str:
        token = self._peek()
        if token.kind != "name" or token.text.lower() in _ENDS:
            raise self._unexpected()
        return self._next().text

    def _path(self) -> Path:
        path = tuple(self._name().split("."))
        if not all(path):
            raise self._unexpected()
        return path

    def expect_end(self) -> None:
        if self._peek().kind != "end":
            raise self._unexpected()

    # ---- statement

    def query(self) -> Query:
        self._need("select")
        items: list[Item | Query] = []
        typeof = False
        while True:
            if self._is("typeof"):
                typeof = True
                while not self._take("end"):
                    if self._next().kind == "end":
                        raise self._unexpected()
            else:
                items.append(self._item())
            if not self._take(","):
                break
        self._need("from")
        if self._peek().kind != "name":  # Order is an object, too
            raise self._unexpected()
        table = self._next().text
        alias = None
        if self._peek().kind == "name" and self._peek().text.lower() not in _ENDS:
            alias = self._name()
        where, where_text = None, None
        if self._take("where"):
            start = self._peek().start
            where = self._condition()
            where_text = self._since(start)
        group_by = self._group_by()
        order: tuple[Order, ...] = ()
        order_text = None
        if self._take("order"):
            self._need("by")
            start = self._peek().start
            order = self._order_by()
            order_text = self._since(start)
        limit = self._whole() if self._take("limit") else None
        offset = self._whole() if self._take("offset") else 0
        query = Query(
            tuple(items), table, where, group_by, order, limit, offset, typeof,
            where_text, order_text,
        )  # fmt: skip
        return query if alias is None else _without_alias(query, alias)

    def _since(self, start: int) -> str:
        return self._text[start : self._tokens[self._at - 1].end]

    def _whole(self) -> int:
        token = self._peek()
        if token.kind != "number" or not token.text.isdigit():
            raise self._unexpected()
        return int(self._next().text)

    def _item(self) -> Item | Query:
        if self._take("("):
            inner = self.query()
            self._need(")")
            return inner
        item = self._field()
        token = self._peek()
        if item.function and token.kind == "name" and token.text.lower() not in _ENDS:
            return Item(item.path, item.function, self._name())
        return item

    def _field(self) -> Item:
        """A field, or a function of one."""
        after = self._peek(1)
        if not (after.kind == "sign" and after.text == "("):
            return Item(self._path())
        function = self._peek().text.lower()
        if function not in _FUNCTIONS | _BY_DAY | {"fields"}:
            raise self._unexpected()
        self._at += 2
        if function == "count" and self._take(")"):
            return Item((), "count")
        path = self._path()
        self._need(")")
        if function == "fields" and path[0].upper() not in ("ALL", "STANDARD", "CUSTOM"):
            raise malformed(f"unexpected token: '{path[0]}'")
        return Item(path, function)

    def _group_by(self) -> tuple[Item, ...]:
        if not self._take("group"):
            return ()
        self._need("by")
        items = [self._field()]
        while self._take(","):
            items.append(self._field())
        return tuple(items)

    def _order_by(self) -> tuple[Order, ...]:
        order = []
        while True:
            path = self._path()
            descending = self._take("desc")
            if not descending:
                self._take("asc")
            first = not descending
            if self._take("nulls"):
                first = self._is("first")
                self._need("first", "last")
            order.append(Order(path, descending, first))
            if not self._take(","):
                return tuple(order)

    # ---- conditions

    def _condition(self) -> Node:
        """One level: a single condition, or several joined by one and the same word."""
        if self._take("not"):
            first: Node = Not(self._one())
        else:
            first = self._one()
        parts, joined = [first], None
        while self._is("and", "or"):
            word = self._peek().text.lower()
            if joined not in (None, word):
                raise self._unexpected()
            joined = word
            self._at += 1
            parts.append(self._one())
        if joined is None:
            return first
        return Both(tuple(parts)) if joined == "and" else Either(tuple(parts))

    def _one(self) -> Node:
        if self._take("("):
            node = self._condition()
            self._need(")")
            return node
        path = self._path()
        if self._take("in"):
            return Compare(path, "IN", self._values())
        if self._take("not"):
            self._need("in")
            return Compare(path, "NOT-IN", self._values())
        if self._take("like"):
            value = self._value()
            if value.kind != "string":
                raise self._unexpected()
            return Compare(path, "LIKE", (value,))
        if not self._is("=", "!=", "<>", "<", "<=", ">", ">="):
            raise self._unexpected()
        op = self._next().text
        return Compare(path, "!=" if op == "<>" else op, (self._value(),))

    def _values(self) -> tuple[Literal, ...]:
        self._need("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._need(")")
        return tuple(values)

    def _value(self) -> Literal:
        token = self._peek()
        value = _literal(token)
        if value is None:
            raise self._unexpected()
        self._at += 1
        return value


def _literal(token: _Token) -> Literal | None:
    match token.kind:
        case "string":
            return Literal("string", _unescape(token.text[1:-1]))
        case "number":
            return Literal("number", float(token.text))
        case "datetime":
            at = read_datetime(token.text)
            return None if at is None else Literal("datetime", at)
        case "date":
            return None if read_date(token.text) is None else Literal("date", token.text)
        case "name" if token.text.lower() in ("true", "false"):
            return Literal("boolean", token.text.lower() == "true")
        case "name" if token.text.lower() == "null":
            return Literal("null", None)
    return None


def _unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] == "u":
            return chr(int(code[1:], 16))
        return _ESCAPES.get(code, code if code not in "%_" else "\\" + code)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, text, flags=re.DOTALL)


def _without_alias(query: Query, alias: str) -> Query:
    """The statement with `alias.field` written as `field`."""

    def path(given: Path) -> Path:
        return given[1:] if len(given) > 1 and given[0].lower() == alias.lower() else given

    def node(given: Node) -> Node:
        if isinstance(given, Compare):
            return replace(given, path=path(given.path))
        if isinstance(given, Not):
            return Not(node(given.part))
        return type(given)(tuple(map(node, given.parts)))

    return replace(
        query,
        items=tuple(
            replace(item, path=path(item.path)) if isinstance(item, Item) else item
            for item in query.items
        ),
        where=None if query.where is None else node(query.where),
        group_by=tuple(replace(item, path=path(item.path)) for item in query.group_by),
        order=tuple(replace(one, path=path(one.path)) for one in query.order),
    )
