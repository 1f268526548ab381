"""Backfill and live sync meet without a gap and without double effect, whichever comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from avesa_dagster.errors import FatalError
from avesa_dagster.extract.request import Mode, Progress
from avesa_dagster.extract.runner import Extractor

from .support import SERVICE, TENANT, Bench, assert_equals_truth, distinct_versions

NewBench = Callable[..., Bench]


def disturb(bench: Bench, table: str = "tickets") -> None:
    """A few records change, and a few are new."""
    bench.control("mutate", table=table, count=4)
    bench.control("create", table=table, count=2)


def assert_settled(bench: Bench, table: str = "tickets") -> None:
    bench.advance(400)
    bench.extract(table, Mode.SYNC)
    assert_equals_truth(bench, table)
    rows = bench.raw(table)
    assert len(rows) == len(distinct_versions(rows)), "a version is stored once"


@pytest.mark.parametrize("table", ["tickets", "companies"])
@pytest.mark.parametrize(
    "order",
    [
        (Mode.BACKFILL, Mode.SYNC, Mode.SYNC),
        (Mode.SYNC, Mode.BACKFILL, Mode.SYNC),
        (Mode.SYNC, Mode.SYNC, Mode.BACKFILL),
    ],
)
def test_in_any_order_nothing_is_missing_or_doubled(
    bench: Bench, table: str, order: tuple[Mode, ...]
) -> None:
    for mode in order:
        disturb(bench, table)
        bench.advance(90)
        bench.extract(table, mode)
    assert_settled(bench, table)


def test_at_once_on_threads_nothing_is_missing_or_doubled(new_bench: NewBench) -> None:
    bench = new_bench(chunk_days=10, page_clamp=9)
    disturb(bench)
    bench.advance(90)
    failures: list[BaseException] = []

    def run(mode: Mode, token: str) -> None:
        try:
            bench.extract("tickets", mode, token)
        except BaseException as error:  # noqa: BLE001 - handed to the assertion
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(mode, f"{mode}-{n}"))
        for n in range(2)
        for mode in (Mode.BACKFILL, Mode.SYNC)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    bench.advance(400)
    bench.extract("tickets", Mode.SYNC)
    assert_equals_truth(bench, "tickets")
    assert len(distinct_versions(bench.raw("tickets"))) == 160 + 2 + _moved_on(bench)


def _moved_on(bench: Bench) -> int:
    """Versions that were seen before their records changed."""
    current = bench.current("tickets")
    stamps = {(i, r["updated_at"]) for i, r in current.items()}
    rows = {(r["record_id"], f"{r['updated_at']:%Y-%m-%dT%H:%M:%SZ}") for r in bench.raw("tickets")}
    return len(rows - stamps)


def test_an_outage_of_forty_days_is_made_up_for(bench: Bench) -> None:
    bench.extract("tickets")
    for _ in range(40):
        bench.advance(86_400)
        disturb(bench)
    assert len(bench.sync_partitions("tickets")) == 2
    bench.extract("tickets", Mode.SYNC)
    assert_settled(bench)


def test_midnight_at_a_months_end_leaves_no_gap(new_bench: NewBench) -> None:
    bench = new_bench(now=datetime(2026, 2, 28, 23, 55, tzinfo=UTC))
    bench.extract("tickets")
    for _ in range(12):
        disturb(bench)
        bench.advance(61)
        bench.extract("tickets", Mode.SYNC)
    assert_settled(bench)
    assert bench.partitions()[-1].key == "2026-03-01"


def test_a_sync_of_the_new_month_alone_does_not_pass_over_the_rest_of_the_old_one(
    new_bench: NewBench,
) -> None:
    bench = new_bench(now=datetime(2026, 2, 28, 23, 0, tzinfo=UTC))
    bench.extract("tickets")
    disturb(bench)
    bench.set_time(datetime(2026, 3, 1, 2, 0, tzinfo=UTC))
    bench.extract("tickets", Mode.SYNC, partitions=bench.partitions()[-1:])
    mark = bench.watermark("tickets")
    assert mark is not None and mark < datetime(2026, 3, 1, tzinfo=UTC)
    assert_settled(bench)


def test_a_first_backfill_over_midnight_and_a_first_sync_after_it_leave_no_gap(
    new_bench: NewBench,
) -> None:
    """The backfill is planned before the month ends, the sync is the first to set a watermark."""
    bench = new_bench(now=datetime(2026, 2, 28, 23, 58, tzinfo=UTC))
    backfill = bench.request("tickets")
    extractor: Extractor = bench.installation.extractor
    told: list[Progress] = []

    def midnight_passes(progress: Progress) -> None:
        if progress.ended is None:
            return
        if not told:
            bench.advance(50)
            disturb(bench)  # 23:58:50, behind the backfill's bound and before midnight
            bench.set_time(datetime(2026, 3, 1, 0, 10, tzinfo=UTC))
            bench.extract("tickets", Mode.SYNC)
        told.append(progress)

    extractor.extract(backfill, midnight_passes, lambda: False)
    bench.advance(400)
    bench.extract("tickets", Mode.SYNC)
    assert_equals_truth(bench, "tickets")  # at once, they may both store what neither held


def test_old_partitions_alone_set_no_watermark(bench: Bench) -> None:
    bench.extract("tickets", partitions=bench.partitions()[:2])
    assert bench.watermark("tickets") is None
    bench.extract("tickets", partitions=bench.partitions()[-2:])
    assert bench.watermark("tickets") is not None
    mark = bench.watermark("tickets")
    bench.extract("tickets", partitions=bench.partitions()[:3])
    assert bench.watermark("tickets") == mark


def test_partitions_with_a_gap_between_them_do_not_move_the_watermark_over_it(
    new_bench: NewBench,
) -> None:
    bench = new_bench(now=datetime(2025, 12, 20, tzinfo=UTC), years=0.1, lookback_days=60)
    bench.extract("tickets")
    mark = bench.watermark("tickets")
    bench.advance(10 * 86_400)
    disturb(bench)
    bench.set_time(datetime(2026, 2, 10, tzinfo=UTC))
    parts = bench.partitions()
    bench.extract("tickets", partitions=(parts[0], parts[-1]))
    assert bench.watermark("tickets") == mark
    assert_settled(bench)


def test_without_a_watermark_the_sync_begins_with_the_month_of_the_connection(
    bench: Bench,
) -> None:
    extractor: Extractor = bench.installation.extractor
    connection = bench.installation.control.registry.get(TENANT, SERVICE)
    assert connection is not None
    march = datetime(2026, 3, 1, tzinfo=UTC)
    assert extractor.sync_start(connection, "tickets", bench.clock()) == march
    later = bench.clock() + timedelta(days=40)
    assert extractor.sync_start(connection, "tickets", later) == march


def test_a_service_clock_that_is_behind_is_the_one_that_counts(bench: Bench) -> None:
    bench.control("clock", now=(bench.clock() - timedelta(hours=2)).isoformat())
    bench.extract("tickets")
    disturb(bench)
    bench.advance(0)
    assert_settled(bench)


def test_a_watermark_never_passes_a_failed_windows_retry(new_bench: NewBench) -> None:
    bench = new_bench(parallel=1)
    request = bench.request("tickets", token="t")
    bench.control("hostility", faults=[{"kind": "status", "status": 400, "at": [2]}])
    with pytest.raises(Exception, match="400"):
        bench.run(request)
    assert bench.watermark("tickets") is None
    bench.control("hostility")
    disturb(bench)
    bench.advance(4000)
    bench.run(request)
    mark = bench.watermark("tickets")
    assert mark is not None and (bench.clock() - mark).total_seconds() > 4000
    assert_settled(bench)


def test_a_retry_after_a_months_end_goes_on_where_the_first_attempt_ended(
    new_bench: NewBench,
) -> None:
    bench = new_bench(parallel=1, now=datetime(2026, 2, 28, 23, 59, 20, tzinfo=UTC))
    bench.advance(20)
    bench.control("mutate", table="tickets", count=6)
    bench.set_time(datetime(2026, 3, 1, 0, 0, 30, tzinfo=UTC))
    request = bench.request("tickets", token="root")
    bench.control("hostility", faults=[{"kind": "status", "status": 400, "at": [3]}])
    with pytest.raises(FatalError):
        bench.run(request)
    bench.control("hostility")
    bench.set_time(datetime(2026, 3, 1, 0, 20, tzinfo=UTC))
    bench.run(request)
    bench.advance(3600)
    bench.extract("tickets", Mode.SYNC)
    assert_equals_truth(bench, "tickets")


def test_the_only_record_of_a_table_may_be_deleted(new_bench: NewBench) -> None:
    bench = new_bench(companies=1)
    bench.extract("companies")
    bench.control("delete", table="companies", count=1)
    assert bench.extract("companies", Mode.FULL).deleted == 1
