"""Several that fetch the same at once end where one after the other would."""

from __future__ import annotations

from pathlib import Path

import pytest

from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.sandbox.process import Simulator

from . import processes
from .support import Bench, assert_equals_truth, distinct_versions, open_bench


def at_once(bench: Bench, *asked: list[Request]) -> None:
    started = [processes.start(bench.home, bench.clock(), each) for each in asked]
    for process, said in started:
        assert processes.ended(process, said) == "done"


@pytest.mark.parametrize("seed", range(3))
def test_two_backfills_of_the_same_partitions_give_the_versions_of_one(
    simulator: Simulator, tmp_path: Path, seed: int
) -> None:
    bench = open_bench(simulator, tmp_path, seed=seed, page_clamp=9)
    tables = ("tickets", "companies")
    at_once(bench, [bench.request(t) for t in tables], [bench.request(t) for t in tables])
    for table in tables:
        assert len(distinct_versions(bench.raw(table))) == len(bench.current(table))
        assert_equals_truth(bench, table)
    mark = bench.watermark("tickets")
    assert mark is not None and (bench.clock() - mark).total_seconds() < 120


def test_eight_processes_on_one_tenant_give_what_one_gives(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Some with a token of their own, some with another one's, as after a run that was silent."""
    bench = open_bench(simulator, tmp_path, seed=3, page_clamp=9)
    tables = ("tickets", "companies", "time_entries", "contacts")
    own = [[bench.request(table) for table in tables] for _ in range(5)]
    at_once(bench, *own, own[0], own[0], [bench.request(t, Mode.SYNC) for t in tables])
    for table in tables:
        assert len(distinct_versions(bench.raw(table))) == len(bench.current(table))
        assert_equals_truth(bench, table)


@pytest.mark.parametrize("seed", range(3))
def test_a_backfill_beside_the_live_sync_gives_what_one_after_the_other_gives(
    simulator: Simulator, tmp_path: Path, seed: int
) -> None:
    bench = open_bench(simulator, tmp_path, seed=seed, page_clamp=9)
    bench.control("mutate", table="tickets", count=30)
    bench.control("mutate", table="companies", count=5)
    bench.advance(400)
    tables = ("tickets", "companies")
    syncs = [bench.request(t, Mode.SYNC) for t in tables] + [
        bench.request(t, Mode.FULL) for t in tables
    ]
    at_once(bench, [bench.request(t) for t in tables], syncs)
    for table in tables:
        assert len(distinct_versions(bench.raw(table))) == len(bench.current(table))
        assert_equals_truth(bench, table)
        mark = bench.watermark(table)
        assert mark is not None and (bench.clock() - mark).total_seconds() < 120
