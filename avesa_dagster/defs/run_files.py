"""Dagster's SQLite files and logs as they lie on disk: finding and removing a tenant in them."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sqlalchemy as db
from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.compute_log_manager import ComputeLogManager
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from avesa_dagster.control.compaction import compact
from avesa_dagster.control.sqlite_database import store_error
from avesa_dagster.defs.erase_rows import (
    BY_ASSET,
    Database,
    Text,
    clean_events,
    naming,
    remove_by_asset,
    remove_events,
)
from avesa_dagster.defs.processes import sole_daemon
from avesa_dagster.defs.traces import Traces
from avesa_dagster.errors import ConfigurationError, StoreError

RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BUSY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """Implements `erase_rows.Database`; compared by its path."""

    path: Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @contextmanager
    def _opened(self, begin: str) -> Iterator[Connection]:
        try:
            with _engine(self.path).connect() as connection:
                connection.exec_driver_sql(begin)
                yield connection
                connection.commit()
        except DBAPIError as error:
            if not isinstance(error.orig, sqlite3.Error):
                raise
            raise store_error(self.path, error.orig) from error.orig

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """See Database.writing. Raises StoreError if the file cannot be written."""
        with self._opened("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See Database.reading. Raises StoreError if the file cannot be read."""
        with self._opened("BEGIN") as connection:
            yield connection

    def compact(self) -> None:
        """See Database.compact."""
        compact(self.path)


class SqliteEvents:
    """Implements `erase_rows.Events`: an index by asset, and a file for each run.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = SqliteFile(folder / "index.db")
        self._runless = SqliteFile(folder / f"{RUNLESS_RUN_ID}.db")

    @property
    def databases(self) -> Sequence[Database]:
        return [self._index, *([self._runless] if self._runless.path.exists() else ())]

    def remove(self, run_ids: Collection[str]) -> None:
        """See Events.remove."""
        with self._index.writing() as connection:
            remove_events(connection, run_ids)
        with disk(self._folder):
            for run_id in run_ids:
                for suffix in (".db", ".db-wal", ".db-shm", ".db-journal"):
                    (self._folder / f"{run_id}{suffix}").unlink(missing_ok=True)

    def remove_by_asset(self, traces: Traces) -> int:
        """See Events.remove_by_asset."""
        with self._index.writing() as connection:
            removed = {table: remove_by_asset(connection, table, traces) for table in BY_ASSET}
        if self._runless.path.exists():
            with self._runless.writing() as connection:
                remove_by_asset(connection, "event_logs", traces)
        return removed["asset_keys"]

    def clean(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """See Events.clean."""
        shard = self._shard(run_id)
        for file, limited in ((shard, ""), (self._index, run_id)):
            if file.path.exists():
                with file.writing() as connection:
                    clean_events(connection, traces, stand_in, limited)
        shard.compact()

    def holding(self, traces: Traces) -> set[str]:
        """See Events.holding: all runs that have a file."""
        return {path.stem for path in self._folder.glob("*.db") if RUN_ID.fullmatch(path.stem)}

    def names(self, run_id: str, traces: Traces) -> bool:
        """See Events.names."""
        shard = self._shard(run_id)
        if not shard.path.exists():
            return False
        with shard.reading() as connection:
            if not db.inspect(connection).has_table("event_logs"):
                return False
            return any(True for _ in naming(connection, Text("event_logs", "event"), traces))

    def forget(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """See Events.forget."""
        self.remove([run_id])

    def left(self, known: Collection[str]) -> Sequence[Database]:
        """See Events.left."""
        return [
            SqliteFile(path)
            for path in sorted(self._folder.glob("*.db"))
            if path.stem not in {*known, self._index.path.stem}
        ]

    def _shard(self, run_id: str) -> SqliteFile:
        return SqliteFile(self._folder / f"{run_id}.db")


class LocalLogs:
    """Implements `erase_rows.Logs` over the files of this machine.

    Args:
        manager: What keeps the output of runs here.
        home: Where `avesa dev` writes its own.
        storage: Where Dagster keeps what runs and ticks wrote, and other artifacts of runs.
    """

    def __init__(self, manager: ComputeLogManager, home: Path, storage: Path) -> None:
        self._manager = manager
        self._home = home
        self._storage = storage

    def remove(self, run_id: str) -> None:
        """See Logs.remove."""
        self._manager.delete_logs(prefix=[run_id])
        with disk(self._storage):
            if (self._storage / run_id).exists():
                shutil.rmtree(self._storage / run_id)

    def holding(self) -> set[str]:
        """See Logs.holding."""
        names = (folder.name for folder in self._storage.glob("*"))
        return {name for name in names if RUN_ID.fullmatch(name)}

    def names(self, run_id: str, traces: Traces) -> bool:
        """See Logs.names."""
        return any(mentions(path, traces) for path in (self._storage / run_id).rglob("*"))

    def clean(self, traces: Traces, run_ids: Collection[str]) -> int:
        """See Logs.clean. None, while a daemon writes to them."""
        try:
            with sole_daemon(self._home), disk(self._home):
                return sum(drop_lines(path, traces, run_ids) for path in self._files())
        except ConfigurationError:
            return 0  # a daemon appends to them; what stays is said by `named`

    def named(self, traces: Traces) -> list[str]:
        """See Logs.named."""
        return [
            f"lines of {self._shown(log)}: stop `avesa dev`, which writes it, and run the "
            "erasure again"
            for log in self._files()
            if mentions(log, traces)
        ]

    def _files(self) -> list[Path]:
        """Logs of processes, and of ticks."""
        ticks = [
            path
            for folder in self._storage.glob("*")
            if not RUN_ID.fullmatch(folder.name)
            for path in folder.rglob("*")
            if path.is_file()
        ]
        return sorted([*self._home.glob("*.log"), *ticks])

    def _shown(self, path: Path) -> Path:
        return path.relative_to(self._home) if path.is_relative_to(self._home) else path


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Makes what the disk refuses a StoreError that names the file, or else the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder}: cannot be removed: {error.strerror}",
            hint="check its owner and permissions, then erase again",
        ) from error


def mentions(path: Path, traces: Traces) -> bool:
    """Whether a file of text names the tenant."""
    return path.is_file() and traces.found(path.read_text("utf-8", "replace"))


def kept_lines(text: str, traces: Traces, run_ids: Collection[str]) -> str:
    """The text without the lines that name the tenant or a run of it."""
    gone = set(run_ids)
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if not traces.found(line) and not gone & {*RUN_ID.findall(line)}
    )


def drop_lines(path: Path, traces: Traces, run_ids: Collection[str]) -> bool:
    """Removes the lines that name the tenant or a run of it; True if there were any."""
    text = path.read_text("utf-8", "replace")
    kept = kept_lines(text, traces, run_ids)
    if kept == text:
        return False
    staged = path.with_name(f".{path.name}.new")
    staged.write_text(kept, "utf-8")
    staged.replace(path)
    return True


@lru_cache(maxsize=16)
def _engine(path: Path) -> Engine:
    """Opens the file anew each time, and leaves its transactions to whoever asks."""
    return db.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None),
        poolclass=NullPool,
    )
