"""A simulated service in a few lines: a `Stand` has the records, the clock, the limit, the faults
and the back door; a subclass says what a request means, and how an answer is written.

    class SimulatedNotes(Stand):
        tables = ("notes",)

        def understand(self, request: Request) -> Ask | None:
            return Ask("list", "notes", after=int(request.query["after"]), limit=100)

Records have integer ids that ascend, and are listed in their order. It runs on a thread of this
process, and speaks to any.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from random import Random
from typing import Any, Literal

from avesa_dagster.conformance.enrolment import Rig
from avesa_dagster.sandbox import answers, faults
from avesa_dagster.sandbox.conditions import Filter, Interval
from avesa_dagster.sandbox.hostility import BEFORE, ON_PAGE, ON_WIRE, Fault, Hostility, Traits
from avesa_dagster.sandbox.listing import Page
from avesa_dagster.sandbox.moments import created_moments, updated_moments
from avesa_dagster.sandbox.table import Record, Table, Version
from avesa_dagster.sandbox.timestamps import DAY, Clock, seconds, stamp
from avesa_dagster.sandbox.traffic import Entry, Limit, Traffic
from avesa_dagster.sandbox.wire import Request, Response, Server

_SEVERAL = 25
"""Records of a table whose size nobody gave."""
_COMPANY = "stand"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for.

    Attributes:
        since, until: Change times, seconds since 1970 UTC, half-open; None: unbounded.
        after, upto, only: Ids: above, up to, and just this one.
        limit: Records of a list at most; the script in force may give fewer.
        newest_first: In descending order of ids.
        about: Whatever the answer needs to know besides.
    """

    kind: Literal["list", "count", "get"]
    table: str
    since: float | None = None
    until: float | None = None
    after: int | None = None
    upto: int | None = None
    only: int | None = None
    limit: int = 100
    newest_first: bool = False
    about: object = None

    def filter(self) -> Filter:
        """As the table's indexes take it."""
        whole = Interval()
        updated = Interval(
            whole.low if self.since is None else self.since,
            whole.high if self.until is None else self.until,
        )
        ids = Interval(
            whole.low if self.after is None else self.after + 1,
            whole.high if self.upto is None else self.upto + 1,
        )
        return Filter(ids, updated, None if self.only is None else frozenset([self.only]))


