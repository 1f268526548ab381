"""Helpdesk, a service that does not exist: a small REST API that pages in any of the usual styles.

Its listings are ordered by change time and paged by position, so a record that changes while it is
listed moves to the end, and the next page begins one too late. It counts what a filter takes in.
"""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

PIN = "-".join(("pin", "of", "the", "helpdesk"))
"""Not written out, as a traceback shows the source."""
ROOT = "/api/v2/"
SECOND = timedelta(seconds=1)
HOSTILE = {
    "429": 0.04, "500": 0.04, "cut": 0.04, "html": 0.02, "error": 0.02, "short": 0.1,
    "empty": 0.05, "duplicate": 0.05, "drop": 0.02, "move": 0.05,
}  # fmt: skip


def written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class Held:
    """One record: every payload that it ever had, the present one last."""

    payloads: list[bytes]
    changed: datetime
    deleted: bool = False


@dataclass
class Answer:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class Helpdesk:
    """The service, on a port of this machine while it is entered.

    Attributes:
        clock: Its present.
        paging: link, header (Link), cursor, page, offset or id.
        faults: Kind to how probable it is in a request for a list.
        hook: Called with each request for a list, before it is answered.
        soft: Deleted records stay listed, with `deleted` true.
        limit: Records that a listing gives at most, whatever page is asked for.
    """

    clock: Callable[[], datetime]
    seed: int = 1
    paging: str = "link"
    pin: str = PIN
    page_clamp: int = 20
    faults: dict[str, float] = field(default_factory=dict)
    hook: Callable[[str, dict[str, str]], Answer | None] | None = None
    soft: bool = False
    limit: int | None = None
    authorised: Callable[[Any, dict[str, str]], bool] | None = None

    def __post_init__(self) -> None:
        self.tables: dict[str, dict[str, Held]] = {}
        self.gone: list[tuple[str, str, datetime]] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.tokens = 0
        self._random = random.Random(self.seed)
        self._lock = threading.RLock()

    def put(self, table: str, record_id: str, moment: datetime, **fields: Any) -> None:
        """Creates a record or changes it, as of a moment."""
        with self._lock:
            moment = moment.replace(microsecond=0)
            held = self.tables.setdefault(table, {}).get(record_id)
            before = json.loads(held.payloads[-1]) if held else {"created_at": written(moment)}
            record = {"id": record_id} | before | fields
            record["updated_at"] = written(moment)
            if held is not None:
                record["revision"] = before.get("revision", 0) + 1
            payload = json.dumps(record, ensure_ascii=False).encode()
            if held is None:
                self.tables[table][record_id] = Held([payload], moment)
            else:
                held.payloads.append(payload)
                held.changed = moment

    def touch(self, table: str, record_id: str) -> None:
        self.put(table, record_id, self.clock())

    def delete(self, table: str, record_id: str) -> None:
        with self._lock:
            if self.soft:
                self.put(table, record_id, self.clock(), deleted=True)
            self.tables[table][record_id].deleted = True
            self.gone.append((table, record_id, self.clock()))

    def alive(self, table: str) -> dict[str, Held]:
        with self._lock:
            return {i: held for i, held in self.tables[table].items() if not held.deleted}

    def fill(self, now: datetime, days: float, **sizes: int) -> None:
        """Records whose changes are spread over the days before now, some at the same second."""
        for table, size in sizes.items():
            moments = [
                now - timedelta(days=self._random.random() * days) for _ in range(max(1, size // 2))
            ]
            for number in range(size):
                record_id = f"{table[:2]}_{self._random.getrandbits(32):08x}"
                moment = self._random.choice(moments)
                self.put(table, record_id, moment, **_content(table, number))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def credentials(self) -> dict[str, str]:
        return {"base_url": self.url, "pin": self.pin}

    def __enter__(self) -> Helpdesk:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                form = dict(parse_qsl(self.rfile.read(length).decode()))
                parts = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                answer = service.answer(parts.path, query, self.headers, form)
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(answer.body)))
                self.send_header("Date", format_datetime(service.clock(), usegmt=True))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                half = len(answer.body) // 2
                self.wfile.write(answer.body[:half] if answer.cut else answer.body)
                self.close_connection = answer.cut

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(
        self, path: str, query: dict[str, str], headers: Any, form: dict[str, str]
    ) -> Answer:
        with self._lock:
            if path == "/oauth/token":
                return self._token(form, headers)
            if self.authorised is not None:
                may = self.authorised(headers, query)
            else:
                may = headers.get("Authorization") == f"Bearer {self.pin}"
            if not may:
                said = f"who are you, {headers.get('Authorization')} {query.get('key', '')}?"
                return _said(401, {"error": {"message": said}})
            table, _, record_id = path.removeprefix(ROOT).partition("/")
            self.asked.append((path, query))
            if table == "deletions":
                return self._deletions(query)
            if table not in self.tables:
                return _said(404, {"error": {"message": "nothing here"}})
            if record_id == "count":
                return _said(200, {"count": len(self._selected(table, query))})
            if record_id:
                held = self.tables[table].get(record_id)
                if held is None or (held.deleted and not self.soft):
                    return _said(404, {"error": {"message": "gone"}})
                return Answer(body=b'{"data": ' + held.payloads[-1] + b"}")
            if self.hook is not None and (instead := self.hook(table, query)) is not None:
                return instead
            return self._list(table, query)

    def _token(self, form: dict[str, str], headers: Any) -> Answer:
        basic = base64.b64encode(f"app:{self.pin}".encode()).decode()
        known = form.get("client_secret") == self.pin
        if not known and headers.get("Authorization") != f"Basic {basic}":
            return _said(401, {"error": "invalid_client"})
        self.tokens += 1
        return _said(200, {"access_token": f"access-{self.tokens}", "expires_in": 3600})

    def _selected(self, table: str, query: dict[str, str]) -> list[Held]:
        tests: dict[str, Callable[[str, Held, str], bool]] = {
            "updated_since": lambda i, held, bound: held.changed >= _read(bound),
            "updated_after": lambda i, held, bound: held.changed > _read(bound),
            "updated_before": lambda i, held, bound: held.changed < _read(bound),
            "updated_until": lambda i, held, bound: held.changed <= _read(bound),
            "after_id": lambda i, held, bound: i > bound,
            "upto_id": lambda i, held, bound: i <= bound,
            "id": lambda i, held, bound: i == bound,
        }
        asked = [(tests[name], bound) for name, bound in query.items() if name in tests]
        found = [
            (held.changed, i, held)
            for i, held in self.tables[table].items()
            if (self.soft or not held.deleted) and all(test(i, held, b) for test, b in asked)
        ]
        by_id = self.paging == "id"
        found.sort(key=lambda one: one[1] if by_id else one[:2])
        return [held for _, _, held in found]

    def _list(self, table: str, query: dict[str, str]) -> Answer:
        size = max(1, min(int(query.get("limit", "50")), self.page_clamp))
        start = self._start(query, size)
        fault = self._fault()
        if fault == "429":
            return Answer(429, headers={"Retry-After": "0"})
        if fault == "500":
            return _said(500, {"error": {"message": f"it hurts, Bearer {self.pin}"}})
        if fault == "html":
            return Answer(body=b"<html>We are back soon</html>")
        if fault == "error":
            return _said(200, {"error": {"message": f"not now, {self.pin}"}, "data": []})
        if fault == "move" and start and (movable := list(self.alive(table))):
            self.touch(table, self._random.choice(movable))
        selected = self._selected(table, query)
        if self.limit is not None and start >= self.limit:
            return _said(400, {"error": {"message": "too deep"}})
        held = selected[start : start + size]
        if fault == "short":
            held = held[: max(1, len(held) // 2)]
        if fault == "empty" and self.paging in ("link", "cursor", "header"):
            held = []
        following = start + len(held)
        rows = [one.payloads[-1] for one in held]
        if fault == "duplicate" and start:
            rows.insert(0, selected[min(start, len(selected)) - 1].payloads[-1])
        if fault == "drop" and len(rows) > 1:
            rows.pop(self._random.randrange(len(rows)))
        answer = self._page(table, query, rows, len(selected), following)
        answer.cut = fault == "cut"
        return answer

    def _start(self, query: dict[str, str], size: int) -> int:
        if "cursor" in query:
            return int(base64.urlsafe_b64decode(query["cursor"]).split(b"/")[0])
        if self.paging == "page":
            return (int(query.get("page", 1)) - 1) * size
        return int(query.get("offset", 0))

    def _page(
        self, table: str, query: dict[str, str], rows: list[bytes], total: int, following: int
    ) -> Answer:
        more = following < total and (self.limit is None or following < self.limit)
        links: dict[str, str] = {}
        headers = {"X-Requests-A-Minute": "100000", "X-Total": str(total)}
        if more and self.paging in ("link", "cursor", "header"):
            nonce = f"{following}/{self._random.getrandbits(40)}".encode()
            cursor = base64.urlsafe_b64encode(nonce).decode()
            link = f"{ROOT}{table}?{urlencode(query | {'cursor': cursor})}"
            links["next"] = cursor if self.paging == "cursor" else link
            if self.paging == "header":
                headers["Link"] = f'<{ROOT}>; rel="first", <{self.url}{link}>; rel="next"'
        meta = json.dumps({"count": total, "more": more}).encode()
        body = b'{"data": [' + b", ".join(rows) + b'], "meta": ' + meta
        body += b', "links": ' + json.dumps(links).encode() + b"}"
        return Answer(body=body, headers=headers)

    def _deletions(self, query: dict[str, str]) -> Answer:
        since, before = _read(query["since"]), _read(query["before"])
        found = [
            {"record": i, "deleted_at": written(at)}
            for table, i, at in self.gone
            if table == query["type"] and since <= at.replace(microsecond=0) < before
        ]
        return _said(200, {"data": found, "links": {"next": None}})

    def _fault(self) -> str | None:
        drawn = self._random.random()
        for kind, share in self.faults.items():
            if drawn < share:
                return kind
            drawn -= share
        return None


def _said(status: int, document: object) -> Answer:
    return Answer(status, json.dumps(document).encode())


def _read(text: str) -> datetime:
    if text.lstrip("-").isdigit():
        return datetime.fromtimestamp(int(text), UTC)
    return datetime.fromisoformat(text.replace(" ", "T").removesuffix("Z")).replace(tzinfo=UTC)


def _content(table: str, number: int) -> dict[str, Any]:
    if table == "customers":
        return {"name": f"Customer {number} Ümlaut", "address": {"city": "Bern", "country": "CH"}}
    if table == "agents":
        return {"name": f"Agent {number}", "email": f"a{number}@example.com", "active": True}
    return {
        "number": number,
        "subject": f"Printer {number} is on fire 🔥",
        "state": "open",
        "priority": "high",
        "customer": {"id": "cu_1", "name": "Customer 1"},
        "agent": {"id": "ag_1", "name": "Agent 1"},
        "closed_at": None,
    }
