"""Large orgs: made quickly, read quickly, in flat memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from avesa_dagster.sandbox.process import Simulator

from .conftest import NOW, Client

CASES = 200_000


@pytest.fixture(scope="module")
def large() -> Iterator[tuple[Simulator, float]]:
    """An org of many cases, and the CPU seconds that it took."""
    with Simulator("salesforce", seed=3, now=NOW, cases=CASES, accounts=2000) as simulator:
        yield simulator, sum(psutil.Process(simulator.pid).cpu_times()[:2])


def spent(simulator: Simulator) -> float:
    """CPU seconds of the simulator so far: what a loaded machine does not lengthen."""
    return float(sum(psutil.Process(simulator.pid).cpu_times()[:2]))


def test_200_000_cases_are_there_in_seconds(large: tuple[Simulator, float]) -> None:
    simulator, seconds = large
    assert seconds < 6  # 1.5 where nothing else runs
    assert Client(simulator).count("Case") == CASES


def test_a_page_of_2000_rows_takes_tens_of_milliseconds(large: tuple[Simulator, float]) -> None:
    simulator, _ = large
    client = Client(simulator)
    names = [field["name"] for field in client.get("sobjects/Case/describe").json()["fields"]]
    where = "SystemModstamp >= 2024-01-01T00:00:00Z"
    text = f"SELECT {','.join(names)} FROM Case WHERE {where} ORDER BY SystemModstamp, Id"
    assert len(client.rows(text)) == 2000
    began = spent(simulator)
    for _ in range(10):
        assert len(client.rows(f"{text} LIMIT 2000")) == 2000
    assert (spent(simulator) - began) / 10 < 0.12  # 0.03


def test_bulk_results_of_100_000_rows_in_flat_memory(large: tuple[Simulator, float]) -> None:
    simulator, _ = large
    client = Client(simulator)
    job = client.finished("SELECT Id, Subject, Status, SystemModstamp, AccountId FROM Case")
    process = psutil.Process(simulator.pid)
    held, began, size = process.memory_info().rss, spent(simulator), 0
    url = f"{client.root}/services/data/v60.0/jobs/query/{job}/results?maxRecords=100000"
    lines = 0
    with client.session.get(url, stream=True, timeout=60) as answer:
        for piece in answer.iter_content(2**20):
            lines, size = lines + piece.count(b"AAA"), size + len(piece)
    assert size > 10_000_000
    assert lines > 10_000
    assert spent(simulator) - began < 4  # 0.6
    assert process.memory_info().rss - held < 20 * 2**20


def test_a_mass_bump_of_a_large_table(large: tuple[Simulator, float]) -> None:
    simulator, _ = large
    began = time.monotonic()
    simulator.control("bump", table="Case", count=20_000, at="2025-06-11T11:00:00Z")
    assert time.monotonic() - began < 10
    assert Client(simulator).count("Case WHERE SystemModstamp = 2025-06-11T11:00:00Z") == 20_000
