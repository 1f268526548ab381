"""What the sensors do by themselves: holes, alarms, comparing with the source."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product

import dagster as dg
import pytest

from avesa_dagster.control.jobs import Processing, Trigger
from avesa_dagster.control.snapshot import read_snapshot
from avesa_dagster.defs import resources
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.partitions import known_partitions
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.upkeep import HoleSearch, upkeep_sensor
from avesa_dagster.defs.verification import due_for_verification, verification_sensor, verify_job
from avesa_dagster.errors import StoreError
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House

CONFIG = {"ops": {"compare_with_source": {"config": {"tenant": "acme", "service": "connectwise"}}}}


@pytest.fixture
def avesa(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[AvesaResource]:
    monkeypatch.setenv("AVESA_HOME", str(house.home))
    resources.installation_of_this_process.cache_clear()
    yield AvesaResource()
    resources.installation_of_this_process.cache_clear()


@pytest.fixture
def fetched(house: House, own_simulator: Simulator) -> House:
    """A tenant whose history is there, longer than one comparison reaches back."""
    house.connect("acme", own_simulator, days=170)
    installation = house.installation
    (row,) = installation.control.registry.all()
    parts = tuple(known_partitions(row, installation.catalog, installation.clock()))
    for table, mode in product(row.tables, (Mode.BACKFILL, Mode.SYNC)):
        request = Request("acme", "connectwise", table, parts, mode, mode.value, "run")
        installation.extractor.extract(request, lambda progress: None, lambda: False)
    return house


def compare(house: House, avesa: AvesaResource) -> tuple[bool, dict[str, Processing]]:
    done = verify_job.execute_in_process(
        run_config=CONFIG, resources={"avesa": avesa}, raise_on_error=False
    )
    rows = house.installation.control.processing.latest("verify")
    return done.success, {row.table: row for row in rows}


def test_the_daily_comparison_goes_on_where_it_stopped_and_a_loss_stands_until_it_is_repaired(
    fetched: House, avesa: AvesaResource, own_simulator: Simulator
) -> None:
    success, rows = compare(fetched, avesa)
    assert success and set(rows) == {"companies", "contacts", "tickets", "time_entries"}
    assert not any("disagrees" in row.extra for row in rows.values())
    first = datetime.fromisoformat(rows["tickets"].extra["reached"])

    lost = sorted(fetched.settings.lake.glob("acme/raw/connectwise/tickets/dt=*/*.parquet"))[0]
    kept = lost.read_bytes()
    lost.unlink()
    reached = [first]
    while True:
        success, rows = compare(fetched, avesa)
        assert success
        reached.append(datetime.fromisoformat(rows["tickets"].extra["reached"]))
        if "disagrees" in rows["tickets"].extra or len(reached) > 9:
            break
    assert "lack records" in rows["tickets"].extra["disagrees"]
    assert len(set(reached)) == len(reached), "each time another stretch of the old days"
    repairs = [j for j in fetched.installation.control.jobs.find() if j.trigger is Trigger.REPAIR]
    assert repairs and repairs[0].tables == ("tickets",)

    own_simulator.control("revoke")
    success, rows = compare(fetched, avesa)
    assert not success
    assert "disagrees" in rows["tickets"].extra, "one that fails says nothing new"
    own_simulator.control("restore")
    fetched.installation.control.breakers.succeeded("acme", "connectwise")
    success, rows = compare(fetched, avesa)
    assert success and "disagrees" in rows["tickets"].extra, "another stretch does not clear it"
    lost.write_bytes(kept)
    success, rows = compare(fetched, avesa)
    assert success and "disagrees" not in rows["tickets"].extra


def test_a_comparison_is_asked_for_once_until_it_ended_and_again_if_it_died_silently(
    house: House, simulator: Simulator, avesa: AvesaResource
) -> None:
    house.connect("acme", simulator)
    rows = read_snapshot(house.settings.snapshot)
    installation = house.installation
    now = installation.clock()
    assert due_for_verification(installation, rows, now) == [], "nothing is there to compare"
    mark = {"lower": now - timedelta(days=1), "upper": now, "now": now}
    installation.control.watermarks.advance("acme", "connectwise", "tickets", **mark)
    ((_, name),) = due_for_verification(installation, rows, now)
    ((_, later),) = due_for_verification(installation, rows, now + timedelta(hours=1))
    assert name != later
    sensor = verification_sensor(rows)
    with (
        instance_in(prepare(house.settings)) as instance,
        dg.build_sensor_context(instance=instance, resources={"avesa": avesa}) as context,
    ):
        (request,) = list(sensor(context))
        assert isinstance(request, dg.RunRequest)
        instance.create_run_for_job(verify_job, run_config=CONFIG, tags=dict(request.tags))
        (skipped,) = list(sensor(context))
        assert isinstance(skipped, dg.SkipReason)


def test_holes_are_found_when_the_jobs_are_long_forgotten(
    house: House, simulator: Simulator
) -> None:
    house.connect("acme", simulator)
    installation = house.installation
    (first,) = installation.control.registry.all()
    soon = first.updated_at + timedelta(minutes=5)
    search = HoleSearch(installation)
    search.fill(soon)
    assert search.started == [], "the onboarding sensor's, at first"
    search.fill(datetime.now(UTC) + timedelta(hours=1))
    (job,) = search.started
    assert job.trigger is Trigger.HOLE
    assert job.start <= first.history_start


def test_a_search_that_takes_long_goes_on_where_it_stopped(
    house: House, simulator: Simulator
) -> None:
    for tenant in ("acme", "globex", "initech"):
        house.connect(tenant, simulator)
    later, reached, found = datetime.now(UTC) + timedelta(hours=1), "", []
    for _ in range(4):
        search = HoleSearch(house.installation, reached)
        search.fill(later, seconds=0)
        reached = search.reached
        found += [job.tenant for job in search.started]
    assert found == ["acme", "globex", "initech"], "and what is being filled is not started again"
    search = HoleSearch(house.installation, reached)
    search.fill(later)
    assert (search.reached, search.started) == ("", [])


def test_a_connection_whose_search_fails_keeps_none_of_the_others_from_theirs(
    house: House, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant in ("acme", "globex"):
        house.connect(tenant, simulator)
    installation = house.installation
    stretches = installation.control.ledger.stretches

    def damaged(tenant: str, *place: str) -> list[tuple[datetime, datetime]]:
        if tenant == "acme":
            raise StoreError("damaged")
        return stretches(tenant, *place)

    monkeypatch.setattr(installation.control.ledger, "stretches", damaged)
    search = HoleSearch(installation)
    with pytest.raises(StoreError):
        search.fill(datetime.now(UTC) + timedelta(hours=1))
    search.fill(datetime.now(UTC) + timedelta(hours=1))
    assert [job.tenant for job in search.started] == ["globex"]


def test_one_step_that_fails_keeps_none_of_the_others(
    house: House, simulator: Simulator, avesa: AvesaResource
) -> None:
    house.connect("acme", simulator)
    (house.home / "alerts.json").write_text("{", "utf-8")
    installation = house.installation
    long_ago = installation.clock() - timedelta(days=99)
    dead = Processing(
        "run", "acme", "connectwise", "tickets", "live/acme/connectwise/tickets", "sync",
        long_ago, long_ago,
    )  # fmt: skip
    installation.control.processing.claim(dead, stale_before=long_ago)
    sensor = upkeep_sensor(read_snapshot(house.settings.snapshot))
    with dg.build_sensor_context(resources={"avesa": avesa}) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    assert "alerts.json" in str(result.skip_reason and result.skip_reason.skip_message)
    assert not installation.control.processing.of_job("run")
    assert installation.control.processing.remove(ended_before=installation.clock()) == 0
