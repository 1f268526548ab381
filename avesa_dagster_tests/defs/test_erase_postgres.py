"""Dagster forgets an erased tenant where it keeps its runs in Postgres and their output in S3."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as db
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy.engine import Engine

from avesa_dagster.aws import client
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.defs import aws_home
from avesa_dagster.defs.erase import DagsterHistory
from avesa_dagster.defs.erase_postgres import Postgres as Database
from avesa_dagster.defs.erase_s3 import S3Logs
from avesa_dagster.defs.homes import LOCATION, prepare
from avesa_dagster.defs.keys import raw_key
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.defs.traces import Traces
from avesa_dagster.errors import RetriableError, StoreError
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.conftest import new_bucket
from avesa_dagster_tests.defs.conftest import House
from avesa_dagster_tests.defs.test_erase import (
    ACME,
    FORK,
    OTHER,
    RUNS,
    TABLES,
    TENANTS,
    _run_of,
    _tenants,
    _write_like_a_daemon,
    erased,
    opened,
)
from avesa_dagster_tests.erasable import files_of, traces
from avesa_dagster_tests.moto import Moto
from avesa_dagster_tests.postgres import Postgres, said

KILLS = 40 if "AVESA_KILLS" in os.environ else 2
POOLED = "import sqlalchemy.pool as p; p.NullPool = p.QueuePool"
"""Dagster opens a connection for each event; one that is kept takes a third of the time."""
NAMED = re.compile(rf"(?<![A-Za-z0-9_-]){ACME}")
TICK = f"{aws_home.OUTPUT}/storage/__repository__/jobs/{uuid.uuid4()}.err"
Rows = set[tuple[str, str]]
Output = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Origin:
    """What each test begins with; the database is the template `origin`."""

    house: House
    server: Postgres
    output: Output
    """Versions of objects below `_dagster/`: key and bytes, oldest first."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, moto: Moto) -> Iterator[Origin]:
    """Two tenants with runs of each and of both, and all that a daemon and the UI write."""
    if not Postgres.installed():
        pytest.skip("needs Debian's postgresql")
    house = House(tmp_path_factory.mktemp("erase") / "home")
    with pytest.MonkeyPatch.context() as patch, Postgres() as server:
        for name, value in {**moto.environment, **server.environment}.items():
            patch.setenv(name, value)
        client.cache_clear()
        patch.setenv("AVESA_BUCKET", new_bucket())
        _furnish(house)
        url = Database("", _engine(server)).engine.url
        assert url.database == aws_home.DATABASE
        _root(server, "CREATE DATABASE origin TEMPLATE dagster")
        yield Origin(house, server, _output(os.environ["AVESA_BUCKET"]))
    client.cache_clear()


