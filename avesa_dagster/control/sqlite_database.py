"""One SQLite file shared by many threads and many processes.

A connection is used by one thread at a time and rests in a pool between transactions, so that
short-lived threads leave no open file behind. A child made by fork opens its own. Every error of
SQLite leaves this module as a StoreError that names the file and says what to do.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from avesa_dagster.errors import ConfigurationError, StoreError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND

_inherited: list[sqlite3.Connection] = []
"""Connections that a fork copied. Closing one in the child could damage the parent's file."""


class CorruptDatabase(StoreError):
    """The file is no SQLite database, or its pages contradict each other."""


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970 in UTC, exact for the years 0001 to 9999.

    Raises:
        ConfigurationError: If `moment` has no time zone, or lies outside those years in UTC.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ConfigurationError(
            f"the time {moment.isoformat()} has no time zone", hint="pass an aware UTC datetime"
        )
    micros = (moment - _EPOCH) // _MICROSECOND
    if not _FIRST <= micros <= _LAST:
        raise ConfigurationError(
            f"the time {moment.isoformat()} lies outside the years 0001 to 9999 in UTC"
        )
    return micros


def to_moment(micros: int) -> datetime:
    """The UTC datetime that `to_micros` made into `micros`."""
    return _EPOCH + _MICROSECOND * micros  # made some ten thousand times for one answer


class Database:
    """Opens, or creates, one database file.

    Args:
        path: The file. Missing folders are made.
        schema: Statements that create version 1, run once in one transaction.
        upgrades: Statements that lead from each version to the next, from version 1 on; each step
            is one transaction. The file's version is then one more than there are steps.
        durable: True: a commit survives SIGKILL and power loss (synchronous=FULL, one fsync a
            commit; in WAL mode NORMAL may lose the newest commits with the power). False: it
            survives SIGKILL only.
        busy_seconds: How long a transaction waits for those of others.

    Raises:
        StoreError: If the file cannot be opened, or a newer AVESA wrote it.
        CorruptDatabase: If it is no database.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: Sequence[str],
        upgrades: Sequence[Sequence[str]] = (),
        durable: bool = True,
        busy_seconds: float = 30.0,
    ) -> None:
        self.path = path
        self._durable = durable
        self._busy_seconds = busy_seconds
        self._pid = os.getpid()
        self._pool: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make the folder {path.parent}: {error.strerror}",
                hint="check the path and its permissions; nothing was written",
            ) from error
        self._prepare((schema, *upgrades))

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the file. Nested use opens a view of its own."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One atomic transaction; no other writer is between its reads and its writes.

        Commits at the end, rolls back if the block raises. Do not nest: the inner one would wait
        for the outer one.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Closes the resting connections. The database may be used again afterwards."""
        self._leave_to_parent()
        with self._lock:
            connections, self._pool = self._pool, []
        for connection in connections:
            connection.close()

    def _prepare(self, steps: Sequence[Sequence[str]]) -> None:
        with self.read() as connection:
            found = self._version(connection)
        while found < len(steps):
            with self.write() as connection:
                found = self._version(connection)
                if found < len(steps):
                    self._step(connection, found, steps[found])
                    found += 1
        if found > len(steps):
            self.close()
            raise StoreError(
                f"{self.path} has schema version {found}, this AVESA knows up to {len(steps)}",
                hint="update AVESA on this machine; the file was left as it is",
            )

    def _step(self, connection: sqlite3.Connection, found: int, statements: Sequence[str]) -> None:
        for statement in statements:
            connection.execute(statement)
        if found == 0:
            connection.execute("CREATE TABLE SchemaVersion (version INTEGER NOT NULL)")
            connection.execute("INSERT INTO SchemaVersion VALUES (1)")
        else:
            connection.execute("UPDATE SchemaVersion SET version = ?", (found + 1,))

    def _version(self, connection: sqlite3.Connection) -> int:
        named = connection.execute(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'SchemaVersion'"
        ).fetchone()
        if named is None:
            return 0
        row = connection.execute("SELECT max(version) FROM SchemaVersion").fetchone()
        if row[0] is None:
            raise CorruptDatabase(
                f"{self.path} has an empty SchemaVersion table",
                hint="restore the file from a backup, or move it away to begin anew",
            )
        return int(row[0])

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._take()
            connection.execute(begin)
            yield connection
            connection.execute("COMMIT")
            self._give_back(connection)
            connection = None
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error
        except UnicodeEncodeError as error:
            raise StoreError(
                f"a text for {self.path} is not valid Unicode (a lone surrogate)",
                hint="nothing of this transaction was written",
            ) from error
        finally:
            if connection is not None:  # closing rolls back what was not committed
                connection.close()

    def _leave_to_parent(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            _inherited.extend(self._pool)
            self._pool = []

    def _take(self) -> sqlite3.Connection:
        self._leave_to_parent()
        with self._lock:
            if self._pool:
                return self._pool.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            self._pool.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=self._busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # Two processes that switch a new file at once get SQLITE_BUSY without the busy timeout.
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)


def store_error(path: Path, error: sqlite3.Error) -> StoreError:
    """Says in AVESA's words what SQLite reported about `path`, and what to do."""
    code = _primary(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptDatabase(
            f"{path} is corrupt or no SQLite database",
            hint="restore it from a backup, or move it away to begin anew; it was left as it is",
        )
    kept = "nothing of this transaction was written"
    known = {
        sqlite3.SQLITE_FULL: ("the disk is full", "free some space, then try again"),
        sqlite3.SQLITE_BUSY: (
            "another process kept it locked for too long",
            "look for a process that hangs, or a backup tool that holds the file",
        ),
        sqlite3.SQLITE_LOCKED: ("it is locked", "try again"),
        sqlite3.SQLITE_READONLY: ("it is read-only", "make the file and its folder writable"),
        sqlite3.SQLITE_PERM: ("permission denied", "make the file and its folder writable"),
        sqlite3.SQLITE_CANTOPEN: (
            "it cannot be opened or created",
            "check that the path is a file and that its folder is writable",
        ),
        sqlite3.SQLITE_IOERR: ("the disk reported an error", "check the disk and its free space"),
    }
    what, todo = known.get(code, (f"SQLite says: {error}", "this is likely a bug; report it"))
    return StoreError(f"cannot use {path}: {what}", hint=f"{todo}; {kept}")


def _primary(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)  # absent on errors of the Python module itself
    return code & 0xFF if isinstance(code, int) else -1
