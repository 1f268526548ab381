"""The share of a request budget that a backfill uses, as the service counts it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.bench.measure import Bench, Part, Row

_LIMIT = 200
_LATENCY = 300
_PAGE_ROWS = 50
_SHARE = 0.95


def measure(bench: Bench) -> Part:
    """Runs the benchmark; ours and the plain way at once, each against a service of its own."""
    warm = bench.size(60, 10)
    steady = bench.size(120, 10)
    tickets = bench.size(40_000, 20_000)
    service: dict[str, Any] = {
        "tickets": tickets,
        "requests_per_minute": _LIMIT,
        "latency_ms": _LATENCY,
    }
    with Simulator(**service) as ours, Simulator(**service) as theirs, ThreadPoolExecutor() as two:
        for simulator in (ours, theirs):
            simulator.control("stats_reset")
        loop = two.submit(
            bench.run,
            "budget:paced",
            url=theirs.url,
            credentials=theirs.credentials,
            limit=_LIMIT,
            seconds=warm + steady + 2,
        )
        bench.run(
            "budget:backfill",
            credentials=ours.credentials,
            limit=_LIMIT,
            seconds=warm + steady + 2,
            home=str(bench.scratch / "budget"),
            page_rows=_PAGE_ROWS,
        )
        loop.result()
        counted, beside = (simulator.control("stats", log=5_000) for simulator in (ours, theirs))
    share = _accepted(counted, warm, steady) / (_LIMIT * steady / 60)
    plain = _accepted(beside, warm, steady) / (_LIMIT * steady / 60)
    busiest, most = (
        max(c["max_accepted_in_60s_by_credential"].values()) for c in (counted, beside)
    )
    return Part(
        "Budget used by a backfill",
        [
            Row(
                "share of the limit, steady",
                f"{share:.1%}",
                f"{plain:.1%}",
                f"{share / plain:.1f}x",
                f">= {_SHARE:.0%}",
                share >= _SHARE,
            ),
            Row(
                "busiest 60 s",
                f"{busiest}",
                f"{most}",
                target=f"<= {_LIMIT}",
                holds=busiest <= _LIMIT,
            ),
            Row(
                "refused",
                f"{counted['refused']}",
                f"{beside['refused']}",
                target="0",
                holds=counted["refused"] == 0,
            ),
        ],
        [
            f"{_LIMIT} requests a minute, answers after {_LATENCY} ms, 4 windows at once. Pages of "
            f"{_PAGE_ROWS}, so that a small world needs many requests. Counted by the "
            f"service over {steady} s, after the first {warm} s, in which a burst is allowed.",
            "The plain way: one request after the other, and time.sleep(60 / limit) after each.",
        ],
    )


def _accepted(counted: dict[str, Any], warm: int, steady: int) -> int:
    """Requests that were let through in the steady time."""
    asked = [e for e in counted["log"] if e["kind"] in ("list", "count") and e["status"] != 429]
    begin = asked[0]["at"] + warm
    return sum(begin <= entry["at"] < begin + steady for entry in asked)