def _furnish(house: House) -> None:
    home = house.settings.dagster_home
    with Simulator(seed=11, tickets=60, time_entries=10, companies=5, contacts=10) as simulator:
        other = simulator.control("add_company", **OTHER)["credentials"]
        for tenant, credentials in zip(TENANTS, (simulator.credentials, other), strict=True):
            house.installation.connect(
                tenant, "connectwise", credentials, lookback_days=20, tables=TABLES
            )
        prepare(house.settings)
        scheduling = load_catalog(house.settings.mappings).backfill.scheduling
        texts = aws_home.files(scheduling, LOCATION, {"AVESA_DATABASE_HOST"})
        (home / "dagster.yaml").write_text(texts["dagster.yaml"])
        ran = subprocess.run(
            [sys.executable, "-c", f"{POOLED}\n{RUNS}"],
            env=house.environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
    with instance_in(home) as instance:
        _write_like_a_daemon(house, instance)
    s3, bucket = client("s3"), os.environ["AVESA_BUCKET"]
    for text in ("jobs began\n", "acme connectwise: begun\nacme2 connectwise: begun\n"):
        s3.put_object(Bucket=bucket, Key=TICK, Body=text.encode())
    for key, body in _output(bucket):
        if "compute_logs" in key:  # as if it had been uploaded in part before
            s3.put_object(Bucket=bucket, Key=key, Body=body)


@pytest.fixture
def bucket(aws: Moto, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> str:
    name = new_bucket()
    monkeypatch.setenv("AVESA_BUCKET", name)
    for variable, value in origin.server.environment.items():
        monkeypatch.setenv(variable, value)
    _put(name, origin.output)
    return name


@pytest.fixture
def house(origin: Origin, bucket: str, tmp_path: Path) -> House:
    return _renewed(origin, tmp_path / "home")


def _renewed(origin: Origin, home: Path) -> House:
    """The home and the database as they were."""
    _root(
        origin.server,
        "DROP DATABASE IF EXISTS dagster WITH (FORCE)",
        "CREATE DATABASE dagster TEMPLATE origin OWNER avesa_admin",
        f'GRANT ALL ON DATABASE dagster TO "{aws_home.USER}"',
    )
    shutil.copytree(origin.house.home, home)
    return House(home)


def _put(bucket: str, output: Output) -> None:
    for key, body in output:
        client("s3").put_object(Bucket=bucket, Key=key, Body=body)


def _root(server: Postgres, *statements: str) -> None:
    said(server.port, "root", "root password", "postgres", *statements)


def _engine(server: Postgres, password: str = "first") -> Engine:
    return db.create_engine(
        db.URL.create(
            "postgresql", aws_home.USER, password, "127.0.0.1", server.port, aws_home.DATABASE
        ),
        poolclass=db.NullPool,
        hide_parameters=True,
    )


def _rows(server: Postgres) -> Rows:
    """Table and content of each row of the database; snapshots are unpacked."""
    found: Rows = set()
    engine = _engine(server)
    with engine.connect() as connection:
        for table in db.inspect(connection).get_table_names():
            for row in connection.execute(db.text(f'SELECT * FROM "{table}"')):
                found.add((table, repr([_plain(value) for value in row])))
    return found


def _plain(value: Any) -> Any:
    return zlib.decompress(value).decode() if isinstance(value, memoryview) else value


def _output(bucket: str) -> Output:
    """All versions below `_dagster/`, oldest first."""
    s3 = client("s3")
    pages = s3.get_paginator("list_object_versions").paginate(
        Bucket=bucket, Prefix=f"{aws_home.OUTPUT}/"
    )
    found = [
        (each["Key"], each["VersionId"]) for page in pages for each in page.get("Versions", ())
    ]
    return [
        (key, s3.get_object(Bucket=bucket, Key=key, VersionId=version)["Body"].read())
        for key, version in reversed(found)
    ]


def _found(server: Postgres, bucket: str, *patterns: str) -> list[list[str]]:
    """Where in the database or in the output of runs each pattern is found."""
    texts = [*sorted(_rows(server))]
    texts += [(key, f"{key} {body.decode('utf-8', 'replace')}") for key, body in _output(bucket)]
    return [
        [f"{where}: {text[:300]}" for where, text in texts if re.search(pattern, text)]
        for pattern in patterns
    ]


def _records(house: House) -> str:
    """A pattern of what only acme's tickets say."""
    reader = house.installation.reader()
    own, others = (
        {row[0] for row in reader.current(tenant, "tickets").project("summary").fetchall()}
        for tenant in TENANTS
    )
    assert own - others
    return "|".join(re.escape(summary) for summary in own - others)


def test_no_record_no_credential_and_no_name_is_left(
    origin: Origin, house: House, bucket: str
) -> None:
    key = house.installation.secrets.get("acme", "connectwise")["private_key"]
    records = _records(house)
    before, seen = _found(origin.server, bucket, ACME, records)
    assert {"event_logs", TICK} <= {hit.partition(": ")[0] for hit in before}
    assert seen, "records stand in the metadata of events"
    with opened(house) as (_, history):
        assert {"database dagster", "s3:", "lines of dagster.log"} <= {
            found
            for found in ("database dagster", "s3:", "lines of dagster.log")
            for where in history.named("acme", [1])
            if where.startswith(found)
        }
    receipt = erased(house)
    assert _found(origin.server, bucket, ACME, re.escape(key), records) == [[], [], []]
    assert traces(house.home, f"{ACME}|{re.escape(key)}|{records}") == []
    assert receipt.not_erased == []
    assert receipt.runs.keys() == {
        "assets", "backfills", "log files", "runs", "shared rows", "shared runs", "snapshots",
    }  # fmt: skip
    assert (receipt.runs["runs"], receipt.runs["shared runs"]) == (1, 1)
    with opened(house) as (_, history):
        assert history.named("acme", [1]) == []
        assert history.erase("acme", [1], lambda text: None) == {}


def test_all_that_is_not_of_the_tenant_is_as_it_was_and_can_be_read(
    origin: Origin, house: House, bucket: str
) -> None:
    with opened(house) as (instance, _):
        own = _run_of(instance, "acme").run_id
        both = next(run for run in instance.get_runs() if _tenants(run) == {*TENANTS}).run_id
        others = instance.get_asset_records([raw_key("acme2", "connectwise", "tickets")])
    mine = re.compile(f"{ACME}|{own}")
    before, files = _rows(origin.server), files_of(house.home, "acme2")
    erased(house)
    after = _rows(origin.server)
    kept = {(table, row) for table, row in before if not mine.search(row)}
    assert len({table for table, row in kept if "acme2" in row}) > 5
    assert kept - after == set()
    assert [row for row in after - kept if "erased" not in row[1]] == []
    assert files_of(house.home, "acme2") == files
    output = [(key, body) for key, body in origin.output if own not in key and both not in key]
    ticks = [(TICK, b"jobs began\n"), (TICK, b"acme2 connectwise: begun\n")]
    assert sorted(_output(bucket)) == sorted([each for each in output if each[0] != TICK] + ticks)
    with opened(house) as (instance, _):
        assert instance.get_run_by_id(own) is None
        assert instance.all_logs(own) == []
        run = instance.get_run_by_id(both)
        assert run is not None and _tenants(run) == {"erased.1", "acme2"}
        assert run.tags["avesa/tenant"] == "erased.1"
        steps = {entry.step_key for entry in instance.all_logs(both)}
        assert "acme2__raw__connectwise__contacts" in steps
        assert not [step for step in steps if step and step.startswith("acme__")]
        instance.get_historical_job(run.job_snapshot_id or "")
        left = instance.get_asset_records([raw_key("acme2", "connectwise", "tickets")])
        assert [each.asset_entry for each in left] == [each.asset_entry for each in others]
        assert {key.path[0] for key in instance.all_asset_keys()} == {"acme2"}
        assert {each.backfill_id for each in instance.get_backfills()} == {"both", "others"}


def test_deleted_runs_that_left_events_and_output_are_found(
    origin: Origin, house: House, bucket: str
) -> None:
    with opened(house) as (instance, _):
        mine, others = (_run_of(instance, tenant).run_id for tenant in TENANTS)
        both = next(run for run in instance.get_runs() if _tenants(run) == {*TENANTS}).run_id
        for run_id in (mine, others, both):
            instance.run_storage.delete_run(run_id)
    kept = {
        row
        for row in _rows(origin.server)
        if "acme2" in row[1] and (others in row[1] or both in row[1]) and not NAMED.search(row[1])
    }
    assert len([row for row in kept if both in row[1]]) > 1
    receipt = erased(house)
    # The second run's events are of both: acme2's stay. It counts in the first round only.
    assert receipt.runs["left by deleted runs"] == 2
    after = _rows(origin.server)
    assert kept <= after
    assert not [row for row in after if row[0] == "event_logs" and mine in row[1]]
    assert _found(origin.server, bucket, ACME) == [[]]
    assert any(others in key for key, _ in _output(bucket))


def _erase_until(house: House, statement: int) -> None:
    client.cache_clear()  # its connections are the parent's too
    count = 0

    def kill(*given: object) -> None:
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    db.event.listen(Engine, "before_cursor_execute", kill)
    erased(house)
    os._exit(0)


def test_killed_at_any_statement_and_run_again_nothing_is_left(
    origin: Origin, house: House, bucket: str, tmp_path: Path
) -> None:
    count = 0

    def one(*given: object) -> None:
        nonlocal count
        count += 1

    db.event.listen(Engine, "before_cursor_execute", one)
    try:
        erased(house)
    finally:
        db.event.remove(Engine, "before_cursor_execute", one)
    assert count > 100
    other = files_of(house.home, "acme2")
    rows = {row for row in _rows(origin.server) if "acme2" in row[1]}
    for statement in sorted(random.sample(range(20, count), KILLS)):
        again = _renewed(origin, tmp_path / f"home{statement}")
        _put(bucket, origin.output)
        child = FORK.Process(target=_erase_until, args=(again, statement))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, statement
        receipt = erased(again)
        assert receipt.not_erased == [], statement
        assert _found(origin.server, bucket, ACME) == [[]], statement
        assert traces(again.home, ACME) == [], statement
        assert files_of(again.home, "acme2") == other, statement
        assert {row for row in _rows(origin.server) if "acme2" in row[1]} == rows, statement


def test_a_run_whose_process_is_not_of_this_machine_is_waited_for(
    origin: Origin, house: House
) -> None:
    """Its events name a process that this machine does not have: it is another one's."""
    with opened(house) as (instance, history):
        run = _run_of(instance, "acme")
        with _engine(origin.server).begin() as connection:
            connection.execute(
                db.text(
                    "UPDATE runs SET status = 'STARTED', run_body = replace(run_body,"
                    " 'PipelineRunStatus.SUCCESS', 'PipelineRunStatus.STARTED') WHERE run_id = :id"
                ),
                {"id": run.run_id},
            )
        before = _rows(origin.server)
        assert history.under_way("acme") == [f"run {run.run_id} (started)"]
        assert history.under_way("acme2") == []
        with pytest.raises(RetriableError, match=run.run_id):
            erased(house)
        assert _rows(origin.server) == before
        with _engine(origin.server).begin() as connection:
            connection.execute(
                db.text(
                    "UPDATE runs SET status = 'NOT_STARTED',"
                    " create_timestamp = now() - make_interval(secs => 30)"
                )
            )
        assert len(history.under_way("acme")) == 2, "it may still begin"
        with _engine(origin.server).begin() as connection:
            connection.execute(
                db.text("UPDATE runs SET create_timestamp = now() - make_interval(secs => 90)")
            )
        assert history.under_way("acme") == []


def test_a_daemon_elsewhere_gets_the_time_to_load_its_definitions(house: House) -> None:
    told: list[str] = []
    with instance_in(house.settings.dagster_home) as instance:
        home = house.settings.dagster_home
        history = DagsterHistory(instance, home, ["connectwise"], settle_seconds=0, say=told.append)
        history.settle()
        assert told == [], "no daemon"
        for age, waited in ((600, False), (30, True)):
            beat = DaemonHeartbeat(time.time() - age, "SENSOR", "elsewhere", None)
            instance.add_daemon_heartbeat(beat)
            history.settle()
            assert bool(told) is waited
        assert DagsterHistory(instance, home, [])._settle_seconds >= 60 + 15


def test_a_database_that_fails_is_told_without_what_was_asked_or_a_password(
    origin: Origin, house: House
) -> None:
    wrong = Database("", _engine(origin.server, "no such password"))
    with pytest.raises(RetriableError) as away, wrong.reading():
        pass
    right = Database("", _engine(origin.server))
    with pytest.raises(StoreError) as refused, right.writing() as connection:
        connection.execute(
            db.text("UPDATE runs SET run_body = :secret, id = 'x'"), {"secret": "s3"}
        )
    with pytest.raises(StoreError), right.writing() as connection:
        connection.execute(db.text("DELETE FROM run_tags"))
        connection.execute(db.text("DELETE FROM nothing"))
    with right.reading() as connection:
        assert connection.execute(db.text("SELECT count(*) FROM run_tags")).scalar_one() > 0
    assert "42804" in str(refused.value) or "22P02" in str(refused.value)
    told = f"{away.value!r} {away.value} {refused.value!r} {refused.value}"
    assert "such password" not in told and "UPDATE" not in told and "s3" not in told


class Manager:
    """As much of dagster_aws's S3ComputeLogManager as says where it writes."""

    _s3_prefix = "_dagster"
    _region = "us-east-2"

    def __init__(self, bucket: str) -> None:
        self._s3_bucket = bucket


def test_output_goes_with_all_its_versions_and_its_marks(aws: Moto) -> None:
    name, s3 = new_bucket(), client("s3")
    logs, traced = S3Logs(Manager(name)), Traces("acme", ["connectwise"])
    run, other = str(uuid.uuid4()), str(uuid.uuid4())
    for run_id in (run, other):
        for part in range(3):
            key = f"_dagster/storage/{run_id}/compute_logs/step{part}.err"
            for text in ("nothing yet\n", "acme connectwise tickets: begun\n"):
                s3.put_object(Bucket=name, Key=key, Body=text.encode())
            s3.delete_object(Bucket=name, Key=key)
    beside = f"_dagster/storage/{run[:-1]}/step.err"
    s3.put_object(Bucket=name, Key=beside, Body=b"acme2 connectwise\n")
    assert logs.holding() == {run, other}
    assert logs.names(run, traced) and not logs.names(run, Traces("acme3", ["connectwise"]))
    logs.remove(run)
    assert logs.holding() == {other}
    logs.remove(run)
    held = s3.list_object_versions(Bucket=name)
    assert {each["Key"].split("/")[2] for each in held["Versions"]} == {other, beside.split("/")[2]}
    assert {each["Key"].split("/")[2] for each in held["DeleteMarkers"]} == {other}


def test_lines_of_ticks_go_from_each_version_and_others_stay(aws: Moto) -> None:
    name, s3 = new_bucket(), client("s3")
    logs, traced = S3Logs(Manager(name)), Traces("acme", ["connectwise"])
    run = str(uuid.uuid4())
    texts = {
        "a.err": [b"acme connectwise\nacme2 connectwise\n", b"acme2 connectwise\nacme connectwise"],
        "b.err": [b"acme2 connectwise\n"],
        "c.err": [b"acme connectwise\n"],
        "d.err": [b"launched %s\n" % run.encode()],
    }
    for file, versions in texts.items():
        for body in versions:
            s3.put_object(Bucket=name, Key=f"_dagster/storage/repo/jobs/{file}", Body=body)
    assert len(logs.named(traced)) == 2
    assert logs.clean(traced, [run]) == 3
    assert logs.named(traced) == [] and logs.clean(traced, [run]) == 0
    kept = {(key.rpartition("/")[2], body) for key, body in _output(name)}
    assert kept == {("a.err", b"acme2 connectwise\n"), ("b.err", b"acme2 connectwise\n")}
