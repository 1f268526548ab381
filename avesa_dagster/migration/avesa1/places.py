"""What a file of the platform before holds, by its key.

    {tenant}/raw/{service}/{table}/{ISO time}_{chunk}_batch{NNN}.parquet

The table goes by our name, by the service's endpoint, or by some spelling of it; `service/tickets`
may be two folders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from avesa_dagster.catalog.models import Catalog, Service
from avesa_dagster.names import NAME

_RAW = re.compile(r"([^/]+)/raw/([^/]+)/(.+)/([^/]+\.parquet)")
_OURS = re.compile(r"(^|/)(dt=\d{4}-\d\d-\d\d|rejected)/")
_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)[T_ ](\d\d)[:.-]?(\d\d)[:.-]?(\d\d)(?:[.,](\d{1,9}))?"
    r"(?:Z|([+-])(\d\d):?(\d\d))?(?=[_.]|$)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Whose a file is.

    Attributes:
        table: Our name.
        observed_at: When it was fetched, by its name.
    """

    tenant: str
    service: str
    table: str
    observed_at: datetime


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A file, or a row, that belongs nowhere, and why."""

    key: str
    reason: str


def place_of(key: str, catalog: Catalog) -> Place | Unplaced | None:
    """Whose a file is; None: it is none of the raw files of the platform before."""
    match = _RAW.fullmatch(key)
    if match is None or _OURS.search(key):
        return None
    tenant, service, table, name = match.groups()
    if not NAME.fullmatch(tenant):
        return Unplaced(key, f"{tenant!r} is no valid tenant name")
    known = catalog.services.get(service)
    if known is None:
        return Unplaced(key, f"there is no service {service!r}")
    own = table_of(known, table)
    if own is None:
        return Unplaced(key, f"{service} has no table {table!r}")
    observed_at = time_of(name)
    if observed_at is None:
        return Unplaced(key, "its name does not say when it was fetched")
    return Place(tenant, service, own, observed_at)


def table_of(service: Service, spelled: str) -> str | None:
    """Our name of a table, however it is spelled."""
    return _spellings(service).get(_plain(spelled))


def time_of(name: str) -> datetime | None:
    """The time that a file's name begins with, in UTC; without a zone it is UTC already."""
    match = _TIME.match(name)
    if match is None:
        return None
    *parts, fraction, sign, hours, minutes = match.groups()
    micros = f"{fraction or ''}000000"[:6]
    zone = f"{sign}{hours}:{minutes}" if sign else "+00:00"
    year, month, day, hour, minute, second = parts
    try:
        text = f"{year}-{month}-{day}T{hour}:{minute}:{second}.{micros}{zone}"
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _spellings(service: Service) -> Mapping[str, str]:
    """Spelling -> table. A short one that two tables share stands for neither."""
    last = Counter(_plain(t.endpoint.rsplit("/", 1)[-1]) for t in service.tables.values())
    found = {}
    for name, table in service.tables.items():
        short = _plain(table.endpoint.rsplit("/", 1)[-1])
        if last[short] == 1:
            found[short] = name
    for name, table in service.tables.items():
        found[_plain(table.endpoint)] = name
    return found | {_plain(name): name for name in service.tables}


def _plain(spelled: str) -> str:
    return re.sub(r"[/_.\- ]+", "_", spelled.strip("/").lower())
