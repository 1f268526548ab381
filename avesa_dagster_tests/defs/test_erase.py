"""Dagster forgets an erased tenant: runs, records in metadata, names; and nothing of another."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)

from avesa_dagster.defs.erase import DagsterHistory
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.keys import op_name, raw_key
from avesa_dagster.defs.processes import instance_in, sole_daemon
from avesa_dagster.defs.traces import Traces, owners
from avesa_dagster.erasure.erasing import Receipt, Say, erase
from avesa_dagster.errors import ConfigurationError, RetriableError
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House
from avesa_dagster_tests.erasable import files_of, rows, traces

STRIDE = 1 if "AVESA_KILLS" in os.environ else 2
"""Every other step, or with AVESA_KILLS every one."""
FORK = multiprocessing.get_context("fork")
ACME = "acme(?!2)"
TENANTS = ("acme", "acme2")
TABLES = ("tickets", "contacts")
OTHER = {"company_id": "other_msp", "seed": 5, "sizes": {"tickets": 60, "contacts": 10}}
PREVIEWED = re.compile(r'\\"summary\\":\\"[^"\\]{5,}')

RUNS = """
import sys
from click.testing import CliRunner
from dagster._cli.asset import asset_materialize_command
from avesa_dagster.defs.execute import execute
from avesa_dagster.defs.launches import sync_launches
from avesa_dagster.installation import Installation

installation = Installation.from_environment()
home, now = installation.settings.dagster_home, installation.clock()
for row in installation.control.registry.all():
    for launch in sync_launches(installation.extractor, row, now, full=False, name="test"):
        outcome = execute(launch, home)
        assert outcome.success, outcome.failures
select = " or ".join(f'key:"{t}/raw/connectwise/contacts"' for t in ("acme", "acme2"))
ran = CliRunner().invoke(asset_materialize_command, [
    "-m", "avesa_dagster.definitions", "--select", select,
    "--partition-range", f"{now:%Y-%m-01}...{now:%Y-%m-01}"])
assert ran.exit_code == 0, ran.output
"""
"""A sync of each tenant, and one run over both, in one process."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two tenants with runs of each and of both, and all that a daemon and the UI write."""
    house = House(tmp_path_factory.mktemp("erase") / "home")
    with Simulator(seed=11, tickets=60, time_entries=10, companies=5, contacts=10) as simulator:
        other = simulator.control("add_company", **OTHER)["credentials"]
        for tenant, credentials in zip(TENANTS, (simulator.credentials, other), strict=True):
            house.installation.connect(
                tenant, "connectwise", credentials, lookback_days=20, tables=TABLES
            )
        prepare(house.settings)
        ran = subprocess.run(
            [sys.executable, "-c", RUNS], env=house.environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
    with instance_in(house.settings.dagster_home) as instance:
        _write_like_a_daemon(house, instance)
    return house


def _write_like_a_daemon(house: House, instance: dg.DagsterInstance) -> None:
    mine, others = (_run_of(instance, tenant).run_id for tenant in TENANTS)
    keys = [f"sync-20261121T1505-{tenant}-connectwise-sync-tickets" for tenant in TENANTS]
    cursor = json.dumps({f"{tenant}/connectwise": "g1-20261121T150426" for tenant in TENANTS})
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("avesa_dagster"), "__repo__")
    sensor = RemoteInstigatorOrigin(repository, "onboarding")
    data = SensorInstigatorData(cursor=cursor, last_run_key=keys[0])
    instance.add_instigator_state(
        InstigatorState(sensor, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data)
    )
    instance.create_tick(
        TickData(
            sensor.get_id(),
            "onboarding",
            InstigatorType.SENSOR,
            TickStatus.SUCCESS,
            time.time(),
            run_ids=[mine, others],
            run_keys=keys,
            cursor=cursor,
            selector_id=sensor.get_selector().get_id(),
        )
    )
    for name, tenants in (("own", TENANTS[:1]), ("both", TENANTS), ("others", TENANTS[1:])):
        instance.add_backfill(
            PartitionBackfill(
                backfill_id=name,
                status=BulkActionStatus.COMPLETED_SUCCESS,
                from_failure=False,
                tags={"avesa/tenant": tenants[0]},
                backfill_timestamp=time.time(),
                asset_selection=[raw_key(tenant, "connectwise", "tickets") for tenant in tenants],
                partition_names=["2026-11-01"],
            )
        )
    for tenant in TENANTS:
        key = raw_key(tenant, "connectwise", "tickets")
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition="2026-10-01"))
        with (house.settings.dagster_home / "dagster.log").open("a") as log:
            log.write(f"{tenant} connectwise tickets: chunk 1/2 done\n")
    with (house.settings.dagster_home / "dagster.log").open("a") as log:
        log.write(f"the daemon is up\n__ASSET_JOB - {mine} - RUN_START\n")


