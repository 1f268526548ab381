"""JSON pages to raw Parquet: speed, what it is of the least possible, and flat memory."""

from __future__ import annotations

from avesa_dagster_tests.bench.measure import Bench, Part, Row, median, memory, per_core

_AT_LEAST = 25_000
_SHARE = 0.70
_GROWTH = 1.15


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    folder = str(bench.scratch / "pages")
    (bench.scratch / "pages").mkdir()
    rows, few = bench.size(100_000, 10_000), bench.size(20_000, 3_000)
    found = bench.interleaved(
        bench.size(3, 1),
        {
            "avesa": ("pages:avesa", {"rows": rows, "folder": folder}),
            "split": ("pages:split_and_write", {"rows": rows, "folder": folder}),
            "parse": ("pages:parse_and_write", {"rows": rows, "folder": folder}),
            "plain": ("pages:plain", {"rows": few, "folder": folder}),
        },
    )
    small, large = bench.size(200_000, 20_000), bench.size(2_000_000, 60_000)
    short = bench.run("pages:avesa", rows=small, folder=folder)
    long = bench.run("pages:avesa", rows=large, folder=folder)
    ours, plain = per_core(found["avesa"]), per_core(found["plain"])
    # Within a round, the two stood beside each other.
    shares = {
        case: median(
            mine.per_core / alone.per_core
            for mine, alone in zip(found["avesa"], found[case], strict=True)
        )
        for case in ("parse", "split")
    }
    growth = long.peak / short.peak
    size = found["avesa"][0].extra["mean_bytes"]
    return Part(
        "JSON pages to raw Parquet",
        [
            Row(
                "records/s and core",
                f"{ours:,.0f}",
                f"{plain:,.0f}",
                f"{ours / plain:.1f}x",
                f">= {_AT_LEAST:,}",
                ours >= _AT_LEAST,
            ),
            Row(
                "of parse + write alone (a)",
                f"{ours:,.0f}",
                f"{per_core(found['parse']):,.0f}",
                f"{shares['parse']:.0%}",
                f">= {_SHARE:.0%}",
                shares["parse"] >= _SHARE,
            ),
            Row(
                "of split + write alone (b)",
                f"{ours:,.0f}",
                f"{per_core(found['split']):,.0f}",
                f"{shares['split']:.0%}",
                f">= {_SHARE:.0%}",
                shares["split"] >= _SHARE,
            ),
            Row(f"peak memory, {small:,} records", memory([short]), memory(found["plain"])),
            Row(
                f"peak memory, {large:,} records",
                memory([long]),
                ratio=f"{growth:.2f}x",
                target=f"<= {_GROWTH}x",
                holds=growth <= _GROWTH,
            ),
        ],
        [
            f"Tickets of {size / 1000:.1f} KB in pages of 1,000, made while they are read. Ours "
            "goes from an answer's body to a raw object: RecordDecoder, raw.observations, "
            "raw.write. Beside it: what is compared with.",
            "(a) msgspec parses each page whole, to dicts; the texts are written as the columns of "
            "a raw object, with constants for id, times and hash.",
            "(b) The least: msgspec splits a page into records without looking at a value "
            "(list[Raw]); written as in (a). No id is found, no time read, nothing hashed or "
            "checked for UTF-8.",
            f"The plain way: json.loads, json_normalize, to_parquet, {few:,} records.",
        ],
    )
