"""How far each service's own budget is used: a tenant's three at once, beside the live sync."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster_tests.bench.measure import Bench, Part, Row, median
from avesa_dagster_tests.bench.work.tickets import TENANT

_LATENCY = 200
_SHARE = 0.95
_EVERY = 15
_ASKED = {  # service: (table, its records in the simulator's words, rows of a page)
    "connectwise": ("tickets", "tickets", 50),
    "servicenow": ("incident", "incidents", 50),
    "salesforce": ("case", "cases", 20),
}


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    warm, steady = bench.size(60, 10), bench.size(120, 10)
    beside = bench.size(120, 10)  # the live sync; before, there is none
    seconds = warm + steady + beside + 5
    catalog = load_catalog(Settings.from_environment({}).mappings)
    settings = {name: catalog.settings(TENANT, name) for name in _ASKED}
    home = str(bench.scratch / "services")
    simulators: dict[str, Simulator] = {}
    with ExitStack() as open_:
        for name, (_, records, rows) in _ASKED.items():
            limit = settings[name].requests_per_minute
            options: dict[str, Any] = {records: max(limit * rows * (seconds + 60) // 60, 10_000)}
            simulators[name] = open_.enter_context(
                Simulator(name, requests_per_minute=limit, latency_ms=_LATENCY, years=1, **options)
            )
        services = {
            name: (table, simulators[name].credentials, rows)
            for name, (table, _, rows) in _ASKED.items()
        }
        bench.run("services:connect", home=home, services=services)
        for simulator in simulators.values():
            simulator.control("stats_reset")
        with ThreadPoolExecutor() as pool:
            live = pool.submit(
                bench.run,
                "services:live",
                home=home,
                after=warm + steady,
                every=_EVERY,
                seconds=beside,
            )
            backfills = [
                pool.submit(
                    bench.run, "services:backfill", home=home, service=name, seconds=seconds
                )
                for name in simulators
            ]
        for backfill in backfills:
            backfill.result()
        synced = live.result()
        counted = {name: s.control("stats", log=10_000) for name, s in simulators.items()}
    found: list[Row] = []
    for name, stats in counted.items():
        limit, reserve = settings[name].requests_per_minute, settings[name].live_reserve
        begin = stats["log"][0]["at"] + warm
        alone = _share(stats, limit, begin, begin + steady)
        both = _share(stats, limit, begin + steady + _EVERY, begin + steady + beside)
        busiest = max(stats["max_accepted_in_60s_by_credential"].values())
        found += [
            _at_least(f"{name}: share of {limit} a minute", alone, _SHARE),
            _at_least("  beside the live sync, which has a reserve", both, _SHARE - reserve),
            Row(
                "  busiest 60 s, and refused",
                f"{busiest}, {stats['refused']}",
                target=f"<= {limit}, 0",
                holds=busiest <= limit and stats["refused"] == 0,
            ),
        ]
    slowest = max(synced.extra.values())
    middle = median(synced.extra.values())
    found.append(Row(f"{synced.count} syncs, seconds (slowest {slowest:.1f})", f"{middle:.1f}"))
    return Part(
        "One tenant's three services at once",
        found,
        [
            f"Answers after {_LATENCY} ms; each service's own budget as configured. Three "
            f"backfills in processes of their own; after {warm + steady} s another one syncs all "
            f"three every {_EVERY} s. Counted by the services, after the first {warm} s, in which "
            "a burst is allowed. Small pages, so that a small world needs many requests; none in "
            "bulk.",
        ],
    )


def _share(stats: dict[str, Any], limit: int, begin: float, end: float) -> float:
    """Requests that were let through, of those that the limit allows."""
    asked = [entry["at"] for entry in stats["log"] if entry["status"] != 429]
    return sum(begin <= at < end for at in asked) / (limit * (end - begin) / 60)


def _at_least(what: str, share: float, target: float) -> Row:
    return Row(what, f"{share:.1%}", target=f">= {target:.0%}", holds=share >= target)
