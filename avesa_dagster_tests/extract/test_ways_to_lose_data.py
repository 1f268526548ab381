"""One test for each way in which connectors lose records (facts/connectors.md, What recurs)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from avesa_dagster.control.base import ChunkState
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    RetriableError,
    Stopped,
)
from avesa_dagster.extract.request import Mode, Progress

from .support import (
    SERVICE,
    TENANT,
    Bench,
    assert_equals_truth,
    distinct_versions,
    small_segments,
)

NewBench = Callable[..., Bench]
FEBRUARY = datetime(2026, 2, 1, tzinfo=UTC)


def hostile(bench: Bench, *faults: dict[str, Any], **rest: Any) -> None:
    bench.control("hostility", faults=list(faults), **({"page_clamp": 20} | rest))


def held(bench: Bench, table: str) -> set[str]:
    return {row["record_id"] for row in bench.raw(table)}


# 1. Silent truncation


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 502, "body": "html"},
        {"kind": "html_200"},
        {"kind": "error_object_200"},
        {"kind": "cut_body", "framing": "close"},
        {"kind": "cut_body", "framing": "content-length"},
        {"kind": "cut_body", "framing": "chunked"},
        {"kind": "broken_json", "fraction": 0.99},
        {"kind": "reset_after_headers"},
        {"kind": "empty_page"},
        {"kind": "drop_row"},
        {"kind": "drop_row", "rows": 1000},
        {"kind": "short_page", "rows": 1},
        {"kind": "repeat_page"},
        {"kind": "duplicate_row"},
        {"kind": "filter_ignored"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
@pytest.mark.parametrize("table", ["tickets", "companies"])
def test_one_fault_at_any_page_truncates_nothing(
    bench: Bench, fault: dict[str, Any], table: str
) -> None:
    for ordinal in (1, 2, 3, 4):
        bench.control("hostility", faults=[fault | {"at": [ordinal]}], page_clamp=7)
        bench.extract(table)
        assert_equals_truth(bench, table, f"{fault} at {ordinal}")


@pytest.mark.parametrize("fault", ["empty_page", "drop_row"])
def test_a_table_that_looks_empty_at_first_is_not_taken_for_empty(bench: Bench, fault: str) -> None:
    """The question for the newest id gets one row, and the fault takes it."""
    hostile(bench, {"kind": fault, "at": [1]})
    bench.extract("companies")
    assert len(held(bench, "companies")) == 20


@pytest.mark.parametrize("clamp", [1, 3, 19, 20, 21, 1000])
def test_a_clamped_page_size_is_not_the_end(new_bench: NewBench, clamp: int) -> None:
    bench = new_bench(page_clamp=clamp)
    for table in ("time_entries", "companies"):
        bench.extract(table)
        assert_equals_truth(bench, table)


def test_an_empty_month_is_asked_for_and_said_to_be_empty(new_bench: NewBench) -> None:
    bench = new_bench(tickets=1)
    extracted = bench.extract("tickets")
    assert [sum(p.rows for p in extracted.partitions), len(extracted.partitions)] == [1, 5]
    assert all(p.source_count == p.rows and p.windows for p in extracted.partitions)
    assert_equals_truth(bench, "tickets")


def test_an_empty_table_is_extracted_as_empty(new_bench: NewBench) -> None:
    bench = new_bench(companies=0, tickets=0, time_entries=0, contacts=0)
    for table in ("companies", "tickets"):
        for mode in (Mode.BACKFILL, Mode.SYNC, Mode.FULL):
            bench.extract(table, mode)
        assert bench.raw(table) == []


def test_rows_that_lists_always_hide_fail_and_name_the_window(bench: Bench) -> None:
    hostile(bench, {"kind": "drop_row", "probability": 1.0})
    with pytest.raises(AvesaError, match=r"windows failed|counts") as caught:
        bench.extract("tickets", token="t")
    assert (caught.value.where.tenant, caught.value.where.table) == (TENANT, "tickets")
    assert "2026-02-01" in str(caught.value)
    failed = [c for c in bench.chunks("t", "tickets") if c.state is ChunkState.FAILED]
    assert failed and all(f"{c.start:%Y-%m-%d}" in str(c.error) for c in failed)
    hostile(bench)
    bench.extract("tickets", token="t")
    assert_equals_truth(bench, "tickets")


# 2. Ties


def test_ties_on_the_change_second_are_all_read(new_bench: NewBench) -> None:
    bench = new_bench(page_clamp=7)
    ids = bench.control("mutate", table="tickets", count=60, at="2026-03-01T00:00:00Z")["ids"]
    hostile(bench, shuffle_ties=True, page_clamp=7)
    bench.extract("tickets")
    assert set(map(str, ids)) <= held(bench, "tickets")
    assert_equals_truth(bench, "tickets")


def test_a_change_on_the_edge_of_two_windows_is_read_once(new_bench: NewBench) -> None:
    bench = new_bench(chunk_days=10)
    edges = {
        moment
        for chunk_start in bench.partitions()
        for moment in (chunk_start.start, chunk_start.end)
        if moment < bench.clock()
    }
    for edge in edges:
        bench.control("mutate", table="tickets", count=2, at=edge.isoformat())
    bench.extract("tickets")
    rows = bench.raw("tickets")
    assert len(rows) == len(distinct_versions(rows)) == 160
    assert_equals_truth(bench, "tickets")


# 3. Paging over a changing set


@pytest.mark.parametrize("segment_rows", [15, 20_000])
def test_records_that_leave_while_they_are_paged_take_no_other_with_them(
    bench: Bench, segment_rows: int
) -> None:
    small_segments(segment_rows)
    hostile(bench, mutate_per_request=2, delete_per_request=1, page_clamp=7)
    before = bench.current("tickets")
    try:
        bench.extract("tickets", token="t")
    except DataError:
        hostile(bench, page_clamp=7)
        bench.extract("tickets", token="t")
    hostile(bench)
    after = bench.current("tickets")
    still = {i for i, r in before.items() if after[i]["sha256"] == r["sha256"]}
    still -= {i for i, r in after.items() if r["deleted"]}
    assert still and still <= held(bench, "tickets")
    bench.advance(400)
    bench.extract("tickets", Mode.SYNC)
    bench.extract("tickets", Mode.FULL)
    assert_equals_truth(bench, "tickets")


# 4. The watermark


def test_a_failed_window_moves_no_watermark(bench: Bench) -> None:
    bench.extract("tickets")
    before = bench.watermark("tickets")
    bench.advance(4000)
    hostile(bench, {"kind": "status", "status": 500, "probability": 1.0})
    with pytest.raises(RetriableError):
        bench.extract("tickets", Mode.SYNC)
    assert bench.watermark("tickets") == before


def test_the_watermark_is_the_bound_that_was_asked_for(bench: Bench) -> None:
    bench.extract("tickets")
    mark = bench.watermark("tickets")
    assert mark is not None and 59 < (bench.clock() - mark).total_seconds() < 75


# 5. Records that show up late


@pytest.mark.parametrize("table", ["tickets", "companies"])
def test_a_change_that_shows_up_after_its_second_is_not_lost(bench: Bench, table: str) -> None:
    bench.extract(table)
    hostile(bench, late_seconds=55)
    bench.control("mutate", table=table, count=5)
    bench.control("create", table=table, count=3)
    for _ in range(4):
        bench.advance(30)
        bench.extract(table, Mode.SYNC)
    hostile(bench)
    bench.advance(61)
    bench.extract(table, Mode.SYNC)
    assert_equals_truth(bench, table)


def test_late_changes_across_a_months_end_are_not_lost(new_bench: NewBench) -> None:
    bench = new_bench(now=datetime(2026, 2, 28, 23, 58, tzinfo=UTC))
    bench.extract("tickets")
    hostile(bench, late_seconds=250)  # later than the lag, within the overlap
    bench.control("mutate", table="tickets", count=5)
    for step in (100, 61, 90, 61, 3600):
        bench.advance(step)
        bench.extract("tickets", Mode.SYNC)
    assert_equals_truth(bench, "tickets")


# 9. Quota and credentials


def test_credentials_revoked_in_the_middle_end_the_run_at_once(new_bench: NewBench) -> None:
    bench = new_bench(chunk_days=5, parallel=2)
    request = bench.request("tickets", token="t")
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 2:
            bench.control("revoke")

    with pytest.raises(CredentialsRefused, match="avesa connect acme connectwise") as caught:
        bench.installation.extractor.extract(request, report, lambda: False)
    assert caught.value.where.window
    refused = [e for e in bench.log() if e["status"] == 401]
    assert 1 <= len(refused) <= 2, "one for each thread at most"
    states = [c.state for c in bench.chunks("t", "tickets")]
    assert states.count(ChunkState.COMPLETED) >= 2
    assert states.count(ChunkState.PLANNED) >= len(states) - 6
    bench.control("restore")
    bench.run(request)
    assert_equals_truth(bench, "tickets")


def test_revoked_credentials_are_said_even_if_another_window_failed_first(
    new_bench: NewBench,
) -> None:
    bench = new_bench(parallel=1)
    hostile(
        bench,
        {"kind": "status", "status": 400, "at": [2]},
        {"kind": "status", "status": 401, "at": [3]},
    )
    with pytest.raises(CredentialsRefused):
        bench.extract("tickets")


def test_bursts_of_429_are_waited_out(bench: Bench) -> None:
    fault = {"kind": "status", "status": 429, "retry_after": 0.02, "burst": 3, "at": [2, 9]}
    hostile(bench, fault)
    bench.extract("tickets")
    assert_equals_truth(bench, "tickets")


# 10. Equal counts do not prove equal sets


def test_a_row_of_another_window_in_place_of_one_is_noticed(bench: Bench) -> None:
    """A page of a broken filter that holds as many rows as were counted."""
    hostile(bench, {"kind": "filter_ignored", "probability": 1.0})
    with pytest.raises(DataError, match="2026-02-01"):
        bench.extract("tickets", token="t")
    hostile(bench)
    bench.extract("tickets", token="t")
    assert_equals_truth(bench, "tickets")


# Resuming


@pytest.mark.parametrize("ordinal", range(2, 26))  # the first sizes the chunks
def test_after_a_failure_at_any_request_only_the_rest_is_fetched(
    new_bench: NewBench, ordinal: int
) -> None:
    """Requests of the failed attempt and of its retry are together those of a calm run, and the
    few that were under way."""
    small_segments(20)
    bench = new_bench(page_clamp=10, parallel=1)
    fault = {"kind": "status", "status": 400, "at": [ordinal]}
    bench.control("hostility", faults=[fault], page_clamp=10)
    request = bench.request("tickets", token="t")
    try:
        bench.run(request)
    except AvesaError as error:
        assert error.where.window
    first = [e for e in bench.log() if e["table"] == "tickets"]
    assert first[ordinal - 1]["status"] == 400
    chunks = bench.chunks("t", "tickets")
    done = [c for c in chunks if c.state is ChunkState.COMPLETED]
    (failed,) = [c for c in chunks if c.state is ChunkState.FAILED]
    assert len(done) == len(chunks) - 1, "the other windows are fetched"
    kept = failed.rows
    assert kept % 20 == 0 and len(failed.objects) == kept // 20
    bench.control("hostility", page_clamp=10)
    bench.control("stats_reset")
    bench.run(request)
    again = [e for e in bench.log() if e["table"] == "tickets"]
    window = f">= [{failed.start:%Y-%m-%dT%H:%M:%SZ}]"
    assert all(window in entry["conditions"] for entry in again)
    if failed.cursor:
        assert all(f"id > {failed.cursor}" in e["conditions"] for e in again[:1])
    assert_equals_truth(bench, "tickets")
    rows = bench.raw("tickets")
    assert len(distinct_versions(rows)) == 160
    assert sum(c.rows for c in bench.chunks("t", "tickets")) == 160


def test_a_finished_token_asks_for_nothing_and_a_new_one_asks_anew(bench: Bench) -> None:
    bench.extract("tickets", token="t")
    before = bench.raw("tickets")
    bench.control("stats_reset")
    again = bench.extract("tickets", token="t")
    assert not [e for e in bench.log() if e["table"]]
    assert sum(p.rows for p in again.partitions) == 160
    bench.extract("tickets", token="another")
    assert [e for e in bench.log() if e["table"]]
    assert distinct_versions(bench.raw("tickets")) == distinct_versions(before)


def test_a_token_that_asks_for_more_partitions_gets_them(bench: Bench) -> None:
    parts = bench.partitions()
    bench.extract("tickets", token="t", partitions=parts[-1:])
    extracted = bench.extract("tickets", token="t", partitions=parts)
    assert all(p.windows for p in extracted.partitions)
    assert_equals_truth(bench, "tickets")


def test_a_run_that_is_told_to_stop_keeps_what_it_has(new_bench: NewBench) -> None:
    bench = new_bench(chunk_days=5, parallel=1)
    request = bench.request("tickets", token="t")
    told: list[Progress] = []
    with pytest.raises(Stopped):
        bench.installation.extractor.extract(
            request, told.append, lambda: sum(1 for p in told if p.ended) >= 3
        )
    done = [c for c in bench.chunks("t", "tickets") if c.state is ChunkState.COMPLETED]
    assert len(done) == 3
    bench.run(request)
    assert_equals_truth(bench, "tickets")


def test_a_disconnected_tenant_is_refused_before_any_request(bench: Bench) -> None:
    bench.installation.disconnect(TENANT, SERVICE)
    with pytest.raises(ConfigurationError, match="disconnected"):
        bench.run(bench.request("tickets", partitions=(bench_partition(),)))
    assert bench.control("stats")["total"] == 0


def bench_partition() -> Any:
    from avesa_dagster.catalog import grain
    from avesa_dagster.catalog.models import Grain

    return next(grain.partitions(Grain.MONTHLY, FEBRUARY, FEBRUARY))


# Records that are damaged


WINDOWED_POISON = {
    "no_id": "no usable id",
    "null_id": "no usable id",
    "text_id": "is no integer",
    "no_info": "states no change time",
    "no_last_updated": "states no change time",
    "last_updated_garbage": "_info.lastUpdated",
    "lone_surrogate": "its text cannot be read",
}
HARMLESS = ("huge_text", "nuls", "wide_integer", "wide_float", "deep_nesting")


@pytest.mark.parametrize("kind", WINDOWED_POISON)
@pytest.mark.parametrize("clamp", [3, 20])
def test_a_damaged_record_is_kept_aside_and_every_other_one_is_stored(
    new_bench: NewBench, kind: str, clamp: int
) -> None:
    bench = new_bench(page_clamp=clamp)
    bench.control("poison", table="tickets", kinds=[kind], at="2026-02-10T10:00:00Z")
    after = bench.control("create", table="tickets", count=5, at="2026-02-11T10:00:00Z")["ids"]
    with pytest.raises(DataError, match=WINDOWED_POISON[kind]) as caught:
        bench.extract("tickets", token="t")
    error = caught.value
    assert (error.where.tenant, error.where.service, error.where.table) == (
        TENANT,
        SERVICE,
        "tickets",
    )
    assert "2026-02" in str(error.where.window)
    files = list((bench.home / "lake" / TENANT / "raw" / SERVICE / "tickets").glob("rejected/**/*"))
    (file,) = [path for path in files if path.is_file()]
    assert file.name in str(error)
    (record,) = json.loads(file.read_text())["records"]
    assert WINDOWED_POISON[kind] in record["reason"]
    assert len(held(bench, "tickets")) == 165 and set(map(str, after)) <= held(bench, "tickets")
    with pytest.raises(DataError):
        bench.extract("tickets", token="t")


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("table", ["tickets", "companies"])
def test_an_odd_record_is_stored_as_it_is(bench: Bench, kind: str, table: str) -> None:
    made = bench.control("poison", table=table, kinds=[kind], at="2026-02-10T10:00:00Z")["ids"]
    bench.extract(table)
    record_id = str(made[kind])
    (row,) = [row for row in bench.raw(table) if row["record_id"] == record_id]
    assert row["payload"].encode() in bench.versions(table)[record_id]


def test_records_without_ids_filling_a_page_stop_the_window_by_name(new_bench: NewBench) -> None:
    bench = new_bench(page_clamp=3)
    for _ in range(4):
        bench.control("poison", table="tickets", kinds=["no_id"], at="2026-02-10T10:00:00Z")
    bench.control("create", table="tickets", count=2, at="2026-02-11T10:00:00Z")
    with pytest.raises(DataError, match="none with a usable id") as caught:
        bench.extract("tickets")
    assert "2026-02" in str(caught.value.where.window)
    assert bench.raw("tickets"), "the other windows are stored"
