"""SIGKILL at any moment, then the retry: nothing lost, nothing doubled, nothing half-written.

AVESA_KILLS says how many kills at random moments (default 24; 8 more at chosen requests).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from avesa_dagster.control.base import ChunkState
from avesa_dagster.extract.request import Request
from avesa_dagster.sandbox.process import Simulator

from . import processes
from .support import Bench, assert_equals_truth, distinct_versions, open_bench, small_segments

KILLS = int(os.environ.get("AVESA_KILLS", "12"))
TABLES = ("tickets", "companies")


def assert_every_object_is_readable(bench: Bench) -> None:
    objects = bench.installation.objects
    for info in objects.list("acme/"):
        if info.key.endswith(".parquet"):
            with objects.open(info.key) as file:
                pq.ParquetFile(file).read()


def completed(bench: Bench, request: Request) -> set[tuple[str, str]]:
    """Windows whose chunk the ledger calls completed."""
    return {
        (f"{chunk.start:%Y-%m-%dT%H:%M:%SZ}", f"{chunk.end:%Y-%m-%dT%H:%M:%SZ}")
        for chunk in bench.chunks(request.token, request.table)
        if chunk.state is ChunkState.COMPLETED and chunk.kind == "window"
    }


def assert_not_asked_again(bench: Bench, windows: set[tuple[str, str]]) -> None:
    for entry in bench.log():
        asked = entry["conditions"] or ""
        for start, end in windows:
            assert f">= [{start}]" not in asked or f"< [{end}]" not in asked, asked


def kill_and_retry(bench: Bench, requests: list[Request], moments: list[float]) -> int:
    """Kills at these moments (seconds after the start), then lets it end; returns the kills."""
    kills = 0
    for moment in moments:
        bench.control("stats_reset")
        done = {request.token: completed(bench, request) for request in requests}
        process, said = processes.start(bench.home, bench.clock(), requests)
        process.join(moment)
        if process.is_alive():
            process.kill()
            kills += 1
        outcome = processes.ended(process, said)
        assert outcome in ("killed", "done"), outcome
        assert_every_object_is_readable(bench)
        assert_not_asked_again(bench, set().union(*done.values()))
    return kills


def assert_whole_and_not_doubled(bench: Bench, requests: list[Request]) -> None:
    done = {request.token: completed(bench, request) for request in requests}
    bench.control("stats_reset")
    for request in requests:
        bench.run(request)
    assert_not_asked_again(bench, set().union(*done.values()))
    for request in requests:
        rows = bench.raw(request.table)
        assert_equals_truth(bench, request.table)
        assert len(distinct_versions(rows)) == len(bench.current(request.table))


def test_the_figures_of_a_chunk_survive_a_kill_between_any_two_steps(
    simulator: Simulator, tmp_path: Path
) -> None:
    """The ledger's rows equal the service's count, however often the fetch began again."""
    bench = open_bench(simulator, tmp_path, chunk_days=10, page_clamp=9)
    request = bench.request("tickets")
    kill_and_retry(bench, [request], [0.05, 0.1, 0.15, 0.2])
    small_segments(20)
    bench.run(request)
    for chunk in bench.chunks(request.token, "tickets"):
        assert chunk.rows == chunk.source_count, chunk
    assert sum(c.rows for c in bench.chunks(request.token, "tickets")) == 160


@pytest.mark.timeout(max(300, KILLS * 10))
@pytest.mark.parametrize("item", range(4))
def test_killed_at_random_moments_it_loses_and_doubles_nothing(
    simulator: Simulator, tmp_path: Path, item: int
) -> None:
    rng = Random(f"kills {item}")
    small_segments(20)
    kills = world = 0
    while kills < (KILLS + 3 - item) // 4:
        world += 1
        bench = open_bench(
            simulator, tmp_path / str(world), seed=world, chunk_days=10, page_clamp=9
        )
        bench.control("latency", latency_ms=2)
        requests = [bench.request(table) for table in TABLES]
        moments = [rng.uniform(0.0, 0.35) for _ in range(rng.choice((1, 2, 3)))]
        kills += kill_and_retry(bench, requests, moments)
        bench.control("latency", latency_ms=0)
        assert_whole_and_not_doubled(bench, requests)
        assert world < 50 + KILLS, "it ends before it can be killed"


@pytest.mark.parametrize("ordinal", [1, 2, 3, 5, 9, 14, 20, 28])
def test_killed_at_a_request_it_loses_and_doubles_nothing(
    simulator: Simulator, tmp_path: Path, ordinal: int
) -> None:
    small_segments(20)
    bench = open_bench(simulator, tmp_path, seed=ordinal, chunk_days=10, page_clamp=9)
    requests = [bench.request(table) for table in TABLES]
    slow = {"kind": "slow", "seconds": 1.0, "at": [ordinal, ordinal + 1]}
    bench.control("hostility", faults=[slow], page_clamp=9)
    process, said = processes.start(bench.home, bench.clock(), requests)
    for _ in range(400):
        if sum(entry["table"] is not None for entry in bench.log()) >= ordinal:
            break
        time.sleep(0.01)
    time.sleep(0.02)
    process.kill()
    assert processes.ended(process, said) == "killed"
    assert_every_object_is_readable(bench)
    bench.control("hostility", page_clamp=9)
    assert_whole_and_not_doubled(bench, requests)
