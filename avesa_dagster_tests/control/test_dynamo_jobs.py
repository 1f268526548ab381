"""What only jobs and health in DynamoDB can do wrong: lost answers, lists that lag, items that
outgrow their place or that others wrote."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster import aws as aws_module
from avesa_dagster.control.dynamo import DynamoControl
from avesa_dagster.control.dynamo_tables import BACKFILL_JOBS, HEALTH, PROCESSING_JOBS, Table
from avesa_dagster.control.health import Alarm, BreakerState, Drift, FieldSeen, Sample
from avesa_dagster.control.jobs import (
    UNFINISHED,
    Job,
    JobError,
    JobStatus,
    Piece,
    PieceState,
    Processing,
    Trigger,
)
from avesa_dagster.errors import StoreError
from avesa_dagster_tests.lossy import Lossy

from .conftest import day, environment_of, open_dynamodb


@pytest.fixture
def control(lossy: Lossy, tmp_path: Path) -> DynamoControl:
    opened = open_dynamodb(tmp_path)
    assert isinstance(opened, DynamoControl)
    return opened


def name_of(tmp_path: Path, table: Table) -> str:
    return environment_of(tmp_path).table(table.name)


def job(job_id: str = "b1", tenant: str = "acme", **fields: Any) -> Job:
    base = Job(
        job_id, tenant, "connectwise", ("tickets",), day(-90), day(0), Trigger.PERSON,
        created_at=day(0), updated_at=day(0),
    )  # fmt: skip
    return replace(base, **fields)


def row(run_id: str = "r1", seconds: float = 0, **fields: Any) -> Processing:
    tenant = fields.pop("tenant", "acme")
    moment = day(0) + timedelta(seconds=seconds)
    base = Processing(
        run_id, tenant, "connectwise", "tickets", f"verify/{tenant}/connectwise/tickets", "verify",
        moment, moment,
    )  # fmt: skip
    return replace(base, **fields)


def count(held: Job) -> Job:
    return replace(held, records=held.records + 1)


def everything(control: DynamoControl, number: int) -> None:
    """One of each change."""
    control.jobs.create(job(f"b{number}"), joins=lambda other: False)
    control.jobs.change(f"b{number}", count, now=day(1))
    control.jobs.change(
        f"b{number}",
        lambda held: replace(held, status=JobStatus.COMPLETED, completed_at=day(number)),
        now=day(1),
    )
    run = row(f"r{number}", number * 100, job_id="b1")
    assert control.processing.claim(run, stale_before=run.beat_at, tenants=1) is None
    control.processing.beat(replace(run, records=number))
    control.processing.beat(replace(run, records=number, status="completed"))
    control.breakers.failed("acme", "connectwise", "x", credentials=False, now=day(0))
    control.counters.add([Sample("n", (("tenant", "acme"),), 1), Sample("n", (), 2.5)])
    control.alarms.put(Alarm(f"a{number}", "acme", "text", day(number)))
    control.drift.note(
        "acme", "s", "t",
        lambda known: (
            {**known, f"p{number}": FieldSeen("p", ("null",), day(0), day(0), looked=len(known))},
            [Drift("acme", "s", "t", "new", f"p{number}", "", day(0))],
        ),
    )  # fmt: skip


@pytest.mark.parametrize("misreport", [False, True])
def test_what_took_effect_and_was_not_answered_counts_once(
    control: DynamoControl, lossy: Lossy, misreport: bool
) -> None:
    lossy.faults.drop, lossy.faults.misreport = 2, misreport
    for number in range(4):
        aws_module.client.cache_clear()  # boto3 tries so many times a client, then no more
        everything(control, number)
    lossy.faults.drop = 0
    assert lossy.lost >= 20
    found = control.jobs.find()
    assert [one.records for one in found] == [1] * 4
    assert [one.job_id for one in control.jobs.ended(limit=9)] == ["b3", "b2", "b1", "b0"]
    assert [one.records for one in control.processing.of_job("b1")] == [0, 1, 2, 3]
    assert [one.status for one in control.processing.of_job("b1")] == ["completed"] * 4
    assert control.breakers.get("acme", "connectwise").failures == 4
    assert {one.labels: one.value for one in control.counters.all()} == {
        (("tenant", "acme"),): 4,
        (): 10,
    }
    assert len(control.alarms.all()) == 4
    assert len(control.drift.fields("acme", "s", "t")) == 1  # all have one path
    assert [line.path for line in control.drift.log("acme")] == ["p3", "p2", "p1", "p0"]
    aws_module.client.cache_clear()
    lossy.faults.drop = 2
    assert control.jobs.remove(finished_before=day(2)) == 2
    assert control.jobs.forget("acme") == 2
    assert control.processing.forget("acme") == 4
    assert control.processing.latest("verify") == []


def test_one_prober_of_those_whose_answers_are_lost(control: DynamoControl, lossy: Lossy) -> None:
    control.breakers.failed("acme", "s", "x", credentials=True, now=day(0))
    lossy.faults.drop = 1
    lossy.faults.only = lambda call: call.is_write and random.random() < 0.5
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda _: control.breakers.probe("acme", "s", now=day(1)), range(8)))
    assert won.count(True) == 1
    assert control.breakers.get("acme", "s").state is BreakerState.HALF_OPEN


def test_two_that_change_at_once_and_lose_answers_lose_no_change(
    control: DynamoControl, lossy: Lossy
) -> None:
    control.jobs.create(job())
    lossy.faults.drop = 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: control.jobs.change("b1", count, now=day(1)), range(24)))
        aws_module.client.cache_clear()  # boto3 tries so many times a client, then no more
        list(pool.map(lambda _: control.counters.add([Sample("n", (), 1)]), range(24)))
    assert lossy.lost > 5
    held = control.jobs.get("b1")
    assert held is not None and held.records == 24
    assert control.counters.all() == [Sample("n", (), 24)]


def test_lists_that_lag_hide_no_unfinished_job_and_no_run(
    control: DynamoControl, lossy: Lossy
) -> None:
    jobs, processing = control.jobs, control.processing
    lossy.faults.stale = True
    jobs.create(job("b0", status=JobStatus.COMPLETED, completed_at=day(0)))
    assert len(jobs.find()) == len(jobs.find("acme")) == 1  # so the indexes answer from now on
    assert jobs.find(statuses=UNFINISHED) == []
    jobs.create(job("b1"))
    assert jobs.create(job("b2"), joins=lambda other: True).job_id == "b1"
    for found in (jobs.find(), jobs.find("acme"), jobs.find("acme", "connectwise")):
        assert {one.job_id for one in found} >= {"b1"}
    jobs.change("b0", lambda held: replace(held, status=JobStatus.RUNNING), now=day(1))
    assert [one.job_id for one in jobs.find(statuses=UNFINISHED)] == ["b1", "b0"]
    launched = Piece(0, ("a",), "2026-01-01", "2026-01-01", True, PieceState.LAUNCHED)
    jobs.change(
        "b0", lambda held: replace(held, status=JobStatus.FAILED, pieces=(launched,)), now=day(1)
    )
    assert [one.job_id for one in jobs.winding_down()] == ["b0"]
    processing.claim(row(), stale_before=day(-1))
    assert [one.run_id for one in processing.under_way(stale_before=day(-1))] == ["r1"]
    assert processing.claim(row("r2"), stale_before=day(-1)) == row()
    assert [one.run_id for one in processing.latest("verify")] == ["r1"]
    assert jobs.forget("acme") == 2


def test_many_are_listed_whole_over_pages_and_batches_in_part(
    control: DynamoControl, lossy: Lossy
) -> None:
    lossy.faults.halves = True
    for number in range(110):
        status = JobStatus.COMPLETED if number % 2 else JobStatus.PENDING
        done = day(number) if number % 2 else None
        control.jobs.create(
            job(f"b{number:03}", created_at=day(number), status=status, completed_at=done)
        )
    ids = [f"b{number:03}" for number in reversed(range(110))]
    assert [one.job_id for one in control.jobs.find()] == ids
    assert [one.job_id for one in control.jobs.find("acme", limit=7)] == ids[:7]
    assert [one.job_id for one in control.jobs.ended(limit=40)] == ids[::2][:40]
    assert control.jobs.forget("acme") == 110
    assert control.jobs.find() == []


def test_a_large_job_fits_and_one_that_does_not_is_refused_whole(control: DynamoControl) -> None:
    tables = tuple(f"table_number_{number}" for number in range(20))
    pieces = tuple(
        Piece(n, tables, f"20{n % 90:02}-01-01", f"20{n % 90:02}-02-01", False, attempt=n % 4)
        for n in range(4_000)
    )
    errors = tuple(JobError(f"the window {n} was lost", "a", str(n)) for n in range(100))
    large = job(tables=tables, pieces=pieces, errors=errors, run_ids=tuple(map(str, range(4_000))))
    assert control.jobs.create(large) == large
    assert control.jobs.get("b1") == large
    noise = random.Random(1).randbytes(500_000).hex()
    with pytest.raises(StoreError, match=r"backfill job b1 has [0-9,]+ bytes.*nothing"):
        control.jobs.change("b1", lambda held: replace(held, note=noise), now=day(1))
    assert control.jobs.get("b1") == large


def test_attributes_are_those_that_scripts_know(control: DynamoControl, tmp_path: Path) -> None:
    control.jobs.create(job(errors=(JobError("lost"),), total_chunks=7, chunk_size_days=30))
    item = aws_module.client("dynamodb").get_item(
        TableName=name_of(tmp_path, BACKFILL_JOBS), Key={"job_id": {"S": "b1"}}
    )["Item"]
    readable = {name: value for name, value in item.items() if name not in ("document", "revision")}
    assert readable == {
        "job_id": {"S": "b1"},
        "tenant_id": {"S": "acme"},
        "service_name": {"S": "connectwise"},
        "table_name": {"S": "tickets"},
        "start_date": {"S": "2025-10-03T12:00:00.000000Z"},
        "end_date": {"S": "2026-01-01T12:00:00.000000Z"},
        "chunk_size_days": {"N": "30"},
        "job_status": {"S": "pending"},
        "created_at": {"S": "2026-01-01T12:00:00.000000Z"},
        "updated_at": {"S": "2026-01-01T12:00:00.000000Z"},
        "total_records": {"N": "0"},
        "total_chunks": {"N": "7"},
        "completed_chunks": {"N": "0"},
        "failed_chunks": {"N": "0"},
        "error_message": {"S": "lost"},
    }


def spoil(
    tmp_path: Path, table: Table, key: tuple[str, ...], expression: str, **values: Any
) -> None:
    arguments: dict[str, Any] = {"ExpressionAttributeValues": values} if values else {}
    aws_module.client("dynamodb").update_item(
        TableName=name_of(tmp_path, table),
        Key={name: {"S": value} for name, value in zip(table.keys, key, strict=True)},
        UpdateExpression=expression,
        **arguments,
    )


def test_what_others_wrote_into_an_item_is_kept_and_what_they_removed_is_named(
    control: DynamoControl, tmp_path: Path
) -> None:
    control.jobs.create(job())
    spoil(tmp_path, BACKFILL_JOBS, ("b1",), "SET ticket = :t", **{":t": {"S": "OPS-7"}})
    control.jobs.change("b1", count, now=day(1))
    found = control.database.get(BACKFILL_JOBS, ("b1",))
    assert found is not None and found.text("ticket") == "OPS-7"
    spoil(tmp_path, BACKFILL_JOBS, ("b1",), "REMOVE document")
    missing = rf"BackfillJobs-{environment_of(tmp_path).environment}, item b1: .*document"
    with pytest.raises(StoreError, match=missing):
        control.jobs.get("b1")
    spoil(tmp_path, BACKFILL_JOBS, ("b1",), "SET document = :d", **{":d": {"B": b"no zlib"}})
    with pytest.raises(StoreError, match=missing):
        control.jobs.find()


def test_a_breaker_with_a_state_that_is_none_is_named(
    control: DynamoControl, tmp_path: Path
) -> None:
    control.breakers.failed("acme", "s", "x", credentials=True, now=day(0))
    spoil(tmp_path, HEALTH, ("breakers", "acme/s"), "REMOVE openings, failures")
    assert control.breakers.get("acme", "s").failures == 0
    control.database.change(HEALTH, ("breakers", "acme/s"), lambda row: {"state": "ajar"})
    with pytest.raises(StoreError, match=r"breakers/acme/s: attribute state is 'ajar'"):
        control.breakers.all()
    control.breakers.succeeded("acme", "s")
    assert control.breakers.all() == []


def test_a_run_that_was_taken_for_dead_is_listed_beside_its_successor(
    control: DynamoControl,
) -> None:
    processing = control.processing
    processing.claim(row("r1"), stale_before=day(-1))
    assert processing.claim(row("r2", 100), stale_before=day(0.001)) is None
    processing.beat(row("r1", 101))

    def running() -> list[str]:
        return [one.run_id for one in processing.under_way("acme", stale_before=day(0))]

    assert running() == ["r1", "r2"]
    held = processing.claim(row("r3", 102), stale_before=day(0))
    assert held is not None and held.run_id in ("r1", "r2")
    processing.beat(row("r2", 103, status="completed"))
    assert running() == ["r1"]
    assert processing.claim(row("r3", 104), stale_before=day(0)) == row("r1", 101)
    processing.beat(row("r1", 105, status="completed"))
    assert running() == []
    assert processing.claim(row("r3", 106), stale_before=day(0)) is None
    assert running() == ["r3"]


def test_of_many_at_once_only_so_many_tenants_verify(control: DynamoControl) -> None:
    def claim(number: int) -> Processing | None:
        mine = row(f"r{number}", tenant=f"t{number % 6}")
        return control.processing.claim(mine, stale_before=day(-1), tenants=2)

    with ThreadPoolExecutor(6) as pool:
        refused = [one for one in pool.map(claim, range(6)) if one is not None]
    running = control.processing.under_way(stale_before=day(-1))
    assert len(running) == 2 and len(refused) == 4
    assert {one.tenant for one in refused} <= {one.tenant for one in running}


def test_a_beat_is_one_write_and_counters_of_all_tenants_are_few_reads(
    control: DynamoControl, lossy: Lossy
) -> None:
    control.processing.claim(row(), stale_before=day(-1))
    lossy.calls.clear()
    control.processing.beat(row(seconds=3))
    assert lossy.calls == {"GetItem": 1, "PutItem": 1}
    for tenant in range(300):
        labels = [
            (("service", "connectwise"), ("table", f"t{n // 10}"), ("tenant", f"tenant{tenant}"))
            for n in range(100)
        ]
        control.counters.add(
            [Sample(f"avesa_counter_{n % 10}_total", own, n) for n, own in enumerate(labels)]
        )
    lossy.calls.clear()
    assert len(control.counters.all()) == 30_000
    assert lossy.calls["Query"] <= 2


def test_a_tenant_leaves_nothing_behind(control: DynamoControl, tmp_path: Path) -> None:
    for number in range(2):
        everything(control, number)
    control.processing.claim(row("open", 9_999), stale_before=day(9))
    control.jobs.create(job("open"))
    forgets: list[Callable[[str], int]] = [
        control.jobs.forget, control.processing.forget, control.breakers.forget,
        control.counters.forget, control.alarms.forget, control.drift.forget,
    ]  # fmt: skip
    assert all(forget("acme") > 0 for forget in forgets)
    for table in (BACKFILL_JOBS, PROCESSING_JOBS, HEALTH):
        left = [one for one in control.database.scan(table) if "acme" in str(one.item)]
        assert left == []


def test_a_counter_of_too_many_tenants_at_once_is_refused_whole(control: DynamoControl) -> None:
    amounts = [Sample("n", (("tenant", f"t{n}"),), 1) for n in range(101)]
    control.counters.add(amounts[:100])
    with pytest.raises(StoreError, match="nothing was added"):
        control.counters.add(amounts)
    assert sum(one.value for one in control.counters.all()) == 100
