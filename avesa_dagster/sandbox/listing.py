"""What one list request asks for, and the page that answers it.

Sources: fact page, Lists and Pagination [DG][OAS][LAZY].
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from avesa_dagster.sandbox.conditions import (
    ConditionError,
    Filter,
    Interval,
    Node,
    parse,
    plan,
    without_keyset,
)
from avesa_dagster.sandbox.records import to_bytes
from avesa_dagster.sandbox.schema import FIELDS
from avesa_dagster.sandbox.table import Table
from avesa_dagster.sandbox.wire import Request

DEFAULT_PAGE_SIZE = 25
LARGEST_PAGE_SIZE = 1000
_INFO = {"lastUpdated", "updatedBy", "dateEntered", "enteredBy"}
_UNSUPPORTED = ("childConditions", "customFieldConditions")


class BadRequest(ValueError):
    """The service answers 400 with this message."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A list or count request, read."""

    filter: Filter
    stream: str
    page: int = 1
    size: int = DEFAULT_PAGE_SIZE
    after: int | None = None
    forward_only: bool = False
    order: tuple[tuple[str, bool], ...] = ()
    fields: tuple[str, ...] = ()


@dataclass(slots=True)
class Page:
    """Rows as served, the value of the Link header (None: no header), and all matching ids."""

    rows: list[bytes]
    link: str | None
    matching: Sequence[int]


def read(request: Request, table: str, clamp: int, *, paged: bool = True) -> Ask:
    """Read a list request, or with `paged` False a count.

    Raises:
        BadRequest: a parameter is malformed, unsupported, or names an unknown field.
    """
    values = dict(request.query)
    if request.method == "POST":
        values |= _search_body(request.body)
    for name in _UNSUPPORTED:
        if values.get(name):
            raise BadRequest(f"{name} is not supported by this simulator")
    node = _condition(values.get("conditions", ""), table)
    filter, stream = plan(node), without_keyset(node)
    if not paged:
        return Ask(filter, stream)
    size = min(_positive(values, "pageSize", DEFAULT_PAGE_SIZE), LARGEST_PAGE_SIZE, clamp)
    fields = tuple(name.replace(".", "/") for name in values.get("fields", "").split(",") if name)
    order = _order(values.get("orderBy", ""), table)
    if request.headers.get("pagination-type", "").lower() == "forward-only":
        if order:
            raise BadRequest("orderBy is not permitted with forward-only pagination")
        after = _whole(values, "pageId", 0)
        return Ask(filter, stream, 1, size, after, True, (), fields)
    return Ask(filter, stream, _positive(values, "page", 1), size, order=order, fields=fields)


def _search_body(body: bytes) -> dict[str, str]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(found, dict):
        raise BadRequest("the body is not an object")
    return {str(key): str(value) for key, value in found.items() if value is not None}


def _condition(text: str, table: str) -> Node | None:
    if not text.strip():
        return None
    try:
        return parse(text, FIELDS[table])
    except ConditionError as error:
        raise BadRequest(f"conditions are invalid: {error}") from None


def _whole(values: dict[str, str], name: str, default: int) -> int:
    text = values.get(name) or str(default)
    if not text.isdigit():
        raise BadRequest(f"{name} is not a whole number: {text!r}")
    return int(text)


def _positive(values: dict[str, str], name: str, default: int) -> int:
    number = _whole(values, name, default)
    if number < 1:
        raise BadRequest(f"{name} must be at least 1")
    return number


def _order(text: str, table: str) -> tuple[tuple[str, bool], ...]:
    order = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        path, _, direction = part.partition(" ")
        direction = direction.strip().lower() or "asc"
        if path.split("/")[0] not in FIELDS[table] or direction not in ("asc", "desc"):
            raise BadRequest(f"orderBy is invalid: {part!r}")
        order.append((f"_info/{path}" if path in _INFO else path, direction == "desc"))
    return tuple(order)


def answer(
    table: Table,
    ask: Ask,
    permitted: Callable[[Sequence[int]], Sequence[int]],
    request: Request,
    ties: int | None = None,
) -> Page:
    """Make the page.

    Args:
        permitted: leaves out the ids that the caller may not see.
        ties: a number that decides the order of rows the ordering leaves equal; None is by id.
    """
    filter = ask.filter
    if ask.after is not None:
        low = max(filter.ids.low, ask.after + 1)
        filter = replace(filter, ids=Interval(low, filter.ids.high))
    ids = permitted(table.select(filter))
    link: str | None
    if ask.forward_only:
        shown = ids[: ask.size]
        link = _forward_link(request, shown, more=len(ids) > ask.size)
    else:
        start = (ask.page - 1) * ask.size
        shown = _sorted(table, ids, ask.order, ties)[start : start + ask.size]
        link = _page_links(request, ask, len(ids))
    return Page([render(table, id, ask.fields) for id in shown], link, ids)


def _sorted(
    table: Table, ids: Sequence[int], order: tuple[tuple[str, bool], ...], ties: int | None
) -> Sequence[int]:
    if ties is None and order in ((), (("id", False),)):
        return ids
    ranked = list(ids)
    if ties is not None:
        ranked.sort(key=lambda id: zlib.crc32(b"%d:%d" % (ties, id)))
    for path, descending in reversed(order):
        ranked.sort(key=lambda id: _rank(table.lookup(id)(path)), reverse=descending)
    return ranked


def _rank(value: Any) -> tuple[int, Any]:
    """Orders values of unlike types: nothing, then numbers, then text."""
    if isinstance(value, (int, float)):
        return 1, value
    return (0, 0) if value is None else (2, str(value).casefold())


def _link(request: Request, rel: str, **changes: int) -> str:
    query = {k: v for k, v in request.query.items() if k not in ("page", "pageId")}
    query |= {name: str(value) for name, value in changes.items()}
    return f'<http://{request.host}{request.path}?{urlencode(query)}>; rel="{rel}"'


def _forward_link(request: Request, shown: Sequence[int], more: bool) -> str:
    """The next page's link; at the end an empty header, which clients take as finished [CWM]."""
    return _link(request, "next", pageId=shown[-1]) if more else ""


def _page_links(request: Request, ask: Ask, total: int) -> str | None:
    last = max(1, -(-total // ask.size))
    links = []
    if ask.page < last:
        links = [_link(request, "next", page=ask.page + 1), _link(request, "last", page=last)]
    if ask.page > 1:
        links.append(_link(request, "first", page=1))
        links.append(_link(request, "prev", page=ask.page - 1))
    return ", ".join(links) or None


def render(table: Table, id: int, fields: tuple[str, ...]) -> bytes:
    """A visible record's bytes, whole or cut down to some fields (paths with `/`)."""
    record = table.records[id]
    if not fields:
        return record.visible.payload
    if fields == ("id",) and record.poison is None:
        return b'{"id":%d}' % id
    source = json.loads(record.visible.payload)
    kept: dict[str, Any] = {}
    for path in fields:
        _keep(source, kept, path.split("/"))
    return to_bytes(kept)


def _keep(source: dict[str, Any], kept: dict[str, Any], path: list[str]) -> None:
    name, rest = path[0].strip(), path[1:]
    if name not in source:
        return
    value = source[name]
    if not rest or value is None:
        kept[name] = value
    elif isinstance(value, dict):
        _keep(value, kept.setdefault(name, {}), rest)
    elif isinstance(value, list):
        parts = kept.setdefault(name, [{} for _ in value])
        for element, part in zip(value, parts, strict=True):
            if isinstance(element, dict):
                _keep(element, part, rest)
