"""Canonical partitions to a history."""

from __future__ import annotations

from avesa_dagster_tests.bench.measure import (
    Bench,
    Part,
    Row,
    median,
    memory,
    per_core,
    per_second,
)

_AT_LEAST = 250_000
_MEMORY = 1.5e9


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    folder = str(bench.scratch / "history")
    versions = bench.size(2_000_000, 100_000)
    bench.run("history:prepare", versions=versions, folder=folder)
    found = bench.interleaved(
        bench.size(3, 1),
        {
            "avesa": ("history:avesa", {"folder": folder, "versions": versions}),
            "plain": ("history:plain", {"folder": folder}),
        },
    )
    ours, plain = per_second(found["avesa"]), per_second(found["plain"])
    core, slow = per_core(found["avesa"]), per_core(found["plain"])
    peak = median(item.peak for item in found["avesa"])
    return Part(
        f"History of {versions:,} versions",
        [
            Row(
                "versions/s, wall",
                f"{ours:,.0f}",
                f"{plain:,.0f}",
                f"{ours / plain:.1f}x",
                f">= {_AT_LEAST:,}",
                ours >= _AT_LEAST,
            ),
            Row("versions/s and core", f"{core:,.0f}", f"{slow:,.0f}", f"{core / slow:.1f}x"),
            Row(
                "peak memory",
                memory(found["avesa"]),
                memory(found["plain"]),
                target="< 1.5 GB",
                holds=peak < _MEMORY,
            ),
        ],
        [
            "About five versions a record in 24 monthly partitions, 46 columns, one version in "
            "200 a deletion. The plain way: pandas on the same files, sort and shift in one frame; "
            "it treats a deletion as just another version.",
        ],
    )
