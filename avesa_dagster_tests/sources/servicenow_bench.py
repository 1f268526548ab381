"""What the tests of the ServiceNow source add to the conformance suite's bench."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

from avesa_dagster.conformance import Rig
from avesa_dagster.conformance.bench import NOW, TENANT, Bench
from avesa_dagster.sources.base import Source, Span, Window
from avesa_dagster_tests.conformance import test_servicenow

ENROLMENT = test_servicenow.TestServiceNow.enrolment
SERVICE = ENROLMENT.service
EVER = Span(Window(NOW.replace(year=2020), NOW))


def credentials(rig: Rig, grant: str) -> dict[str, str]:
    """What an administrator would give for a grant, which the instance permits from now on."""
    if grant == "refresh_token":
        held = credentials(rig, "password")
        form = {"grant_type": "password"} | held
        given = requests.post(f"{held['instance_url']}/oauth_token.do", data=form, timeout=10)
        application = {n: v for n, v in held.items() if n not in ("username", "password")}
        return application | {"refresh_token": given.json()["refresh_token"]}
    if grant == "client_credentials":
        name = "glide.oauth.inbound.client.credential.grant_type.enabled"
        rig.control("property", name=name, value=True)
    [about] = rig.control("companies")["companies"].values()
    found: dict[str, str] = about[grant]
    return found


def open_source(bench: Bench, values: Mapping[str, str] | None = None) -> Source:
    """A source of its own; with the stored credentials, unless others are given."""
    installation, connection = bench.installation, bench.connection
    if values is None:
        return installation.open_source(connection, False, lambda: False)()
    return installation.open_with(connection, values, live=False, cancelled=lambda: False)()


def stored(bench: Bench) -> dict[str, str]:
    """The credentials that the installation keeps."""
    return dict(bench.installation.secrets.get(TENANT, SERVICE))


def store(bench: Bench, values: Mapping[str, str]) -> None:
    bench.installation.secrets.put(TENANT, SERVICE, dict(values))


def redescribed(bench: Bench, table: str, **changes: Any) -> None:
    """The catalog says something else of a table from now on."""
    catalog = bench.installation.catalog
    service = catalog.services[SERVICE]
    tables = service.tables | {table: service.tables[table].model_copy(update=changes)}
    services = catalog.services | {SERVICE: service.model_copy(update={"tables": tables})}
    bench.installation.__dict__["catalog"] = catalog.model_copy(update={"services": services})
    bench.installation.__dict__.pop("extractor", None)


def log(bench: Bench, kind: str | None = None, table: str | None = None) -> list[dict[str, Any]]:
    """The requests since `stats_reset`, oldest first."""
    found: list[dict[str, Any]] = bench.control("stats", log=5000)["log"]
    return [e for e in found if kind in (None, e["kind"]) and table in (None, e["table"])]


def at_request(number: int, act: Callable[[], object]) -> Callable[[], bool]:
    """For `Bench.run`: never cancels, and acts when it is asked for so many times, which is twice a
    request or more."""
    asked = itertools.count(1)

    def cancelled() -> bool:
        if next(asked) == number:
            act()
        return False

    return cancelled


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that reached a `Front`. `path` is without the query."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Said = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


Forward = Callable[[Asked], Said]
Answer = Callable[[Asked, Forward], Said | None]
"""Gets a request and what passes it on; None: as the instance answers it."""


def _passed_on(behind: str, asked: Asked) -> Said:
    answer = requests.request(
        asked.method,
        behind + asked.target,
        headers={name: v for name, v in asked.headers.items() if name.lower() != "host"},
        data=asked.body or None,
        timeout=10,
    )
    kept = ("content-type", "x-total-count", "link", "date", "retry-after")
    headers = {name: v for name, v in answer.headers.items() if name.lower() in kept}
    return answer.status_code, headers, answer.content


@contextmanager
def front(behind: str, answer: Answer) -> Iterator[str]:
    """A host before the instance that answers in its place, or alters what it says; its address."""

    def forward(asked: Asked) -> Said:
        return _passed_on(behind, asked)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, self.path, dict(self.headers.items()), body)
            status, headers, out = answer(asked, forward) or forward(asked)
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
