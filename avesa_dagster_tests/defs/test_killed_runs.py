"""SIGKILL of a run's worker under a real daemon, and the retry that Dagster makes of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from avesa_dagster.defs import processes
from avesa_dagster.defs.homes import prepare
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import WORLD, House

KILLS = 3


@pytest.fixture
def daemon(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    home = prepare(house.settings)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    process = processes.start(house.settings, port=processes.free_port(), quiet=True)
    yield house
    processes.stop(process)


def wait_for(what: str, found: Callable[[], object], seconds: float = 120) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come in {seconds} s")


@pytest.mark.timeout(280)
def test_a_killed_worker_is_retried_resumes_and_nothing_is_lost_or_doubled(
    daemon: House,
) -> None:
    with Simulator(seed=21, latency_ms=60, **WORLD) as simulator:
        daemon.connect("acme", simulator, days=400)
        killed: set[str] = set()

        def kill_one() -> bool:
            with dg.DagsterInstance.get() as instance:
                runs = instance.get_runs(
                    dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]), limit=5
                )
            for run in runs:
                root = run.tags.get("dagster/root_run_id", run.run_id)
                if root in killed:
                    continue
                with dg.DagsterInstance.get() as instance:
                    process = processes.worker_of(instance, run)
                if process is not None:
                    time.sleep(0.4 * len(killed))
                    os.kill(process.pid, signal.SIGKILL)
                    killed.add(root)
                    return True
            return False

        for _ in range(KILLS):
            wait_for("a run to kill", kill_one)

        def ended() -> list[dg.DagsterRun]:
            with dg.DagsterInstance.get() as instance:
                runs = list(instance.get_runs())
            retried = {run.tags.get("dagster/root_run_id") for run in runs}
            done = all(run.is_finished for run in runs) and killed <= retried
            return runs if done else []

        runs = wait_for("the end of all runs", ended)
        assert isinstance(runs, list)
        for root in killed:
            family = [r for r in runs if root in (r.run_id, r.tags.get("dagster/root_run_id"))]
            assert {run.status for run in family} == {
                dg.DagsterRunStatus.FAILURE,
                dg.DagsterRunStatus.SUCCESS,
            }
        reader = daemon.installation.reader()
        for table in ("tickets", "time_entries", "companies", "contacts"):
            truth = simulator.control("truth_current", table=table)["records"]
            history = reader.history("acme", table).project("id, record_version").fetchall()
            assert sorted(i for i, _ in history) == sorted(
                record for record in truth if not truth[record]["deleted"]
            )
