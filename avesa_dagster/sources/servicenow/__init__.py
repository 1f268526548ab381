"""ServiceNow, by its Table and Aggregate APIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import Where
from avesa_dagster.sources.base import Cancelled, Clock, Source
from avesa_dagster.sources.http import Allowance, Http, Retrying
from avesa_dagster.sources.refreshing import SESSION
from avesa_dagster.sources.rotation import Rotating
from avesa_dagster.sources.servicenow.credentials import Credentials
from avesa_dagster.sources.servicenow.source import Classes, ServiceNow
from avesa_dagster.sources.servicenow.speech import Speech
from avesa_dagster.sources.vault import Vault

FIELDS = tuple(name for name in Credentials.model_fields if name != SESSION)
"""Names of the credentials' fields, in the order in which a person is asked."""
_HOUR = 3600


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
    """Returns what opens a source for a thread; all share the access token."""
    credentials = Credentials.parse(values, where)
    speech = Rotating(
        values,
        vault,
        lambda given: Speech(Credentials.parse(given, where), vault, where),
        fixed=("instance_url",),
    )
    classes = Classes()

    def open_source() -> Source:
        http = Http(
            where,
            allowance,
            speech,
            timeout=service.request_timeout_seconds,
            clock=clock,
            cancelled=cancelled,
            retrying=retrying,
            limit_seconds=_HOUR,
        )
        return ServiceNow(service, http, credentials.instance_url, where, classes, clock=clock)

    return open_source
