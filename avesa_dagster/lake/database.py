"""DuckDB, set up in one place: bounded memory, UTC, nothing fetched, nothing read by accident.

ICU, JSON and Parquet are linked into DuckDB's wheel, so timestamps with zones need no network;
extensions are never installed or loaded by themselves.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from avesa_dagster.errors import StoreError, Where
from avesa_dagster.lake.objects import Objects

MEMORY_LIMIT = "1GB"
THREADS = 2


def connect(
    objects: Objects | None = None,
    *,
    tenant: str | None = None,
    memory_limit: str = MEMORY_LIMIT,
    threads: int = THREADS,
    scratch: Path | None = None,
) -> duckdb.DuckDBPyConnection:
    """Opens a private in-memory database.

    Args:
        objects: A lake whose locations it can read.
        tenant: Only this one's; see `Objects.attach`.
        memory_limit: What DuckDB may hold in memory, as `1GB`; beyond it, it spills to disk.
        threads: Threads of one query.
        scratch: Folder to spill to; by default one of its own below the system's temporary
            folder, which DuckDB makes when it first spills and removes when it is closed.
    """
    spill = scratch or Path(tempfile.gettempdir(), f"avesa-spill-{uuid.uuid4().hex}")
    connection = duckdb.connect(
        config={
            "memory_limit": memory_limit,
            "threads": threads,
            "temp_directory": str(spill),
            # Costs memory. Trap: without it, not even ORDER BY orders a result (`keep_order`).
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_persistent_secrets": False,
            # Else a table name that is not found is looked up among Python's local variables.
            "python_enable_replacements": False,
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    if objects is not None:
        objects.attach(connection, tenant=tenant)
    return connection


def keep_order(connection: duckdb.DuckDBPyConnection) -> None:
    """From here on results come out in the order that ORDER BY gives them; costs some memory."""
    connection.execute("SET preserve_insertion_order = true")


def literal(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """`name` as an SQL name."""
    return '"' + name.replace('"', '""') + '"'


def parquet(paths: Iterable[str], *options: str) -> str:
    """A `read_parquet` over exactly these files: characters that DuckDB globs are made plain."""
    files = ", ".join(literal(plain(path)) for path in paths)
    return f"read_parquet({', '.join([f'[{files}]', *options])})"


@contextmanager
def explained(what: str, where: Where) -> Iterator[None]:
    """Turns DuckDB's complaints about files, disk and memory into `StoreError`.

    Args:
        what: What was being done, to begin the error's text with.
        where: Whose data it was.
    """
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise StoreError(
            f"{what}: memory or disk ran out: {first_line(error)}",
            where=where,
            hint="give it a larger memory limit, or free space where it spills to",
        ) from error
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException):
        raise  # A mistake in our SQL, not in what is stored.
    except duckdb.Error as error:
        raise StoreError(
            f"{what}: {first_line(error)}",
            where=where,
            hint="nothing was replaced; see that the file is whole and readable",
        ) from error


def first_line(error: Exception) -> str:
    """An engine's error as one clean line."""
    lines = [part.strip() for part in str(error).splitlines() if part.strip()]
    if not lines:
        return "unknown error"
    # What our own Python raised when the engine called it comes with a traceback.
    return (lines[-1] if lines[0].startswith("Traceback ") else lines[0])[:500]


def plain(path: str) -> str:
    """`path` as a pattern that matches it alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)
