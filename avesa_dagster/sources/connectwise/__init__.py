"""ConnectWise PSA (Manage)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import Where
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.connectwise.credentials import Credentials
from avesa_dagster.sources.connectwise.source import Codebase, ConnectWise
from avesa_dagster.sources.http import Allowance, Dialect, Http, Retrying
from avesa_dagster.sources.rotation import Rotating
from avesa_dagster.sources.vault import Vault

FIELDS = tuple(Credentials.model_fields)
"""Names of the credentials' fields, in the order in which a person is asked."""


class Speech(Dialect):
    """ConnectWise's own: fixed headers."""

    permission = "give the API member's role Inquire level 'All' on this table"


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
    vault: Vault,
) -> Callable[[], Source]:
    """Returns what opens a source for a thread; all share the discovered address."""
    codebase = Codebase(Credentials.parse(values, where), where)

    def speak(given: Mapping[str, object]) -> Speech:
        credentials = Credentials.parse(given, where)
        return Speech(credentials.headers(), credentials.secrets())

    speech = Rotating(values, vault, speak, fixed=("api_base_url", "company_id"))

    def open_source() -> Source:
        http = Http(
            where,
            allowance,
            speech,
            timeout=service.request_timeout_seconds,
            clock=clock,
            cancelled=cancelled,
            retrying=retrying,
        )
        return ConnectWise(service, http, codebase, where, clock=clock)

    return open_source
