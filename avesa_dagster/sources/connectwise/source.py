"""ConnectWise PSA: hand-made keyset paging over ids, under a frozen window.

Source of the facts: shared fact page `connectwise.md` (developer guide and public clients).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import quote, urlsplit

from avesa_dagster.catalog.models import Service, ServiceTable
from avesa_dagster.errors import (
    ConfigurationError,
    FatalError,
    PermissionRefused,
    Where,
)
from avesa_dagster.sources.asking import HttpSource, asking
from avesa_dagster.sources.base import (
    SECOND_FORMAT,
    Clock,
    Deletion,
    Page,
    Record,
    Rejected,
    Span,
    Window,
)
from avesa_dagster.sources.connectwise.credentials import Credentials
from avesa_dagster.sources.http import Http, NotFound
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
_API = "apis/3.0"
_is_number = matching(re.compile(r"-?[0-9]{1,40}"))
_CLOUD = (".myconnectwise.net", ".connectwisedev.com")


class Codebase:
    """The API's address, found through companyinfo; shared by the threads of one connection.

    Upgrades change it, so it is looked up again after a 404, and never written down.
    """

    def __init__(self, credentials: Credentials, where: Where) -> None:
        self._credentials = credentials
        self._where = where
        self._lock = threading.Lock()
        self._root: str | None = None

    def root(self, http: Http) -> str:
        """`https://{host}/{codebase}apis/3.0`, looked up on first use."""
        with self._lock:
            if self._root is None:
                self._root = self._discover(http)
            return self._root

    def moved(self, http: Http, old: str) -> bool:
        """Looks again after a 404 under `old`; True if the address is another one now."""
        with self._lock:
            if self._root == old:
                self._root = self._discover(http)
            return self._root != old

    def _discover(self, http: Http) -> str:
        parts = urlsplit(self._credentials.api_base_url)
        host = parts.netloc
        cloud = parts.hostname is not None and parts.hostname.endswith(_CLOUD)
        site = host.removeprefix("api-") if cloud else host
        company = self._credentials.company_id
        try:
            info = http.get(
                f"{parts.scheme}://{site}/login/companyinfo/{quote(company, safe='')}",
                _company_info,
                authenticated=False,
            )
        except NotFound:
            info = None
        if info is None:
            if _API in parts.path:
                return self._credentials.api_base_url
            raise ConfigurationError(
                f"{site} knows no company {company!r}",
                where=self._where,
                hint="check company_id (what one types at login) and api_base_url",
            )
        api_host = f"api-{site}" if cloud else site
        return f"{parts.scheme}://{api_host}/{info.strip('/')}/{_API}"


class ConnectWise(HttpSource):
    """A `Source` over one connection. Ids are integers and ascend."""

    def __init__(
        self,
        service: Service,
        http: Http,
        codebase: Codebase,
        where: Where,
        *,
        clock: Clock,
    ) -> None:
        super().__init__(service, http, where, clock)
        self._codebase = codebase
        self._decoders = {name: RecordDecoder(table) for name, table in service.tables.items()}

    def now(self) -> datetime:
        if self._http.server_time is None:
            self._codebase.root(self._http)
        return self._http.present()

    def count(self, table: str, span: Span) -> int:
        return self._ask(table, "/count", span, {}, _count)

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        decoder = self._decoders[table]
        params: dict[str, str | int] = {
            "orderBy": "id asc",
            "pageSize": self._service.page_size,
            "page": 1,
        }
        if ids_only:
            params["fields"] = _fields(self._service.tables[table], span)

        def parse(body: bytes) -> Page:
            records, rejected = decoder.decode(body)
            records = _numbered(records, rejected)
            ascending([record.record_id for record in records], span, key=int)
            last = records[-1].record_id if records else None
            full = len(records) + len(rejected) >= self._service.page_size
            kept = within(span.window, records, rejected, undated=ids_only)
            return Page(kept, rejected, last, self._clock(), full=full)

        return self._ask(table, "", span, params, parse)

    def newest_id(self, table: str) -> str | None:
        known = self._service.tables[table]
        decoder = self._decoders[table]
        newest: dict[str, str | int] = {
            "orderBy": f"{known.id} desc",
            "pageSize": 1,
            "fields": known.id,
        }

        def parse(body: bytes) -> str | None:
            records = _numbered(decoder.decode(body)[0], [])
            return records[0].record_id if records else None

        return self._ask(table, "", Span(), newest, parse)

    def exists(self, table: str, record_id: str) -> bool:
        try:
            self._ask(table, f"/{int(record_id)}", Span(), {}, _record)
        except NotFound:
            return False
        except PermissionRefused:
            return True
        return True

    lists_deletions = False
    ids_ascend = True

    def deletions(self, table: str, window: Window) -> list[Deletion] | None:
        return None

    def _ask(
        self,
        table: str,
        below: str,
        span: Span,
        params: dict[str, str | int],
        parse: Callable[[bytes], T],
    ) -> T:
        known = self._service.tables[table]
        conditions = _conditions(known, span)
        query = {**({"conditions": conditions} if conditions else {}), **params}
        with asking(self._where, table, span, known.endpoint):
            root = self._codebase.root(self._http)
            try:
                return self._http.get(f"{root}/{known.endpoint}{below}", parse, params=query)
            except NotFound:
                if not self._codebase.moved(self._http, root):
                    raise
            root = self._codebase.root(self._http)
            return self._http.get(f"{root}/{known.endpoint}{below}", parse, params=query)


def _fields(table: ServiceTable, span: Span) -> str:
    """What a list of ids asks for: within a window the change time too, by which it is checked."""
    return table.id if span.window is None else f"{table.id},{table.change_field.replace('.', '/')}"


def _numbered(records: list[Record], rejected: list[Rejected]) -> list[Record]:
    return usable(records, rejected, _is_number, "its id {} is no integer")


def _conditions(table: ServiceTable, span: Span) -> str:
    changed = table.change_field.replace(".", "/")
    parts = []
    if span.window is not None:
        parts.append(f"{changed} >= [{_moment(span.window.start)}]")
        parts.append(f"{changed} < [{_moment(span.window.end)}]")
    if span.after is not None:
        parts.append(f"{table.id} > {int(span.after)}")
    if span.upto is not None:
        parts.append(f"{table.id} <= {int(span.upto)}")
    if span.only is not None:
        parts.append(f"{table.id} = {int(span.only)}")
    return " AND ".join(parts)


def _moment(moment: datetime) -> str:
    if moment.microsecond:
        raise FatalError(f"{moment.isoformat()}: ConnectWise dates its records in whole seconds")
    return moment.astimezone(UTC).strftime(SECOND_FORMAT)


def _count(body: bytes) -> int:
    said = parsed(body)
    count = said.get("count") if isinstance(said, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InvalidPage("the answer is no count")
    return count


def _record(body: bytes) -> None:
    said = parsed(body)
    if not isinstance(said, dict) or "id" not in said:
        raise InvalidPage("the answer is no record")


def _company_info(body: bytes) -> str | None:
    said = parsed(body)
    if said is None:
        return None
    codebase = said.get("Codebase") if isinstance(said, dict) else None
    if not isinstance(codebase, str) or not codebase.strip("/"):
        raise InvalidPage("the answer is no company information")
    return codebase
