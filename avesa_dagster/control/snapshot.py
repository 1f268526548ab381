"""The registry snapshot: what definitions are built from, never live reads at import.

A JSON document, replaced whole. A registry that cannot be reached makes no asset vanish; run
workers and the webserver see the same tenants.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Protocol

from avesa_dagster.control.base import TenantService
from avesa_dagster.errors import StoreError

_TIMES = ("history_start", "connected_at", "updated_at")


class Snapshot(Protocol):
    """Where the rows lie that definitions are built from."""

    def read(self) -> list[TenantService]:
        """The rows; none if nothing was ever connected.

        Raises:
            StoreError: They cannot be read.
        """
        ...

    def refresh(self, rows: Callable[[], Sequence[TenantService]]) -> None:
        """Replaces them with what the registry says now.

        Args:
            rows: Reads the registry. Of several processes none writes what it read before another
                one wrote; else a tenant would vanish.

        Raises:
            StoreError: They cannot be written.
        """
        ...


class FileSnapshot:
    """Implements Snapshot in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[TenantService]:
        """See Snapshot.read."""
        return read_snapshot(self._path)

    def refresh(self, rows: Callable[[], Sequence[TenantService]]) -> None:
        """See Snapshot.refresh. Removes what killed writers did not put in place, too."""
        with _exclusive(self._path):
            for left in self._path.parent.glob(f".{self._path.name}.*"):
                if left.suffix != ".lock":
                    left.unlink()
            write_snapshot(self._path, rows())


def to_json(rows: Sequence[TenantService]) -> bytes:
    """The document that holds these rows."""
    document = []
    for row in rows:
        item = asdict(row)
        item.update({name: item[name].isoformat() for name in _TIMES})
        document.append(item)
    return json.dumps({"version": 1, "tenant_services": document}, indent=1).encode()


def from_json(document: bytes, name: str) -> list[TenantService]:
    """The rows of a document.

    Args:
        name: Of the document, for the error.

    Raises:
        StoreError: It is damaged.
    """
    try:
        rows = []
        for item in json.loads(document)["tenant_services"]:
            item.update({name: datetime.fromisoformat(item[name]) for name in _TIMES})
            rows.append(TenantService(**{**item, "tables": tuple(item["tables"])}))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{name}: cannot be read: {type(error).__name__}",
            hint="write it anew with: avesa tenants --refresh",
        ) from error
    return rows


def write_snapshot(path: Path, rows: Sequence[TenantService]) -> None:
    """Replaces the file with these rows.

    Raises:
        StoreError: The folder cannot be written.
    """
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("wb") as file:
            file.write(to_json(rows))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_snapshot(path: Path) -> list[TenantService]:
    """The rows of the file; none if nothing was ever connected.

    Raises:
        StoreError: The file is damaged.
    """
    try:
        document = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read: {error.strerror}", hint="check AVESA_HOME and its owner"
        ) from error
    return from_json(document, str(path))


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written: {error.strerror}",
        hint="check AVESA_HOME, its owner and its free space",
    )
