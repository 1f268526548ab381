"""Services that a service file's `http` block describes: no code of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from avesa_dagster.catalog.http import Kind
from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import Where
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.declared.credentials import parsed
from avesa_dagster.sources.declared.source import DeclaredSource
from avesa_dagster.sources.declared.speech import Speech
from avesa_dagster.sources.http import Allowance, Http, Retrying
from avesa_dagster.sources.registry import source_module
from avesa_dagster.sources.rotation import Rotating
from avesa_dagster.sources.vault import Vault

_SECRET = ("key", "secret", "password", "token")


class Speaker(Protocol):
    """What speaks to a service: a folder of `sources`, or a service file."""

    @property
    def FIELDS(self) -> tuple[str, ...]:
        """Names of the credentials' fields, in the order in which a person is asked."""
        ...

    def check(self, values: Mapping[str, object], where: Where) -> None:
        """Raises ConfigurationError unless the credentials are complete and well formed."""
        ...

    def connect(
        self,
        service: Service,
        values: Mapping[str, object],
        where: Where,
        allowance: Allowance,
        *,
        clock: Clock,
        cancelled: Cancelled,
        retrying: Retrying,
        vault: Vault,
    ) -> Callable[[], Source]:
        """Returns what opens a source for a thread."""
        ...


class Declared:
    """Implements Speaker by what a service file says in `http`."""

    def __init__(self, service: Service) -> None:
        assert service.http is not None
        self._http = service.http
        self._title = service.title
        self.FIELDS = tuple(service.http.credentials)
        self.SECRET = tuple(
            n for n, kind in service.http.credentials.items() if kind is Kind.SECRET
        )

    def check(self, values: Mapping[str, object], where: Where) -> None:
        parsed(self._http, self._title, values, where)

    def connect(
        self,
        service: Service,
        values: Mapping[str, object],
        where: Where,
        allowance: Allowance,
        *,
        clock: Clock,
        cancelled: Cancelled,
        retrying: Retrying,
        vault: Vault,
    ) -> Callable[[], Source]:
        """All threads share the access token."""
        spoken = service.http
        assert spoken is not None
        credentials = parsed(spoken, service.title, values, where)

        def speak(given: Mapping[str, object]) -> Speech:
            return Speech(spoken, parsed(spoken, service.title, given, where), where)

        speech = Rotating(values, vault, speak, fixed=(spoken.address,))
        limit = spoken.limit

        def open_source() -> Source:
            http = Http(
                where,
                allowance,
                speech,
                timeout=service.request_timeout_seconds,
                clock=clock,
                cancelled=cancelled,
                retrying=retrying,
                limit_seconds=limit.seconds if limit else 60,
                limit_headers=(limit.header,) if limit else (),
            )
            root = f"{credentials.address}{spoken.root}"
            return DeclaredSource(service, http, root, where, clock=clock)

        return open_source


def speaker(service: str, known: Mapping[str, Service]) -> Speaker:
    """What speaks to a service.

    Args:
        known: The catalog's services.

    Raises:
        ConfigurationError: There is no such service.
    """
    described = known.get(service)
    if described is not None and described.http is not None:
        return Declared(described)
    module: Speaker = source_module(service)
    return module


def secret_fields(spoken: Speaker) -> tuple[str, ...]:
    """The fields that are not shown while a person types them."""
    if isinstance(spoken, Declared):
        return spoken.SECRET
    return tuple(name for name in spoken.FIELDS if any(word in name for word in _SECRET))
