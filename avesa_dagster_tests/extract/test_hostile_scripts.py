"""Whatever the hostility: the exact truth, or a failure that says where; never a quiet loss.

AVESA_HOSTILE_SCRIPTS says how many scripts (default 20), AVESA_HOSTILE_FIRST the first one's seed.
"""

from __future__ import annotations

import os
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

from avesa_dagster.errors import AvesaError, Suspended
from avesa_dagster.extract.request import Mode
from avesa_dagster.sandbox.process import Simulator

from .support import (
    SERVICE,
    TENANT,
    Bench,
    assert_equals_truth,
    open_bench,
    small_segments,
)

SCRIPTS = int(os.environ.get("AVESA_HOSTILE_SCRIPTS", "20"))
FIRST = int(os.environ.get("AVESA_HOSTILE_FIRST", "0"))
ITEMS = 10
_WINDOWED, _MASTER = ("tickets", "time_entries"), ("companies", "contacts")
_outcomes: Counter[str] = Counter()

_FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 502, "body": "html"},
    {"kind": "status", "status": 503, "body": "empty"},
    {"kind": "status", "status": 504},
    {"kind": "status", "status": 429, "retry_after": 0},
    {"kind": "status", "status": 429, "retry_after": 0.03, "body": "cloudflare"},
    {"kind": "status", "status": 400},
    {"kind": "status", "status": 404, "body": "html"},
    {"kind": "reset_before"},
    {"kind": "reset_after_headers"},
    {"kind": "hang_up"},
    {"kind": "cut_body", "framing": "content-length"},
    {"kind": "cut_body", "framing": "chunked", "ending": "reset"},
    {"kind": "cut_body", "framing": "close", "fraction": 0.9},
    {"kind": "broken_json"},
    {"kind": "html_200"},
    {"kind": "error_object_200"},
    {"kind": "redirect"},
    {"kind": "codebase_upgrade"},
    {"kind": "slow", "seconds": 0.01},
    {"kind": "slow", "seconds": 0.02, "drip": True},
    {"kind": "drop_row"},
    {"kind": "drop_row", "rows": 3},
    {"kind": "duplicate_row"},
    {"kind": "repeat_page"},
    {"kind": "empty_page"},
    {"kind": "filter_ignored"},
    {"kind": "filter_ignored", "ignore": "all"},
    {"kind": "short_page"},
    {"kind": "short_page", "rows": 1},
)
_DEADLY = {("status", 400), ("status", 404), ("redirect", None)}


def draw_script(rng: Random) -> dict[str, Any]:
    """A hostile script: anything that the simulator can do, at any rate."""
    fierce = rng.random() < 0.25
    faults = []
    for _ in range(rng.randrange(1, 6)):
        fault = dict(rng.choice(_FAULTS))
        deadly = (fault["kind"], fault.get("status")) in _DEADLY
        if rng.random() < 0.4 or (deadly and rng.random() < 0.8):
            fault["at"] = sorted(rng.sample(range(1, 60), rng.randrange(1, 4)))
        elif deadly:
            fault["probability"] = 0.01
        else:
            fault["probability"] = (
                rng.choice((0.5, 0.9)) if fierce else rng.choice((0.03, 0.1, 0.2))
            )
        if fault["kind"] in ("status", "reset_before", "empty_page", "drop_row"):
            fault["burst"] = rng.choice((1, 1, 2, 3))
        if rng.random() < 0.15:
            fault["on"] = rng.choice(("list", "list", "count"))
            if fault["kind"] in ("drop_row", "duplicate_row", "short_page", "filter_ignored"):
                fault["on"] = "list"
        faults.append(fault)
    script: dict[str, Any] = {
        "seed": rng.randrange(1 << 30),
        "faults": faults,
        "page_clamp": rng.choice((7, 11, 20, 40)),
        "shuffle_ties": rng.random() < 0.3,
    }
    if not fierce and rng.random() < 0.7:
        script["max_consecutive"] = rng.choice((1, 2, 3))
    if rng.random() < 0.3:
        script["max_faults"] = rng.choice((1, 3, 10))
    if rng.random() < 0.5:
        script["mutate_per_request"] = rng.choice((1, 1, 2, 5))
    if rng.random() < 0.35:
        script["delete_per_request"] = rng.choice((1, 1, 2))
    if rng.random() < 0.35:
        script["create_per_request"] = rng.choice((1, 2))
    if rng.random() < 0.35:
        script["late_seconds"] = rng.choice((0.01, 0.05, 0.3, 20, 55))
        script["late_share"] = rng.choice((0.3, 1.0))
    return script


