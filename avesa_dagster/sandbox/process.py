"""A simulator as a child process, for tests and the demo."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_PROJECT_ROOT = Path(__file__).resolve().parents[2]


class SimulatorError(RuntimeError):
    """The simulator did not start, or refused a control call."""


class Simulator:
    """A running simulator.

    Example:
        with Simulator(seed=7, tickets=300, requests_per_minute=200) as simulator:
            simulator.control("mutate", table="tickets", count=5)
            requests.get(simulator.url + "/login/companyinfo/acme_msp")

    Args:
        service: which one: "connectwise", "servicenow" or "salesforce". All have the back door of
            `sandbox.control`, and methods of their own besides (`sandbox.{service}.control`).
        startup_seconds: how long it may take until it listens.
        options: command line options of `python -m avesa_dagster.sandbox {service}`, with
            underscores for dashes.
    """

    def __init__(
        self, service: str = "connectwise", *, startup_seconds: float = 30.0, **options: object
    ) -> None:
        command = [sys.executable, "-m", "avesa_dagster.sandbox", service, "--exit-with-parent"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        search = [str(_PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, cwd=_PROJECT_ROOT
        )
        try:
            announcement = json.loads(self._first_line(startup_seconds))
        except BaseException:
            self.stop()
            raise
        self.url: str = announcement["url"]
        self.credentials: dict[str, str] = announcement["credentials"]
        self._token: str = announcement["control_token"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def _first_line(self, within: float) -> str:
        output = self._process.stdout
        assert output is not None
        readable, _, _ = select.select([output], [], [], within)
        line = output.readline() if readable else ""
        if not line:
            raise SimulatorError(
                f"no announcement within {within} s from simulator {self._process.pid}"
            )
        return line

    def control(self, method: str, /, **arguments: Any) -> Any:
        """Call a control method (see `control`) and return its JSON.

        Raises:
            SimulatorError: the simulator refused; the message says why.
        """
        request = urllib.request.Request(
            f"{self.url}/__sim__/{method}",
            data=json.dumps(arguments).encode(),
            headers={"X-Sim-Token": self._token, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise SimulatorError(f"{method}: {error.read().decode()}") from None

    def stop(self) -> int:
        """End the process and return its exit code; harmless when it has ended already."""
        if self._process.poll() is None:
            self._process.terminate()
            killer = threading.Timer(5.0, self._process.kill)
            killer.start()
            try:
                self._process.wait()
            finally:
                killer.cancel()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.returncode

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
