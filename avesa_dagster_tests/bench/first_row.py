"""From `avesa connect` to the first queryable row."""

from __future__ import annotations

from typing import Any

from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.bench.measure import Bench, Part, Row, median

_AT_MOST = 60


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    tickets = bench.size(20_000, 2_000)
    sizes: dict[str, Any] = {
        "tickets": tickets,
        "time_entries": tickets,
        "companies": 500,
        "contacts": 2_000,
    }
    with Simulator(requests_per_minute=200, **sizes) as simulator:
        tenants = {"acme": simulator.credentials}
        for name in ("globex", "initech")[: bench.size(2, 0)]:
            added = simulator.control("add_company", company_id=name, sizes=sizes)
            tenants[name] = added["credentials"]
        found = bench.run("first_row:connect", home=str(bench.scratch / "row"), tenants=tenants)
    seconds = sorted(found.extra.values())
    middle = median(seconds)
    return Part(
        "avesa connect to the first row",
        [
            Row(
                f"seconds ({seconds[0]:.1f} .. {seconds[-1]:.1f})",
                f"{middle:.1f}",
                target=f"<= {_AT_MOST}",
                holds=middle <= _AT_MOST,
            )
        ],
        [
            f"{len(seconds)} tenant(s), one after the other, while Dagster's daemon runs; "
            f"{tickets:,} tickets and as many time entries each, 200 requests a minute. The clock "
            "starts with the command, and stops when a query returns a ticket.",
        ],
    )
