"""Several that fetch the same at once end where one after the other would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.sandbox.process import Simulator

from . import processes
from .support import (
    LOOKBACK_DAYS,
    SERVICE,
    TENANT,
    UNPACED,
    Bench,
    assert_equals_truth,
    distinct_versions,
    open_bench,
    raw_rows,
)


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


def test_eight_processes_on_eight_tenants_give_each_what_is_its_own(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = open_bench(simulator, tmp_path, seed=4, page_clamp=9)
    others = [f"tenant{number}" for number in range(7)]
    for tenant in others:
        bench.installation.connect(
            tenant,
            SERVICE,
            simulator.credentials,
            lookback_days=LOOKBACK_DAYS,
            requests_per_minute=UNPACED,
        )
    tables = ("tickets", "companies", "time_entries", "contacts")
    own = [[replace(bench.request(table), tenant=t) for table in tables] for t in (TENANT, *others)]
    at_once(bench, *own)
    for table in tables:
        assert_equals_truth(bench, table)
        expected = distinct_versions(bench.raw(table))
        for tenant in others:
            rows = raw_rows(bench.installation.objects, tenant, SERVICE, table)
            assert distinct_versions(rows) == expected, tenant
            mark = bench.installation.control.watermarks.get(tenant, SERVICE, table)
            assert mark is not None and (bench.clock() - mark.upper).total_seconds() < 120


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
