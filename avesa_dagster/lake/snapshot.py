"""The registry snapshot as an object, for an installation of several hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from avesa_dagster.control.base import TenantService
from avesa_dagster.control.snapshot import from_json, to_json
from avesa_dagster.errors import StoreError
from avesa_dagster.lake.objects import Conflict, Objects

FOLDER = "_avesa"
"""No tenant can be called so."""
KEY = f"{FOLDER}/registry.json"
_TRIES = 50


class ObjectSnapshot:
    """Implements `control.snapshot.Snapshot`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self) -> list[TenantService]:
        """See Snapshot.read."""
        try:
            document = self._objects.get(KEY)
        except KeyError:
            return []
        return from_json(document, self._objects.location(KEY))

    def refresh(self, rows: Callable[[], Sequence[TenantService]]) -> None:
        """See Snapshot.refresh. The registry is read after the tag that must still hold."""
        for _ in range(_TRIES):
            held = self._objects.stat(KEY)
            try:
                self._objects.put_if(KEY, to_json(rows()), tag=held.tag if held else None)
            except Conflict:
                continue
            return
        raise StoreError(
            f"{self._objects.location(KEY)}: others keep writing it", hint="run it again"
        )
