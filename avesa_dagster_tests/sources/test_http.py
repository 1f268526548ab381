"""Bodies that come slowly, in pieces and compressed, from a bare socket."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avesa_dagster.errors import RetriableError, Where
from avesa_dagster.sources import http
from avesa_dagster.sources.budget import SqliteBudget
from avesa_dagster.sources.http import Allowance, Dialect, Http, Retrying

Answer = Callable[[socket.socket], None]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[Answer], tuple[Http, str]]]:
    """Serves one answer on loopback, and a connection that tries once."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve(answer: Answer) -> tuple[Http, str]:
            def handle() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    try:
                        answer(connection)
                    except OSError:
                        return  # the client has heard enough

            threading.Thread(target=handle, daemon=True).start()
            connection = Http(
                Where("acme", "connectwise"),
                Allowance(SqliteBudget(tmp_path / "budget.db"), "k", 1_000),
                Dialect({}, ()),
                timeout=5,
                clock=lambda: datetime.now(UTC),
                cancelled=lambda: False,
                retrying=Retrying(attempts=1),
            )
            return connection, f"http://127.0.0.1:{listener.getsockname()[1]}/"

        yield serve


def head(*lines: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode()


def test_an_answer_that_drips_is_given_up(
    served: Callable[[Answer], tuple[Http, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LONGEST_ANSWER", 0.6)

    def drip(connection: socket.socket) -> None:
        connection.sendall(head("Content-Length: 400"))
        for _ in range(400):
            connection.sendall(b" ")
            time.sleep(0.1)

    connection, url = served(drip)
    began = time.monotonic()
    with pytest.raises(RetriableError, match="took longer"):
        connection.get(url, bytes)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_body_in_small_pieces_is_whole(
    served: Callable[[Answer], tuple[Http, str]], chunked: bool, compressed: bool
) -> None:
    said = json.dumps([{"id": n, "summary": "x" * n} for n in range(300)]).encode()
    sent = gzip.compress(said) if compressed else said

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(sent)}"
        encoding = ("Content-Encoding: gzip",) if compressed else ()
        connection.sendall(head(length, *encoding))
        step = max(1, len(sent) // 40)
        # The first pieces of a gzip stream decode to nothing, which is not its end.
        pieces = [sent[:1], sent[1:5], sent[5:12]]
        pieces += [sent[n : n + step] for n in range(12, len(sent), step)]
        for piece in pieces:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(0.003)
        if chunked:
            connection.sendall(b"0\r\n\r\n")

    connection, url = served(answer)
    assert connection.get(url, bytes) == said


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_body_that_is_cut_is_no_answer(
    served: Callable[[Answer], tuple[Http, str]], chunked: bool, compressed: bool
) -> None:
    said = json.dumps(list(range(3_000))).encode()
    sent = gzip.compress(said) if compressed else said
    half = sent[: len(sent) // 2]

    def answer(connection: socket.socket) -> None:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(sent)}"
        encoding = ("Content-Encoding: gzip",) if compressed else ()
        connection.sendall(head(length, *encoding))
        connection.sendall(b"%x\r\n%b\r\n" % (len(half), half) if chunked else half)

    connection, url = served(answer)
    with pytest.raises(RetriableError, match="did not answer"):
        connection.get(url, bytes)