class Stand:
    """A simulated service; see the module's text. `Rig` says what `control` takes; besides that:

        column         table, add: records that change from now on have a field of this name

    Attributes:
        tables: Their names.
        limit_per_minute: Requests that it takes in a minute; None: any.
    """

    tables: tuple[str, ...] = ()

    # What a subclass says

    def understand(self, request: Request) -> Ask | None:
        """What a request asks for; None: there is no such path.

        Raises:
            ValueError: It makes no sense: status 400.
        """
        raise NotImplementedError

    def record(self, table: str, id: int, changed: str, version: int) -> dict[str, Any]:
        """A record as it is sent; `changed` is like `2026-01-31T23:59:59Z`."""
        return {"id": id, "updated_at": changed, "text": f"{table} {id} as of {version}"}

    def listed(self, ask: Ask, rows: Sequence[bytes], total: int) -> bytes:
        """The body of a list; `total` is how many there are beyond the limit, too."""
        return b"[" + b",".join(rows) + b"]"

    def counted(self, ask: Ask, count: int) -> bytes:
        """The body of a count."""
        return json.dumps({"count": count}).encode()

    def credentials_of(self, url: str, token: str) -> dict[str, str]:
        """What a person would give to connect."""
        return {"url": url, "token": token}

    def admits(self, request: Request, token: str) -> bool:
        """Whether a request has the right credentials."""
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    # The service

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._traffic = Traffic(None)
        self._tokens = [secrets.token_hex(16)]
        self._hostility = Hostility()
        self._latency = 0.0
        self._revoked = False
        self._verbs: dict[str, Callable[..., Any]] = {
            name.removeprefix("do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_")
        }
        self.do_reset()
        self._server = Server("127.0.0.1", 0, self._handle)
        threading.Thread(target=self._server.run, daemon=True, name=type(self).__name__).start()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def credentials(self) -> Mapping[str, str]:
        return self.credentials_of(self.url, self._tokens[0])

    def stop(self) -> None:
        """Ends it; requests under way are answered."""
        self._server.close()

    def control(self, method: str, /, **arguments: Any) -> Any:
        """Calls a method of the back door.

        Raises:
            ValueError: There is no such method, table or record.
        """
        if method not in self._verbs:
            raise ValueError(f"no method {method!r}; there are {sorted(self._verbs)}")
        with self._lock:
            return self._verbs[method](**arguments)

    def _handle(self, request: Request) -> Response:
        with self._lock:
            try:
                ask = self.understand(request)
            except (ValueError, KeyError):
                ask = None
                response = answers.error(400, "BadRequest", "the request makes no sense")
            else:
                response = answers.error(404, "NotFound", f"nothing at {request.path}")
            entry = Entry(
                number=0,
                at=0.0,
                method=request.method,
                kind="unknown" if ask is None else ask.kind,
                table=None if ask is None else ask.table,
                company_id=_COMPANY,
                path=request.path,
                conditions=None,
                query=request.query,
            )
            self._traffic.arrive(entry)
            admission = self._traffic.admit(_COMPANY, _COMPANY)
            if admission.wait > 0:
                response = answers.too_many(str(int(admission.wait) + 1), "json")
            elif self._revoked or not any(self.admits(request, good) for good in self._tokens):
                response = answers.unauthorized("who is that?")
            elif ask is not None:
                response = self._answer(ask)
            response.delay += self._latency
            if response.status:
                stamped = formatdate(self._clock.now(), usegmt=True)
                response.headers.append(("Date", stamped))
            self._traffic.depart(entry, response.status, response.rows, response.fault)
            return response

    def _answer(self, ask: Ask) -> Response:
        """The answer, spoilt by what the script wants."""
        for table in self._tables.values():
            table.settle(self._clock.now())
        stream = repr(replace(ask, after=None, about=None))
        traits = Traits(ask.kind, ask.table, _COMPANY, stream)
        fault = self._hostility.choose(traits)
        if fault is not None and fault.kind in BEFORE:
            replaced = _instead(fault)
            if replaced is not None:
                replaced.fault = fault.kind
                return replaced
        response, effective = self._sound(ask, fault, stream)
        if fault is None:
            return response
        if fault.kind in ON_WIRE and response.status == 200:
            effective = faults.damage(fault, response, self._hostility)
        faults.slow_down(fault, response)
        if effective or fault.kind in BEFORE:
            response.fault = fault.kind
        else:
            self._hostility.withdraw(traits)
        return response

    def _sound(self, ask: Ask, fault: Fault | None, stream: str) -> tuple[Response, bool]:
        """The answer, and whether a fault on its rows took effect."""
        table = self._tables[ask.table]
        if ask.kind == "get":
            record = table.records.get(ask.only or 0)
            if record is None or not record.live:
                return answers.error(404, "NotFound", "no such record"), False
            if self._restricted(ask.table, record.id):
                return answers.error(403, "Forbidden", "you may not read this record"), False
            return answers.json_response(200, record.visible.payload), False
        matching = [id for id in table.select(ask.filter()) if not self._restricted(ask.table, id)]
        if ask.kind == "count":
            return answers.json_response(200, self.counted(ask, len(matching))), False
        misread = _misread(fault, ask)
        shown = matching
        if misread is not None:
            shown = [
                i for i in table.select(misread.filter()) if not self._restricted(ask.table, i)
            ]
        limit = min((misread or ask).limit, self._hostility.standing.page_clamp)
        ids = sorted(shown, reverse=ask.newest_first)[:limit]
        page = Page([table.records[id].visible.payload for id in ids], None, matching)
        previous = self._hostility.previous_page(stream, page.rows)
        effective = misread is not None
        if fault is not None and fault.kind in ON_PAGE and misread is None:
            effective = faults.spoil(fault, page, previous, self._hostility)
        self._disturb(ask.table, matching)
        response = answers.json_response(200, self.listed(ask, page.rows, len(shown)))
        response.rows = len(page.rows)
        return response, effective

    def _restricted(self, table: str, id: int) -> bool:
        share = self._hostility.standing.restricted_share
        return share > 0 and zlib.crc32(f"{table}:{id}".encode()) / 2**32 < share

    def _disturb(self, table: str, matching: Sequence[int]) -> None:
        """What happens in the business between one page and the next."""
        standing = self._hostility.standing
        if standing.mutate_per_request and matching:
            count = min(standing.mutate_per_request, len(matching))
            self.do_mutate(table, ids=self._rng.sample(matching, count))
        if standing.delete_per_request and matching:
            count = min(standing.delete_per_request, len(matching))
            self.do_delete(table, ids=self._rng.sample(matching, count))
        if standing.create_per_request:
            self.do_create(table, standing.create_per_request)

    # The back door

    def do_reset(
        self,
        *,
        seed: int = 1,
        sizes: Mapping[str, int] | None = None,
        years: float = 2.0,
        now: str | None = None,
        page_clamp: int = 1000,
    ) -> dict[str, Any]:
        self._clock = Clock(None if now is None else seconds(now))
        self._rng = Random(seed)
        self._versions = 0
        self._fields: dict[str, list[str]] = {}
        self._tables = {name: Table(name) for name in self.tables}
        end = int(self._clock.now())
        for name, table in self._tables.items():
            count = (sizes or {}).get(name, _SEVERAL)
            start = end - int(years * 365 * DAY) + DAY
            created = created_moments(self._rng, count, start, end)
            table.load(
                Record(id, [self._version(name, id, moment)])
                for id, moment in enumerate(updated_moments(self._rng, created, end), start=1)
            )
        self._revoked, self._latency = False, 0.0
        self._traffic.set_limit(Limit(None))
        self._traffic.reset()
        self._hostility = Hostility.parse({"page_clamp": page_clamp})
        return {"now": stamp(end)}

    def do_clock(self, *, now: str) -> dict[str, Any]:
        self._clock.set(seconds(now))
        return {}

    def do_hostility(self, **script: Any) -> dict[str, Any]:
        self._hostility = Hostility.parse(script)
        return {}

    def do_limit(self, *, limit_per_minute: int | None) -> dict[str, Any]:
        self._traffic.set_limit(Limit(limit_per_minute))
        return {}

    def do_latency(self, *, latency_ms: float) -> dict[str, Any]:
        self._latency = latency_ms / 1000
        return {}

    def do_revoke(self) -> dict[str, Any]:
        self._revoked = True
        return {}

    def do_restore(self) -> dict[str, Any]:
        self._revoked = False
        return {}

    def do_rotate(self) -> dict[str, Any]:
        self._tokens.insert(0, secrets.token_hex(16))
        return {"credentials": dict(self.credentials)}

    def do_retire(self) -> dict[str, Any]:
        del self._tokens[1:]
        return {}

    def do_column(self, table: str, *, add: str) -> dict[str, Any]:
        self._fields.setdefault(table, []).append(add)
        return {}

    def do_mutate(
        self, table: str, count: int = 0, *, ids: Sequence[Any] | None = None, at: str | None = None
    ) -> dict[str, Any]:
        chosen = self._chosen(table, count, ids)
        for id in chosen:
            self._tables[table].revise(id, self._version(table, id, self._at(at)), self._late())
        return {"ids": chosen}

    def do_create(self, table: str, count: int = 1, *, at: str | None = None) -> dict[str, Any]:
        made = []
        for _ in range(count):
            id = self._tables[table].next_id
            version = self._version(table, id, self._at(at))
            self._tables[table].add(Record(id, [version]), self._late())
            made.append(id)
        return {"ids": made}

    def do_delete(
        self, table: str, count: int = 0, *, ids: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        chosen = self._chosen(table, count, ids)
        for id in chosen:
            self._tables[table].delete(id, int(self._clock.now()))
        return {"ids": chosen}

    def do_undelete(
        self, table: str, count: int = 0, *, ids: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        records = self._tables[table].records
        gone = [id for id, record in records.items() if record.deleted_at is not None]
        chosen = gone[:count] if ids is None else [int(id) for id in ids]
        for id in chosen:
            self._tables[table].undelete(id)
        return {"ids": chosen}

    def do_truth(self, table: str) -> dict[str, Any]:
        return {
            "records": {
                str(record.id): {
                    "versions": [{"payload": json.loads(v.payload)} for v in record.versions]
                }
                for record in self._tables[table].records.values()
            }
        }

    def do_truth_current(self, table: str) -> dict[str, Any]:
        self._tables[table].settle(self._clock.now())
        return {
            "records": {
                str(record.id): {
                    "updated_at": stamp(record.versions[-1].updated or 0),
                    "deleted": record.deleted_at is not None,
                    "visible": record.shown == len(record.versions) - 1,
                }
                for record in self._tables[table].records.values()
            },
            "pending": self._tables[table].pending,
        }

    def do_stats(self, *, log: int = 0) -> dict[str, Any]:
        return self._traffic.report(log)

    def do_stats_reset(self) -> dict[str, Any]:
        self._traffic.reset()
        return {}

    def _chosen(self, table: str, count: int, ids: Sequence[Any] | None) -> list[int]:
        if ids is not None:
            return [int(id) for id in ids]
        known = self._tables[table].live_ids()
        return sorted(self._rng.sample(list(known), min(count, len(known))))

    def _version(self, table: str, id: int, changed: int) -> Version:
        self._versions += 1
        record = self.record(table, id, stamp(changed), self._versions)
        added = dict.fromkeys(self._fields.get(table, ()), "new")
        return Version(changed, json.dumps(record | added).encode())

    def _at(self, at: str | None) -> int:
        return int(self._clock.now() if at is None else seconds(at))

    def _late(self) -> float | None:
        """When a change shows; None: at once."""
        standing = self._hostility.standing
        if standing.late_seconds <= 0 or self._hostility.chance() >= standing.late_share:
            return None
        return self._clock.now() + standing.late_seconds


def add_field(rig: Rig, table: str) -> str:
    """For `Enrolment.drift`, where the rig is a Stand."""
    rig.control("column", table=table, add="mood")
    return "mood"


def _instead(fault: Fault) -> Response | None:
    """What takes the place of the answer, or None to go on and answer."""
    given = fault.parameters
    match fault.kind:
        case "status":
            wait = given.get("retry_after")
            after = None if wait is None else str(wait)
            status = int(given.get("status", 503))
            return answers.failure(status, str(given.get("body", "json")), after, None)
        case "reset_before":
            return Response(0, reset=True)
        case "html_200":
            return answers.html_response(200, "Sign in", "Maintenance is in progress.")
        case "error_object_200":
            return answers.error(200, "Error", "An error occurred.")
        case "redirect":
            moved = Response(int(given.get("status", 302)))
            moved.headers.append(("Location", "https://maintenance.invalid/"))
            return moved
    return None


def _misread(fault: Fault | None, ask: Ask) -> Ask | None:
    """The request as a faulty service understands it; None if that makes no difference."""
    if fault is None:
        return None
    if fault.kind == "short_page":
        size = min(ask.limit, int(fault.parameters.get("rows", max(1, ask.limit // 2))))
        return None if size == ask.limit else replace(ask, limit=size)
    if fault.kind == "filter_ignored":
        keeps_ids = fault.parameters.get("ignore", "all_but_id") == "all_but_id"
        loose = replace(ask, since=None, until=None)
        if not keeps_ids:
            loose = replace(loose, after=None, upto=None, only=None)
        return None if loose == ask else loose
    return None
