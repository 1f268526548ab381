"""Master data pulled whole, and the search for deletions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from avesa_dagster.errors import AvesaError, DataError, MassDeletionSuspected
from avesa_dagster.extract.request import Mode

from .support import Bench, assert_equals_truth, distinct_versions

NewBench = Callable[..., Bench]
OLD = "2026-02-10T10:00:00Z"


def rows_of(bench: Bench, table: str, record_id: object) -> list[dict[str, Any]]:
    rows = [row for row in bench.raw(table) if row["record_id"] == str(record_id)]
    return sorted(rows, key=lambda row: row["observed_at"])


def test_each_record_lies_in_the_partition_of_its_change_and_older_ones_in_the_first(
    bench: Bench,
) -> None:
    made = bench.control("poison", table="companies", kinds=["year_0001"])["ids"]
    bench.extract("companies")
    parts = bench.partitions()
    for row in bench.raw("companies"):
        (home,) = [p for p in parts if p.key == row["dt"]]
        if row["updated_at"] < parts[0].start:
            assert home == parts[0]
        else:
            assert home.start <= row["updated_at"] < home.end
    (old,) = rows_of(bench, "companies", made["year_0001"])
    assert (old["dt"], old["updated_at"].year) == (parts[0].key, 1)


def test_a_change_in_year_9999_is_kept_aside(bench: Bench) -> None:
    bench.control("poison", table="companies", kinds=["year_9999"])
    with pytest.raises(DataError, match="is in the future") as caught:
        bench.extract("companies")
    assert "rejected/" in str(caught.value)
    assert len({row["record_id"] for row in bench.raw("companies")}) == 20


@pytest.mark.parametrize("kind", ["no_id", "null_id", "text_id"])
def test_a_newest_record_without_a_usable_id_hides_no_other_one(bench: Bench, kind: str) -> None:
    """The question for the newest id meets it."""
    bench.control("poison", table="companies", kinds=[kind], at=OLD)
    with pytest.raises(DataError, match="cannot be taken") as caught:
        bench.extract("companies")
    assert "rejected/" in str(caught.value)
    assert len({row["record_id"] for row in bench.raw("companies")}) == 20


@pytest.mark.parametrize("kind", ["no_info", "no_last_updated", "null_last_updated"])
def test_a_record_without_a_change_time_is_stored_once_and_again_when_it_changes(
    bench: Bench, kind: str
) -> None:
    made = bench.control("poison", table="companies", kinds=[kind], at=OLD)["ids"][kind]
    for mode in (Mode.BACKFILL, Mode.FULL, Mode.FULL, Mode.BACKFILL):
        bench.advance(60)
        bench.extract("companies", mode)
    (only,) = rows_of(bench, "companies", made)
    assert only["updated_at"] == only["observed_at"]


def test_a_second_full_pull_stores_nothing(bench: Bench) -> None:
    for table in ("companies", "contacts"):
        bench.extract(table)
        before = bench.raw(table)
        bench.extract(table, Mode.FULL)
        bench.extract(table)
        assert bench.raw(table) == before


def test_a_second_fetch_of_windows_stores_nothing(bench: Bench) -> None:
    bench.extract("tickets")
    before = bench.raw("tickets")
    bench.extract("tickets")
    bench.extract("tickets", Mode.SYNC)
    bench.extract("tickets", Mode.FULL)
    assert bench.raw("tickets") == before


@pytest.mark.parametrize("table", ["companies", "tickets"])
def test_a_change_that_states_no_new_time_is_stored(bench: Bench, table: str) -> None:
    bench.extract(table)
    record_id, record = next(iter(bench.current(table).items()))
    bench.control("mutate", table=table, ids=[int(record_id)], at=record["updated_at"])
    bench.extract(table)
    first, second = rows_of(bench, table, record_id)
    assert first["updated_at"] == second["updated_at"]
    assert first["content_hash"] != second["content_hash"]
    assert_equals_truth(bench, table)


@pytest.mark.parametrize("table", ["companies", "tickets"])
def test_a_deletion_is_found_confirmed_and_closes_the_record(bench: Bench, table: str) -> None:
    bench.extract(table)
    gone = bench.control("delete", table=table, count=3)["ids"]
    bench.control("stats_reset")
    extracted = bench.extract(table, Mode.FULL)
    assert extracted.deleted == 3
    asked = {e["path"].rsplit("/", 1)[1] for e in bench.log() if e["kind"] == "get"}
    assert asked == set(map(str, gone)), "each is confirmed, and no other one asked for"
    for record_id in gone:
        *_, last = rows_of(bench, table, record_id)
        assert last["is_deleted"] and last["payload"] is None
        assert abs((last["updated_at"] - bench.clock()).total_seconds()) < 30
    assert_equals_truth(bench, table)
    assert bench.extract(table, Mode.FULL).deleted == 0


@pytest.mark.parametrize("table", ["companies", "tickets"])
def test_a_record_that_comes_back_is_opened_again(bench: Bench, table: str) -> None:
    bench.extract(table)
    (gone,) = bench.control("delete", table=table, count=1)["ids"]
    bench.extract(table, Mode.FULL)
    bench.advance(60)
    bench.control("undelete", table=table, ids=[gone])
    bench.extract(table)
    rows = rows_of(bench, table, gone)
    assert [row["is_deleted"] for row in rows] == [False, True, False]
    assert rows[0]["payload"] == rows[2]["payload"]
    assert rows[2]["observed_at"] > rows[1]["observed_at"]


@pytest.mark.parametrize("table", ["companies", "tickets"])
def test_a_lost_permission_closes_nothing(new_bench: NewBench, table: str) -> None:
    bench = new_bench(max_deleted_share=0.1, companies=80)
    bench.extract(table)
    before = bench.raw(table)
    bench.control("hostility", restricted_share=0.4, page_clamp=20)
    with pytest.raises(MassDeletionSuspected, match="nothing was closed") as caught:
        bench.extract(table, Mode.FULL)
    assert caught.value.where.table == table and caught.value.where.window
    assert bench.raw(table) == before
    bench.control("hostility")
    assert bench.extract(table, Mode.FULL).deleted == 0


@pytest.mark.parametrize("table", ["companies", "tickets"])
def test_hidden_records_are_counted_and_not_deleted(bench: Bench, table: str) -> None:
    bench.extract(table)
    before = bench.raw(table)
    bench.control("hostility", restricted_share=0.1, page_clamp=20)
    hidden = sum(record["restricted"] for record in bench.current(table).values())
    extracted = bench.extract(table, Mode.FULL)
    assert (extracted.deleted, extracted.hidden) == (0, hidden)
    assert bench.raw(table) == before


def test_an_empty_list_deletes_nothing(new_bench: NewBench) -> None:
    """All pages empty and all counts zero: what a service without its database may say."""
    bench = new_bench(max_deleted_share=0.1)
    bench.extract("companies")
    bench.control("hostility", restricted_share=1.0)
    with pytest.raises(MassDeletionSuspected):
        bench.extract("companies", Mode.FULL)


def test_a_page_that_lacks_a_row_deletes_nothing(bench: Bench) -> None:
    for table in ("companies", "tickets"):
        bench.extract(table)
        for fault in ("drop_row", "empty_page", "short_page"):
            for ordinal in range(1, 8):
                script = [{"kind": fault, "at": [ordinal]}]
                bench.control("hostility", faults=script, page_clamp=5)
                assert bench.extract(table, Mode.FULL).deleted == 0


def test_records_made_and_removed_during_a_sweep_confuse_it_not(bench: Bench) -> None:
    for table in ("companies", "tickets"):
        bench.extract(table)
        script = {"create_per_request": 1, "mutate_per_request": 2, "delete_per_request": 1}
        bench.control("hostility", page_clamp=5, **script)
        for _ in range(3):
            try:
                bench.extract(table, Mode.FULL)
            except AvesaError as error:
                assert error.where.table == table
        bench.control("hostility")
        bench.advance(400)
        bench.extract(table, Mode.FULL)
        assert_equals_truth(bench, table)


def test_a_record_that_shows_up_late_in_a_pull_pushes_no_other_one_out(
    new_bench: NewBench,
) -> None:
    for late in (0.002, 0.01, 0.03):
        bench = new_bench(companies=60, page_clamp=5)
        script = {"create_per_request": 1, "late_seconds": late, "late_share": 0.5}
        bench.control("hostility", page_clamp=5, **script)
        there = {i for i, r in bench.current("companies").items() if r["visible"]}
        bench.extract("companies")
        bench.control("hostility")
        assert there <= {row["record_id"] for row in bench.raw("companies")}


def test_full_pulls_and_syncs_in_any_order_hold_each_version_once(bench: Bench) -> None:
    for mode in (Mode.SYNC, Mode.FULL, Mode.BACKFILL, Mode.SYNC, Mode.FULL):
        bench.control("mutate", table="companies", count=3)
        bench.advance(400)
        bench.extract("companies", mode)
    bench.extract("companies", Mode.FULL)
    rows = bench.raw("companies")
    assert len(rows) == len(distinct_versions(rows))
    assert_equals_truth(bench, "companies")


def test_the_first_pull_is_of_everything_whatever_the_partitions_say(
    new_bench: NewBench,
) -> None:
    bench = new_bench(now=datetime(2026, 3, 1, 0, 0, 30, tzinfo=UTC))  # less than the lag
    bench.extract("companies")
    assert_equals_truth(bench, "companies")
