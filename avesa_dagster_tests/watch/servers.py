"""Real receivers on loopback: a webhook that behaves as told, and a mail server."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Handler = Callable[[socket.socket], None]


@contextmanager
def listening(handle: Handler) -> Iterator[int]:
    """Hands each connection to `handle` on a thread of its own; yields the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    handle(connection)
                except OSError:
                    return  # the client went away

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # shut
                connection.settimeout(20)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def request_of(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """Reads one HTTP request: its first line, its headers, its body."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(65_536)
        if not part:
            raise ConnectionError("the client said half a request")
        head += part
    top, _, body = head.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    parts = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in parts}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65_536)
    return first, headers, body


def answering(status: str, *headers: str, heard: list[bytes] | None = None) -> Handler:
    """Takes the request, then answers."""

    def handle(connection: socket.socket) -> None:
        _, _, body = request_of(connection)
        if heard is not None:
            heard.append(body)
        said = "\r\n".join((f"HTTP/1.1 {status}", "Content-Length: 0", *headers, "", ""))
        connection.sendall(said.encode())

    return handle


def dripping(text: bytes, seconds: float = 0.05, first: bytes = b"HTTP/1.1 200 OK\r\n") -> Handler:
    """Answers byte by byte, again and again, until the client has enough."""

    def handle(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            for byte in text:
                connection.sendall(bytes([byte]))
                time.sleep(seconds)

    return handle


@contextmanager
def a_certificate(folder: Path, name: str) -> Iterator[tuple[ssl.SSLContext, ssl.SSLContext]]:
    """A server's context with a certificate for `name`, and a client's that trusts it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    yield server, ssl.create_default_context(cafile=str(certificate))


@dataclass
class Mailbox:
    """A mail server of few words. What it is told is kept.

    Attributes:
        tls: Offers STARTTLS with this context.
        login: Offers AUTH PLAIN and takes this pair only.
        answers: First word of a command -> the answer in place of the usual one.
    """

    tls: ssl.SSLContext | None = None
    login: tuple[str, str] | None = None
    answers: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)
    encrypted: bool = False

    def __call__(self, connection: socket.socket) -> None:
        self._say(connection, "220 ready")
        while line := self._line(connection):
            word = line.split()[0].upper()
            self.commands.append(line)
            if word in self.answers:
                self._say(connection, self.answers[word])
            elif word == "EHLO":
                offers = ["mailbox"]
                offers += ["STARTTLS"] if self.tls and not self.encrypted else []
                offers += ["AUTH PLAIN"] if self.login else []
                for number, offer in enumerate(offers, 1):
                    self._say(connection, f"250{'-' if number < len(offers) else ' '}{offer}")
            elif word == "STARTTLS" and self.tls:
                self._say(connection, "220 go")
                connection = self.tls.wrap_socket(connection, server_side=True)
                self.encrypted = True
            elif word == "AUTH":
                pair = base64.b64decode(line.split()[2]).decode().split("\0")[1:]
                self._say(connection, "235 ok" if tuple(pair) == self.login else "535 no")
            elif word == "DATA":
                self._say(connection, "354 go on")
                self.mails.append(self._content(connection))
                self._say(connection, "250 taken")
            elif word == "QUIT":
                self._say(connection, "221 bye")
                return
            else:
                self._say(connection, "250 ok")

    def _content(self, connection: socket.socket) -> str:
        lines = []
        while (line := self._line(connection)) != ".":
            lines.append(line)
        return "\n".join(lines) + "\n"

    @staticmethod
    def _say(connection: socket.socket, text: str) -> None:
        connection.sendall(text.encode() + b"\r\n")

    @staticmethod
    def _line(connection: socket.socket) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            part = connection.recv(1)
            if not part:
                raise ConnectionError("the client hung up")
            line += part
        return line[:-2].decode()
