"""Raw objects to canonical versions."""

from __future__ import annotations

from avesa_dagster_tests.bench.measure import Bench, Part, Row, memory, per_core, per_second

_AT_LEAST = 50_000


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    folder = str(bench.scratch / "versions")
    rows, files = bench.size(220_000, 20_000), bench.size(2, 1)
    bench.run("versions:prepare", rows=rows, folder=folder)
    found = bench.interleaved(
        bench.size(3, 1),
        {
            "avesa": ("versions:avesa", {"folder": folder}),
            "plain": ("versions:plain", {"folder": folder, "files": files}),
        },
    )
    ours, plain = per_core(found["avesa"]), per_core(found["plain"])
    fast, slow = per_second(found["avesa"]), per_second(found["plain"])
    some = found["plain"][0].count
    return Part(
        "Raw to canonical versions",
        [
            Row(
                "observations/s and core",
                f"{ours:,.0f}",
                f"{plain:,.0f}",
                f"{ours / plain:.1f}x",
                f">= {_AT_LEAST:,}",
                ours >= _AT_LEAST,
            ),
            Row("observations/s, wall", f"{fast:,.0f}", f"{slow:,.0f}", f"{fast / slow:.1f}x"),
            Row("peak memory", memory(found["avesa"]), memory(found["plain"])),
        ],
        [
            f"One partition of {rows:,} observations, every tenth made twice; 35 typed fields.",
            "The plain way: json_normalize, sort, drop_duplicates, to_datetime, to_parquet, on "
            f"{some:,} of them.",
        ],
    )
