"""The simulated ServiceNow instances, over HTTP.

Source: `facts/servicenow.md`, whose tags the docstrings of the modules repeat. An instance serves
what `listing` and `aggregate` answer, spoilt by what `script` decides; `control` is the back door
for tests, at every instance's port.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial

from avesa_dagster.sandbox import faults as common_faults
from avesa_dagster.sandbox.answers import html_response, json_response
from avesa_dagster.sandbox.backdoor import PREFIX
from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.fetched import Fetch
from avesa_dagster.sandbox.hostility import BEFORE, ON_PAGE, ON_WIRE, Fault, Traits
from avesa_dagster.sandbox.outages import Outage
from avesa_dagster.sandbox.servicenow import answers, auth, faults, listing
from avesa_dagster.sandbox.servicenow.aggregate import statistics
from avesa_dagster.sandbox.servicenow.control import Control
from avesa_dagster.sandbox.servicenow.listing import Answer, Ask, BadRequest
from avesa_dagster.sandbox.servicenow.rates import Verdict
from avesa_dagster.sandbox.servicenow.schema import TABLES, descendants
from avesa_dagster.sandbox.servicenow.selection import window_of
from avesa_dagster.sandbox.servicenow.site import Instance, Site
from avesa_dagster.sandbox.servicenow.world import WorldSpec
from avesa_dagster.sandbox.timestamps import stamp
from avesa_dagster.sandbox.traffic import Entry
from avesa_dagster.sandbox.wire import Request, Response, Server

_TOKEN_PATH = "/oauth_token.do"
_API_PATH = re.compile(
    r"/api/now(?:/(?P<version>v1|v2))?/(?P<api>table|stats)/(?P<table>[^/]+)(?:/(?P<key>[^/]+))?"
)
_JSON_TYPES = ("application/json", "application/*", "*/*")
_KEYSET = re.compile(r"(sys_updated_on|sys_created_on|sys_id)(>=|>|=)[^^]*")


@dataclass(frozen=True, slots=True)
class Route:
    """What a path names: kind is token, list, count, get or unknown."""

    kind: str
    version: str = ""
    table: str | None = None
    key: str = ""


def route(path: str) -> Route:
    """Read a path."""
    if path == _TOKEN_PATH:
        return Route("token")
    found = _API_PATH.fullmatch(path.rstrip("/"))
    if found is None:
        return Route("unknown")
    version, table, key = found["version"] or "", found["table"], found["key"] or ""
    if found["api"] == "stats":
        return Route("unknown" if key else "count", version, table)
    return Route("get" if key else "list", version, table, key)


class Door:
    """One listening port and the instance behind it, if there is one now."""

    def __init__(self) -> None:
        self.instance: Instance | None = None


class Service:
    """Answers requests; one for a site, used by every connection's thread."""

    def __init__(self, site: Site, control: Control) -> None:
        self.site = site
        self._control = control
        self._oversized_lock = threading.Lock()
        self._oversized = 0

    def handle(self, door: Door, request: Request) -> Response:
        """Answer one request; never raises."""
        try:
            if request.path.startswith(PREFIX):
                return self._control.handle(request)
            instance = door.instance
            if instance is None:
                return html_response(404, "Instance not found", "There is no such instance.")
            return self._serve(instance, request)
        except Exception:  # a bug here must be seen as ours, not as the service's
            traceback.print_exc(file=sys.stderr)
            return answers.error(500, "SimulatorBug", traceback.format_exc())

    def _serve(self, instance: Instance, request: Request) -> Response:
        site, where = self.site, route(request.path)
        entry = Entry(
            number=0,
            at=0.0,
            method=request.method,
            kind=where.kind,
            table=where.table,
            company_id=instance.company_id,
            path=request.path,
            conditions=request.query.get("sysparm_query"),
            query={k: v for k, v in request.query.items() if k.startswith("sysparm_")},
        )
        entry.query.pop("sysparm_query", None)
        site.traffic.arrive(entry)
        response = self._limited_or_answered(instance, request, where)
        response.delay += site.latency_of(instance)
        if response.status:
            response.headers.append(("Date", formatdate(site.clock.now(), usegmt=True)))
        site.traffic.depart(entry, response.status, response.rows, response.fault)
        return response

    def _limited_or_answered(self, instance: Instance, request: Request, where: Route) -> Response:
        """The limits are those of the user: token requests and strangers meet none."""
        if where.kind == "token" or not self._knows(instance, request):
            return self._answer_or_fail(instance, request, where)
        now = self.site.clock.now()
        user = f"{instance.company_id}+{instance.keys.username}"
        admission = self.site.traffic.admit(instance.company_id, user)
        verdict = None
        if admission.wait <= 0:
            verdict = instance.rules.judge(where.table, now)
        if verdict is None and admission.announce is not None:
            hour = int(now // 3600 + 1) * 3600
            verdict = Verdict(admission.announce[0] * 60, hour, "0" * 32, admission.wait)
        wait = admission.wait if verdict is None else max(admission.wait, verdict.wait)
        if wait > 0:
            per_minute = self.site.traffic.limit_per_minute or 1
            limit = per_minute * 60 if verdict is None else verdict.limit
            response = answers.too_many(math.ceil(wait), limit)
        else:
            response = self._answer_or_fail(instance, request, where)
        if verdict is not None and response.status:
            verdict.announce(response)
        return response

    def _knows(self, instance: Instance, request: Request) -> bool:
        """Whether the request authenticates as the instance's user."""
        now = self.site.clock.now()
        with instance.lock:
            known = auth.authenticated(request, instance.good_keys, instance.tokens, now)
        return known and not instance.revoked

    def _answer_or_fail(self, instance: Instance, request: Request, where: Route) -> Response:
        stream = f"{instance.company_id}|{where.kind}|{where.table}|{_stream(request)}"
        traits = Traits(where.kind, where.table, instance.company_id, stream)
        outage = self._outage(instance, request, where, traits)
        if outage is not None and outage.status is not None:
            failed = answers.failure(outage.status, "json", None, f"Outage {outage.name}.")
            failed.fault = outage.kind
            return failed
        response = self._answer_with_faults(instance, request, where, traits)
        if outage is not None and response.fault is None:
            response.fault = outage.kind
        return response

    def _outage(
        self, instance: Instance, request: Request, where: Route, traits: Traits
    ) -> Outage | None:
        """The outage that a request meets, after it has hung for as long as that wants."""

        def changed() -> Interval:
            table, text = where.table, request.query.get("sysparm_query", "")
            if table not in TABLES:
                return Interval()
            with instance.lock:
                return window_of(listing.read_query(text, instance, table)).instants

        outage = self.site.outages.met_by(traits, changed)
        if outage is not None and outage.seconds > 0:
            outage.healed.wait(outage.seconds)
        return outage

    def _answer_with_faults(
        self, instance: Instance, request: Request, where: Route, traits: Traits
    ) -> Response:
        hostility = self.site.script_of(instance).hostility
        fault = hostility.choose(traits)
        if fault is not None and fault.kind in BEFORE:
            replaced = faults.instead(fault, where.kind, request)
            if replaced is not None:
                replaced.fault = fault.kind
                return replaced
        response, effective = self._answer(instance, request, where, fault)
        if fault is not None and fault.kind in ON_WIRE and response.status == 200:
            effective = common_faults.damage(fault, response, hostility)
        if fault is not None:
            common_faults.slow_down(fault, response)
            if effective or fault.kind == "slow":
                response.fault = fault.kind
            else:
                hostility.withdraw(traits)
        return response

    def _answer(
        self, instance: Instance, request: Request, where: Route, fault: Fault | None
    ) -> tuple[Response, bool]:
        """The answer, and whether a fault on its rows took effect."""
        if instance.hibernating:
            return answers.hibernating(), False
        if where.kind == "token":
            with instance.lock:
                return self._token(instance, request), False
        refused = self._refused(instance, request, where)
        if refused is not None or where.table is None:
            return refused or answers.error(404, "Not Found"), False
        with instance.lock:
            instance.world.settle(self.site.clock.now())
            try:
                if where.kind == "list":
                    return self._list(instance, request, where, fault)
                return self._single(instance, request, where), False
            except BadRequest as problem:
                return answers.error(400, str(problem)), False

    def _token(self, instance: Instance, request: Request) -> Response:
        if instance.revoked:
            refused = {"error": "access_denied", "error_description": "access_denied"}
            return json_response(401, refused)
        return instance.tokens.answer(request, instance.properties, self.site.clock.now())

    def _refused(self, instance: Instance, request: Request, where: Route) -> Response | None:
        if not self._knows(instance, request):
            return answers.unauthenticated()
        if where.kind == "unknown":
            detail = "Requested URI does not represent any resource"
            return answers.error(400, f"{detail}: {request.path}")
        if request.method != "GET":
            return answers.error(405, "Method not allowed", "Method not supported")
        wanted = request.headers.get("accept", "*/*").split(",")
        if not any(one.partition(";")[0].strip().lower() in _JSON_TYPES for one in wanted):
            return answers.error(406, "Not acceptable", "No acceptable representation")
        if where.table not in TABLES or where.table in instance.absent:
            return answers.error(400, f"Invalid table {where.table}")
        if instance.unreadable.get(where.table) == "denied":
            return answers.error(403, "User Not Authorized", "Failed API level ACL Validation")
        return None

    def _single(self, instance: Instance, request: Request, where: Route) -> Response:
        """Figures, or one record."""
        assert where.table is not None
        script = self.site.script_of(instance)
        if where.kind == "count":
            body, selected = statistics(self.site, instance, where.table, request)
            quota = script.quirks.quota_rows
            if quota is not None and selected > quota:
                return json_response(200, answers.cancelled_error())
            return json_response(200, body)
        ask = listing.read(request, instance, where.table)
        store = instance.world.store_of(where.table)
        number = store.number(where.key)
        if number is None or not store.live(number):
            return answers.no_record()
        if store.visible(number).kind not in descendants(where.table):
            return answers.no_record()
        restricted = self.site.restricted(instance, where.table, number)
        rows = listing.rows_of(self.site, instance, ask, [number], script)
        if restricted or not rows:
            return answers.no_record()
        return json_response(200, b'{"result":' + rows[0] + b"}")

    def _list(
        self, instance: Instance, request: Request, where: Route, fault: Fault | None
    ) -> tuple[Response, bool]:
        site, table = self.site, where.table
        assert table is not None
        script = site.script_of(instance)
        ask = listing.read(request, instance, table)
        misread = faults.ask_for(fault, ask)
        found = listing.answer(site, instance, misread or ask, request)
        effective = misread is not None
        stream = f"{instance.company_id}|{table}|{_stream(request)}"
        previous = script.hostility.previous_page(stream, found.page.rows)
        if fault is not None and fault.kind in ON_PAGE and misread is None:
            effective = common_faults.spoil(fault, found.page, previous, script.hostility)
        site.disturb(instance, table, found.page.matching)
        if where.version == "v1" and not found.given:
            return self._with_headers(answers.no_record(), ask, found), effective
        cut = fault is not None and fault.kind == "error_object_200"
        response = self._page(instance, found, cut=cut)
        if found.page.rows:
            asked = _fetch(instance, ask, request)
            response.sending = partial(self._note, response, asked)
        return self._with_headers(response, ask, found), effective or cut

    def _page(self, instance: Instance, found: Answer, *, cut: bool) -> Response:
        """The body of a page, whole or as an exhausted transaction leaves it."""
        quirks, rows = self.site.script_of(instance).quirks, found.page.rows
        response = json_response(200, b"")
        response.rows = len(rows)
        slow = quirks.quota_rows is not None and found.total > quirks.quota_rows
        large = len(rows) > quirks.sound_rows
        if not (cut or slow or large):
            response.body = b'{"result":[' + b",".join(rows) + b"]}"
            return response
        if large and not cut and self._truncates(quirks.oversize):
            whole = b'{"result":[' + b",".join(rows) + b"]}"
            response.body = whole[: len(whole) * 2 // 3]
        else:
            response.body = faults.cancelled(rows)
        if not cut:
            response.fault = "oversize" if large else "quota"
        return response

    def _truncates(self, oversize: str) -> bool:
        with self._oversized_lock:
            self._oversized += 1
            return oversize == "truncate" or (oversize == "both" and self._oversized % 2 == 1)

    @staticmethod
    def _with_headers(response: Response, ask: Ask, found: Answer) -> Response:
        if ask.counted:
            response.headers.append(("X-Total-Count", str(found.total)))
        if found.page.link:
            response.headers.append(("Link", found.page.link))
        return response

    def _note(self, response: Response, asked: Fetch, listening: bool) -> None:
        """Count a page of records that is about to be sent."""
        spoilt = response.fault not in (None, "slow", "hang")
        rows = response.rows or 0
        self.site.fetched.note(asked, rows, spoilt=spoilt, delivered=listening)


def _stream(request: Request) -> str:
    """What the pages of one walk have in common: the query without its lower bounds."""
    rest = _KEYSET.sub("", request.query.get("sysparm_query", ""))
    return "^".join(sorted(set(rest.replace("^NQ", "^").split("^"))))


def _fetch(instance: Instance, ask: Ask, request: Request) -> Fetch:
    """Describe a list request for the page accounting."""
    window = window_of(ask.query)
    bounds = (window.instants.low, window.instants.high)
    low, high = (None if math.isinf(at) else stamp(int(at)) for at in bounds)
    given = request.query
    return Fetch(
        company_id=instance.company_id,
        table=ask.table,
        conditions=given.get("sysparm_query"),
        order_by=",".join(f"{name} desc" if down else name for name, down in ask.query.order),
        page=given.get("sysparm_offset"),
        page_id=None,
        page_size=given.get("sysparm_limit"),
        fields=given.get("sysparm_fields"),
        changed_from=low,
        changed_to=high,
        above_id=window.above,
    )


def serve(
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    seed: int = 1,
    world: WorldSpec | None = None,
    now: float | None = None,
    limit_per_minute: int | None = None,
    latency_ms: float = 0.0,
    grant: str = "basic",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run the service until the process ends.

    Args:
        port: of the first instance; 0 takes a free one. Further instances take free ones.
        now: the simulator's clock at the start, seconds since 1970 UTC; None is the real time.
        grant: the kind of credentials that are announced; see `site.GRANTS`.
        ready: called once with the announcement, one line of JSON with `url`, `credentials` and
            `control_token`, when the service is listening.
    """
    token = secrets.token_hex(16)
    desk = _Desk(host, port)
    site = Site(seed, world or WorldSpec(), now, limit_per_minute, grant, desk.connect)
    site.latency_seconds = latency_ms / 1000
    desk.service = Service(site, Control(site, token))
    first = next(iter(site.instances.values()))
    announcement = {
        "url": first.url,
        "credentials": first.credentials(grant),
        "control_token": token,
    }
    if ready is not None:
        ready(json.dumps(announcement))
    desk.run()


class _Desk:
    """Gives every instance a port: the first one's for the first, others when they are needed."""

    def __init__(self, host: str, port: int) -> None:
        self.service: Service | None = None
        self._host = host
        self._door = Door()
        self._doors: list[tuple[Door, str]] = []
        self._first = Server(host, port, partial(self._handle, self._door))
        self._doors.append((self._door, self._first.url))

    def connect(self, instance: Instance) -> None:
        """Let an instance listen; the first of a site starts afresh, all others are gone."""
        site = None if self.service is None else self.service.site
        if site is None or len(site.instances) == 1:
            for door, _ in self._doors:
                door.instance = None
        free = next(((door, url) for door, url in self._doors if door.instance is None), None)
        door, url = free or self._open()
        door.instance, instance.url = instance, url

    def _open(self) -> tuple[Door, str]:
        door = Door()
        server = Server(self._host, 0, partial(self._handle, door))
        threading.Thread(target=server.run, daemon=True).start()
        self._doors.append((door, server.url))
        return door, server.url

    def _handle(self, door: Door, request: Request) -> Response:
        assert self.service is not None
        return self.service.handle(door, request)

    def run(self) -> None:
        self._first.run()
