"""Refresh tokens that the service replaces: each dies when it is used, or may.

The access token that came with it is stored, too, and every process uses it: a store of credentials
takes only so many changes a day, and each exchange is one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from avesa_dagster.errors import AvesaError, StoreError, Where
from avesa_dagster.sources.oauth import Token
from avesa_dagster.sources.vault import Vault

_log = logging.getLogger(__name__)
_FIELD = "refresh_token"
SESSION = "session"
"""The credentials' field of the access token; nobody is asked for it."""
_SECONDS = 3600.0
"""So long an access token is shared of which nobody says how long it lasts; refused, it is not."""
_MARGIN = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Shared:
    """An access token that all processes use.

    Attributes:
        address: Where it is for, if the service said so.
    """

    token: Token
    address: str = ""


class RefreshTokens:
    """The next token of each that was used, as far as this connection met them, and their place in
    the vault. One for all threads of a connection.

    Args:
        vault: Where the credentials lie.
        before: What has become of a token that was replaced: `is dead`, `may be dead`.
    """

    def __init__(self, vault: Vault, where: Where, *, before: str) -> None:
        self._vault = vault
        self._where = where
        self._before = before
        self._next: dict[str, str] = {}
        self._used: set[str] = set()

    @property
    def known(self) -> tuple[str, ...]:
        """All of them, which must never be shown."""
        return (*self._next, *self._next.values(), *self._used)

    def exclusive(self) -> AbstractContextManager[None]:
        """See Vault.exclusive."""
        return self._vault.exclusive()

    def stored(self) -> dict[str, object]:
        """The credentials in the vault; a token that was replaced there in vain is the next one."""
        values = dict(self._vault.get())
        held = values.get(_FIELD)
        while isinstance(held, str) and held in self._next:
            held = values[_FIELD] = self._next[held]
        return values

    def session(self, values: Mapping[str, object]) -> Shared | None:
        """The access token that another process had, unless it is too old, or was had here already
        and refused.

        Args:
            values: What is stored.
        """
        try:
            said = json.loads(str(values[SESSION]))
            access, address = str(said["access"]), str(said["address"])
            left = datetime.fromisoformat(said["until"]) - datetime.now(UTC) - _MARGIN
        except (KeyError, TypeError, ValueError):
            return None
        if access in self._used or left <= timedelta():
            return None
        self._used.add(access)
        return Shared(Token(access, left.total_seconds()), address)

    def keep(self, used: str, fresh: str, session: Shared) -> None:
        """Stores the next one at once. Even if that fails, this connection knows it.

        Args:
            session: What came with it.

        Raises:
            StoreError: It could not be stored.
        """
        if fresh == used:
            return
        self._next[used] = fresh
        token = session.token
        self._used.add(token.access)
        until = datetime.now(UTC) + timedelta(seconds=token.seconds or _SECONDS)
        said = {"access": token.access, "until": until.isoformat(), "address": session.address}
        try:
            self._vault.put({**self._vault.get(), _FIELD: fresh, SESSION: json.dumps(said)})
        except AvesaError as error:
            raise StoreError(
                f"the next refresh token cannot be stored: {error.what}",
                where=self._where,
                hint=f"the one before {self._before}; if it cannot be stored soon, connect again",
            ) from None
        if self._vault.get().get(_FIELD) != fresh:
            _log.warning(
                "the refresh token was replaced, and the credentials come from a place that does "
                "not change; put them into the installation's secrets [%s]",
                self._where,
            )
