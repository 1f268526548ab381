"""The webhook: what arrives, what is refused, and how long a bad receiver can hold us."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    FatalError,
    RetriableError,
    TimedOut,
)
from avesa_dagster.watch import notify
from avesa_dagster.watch.notify import LogNotifier, Severity, WebhookNotifier

from .conftest import HASTY, MESSAGE, no_talk_left, soon
from .servers import Handler, a_certificate, answering, dripping, listening, request_of

SECRET = "T0K3N-very-secret"


def webhook(port: int) -> WebhookNotifier:
    return WebhookNotifier(f"http://127.0.0.1:{port}/{SECRET}?key={SECRET}", patience=HASTY)


def silent(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def rude(connection: socket.socket) -> None:
    connection.recv(1)


def nonsense(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")


def test_a_message_arrives_as_slack_takes_it() -> None:
    heard: list[tuple[str, dict[str, str], bytes]] = []

    def handle(connection: socket.socket) -> None:
        heard.append(request_of(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with listening(handle) as port:
        webhook(port).send(replace(MESSAGE, text="<!channel> a & b, Zürich ✓"))
    [(first, headers, body)] = heard
    assert first == f"POST /{SECRET}?key={SECRET} HTTP/1.1"
    assert headers["content-type"] == "application/json"
    text = "AVESA ERROR: a subject\n&lt;!channel&gt; a &amp; b, Zürich ✓"
    assert json.loads(body) == {"text": text}


@settings(deadline=None, max_examples=50)
@given(text=st.text(), subject=st.text())
def test_any_text_is_one_json_document_without_a_command_for_slack(text: str, subject: str) -> None:
    heard: list[bytes] = []
    with listening(answering("204 No Content", heard=heard)) as port:
        webhook(port).send(replace(MESSAGE, text=text, subject=subject))
    said = json.loads(heard[0])["text"]
    assert not {"<", ">"} & set(said)
    plain = said.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == f"AVESA ERROR: {subject}\n{text}"


BAD: list[tuple[str, Handler, type[AvesaError]]] = [
    ("says nothing", silent, TimedOut),
    ("drips headers", dripping(b"X-More: 1\r\n"), TimedOut),
    ("drips one header", dripping(b"x"), TimedOut),
    ("never ends to go on", dripping(b"HTTP/1.1 100 Continue\r\n\r\n", 0.002, b""), TimedOut),
    ("hangs up", rude, RetriableError),
    ("speaks another protocol", nonsense, RetriableError),
    ("is broken", answering("500 Internal Server Error"), RetriableError),
    ("has too much to do", answering("429 Too Many Requests"), RetriableError),
    ("was revoked", answering("404 Not Found"), FatalError),
    ("answers a 600", answering("600 What"), RetriableError),
]


@pytest.mark.parametrize(("handle", "kind"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_receiver_that(
    handle: Handler,
    kind: type[AvesaError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with listening(handle) as port:
        began = time.monotonic()
        with pytest.raises(AvesaError) as raised:
            webhook(port).send(MESSAGE)
        assert time.monotonic() - began < HASTY.whole + 1
        assert isinstance(raised.value, RetriableError if kind is TimedOut else kind)
        told = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + caplog.text
        assert SECRET not in told
        assert f"127.0.0.1:{port}" not in told
        assert soon(no_talk_left)  # the socket was shut, so the thread ended too


def test_a_drip_is_given_up_after_the_whole_patience_not_after_each_byte() -> None:
    with listening(dripping(b"x")) as port:
        began = time.monotonic()
        with pytest.raises(TimedOut, match=r"did not finish within 0\.8 s"):
            webhook(port).send(MESSAGE)
        assert time.monotonic() - began >= HASTY.whole


def test_a_body_that_drips_is_not_waited_for() -> None:
    def handle(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.1)

    with listening(handle) as port:
        began = time.monotonic()
        webhook(port).send(MESSAGE)
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 P"])
def test_a_redirect_is_not_followed(status: str) -> None:
    elsewhere: list[bytes] = []
    with listening(answering("200 OK", heard=elsewhere)) as there:
        target = f"Location: http://127.0.0.1:{there}/"
        with listening(answering(status, target)) as port:
            with pytest.raises(ConfigurationError, match="redirects are not followed") as raised:
                webhook(port).send(MESSAGE)
            assert SECRET not in str(raised.value)
    assert elsewhere == []


def test_a_receiver_that_is_not_there() -> None:
    with listening(silent) as port:
        pass
    with pytest.raises(RetriableError, match="it refuses connections"):
        webhook(port).send(MESSAGE)


def test_a_name_that_takes_for_ever_to_resolve_holds_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(1.5) or [])
    notifier = WebhookNotifier("https://hooks.example/x", patience=HASTY)
    began = time.monotonic()
    with pytest.raises(TimedOut):
        notifier.send(MESSAGE)
    assert time.monotonic() - began < HASTY.whole + 1


@pytest.mark.parametrize(
    "url",
    [
        f"http://hooks.example/{SECRET}",
        f"ftp://127.0.0.1/{SECRET}",
        f"https:///{SECRET}",
        f"https://me:{SECRET}@hooks.example/",
        f"https://hooks.example/{SECRET}#part",
        f"https://hooks.example:99999/{SECRET}",
        f"https://hooks.example:0/{SECRET}",
        f"https://hooks.example/{SECRET}\r\nHost: other",
        f"https://hooks.example/{SECRET} ",
        f"https://hooks..example/{SECRET}",
        f"https://[::1/{SECRET}",
        f"https://hooks.exämple/{SECRET}",
        f"http://127.0.0.1.evil.example/{SECRET}",
        SECRET,
        "",
    ],
)
def test_an_address_that_no_webhook_can_have_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the webhook's address") as raised:
        WebhookNotifier(url)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.fixture
def resolves_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `*.test` name is this machine."""
    real = socket.getaddrinfo

    def look(host: object, *rest: object, **more: object) -> object:
        here = isinstance(host, str) and host.endswith(".test")
        return real("127.0.0.1" if here else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look)


