"""What the suite has to know of a service: one `Enrolment`, one line in a test file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog, ServiceTable
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.settings import Settings


class Rig(Protocol):
    """A simulated service that runs, with a back door. `sandbox.process.Simulator` and
    `conformance.stand.Stand` are rigs.

    `control` takes these methods; `sandbox.control` says what each argument means, and what else
    there is. Instants are ISO 8601 texts; a record's id is the text that the service sends.

        reset          seed, sizes {table: records}, years, now, page_clamp
        clock          now
        hostility      a script of faults and standing conditions (`sandbox.hostility`); {} ends it
        limit          limit_per_minute | null
        latency        latency_ms
        mutate         table, ids | count, at → ids
        create         table, count, at → ids
        delete         table, ids | count → ids
        undelete       table, ids | count → ids
        revoke, restore
        rotate         → credentials: the next; those before are good as well, until
        retire         those before are refused
        truth          table → records {id: {versions [{payload}]}}
        truth_current  table → records {id: {updated_at, deleted, visible}}, pending
        stats          log (how many requests) → total, refused, by_status {}, log [{table, status}]
        stats_reset
    """

    @property
    def credentials(self) -> Mapping[str, str]:
        """What a person would give to connect; good after every reset."""
        ...

    def control(self, method: str, /, **arguments: Any) -> Any: ...

    def stop(self) -> object: ...


Act = tuple[str, Mapping[str, Any]]
"""A method of the back door and its arguments."""


def _own_name(name: str, table: ServiceTable) -> str:
    return name


def _read(payload: bytes) -> object:
    found: object = json.loads(payload)
    return found


def _as_it_is(content: object) -> object:
    return content


def by_endpoint(name: str, table: ServiceTable) -> str:
    """For `Enrolment.called`: the rig calls a table by its endpoint."""
    return table.endpoint


@dataclass(frozen=True)
class Enrolment:
    """A service, how to start one that is simulated, and what that one can do.

    Attributes:
        service: Its name in the catalog.
        start: Starts the simulated service.
        secret: The fields of its credentials that nobody may see.
        mappings: The folder that describes it; None: the installation's own, with what installed
            packages bring.
        tables: Those to prove; none: all that the catalog has of it.
        called: (table's name, table) to what the rig calls it.
        content: A stored payload to what equals the JSON of the rig's `truth`, whatever way the
            service wrote it in.
        counts: What of a content counts, of what is stored and of the truth alike.
        most: Records that the simulated service can hold in the memory of a usual machine.
        lasting: Tables whose records nobody can delete.
        faults: Lines of a hostility script that only this service knows; each is survived.
        expire: Ends every access token that it gave. None: it gives none.
        zone: Puts the user that asks into another time zone. None: it has no such thing.
        drift: Adds a field to a table's records, or to those that change from now on, and returns
            its name. None: the rig cannot.
    """

    service: str
    start: Callable[[], Rig]
    secret: tuple[str, ...]
    mappings: Path | None = None
    tables: tuple[str, ...] = ()
    called: Callable[[str, ServiceTable], str] = _own_name
    content: Callable[[bytes], object] = _read
    counts: Callable[[object], object] = _as_it_is
    most: int = 1_000_000
    lasting: frozenset[str] = frozenset()
    faults: tuple[Mapping[str, Any], ...] = ()
    expire: Act | None = None
    zone: Act | None = None
    drift: Callable[[Rig, str], str] | None = None

    @cached_property
    def folder(self) -> Path:
        """Its mappings folder."""
        return self.mappings or Settings.from_environment().mappings

    @cached_property
    def catalog(self) -> Catalog:
        """What the mappings say."""
        return load_catalog(self.folder)

    def proven(self) -> tuple[str, ...]:
        """The tables to prove.

        Raises:
            ConfigurationError: The catalog has no such service.
        """
        known = self.catalog.services.get(self.service)
        if known is None:
            raise ConfigurationError(
                f"{self.folder} describes no service {self.service!r}",
                hint="is the package that brings it installed?",
            )
        return self.tables or tuple(known.tables)
