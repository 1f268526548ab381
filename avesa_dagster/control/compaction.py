"""Rewriting a SQLite file, so that bytes that were deleted in it are gone.

SQLite keeps deleted rows in free pages and in the write-ahead log until they happen to be
overwritten.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from avesa_dagster.control.sqlite_database import store_error
from avesa_dagster.errors import StoreError

_PAUSE = 0.1


def compact(path: Path, *, busy_seconds: float = 30.0) -> None:
    """Writes the file anew with what it holds, and empties its write-ahead log.

    Others may have it open; writers wait meanwhile (about 2 s for 200 MB), readers do not.

    Args:
        path: The database; none there is no error.
        busy_seconds: How long to wait for the transactions of others.

    Raises:
        StoreError: The file cannot be written, or others did not let go of it.
    """
    if not path.exists():
        return
    deadline = time.monotonic() + busy_seconds
    try:
        with closing(
            sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
        ) as connection:
            connection.execute("VACUUM")
            while not _emptied(connection):
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{path}-wal may still hold what was deleted: another process reads it",
                        hint="look for a process that hangs, then run it again",
                    )
                time.sleep(_PAUSE)
    except sqlite3.Error as error:
        raise store_error(path, error) from error


def _emptied(connection: sqlite3.Connection) -> bool:
    """Brings the log into the file and cuts it to nothing; False while others read it."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return int(busy) == 0
