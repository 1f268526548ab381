"""What an erasure removed so far, kept where the lake is: any host can go on with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from datetime import datetime

from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.lake.objects import Conflict, Objects
from avesa_dagster.lake.snapshot import FOLDER

_FOLDER = f"{FOLDER}/erasing"


@dataclass(slots=True)
class Journal:
    """What was removed so far; stored before it is removed, as far as it is known before.

    Attributes:
        connections: Service to number.
        objects: Key to bytes.
        rows, runs: Table or kind to how many.
        secrets: Services.
        attempts: Times that the erasure was begun.
        tag: Of the object that it was last stored as.
    """

    began_at: str
    connections: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    tag: str | None = None


class Journals:
    """The journals of erasures that did not end, one for each tenant."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def exists(self, tenant: str) -> bool:
        """Whether an erasure of the tenant began and did not end."""
        return self._objects.stat(_key(tenant)) is not None

    def open(self, tenant: str, now: datetime) -> Journal:
        """The journal of an erasure that did not end, or a new one.

        Raises:
            StoreError: It is damaged.
        """
        held = self._objects.stat(_key(tenant))
        if held is None:
            return Journal(now.isoformat())
        try:
            return Journal(**json.loads(self._objects.get(_key(tenant))), tag=held.tag)
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{self._objects.location(_key(tenant))} cannot be read",
                hint="remove it; the receipt then lacks what was removed before",
            ) from error

    def save(self, tenant: str, journal: Journal) -> None:
        """Replaces what is stored.

        Raises:
            ConfigurationError: Another process erases the tenant: this one was taken for dead.
        """
        names = [item.name for item in fields(journal) if item.name != "tag"]
        said = json.dumps({name: getattr(journal, name) for name in names})
        try:
            journal.tag = self._objects.put_if(_key(tenant), said.encode(), tag=journal.tag).tag
        except Conflict:
            raise ConfigurationError(
                "another erasure of the tenant runs",
                where=Where(tenant),
                hint="wait until it has ended; if it ends without a receipt, run it again",
            ) from None

    def remove(self, tenant: str) -> None:
        """Removes it without a trace; none there is no error."""
        self._objects.delete(_key(tenant))
        self._objects.prune(f"{_FOLDER}/{tenant}")


def _key(tenant: str) -> str:
    return f"{_FOLDER}/{tenant}/journal.json"
