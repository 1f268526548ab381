"""`dagster asset materialize` and `avesa sync` on a real installation."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from avesa_dagster.defs import processes
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House

TICKETS = "acme/raw/connectwise/tickets,acme/canonical/connectwise/tickets"


def rows(house: House, table: str, tenant: str = "acme") -> list[tuple[object, ...]]:
    reader = house.installation.reader()
    relation = reader.history(tenant, table)
    return sorted(relation.fetchall(), key=repr)


def test_a_whole_tenant_service_is_backfilled_and_a_second_time_changes_nothing(
    house: House, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    first = house.materialize("group:acme__connectwise", house.partitions("acme"))
    assert first.returncode == 0, first.stderr
    assert "chunk 1/" in first.stderr, "the log says how far it is"
    files, history = house.files(), rows(house, "tickets")
    truth = simulator.control("truth_current", table="tickets")["records"]
    assert {row[0] for row in history} <= set(truth)
    assert len(history) > 50
    second = house.materialize("group:acme__connectwise", house.partitions("acme"))
    assert second.returncode == 0, second.stderr
    assert house.files() == files
    assert rows(house, "tickets") == history


@pytest.mark.parametrize(
    ("partitions", "said"),
    [
        ("2019-01-01...2019-03-01", "2019-01-01"),
        ("2999-01-01...2999-02-01", "2999-01-01"),
        ("yesterday...today", "yesterday"),
    ],
)
def test_a_partition_that_does_not_exist_fails_by_name(
    house: House, simulator: Simulator, partitions: str, said: str
) -> None:
    house.connect("acme", simulator)
    run = house.materialize(TICKETS, partitions)
    assert run.returncode != 0
    assert said in run.stderr


def test_a_range_that_ends_before_it_starts_fails_and_says_so(
    house: House, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    start, end = house.partitions("acme").split("...")
    run = house.materialize(TICKETS, f"{end}...{start}")
    assert run.returncode != 0
    assert "the partition range is empty" in run.stderr


def test_an_unknown_asset_fails_by_name(house: House, simulator: Simulator) -> None:
    house.connect("acme", simulator)
    run = house.materialize("globex/raw/connectwise/tickets", house.partitions("acme"))
    assert run.returncode != 0
    assert "globex/raw/connectwise/tickets" in run.stderr


def test_refused_credentials_fail_the_run_and_are_found_nowhere(
    house: House, own_simulator: Simulator
) -> None:
    house.connect("acme", own_simulator)
    credentials = own_simulator.credentials
    company = credentials["company_id"]
    own_simulator.control("revoke", company_id=company)
    run = house.materialize("group:acme__connectwise", house.partitions("acme"))
    assert run.returncode != 0
    assert "refused the credentials" in run.stderr
    assert "tenant=acme service=connectwise" in run.stderr
    sync = house.run("avesa", "sync", "acme")
    assert sync.returncode == 1
    assert "refused the credentials" in sync.stderr
    pair = f"{company}+{credentials['public_key']}:{credentials['private_key']}"
    secrets = [
        credentials["private_key"],
        credentials["public_key"],
        credentials["client_id"],
        base64.b64encode(pair.encode()).decode(),
    ]
    said = run.stdout + run.stderr + sync.stdout + sync.stderr
    kept = house.settings.secrets / "acme.json"
    for secret in secrets:
        assert secret not in said
        for path in house.home.rglob("*"):
            if path.is_file() and path != kept:
                assert secret.encode() not in path.read_bytes(), path
    assert all(secret in kept.read_text() for secret in secrets[:3])


def test_a_sync_brings_the_new_version_and_a_full_one_the_deletion(
    house: House, own_simulator: Simulator
) -> None:
    house.connect("acme", own_simulator)
    assert house.run("avesa", "sync", "acme", "--full").returncode == 0
    before = rows(house, "companies")
    gone = own_simulator.control("delete", table="companies", count=1)["ids"][0]
    run = house.run("avesa", "sync", "acme", "connectwise", "--full", "--json")
    assert run.returncode == 0, run.stderr
    assert all(item["success"] for item in json.loads(run.stdout))
    reader = house.installation.reader()
    current = {row[0] for row in reader.current("acme", "companies").project("id").fetchall()}
    assert str(gone) not in current
    assert len(current) == len(before) - 1


def test_a_home_that_cannot_be_written_is_named(house: House, simulator: Simulator) -> None:
    house.home.parent.mkdir(exist_ok=True)
    house.home.write_text("a file in place of the folder")
    run = house.run_raw("avesa", "connect", "acme", "connectwise", "--credentials", "-",
                        stdin=json.dumps(simulator.credentials))  # fmt: skip
    assert run.returncode == 1
    assert str(house.home) in run.stderr
    assert "Traceback" not in run.stderr


def test_a_corrupt_control_database_is_named(house: House, simulator: Simulator) -> None:
    house.connect("acme", simulator)
    database = next(house.settings.control.glob("control.db"))
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    database.write_bytes(os.urandom(4096))
    run = house.run("avesa", "tenants")
    assert run.returncode == 1
    assert str(database) in run.stderr
    assert "Traceback" not in run.stderr


def test_a_sync_that_was_killed_blocks_no_later_one(house: House, own_simulator: Simulator) -> None:
    house.connect("acme", own_simulator)
    own_simulator.control("latency", latency_ms=1500)
    program = Path(sys.executable).parent / "avesa"
    prepare(house.settings)
    with subprocess.Popen(
        [program, "sync", "acme"], env=house.environment, stdout=subprocess.DEVNULL
    ) as process:
        wait_for_started(house)
        process.kill()
    own_simulator.control("latency", latency_ms=0)
    with instance_in(house.settings.dagster_home) as instance:
        (dead,) = instance.get_runs()
        assert dead.status is dg.DagsterRunStatus.STARTED
        assert "avesa/lane" not in dead.tags
    assert house.run("avesa", "sync", "acme").returncode == 0
    with instance_in(house.settings.dagster_home) as instance:
        found = instance.get_run_by_id(dead.run_id)
        assert found and found.status is dg.DagsterRunStatus.FAILURE


def wait_for_started(house: House) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with instance_in(house.settings.dagster_home) as instance:
            runs = instance.get_runs()
            if runs and processes.worker_of(instance, runs[0]):
                return
        time.sleep(0.2)
    raise AssertionError("the sync did not start")
