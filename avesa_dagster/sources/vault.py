"""The credentials of one connection, for a service that changes them.

A refresh token that is used once dies with that: the next one comes with the answer, and every
process of the installation has to go on with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from avesa_dagster.control.base import Secrets


class Vault(Protocol):
    """Where the credentials of one tenant's service lie."""

    def get(self) -> Mapping[str, object]:
        """As they are now, by whomever they were changed.

        Raises:
            ConfigurationError: There are none any more.
            StoreError: They cannot be read.
        """
        ...

    def put(self, values: Mapping[str, object]) -> None:
        """Stores them in place of those that were there, whole or not at all.

        Raises:
            ConfigurationError, StoreError: Those that were there are kept.
        """
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """A block that only one process and thread is in at a time: to exchange one token for the
        next, from `get` to `put`.

        Raises:
            StoreError: Another one did not leave it for minutes.
        """
        ...


class StoredVault:
    """Implements Vault over the installation's secrets."""

    def __init__(self, secrets: Secrets, tenant: str, service: str) -> None:
        self._secrets = secrets
        self._tenant = tenant
        self._service = service

    def get(self) -> Mapping[str, object]:
        return self._secrets.get(self._tenant, self._service, fresh=True)

    def put(self, values: Mapping[str, object]) -> None:
        texts = {name: str(value) for name, value in values.items()}
        self._secrets.put(self._tenant, self._service, texts)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._secrets.exclusive(self._tenant, self._service)


class MemoryVault:
    """Implements Vault for credentials that are not stored: nobody else has them."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = dict(values)
        self._lock = threading.Lock()

    def get(self) -> Mapping[str, object]:
        return dict(self._values)

    def put(self, values: Mapping[str, object]) -> None:
        self._values = dict(values)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._lock:
            yield
