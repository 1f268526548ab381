"""A compacted SQLite file holds what it held, and not what was deleted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from avesa_dagster.control.compaction import compact
from avesa_dagster.errors import StoreError

SECRET = b"very-secret-content"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in WAL mode with a deleted row, whose bytes are still there."""
    path = tmp_path / "some.db"
    with closing(opened(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("kept",), (SECRET.decode() * 1_000,)])
        connection.execute("DELETE FROM t WHERE a <> 'kept'")
    assert SECRET in path.read_bytes()
    return path


def opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_deleted_bytes_are_gone(path: Path) -> None:
    compact(path)
    assert SECRET not in content(path)
    with closing(opened(path)) as connection:
        assert connection.execute("SELECT a FROM t").fetchall() == [("kept",)]


def test_others_may_have_it_open(path: Path) -> None:
    with closing(opened(path)) as other:
        other.execute("PRAGMA secure_delete = OFF")
        other.execute("INSERT INTO t VALUES (?)", (SECRET.decode(),))
        other.execute("DELETE FROM t WHERE a <> 'kept'")
        assert SECRET in path.with_name("some.db-wal").read_bytes()
        compact(path)
        assert SECRET not in content(path)
        other.execute("INSERT INTO t VALUES ('later')")
        assert other.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_reader_that_does_not_end_is_an_error(path: Path) -> None:
    with closing(opened(path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM t").fetchall()
        with pytest.raises(StoreError, match=r"some\.db-wal may still hold"):
            compact(path, busy_seconds=0.2)
        other.execute("ROLLBACK")
        compact(path)
        assert SECRET not in content(path)


def test_a_file_that_is_not_there_stays_away(tmp_path: Path) -> None:
    compact(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(StoreError, match=r"some\.db is corrupt"):
        compact(path)
