"""The implementations that the behaviour suites run over. A new one is one line in OPENERS."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest

from avesa_dagster.control.base import Ledger, Registry, Secrets, Watermarks
from avesa_dagster.control.health import Alarms, Breakers, Counters, DriftLog
from avesa_dagster.control.jobs import Jobs, ProcessingJobs
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.control.sqlite import SqliteControl


class Control(Protocol):
    """What every profile's control tables offer."""

    @property
    def registry(self) -> Registry: ...

    @property
    def watermarks(self) -> Watermarks: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def processing(self) -> ProcessingJobs: ...

    @property
    def breakers(self) -> Breakers: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def alarms(self) -> Alarms: ...

    @property
    def drift(self) -> DriftLog: ...


Opener = Callable[[Path], Control]
"""Opens the control tables that belong to a folder; called again, the same ones."""


def open_sqlite(folder: Path) -> Control:
    return SqliteControl(folder / "control.db")


OPENERS: dict[str, Opener] = {"sqlite": open_sqlite}
SECRETS: dict[str, Callable[[Path], Secrets]] = {"file": lambda folder: FileSecrets(folder, {})}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param]


@pytest.fixture
def control(opener: Opener, tmp_path: Path) -> Control:
    return opener(tmp_path)


@pytest.fixture(params=SECRETS)
def secrets(request: pytest.FixtureRequest, tmp_path: Path) -> Secrets:
    return SECRETS[request.param](tmp_path / "secrets")


def day(number: float) -> datetime:
    """Noon of so many days after 2026-01-01, fractions allowed."""
    return datetime.fromtimestamp(1_767_268_800 + number * 86_400, UTC)
