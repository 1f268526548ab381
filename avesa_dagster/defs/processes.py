"""Dagster's processes on one machine: starting, ending, and what became of their runs."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.storage.runs import SqliteRunStorage

from avesa_dagster.defs import tags
from avesa_dagster.errors import AvesaError, ConfigurationError, RetriableError
from avesa_dagster.settings import Settings

_STARTUP_SECONDS = 120
_STOP_SECONDS = 20
_LAUNCHED_BY_DAEMON = ".dagster/grpc_info"
_UNDER_WAY = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_PID = re.compile(r"\(pid: (\d+)\)")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def sole_daemon(dagster_home: Path) -> Iterator[None]:
    """One daemon an installation: two would evaluate every sensor and schedule twice.

    Raises:
        ConfigurationError: Another `avesa dev` or `avesa demo` runs on it.
    """
    with (dagster_home / ".daemon.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"an `avesa dev` or `avesa demo` runs on {dagster_home.parent} already",
                hint="stop it, or give this one another AVESA_HOME",
            ) from None
        yield


def daemon_runs(dagster_home: Path) -> bool:
    """Whether an `avesa dev` or `avesa demo` runs on this installation."""
    try:
        with sole_daemon(dagster_home):
            return False
    except ConfigurationError:
        return True


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
        "--log-level", "warning", "--workspace", str(settings.dagster_home / "workspace.yaml"),
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


def fail_dead_runs(instance: dg.DagsterInstance, *, at_start: bool = False) -> list[str]:
    """Fails the runs whose process is gone, so that Dagster retries them.

    Dagster leaves a run as started for ever if its process died with the machine, with the daemon
    or under `avesa sync`, and it would keep its lane. Runs of this machine only: where Dagster's
    records are shared by several hosts, those that say of themselves that they are here.

    Args:
        at_start: No daemon runs: what one launched and no process works on is dead too.

    Returns:
        Their ids.
    """
    dead, shared = [], is_shared(instance)
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNDER_WAY)):
        if shared and run.tags.get(tags.HOST) != _here(run.run_id):
            continue
        worker = worker_of(instance, run)
        gone = worker is not None and not worker.is_running()
        if gone or (worker is None and at_start and _LAUNCHED_BY_DAEMON in run.tags):
            instance.report_run_failed(run, "its process is gone")
            dead.append(run.run_id)
    return dead


def is_shared(instance: dg.DagsterInstance) -> bool:
    """Whether other hosts may execute runs of this instance: their numbers of processes are not
    ours."""
    return not isinstance(instance.run_storage, SqliteRunStorage)


def say_where(instance: dg.DagsterInstance, run_id: str) -> None:
    """A run that begins here says so, if there may be other hosts."""
    if is_shared(instance):
        instance.add_run_tags(run_id, {tags.HOST: _here(run_id)})


def _here(run_id: str) -> str:
    return f"{socket.gethostname()}/{run_id}"


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that executes a run, as the run's own events name it."""

    pid: int
    since: float

    def is_running(self) -> bool:
        """Whether it still runs; a younger process only has the same number."""
        try:
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.create_time() <= self.since
        except psutil.NoSuchProcess:
            return False


def worker_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Worker | None:
    """The process that executes a run; None if no event names it."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    for event in reversed(events):
        found = _PID.search(event.message or event.user_message)
        if found:
            return Worker(int(found[1]), event.timestamp)
    return None


def instance_in(dagster_home: Path) -> dg.DagsterInstance:
    """Dagster's instance in this folder; use it as a context manager."""
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    return dg.DagsterInstance.get()


def failed_with(instance: dg.DagsterInstance, run: dg.DagsterRun, kind: type[AvesaError]) -> bool:
    """Whether a step of the run failed with this kind of error."""
    records = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for record in records:
        event = record.dagster_event
        data = event.step_failure_data if event else None
        said = data.user_failure_data.metadata if data and data.user_failure_data else {}
        if said and said.get("error") == dg.MetadataValue.text(kind.__name__):
            return True
    return False


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a step of the run failed; None if none did: the run's process ended otherwise."""
    records = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for record in records:
        event = record.dagster_event
        data = event.step_failure_data if event else None
        if data and data.user_failure_data and data.user_failure_data.description:
            return data.user_failure_data.description
        if data and data.error:
            return data.error.message.strip()
    return None
