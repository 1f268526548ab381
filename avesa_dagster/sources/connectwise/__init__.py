"""ConnectWise PSA (Manage)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import Where
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.connectwise.credentials import Credentials
from avesa_dagster.sources.connectwise.source import Codebase, ConnectWise
from avesa_dagster.sources.http import Allowance, Http, Retrying

FIELDS = tuple(Credentials.model_fields)
"""Names of the credentials' fields, in the order in which a person is asked."""


def check(values: Mapping[str, object], where: Where) -> None:
    """Raises ConfigurationError unless the credentials are complete and well formed."""
    Credentials.parse(values, where)


def connect(
    service: Service,
    values: Mapping[str, object],
    where: Where,
    allowance: Allowance,
    *,
    clock: Clock,
    cancelled: Cancelled,
    retrying: Retrying,
) -> Callable[[], Source]:
    """Returns what opens a source for a thread; all share the discovered address."""
    credentials = Credentials.parse(values, where)
    codebase = Codebase(credentials, where)

    def open_source() -> Source:
        http = Http(
            where,
            allowance,
            headers=credentials.headers(),
            secrets=credentials.secrets(),
            timeout=service.request_timeout_seconds,
            clock=clock,
            cancelled=cancelled,
            retrying=retrying,
        )
        return ConnectWise(service, http, codebase, where, clock=clock)

    return open_source
