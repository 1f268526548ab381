"""Dagster's SQLite files and logs as they lie on disk: finding and removing a tenant in them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from avesa_dagster.control.sqlite_database import store_error
from avesa_dagster.defs.traces import Traces
from avesa_dagster.errors import StoreError

RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BUSY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Text:
    """A column that may name tenants in rows that concern several."""

    table: str
    column: str


@contextmanager
def _opened(path: Path, begin: str, end: str) -> Iterator[sqlite3.Connection]:
    try:
        with closing(
            sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute(begin)
            yield connection
            connection.execute(end)
    except sqlite3.Error as error:
        raise store_error(path, error) from error


def writing(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """One atomic transaction. Raises StoreError if the file cannot be written."""
    return _opened(path, "BEGIN IMMEDIATE", "COMMIT")


def reading(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """One consistent view. Raises StoreError if the file cannot be read."""
    return _opened(path, "BEGIN", "ROLLBACK")


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


def remove_by_asset(connection: sqlite3.Connection, table: str, traces: Traces) -> int:
    """Removes the rows of the tenant's assets; returns how many."""
    prefix = traces.asset_prefix
    return connection.execute(
        f"DELETE FROM {table} WHERE substr(asset_key, 1, ?) = ?", (len(prefix), prefix)
    ).rowcount


def count_by_asset(path: Path, table: str, traces: Traces) -> int:
    """How many rows of the tenant's assets there are; none where there is no file."""
    if not path.exists():
        return 0
    prefix = traces.asset_prefix
    with reading(path) as connection:
        (count,) = connection.execute(
            f"SELECT count(*) FROM {table} WHERE substr(asset_key, 1, ?) = ?", (len(prefix), prefix)
        ).fetchone()
    return int(count)


def naming(path: Path, text: Text, traces: Traces) -> Iterator[tuple[int, str]]:
    """Number and text of the rows that name the tenant."""
    with reading(path) as connection:
        for number, value in connection.execute(f"SELECT id, {text.column} FROM {text.table}"):
            if value is not None and traces.found(value):
                yield number, value


def replace_names(path: Path, texts: Sequence[Text], traces: Traces, stand_in: str) -> int:
    """Replaces the tenant's name; a row that somebody changed meanwhile is left to the next look.

    Returns how many rows were changed.
    """
    changed = 0
    for text in texts:
        found = list(naming(path, text, traces))
        with writing(path) as connection:
            for number, value in found:
                changed += connection.execute(
                    f"UPDATE {text.table} SET {text.column} = ? WHERE id = ? AND {text.column} = ?",
                    (traces.replaced(value, stand_in), number, value),
                ).rowcount
    return changed


def clean_events(path: Path, run_id: str, traces: Traces, stand_in: str) -> None:
    """Removes the events of the tenant's steps and assets; in others its name is replaced.

    Args:
        run_id: Of this run only; empty: all events of the file.
    """
    with writing(path) as connection:
        for number, event, step, asset in connection.execute(
            "SELECT id, event, step_key, asset_key FROM event_logs WHERE ? IN ('', run_id)",
            (run_id,),
        ).fetchall():
            own = traces.found(step or "") or (asset or "").startswith(traces.asset_prefix)
            if own:
                connection.execute("DELETE FROM event_logs WHERE id = ?", (number,))
            elif traces.found(event):
                connection.execute(
                    "UPDATE event_logs SET event = ? WHERE id = ?",
                    (traces.replaced(event, stand_in), number),
                )


def events_name(path: Path, traces: Traces) -> bool:
    """Whether an event in a file of events names the tenant."""
    with reading(path) as connection:
        known = connection.execute(
            "SELECT 1 FROM sqlite_schema WHERE name = 'event_logs'"
        ).fetchone()
        rows = connection.execute("SELECT event FROM event_logs") if known else ()
        return any(traces.found(event) for (event,) in rows)


def mentions(path: Path, traces: Traces) -> bool:
    """Whether a file of text names the tenant."""
    return path.is_file() and traces.found(path.read_text("utf-8", "replace"))


def drop_lines(path: Path, traces: Traces, run_ids: Collection[str]) -> bool:
    """Removes the lines that name the tenant or a run of it; True if there were any."""
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    gone = set(run_ids)
    kept = [line for line in lines if not traces.found(line) and not gone & {*RUN_ID.findall(line)}]
    if len(kept) == len(lines):
        return False
    staged = path.with_name(f".{path.name}.new")
    staged.write_text("".join(kept), "utf-8")
    staged.replace(path)
    return True
