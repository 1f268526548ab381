from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.watch.conversation import Patience
from avesa_dagster.watch.notify import Message, Severity

MAPPINGS = Path(__file__).parents[2] / "mappings"
HASTY = Patience(step=0.4, whole=0.8)
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
MESSAGE = Message("a subject", "a text", Severity.ERROR, "acme", "connectwise", "kind/acme")


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog(MAPPINGS)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[SqliteControl]:
    opened = SqliteControl(tmp_path / "control.db")
    yield opened
    opened.close()


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it becomes so within two seconds."""
    deadline = time.monotonic() + 2
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def no_talk_left() -> bool:
    """Whether every conversation's thread has ended."""
    return not any(thread.name.endswith(" talk") for thread in threading.enumerate())
