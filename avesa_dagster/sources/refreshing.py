"""Refresh tokens that the service replaces: each dies when it is used, or may."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from avesa_dagster.errors import AvesaError, StoreError, Where
from avesa_dagster.sources.vault import Vault

_log = logging.getLogger(__name__)
_FIELD = "refresh_token"


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

    @property
    def known(self) -> tuple[str, ...]:
        """All of them, which must never be shown."""
        return (*self._next, *self._next.values())

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

    def keep(self, used: str, fresh: str) -> None:
        """Stores the next one at once. Even if that fails, this connection knows it.

        Raises:
            StoreError: It could not be stored.
        """
        if fresh == used:
            return
        self._next[used] = fresh
        try:
            self._vault.put({**self._vault.get(), _FIELD: fresh})
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
