"""One simulator process for a module's tests; each test gets its own world and installation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stamina.instrumentation

from avesa_dagster.sandbox.process import Simulator

from .support import Bench, open_bench, segment_defaults

stamina.instrumentation.set_on_retry_hooks([])  # thousands of retries are meant here


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    with Simulator(tickets=20, time_entries=5, companies=5, contacts=5) as running:
        yield running


@pytest.fixture
def new_bench(simulator: Simulator, tmp_path: Path) -> Callable[..., Bench]:
    """Makes a bench with `open_bench`'s options."""
    return lambda **options: open_bench(simulator, tmp_path / "home", **options)


@pytest.fixture
def bench(new_bench: Callable[..., Bench]) -> Bench:
    return new_bench()


@pytest.fixture(autouse=True)
def _segments_as_they_were() -> Iterator[None]:
    defaults = dict(segment_defaults())
    yield
    segment_defaults().update(defaults)