def _settled(bench: Bench, table: str) -> dict[str, str]:
    """Records that lists show and nobody is about to change, with their content."""
    return {
        record_id: record["sha256"]
        for record_id, record in bench.current(table).items()
        if record["visible"] and not record["deleted"]
    }


def _held_digests(bench: Bench, table: str) -> set[tuple[str, str]]:
    return {
        (row["record_id"], sha256(row["payload"].encode()).hexdigest())
        for row in bench.raw(table)
        if not row["is_deleted"]
    }


def _attempt(bench: Bench, table: str, mode: Mode, script: dict[str, Any], note: str) -> None:
    """One extraction under the script; if it fails, it says where, and a calm retry succeeds."""
    before = _settled(bench, table)
    bench.control("hostility", **script)
    request = bench.request(table, mode)
    try:
        bench.run(request)
        _outcomes["succeeded"] += 1
        bench.control("hostility")
    except AvesaError as error:
        _outcomes["failed and said so"] += 1
        bench.control("hostility")
        where = error.where
        assert (where.tenant, where.service, where.table) == (TENANT, SERVICE, table), note
        planned = bench.chunks(request.token, table)
        if isinstance(error, Suspended):
            bench.advance(120)  # until it is probed
        elif planned:
            assert where.window or "windows failed" in str(error), f"{note}: {error}"
            named = str(where.window or error)
            failed = [c for c in planned if c.state != "completed"]
            assert any(f"{c.start:%Y-%m-%d}" in named for c in failed), f"{note}: {error}"
        bench.run(request)
    upper = max(c.end for c in bench.chunks(request.token, table))
    after = bench.current(table)
    held = _held_digests(bench, table)
    lower = min(c.start for c in bench.chunks(request.token, table))
    full = any(c.kind == "full" for c in bench.chunks(request.token, table))
    for record_id, digest in before.items():
        record = after[record_id]
        inside = full or f"{lower:%Y-%m-%dT%H:%M:%SZ}" <= record["updated_at"]
        inside = inside and record["updated_at"] < f"{upper:%Y-%m-%dT%H:%M:%SZ}"
        if inside and record["sha256"] == digest and not record["deleted"]:
            assert (record_id, digest) in held, f"{note}: {table} {record_id} stood still and lacks"


def run_script(simulator: Simulator, home: Path, seed: int) -> None:
    rng = Random(f"hostile script {seed}")
    bench = open_bench(
        simulator,
        home,
        seed=seed,
        page_clamp=1000,
        chunk_days=rng.choice((10, 30)),
        parallel=rng.choice((1, 4)),
    )
    small_segments(rng.choice((15, 60, 20_000)))
    table = rng.choice(_WINDOWED if seed % 2 else _MASTER)
    script = draw_script(rng)
    note = f"script {seed} on {table}: {script}"
    modes = rng.choice(
        ([Mode.BACKFILL], [Mode.BACKFILL, Mode.SYNC], [Mode.SYNC, Mode.BACKFILL], [Mode.FULL])
    )
    for mode in modes:
        _attempt(bench, table, mode, script, f"{mode} of {note}")
        bench.advance(rng.choice((5, 90, 4_000)))
        for change in ("mutate", "create", "delete"):
            if rng.random() < 0.5:
                bench.control(change, table=table, count=3)
    bench.advance(400)
    bench.extract(table, Mode.BACKFILL)
    bench.extract(table, Mode.SYNC)
    bench.extract(table, Mode.FULL)
    assert_equals_truth(bench, table, note)


@pytest.mark.timeout(max(300, SCRIPTS * 3))
@pytest.mark.parametrize("item", range(ITEMS))
def test_a_hostile_script_ends_in_the_truth_or_in_a_failure_that_says_where(
    simulator: Simulator, tmp_path: Path, item: int
) -> None:
    for seed in range(FIRST + item, FIRST + SCRIPTS, ITEMS):
        run_script(simulator, tmp_path / str(seed), seed)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="each worker runs some scripts")
def test_both_outcomes_occurred() -> None:
    assert _outcomes["succeeded"] and _outcomes["failed and said so"], _outcomes
    print(f"\nhostile extractions: {dict(_outcomes)}")


@pytest.mark.parametrize("seed", [60, 20328])
def test_scripts_that_once_lost_a_record_quietly(
    simulator: Simulator, tmp_path: Path, seed: int
) -> None:
    run_script(simulator, tmp_path / str(seed), seed)
