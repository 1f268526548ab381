"""Credentials that somebody replaces while they are in use: taken up, and nobody notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from avesa_dagster.errors import AvesaError, CredentialsRefused
from avesa_dagster.sources.http import Answer, Call, Dialect, Http
from avesa_dagster.sources.vault import Vault


class Rotating(Dialect):
    """Speaks as the credentials say that it has; once they are refused, as those say that lie in
    the vault by then. One for all threads of a connection.

    Args:
        values: The credentials to begin with.
        vault: Where those lie that hold.
        speak: The dialect of credentials. Raises ConfigurationError for what are none.
        fixed: Fields that nothing is taken up with if they differ: they say what is asked for.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        vault: Vault,
        speak: Callable[[Mapping[str, object]], Dialect],
        fixed: tuple[str, ...],
    ) -> None:
        self._values = dict(values)
        self._vault = vault
        self._speak = speak
        self._fixed = fixed
        self._lock = threading.Lock()
        self._spoken = speak(values)
        self._before: tuple[str, ...] = ()
        self.permission = self._spoken.permission
        self.address = self._spoken.address

    def headers(self, http: Http) -> Mapping[str, str]:
        spoken = self._spoken
        try:
            return spoken.headers(http)
        except CredentialsRefused:  # by whoever gives tokens
            if not self._replaced(spoken):
                raise
        return self._spoken.headers(http)

    def located(self, http: Http, url: str) -> str:
        return self._spoken.located(http, url)

    def secrets(self) -> tuple[str, ...]:
        return (*self._spoken.secrets(), *self._before)

    def renewed(self, http: Http, sent: Mapping[str, str]) -> bool:
        spoken = self._spoken
        try:
            if spoken.renewed(http, sent):
                return True
        except CredentialsRefused:
            if not self._replaced(spoken):
                raise
            return True
        if spoken.headers(http) != sent:
            return True  # another thread took up new ones while these were on their way
        return self._replaced(spoken)

    def trouble(self, call: Call, answer: Answer) -> AvesaError | None:
        return self._spoken.trouble(call, answer)

    def message(self, body: bytes) -> str:
        return self._spoken.message(body)

    def _replaced(self, refused: Dialect) -> bool:
        """Whether others hold than those of the dialect that was refused."""
        with self._lock:
            if self._spoken is not refused:
                return True
            stored = dict(self._vault.get())
            same = all(stored.get(name) == self._values.get(name) for name in self._fixed)
            if stored == self._values or not same:
                return False
            spoken = self._speak(stored)
            self._before = (*self._before, *refused.secrets())
            self._values, self._spoken = stored, spoken
            return True
