"""The access token of a connection: asked for once, shared by its threads, renewed in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from avesa_dagster.sources.http import Answer, Call, Http

FORM = "application/x-www-form-urlencoded"
_MARGIN = 30.0
"""A token that ends within so many seconds is not used any more: an answer may take as long."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token.

    Attributes:
        seconds: How long it is good for from now; None: until it is refused.
    """

    access: str
    seconds: float | None = None


class Tokens:
    """Hands the token out, and asks for another when it is too old or was refused.

    Args:
        ask: Asks the service for a token, over a connection of one of the threads.
    """

    def __init__(self, ask: Callable[[Http], Token]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._until = float("inf")

    @property
    def known(self) -> tuple[str, ...]:
        """The token in use, which must never be shown."""
        return (self._token.access,) if self._token else ()

    def get(self, http: Http) -> str:
        """A token that is good for a while. Raises what asking for one raises."""
        with self._lock:
            if self._token is None or time.monotonic() > self._until:
                self._take(self._ask(http))
            assert self._token is not None
            return self._token.access

    def renewed(self, http: Http, refused: str) -> bool:
        """After `refused` was refused: whether there is another one now."""
        with self._lock:
            if self._token is None or self._token.access == refused:
                self._take(self._ask(http))
            return self._token is not None and self._token.access != refused

    def _take(self, token: Token) -> None:
        self._token = token
        self._until = float("inf")
        if token.seconds is not None:
            # One that is short-lived anyway is used for most of its life.
            margin = min(_MARGIN, token.seconds / 4)
            self._until = time.monotonic() + token.seconds - margin


def form(url: str, fields: dict[str, str]) -> Call:
    """A request for a token: a form in the body, so that no secret stands in an address."""
    return Call(
        url,
        method="POST",
        headers={"Content-Type": FORM, "Accept": "application/json"},
        body=urlencode(fields).encode(),
        authenticated=False,
    )


def header(answer: Answer, name: str) -> str:
    """A header's text without spaces around it; empty if it is absent."""
    return answer.headers.get(name, "").strip()
