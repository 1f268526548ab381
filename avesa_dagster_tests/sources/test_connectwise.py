"""The ConnectWise source: who it talks to, what it sends there, and what it says when it fails."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    FatalError,
    PermissionRefused,
    RetriableError,
    Stopped,
    Where,
)
from avesa_dagster.sources import connectwise
from avesa_dagster.sources.base import Source, Span, Window
from avesa_dagster.sources.connectwise.credentials import Credentials
from avesa_dagster.sources.connectwise.source import Codebase
from avesa_dagster.sources.http import Retrying, _seconds
from avesa_dagster_tests.extract.support import NOW, SERVICE, TENANT, UNPACED, Bench

WINDOW = Window(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))


def open_source(bench: Bench, **changed: str) -> Source:
    """A source with the simulator's credentials, some of them changed."""
    connection = bench.installation.control.registry.get(TENANT, SERVICE)
    assert connection is not None
    values = {**bench.simulator.credentials, **changed}
    return bench.installation.open_with(connection, values, live=False, cancelled=lambda: False)()


@contextmanager
def capturing(host: str = "127.0.0.2") -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Another host that writes down the headers of whatever reaches it."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path} | {k.lower(): v for k, v in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        do_CONNECT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{host}:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def everything_said(error: BaseException) -> str:
    """The texts of an error, of its arguments and of all errors behind it."""
    texts = traceback.format_exception(error)
    seen: BaseException | None = error
    while seen is not None:
        texts += [str(seen), repr(seen), repr(seen.args)]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(texts)


def secrets_of(bench: Bench) -> list[str]:
    held = bench.simulator.credentials
    token = Credentials.parse(held, Where()).headers()["Authorization"].split()[1]
    return [held["public_key"], held["private_key"], held["client_id"], token]


def test_a_redirect_to_another_host_is_named_and_gets_nothing(bench: Bench) -> None:
    with capturing() as (elsewhere, seen):
        redirect = {"kind": "redirect", "location": f"http://{elsewhere}", "probability": 1.0}
        bench.control("hostility", faults=[redirect])
        with pytest.raises(ConfigurationError) as caught:
            bench.extract("tickets")
        assert elsewhere in str(caught.value)
        assert bench.simulator.url.removeprefix("http://") in str(caught.value)
        assert seen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_kind_of_redirect_is_followed(bench: Bench, status: int) -> None:
    with capturing() as (elsewhere, seen):
        location = f"http://{elsewhere}"
        redirect = {"kind": "redirect", "status": status, "location": location, "at": [1]}
        bench.control("hostility", faults=[redirect])
        with pytest.raises(ConfigurationError, match="redirects are not followed"):
            open_source(bench).count("tickets", Span())
        assert seen == []


def test_netrc_does_not_replace_the_credentials(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login wrong password wrong\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert open_source(bench).count("tickets", Span()) == 160


def test_plain_http_to_this_machine_goes_through_no_proxy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capturing() as (proxy, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy}")
        assert open_source(bench).count("tickets", Span()) == 160
        assert seen == []


@pytest.mark.parametrize(
    "address",
    [
        "http://na.myconnectwise.net",
        "http://192.168.1.4",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "ftp://na.myconnectwise.net",
        "file:///etc/passwd",
        "https://",
        "",
        "https://user:hunter2@na.myconnectwise.net",
        "https://na.myconnectwise.net?x=1",
        "https://na.myconnectwise.net#x",
        "http://[::1",
    ],
)
def test_an_unsafe_address_is_refused_at_the_door(bench: Bench, address: str) -> None:
    values = bench.simulator.credentials | {"api_base_url": address}
    with pytest.raises(ConfigurationError, match="api_base_url") as caught:
        connectwise.check(values, Where("globex", SERVICE))
    assert "hunter2" not in everything_said(caught.value)
    assert "globex" in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://localhost:1", "http://[::1]:1", "http://127.8.9.1:1", "na.example"]
)
def test_a_safe_address_is_taken(bench: Bench, address: str) -> None:
    connectwise.check(bench.simulator.credentials | {"api_base_url": address}, Where())


