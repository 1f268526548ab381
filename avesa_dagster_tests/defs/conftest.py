"""A real installation in a temporary home, a real simulated service, real `dagster` commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from avesa_dagster.defs.homes import prepare
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings

MAPPINGS = Path(__file__).parents[2] / "mappings"
UNLIMITED = 1_000_000
WORLD = {"tickets": 400, "time_entries": 150, "companies": 20, "contacts": 40, "years": 1}


@dataclass(frozen=True)
class House:
    """An installation and how to run commands on it."""

    home: Path

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, mappings=MAPPINGS)

    @property
    def installation(self) -> Installation:
        return Installation(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AVESA_HOME": str(self.home),
            "DAGSTER_HOME": str(self.settings.dagster_home),
        }

    def run(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `avesa …` or `dagster …` of this environment."""
        prepare(self.settings)
        return self.run_raw(*command, stdin=stdin)

    def run_raw(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Like `run`, in a home that nobody prepared."""
        program = Path(sys.executable).parent / command[0]
        return subprocess.run(
            [program, *command[1:]],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def materialize(self, select: str, partitions: str) -> subprocess.CompletedProcess[str]:
        return self.run(
            "dagster", "asset", "materialize", "-m", "avesa_dagster.definitions",
            "--select", select, "--partition-range", partitions,
        )  # fmt: skip

    def connect(
        self, tenant: str, simulator: Simulator, days: int = 100, **options: object
    ) -> None:
        self.installation.connect(
            tenant,
            "connectwise",
            {**simulator.credentials, **options},
            lookback_days=days,
            requests_per_minute=UNLIMITED,
        )

    def partitions(self, tenant: str) -> str:
        """The whole range of a tenant, as the command line takes it."""
        row = self.installation.control.registry.get(tenant, "connectwise")
        assert row is not None
        return f"{row.history_start:%Y-%m-%d}...{self.installation.clock():%Y-%m-01}"

    def files(self) -> dict[str, bytes]:
        """Every file of canonical and history."""
        lake = self.settings.lake
        return {
            str(path.relative_to(lake)): path.read_bytes()
            for layer in ("canonical", "history")
            for path in lake.glob(f"*/{layer}/**/*.parquet")
        }


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "home")


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    with Simulator(seed=11, **WORLD) as running:
        yield running


@pytest.fixture
def own_simulator() -> Iterator[Simulator]:
    """One that a test may spoil."""
    with Simulator(seed=12, **WORLD) as running:
        yield running
