"""What only the SQLite control tables do: crashes, broken files, full disks, query plans."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control import sqlite_ledger, sqlite_registry
from avesa_dagster.control.base import Chunk, TenantService
from avesa_dagster.control.health import BreakerState, Sample
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.control.sqlite_database import Database
from avesa_dagster.control.sqlite_ledger import SqliteLedger
from avesa_dagster.control.sqlite_registry import SqliteRegistry, SqliteWatermarks
from avesa_dagster.errors import StoreError

from .conftest import day

SPAWN = multiprocessing.get_context("spawn")


def chunk(number: int, tenant: str = "acme") -> Chunk:
    return Chunk(
        "run", tenant, "s", "t", f"c{number}", "2026-01-01", "window", day(number), day(number + 1)
    )


def _write_until_killed(path: str, log: str, worker: int) -> None:
    control = SqliteControl(Path(path))
    mine = chunk(worker)
    part = 0
    with Path(log).open("ab", buffering=0) as file:
        while True:
            control.ledger.progress(
                mine, cursor=f"{part}", rows=1, stored=1, requests=1, objects=[f"o{part}"],
                now=day(0),
            )  # fmt: skip
            part += 1
            file.write(b".")


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_in_the_middle_of_transactions_loses_nothing_that_was_returned(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "control.db"
    control = SqliteControl(path)
    control.ledger.plan([chunk(0), chunk(1)], now=day(0))
    logs = [tmp_path / f"log{worker}" for worker in range(2)]
    processes = [
        SPAWN.Process(target=_write_until_killed, args=(str(path), str(log), worker))
        for worker, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    while not all(log.exists() and log.stat().st_size > 5 for log in logs):
        time.sleep(0.005)
    time.sleep(random.Random(seed).random() * 0.2)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for worker, row in enumerate(reversed(control.ledger.rows("run", "acme", "s", "t"))):
        assert logs[worker].stat().st_size <= row.rows <= logs[worker].stat().st_size + 1
        assert row.objects == tuple(f"o{part}" for part in range(row.rows))
        assert (row.stored, row.requests, row.cursor) == (row.rows, row.rows, f"{row.rows - 1}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _open_and_connect(path: str, number: int) -> None:
    SqliteControl(Path(path)).registry.connect(
        f"t{number}", "s", history_start=day(0), tables=[], requests_per_minute=None, now=day(0)
    )


def test_many_processes_may_create_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "control.db"
    processes = [SPAWN.Process(target=_open_and_connect, args=(str(path), n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(SqliteControl(path).registry.all()) == 4


def test_many_threads_may_create_the_file_at_once(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n, path=path: _open_and_connect(str(path), n), range(8)))
        assert len(SqliteControl(path).registry.all()) == 8


def test_a_forked_child_opens_connections_of_its_own(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db")
    control.ledger.plan([chunk(0)], now=day(0))
    child = multiprocessing.get_context("fork").Process(
        target=lambda: control.ledger.begin(chunk(0), now=day(1))
    )
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert control.ledger.begin(chunk(0), now=day(2)).attempts == 2


def test_numbers_are_not_used_again_even_after_a_row_was_deleted(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db")
    _open_and_connect(str(tmp_path / "control.db"), 1)
    with control.database.write() as connection:
        connection.execute("DELETE FROM TenantServices")
    _open_and_connect(str(tmp_path / "control.db"), 1)
    assert control.registry.all()[0].number == 2


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    with SqliteControl(path).database.write() as connection:
        connection.execute("UPDATE SchemaVersion SET version = 99")
    with pytest.raises(StoreError, match=r"control\.db has schema version 99.*update AVESA"):
        SqliteControl(path)


@pytest.mark.parametrize(
    "content", [b"this is no database" * 500, b"SQLite format 3\0" + b"x" * 9_000]
)
def test_a_corrupt_file_is_named_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "control.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"control\.db is corrupt.*restore it"):
        SqliteControl(path)
    assert path.read_bytes() == content


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        SqliteControl(tmp_path / "file" / "control.db")
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteControl(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="writable"):
        SqliteControl(tmp_path / "control.db")


def test_a_full_disk_is_an_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db")
    control.ledger.plan([chunk(0)], now=day(0))
    with control.database.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"the disk is full.*free some space"):
        control.ledger.plan([chunk(number) for number in range(1, 2_000)], now=day(1))
    assert len(control.ledger.rows("run", "acme", "s", "t")) == 1


def test_a_lock_held_too_long_is_an_error(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db", busy_seconds=0.05)
    with (
        control.database.write(),
        pytest.raises(StoreError, match=r"control\.db: another process kept it locked"),
    ):
        control.ledger.plan([chunk(0)], now=day(0))


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db", busy_seconds=0.05)
    with control.database.write() as connection:
        connection.execute("DELETE FROM TenantServices")
        assert control.registry.all() == []


def test_a_lone_surrogate_is_an_error_of_ours(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db")
    control.ledger.plan([chunk(0)], now=day(0))
    with pytest.raises(StoreError, match="Unicode"):
        control.ledger.progress(
            chunk(0), cursor="\ud800", rows=0, stored=0, requests=0, objects=[], now=day(0)
        )


def test_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    with SqliteControl(tmp_path / "control.db").database.read() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_no_question_about_one_tenant_scans_the_rows_of_others(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db")
    asked: list[str] = []
    with control.database.read() as connection:
        connection.set_trace_callback(asked.append)
    control.ledger.covered("acme")
    control.ledger.covered("acme", None, "t")
    control.ledger.objects("acme", "s", "t", "2026-01-01")
    control.ledger.rows("run", "acme", "s", "t")
    control.watermarks.get("acme", "s", "t")
    control.registry.get("acme", "s")
    questions = [text for text in asked if text.startswith("SELECT")]
    assert len(questions) == 6
    with control.database.read() as connection:
        connection.set_trace_callback(None)
        for question in questions:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {question}")]
            assert plan[0].startswith("SEARCH"), plan
            assert "tenant=?" in plan[0], plan
            assert not any(step.startswith("SCAN") for step in plan), plan


def _version_one(path: Path) -> tuple[TenantService, Chunk]:
    """Makes the file that the first AVESA made, with a row in each table."""
    database = Database(path, schema=(*sqlite_registry.SCHEMA, *sqlite_ledger.SCHEMA))
    connected = SqliteRegistry(database).connect(
        "acme", "s", history_start=day(0), tables=["t"], requests_per_minute=7, now=day(1)
    )
    SqliteWatermarks(database).advance("acme", "s", "t", lower=day(0), upper=day(1), now=day(1))
    ledger = SqliteLedger(database)
    ledger.plan([chunk(0), chunk(1)], now=day(1))
    ledger.begin(chunk(0), now=day(1))
    ledger.progress(
        chunk(0), cursor="9", rows=3, stored=2, requests=1, objects=["o"], now=day(1)
    )  # fmt: skip
    done = ledger.complete(chunk(0), source_count=3, requests=1, now=day(2))
    database.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM SchemaVersion").fetchall() == [(1,)]
    return connected, done


def _holds(control: SqliteControl, connected: TenantService, done: Chunk) -> None:
    """Asserts that the old rows are as they were, and that every new table works."""
    assert control.registry.all() == [connected]
    watermark = control.watermarks.get("acme", "s", "t")
    assert watermark is not None
    assert watermark.upper == day(1)
    newest, oldest = control.ledger.rows("run", "acme", "s", "t")
    assert (newest.state, oldest) == ("planned", done)
    control.counters.add([Sample("n", (), 1)])
    assert control.breakers.all() == []
    assert control.alarms.all() == []
    assert control.drift.log("acme") == []
    assert control.jobs.find() == []
    assert control.processing.under_way(stale_before=day(0)) == []


def test_a_file_of_version_one_is_upgraded_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    made = _version_one(path)
    for opened in range(2):
        control = SqliteControl(path)
        _holds(control, *made)
        assert control.counters.all() == [Sample("n", (), opened + 1)]
    assert _tables(path) == _tables_of_a_new_file(tmp_path)


def _tables(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        found = dict(connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema"))
        found["version"] = str(connection.execute("SELECT version FROM SchemaVersion").fetchall())
    return found


def _tables_of_a_new_file(folder: Path) -> dict[str, str]:
    SqliteControl(folder / "new.db").close()
    return _tables(folder / "new.db")


def _open_and_count(path: str) -> None:
    SqliteControl(Path(path)).counters.add([Sample("n", (), 1)])


@pytest.mark.parametrize("attempt", range(2))
def test_two_processes_may_upgrade_a_file_at_once(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "control.db"
    made = _version_one(path)
    processes = [SPAWN.Process(target=_open_and_count, args=(str(path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    control = SqliteControl(path)
    assert control.counters.all() == [Sample("n", (), 2)]
    _holds(control, *made)
    control.close()
    assert _tables(path) == _tables_of_a_new_file(tmp_path)


def test_many_threads_may_upgrade_a_file_at_once(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        made = _version_one(path)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, path=path: _open_and_count(str(path)), range(8)))
        control = SqliteControl(path)
        assert control.counters.all() == [Sample("n", (), 8)]
        _holds(control, *made)


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    made = _version_one(path)
    before = _tables(path)
    schema = (*sqlite_registry.SCHEMA, *sqlite_ledger.SCHEMA)
    with pytest.raises(StoreError):
        Database(path, schema=schema, upgrades=[["CREATE TABLE Good (a)", "CREATE TABLE ("]])
    assert _tables(path) == before
    _holds(SqliteControl(path), *made)


def test_the_settings_say_when_a_breaker_opens_and_for_how_long(tmp_path: Path) -> None:
    quick = BreakerSettings(failures=2, wait_seconds=1, longest_wait_seconds=3)
    breakers = SqliteControl(tmp_path / "control.db", breaker=quick).breakers
    assert breakers.failed("acme", "s", "x", credentials=False, now=day(0)).state == "closed"
    opened = breakers.failed("acme", "s", "x", credentials=False, now=day(0))
    waits = []
    for _ in range(4):
        assert opened.state is BreakerState.OPEN
        assert opened.probe_at is not None
        assert opened.opened_at is not None
        waits.append((opened.probe_at - opened.opened_at).total_seconds())
        assert breakers.probe("acme", "s", now=day(1))
        opened = breakers.failed("acme", "s", "x", credentials=False, now=opened.opened_at)
    assert waits == [1, 2, 3, 3]


def test_no_question_about_the_health_of_one_tenant_scans_the_rows_of_others(
    tmp_path: Path,
) -> None:
    control = SqliteControl(tmp_path / "control.db")
    asked: list[str] = []
    with control.database.read() as connection:
        connection.set_trace_callback(asked.append)
    control.breakers.get("acme", "s")
    control.drift.fields("acme", "s", "t")
    control.drift.log("acme", "s")
    control.drift.forget("acme")
    control.counters.forget("acme")
    questions = [text for text in asked if text.startswith(("SELECT", "DELETE"))]
    assert len(questions) == 6
    with control.database.read() as connection:
        connection.set_trace_callback(None)
        for question in questions:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {question}")]
            assert plan[0].startswith("SEARCH"), plan
            assert "tenant=?" in plan[0], plan
            assert not any("TEMP B-TREE" in step for step in plan), plan


def test_coverage_is_answered_by_its_index_alone(tmp_path: Path) -> None:
    control = SqliteControl(tmp_path / "control.db")
    asked: list[str] = []
    with control.database.read() as connection:
        connection.set_trace_callback(asked.append)
    control.ledger.covered("acme", "s", "t")
    control.ledger.stretches("acme", "s", "t")
    questions = [text for text in asked if text.startswith("SELECT")]
    assert len(questions) == 2
    with control.database.read() as connection:
        connection.set_trace_callback(None)
        for question in questions:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {question}")]
            assert len(plan) == 1, plan  # nothing is sorted
            assert "COVERING INDEX ChunkProgress_coverage" in plan[0], plan
            assert "(tenant=? AND service=? AND table_name=?" in plan[0], plan
