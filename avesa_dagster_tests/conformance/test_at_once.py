"""A tenant's three services, backfilled at once by one installation while the live sync runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from avesa_dagster.conformance.bench import Bench, open_bench
from avesa_dagster.conformance.judge import assert_truth
from avesa_dagster.extract.request import Mode
from avesa_dagster_tests.conformance.test_connectwise import TestConnectWise as ConnectWise
from avesa_dagster_tests.conformance.test_salesforce import TestSalesforce as Salesforce
from avesa_dagster_tests.conformance.test_servicenow import TestServiceNow as ServiceNow

ASKED = ((ConnectWise, "tickets"), (ServiceNow, "incident"), (Salesforce, "case"))
LIMIT = 1_200
LATENCY = 20
ROUNDS = 4


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[list[Bench]]:
    """One installation, in which `acme` is connected to all three."""
    with ExitStack() as running:
        found = []
        for suite, table in ASKED:
            rig = suite.enrolment.start()
            running.callback(rig.stop)
            home = tmp_path / "home"
            bench = open_bench(
                rig, suite.enrolment, home, table, records=400, requests_per_minute=LIMIT
            )
            bench.control("limit", limit_per_minute=LIMIT)
            bench.control("latency", latency_ms=LATENCY)
            found.append(bench)
        yield found


def test_each_is_exact_and_keeps_to_its_own_budget(benches: list[Bench]) -> None:
    paid = {bench.service: used(bench) for bench in benches}

    def sync(bench: Bench) -> None:
        for _ in range(ROUNDS):
            bench.change("mutate", count=3)
            bench.change("create", count=2)
            bench.settle()
            bench.extract(Mode.SYNC, token=f"live-{bench.clock():%H%M%S}")

    with ThreadPoolExecutor() as pool:
        backfills = [pool.submit(bench.extract) for bench in benches]
        syncs = [pool.submit(sync, bench) for bench in benches]
        for future in (*backfills, *syncs):
            future.result()
    for bench in benches:
        stats = bench.control("stats")
        assert stats["refused"] == 0
        assert 40 < stats["total"] <= used(bench) - paid[bench.service]
        assert_truth(bench, bench.service, read=True)
    with closing(benches[0].installation.reader().history("acme", "tickets")) as rows:
        assert {row[0] for row in rows.project("source_service").distinct().fetchall()} == {
            bench.service for bench in benches
        }


def used(bench: Bench) -> int:
    """Requests that the budget granted."""
    bench.installation.budget.close()  # gives back what it took in advance
    return bench.installation.budget.use(f"{bench.service}/acme", LIMIT).used
