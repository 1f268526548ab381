"""Dagster's processes on one machine: starting, ending, and what became of their runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from avesa_dagster.defs import tags
from avesa_dagster.errors import RetriableError
from avesa_dagster.settings import Settings

_STARTUP_SECONDS = 120
_STOP_SECONDS = 20
_LAUNCHED_BY_DAEMON = ".dagster/grpc_info"
_PID = re.compile(r"\(pid: (\d+)\)")


@dataclass(frozen=True, slots=True)
class RunsOutcome:
    """What the runs of a tenant came to.

    Attributes:
        launched: How many there are.
        ended: Whether all of them ended.
        failures: One text a failed run.
    """

    launched: int
    ended: bool
    failures: tuple[str, ...]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def start(
    settings: Settings, *, port: int, host: str = "127.0.0.1", quiet: bool
) -> subprocess.Popen[bytes]:
    """Starts webserver and daemon on the installation, and waits until the UI answers.

    Args:
        quiet: Write what they say to `AVESA_HOME/dagster/dagster.log` in place of the terminal.

    Raises:
        RetriableError: They did not come up; names the log.
    """
    log = settings.dagster_home / "dagster.log"
    environment = {
        **os.environ,
        "AVESA_HOME": str(settings.home),
        "AVESA_MAPPINGS": str(settings.mappings),
        "DAGSTER_HOME": str(settings.dagster_home),
        "PYTHONWARNINGS": "ignore:Function `dev_command` is superseded",
    }
    command = [
        sys.executable, "-m", "dagster", "dev", "--host", host, "--port", str(port),
        "--workspace", str(settings.dagster_home / "workspace.yaml"),
    ]  # fmt: skip
    with log.open("ab") if quiet else Path(os.devnull).open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=sink if quiet else None,
            stderr=sink if quiet else None,
            start_new_session=True,
        )
    deadline = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return process
        time.sleep(0.2)
    stop(process)
    raise RetriableError(
        f"Dagster did not come up on port {port}",
        hint=f"look into {log}" if quiet else "its own words stand above",
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the processes: asks first, then does not ask."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def bury_the_dead(dagster_home: Path) -> int:
    """Fails the runs whose worker died with its machine or its daemon, so that they are retried.

    Dagster leaves them as started for ever, and they would keep their lane. Only runs that a
    daemon launched are looked at, and only while no process works on them.

    Returns:
        How many there were.
    """
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS_RUN_STATUSES)))
        dead = [
            run
            for run in runs
            if _LAUNCHED_BY_DAEMON in run.tags and worker_of(instance, run) is None
        ]
        for run in dead:
            instance.report_run_failed(run, "its worker is gone, with the daemon that started it")
    return len(dead)


def worker_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> psutil.Process | None:
    """The process that executes a run, by the run's own events; None if it is gone."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    for event in reversed(events):
        found = _PID.search(event.message or event.user_message)
        if found is None:
            continue
        try:
            process = psutil.Process(int(found[1]))
            # A younger process only has the same number.
            return process if process.create_time() <= event.timestamp else None
        except psutil.NoSuchProcess:
            return None
    return None


def outcome_of(dagster_home: Path, tenant: str, since: datetime) -> RunsOutcome:
    """What the runs came to that were launched for the tenant since then."""
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs(dg.RunsFilter(tags={tags.TENANT: tenant}, created_after=since))
        failures = []
        for run in runs:
            if run.status is dg.DagsterRunStatus.FAILURE and "dagster/will_retry" not in run.tags:
                failures.append(_failure(instance, run))
    return RunsOutcome(
        launched=len(runs), ended=all(run.is_finished for run in runs), failures=tuple(failures)
    )


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    records = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for record in records:
        event = record.dagster_event
        data = event.step_failure_data if event else None
        if data and data.user_failure_data and data.user_failure_data.description:
            return data.user_failure_data.description
        if data and data.error:
            return data.error.message.strip()
    return f"run {run.run_id} failed"