def secured(context: ssl.SSLContext, handle: Handler) -> Handler:
    def over_tls(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            handle(inner)

    return over_tls


@pytest.mark.usefixtures("resolves_here")
def test_https_takes_only_a_certificate_that_it_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    heard: list[bytes] = []
    with a_certificate(tmp_path, "hooks.test") as (server, client):
        with listening(secured(server, answering("200 OK", heard=heard))) as port:
            url = f"https://hooks.test:{port}/{SECRET}"
            WebhookNotifier(url, context=client, patience=HASTY).send(MESSAGE)
            assert len(heard) == 1
            with pytest.raises(RetriableError, match="certificate cannot be verified") as raised:
                WebhookNotifier(url, patience=HASTY).send(MESSAGE)
            assert SECRET not in "".join(traceback.format_exception(raised.value))
            other = f"https://other.test:{port}/{SECRET}"
            with pytest.raises(RetriableError, match="certificate cannot be verified"):
                WebhookNotifier(other, context=client, patience=HASTY).send(MESSAGE)
            assert len(heard) == 1
        with listening(secured(server, dripping(b"X: 1\r\n"))) as port:
            url = f"https://hooks.test:{port}/{SECRET}"
            with pytest.raises(TimedOut):
                WebhookNotifier(url, context=client, patience=HASTY).send(MESSAGE)
            assert soon(no_talk_left)


@pytest.mark.usefixtures("resolves_here")
def test_https_goes_through_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    heard: list[bytes] = []
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with a_certificate(tmp_path, "hooks.test") as (server, client):

        def proxy(connection: socket.socket) -> None:
            first, headers, _ = request_of(connection)
            asked.append((first, headers.get("proxy-authorization", "")))
            if "refused" in first:
                connection.sendall(b"HTTP/1.1 403 No\r\n\r\n")
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            secured(server, answering("200 OK", heard=heard))(connection)

        with listening(proxy) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{port}")
            WebhookNotifier(f"https://hooks.test/{SECRET}", context=client).send(MESSAGE)
            with pytest.raises(RetriableError, match="the proxy does not connect to it"):
                WebhookNotifier(f"https://refused.test/{SECRET}", context=client).send(MESSAGE)
    assert len(heard) == 1
    assert asked[0] == ("CONNECT hooks.test:443 HTTP/1.0", "Basic bWU6cEBzcw==")
    assert SECRET not in str(asked)  # the proxy sees the host, not the path


def test_the_log_shows_an_end_as_visibly_as_a_beginning(caplog: pytest.LogCaptureFixture) -> None:
    for severity in Severity:
        LogNotifier().send(replace(MESSAGE, severity=severity))
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "WARNING"]
    assert {record.name for record in caplog.records} == {notify.__name__}
