"""The simulated Salesforce, over HTTP: who asks, whether they may, and what they are told."""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, unquote

from avesa_dagster.sandbox.answers import html_response, json_response
from avesa_dagster.sandbox.backdoor import PREFIX
from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.faults import slow_down
from avesa_dagster.sandbox.hostility import BEFORE, ON_WIRE, Fault, Traits
from avesa_dagster.sandbox.outages import Outage
from avesa_dagster.sandbox.salesforce import describe, faults, oauth
from avesa_dagster.sandbox.salesforce.asked import Asked, stream_of, understand
from avesa_dagster.sandbox.salesforce.control import Control
from avesa_dagster.sandbox.salesforce.data import AT_ONCE, Data
from avesa_dagster.sandbox.salesforce.hostility import AFTERWARDS, OWN
from avesa_dagster.sandbox.salesforce.org import OrgSpec
from avesa_dagster.sandbox.salesforce.paths import Route, host_of, route
from avesa_dagster.sandbox.salesforce.problems import (
    ApiError,
    OAuthError,
    answer,
    by_status,
    oauth_answer,
    problem,
)
from avesa_dagster.sandbox.salesforce.site import Site, Tenancy
from avesa_dagster.sandbox.traffic import Entry
from avesa_dagster.sandbox.wire import Request, Response, Server

LONGEST_URI = 16_384
_LARGEST_BATCH_REQUEST = 25
_FREE = ("token", "soap", "versions", "unknown")
"""Kinds that need no session, or have none to spend a request of."""
_NOT_ONLY_READ = ("job", "status", "results", "pages", "composite")


