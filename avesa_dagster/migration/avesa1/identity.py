"""Ids and contents of imported records, as the services' own connectors see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from avesa_dagster.sources.base import Record, Rejected
from avesa_dagster.sources.records import matching, usable
from avesa_dagster.sources.salesforce.content import content_of, full_id, values_of

_IDS: Mapping[str, tuple[Callable[[str], str | None], str]] = {
    "connectwise": (matching(re.compile(r"-?[0-9]{1,40}")), "its id {} is no integer"),
    "servicenow": (matching(re.compile(r"[A-Za-z0-9_.-]{1,64}")), "its sys_id {} is none"),
    "salesforce": (full_id, "its id {} is none"),
}


def identified(service: str, records: Sequence[Record], rejected: list[Rejected]) -> list[Record]:
    """The records whose id can be one of the service's; others are rejected.

    What Salesforce writes in several ways gets the same content as from its connector.
    """
    if service in _IDS:
        records = usable(records, rejected, *_IDS[service])
    if service == "salesforce":
        return [_with_content(record) for record in records]
    return list(records)


def _with_content(record: Record) -> Record:
    values = values_of(record.payload)
    return record if values is None else replace(record, content=content_of(values))
