"""A proxy before AWS (moto's server) that behaves as networks and busy services do.

It speaks HTTP on a real socket; whoever is to meet it sets AWS_ENDPOINT_URL to its `url`. Faults
are asked for by attributes that may be set at any moment; without any, all passes unchanged.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_READS = ("Get", "Query", "Scan", "BatchGet", "Describe", "List", "HEAD", "TransactGet")
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True, slots=True)
class Call:
    """A request.

    Attributes:
        operation: DynamoDB's and other JSON services' own name, as `PutItem`; of S3, the method.
        body: Whole; of JSON services `content` has it parsed.
    """

    operation: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_json(self) -> bool:
        return "x-amz-target" in self.headers

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body or b"{}")
        return found

    @property
    def is_write(self) -> bool:
        return not self.operation.upper().startswith(tuple(name.upper() for name in _READS))


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        drop: Of writes, the answer of each so-many-th is dropped after it took effect; 0: none.
        drop_next: So many of the next writes lose their answers.
        misreport: A lost answer is a 500 in place of a broken connection.
        refuse: Of all requests, each so-many-th is refused without effect; 0: none.
        refusal: `throttled`, `500` or `503`.
        delay: Seconds before each request is passed on.
        stale: Reads of DynamoDB that are not told to be consistent are answered with what the same
            request was answered before.
        halves: Batches of DynamoDB are done in half; the rest comes back as unprocessed.
        only: Faults befall only these requests; None: all.
    """

    drop: int = 0
    drop_next: int = 0
    misreport: bool = False
    refuse: int = 0
    refusal: str = "500"
    delay: float = 0.0
    stale: bool = False
    halves: bool = False
    only: Callable[[Call], bool] | None = None


@dataclass
class Lossy:
    """A context manager: the proxy runs while it is entered.

    Attributes:
        target: URL of the server behind it.
        calls: How many requests came, by operation; `lost` how many answers were dropped.
    """

    target: str
    faults: Faults = field(default_factory=Faults)
    calls: Counter[str] = field(default_factory=Counter)
    lost: int = 0

    def __post_init__(self) -> None:
        self.url = ""
        self._lock = threading.Lock()
        self._writes = self._requests = 0
        self._answered: dict[tuple[str, bytes], Answer] = {}
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._server = _server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None and self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, call: Call) -> Answer | None:
        """What is answered; None: nothing, the connection breaks."""
        with self._lock:
            self.calls[call.operation] += 1
        faults = self.faults
        if faults.only is not None and not faults.only(call):
            return self._forward(call)
        time.sleep(faults.delay)
        if self._turn_to_refuse():
            return _refusal(call, faults.refusal)
        lose = call.is_write and self._turn_to_lose()
        answer = self._halved(call) if faults.halves else None
        answer = answer or self._forward(call)
        if lose:
            with self._lock:
                self.lost += 1
            return _refusal(call, "500") if faults.misreport else None
        return self._staled(call, answer) if faults.stale else answer

    def _turn_to_refuse(self) -> bool:
        with self._lock:
            self._requests += 1
            return bool(self.faults.refuse) and self._requests % self.faults.refuse == 0

    def _turn_to_lose(self) -> bool:
        with self._lock:
            self._writes += 1
            if self.faults.drop_next:
                self.faults.drop_next -= 1
                return True
            return bool(self.faults.drop) and self._writes % self.faults.drop == 0

    def _staled(self, call: Call, answer: Answer) -> Answer:
        """The answer before this one, if the call may be answered so."""
        if not call.is_json or call.is_write or _consistent(call):
            return answer
        with self._lock:
            before = self._answered.get((call.operation, call.body), answer)
            self._answered[call.operation, call.body] = answer
        return before

    def _halved(self, call: Call) -> Answer | None:
        """A batch, done in half; None if the call is none, or has one request."""
        if call.operation not in ("BatchWriteItem", "BatchGetItem"):
            return None
        ((name, asked),) = call.content["RequestItems"].items()
        requests = asked["Keys"] if call.operation == "BatchGetItem" else asked
        half = len(requests) // 2
        if not half:
            return None
        done, left = _batch(asked, requests[half:]), _batch(asked, requests[:half])
        body = json.dumps({**call.content, "RequestItems": {name: done}}).encode()
        answer = self._forward(Call(call.operation, call.path, call.headers, body))
        content = json.loads(answer.body)
        kind = "UnprocessedKeys" if call.operation == "BatchGetItem" else "UnprocessedItems"
        content[kind] = {name: left}
        headers = tuple(pair for pair in answer.headers if pair[0].lower() != "x-amz-crc32")
        return Answer(answer.status, headers, json.dumps(content).encode())

    def _forward(self, call: Call) -> Answer:
        address = urlsplit(self.target)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        try:
            method = "POST" if call.is_json else call.operation
            headers = {n: v for n, v in call.headers.items() if n not in (*_HOP, "expect")}
            headers["content-length"] = str(len(call.body))
            connection.request(method, call.path, call.body, headers)
            response = connection.getresponse()
            kept = tuple(
                (name, value)
                for name, value in response.getheaders()
                if name.lower() not in _HOP or (method == "HEAD" and name == "Content-Length")
            )
            return Answer(response.status, kept, response.read())
        finally:
            connection.close()


def _batch(asked: Any, requests: list[Any]) -> Any:
    return {**asked, "Keys": requests} if isinstance(asked, dict) else requests


def _consistent(call: Call) -> bool:
    if not call.headers["x-amz-target"].startswith("DynamoDB"):
        return True
    content = call.content
    if call.operation == "BatchGetItem":
        return all(asked.get("ConsistentRead") for asked in content["RequestItems"].values())
    return bool(content.get("ConsistentRead"))


def _refusal(call: Call, kind: str) -> Answer:
    if call.is_json:
        status, code = {
            "500": (500, "InternalServerError"),
            "503": (503, "ServiceUnavailable"),
            "throttled": (400, "ProvisionedThroughputExceededException"),
        }[kind]
        body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no"})
        return Answer(status, (("Content-Type", "application/x-amz-json-1.0"),), body.encode())
    status, code = {
        "500": (500, "InternalError"),
        "503": (503, "SlowDown"),
        "throttled": (503, "SlowDown"),
    }[kind]
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, (("Content-Type", "application/xml"),), body.encode())


def _server(proxy: Lossy) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # of a connection that rests, so that its thread ends
        wbufsize = -1  # an answer in one piece: in two, it waits 40 ms for an acknowledgement
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def handle_expect_100(self) -> bool:
            expected = super().handle_expect_100()
            self.wfile.flush()  # or boto3 waits a second for it before each PUT
            return expected

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            target = headers.get("x-amz-target", "")
            operation = target.rpartition(".")[2] or self.command
            answer = proxy.answer(Call(operation, self.path, headers, self._body()))
            if answer is None:
                self.close_connection = True
                return
            self._send(answer)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

        def _send(self, answer: Answer) -> None:
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            if self.command != "HEAD" and answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            self.wfile.flush()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    return server
