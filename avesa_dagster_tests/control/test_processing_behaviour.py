"""What every ProcessingJobs does: one run at a time in a lane, and one that is silent has died."""

from __future__ import annotations

import dataclasses
import multiprocessing
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.control.jobs import Processing, ProcessingJobs
from avesa_dagster.errors import ConfigurationError

from .conftest import Control, Opener, day

NOON = day(0)
STALE = timedelta(seconds=30)


def after(seconds: float) -> Any:
    return NOON + timedelta(seconds=seconds)


def row(
    run_id: str = "r1", table: str = "tickets", seconds: float = 0, *, kind: str = "backfill",
    tenant: str = "acme", **fields: Any,
) -> Processing:  # fmt: skip
    base = Processing(
        run_id, tenant, "connectwise", table, f"{kind}/{tenant}/connectwise/{table}", kind,
        after(seconds), after(seconds),
    )  # fmt: skip
    return replace(base, **fields)


def claim(table: ProcessingJobs, one: Processing) -> Processing | None:
    return table.claim(one, stale_before=one.beat_at - STALE)


def under_way(table: ProcessingJobs, seconds: float, tenant: str | None = None) -> list[str]:
    rows = table.under_way(tenant, stale_before=after(seconds) - STALE)
    return [one.run_id for one in rows]


def test_a_lane_has_one_run_at_a_time(control: Control) -> None:
    table = control.processing
    assert claim(table, row()) is None
    assert claim(table, row("r2", seconds=1)) == row()
    assert under_way(table, 1) == ["r1"], "the one that was refused has no row"
    assert claim(table, row(seconds=2)) is None, "the holder's own"
    assert claim(table, row("r2", "contacts", 3)) is None
    assert claim(table, row("r3", seconds=3, kind="live")) is None
    assert claim(table, row("r4", seconds=3, tenant="acme2")) is None
    assert set(under_way(table, 3)) == {"r1", "r2", "r3", "r4"}


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_a_run_that_ended_leaves_its_lane(control: Control, status: str) -> None:
    table = control.processing
    claim(table, row())
    table.beat(row(status=status, ended_at=after(1), beat_at=after(1)))
    assert under_way(table, 1) == []
    assert claim(table, row("r2", seconds=2)) is None


def test_a_run_keeps_its_lane_as_long_as_it_beats(control: Control) -> None:
    table = control.processing
    claim(table, row())
    for seconds in range(0, 90, 29):
        alive = row(beat_at=after(seconds), completed_chunks=seconds)
        table.beat(alive)
        assert claim(table, row("r2", seconds=seconds + 30)) == alive
    assert claim(table, row("r2", seconds=87 + 30.001)) is None


def test_who_takes_over_from_the_dead_says_so_of_them(control: Control) -> None:
    table = control.processing
    claim(table, row(job_id="b1", completed_chunks=3))
    assert under_way(table, 30) == ["r1"]
    assert under_way(table, 30.001) == []
    assert claim(table, row("r2", seconds=31, job_id="b1")) is None
    died, alive = table.of_job("b1")
    assert died == row(
        job_id="b1", completed_chunks=3, status="failed", error="its process died",
        ended_at=after(31),
    )  # fmt: skip
    assert alive == row("r2", seconds=31, job_id="b1")
    assert table.under_way(stale_before=day(-9)) == [alive], "however old one looks"


def test_runs_under_way_are_those_of_a_tenant_that_beat(control: Control) -> None:
    table = control.processing
    claim(table, row("r1"))
    claim(table, row("r2", "contacts", 20))
    claim(table, row("r3", tenant="acme2", seconds=20))
    claim(table, row("r4", "companies", 20))
    table.beat(row("r4", "companies", 20, status="completed"))
    assert set(under_way(table, 20)) == {"r1", "r2", "r3"}
    assert set(under_way(table, 20, "acme")) == {"r1", "r2"}
    assert under_way(table, 40, "acme") == ["r2"]
    assert under_way(table, 20, "nobody") == []


