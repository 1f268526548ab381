"""The onboarding sensor and the schedules, evaluated as Dagster evaluates them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from avesa_dagster.control.snapshot import read_snapshot, write_snapshot
from avesa_dagster.definitions import build
from avesa_dagster.defs import resources
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.launches import piece_launch, sync_launches
from avesa_dagster.defs.live_sync import live_sync_schedules
from avesa_dagster.defs.onboarding import onboarding_sensor
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.tags import token_of
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House

START = "dagster/asset_partition_range_start"
END = "dagster/asset_partition_range_end"


@pytest.fixture
def avesa(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[AvesaResource]:
    monkeypatch.setenv("AVESA_HOME", str(house.home))
    resources.installation_of_this_process.cache_clear()
    yield AvesaResource()
    resources.installation_of_this_process.cache_clear()


@pytest.fixture
def instance(house: House) -> Iterator[dg.DagsterInstance]:
    with instance_in(prepare(house.settings)) as opened:
        yield opened


def tick(
    house: House, avesa: AvesaResource, cursor: str | None = None
) -> dg.SensorResult | dg.SkipReason:
    sensor = onboarding_sensor(read_snapshot(house.settings.snapshot))
    with dg.build_sensor_context(cursor=cursor, resources={"avesa": avesa}) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def requests_of(
    schedule: dg.ScheduleDefinition, instance: dg.DagsterInstance, avesa: AvesaResource
) -> Sequence[dg.RunRequest]:
    """What one tick of it asks for."""
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime.now(UTC),
        resources={"avesa": avesa},
    ) as context:
        return schedule.evaluate_tick(context).run_requests or []


def test_a_new_tenant_gets_master_data_then_recent_months_then_the_history_behind(
    house: House, avesa: AvesaResource, simulator: Simulator
) -> None:
    house.connect("acme", simulator, days=800)
    tick(house, avesa)
    (job,) = house.installation.control.jobs.find("acme", "connectwise")
    master, recent, *older = job.pieces
    first = house.partitions("acme").split("...")[0]
    this_month = f"{datetime.now(UTC):%Y-%m-01}"
    assert (master.first, master.last) == (first, this_month)
    assert master.tables == ("companies", "contacts")
    assert recent.last == this_month and recent.tables == ("tickets", "time_entries")
    assert recent.recent and not any(piece.recent for piece in older)
    ranges = [(piece.first, piece.last) for piece in (recent, *older)]
    assert ranges == sorted(ranges, reverse=True), "newest first"
    assert ranges[-1][0] == first
    row = house.installation.control.registry.get("acme", "connectwise")
    assert row is not None
    requests = [
        piece_launch(job, piece, row, house.installation.catalog).request() for piece in job.pieces
    ]
    assert len({request.run_key for request in requests}) == len(requests)
    priorities = [int(request.tags["dagster/priority"]) for request in requests]
    assert priorities == sorted(priorities, reverse=True)
    assert {request.tags["avesa/job"] for request in requests} == {job.job_id}


def test_a_tenant_is_backfilled_once_for_each_generation_of_its_credentials(
    house: House, avesa: AvesaResource, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    first = tick(house, avesa)
    assert isinstance(first, dg.SensorResult)
    jobs = house.installation.control.jobs
    (job,) = jobs.find()
    tick(house, avesa, first.cursor)
    assert jobs.find() == [job]
    house.installation.backfills.cancel(job.job_id)
    tick(house, avesa, first.cursor)
    assert len(jobs.find()) == 1, "a cancelled one stays cancelled"
    house.connect("acme", simulator)
    tick(house, avesa, first.cursor)
    assert len(jobs.find()) == 2
    tick(house, avesa)
    assert len(jobs.find()) == 2, "a lost cursor begins nothing anew"


def test_a_disconnected_tenant_is_not_requested(
    house: House, avesa: AvesaResource, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    house.installation.disconnect("acme", "connectwise")
    tick(house, avesa)
    assert not house.installation.control.jobs.find()


def test_a_changed_registry_is_reloaded_before_anything_is_requested(
    house: House, avesa: AvesaResource, simulator: Simulator
) -> None:
    sensor = onboarding_sensor([])
    house.connect("acme", simulator)
    with dg.build_sensor_context(resources={"avesa": avesa}) as context:
        result = sensor(context)
    assert isinstance(result, dg.SkipReason)
    assert "the registry has changed" in (result.skip_message or "")


def test_the_hourly_sync_asks_for_the_open_partition_of_every_connected_tenant(
    house: House, instance: dg.DagsterInstance, avesa: AvesaResource, simulator: Simulator
) -> None:
    for tenant in ("acme", "globex", "gone"):
        house.connect(tenant, simulator)
    house.installation.disconnect("gone", "connectwise")
    hourly, daily = live_sync_schedules(read_snapshot(house.settings.snapshot))
    requests = requests_of(hourly, instance, avesa)
    this_month = f"{datetime.now(UTC):%Y-%m-01}"
    assert [r.tags["avesa/tenant"] for r in requests] == ["acme", "globex"]
    assert {r.tags["avesa/mode"] for r in requests} == {"sync"}
    assert {(r.tags[START], r.tags[END]) for r in requests} == {(this_month, this_month)}
    full = requests_of(daily, instance, avesa)
    assert {r.tags["avesa/mode"] for r in full} == {"full"}
    assert {key.path[-1] for r in full for key in r.asset_selection or ()} == {
        "companies", "contacts", "tickets", "time_entries",
    }  # fmt: skip


def test_a_sync_that_waits_in_the_queue_is_not_asked_for_again(
    house: House, instance: dg.DagsterInstance, avesa: AvesaResource, simulator: Simulator
) -> None:
    for tenant in ("acme", "globex"):
        house.connect(tenant, simulator)
    hourly, daily = live_sync_schedules(read_snapshot(house.settings.snapshot))
    (waits, _) = requests_of(hourly, instance, avesa)
    create_run_for_test(
        instance,
        tags=dict(waits.tags),
        status=dg.DagsterRunStatus.QUEUED,
        remote_job_origin=remote_job_origin_of_nobody(),
    )
    again = requests_of(hourly, instance, avesa)
    assert [request.tags["avesa/tenant"] for request in again] == ["globex"]
    full = requests_of(daily, instance, avesa)
    assert {r.tags["avesa/tenant"] for r in full} == {"acme", "globex"}, "it does more"


def remote_job_origin_of_nobody() -> RemoteJobOrigin:
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name="nobody"), location_name="nobody"
    )
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "nobody"), "nobody")


def test_after_a_months_end_the_sync_takes_the_closed_month_along(
    house: House, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    installation = house.installation
    connection = installation.control.registry.get("acme", "connectwise")
    assert connection
    before, after = (
        datetime(2026, 10, 31, 23, 5, tzinfo=UTC),
        datetime(2026, 11, 1, 0, 5, tzinfo=UTC),
    )
    for table in connection.tables:
        installation.control.watermarks.advance(
            "acme", "connectwise", table, lower=before, upper=before, now=before
        )
    (launch,) = sync_launches(installation.extractor, connection, after, full=False, name="n")
    assert (launch.tags[START], launch.tags[END]) == ("2026-10-01", "2026-11-01")


def test_a_tenant_that_is_not_loaded_yet_keeps_no_other_from_its_sync(
    house: House, instance: dg.DagsterInstance, avesa: AvesaResource, simulator: Simulator
) -> None:
    house.connect("globex", simulator)
    hourly, _ = live_sync_schedules(read_snapshot(house.settings.snapshot))
    house.connect("acme", simulator)
    requests = requests_of(hourly, instance, avesa)
    assert [request.tags["avesa/tenant"] for request in requests] == ["globex"]


def test_a_table_that_left_the_mappings_takes_only_itself_along(
    house: House, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    house.connect("acme", simulator)
    rows = read_snapshot(house.settings.snapshot)
    write_snapshot(
        house.settings.snapshot, [replace(row, tables=(*row.tables, "gone")) for row in rows]
    )
    keys = build(house.settings).resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["acme", "raw", "connectwise", "tickets"]) in keys
    assert "no longer describe gone" in caplog.text


def test_a_registry_that_was_begun_anew_is_onboarded_anew(
    house: House, avesa: AvesaResource, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    first = tick(house, avesa)
    assert isinstance(first, dg.SensorResult)
    resources.installation_of_this_process.cache_clear()
    for file in house.settings.control.glob("control.db*"):
        file.unlink()
    time.sleep(1.1)  # connections are told apart by the second
    house.connect("acme", simulator)
    assert isinstance(tick(house, avesa, first.cursor), dg.SensorResult)


def run_with(tags: dict[str, str]) -> dg.DagsterRun:
    return dg.DagsterRun(job_name="__ASSET_JOB", run_id="own", tags=tags)


def test_only_a_run_that_resumes_has_the_token_of_its_root() -> None:
    assert token_of(run_with({})) == "own"
    root = {"dagster/root_run_id": "root"}
    assert token_of(run_with(root)) == "own", "re-executing everything fetches anew"
    assert token_of(run_with({**root, "dagster/retry_number": "1"})) == "root"
    assert token_of(run_with({**root, "dagster/is_resume_retry": "true"})) == "root"
