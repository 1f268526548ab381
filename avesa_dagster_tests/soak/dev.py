"""`avesa dev` as a process of its own, which may be killed in every part and is started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from avesa_dagster.defs.processes import free_port
from avesa_dagster_tests.e2e.graphql import GraphQL
from avesa_dagster_tests.soak.verdicts import Failed

ROOT = Path(__file__).parents[2]
_AVESA = Path(sys.executable).parent / "avesa"
_UP_SECONDS = 180
_STOP_SECONDS = 90
_WORKER = "multiprocessing.spawn"
_SCHEDULES = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
    schedules { name scheduleState { id status } } } } } }"""
_STOP = """mutation($id: String) { stopRunningSchedule(id: $id) {
    __typename ... on PythonError { message } } }"""
_LAUNCH = """mutation($asked: LaunchBackfillParams!) { launchPartitionBackfill(
    backfillParams: $asked) { __typename ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message } } }"""
_CANCEL = """mutation($id: String!) { cancelPartitionBackfill(backfillId: $id) {
    __typename ... on PythonError { message } } }"""
_DAEMON = "dagster._daemon"


class Dev:
    """An `avesa dev` over one installation, with those who would look after it.

    Args:
        home: AVESA_HOME.
        mappings: AVESA_MAPPINGS.
        log: What it writes to its terminal; appended to.
    """

    def __init__(self, home: Path, mappings: Path, log: Path) -> None:
        self.home = home
        self.log = log
        self._environment = {
            **os.environ,
            "AVESA_HOME": str(home),
            "AVESA_MAPPINGS": str(mappings),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "300",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def api(self) -> GraphQL:
        return GraphQL(self.url)

    def start(self) -> float:
        """Starts it and waits for its UI; returns the seconds that took.

        Raises:
            Failed: It did not come up.
        """
        began = time.monotonic()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                [_AVESA, "dev", "--port", str(port)],
                env=self._environment,
                cwd=self.home.parent,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=_hear_ctrl_c,
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise Failed(f"avesa dev ended with {self._process.returncode}: {self.tail()}")
            if time.monotonic() - began > _UP_SECONDS:
                raise Failed(f"no UI after {_UP_SECONDS} s: {self.tail()}")
            time.sleep(0.3)
        return time.monotonic() - began

    def stop_schedules(self) -> None:
        """Switches the schedules off, as in the UI, for as long as this installation lives.

        Raises:
            Failed: Dagster refused, or knows no schedule yet.
        """
        nodes = self.api.ask(_SCHEDULES)["repositoriesOrError"]["nodes"]
        found = [schedule["scheduleState"] for node in nodes for schedule in node["schedules"]]
        if not found:
            raise Failed("Dagster knows no schedule")
        for state in found:
            said = self.api.ask(_STOP, id=state["id"])["stopRunningSchedule"]
            if said["__typename"] != "ScheduleStateResult":
                raise Failed(f"a schedule was not stopped: {said}")

    def launch_backfill(self, assets: Iterable[str], partitions: Iterable[str]) -> str:
        """What *Materialize* in the UI does; returns the id of Dagster's backfill.

        Raises:
            Failed: Dagster refused.
        """
        asked = {
            "assetSelection": [{"path": asset.split("/")} for asset in assets],
            "partitionNames": list(partitions),
        }
        said = self.api.ask(_LAUNCH, asked=asked)["launchPartitionBackfill"]
        if said["__typename"] != "LaunchBackfillSuccess":
            raise Failed(f"the backfill was not launched: {said}")
        return str(said["backfillId"])

    def cancel_backfill(self, backfill_id: str) -> None:
        """What *Cancel* on the UI's backfill page does.

        Raises:
            Failed: Dagster refused.
        """
        said = self.api.ask(_CANCEL, id=backfill_id)["cancelPartitionBackfill"]
        if said["__typename"] != "CancelBackfillSuccess":
            raise Failed(f"the backfill was not cancelled: {said}")

    def ended(self) -> bool:
        """Whether the command itself has ended."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> list[psutil.Process]:
        """Ctrl-C; returns the processes that survived it, which are killed."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        left = self.processes()
        self.kill_all()
        return left

    def kill_all(self) -> int:
        """SIGKILL to all of its processes, as if the machine had died; returns how many."""
        count = 0
        for _ in range(5):  # one may have started another meanwhile
            found = self.processes()
            for process in found:
                count += kill(process)
            psutil.wait_procs(found, timeout=5)
        if self._process is not None:
            self._process.wait(10)
        return count

    def processes(self) -> list[psutil.Process]:
        """All that were started for this installation, by their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get("AVESA_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """Processes that execute runs, from their first import on."""
        return [process for process in self.processes() if _says(process, _WORKER)]

    def daemon(self) -> psutil.Process | None:
        return next((one for one in self.processes() if _says(one, _DAEMON)), None)

    def avesa(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `avesa …` on the installation."""
        return subprocess.run(
            [_AVESA, *arguments],
            env=self._environment,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def avesa_json(self, *arguments: str) -> Any:
        """What `avesa … --json` says.

        Raises:
            Failed: It ended with an error.
        """
        done = self.avesa(*arguments, "--json")
        if done.returncode != 0:
            raise Failed(f"avesa {' '.join(arguments)}: {done.stderr.strip()[-1000:]}")
        return json.loads(done.stdout)

    def tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-1500:]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/server_info", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def kill(process: psutil.Process) -> bool:
    """SIGKILL; whether it was there to receive it."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def mappings_with(
    folder: Path,
    *,
    backfill: Callable[[dict[str, Any]], None] = lambda config: None,
    connectwise: Mapping[str, object] | None = None,
) -> Path:
    """A copy of the mappings in the folder, with these changes; returns where it is.

    Args:
        backfill: Changes backfill_config.json.
        connectwise: Replaces fields of services/connectwise.json.
    """
    copy = folder / "mappings"
    shutil.copytree(ROOT / "mappings", copy)
    config = json.loads((copy / "backfill_config.json").read_text("utf-8"))
    backfill(config)
    (copy / "backfill_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    path = copy / "services" / "connectwise.json"
    service = json.loads(path.read_text("utf-8")) | dict(connectwise or {})
    path.write_text(json.dumps(service, indent=1), "utf-8")
    return copy


def _says(process: psutil.Process, word: str) -> bool:
    try:
        return any(word in part for part in process.cmdline())
    except psutil.Error:
        return False


def _hear_ctrl_c() -> None:
    """A shell that runs things in the background has them ignore it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