@pytest.fixture
def house(origin: House, tmp_path: Path) -> House:
    shutil.copytree(origin.home, tmp_path / "home")
    return House(tmp_path / "home")


@contextmanager
def opened(house: House) -> Iterator[tuple[dg.DagsterInstance, DagsterHistory]]:
    home = house.settings.dagster_home
    with instance_in(home) as instance:
        services = house.installation.catalog.services
        yield instance, DagsterHistory(instance, home, services, settle_seconds=0)


def erased(house: House, say: Say = lambda text: None, tenant: str = "acme") -> Receipt:
    with opened(house) as (_, history):
        return erase(
            house.installation, tenant, history, lambda receipt: None, wait_seconds=0, say=say
        )


def _run_of(instance: dg.DagsterInstance, tenant: str) -> dg.DagsterRun:
    return next(
        run
        for run in instance.get_runs()
        if {key.path[0] for key in run.asset_selection or ()} == {tenant}
    )


def test_no_record_no_credential_and_no_name_is_left(house: House) -> None:
    index = (
        (house.settings.dagster_home / "history" / "runs" / "index.db")
        .read_bytes()
        .decode("utf-8", "replace")
    )
    assert PREVIEWED.search(index), "records stand in the metadata of events"
    key = house.installation.secrets.get("acme", "connectwise")["private_key"]
    assert traces(house.home, key) and len(traces(house.home, ACME)) > 100
    with opened(house) as (_, history):
        assert history.named("acme", [1])
    receipt = erased(house)
    assert traces(house.home, ACME) == []
    assert traces(house.home, key) == []
    assert receipt.not_erased == []
    assert receipt.runs.keys() == {
        "assets", "backfills", "log files", "runs", "shared rows", "shared runs", "snapshots",
    }  # fmt: skip
    assert (receipt.runs["runs"], receipt.runs["shared runs"]) == (1, 1)


def test_what_dagster_deleted_before_is_gone_from_its_files(house: House) -> None:
    runs = house.settings.dagster_home / "history" / "runs"
    with opened(house) as (instance, _):
        both = next(run for run in instance.get_runs() if _tenants(run) == {*TENANTS}).run_id
    for name, statement in (
        ("index", "UPDATE asset_keys SET last_materialization = NULL"),
        ("index", "DELETE FROM event_logs WHERE asset_key IS NOT NULL"),
        (both, "DELETE FROM event_logs WHERE asset_key IS NOT NULL"),
    ):
        with closing(sqlite3.connect(runs / f"{name}.db")) as connection, connection:
            connection.execute("PRAGMA secure_delete = OFF")
            connection.execute(statement)
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("index", both):
        assert b'{"__class__": "AssetKey", "path": ["acme", ' in (runs / f"{name}.db").read_bytes()
    erased(house)
    assert traces(house.home, ACME) == []


def test_another_tenants_lake_runs_events_and_assets_are_as_they_were(house: House) -> None:
    shards = house.settings.dagster_home / "history" / "runs"

    def of_the_other() -> tuple[object, ...]:
        with opened(house) as (instance, _):
            run = _run_of(instance, "acme2")
            keys = sorted(key for key in instance.all_asset_keys() if key.path[0] == "acme2")
            storage = house.settings.dagster_home / "storage" / run.run_id
            return (
                files_of(house.home, "acme2"),
                run,
                (shards / f"{run.run_id}.db").read_bytes(),
                [path.read_bytes() for path in sorted(storage.rglob("*")) if path.is_file()],
                keys,
                [record.asset_entry for record in instance.get_asset_records(keys)],
                {row for row in rows(shards / "index.db") if "acme2" in str(row)},
                instance.get_backfill("others"),
                instance.get_job_snapshot(run.job_snapshot_id or ""),
                instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id or ""),
                house.installation.reader().history("acme2", "tickets").order("1, 2").fetchall(),
            )

    before = of_the_other()
    erased(house)
    assert of_the_other() == before


