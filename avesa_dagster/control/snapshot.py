"""The registry snapshot: what definitions are built from, never live reads at import.

A JSON file, replaced whole. A registry that cannot be reached makes no asset vanish; run workers
and the webserver see the same tenants.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from avesa_dagster.control.base import TenantService
from avesa_dagster.errors import StoreError

_TIMES = ("history_start", "connected_at", "updated_at")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time reads the registry and writes the snapshot; else one that read earlier
    could write later, and a tenant would vanish."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_snapshot(path: Path, rows: Sequence[TenantService]) -> None:
    """Replaces the snapshot with these rows.

    Raises:
        StoreError: The folder cannot be written.
    """
    document = []
    for row in rows:
        item = asdict(row)
        item.update({name: item[name].isoformat() for name in _TIMES})
        document.append(item)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("w", encoding="utf-8") as file:
            json.dump({"version": 1, "tenant_services": document}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written: {error.strerror}",
        hint="check AVESA_HOME, its owner and its free space",
    )


def read_snapshot(path: Path) -> list[TenantService]:
    """The rows of the snapshot; none if nothing was ever connected.

    Raises:
        StoreError: The file is damaged.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: cannot be read: {error}", hint="write it anew with: avesa tenants --refresh"
        ) from error
    rows = []
    for item in document["tenant_services"]:
        item.update({name: datetime.fromisoformat(item[name]) for name in _TIMES})
        rows.append(TenantService(**{**item, "tables": tuple(item["tables"])}))
    return rows