def test_rows_of_a_job_come_oldest_first(control: Control) -> None:
    table = control.processing
    for number, (run_id, name, seconds) in enumerate(
        [("r9", "tickets", 1), ("r1", "tickets", 50), ("r9", "contacts", 1)]
    ):
        claim(table, row(run_id, name, seconds, job_id="b1", records=number))
    claim(table, row("r5", "companies", 7, job_id="b2"))
    claim(table, row("r6", "projects", 7))
    held = [(one.run_id, one.table) for one in table.of_job("b1")]
    assert held == [("r9", "contacts"), ("r9", "tickets"), ("r1", "tickets")]
    assert table.of_job("b3") == []


def test_the_latest_of_each_lane_of_a_kind(control: Control) -> None:
    table = control.processing
    for run_id, name, seconds, kind in [
        ("r1", "tickets", 0, "verify"), ("r2", "tickets", 100, "verify"),
        ("r0", "tickets", 50, "verify2"), ("r3", "contacts", 10, "verify"),
        ("r4", "contacts", 99, "live"),
    ]:  # fmt: skip
        claim(table, row(run_id, name, seconds, kind=kind))
        ended = row(run_id, name, seconds, kind=kind, status="completed", ended_at=after(seconds))
        table.beat(ended)
    assert [one.run_id for one in table.latest("verify")] == ["r3", "r2"]
    assert [one.run_id for one in table.latest("live")] == ["r4"]
    assert table.latest("verif") == []
    assert table.latest("backfill") == []


def test_every_field_survives(opener: Opener, tmp_path: Path) -> None:
    full = Processing(
        "r1", "acme", "connectwise", "tickets", "verify/acme/connectwise/tickets", "verify",
        day(0.25), day(0.5), "b1", "failed", "[2026-01-01, 2026-02-01)", 9, 8, 2**40, 7, "lost é",
        day(0.75), {"disagrees": "3"},
    )  # fmt: skip
    assert len(dataclasses.fields(Processing)) == 18
    opener(tmp_path).processing.beat(full)
    assert opener(tmp_path).processing.of_job("b1") == [full]


def test_what_ended_long_ago_leaves(control: Control) -> None:
    table = control.processing
    for number in range(3):
        claim(table, row(f"r{number}", f"t{number}", number * 100, job_id="b1"))
    table.beat(row("r0", "t0", beat_at=after(150), job_id="b1"))
    assert table.remove(ended_before=after(100)) == 0
    assert table.remove(ended_before=after(150)) == 1
    assert [one.run_id for one in table.of_job("b1")] == ["r0", "r2"]


def test_one_tenant_is_forgotten(control: Control) -> None:
    table = control.processing
    claim(table, row())
    claim(table, row("r1", "contacts"))
    claim(table, row("r2", tenant="acme2"))
    assert table.forget("acme") == 2
    assert table.forget("acme") == 0
    assert under_way(table, 0) == ["r2"]
    assert claim(table, row("r3")) is None


@pytest.mark.parametrize("kind", ["tenant", "service", "table"])
def test_a_bad_name_is_refused(control: Control, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind} name"):
        claim(control.processing, replace(row(), **{kind: "../x"}))  # type: ignore[arg-type]
    assert under_way(control.processing, 0) == []


def _claim_at_once(opener: Opener, folder: str, gate: Barrier, won: str, worker: int) -> None:
    table = opener(Path(folder)).processing
    for number in range(20):
        gate.wait(60)
        if claim(table, row(f"r{worker}", f"t{number}", 31)) is None:
            (Path(won) / f"{number}-{worker}").touch()


def test_of_several_processes_one_takes_a_lane(opener: Opener, tmp_path: Path) -> None:
    won = tmp_path / "won"
    won.mkdir()
    table = opener(tmp_path).processing
    for number in range(20):
        claim(table, row("dead", f"t{number}"))
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(2)
    workers = [
        spawn.Process(target=_claim_at_once, args=(opener, str(tmp_path), gate, str(won), worker))
        for worker in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(int(path.name.split("-")[0]) for path in won.iterdir()) == list(range(20))
    assert len(table.under_way(stale_before=day(-9))) == 20