def test_what_is_of_several_tenants_stays_and_can_be_read(house: House) -> None:
    with opened(house) as (instance, _):
        both = next(run for run in instance.get_runs() if _tenants(run) == {*TENANTS})
        own = _run_of(instance, "acme")
    erased(house)
    with opened(house) as (instance, _):
        assert instance.get_run_by_id(own.run_id) is None
        run = instance.get_run_by_id(both.run_id)
        assert run is not None and _tenants(run) == {"erased.1", "acme2"}
        assert run.tags["avesa/tenant"] == "erased.1"
        steps = {entry.step_key for entry in instance.all_logs(run.run_id)}
        assert "acme2__raw__connectwise__contacts" in steps
        assert not [step for step in steps if step and step.startswith("acme__")]
        instance.get_historical_job(run.job_snapshot_id or "")
        backfill = instance.get_backfill("both")
        assert backfill is not None and backfill.asset_selection is not None
        assert {key.path[0] for key in backfill.asset_selection} == {"erased.1", "acme2"}
        assert instance.get_backfill("own") is None
        (state,) = instance.all_instigator_state()
        assert isinstance(state.instigator_data, SensorInstigatorData)
        assert "acme2/connectwise" in json.loads(state.instigator_data.cursor or "")
        (tick,) = instance.get_ticks(state.instigator_origin_id, state.selector_id)
        assert [key.split("-")[2] for key in tick.run_keys] == ["erased.1", "acme2"]
    log = (house.settings.dagster_home / "dagster.log").read_text()
    assert log == "acme2 connectwise tickets: chunk 1/2 done\nthe daemon is up\n"


def _tenants(run: dg.DagsterRun) -> set[str]:
    return {key.path[0] for key in run.asset_selection or ()}


def test_deleted_runs_that_left_files_are_found(house: House) -> None:
    with opened(house) as (instance, _):
        for tenant in TENANTS:
            run_id = _run_of(instance, tenant).run_id
            instance.run_storage.delete_run(run_id)
    home = house.settings.dagster_home
    kept = home / "history" / "runs" / f"{run_id}.db"
    receipt = erased(house)
    assert receipt.runs["left by deleted runs"] == 1
    assert traces(house.home, ACME) == []
    assert kept.exists() and (home / "storage" / run_id).exists()


def test_a_queued_run_is_cancelled_and_a_running_one_is_waited_for(house: House) -> None:
    def set_status(run_id: str, status: str) -> None:
        database = house.settings.dagster_home / "history" / "runs.db"
        with closing(sqlite3.connect(database)) as connection, connection:
            body = "replace(run_body, 'PipelineRunStatus.SUCCESS', 'PipelineRunStatus.' || ?)"
            connection.execute(
                f"UPDATE runs SET status = ?, run_body = {body} WHERE run_id = ?",
                (status, status, run_id),
            )

    with opened(house) as (instance, history):
        queued = _run_of(instance, "acme").run_id
        shared = next(run for run in instance.get_runs() if _tenants(run) == {*TENANTS}).run_id
        assert history.under_way("acme") == []
        set_status(queued, "QUEUED")
        set_status(shared, "QUEUED")
        assert history.under_way("acme2") == [f"run {shared} (queued)"]
        assert set(history.under_way("acme")) == {
            f"run {queued} (queued)",
            f"run {shared} (queued)",
        }
        assert history.under_way("acme") == [f"run {shared} (queued)"]
        run = instance.get_run_by_id(queued)
        assert run is not None and run.status is dg.DagsterRunStatus.CANCELED
        before = files_of(house.home, "acme")
        with pytest.raises(RetriableError, match=shared):
            erased(house)
        assert files_of(house.home, "acme") == before
        set_status(shared, "SUCCESS")
    with closing(
        sqlite3.connect(house.settings.dagster_home / "history" / "runs.db")
    ) as connection:
        connection.execute("UPDATE runs SET status = 'SUCCESS'")
        connection.commit()
    erased(house)
    assert traces(house.home, ACME) == []


def test_backfills_under_way_are_cancelled_and_those_of_several_are_waited_for(
    house: House,
) -> None:
    with opened(house) as (instance, history):
        for name in ("own", "both", "others"):
            backfill = instance.get_backfill(name)
            assert backfill is not None
            instance.update_backfill(backfill._replace(status=BulkActionStatus.REQUESTED))
        assert history.under_way("acme") == ["backfill both of 2 tenants (requested)"]
        statuses = {each.backfill_id: each.status for each in instance.get_backfills()}
    assert statuses == {
        "own": BulkActionStatus.CANCELED,
        "both": BulkActionStatus.REQUESTED,
        "others": BulkActionStatus.REQUESTED,
    }


def test_while_a_daemon_runs_its_log_is_left_and_said(house: House) -> None:
    with sole_daemon(house.settings.dagster_home):
        receipt = erased(house)
    (left,) = receipt.not_erased
    assert left.startswith("lines of dagster.log: stop `avesa dev`")
    assert {hit.split(" at ")[0] for hit in traces(house.home, ACME)} == {"dagster/dagster.log"}
    assert erased(house).not_erased == []
    assert traces(house.home, ACME) == []


