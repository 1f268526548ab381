"""ServiceNow's Table API: keyset paging over sys_ids, under a window with both bounds.

What a user may not see is taken out of a page *after* its limit was applied, so a page may be short
or empty in the middle of a table, and the service's counts hold more than its lists. A page that is
shorter than its count is asked for three times; what is missing from all is hidden, and counted.
Source of the facts: shared fact page `servicenow.md`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from avesa_dagster.catalog.models import Service, ServiceTable
from avesa_dagster.errors import (
    AvesaError,
    DataError,
    FatalError,
    PermissionRefused,
    TooMuch,
    Where,
)
from avesa_dagster.sources.asking import HttpSource, asking, place_of
from avesa_dagster.sources.base import (
    Clock,
    Deletion,
    Page,
    Record,
    Rejected,
    Span,
    Window,
)
from avesa_dagster.sources.http import Answer, Call, Http, NotFound
from avesa_dagster.sources.oauth import header
from avesa_dagster.sources.records import (
    InvalidPage,
    RecordDecoder,
    ascending,
    matching,
    parsed,
    usable,
    within,
)

T = TypeVar("T")
_is_id = matching(re.compile(r"[A-Za-z0-9_.-]{1,64}"))
_READINGS = 3
"""A record that so many readings of a page lack is hidden; a fault may spoil two in a row."""
_FEWEST = 50
"""Records in a page that is made smaller for good; smaller ones are for one place in a table."""
_TRIES = 3
"""Of a page of one record: a transaction is cancelled for other reasons than its size, too."""
_LONG = timedelta(days=1)
"""A window from which on it is suspicious that it holds nothing."""
_NEXT = re.compile(r"[?&]sysparm_offset=([0-9]+)[^>]*>\s*;\s*rel=\"next\"")
_AUDIT = ServiceTable(
    endpoint="sys_audit_delete",
    enabled=False,
    id="sys_id.value",
    change_field="sys_created_on.value",
)
_OBJECTS = ServiceTable(
    endpoint="sys_db_object",
    enabled=False,
    id="sys_id.value",
    change_field="sys_updated_on.value",
)


class Classes:
    """Which tables extend which; asked for once, shared by the threads of a connection.

    Attributes:
        dated: Tables whose change field is known to be there.
    """

    def __init__(self) -> None:
        self.dated: set[str] = set()
        self._lock = threading.Lock()
        self._parents: dict[str, str] | None = None

    def below(self, table: str, ask: Callable[[], dict[str, str]]) -> set[str]:
        """The table and all that extend it; the table alone if this user may not know."""
        with self._lock:
            if self._parents is None:
                try:
                    self._parents = ask()
                except (PermissionRefused, FatalError):
                    self._parents = {}
            parents = self._parents
        found, size = {table}, 0
        while size != len(found):
            size = len(found)
            found |= {name for name, parent in parents.items() if parent in found}
        return found


class _Body(msgspec.Struct):
    result: msgspec.Raw


_body = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class _Listed:
    """One answer: `total` counts what the query matches, shown or not; `next` is the offset of the
    page that follows, by the service's word."""

    records: list[Record]
    rejected: list[Rejected]
    total: int
    received_at: datetime
    next: int


