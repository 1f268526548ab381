"""Salesforce, by its REST API and Bulk API 2.0."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import Where
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.http import Allowance, Http, Retrying
from avesa_dagster.sources.refreshing import SESSION
from avesa_dagster.sources.rotation import Rotating
from avesa_dagster.sources.salesforce.credentials import Credentials
from avesa_dagster.sources.salesforce.objects import Objects
from avesa_dagster.sources.salesforce.source import Salesforce
from avesa_dagster.sources.salesforce.speech import Speech
from avesa_dagster.sources.vault import Vault

FIELDS = tuple(name for name in Credentials.model_fields if name != SESSION)
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
    vault: Vault,
) -> Callable[[], Source]:
    """Returns what opens a source for a thread; all share the token and what objects are like."""

    def speak(given: Mapping[str, object]) -> Speech:
        credentials = Credentials.parse(given, where)
        return Speech(credentials, vault, where, clock=clock, daily_share=service.daily_share)

    speech = Rotating(values, vault, speak, fixed=("instance_url",))
    objects = Objects()

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
        return Salesforce(service, http, objects, where, clock=clock, cancelled=cancelled)

    return open_source