def _erase_until(house: House, step: int) -> None:
    said = 0

    def say(text: str) -> None:
        nonlocal said
        said += 1
        if said == step:
            os.kill(os.getpid(), signal.SIGKILL)

    erased(house, say)


def test_killed_while_dagster_forgets_and_run_again_nothing_is_left(
    origin: House, tmp_path: Path
) -> None:
    steps: list[str] = []
    shutil.copytree(origin.home, tmp_path / "whole")
    erased(House(tmp_path / "whole"), steps.append)
    first, last = steps.index("removing lines of logs"), steps.index("removing the connection")
    assert last - first > 5
    for step in range(first + 1, last + 1, STRIDE):
        house = House(tmp_path / f"home{step}")
        shutil.copytree(origin.home, house.home)
        child = FORK.Process(target=_erase_until, args=(house, step))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        erased(house)
        assert traces(house.home, ACME) == [], steps[step - 1]
        assert files_of(house.home, "acme2") == files_of(origin.home, "acme2")
        shutil.rmtree(house.home)


def test_storage_elsewhere_is_refused(tmp_path: Path) -> None:
    with dg.instance_for_test(
        overrides={"storage": {"sqlite": {"base_dir": str(tmp_path)}}}
    ) as own:
        DagsterHistory(own, tmp_path, ["connectwise"])
    with (
        dg.DagsterInstance.ephemeral() as ephemeral,
        pytest.raises(ConfigurationError, match="does not keep its runs in SQLite"),
    ):
        DagsterHistory(ephemeral, tmp_path, ["connectwise"])


NAMED = [
    '{"path": ["acme", "raw", "connectwise", "tickets"]}',
    '{\\"path\\": [\\"acme\\", \\"history\\", \\"tickets\\"]}',
    '{"acme/connectwise": "g1"}',
    "backfill/acme/connectwise",
    "/home/lake/acme/raw/connectwise",
    "onboard-acme-connectwise-g1-20261121",
    "sync-20261121T1505-acme-connectwise-sync",
    "acme connectwise tickets: chunk 1/2",
    "did not answer [tenant=acme service=connectwise]",
    '{"avesa/tenant": "acme"}',
    '{"config": {"service": "connectwise", "tenant": "acme"}}',
    "Every version of acme's service/tickets",
    "acme__raw__connectwise__tickets",
    "group acme__connectwise",
]


@pytest.mark.parametrize("text", NAMED)
def test_a_name_is_found_and_replaced_where_avesa_writes_it(text: str) -> None:
    traced = Traces("acme", ["connectwise"])
    assert traced.found(text)
    replaced = traced.replaced(text, "erased.1")
    assert "acme" not in replaced and not traced.found(replaced)
    assert replaced.replace("erased.1", "acme").replace("erased_1", "acme") == text


@pytest.mark.parametrize("text", NAMED)
@pytest.mark.parametrize("other", ["acme2", "xacme", "acme-eu", "eu-acme", "acme_eu", "eu_acme"])
def test_a_name_that_contains_it_is_another(text: str, other: str) -> None:
    of_other = text.replace("acme", other.replace("-", "_") if "acme__" in text else other)
    traced = Traces("acme", ["connectwise"])
    assert not traced.found(of_other)
    assert traced.replaced(of_other, "erased.1") == of_other


def test_words_that_are_names_of_tenants_are_not_taken_for_them() -> None:
    text = '{"cursor": null, "raw": 1, "path": ["acme", "raw", "connectwise", "sync"]} raw sync'
    for word in ("raw", "cursor", "sync", "connectwise", "path"):
        assert not Traces(word, ["connectwise"]).found(text)
    assert owners(text) == {"acme"}


def test_ops_of_names_that_differ_by_a_dash_are_told_apart_by_the_number() -> None:
    dashed = op_name(raw_key("acme-eu", "connectwise", "tickets"), 3)
    plain = op_name(raw_key("acme_eu", "connectwise", "tickets"), 4)
    other = op_name(raw_key("acme-eu", "connectwise", "tickets"), 5)
    assert dashed != plain and dashed.startswith(plain)
    traced = Traces("acme-eu", ["connectwise"], [3])
    assert [traced.found(name) for name in (dashed, plain, other)] == [True, False, False]
    traced = Traces("acme_eu", ["connectwise"], [4])
    assert [traced.found(name) for name in (dashed, plain, other)] == [False, True, False]