@pytest.mark.parametrize(
    "tail", ["", "/", "/v2025_1/apis/3.0", "/v2025_1/apis/3.0/", "/v9_old/apis/3.0"]
)
def test_the_address_is_taken_in_every_shape(bench: Bench, tail: str) -> None:
    source = open_source(bench, api_base_url=bench.simulator.url + tail)
    assert source.count("tickets", Span()) == 160


def test_cloud_addresses_lead_to_the_api_host(bench: Bench) -> None:
    asked: list[str] = []

    class Listening:
        def get(self, url: str, parse: object, *, authenticated: bool) -> str:
            assert not authenticated, "companyinfo needs no credentials"
            asked.append(url)
            return "v2026_1/"

    for address in (
        "https://na.myconnectwise.net",
        "na.myconnectwise.net/",
        "https://api-na.myconnectwise.net",
        "https://api-na.myconnectwise.net/v4_6_release/apis/3.0",
    ):
        values = bench.simulator.credentials | {"api_base_url": address}
        codebase = Codebase(Credentials.parse(values, Where()), Where())
        root = codebase.root(Listening())  # type: ignore[arg-type]
        assert root == "https://api-na.myconnectwise.net/v2026_1/apis/3.0"
    assert set(asked) == {"https://na.myconnectwise.net/login/companyinfo/acme_msp"}


@pytest.mark.parametrize("company", ["nobody", "../../x", "a?b#c", "a/b", "ü"])
def test_an_unknown_company_is_named(bench: Bench, company: str) -> None:
    with pytest.raises(ConfigurationError, match="knows no company") as caught:
        open_source(bench, company_id=company).count("tickets", Span())
    assert TENANT in str(caught.value)


def test_an_unreachable_host_is_named(bench: Bench) -> None:
    quick = Retrying(attempts=2, initial=0.001, longest=0.001)
    object.__setattr__(bench.installation, "retrying", quick)
    for address, reason in (
        ("http://127.0.0.1:1", "refuses connections"),
        ("https://nowhere.invalid", "did not answer"),
    ):
        with pytest.raises(RetriableError, match=reason) as caught:
            open_source(bench, api_base_url=address).count("tickets", Span())
        assert address.split("//")[1] in str(caught.value)


@pytest.mark.parametrize("field", ["public_key", "private_key", "client_id"])
def test_wrong_credentials_are_refused_without_a_second_try(bench: Bench, field: str) -> None:
    with pytest.raises(CredentialsRefused) as caught:
        open_source(bench, **{field: "wrong-" + "x" * 12}).count("tickets", Span())
    assert "wrong-" + "x" * 12 not in everything_said(caught.value)
    assert bench.control("stats")["by_status"].get("401") == 1


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (400, FatalError, 1),
        (401, CredentialsRefused, 1),
        (403, PermissionRefused, 1),
        (405, FatalError, 1),
        (415, FatalError, 1),
        (500, RetriableError, 8),
        (503, RetriableError, 8),
    ],
)
@pytest.mark.parametrize("body", ["json", "html"])
def test_an_error_that_echoes_the_credentials_does_not_show_them(
    bench: Bench, status: int, kind: type[AvesaError], tries: int, body: str
) -> None:
    echo = " ".join(secrets_of(bench))
    fault = {"kind": "status", "status": status, "body": body, "message": echo, "probability": 1.0}
    bench.control("hostility", faults=[fault | {"on": ["list", "count"]}])
    with pytest.raises(kind) as caught:
        bench.extract("tickets", token="echo")
    said = everything_said(caught.value)
    said += "".join(str(chunk.error) for chunk in bench.chunks("echo", "tickets"))
    assert not [secret for secret in secrets_of(bench) if secret in said]
    assert "***" in str(caught.value)


def test_a_longer_secret_that_holds_a_shorter_one_is_cut_out_whole(bench: Bench) -> None:
    source = open_source(bench, public_key="abcdef-public", private_key="abcdef")
    said = source._http.quote(b"you sent abcdef-public and abcdef")  # type: ignore[attr-defined]
    assert said == "you sent *** and ***"


