"""Dagster as the doctor sees it: never begun, dead, stopped, broken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from avesa_dagster.definitions import build
from avesa_dagster.defs.health import DagsterHealth
from avesa_dagster.defs.homes import LOCATION, MODULE, prepare
from avesa_dagster.defs.processes import free_port, instance_in
from avesa_dagster.doctor.findings import Finding, Level
from avesa_dagster.settings import Aws, Settings
from avesa_dagster_tests.defs.conftest import House
from avesa_dagster_tests.doctor.support import said

SECRET = "S3CRET-in-an-error"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", os.environ.get("DAGSTER_HOME", ""))


@pytest.fixture
def begun(house: House) -> Iterator[dg.DagsterInstance]:
    """The instance of an installation whose daemon said just now that it lives."""
    with instance_in(prepare(house.settings)) as instance:
        beat(instance, 0)
        yield instance


def beat(instance: dg.DagsterInstance, age: float, *, but: str = "", errors: object = None) -> None:
    for kind in instance.get_required_daemon_types():
        if kind != but:
            instance.add_daemon_heartbeat(
                DaemonHeartbeat(time.time() - age, kind, "one", errors)  # type: ignore[arg-type]
            )


def look(house: House, enabled: int = 1) -> dict[str, list[Finding]]:
    """What the checks of the instance find, each until one blocks."""
    found: dict[str, list[Finding]] = {}
    with DagsterHealth(house.settings, build, lambda: enabled) as health:
        for check in health.checks()[1:]:
            found[check.name] = list(check.look())
            if any(finding.blocking for finding in found[check.name]):
                break
    return found


def test_a_daemon_that_lives_is_well(house: House, begun: dg.DagsterInstance) -> None:
    found = look(house)
    assert [one.level for name in found for one in found[name]] == [Level.WELL] * 3


def test_looking_at_nothing_makes_nothing(house: House) -> None:
    (found,) = look(house)["dagster"]
    assert found.level is Level.WARNING and "avesa dev" in found.todo
    assert not house.home.exists()
    folder = prepare(house.settings)
    (found,) = look(house)["dagster"]
    assert found.what == "Dagster never ran here"
    assert {path.name for path in folder.iterdir()} == {"dagster.yaml", "workspace.yaml"}


def test_a_dead_daemon_is_found(house: House, begun: dg.DagsterInstance) -> None:
    beat(begun, 3 * 3600)
    (text,) = said(look(house)["daemon"])
    assert "no daemon runs: the last sign is 3 h old" in text and "avesa dev" in text
    assert not said(look(house, enabled=0)["daemon"])
    assert "no daemon runs" in said(look(house, enabled=0)["daemon"], Level.WARNING)[0]


def test_one_daemon_of_many_that_hangs_or_fails_is_found(
    house: House, begun: dg.DagsterInstance
) -> None:
    beat(begun, 3600)
    beat(begun, 0, but="SENSOR")
    (text,) = said(look(house)["daemon"])
    assert text.startswith("SENSOR: said nothing for 60 min")
    beat(begun, 0, errors=[SerializableErrorInfo(SECRET, [], "ValueError")])
    texts = said(look(house)["daemon"])
    assert texts and all("reports an error: ValueError" in text for text in texts)
    assert SECRET not in repr(texts)


def state_of(name: str, kind: InstigatorType, status: InstigatorStatus) -> InstigatorState:
    """What `dagster sensor stop NAME -w workspace.yaml`, the UI and the daemon keep."""
    target = LoadableTargetOrigin(module_name=MODULE)
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION)
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    timed = ScheduleInstigatorData("5 * * * *") if kind is InstigatorType.SCHEDULE else None
    return InstigatorState(origin, kind, status, timed)


def test_a_stopped_sensor_a_stopped_schedule_and_a_failing_tick_are_found(
    house: House, begun: dg.DagsterInstance
) -> None:
    workspace = house.settings.dagster_home / "workspace.yaml"
    stopped, on = InstigatorStatus.STOPPED, InstigatorStatus.DECLARED_IN_CODE
    failing = state_of("backfills", InstigatorType.SENSOR, on)
    for state in (
        state_of("onboarding", InstigatorType.SENSOR, stopped),
        state_of("live_sync_hourly", InstigatorType.SCHEDULE, stopped),
        failing,
    ):
        begun.add_instigator_state(state)
    begun.create_tick(tick_of(failing))
    found = look(house)["sensors"]
    schedule, sensor = sorted(said(found))
    assert schedule.startswith("live_sync_hourly: the schedule is stopped")
    assert sensor.startswith("onboarding: the sensor is stopped")
    assert f"dagster sensor start onboarding -w {workspace}" in sensor
    (tick,) = said(found, Level.WARNING)
    assert tick.startswith("backfills: the last tick of the sensor failed: ValueError")
    assert SECRET not in repr(found)


def tick_of(state: InstigatorState) -> TickData:
    return TickData(
        instigator_origin_id=state.instigator_origin_id,
        instigator_name=state.name,
        instigator_type=InstigatorType.SENSOR,
        status=TickStatus.FAILURE,
        timestamp=time.time(),
        error=SerializableErrorInfo(SECRET, [], "ValueError"),
        selector_id=state.selector_id,
    )


def test_an_instance_that_does_not_load_is_found(house: House, begun: dg.DagsterInstance) -> None:
    (house.settings.dagster_home / "dagster.yaml").write_text("run_launcher: {module: x}\n")
    (text,) = said(look(house)["dagster"])
    assert "does not load" in text and "dagster instance info" in text


def test_definitions_that_do_not_load_are_found(house: House) -> None:
    @dg.asset
    def one() -> None: ...

    def broken(settings: Settings) -> dg.Definitions:
        return dg.Definitions(assets=[one, one.with_attributes(group_names_by_key={})])

    def unknown(settings: Settings) -> dg.Definitions:
        return dg.Definitions(jobs=[dg.define_asset_job("j", selection="no_such_asset")])

    with DagsterHealth(house.settings, build, lambda: 0) as health:
        (found,) = health.code()
        assert found.what == "loads, with 0 assets"
    for made in (broken, unknown):
        with DagsterHealth(house.settings, made, lambda: 0) as health:
            (text,) = said(health.code())
        assert "do not load" in text and "dagster definitions validate" in text


def on_aws(house: House) -> Settings:
    return Settings(house.home, house.settings.mappings, aws=Aws("dev", "lake"))


def test_a_database_out_of_reach_is_found_before_dagster_waits_for_it(house: House) -> None:
    prepare(house.settings)
    settings = on_aws(house)
    with DagsterHealth(settings, build, lambda: 0, {}) as health:
        (found,) = health.instance()
    assert found.blocking and "AVESA_DATABASE_HOST" in found.what and "operator" in found.todo
    environ = {
        "AVESA_DATABASE_HOST": "127.0.0.1",
        "AVESA_DATABASE_PORT": str(free_port()),
        "AVESA_DATABASE_PASSWORD": SECRET,
    }
    with DagsterHealth(settings, build, lambda: 0, environ) as health:
        (text,) = said(health.instance())
    assert "cannot be reached: ConnectionRefusedError" in text and "security group" in text
    assert SECRET not in text


def test_a_code_server_out_of_reach_is_found(house: House) -> None:
    environ = {"AVESA_CODE_HOST": "127.0.0.1"}
    with DagsterHealth(on_aws(house), build, lambda: 0, environ) as health:
        (text,) = said(health.code())
    assert text.startswith("127.0.0.1:4000: the code server cannot be reached")