class ServiceNow(HttpSource):
    """A `Source` over one connection. Ids are texts, in no order of creation."""

    lists_deletions = True
    ids_ascend = False

    def __init__(
        self,
        service: Service,
        http: Http,
        root: str,
        where: Where,
        classes: Classes,
        *,
        clock: Clock,
    ) -> None:
        super().__init__(service, http, where, clock)
        self._root = root
        own = {table.endpoint: table for table in (_AUDIT, _OBJECTS)}
        self._tables = {**service.tables, **own}
        self._decoders = {name: RecordDecoder(table) for name, table in self._tables.items()}
        self._limits: dict[str, int] = {}
        self._classes = classes

    def now(self) -> datetime:
        if self._http.server_time is None:
            first = next(iter(self._service.tables.values()))
            params: dict[str, str | int] = {"sysparm_limit": 1, "sysparm_no_count": "true"}
            call = Call(self._list_url(first), params=params)
            try:
                self._http.ask(call, lambda answer: None)
            except TooMuch:  # one row is not too much, and the refusal was dated, too
                if self._http.server_time is None:
                    raise
        return self._http.present()

    def count(self, table: str, span: Span) -> int:
        counted = self._count(table, span, _query(self._tables[table], span))
        window = span.window
        if not counted and window is not None and window.end - window.start >= _LONG:
            self._assert_dated(table, span)
        return counted

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        limit, tries = self._limits.get(table, self._service.page_size), _TRIES
        while True:
            try:
                return self._page(table, span, limit, ids_only)
            except (TooMuch, DataError) as error:
                if not _may_be_size(error):
                    raise
                tries -= limit == 1
                if not tries:  # it is not the page that is too large
                    self._limits.pop(table, None)
                    after = f"after {span.after}" if span.after else "first"
                    error.hint = f"even the one record that comes {after} is too much"
                    raise
                limit = max(_FEWEST, limit // 2) if limit > _FEWEST else max(1, limit // 4)
                if limit >= _FEWEST:
                    self._limits[table] = limit

    def newest_id(self, table: str) -> str | None:
        try:
            return next((r.record_id for r in self._one(table, Span(), "ORDERBYDESC")), None)
        except TooMuch:  # the service answers, and whoever probes it asks for no more
            return None

    def exists(self, table: str, record_id: str) -> bool:
        """By the count, which knows what this user may not see: a 404 would be said of both."""
        return self.count(table, Span(only=record_id)) > 0

    def deletions(self, table: str, window: Window) -> list[Deletion] | None:
        """What `sys_audit_delete` says of the table and its subclasses."""
        found: list[Deletion] = []
        hidden = 0
        span = Span(window)
        try:
            names = self._classes.below(self._tables[table].endpoint, self._parents)
            while True:
                page = self.page(_AUDIT.endpoint, span)
                found += [d for record in page.records for d in _deletion(record, names)]
                hidden += page.hidden
                if page.last_id is None:
                    return found if found or not hidden else None
                span = replace(span, after=page.last_id)
        except (PermissionRefused, NotFound):
            return None

    def _page(self, table: str, span: Span, limit: int, ids_only: bool) -> Page:
        offset = 0
        while True:
            listed = self._list(table, span, limit, offset, ids_only=ids_only)
            shown = len(listed.records) + len(listed.rejected)
            due = max(0, min(limit, listed.total - offset))
            for _ in range(_READINGS - 1):
                if shown >= due:
                    break
                again = self._list(table, span, limit, offset, ids_only=ids_only)
                listed = _united(listed, again)
                shown = len(listed.records) + len(listed.rejected)
            if shown or listed.next >= listed.total:
                break
            offset = listed.next
        last = listed.records[-1].record_id if listed.records else None
        hidden = 0
        if last is None and not listed.rejected:
            hidden = listed.total
        elif shown < due or offset:
            beyond = self.count(table, replace(span, after=last)) if last is not None else 0
            hidden = max(0, listed.total - beyond - shown)
        if span.window and listed.records and all(r.updated_at is None for r in listed.records):
            self._assert_dated(table, span)
        kept = within(span.window, listed.records, listed.rejected, undated=False)
        full = offset + shown >= limit
        return Page(kept, listed.rejected, last, listed.received_at, hidden, full)

    def _list(
        self,
        table: str,
        span: Span,
        limit: int,
        offset: int,
        *,
        ids_only: bool,
        query: str | None = None,
    ) -> _Listed:
        """One answer; `query` is asked in place of the span's, in its own order, uncounted."""
        known, decoder = self._tables[table], self._decoders[table]
        params: dict[str, str | int] = {
            "sysparm_query": query or _query(known, span, f"ORDERBY{_field(known.id)}"),
            "sysparm_limit": limit,
            "sysparm_display_value": "all",
            "sysparm_exclude_reference_link": "true",
        }
        if offset:
            params["sysparm_offset"] = offset
        if query is not None:
            params["sysparm_no_count"] = "true"
        if ids_only:
            params["sysparm_fields"] = f"{_field(known.id)},{_field(known.change_field)}"

        def parse(answer: Answer) -> _Listed:
            records, rejected = decoder.decode(_result(answer.body))
            rejected = [item for item in rejected if item.payload.strip() != b"{}"]
            records = usable(records, rejected, _is_id, "its sys_id {} is none")
            if query is None:
                ascending([record.record_id for record in records], span, key=str.lower)
            total = header(answer, "X-Total-Count")
            shown = offset + len(records) + len(rejected)
            counted = int(total) if total.isdecimal() else shown
            following = _NEXT.search(header(answer, "Link"))
            after = int(following[1]) if following else 0
            return _Listed(
                records,
                rejected,
                max(counted, shown),
                self._clock(),
                after if after > offset else offset + limit,
            )

        return self._ask(table, span, Call(self._list_url(known), params=params), parse)

    def _count(self, table: str, span: Span, query: str) -> int:
        call = Call(
            f"{self._root}/api/now/stats/{self._tables[table].endpoint}",
            params={"sysparm_count": "true", "sysparm_query": query},
        )
        return self._ask(table, span, call, _counted)

    def _one(self, table: str, span: Span, order: str) -> list[Record]:
        """The first record of the whole table, if this user may see it; `span` is for errors."""
        query = f"{order}{_field(self._tables[table].id)}"
        return self._list(table, span, 1, 0, ids_only=True, query=query).records

    def _assert_dated(self, table: str, span: Span) -> None:
        """Nothing in a window, or nothing with a date, is also what a table answers that cannot be
        asked by its change field: such a condition selects all records, or, with the property
        glide.invalid_query.returns_no_rows, none.

        Raises:
            FatalError: It is such a table.
        """
        if table in self._classes.dated:
            return
        if any(record.updated_at for record in self._one(table, span, "ORDERBY")):
            self._classes.dated.add(table)
            return
        known = self._tables[table]
        changed = _field(known.change_field)
        empty, filled = (
            self._count(table, span, f"{changed}{test}") for test in ("ISEMPTY", "ISNOTEMPTY")
        )
        if empty == filled and self._count(table, span, "") != empty + filled:
            raise FatalError(
                f"{known.endpoint} cannot be asked by {changed}: it has no such field, or this "
                "user may not use it",
                hint="set change_field in mappings/services/servicenow.json to a date-time that "
                "the table has (logs and many-to-many tables: sys_created_on.value)",
            ).at(**place_of(self._where, table, span))
        self._classes.dated.add(table)

    def _parents(self) -> dict[str, str]:
        """Each table's name to that of the one that it extends, as far as this user may know."""
        names: dict[str, str] = {}
        above: dict[str, str] = {}
        span = Span()
        while True:
            page = self.page(_OBJECTS.endpoint, span)
            for record in page.records:
                said = msgspec.json.decode(record.payload)
                names[record.record_id] = _value(said, "name")
                above[record.record_id] = _value(said, "super_class")
            if page.last_id is None:
                break
            span = Span(after=page.last_id)
        return {names[key]: names.get(parent, "") for key, parent in above.items()}

    def _list_url(self, known: ServiceTable) -> str:
        return f"{self._root}/api/now/table/{known.endpoint}"

    def _ask(self, table: str, span: Span, call: Call, parse: Callable[[Answer], T]) -> T:
        # Of its own tables whoever asks says what they are asked for.
        named = table if table in self._service.tables else None
        with asking(self._where, named, span, self._tables[table].endpoint):
            return self._http.ask(call, parse)


def _may_be_size(error: AvesaError) -> bool:
    """Whether a smaller page may help: the service gave up, or its JSON broke off."""
    return isinstance(error, TooMuch) or "is no JSON" in error.what


def _field(path: str) -> str:
    """The service's name of a field, whose value lies below it: `sys_id.value`."""
    return path.split(".", 1)[0]


def _query(table: ServiceTable, span: Span, order: str = "") -> str:
    changed, key = _field(table.change_field), _field(table.id)
    parts = []
    if span.window is not None:
        parts.append(f"{changed}>={_moment(span.window.start)}")
        parts.append(f"{changed}<{_moment(span.window.end)}")
    for sign, bound in ((">", span.after), ("<=", span.upto), ("=", span.only)):
        if bound is not None:
            parts.append(f"{key}{sign}{bound}")
    return "^".join([*parts, order] if order else parts)


def _moment(moment: datetime) -> str:
    if moment.microsecond:
        raise FatalError(f"{moment.isoformat()}: ServiceNow dates its records in whole seconds")
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _result(body: bytes) -> bytes:
    try:
        return bytes(_body.decode(body).result)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        raise InvalidPage("the answer is no JSON with a result") from None


def _united(first: _Listed, second: _Listed) -> _Listed:
    """What either reading of the same page shows; of a record in both, the later."""
    records = {record.record_id: record for record in (*first.records, *second.records)}
    rejected = {item.payload: item for item in (*first.rejected, *second.rejected)}
    return _Listed(
        sorted(records.values(), key=lambda record: record.record_id.lower()),
        list(rejected.values()),
        max(first.total, second.total),
        second.received_at,
        min(first.next, second.next),
    )


def _counted(answer: Answer) -> int:
    said = parsed(answer.body)
    for name in ("result", "stats"):
        said = said.get(name) if isinstance(said, dict) else None
    text = said.get("count") if isinstance(said, dict) else None
    if not isinstance(text, str | int) or not str(text).isdecimal():
        raise InvalidPage("the answer is no count")
    return int(text)


def _deletion(record: Record, names: set[str]) -> list[Deletion]:
    said = msgspec.json.decode(record.payload)
    table, key = (_value(said, name) for name in ("tablename", "documentkey"))
    if table not in names or not key or record.updated_at is None:
        return []
    return [Deletion(key, record.updated_at)]


def _value(row: object, name: str) -> str:
    cell = row.get(name) if isinstance(row, dict) else None
    value = cell.get("value") if isinstance(cell, dict) else cell
    return value if isinstance(value, str) else ""
