"""What one request of the Table API asks for, and the page that answers it.

Sources: fact page, Query parameters, Value encoding, Pagination [SND][TAP]. The ACLs run after the
limit, so that a page may be short or empty while an offset still advances; X-Total-Count is the
count before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from avesa_dagster.sandbox.listing import Page
from avesa_dagster.sandbox.servicenow.projection import Projection, Style
from avesa_dagster.sandbox.servicenow.query import Block, Query, parse
from avesa_dagster.sandbox.servicenow.script import Script
from avesa_dagster.sandbox.servicenow.selection import Selected
from avesa_dagster.sandbox.servicenow.site import RETURNS_NO_ROWS, Instance, Site
from avesa_dagster.sandbox.wire import Request

DEFAULT_LIMIT = 10_000
_DISPLAYS = ("false", "true", "all")
LINKS = "/api/now/table/"


class BadRequest(ValueError):
    """The service answers 400 with this message."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the Table API, read. `fields` None is all columns."""

    table: str
    query: Query
    offset: int = 0
    limit: int = DEFAULT_LIMIT
    fields: tuple[str, ...] | None = None
    style: Style = field(default_factory=Style)
    counted: bool = True
    linked: bool = True


@dataclass(slots=True)
class Answer:
    """A page and what it was cut from. `total` is the count before ACL; `given` the rows before."""

    page: Page
    total: int
    given: int


def read_query(text: str, instance: Instance, table: str) -> Query:
    """Read an encoded query as this instance does."""
    query = parse(text, instance.world.schema.columns(table), instance.zone)
    if query.dropped and instance.properties[RETURNS_NO_ROWS] == "true":
        return query.impossible
    return query


def read(request: Request, instance: Instance, table: str) -> Ask:
    """Read a request for a list or for one record.

    Raises:
        BadRequest: limit or offset is no number, or negative.
    """
    given = request.query
    display = given.get("sysparm_display_value", "false").lower()
    names = [name.strip() for name in given.get("sysparm_fields", "").split(",")]
    fields = tuple(name for name in names if name)
    return Ask(
        table=table,
        query=read_query(given.get("sysparm_query", ""), instance, table),
        offset=_whole(given, "sysparm_offset", 0),
        limit=_whole(given, "sysparm_limit", DEFAULT_LIMIT),
        fields=fields or None,
        style=Style(
            display if display in _DISPLAYS else "false",
            _true(given, "sysparm_exclude_reference_link"),
        ),
        counted=not _true(given, "sysparm_no_count"),
        linked=not _true(given, "sysparm_suppress_pagination_header"),
    )


def _true(given: dict[str, str], name: str) -> bool:
    return given.get(name, "").lower() == "true"


def _whole(given: dict[str, str], name: str, default: int) -> int:
    text = given.get(name) or str(default)
    if not text.isdigit():
        raise BadRequest(f"Invalid value for {name}: {text}")
    return int(text)


def only_ids(query: Query) -> Query:
    """The query without what it says of anything but the sys_id."""

    def kept(block: Block) -> Block:
        return tuple(g for g in block if all(clause.field == "sys_id" for clause in g))

    return replace(query, blocks=tuple(kept(block) for block in query.blocks))


def select(site: Site, instance: Instance, ask: Ask) -> tuple[str, Selected]:
    """The records that the query selects, before ACL, and the axis of their order."""
    script = site.script_of(instance)
    share, tables = script.quirks.hidden_share, script.hostility.standing.restricted_tables
    visible: Callable[[int], bool] | None = None
    if share > 0:
        visible = lambda number: not site.unseen(instance, ask.table, number)  # noqa: E731
    mark = (share, tuple(tables or ()), tables is None)
    return instance.world.selector_of(ask.table).select(ask.table, ask.query, visible, mark)


def answer(site: Site, instance: Instance, ask: Ask, request: Request) -> Answer:
    """Make the page."""
    script = site.script_of(instance)
    axis, selected = select(site, instance, ask)
    clamp = script.quirks.page_clamp
    limit = ask.limit if clamp is None else min(ask.limit, clamp)
    nonce = script.hostility.below(2**31) if script.quirks.shuffle_ties else None
    selector = instance.world.selector_of(ask.table)
    numbers = selector.ordered(ask.table, ask.query, axis, selected, ask.offset, limit, nonce)
    rows = rows_of(site, instance, ask, numbers, script)
    link = None
    if ask.linked:
        link = _links(instance, request, ask, limit, len(selected)) or None
    return Answer(Page(rows, link, selected), len(selected), len(numbers))


def rows_of(
    site: Site, instance: Instance, ask: Ask, numbers: list[int], script: Script
) -> list[bytes]:
    """The rows of a page, after ACL."""
    world = instance.world
    store, base = world.store_of(ask.table), instance.url + LINKS
    checked, hides = site.denies(instance, ask.table), bool(script.quirks.hidden_fields)
    rows = []
    nothing: frozenset[str] = frozenset()
    projections: dict[tuple[str, frozenset[str]], Projection] = {}
    for number in numbers:
        if checked and site.denied(instance, ask.table, number):
            if script.quirks.restricted_rows == "empty":
                rows.append(b"{}")
            continue
        hidden = site.hidden_fields(instance, ask.table, number) if hides else nothing
        version = store.visible(number)
        projection = projections.get((version.kind, hidden))
        if projection is None:
            projection = projections[version.kind, hidden] = world.projection(
                ask.table, version.kind, ask.style, instance.zone, base, ask.fields, hidden
            )
        row = world.row(store, number, version)
        text = projection.render(row, version.splice, held=version.held is not None)
        rows.append(text.encode())
    return rows


def _links(instance: Instance, request: Request, ask: Ask, limit: int, total: int) -> str:
    """The Link header; nothing if one page holds all. Without a count there is no last page."""
    if limit <= 0 or (total <= limit and ask.offset == 0):
        return ""
    last = (total - 1) // limit * limit if total else 0
    offsets = {"first": 0}
    if ask.offset > 0:
        offsets["prev"] = max(0, ask.offset - limit)
    if ask.offset + limit < total:
        offsets["next"] = ask.offset + limit
    if ask.counted:
        offsets["last"] = last
    links = []
    for rel, offset in offsets.items():
        query = dict(request.query) | {"sysparm_limit": str(limit), "sysparm_offset": str(offset)}
        links.append(f'<{instance.url}{request.path}?{urlencode(query)}>;rel="{rel}"')
    return ",".join(links)
