"""Talking to another machine for a bounded time, whatever it does.

The timeout of a socket begins anew with each byte, and looking up a name has none: a peer that
drips, or a name server that is silent, could hold a sensor for hours. So the conversation has a
thread of its own, and whoever waits for it waits a fixed time.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from avesa_dagster.errors import TimedOut

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a peer is waited for, in seconds.

    Attributes:
        step: For one step: to connect, to agree on TLS, to hear the next byte.
        whole: For the conversation.
    """

    step: float = 5.0
    whole: float = 10.0


def bounded(
    talk: Callable[[Callable[[], bool]], T],
    sock: Callable[[], socket.socket | None],
    *,
    who: str,
    seconds: float,
) -> T:
    """What `talk` returns, or raises, if it does so in time.

    Args:
        talk: The conversation. It gets a function that says whether it is too late, which it asks
            whenever it has a new socket, and before it sends what counts.
        sock: The socket that it uses at present. Too late, it is shut, which ends the thread too.
        who: The peer, for the error.
        seconds: How long it may take.

    Raises:
        TimedOut: It took longer. What was sent may have arrived.
    """
    outcome: Future[T] = Future()
    over = threading.Event()

    def run() -> None:
        try:
            outcome.set_result(talk(over.is_set))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.set_exception(error)

    # Not a pool's: those threads are waited for when the process ends.
    threading.Thread(target=run, name=f"{who} talk", daemon=True).start()
    wait([outcome], timeout=seconds)
    if outcome.done():
        return outcome.result()
    over.set()
    with suppress(OSError):  # it ended meanwhile
        if held := sock():
            held.shutdown(socket.SHUT_RDWR)
    raise TimedOut(f"{who} did not finish within {seconds:g} s", hint="it is tried again later")


def cause(error: BaseException) -> str:
    """Why a conversation failed, in words that hold no address, path or content."""
    known: tuple[tuple[type[BaseException], str], ...] = (
        (ssl.SSLCertVerificationError, "its certificate cannot be verified"),
        (ssl.SSLError, "the TLS connection failed"),
        (socket.gaierror, "its name cannot be resolved"),
        (ConnectionRefusedError, "it refuses connections"),
        (ConnectionError, "it closed the connection"),
        (TimeoutError, "it was silent for too long"),
    )
    for kind, words in known:
        if isinstance(error, kind):
            return words
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or type(error).__name__


def trusting() -> ssl.SSLContext:
    """A client's TLS context with the authorities of the system and of `requests`.

    REQUESTS_CA_BUNDLE replaces them, as it does for the connections to services.
    """
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        if Path(bundle).is_dir():
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


def loopback(host: str) -> bool:
    """Whether the host is this machine, by its name or address alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def nameable(host: str) -> bool:
    """Whether a name server could be asked for the host."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:  # a part of it is empty or too long
        return False
