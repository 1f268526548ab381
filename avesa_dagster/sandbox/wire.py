"""A small HTTP/1.1 server that can also fail in the ways a network does.

The standard library's server always finishes what it starts. This one can cut a body short under
each of the three framings, reset a connection (RST) before or after the headers, and stall. One
daemon thread a connection, keep-alive, TCP_NODELAY.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal
from urllib.parse import parse_qsl, unquote

Framing = Literal["content-length", "chunked", "close"]
_HEADERS_LIMIT = 256 * 1024
_IDLE_SECONDS = 120.0
_CHUNK = 16 * 1024
_DRIPS = 20
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_RST = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Request:
    """One request; header names in lower case, query values decoded."""

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def host(self) -> str:
        return self.headers.get("host", "localhost")


@dataclass(slots=True)
class Response:
    """One answer, and how faithfully to deliver it.

    `delay` seconds pass first, and `drip` seconds while the body trickles. `cut_at` is the number
    of body bytes after which the connection ends; `reset` ends it with RST instead of FIN;
    `hang_up` ends it, unannounced, after a whole answer. `status` 0 sends nothing at all.
    `sending` is called when the delay is over, before the first byte is sent, with whether the
    client is still there. `stream`, if given, makes the body piece by piece as it is sent; it is
    framed as chunks unless the connection is to tell its end.
    """

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    framing: Framing = "content-length"
    cut_at: int | None = None
    reset: bool = False
    hang_up: bool = False
    delay: float = 0.0
    drip: float = 0.0
    rows: int | None = None
    fault: str | None = None
    sending: Callable[[bool], None] | None = None
    stream: Iterator[bytes] | None = None


Handler = Callable[[Request], Response]


class Server:
    """Listens at once; `run` serves until the process ends, or `close` is called."""

    def __init__(self, host: str, port: int, handler: Handler) -> None:
        self._handler = handler
        self._closed = False
        self._socket = socket.create_server((host, port), backlog=1024)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                raise
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Takes no more connections; those that are open go on."""
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        finally:
            self._socket.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_IDLE_SECONDS)
            reader = _Reader(connection)
            keep = True
            while keep:
                request = reader.next()
                if request is None:
                    break
                keep = _deliver(connection, request, self._handler(request))
        except OSError:
            pass
        finally:
            connection.close()


class _Reader:
    """Reads requests from one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def next(self) -> Request | None:
        """The next request, or None when the client has gone or makes no sense."""
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > _HEADERS_LIMIT or not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3:
            return None
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = headers.get("content-length", "0")
        size = int(length) if length.isdigit() else 0
        while len(self._buffer) < size:
            if not self._more():
                return None
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        path, _, query = parts[1].partition("?")
        values = dict(parse_qsl(query, keep_blank_values=True))
        return Request(parts[0], parts[1], unquote(path), values, headers, body)

    def _more(self) -> bool:
        received = self._connection.recv(65_536)
        self._buffer += received
        return bool(received)


def _deliver(connection: socket.socket, request: Request, response: Response) -> bool:
    """Send the answer; True if the connection may be used again."""
    if response.delay > 0:
        time.sleep(response.delay)
    if response.sending is not None:
        response.sending(_listening(connection))
    if response.status:
        _send(connection, response)
    if response.reset:
        if response.status:
            time.sleep(0.02)  # let the client read what was sent: RST discards what is in flight
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        return False
    if not response.status or response.cut_at is not None or response.framing == "close":
        return False
    return not response.hang_up and request.headers.get("connection", "").lower() != "close"


def _listening(connection: socket.socket) -> bool:
    """Whether the client has not closed its side of the connection."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    if not waiting.poll(0):
        return True
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except OSError:
        return False


def _send(connection: socket.socket, response: Response) -> None:
    if response.stream is not None:
        _send_stream(connection, response, response.stream)
        return
    head = _head(response)
    body = response.body if response.cut_at is None else response.body[: response.cut_at]
    if response.framing == "chunked":
        pieces = (body[at : at + _CHUNK] for at in range(0, len(body), _CHUNK))
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        body += b"0\r\n\r\n" if response.cut_at is None else b""
    if response.drip:
        connection.sendall(head)
        step = -(-len(body) // _DRIPS) or 1
        for at in range(0, len(body), step):
            time.sleep(response.drip / _DRIPS)
            connection.sendall(body[at : at + step])
    elif len(body) < _CHUNK:
        connection.sendall(head + body)
    else:
        connection.sendall(head)
        connection.sendall(body)


def _head(response: Response) -> bytes:
    reason = _REASONS.get(response.status, "Unknown")
    lines = [f"HTTP/1.1 {response.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers]
    if response.framing == "content-length":
        lines.append(f"Content-Length: {len(response.body)}")
    elif response.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _send_stream(connection: socket.socket, response: Response, stream: Iterator[bytes]) -> None:
    """Send a body as it is made; what exceeds `cut_at` is not sent, nor the last chunk then."""
    if response.framing == "content-length":
        response.framing = "chunked"
    connection.sendall(_head(response))
    left = response.cut_at
    pause = response.drip / _DRIPS
    for piece in stream:
        sent = piece if left is None else piece[:left]
        if sent:
            chunked = response.framing == "chunked"
            connection.sendall(b"%x\r\n%b\r\n" % (len(sent), sent) if chunked else sent)
        if left is not None:
            left -= len(sent)
            if left <= 0:
                return
        time.sleep(pause)
    if response.framing == "chunked" and response.cut_at is None:
        connection.sendall(b"0\r\n\r\n")
