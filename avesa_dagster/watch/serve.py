"""The metrics over HTTP, for Prometheus to scrape."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterable
from socket import AF_INET, AF_INET6
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client.registry import Collector

from avesa_dagster.errors import AvesaError, ConfigurationError
from avesa_dagster.watch.exposition import CONTENT_TYPE, written

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_log = logging.getLogger(__name__)


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # who connects and says nothing holds a thread no longer

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a scrape every few seconds is not worth a line."""


class Endpoint:
    """A server of metrics that runs on a thread, until it is closed.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, server: WSGIServer) -> None:
        self.port: int = server.server_port
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Returns when it was closed."""
        self._thread.join()

    def close(self) -> None:
        """Stops listening; a scrape under way may be cut."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(port: int, host: str, collector: Collector) -> Endpoint:
    """Serves the collector's metrics at any path.

    Args:
        port: 0 picks a free one; see `Endpoint.port`.
        host: The address to listen at; there is no authentication.

    Raises:
        ConfigurationError: It cannot listen there.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            start_response("405 Method Not Allowed", [("Allow", "GET")])
            return []
        try:
            body = written(collector.collect())
        except AvesaError as error:
            _log.warning("the metrics cannot be read: %s", error)
            start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [f"{error}\n".encode("ascii", "replace")]
        start_response("200 OK", [("Content-Type", CONTENT_TYPE)])
        return [body]

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = AF_INET6 if ":" in host else AF_INET

    try:
        server = Server((host, port), _Handler)
    except OSError as error:
        raise _cannot_listen(error, host, port) from None
    server.set_app(app)
    return Endpoint(server)


def _cannot_listen(error: OSError, host: str, port: int) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"port {port} of {host} is in use by another program",
            hint="choose another one with --port, or stop what listens there",
        )
    return ConfigurationError(
        f"cannot listen at port {port} of {host}: {error.strerror}",
        hint="choose --host and --port of this machine, the port above 1023",
    )
