"""The state tables: what people and sensors ask all the time, with a full ledger."""

from __future__ import annotations

from avesa_dagster_tests.bench.measure import Bench, Part, Row, median

_AT_MOST = 100.0
"""Milliseconds."""
_QUESTIONS = {
    "jobs": "the newest 50 jobs, live",
    "jobs of a tenant": "the jobs of a tenant",
    "progress": "progress of a running job",
    "progress of the largest": "progress of the largest job",
    "coverage": "coverage of a table",
    "coverage of the largest": "coverage of the largest table",
    "next": "what is next, for all tenants",
    "holes": "what a tenant lacks, 4 tables",
    "holes of the largest": "what the largest tenant lacks",
    "breakers": "breakers",
}


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    home = str(bench.scratch / "state")
    chunks = bench.size(1_000_000, 550_000)
    filled = bench.run("state:prepare", home=home, chunks=chunks)
    found = [bench.run("state:ask", home=home) for _ in range(bench.size(3, 1))]
    rows = []
    for key, what in _QUESTIONS.items():
        took = median(item.extra[key] for item in found)
        busy = median(item.extra[f"{key}, CPU"] for item in found)
        rows.append(
            Row(
                what,
                f"{took:.1f} ms",
                f"CPU {busy:.1f} ms",
                target=f"< {_AT_MOST:.0f} ms",
                holds=took < _AT_MOST,
            )
        )
    return Part(
        f"State tables, {filled.count:,} chunks",
        rows,
        [
            "500 jobs of 250 tenants, 55 of them unfinished; a usual table has about 950 chunks. "
            "Medians of 15 rounds in each of 3 processes, wall time, with what Python does with "
            "the rows; beside it the CPU time, which other load on the machine does not stretch. "
            "Five jobs run, as many as may, of about 950 chunks each; the largest job, which has "
            "ended, has 3,800. The largest table has 13,000 chunks.",
        ],
    )
