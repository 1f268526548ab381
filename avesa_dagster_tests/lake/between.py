"""A proxy between boto3 and S3, on real sockets, which loses, refuses and breaks off answers."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Judge = Callable[[str, str], str]
"""Of method and path: `pass`, `lose` (it happens, the answer does not come), `half` (the answer's
body breaks off), or a status to answer with instead of asking, such as `503 SlowDown`."""


@dataclass
class Between:
    """The proxy: forwards to `target`, as `judge` says. Set `judge` at any time.

    Attributes:
        target: As `http://127.0.0.1:5000`.
        seen: Method and path of each request that came.
    """

    target: str
    judge: Judge = lambda method, path: "pass"
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


def once(verdict: str, method: str, part: str = "", *, after: int = 0) -> Judge:
    """Says `verdict` of the first request of a method whose path has `part`, after some others."""
    lock, left = threading.Lock(), [after + 1]

    def judge(asked: str, path: str) -> str:
        with lock:
            if asked != method or part not in path:
                return "pass"
            left[0] -= 1
            return verdict if left[0] == 0 else "pass"

    return judge


def _handler(proxy: Between) -> type[BaseHTTPRequestHandler]:
    target = urlsplit(proxy.target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            self.close_connection = True
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            proxy.seen.append((self.command, self.path))
            verdict = proxy.judge(self.command, self.path)
            if verdict not in ("pass", "lose", "half"):
                self.refuse(verdict)
                return
            upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            if verdict == "lose":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("server", "date", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if verdict == "half" else data)

        def refuse(self, verdict: str) -> None:
            status, _, code = verdict.partition(" ")
            data = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(int(status))
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def log_message(self, *_: object) -> None:
            pass

    return Handler
