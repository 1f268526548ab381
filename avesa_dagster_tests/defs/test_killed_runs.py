"""SIGKILL of a run's worker under a real daemon, and the launch that its job makes of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import dagster as dg
import pytest

from avesa_dagster.control.jobs import Job, JobStatus
from avesa_dagster.defs import processes
from avesa_dagster.defs.homes import prepare
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import WORLD, House

KILLS = 2 if "AVESA_KILLS" in os.environ else 1
FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
T = TypeVar("T")


@pytest.fixture
def daemon(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    home = prepare(house.settings)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    process = processes.start(house.settings, port=processes.free_port(), quiet=True)
    yield house
    processes.stop(process)


def piece_of(run: dg.DagsterRun) -> str:
    return run.tags["avesa/piece"].partition(".")[0]


def wait_for(what: str, found: Callable[[], T], seconds: float = 180) -> T:
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
                if run.run_id in killed:
                    continue
                with dg.DagsterInstance.get() as instance:
                    process = processes.worker_of(instance, run)
                if process is not None:
                    time.sleep(0.4 * len(killed))
                    os.kill(process.pid, signal.SIGKILL)
                    killed.add(run.run_id)
                    return True
            return False

        for _ in range(KILLS):
            wait_for("a run to kill", kill_one)

        def ended() -> list[Job]:
            jobs = daemon.installation.control.jobs.find("acme")
            return jobs if all(job.completed_at for job in jobs) else []

        (job,) = wait_for("the end of the job", ended)
        assert job.status is JobStatus.COMPLETED
        with dg.DagsterInstance.get() as instance:
            runs = list(instance.get_runs(dg.RunsFilter(tags={"avesa/job": job.job_id})))
        dead = [run for run in runs if run.run_id in killed]
        assert FAILURE in {run.status for run in dead}
        for run in dead:
            family = [other for other in runs if piece_of(other) == piece_of(run)]
            assert family[0].status is SUCCESS, "the newest launch of the piece"
        reader = daemon.installation.reader()
        for table in ("tickets", "time_entries", "companies", "contacts"):
            truth = simulator.control("truth_current", table=table)["records"]
            history = reader.history("acme", table).project("id, record_version").fetchall()
            assert sorted(i for i, _ in history) == sorted(
                record for record in truth if not truth[record]["deleted"]
            )
