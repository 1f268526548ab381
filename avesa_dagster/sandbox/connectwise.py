"""The simulated ConnectWise PSA service, over HTTP.

Source: `facts/connectwise.md`, whose tags the docstrings of the modules repeat. The service serves
what `listing` answers, spoilt by what `hostility` decides; `control` is its back door for tests.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import secrets
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import partial

from avesa_dagster.sandbox import answers, faults, listing
from avesa_dagster.sandbox.backdoor import PREFIX
from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.control import Control
from avesa_dagster.sandbox.fetched import Fetch, fetch
from avesa_dagster.sandbox.hostility import BEFORE, ON_PAGE, ON_WIRE, Fault, Traits
from avesa_dagster.sandbox.outages import Outage
from avesa_dagster.sandbox.schema import TABLE_OF_PATH
from avesa_dagster.sandbox.site import Instance, Site
from avesa_dagster.sandbox.traffic import Admission, Entry
from avesa_dagster.sandbox.wire import Request, Response, Server
from avesa_dagster.sandbox.world import WorldSpec

_LONGEST_TARGET = 10_000
_API_PATH = re.compile(r"/(?P<codebase>[^/]+/)apis/3\.0/(?P<rest>.+)")
_COMPANY_INFO = "/login/companyinfo/"
_VERSION = re.compile(r"version=(\d{4}\.\d+)")
_CURRENT_VERSION = "2025.1"


@dataclass(frozen=True, slots=True)
class Route:
    """What a path names: kind is companyinfo, info, list, count, search, get or unknown."""

    kind: str
    codebase: str | None = None
    table: str | None = None
    key: str = ""


def route(path: str) -> Route:
    """Read a path."""
    if path.startswith(_COMPANY_INFO):
        return Route("companyinfo", key=path[len(_COMPANY_INFO) :])
    found = _API_PATH.fullmatch(path.rstrip("/"))
    if found is None:
        return Route("unknown")
    codebase, rest = found["codebase"], found["rest"]
    if rest == "system/info":
        return Route("info", codebase)
    table_path, _, key = rest.rpartition("/")
    if rest in TABLE_OF_PATH:
        return Route("list", codebase, TABLE_OF_PATH[rest])
    if table_path in TABLE_OF_PATH:
        kind = key if key in ("count", "search") else "get"
        return Route(kind, codebase, TABLE_OF_PATH[table_path], key)
    return Route("unknown", codebase)


def _basic(request: Request) -> tuple[str, str, str] | None:
    """(company id, public key, private key) of the Authorization header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        text = base64.b64decode(token, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, _, private = text.partition(":")
    company, plus, public = user.partition("+")
    return (company, public, private) if scheme.lower() == "basic" and plus else None


class Service:
    """Answers requests; one for a site, used by every connection's thread."""

    def __init__(self, site: Site, control_token: str) -> None:
        self.site = site
        self._control = Control(site, control_token)
        self._refusals_lock = threading.Lock()
        self._refusals = 0

    def handle(self, request: Request) -> Response:
        """Answer one request; never raises."""
        try:
            if request.path.startswith(PREFIX):
                return self._control.handle(request)
            return self._serve(request)
        except Exception:  # a bug here must be seen as ours, not as the service's
            traceback.print_exc(file=sys.stderr)
            return answers.error(500, "SimulatorBug", traceback.format_exc())

    def _serve(self, request: Request) -> Response:
        where = route(request.path)
        caller = _basic(request)
        entry = Entry(
            number=0,
            at=0.0,
            method=request.method,
            kind="list" if where.kind == "search" else where.kind,
            table=where.table,
            company_id=None if caller is None else caller[0],
            path=request.path,
            conditions=_conditions(request),
            query={k: v for k, v in request.query.items() if k != "conditions"},
        )
        self.site.traffic.arrive(entry)
        admission = self._admit(where, caller)
        response = self._refuse_or_answer(request, where, caller, entry, admission)
        response.delay += self.site.latency_of(self._known(caller))
        if response.status:
            self._add_headers(request, response, admission)
        self.site.traffic.depart(entry, response.status, response.rows, response.fault)
        return response

    def _known(self, caller: tuple[str, str, str] | None) -> Instance | None:
        """The company that a caller says to be of, if there is one of that name."""
        return None if caller is None else self.site.instances.get(caller[0])

    def _admit(self, where: Route, caller: tuple[str, str, str] | None) -> Admission:
        if where.kind == "companyinfo":
            return Admission(0.0, None)
        if caller is None:
            return self.site.traffic.admit(None, "anonymous")
        return self.site.traffic.admit(caller[0], "+".join(caller[:2]))

    def _refuse_or_answer(
        self,
        request: Request,
        where: Route,
        caller: tuple[str, str, str] | None,
        entry: Entry,
        admission: Admission,
    ) -> Response:
        if admission.wait > 0:
            return self._too_many(admission)
        traits = Traits(entry.kind, where.table, entry.company_id, self._stream(request, where))
        outage = self._outage(request, where, traits)
        if outage is not None and outage.status is not None:
            failed = answers.failure(outage.status, "json", None, f"Outage {outage.name}.")
            failed.fault = outage.kind
            return failed
        response = self._answer_with_faults(request, where, caller, traits)
        if outage is not None and response.fault is None:
            response.fault = outage.kind
        return response

    def _outage(self, request: Request, where: Route, traits: Traits) -> Outage | None:
        """The outage that a request meets, after it has hung for as long as that wants."""

        def changed() -> Interval:
            if where.table is None:
                return Interval()
            try:
                return listing.read(request, where.table, 1, paged=False).filter.updated
            except listing.BadRequest:
                return Interval()

        if where.kind == "companyinfo":
            traits = replace(traits, company_id=where.key)
        outage = self.site.outages.met_by(traits, changed)
        if outage is not None and outage.seconds > 0:
            outage.healed.wait(outage.seconds)
        return outage

    def _answer_with_faults(
        self,
        request: Request,
        where: Route,
        caller: tuple[str, str, str] | None,
        traits: Traits,
    ) -> Response:
        site, hostility = self.site, self.site.hostility_to(self._known(caller))
        fault = hostility.choose(traits)
        if fault is not None and fault.kind in BEFORE:
            replaced = faults.instead(fault, site, request)
            if replaced is not None:
                replaced.fault = fault.kind
                return replaced
        response, effective = self._answer(request, where, caller, fault)
        if fault is not None and fault.kind in ON_WIRE and response.status == 200:
            effective = faults.damage(fault, response, hostility)
        if fault is not None:
            faults.slow_down(fault, response)
            if effective or fault.kind in BEFORE:
                response.fault = fault.kind
            else:
                hostility.withdraw(traits)
        return response

    def _answer(
        self,
        request: Request,
        where: Route,
        caller: tuple[str, str, str] | None,
        fault: Fault | None,
    ) -> tuple[Response, bool]:
        """The answer, and whether a fault on its rows took effect."""
        site = self.site
        if where.kind == "companyinfo":
            return self._company_info(where.key), False
        if where.codebase != site.codebase:
            return answers.html_response(404, "404 - File or directory not found.", ""), False
        instance = site.instances.get(caller[0]) if caller else None
        denied = self._denied(request, caller, instance)
        if denied is not None or instance is None:
            return denied or answers.unauthorized("Unknown company."), False
        if len(request.target) > _LONGEST_TARGET:
            return answers.html_response(414, "414 URI Too Long", ""), False
        if request.method != ("POST" if where.kind == "search" else "GET"):
            return answers.error(405, "MethodNotAllowed", "Method not allowed."), False
        with instance.lock:
            instance.world.settle(site.clock.now())
            try:
                if where.kind in ("list", "search"):
                    return self._list(request, where, instance, fault)
                return self._single(request, where, instance), False
            except listing.BadRequest as problem:
                return answers.error(400, "ConnectWiseApi", str(problem)), False

    def _too_many(self, admission: Admission) -> Response:
        with self._refusals_lock:
            self._refusals += 1
            shape = "json" if self._refusals % 2 else "cloudflare"
        return answers.too_many(str(math.ceil(admission.wait)), shape)

    def _denied(
        self, request: Request, caller: tuple[str, str, str] | None, instance: Instance | None
    ) -> Response | None:
        if caller is None or instance is None or instance.revoked:
            return answers.unauthorized("The provided credentials are not valid.")
        given = ":".join(caller[1:]).encode()
        pairs = [f"{instance.public_key}:{key}".encode() for key in instance.private_keys]
        if not any(secrets.compare_digest(given, pair) for pair in pairs):
            return answers.unauthorized("The provided credentials are not valid.")
        if request.headers.get("clientid") != instance.client_id:
            return answers.unauthorized("The clientId header is missing or not valid.")
        return None

    def _company_info(self, company_id: str) -> Response:
        if company_id not in self.site.instances:
            return answers.json_response(200, None)
        codebase = self.site.codebase
        version = codebase.strip("/").replace("_", ".")
        return answers.json_response(
            200,
            {
                "CompanyName": company_id.replace("_", " ").title(),
                "Codebase": codebase,
                "VersionCode": version,
                "VersionNumber": "v4.6.91234",
                "CompanyID": company_id,
                "IsCloud": "False",
            },
        )

    def _single(self, request: Request, where: Route, instance: Instance) -> Response:
        """Everything but lists: system/info, count, one record, or no such thing."""
        site = self.site
        if where.kind == "info":
            return answers.json_response(
                200,
                {
                    "version": f"{site.codebase.strip('/')}.91234",
                    "isCloud": False,
                    "serverTimeZone": "Eastern Standard Time",
                    "cloudRegion": "NA",
                },
            )
        if where.table is None:
            return answers.error(404, "NotFound", f"No resource at {request.path}.")
        table = instance.world.tables[where.table]
        if where.kind == "count":
            ask = listing.read(request, where.table, listing.LARGEST_PAGE_SIZE, paged=False)
            ids = site.permitted(instance, table.name, table.select(ask.filter))
            return answers.json_response(200, {"count": len(ids)})
        id = int(where.key) if where.key.isdigit() else -1
        record = table.records.get(id)
        if record is None or not record.live:
            return answers.error(404, "NotFound", f"{where.table} {where.key} not found.")
        if site.restricted(instance, table.name, id):
            return answers.error(403, "Forbidden", "You do not have permission to this record.")
        fields = tuple(filter(None, request.query.get("fields", "").replace(".", "/").split(",")))
        return answers.json_response(200, listing.render(table, id, fields))

    def _list(
        self, request: Request, where: Route, instance: Instance, fault: Fault | None
    ) -> tuple[Response, bool]:
        site, hostility = self.site, self.site.hostility_to(instance)
        standing = hostility.standing
        assert where.table is not None
        table = instance.world.tables[where.table]
        ask = listing.read(request, where.table, standing.page_clamp)
        misread = faults.ask_for(fault, ask)
        ties = hostility.below(2**31) if standing.shuffle_ties else None
        page = listing.answer(
            table,
            misread or ask,
            lambda ids: site.permitted(instance, table.name, ids),
            request,
            ties,
        )
        effective = misread is not None
        stream = f"{instance.company_id}|{table.name}|{ask.stream}"
        previous = hostility.previous_page(stream, page.rows)
        if fault is not None and fault.kind in ON_PAGE and misread is None:
            effective = faults.spoil(fault, page, previous, hostility)
        site.disturb(instance, table, page.matching)
        response = answers.json_response(200, b"[" + b",".join(page.rows) + b"]")
        response.rows = len(page.rows)
        if page.link is not None:
            response.headers.append(("Link", page.link))
        if page.rows:
            query = request.query
            asked = fetch(instance.company_id, table.name, _conditions(request), query, ask)
            response.sending = partial(self._note, response, asked)
        return response, effective

    def _note(self, response: Response, asked: Fetch, listening: bool) -> None:
        """Count a page of records that is about to be sent."""
        spoilt = response.fault not in (None, "slow", "hang")
        rows = response.rows or 0
        self.site.fetched.note(asked, rows, spoilt=spoilt, delivered=listening)

    def _stream(self, request: Request, where: Route) -> str:
        if where.table is None:
            return where.kind
        try:
            conditions = listing.read(request, where.table, 1000, paged=False).stream
        except listing.BadRequest:
            conditions = "?"
        caller = request.headers.get("authorization", "")
        return f"{caller}|{where.table}|{where.kind}|{where.key}|{conditions}"

    def _add_headers(self, request: Request, response: Response, admission: Admission) -> None:
        found = _VERSION.search(request.headers.get("accept", ""))
        response.headers += [
            ("Date", formatdate(self.site.clock.now(), usegmt=True)),
            ("api-current-version", found[1] if found else _CURRENT_VERSION),
            ("x-cw-request-id", str(uuid.uuid4())),
            ("x-server-name", "SIM-WEB-1"),
        ]
        if admission.announce is not None:
            limit, remaining = admission.announce
            response.headers.append(("X-RateLimit-Limit", str(limit)))
            response.headers.append(("X-RateLimit-Remaining", str(remaining)))


def _conditions(request: Request) -> str | None:
    """The filter as sent, for the log."""
    if request.method == "POST":
        try:
            return str(json.loads(request.body)["conditions"])
        except (ValueError, KeyError, TypeError):
            return None
    return request.query.get("conditions")


def serve(
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    seed: int = 1,
    world: WorldSpec | None = None,
    now: float | None = None,
    limit_per_minute: int | None = None,
    latency_ms: float = 0.0,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run the service until the process ends.

    Args:
        port: 0 takes a free one.
        now: the simulator's clock at the start, seconds since 1970 UTC; None is the real time.
        ready: called once with the announcement, one line of JSON with `url`, `credentials` and
            `control_token`, when the service is listening.
    """
    site = Site(seed, world or WorldSpec(), now, limit_per_minute)
    site.latency_seconds = latency_ms / 1000
    token = secrets.token_hex(16)
    server = Server(host, port, Service(site, token).handle)
    site.url = server.url
    if ready is not None:
        first = next(iter(site.instances.values()))
        ready(
            json.dumps(
                {
                    "url": server.url,
                    "credentials": first.credentials(server.url),
                    "control_token": token,
                }
            )
        )
    server.run()