@pytest.mark.parametrize("body", ["json", "cloudflare"])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_pauses_every_thread(bench: Bench, status: int, body: str) -> None:
    kind = "html" if (status, body) == (503, "cloudflare") else body
    fault = {"kind": "status", "status": status, "body": kind, "retry_after": 1, "at": [2]}
    bench.control("hostility", faults=[fault], page_clamp=20)
    bench.extract("tickets")
    log = [entry for entry in bench.log() if entry["table"]]
    refused = next(entry for entry in log if entry["status"] == status)
    under_way = 0.15
    between = [e for e in log if refused["at"] + under_way < e["at"] < refused["at"] + 0.95]
    assert not between and log[-1]["at"] > refused["at"] + 0.95


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    now = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
    assert _seconds("Wed, 18 Mar 2026 12:00:30 GMT", now) == 30
    assert _seconds("Wed, 18 Mar 2026 11:00:30 GMT", now) == 0
    assert _seconds("-5", now) == 0
    for nonsense in (None, "", "soon", "Wed, 99 Mar", "nan"):
        assert _seconds(nonsense, now) in (None, 0.0)


def test_a_codebase_upgrade_in_the_middle_is_followed(bench: Bench) -> None:
    source = open_source(bench)
    assert source.count("tickets", Span()) == 160
    bench.control("codebase", to="v2031_7/")
    assert source.count("tickets", Span()) == 160


def test_a_path_that_is_gone_for_good_is_a_failure_that_names_it(bench: Bench) -> None:
    gone = {"kind": "status", "status": 404, "body": "html", "probability": 1.0}
    bench.control("hostility", faults=[gone | {"on": ["list", "count"]}])
    with pytest.raises(FatalError, match=r"has no /.*service/tickets") as caught:
        bench.extract("tickets")
    assert "tickets" in str(caught.value.where)


def test_it_stops_before_the_next_request_when_told(bench: Bench) -> None:
    connection = bench.installation.control.registry.get(TENANT, SERVICE)
    assert connection is not None
    source = bench.installation.open_source(connection, False, lambda: True)()
    with pytest.raises(Stopped):
        source.count("tickets", Span())
    assert bench.control("stats")["by_kind"] == {}


def test_the_present_is_the_clock_that_is_behind(bench: Bench) -> None:
    assert open_source(bench).now() <= bench.clock()
    bench.control("clock", now="2026-03-18T11:00:00Z")
    assert abs((open_source(bench).now() - NOW).total_seconds() + 3600) < 5
    bench.control("clock", now="2026-03-18T15:00:00Z")
    assert abs((open_source(bench).now() - NOW).total_seconds()) < 60


def test_a_filter_that_is_not_obeyed_is_noticed(bench: Bench) -> None:
    source = open_source(bench)
    bench.control("hostility", faults=[{"kind": "filter_ignored", "at": [1]}])
    page = source.page("tickets", Span(WINDOW))
    assert page.rejected and "outside of" in page.rejected[0].reason
    assert all(r.updated_at in WINDOW for r in page.records if r.updated_at)


def test_ids_beyond_the_bound_or_before_the_cursor_are_refused(bench: Bench) -> None:
    source = open_source(bench)
    bench.control(
        "hostility", faults=[{"kind": "filter_ignored", "ignore": "all", "probability": 1.0}]
    )
    with pytest.raises(AvesaError, match="cannot be true"):
        source.page("tickets", Span(upto="1010"))
    with pytest.raises(AvesaError, match="does not advance"):
        source.page("tickets", Span(after="1100"))


def test_connecting_stores_nothing_that_the_service_refuses(
    bench: Bench, new_bench: Callable[..., Bench]
) -> None:
    wrong = bench.simulator.credentials | {"private_key": "wrong"}
    with pytest.raises(CredentialsRefused):
        bench.installation.connect("globex", SERVICE, wrong, requests_per_minute=UNPACED)
    assert bench.installation.control.registry.get("globex", SERVICE) is None
    with pytest.raises(ConfigurationError):
        bench.installation.secrets.get("globex", SERVICE)


def test_a_dead_host_costs_seconds_not_minutes_at_connection(bench: Bench) -> None:
    began = time.monotonic()
    nowhere = bench.simulator.credentials | {"api_base_url": "http://127.0.0.1:1"}
    with pytest.raises(RetriableError):
        bench.installation.connect("globex", SERVICE, nowhere)
    assert time.monotonic() - began < 5