class Service:
    """Answers requests; one for a site, used by every connection's thread."""

    def __init__(self, site: Site, control_token: str) -> None:
        self.site = site
        self._control = Control(site, control_token)
        self._answers = Data(site)

    def handle(self, request: Request) -> Response:
        """Answer one request; never raises."""
        try:
            if request.path.startswith(PREFIX):
                return self._control.handle(request)
            return self._serve(request)
        except Exception:  # a bug here must be seen as ours, not as the service's
            traceback.print_exc(file=sys.stderr)
            return problem(500, "SIMULATOR_BUG", traceback.format_exc())

    # ---- around the answer

    def _serve(self, request: Request) -> Response:
        host, path = host_of(request.path, request.host)
        where = route(path, request.method)
        form = oauth.form_of(request) if where.kind == "token" else {}
        session, tenancy = self._caller(request, where, form)
        asked = understand(request, where, tenancy, self.site.clock.now())
        entry = self._entry(request, asked, tenancy)
        self.site.traffic.arrive(entry)
        began = object()
        busy = tenancy is not None and where.kind not in _FREE
        entered = not busy or tenancy is None or tenancy.concurrency.enter(began)
        try:
            if not entered:
                response = answer(ApiError("CONCURRENT"))
            else:
                response = self._refuse_or_answer(request, asked, tenancy, session, host, form)
            wait = response.delay + self.site.latency_of(tenancy)
            if wait > 0:
                time.sleep(wait)  # here, not while sending: it counts as time that it took
            response.delay = 0.0
        finally:
            if busy and tenancy is not None:
                tenancy.concurrency.leave(began)
        if response.status:
            self._add_headers(response, asked, tenancy)
        self.site.traffic.depart(entry, response.status, response.rows, response.fault)
        return response

    def _caller(
        self, request: Request, where: Route, form: dict[str, str]
    ) -> tuple[oauth.Session | None, Tenancy | None]:
        """Who asks: the session, over or not, and the org."""
        site = self.site
        if where.kind == "token":
            return None, site.tenancy_of_client(form.get("client_id", ""))
        if where.kind == "soap":
            return None, site.tenancy_of_user(oauth.soap_credentials(request.body)[0])
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        known = scheme.lower() in ("bearer", "oauth")
        session = site.sessions.find(token.strip()) if known else None
        return session, None if session is None else site.tenancies.get(session.company_id)

    def _entry(self, request: Request, asked: Asked, tenancy: Tenancy | None) -> Entry:
        secret = asked.kind in ("token", "soap")
        return Entry(
            number=0,
            at=0.0,
            method=request.method,
            kind=asked.kind,
            table=asked.table,
            company_id=None if tenancy is None else tenancy.org.company_id,
            path=request.path,
            conditions=None if asked.plan is None else asked.plan.query.where_text,
            query={} if secret else dict(request.query),
        )

    def _refuse_or_answer(
        self,
        request: Request,
        asked: Asked,
        tenancy: Tenancy | None,
        session: oauth.Session | None,
        host: str,
        form: dict[str, str],
    ) -> Response:
        company_id = None if tenancy is None else tenancy.org.company_id
        if tenancy is not None and asked.kind not in _FREE:
            credential = f"{company_id}+{tenancy.app.client_id}"
            if self.site.traffic.admit(company_id, credential).wait > 0:
                return answer(ApiError("CONCURRENT"))
        if tenancy is not None and tenancy.org.hibernating is not None:
            page = faults.maintenance(tenancy.org.hibernating, "This organization is hibernating.")
            page.fault = "hibernating"
            return page
        traits = Traits(asked.kind, asked.table, company_id, stream_of(asked, company_id))
        outage = self._outage(asked, traits)
        if outage is not None and outage.status is not None:
            failed = by_status(outage.status, f"Outage {outage.name}.")
            failed.fault = outage.kind
            return failed
        response = self._answer_with_faults(request, asked, tenancy, session, host, form, traits)
        if outage is not None and response.fault is None:
            response.fault = outage.kind
        return response

    def _outage(self, asked: Asked, traits: Traits) -> Outage | None:
        """The outage that a request meets, after it has hung for as long as that wants."""

        def changed() -> Interval:
            return Interval() if asked.plan is None else asked.plan.changed

        outage = self.site.outages.met_by(traits, changed)
        if outage is not None and outage.seconds > 0:
            outage.healed.wait(outage.seconds)
        return outage

    def _answer_with_faults(
        self,
        request: Request,
        asked: Asked,
        tenancy: Tenancy | None,
        session: oauth.Session | None,
        host: str,
        form: dict[str, str],
        traits: Traits,
    ) -> Response:
        hostility = self.site.hostility_to(tenancy)
        fault = hostility.choose(traits)
        if fault is not None and (fault.kind in BEFORE or fault.kind in OWN):
            replaced = faults.instead(fault, self.site, tenancy, request)
            if replaced is not None:
                replaced.fault = fault.kind
                return replaced
        response, effective = self._answer(request, asked, tenancy, session, host, form, fault)
        if fault is None:
            return response
        if fault.kind in ON_WIRE and response.status == 200:
            effective = faults.damage(fault, response, hostility, AT_ONCE)
        elif fault.kind in AFTERWARDS:
            effective = faults.afterwards(fault, tenancy, asked.table)
        elif fault.kind in ("slow", "session_expired", "lose_cursors"):
            effective = True
        slow_down(fault, response)
        if effective:
            response.fault = fault.kind
        else:
            hostility.withdraw(traits)
        return response

    def _add_headers(self, response: Response, asked: Asked, tenancy: Tenancy | None) -> None:
        now = self.site.clock.now()
        response.headers.append(("Date", formatdate(now, usegmt=True)))
        if tenancy is not None and asked.where.kind not in _FREE:
            response.headers.append(("Sforce-Limit-Info", tenancy.org.allowance.header(now)))

    # ---- the answer

    def _answer(
        self,
        request: Request,
        asked: Asked,
        tenancy: Tenancy | None,
        session: oauth.Session | None,
        host: str,
        form: dict[str, str],
        fault: Fault | None,
    ) -> tuple[Response, bool]:
        """The answer, and whether a fault on its rows took effect."""
        if len(request.target) > LONGEST_URI:
            return html_response(414, "414 URI Too Long", "The URI exceeds the limit."), False
        if len(request.target) + sum(map(len, request.headers.values())) > LONGEST_URI:
            return html_response(431, "431 Request Header Fields Too Large", ""), False
        kind = asked.where.kind
        if kind == "token":
            return self._token(request, form, tenancy, host), False
        if kind == "soap":
            return self._soap(request, tenancy, host), False
        if kind == "versions":
            return json_response(200, describe.versions()), False
        try:
            self._admit(request, asked, tenancy, session, host)
            assert tenancy is not None
            if kind == "composite":
                return self._composite(request), False
            with tenancy.org.lock:
                tenancy.org.settle(self.site.clock.now())
                return self._answers.answer(request, asked, tenancy, fault)
        except ApiError as found:
            return answer(found), False

    def _admit(
        self,
        request: Request,
        asked: Asked,
        tenancy: Tenancy | None,
        session: oauth.Session | None,
        host: str,
    ) -> None:
        """Check the session and the allowance.

        Raises:
            ApiError: it is refused.
        """
        now, site = self.site.clock.now(), self.site
        if session is None or tenancy is None or session.ends <= now or tenancy.org.revoked:
            raise ApiError("INVALID_SESSION_ID")
        moved = site.instance_url != site.url
        if host != "instance" or (moved and request.host != site.instance_url.partition("//")[2]):
            raise ApiError("INVALID_SESSION_ID")
        if not tenancy.org.rest_allowed:
            raise ApiError(
                "INVALID_SESSION_ID", "This session is not valid for use with the REST API"
            )
        if not tenancy.org.api_enabled:
            raise ApiError("API_DISABLED_FOR_ORG")
        if not tenancy.org.allowance.admit(now):
            raise ApiError("REQUEST_LIMIT_EXCEEDED")
        if asked.where.kind == "unknown":
            raise ApiError("NOT_FOUND")
        if asked.where.kind not in _NOT_ONLY_READ and request.method != "GET":
            raise ApiError("METHOD_NOT_ALLOWED", f"HTTP Method '{request.method}' not allowed.")
        if asked.problem is not None:
            raise asked.problem

    def _token(
        self, request: Request, form: dict[str, str], tenancy: Tenancy | None, host: str
    ) -> Response:
        site, now = self.site, self.site.clock.now()
        app = None if tenancy is None else tenancy.app
        try:
            more = oauth.grant(request, form, app, host, now)
        except OAuthError as found:
            return oauth_answer(found)
        assert app is not None
        session = site.sessions.open(app, now)
        return oauth.token_answer(app, session, more, site.instance_url, site.url, now)

    def _soap(self, request: Request, tenancy: Tenancy | None, host: str) -> Response:
        _, password = oauth.soap_credentials(request.body)
        app = None if tenancy is None else tenancy.app
        if app is None or not oauth.soap_login_ok(app, password, host):
            return oauth.soap_answer(None, None, "")
        session = self.site.sessions.open(app, self.site.clock.now())
        return oauth.soap_answer(app, session, self.site.instance_url)

    def _composite(self, request: Request) -> Response:
        """At most 25 GETs in one request; each of them spends one of the allowance. [SST]"""
        try:
            parts = [(str(p["method"]), str(p["url"])) for p in json.loads(request.body)[
                "batchRequests"]]  # fmt: skip
        except (ValueError, KeyError, TypeError):
            raise ApiError("JSON_PARSER_ERROR", "batchRequests is missing") from None
        if len(parts) > _LARGEST_BATCH_REQUEST:
            raise ApiError("LIMIT_EXCEEDED", "batchRequests must not be larger than 25")
        results: list[dict[str, Any]] = []
        for method, url in parts:
            target = "/services/data/" + url.lstrip("/").removeprefix("services/data/")
            path, _, text = target.partition("?")
            path = unquote(path)
            response = self._serve(
                Request(method, target, path, _query_of(text), request.headers, b"")
            )
            body = json.loads(response.body) if response.body[:1] in (b"[", b"{") else None
            results.append({"statusCode": response.status, "result": body})
        failed = any(part["statusCode"] >= 400 for part in results)
        return json_response(200, {"hasErrors": failed, "results": results})


def _query_of(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


def serve(
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    seed: int = 1,
    world: OrgSpec | None = None,
    now: float | None = None,
    limit_per_minute: int | None = None,
    latency_ms: float = 0.0,
    grant: str = "client_credentials",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run the service until the process ends.

    Args:
        port: 0 takes a free one.
        now: the simulator's clock at the start, seconds since 1970 UTC; None is the real time.
        grant: which credentials the announcement has.
        ready: called once with the announcement, one line of JSON with `url`, `credentials` and
            `control_token`, when the service is listening.
    """
    site = Site(seed, world or OrgSpec(), now, limit_per_minute)
    site.latency_seconds = latency_ms / 1000
    token = secrets.token_hex(16)
    service = Service(site, token)
    server = Server(host, port, service.handle)
    other = Server(host, 0, service.handle)
    site.url = site.instance_url = server.url
    site.other_url = other.url
    threading.Thread(target=other.run, daemon=True).start()
    if ready is not None:
        first = next(iter(site.tenancies.values()))
        about = {"url": server.url, "credentials": first.app.credentials(server.url, grant)}
        ready(json.dumps(about | {"control_token": token}))
    server.run()
