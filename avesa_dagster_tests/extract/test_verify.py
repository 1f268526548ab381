"""Verification: it names every window in which the lake lacks what the source shows, and no other.

AVESA_VERIFY_SCRIPTS says how many random scripts (default 8).
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.errors import ConfigurationError, FatalError, RetriableError, StoreError
from avesa_dagster.extract.believed import Believed
from avesa_dagster.extract.comparison import FEW_DAYS, Bad, Limits
from avesa_dagster.extract.held import Held
from avesa_dagster.extract.request import Mode
from avesa_dagster.extract.verifier import OLDEST, Verifier
from avesa_dagster.extract.verify import Verified, joined, verify
from avesa_dagster.lake import layout
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sources.base import Record, Source, Span, Window

from .support import SERVICE, TENANT, Bench, assert_equals_truth, open_bench

NewBench = Callable[..., Bench]
SCRIPTS = int(os.environ.get("AVESA_VERIFY_SCRIPTS", "8"))
SMALL = Limits(count_rows=40, list_rows=15)
SECOND = timedelta(seconds=1)
Version = tuple[str, datetime]


# What the tests do to a lake, and what they know of it


def check(bench: Bench, table: str, **options: Any) -> Verified:
    verifier = Verifier(bench.installation.extractor)
    return verifier.verify(verifier.connection(TENANT, SERVICE), table, **options)


def promised(bench: Bench, table: str) -> datetime:
    verifier = Verifier(bench.installation.extractor)
    return verifier.promise(verifier.connection(TENANT, SERVICE), table).until


def raw_files(bench: Bench, table: str) -> list[Path]:
    folder = bench.home / "lake" / TENANT / "raw" / SERVICE / table
    return sorted(folder.glob("dt=*/*.parquet"))


def lose(bench: Bench, table: str, gone: Callable[[dict[str, Any]], bool]) -> list[Version]:
    """Takes observations out of the raw objects, as a broken disk would; returns what went."""
    lost = []
    for path in raw_files(bench, table):
        rows: pa.Table = pq.ParquetFile(path).read()
        keep = []
        for row in rows.drop_columns("payload").to_pylist():
            keep.append(not gone(row))
            if not keep[-1]:
                lost.append((row["record_id"], row["updated_at"]))
        if not all(keep):
            pq.write_table(rows.filter(pa.array(keep)), path)
    return lost


def lose_records(bench: Bench, table: str, ids: Iterable[object]) -> list[Version]:
    wanted = set(map(str, ids))
    return lose(bench, table, lambda row: row["record_id"] in wanted)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def present(bench: Bench, table: str) -> dict[str, datetime]:
    """The records that lists show now, with their change times."""
    return {
        record_id: moment(record["updated_at"])
        for record_id, record in bench.current(table).items()
        if not record["deleted"] and not record["restricted"] and record["visible"]
    }


def lost(bench: Bench, table: str, until: datetime) -> set[Version]:
    """The source's present, as far as it is promised, less what the lake holds."""
    alive: dict[Version, datetime] = {}
    gone: dict[str, datetime] = {}
    for row in bench.raw(table):
        key, seen = (row["record_id"], row["updated_at"]), row["observed_at"]
        if row["is_deleted"]:
            gone[key[0]] = max(seen, gone.get(key[0], seen))
        else:
            alive[key] = max(seen, alive.get(key, seen))
    held = {key for key, seen in alive.items() if key[0] not in gone or seen > gone[key[0]]}
    there = {(i, at) for i, at in present(bench, table).items() if at < until}
    return there - held


def assert_names(bad: Iterable[Bad], lost: set[Version]) -> None:
    """The bad windows hold every loss, and begin and end with one."""
    named = list(bad)
    for window, versions in ((b.window, b.missing) for b in named):
        here = {at for _, at in lost if at in window}
        assert window.start in here and window.end - SECOND in here, (window, lost)
        assert versions == sum(at in window for _, at in lost)
        assert (
            window.end - window.start <= timedelta(days=1)
            or len({a.date() for a in here}) > FEW_DAYS
        )
    assert_holds(named, lost)
    for one, other in itertools.combinations(named, 2):
        assert one.window.end <= other.window.start or other.window.end <= one.window.start


def assert_holds(bad: Iterable[Bad], lost: set[Version]) -> None:
    windows = [b.window for b in bad]
    assert all(any(at in window for window in windows) for _, at in lost), (windows, lost)


def fetched(bench: Bench, *tables: str) -> Bench:
    for table in tables or ("tickets",):
        bench.extract(table)
    bench.control("stats_reset")
    return bench


# A lake that is well


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("table", ["tickets", "companies"])
def test_a_good_lake_agrees(bench: Bench, table: str, keys: bool) -> None:
    verified = check(fetched(bench, table), table, keys=keys)
    assert verified.agrees and verified.bad == () == verified.unsure
    assert (verified.moved_on, verified.deleted_unseen, verified.undecided) == (0, 0, 0)
    assert verified.requests == len(bench.log())
    (window,) = verified.compared
    assert window.end == promised(bench, table).replace(microsecond=0)
    assert window.start == (OLDEST if table == "companies" else bench.partitions()[0].start)


def test_a_good_lake_costs_a_count_for_each_so_many_records(new_bench: NewBench) -> None:
    bench = fetched(new_bench(tickets=400), "tickets")
    check(bench, "tickets", limits=Limits(count_rows=100))
    asked = [entry["kind"] for entry in bench.log()]
    assert 4 <= asked.count("count") <= 6
    assert asked.count("list") == 1, "what changed since"


@pytest.mark.parametrize(("limits", "keys"), [(Limits(), True), (SMALL, False)])
def test_records_that_change_go_and_come_meanwhile_raise_no_alarm(
    bench: Bench, limits: Limits, keys: bool
) -> None:
    fetched(bench)
    for step in (1, 4_000):
        bench.advance(step)
        for change in ("mutate", "delete", "create"):
            bench.control(change, table="tickets", count=4)
        bench.control(
            "hostility",
            mutate_per_request=2,
            delete_per_request=1,
            create_per_request=1,
            page_clamp=7,
        )
        verified = check(bench, "tickets", keys=keys, limits=limits)
        bench.control("hostility")
        assert verified.bad == () == verified.unsure and verified.complete
    assert verified.deleted_unseen and set(verified.deleted_ids) <= set(bench.current("tickets"))


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_row", "rows": 3},
        {"kind": "short_page", "rows": 1},
        {"kind": "short_page"},
        {"kind": "empty_page"},
        {"kind": "repeat_page"},
        {"kind": "duplicate_row"},
        {"kind": "filter_ignored"},
        {"kind": "filter_ignored", "ignore": "all"},
        {"kind": "status", "status": 503, "on": ["list", "count", "get"]},
        {"kind": "cut_body", "framing": "close", "on": ["list", "count", "get"]},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_a_service_that_lists_badly_raises_no_alarm(bench: Bench, fault: dict[str, Any]) -> None:
    fetched(bench)
    bench.control("mutate", table="tickets", count=5)
    bench.control("delete", table="tickets", count=3)
    bench.control(
        "hostility",
        faults=[fault | {"probability": 0.3}],
        max_consecutive=2,
        page_clamp=10,
        shuffle_ties=True,
        mutate_per_request=1,
    )
    verified = check(bench, "tickets", keys=True, limits=Limits(list_rows=40))
    assert verified.bad == () and verified.undecided == 0
    assert verified.complete or isinstance(verified.error, RetriableError)


@pytest.mark.parametrize("fault", [{"kind": "drop_row"}, {"kind": "empty_page"}])
def test_a_service_that_never_lists_what_it_counts_leaves_the_window_unsure(
    bench: Bench, fault: dict[str, Any]
) -> None:
    fetched(bench)
    lose_records(bench, "tickets", list(present(bench, "tickets"))[:1])
    bench.control("hostility", faults=[fault | {"probability": 1.0}])
    verified = check(bench, "tickets", limits=SMALL)
    assert verified.unsure and not verified.agrees and verified.complete
    assert "counts" in verified.unsure[0].reason
    compared = sum((w.end - w.start for w in verified.compared), timedelta())
    unsure = sum((u.window.end - u.window.start for u in verified.unsure), timedelta())
    assert compared + unsure == verified.asked.end - verified.asked.start


def test_changes_that_show_up_late_but_in_time_raise_no_alarm(bench: Bench) -> None:
    fetched(bench)
    bench.control("hostility", late_seconds=200)
    bench.control("mutate", table="tickets", count=20)
    for step in (70, 70, 70, 400):
        bench.advance(step)
        bench.extract("tickets", Mode.SYNC)
        assert check(bench, "tickets", keys=True, limits=SMALL).agrees


@pytest.mark.parametrize("kind", ["no_info", "no_last_updated", "null_last_updated"])
def test_master_data_without_a_change_time_raises_no_alarm(bench: Bench, kind: str) -> None:
    bench.control("poison", table="companies", kinds=[kind], at="2026-02-10T10:00:00Z")
    fetched(bench, "companies")
    for keys in (False, True):
        assert check(bench, "companies", keys=keys, limits=SMALL).agrees


# Losses


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("limits", [Limits(), SMALL])
def test_a_lost_object_is_named_by_its_windows(bench: Bench, limits: Limits, keys: bool) -> None:
    fetched(bench)
    february = [path for path in raw_files(bench, "tickets") if path.parent.name.endswith("02-01")]
    for path in february:
        path.unlink()
    gone = lost(bench, "tickets", promised(bench, "tickets"))
    assert gone
    verified = check(bench, "tickets", keys=keys, limits=limits)
    assert_names(verified.bad, gone)
    assert sum(bad.missing for bad in verified.bad) == len(gone)
    assert all(b.source_count >= b.missing and b.lake_count < b.source_count for b in verified.bad)
    assert all(set(b.ids) <= {i for i, _ in gone} for b in verified.bad)
    assert not verified.agrees and verified.complete


def test_three_lost_rows_are_three_narrow_windows(new_bench: NewBench) -> None:
    bench = fetched(new_bench(tickets=400), "tickets")
    by_time = sorted(present(bench, "tickets").items(), key=lambda item: item[1])
    chosen = [by_time[n] for n in (20, 150, 300)]
    lose_records(bench, "tickets", [record_id for record_id, _ in chosen])
    verified = check(bench, "tickets", limits=SMALL)
    assert [b.window for b in verified.bad] == [
        Window(at, at + SECOND) for _, at in reversed(chosen)
    ]
    assert [b.ids for b in verified.bad] == [(record_id,) for record_id, _ in reversed(chosen)]
    assert {b.reason for b in verified.bad} == {"the lake lacks these versions"}


def test_everything_lost_is_named_without_a_request_for_each_record(bench: Bench) -> None:
    fetched(bench)
    for path in raw_files(bench, "tickets"):
        path.unlink()
    bench.control("stats_reset")
    verified = check(bench, "tickets")
    assert_names(verified.bad, lost(bench, "tickets", promised(bench, "tickets")))
    assert len(verified.bad) == 1 and verified.requests < 40


def test_what_was_fetched_again_is_no_loss_any_more(bench: Bench) -> None:
    fetched(bench)
    lose(bench, "tickets", lambda row: int(row["record_id"]) % 7 == 0)
    bad = check(bench, "tickets").bad
    assert bad
    parts = tuple(
        p for p in bench.partitions() if any(p.start < b.window.end > p.start for b in bad)
    )
    bench.extract("tickets", partitions=parts)
    assert check(bench, "tickets", keys=True).agrees
    assert_equals_truth(bench, "tickets")


def test_a_loss_and_a_deletion_hide_each_other_from_counts_and_not_from_keys(
    bench: Bench,
) -> None:
    fetched(bench)
    one, other, *_ = present(bench, "tickets")
    lose_records(bench, "tickets", [one])
    bench.control("delete", table="tickets", ids=[int(other)])
    counted = check(bench, "tickets")
    assert counted.bad == (), "so say the counts of one wide window"
    verified = check(bench, "tickets", keys=True)
    assert [b.ids for b in verified.bad] == [(one,)]
    assert (verified.deleted_unseen, verified.deleted_ids) == (1, (other,))


def test_a_lost_version_of_a_record_that_is_held_as_it_was_before_is_named(bench: Bench) -> None:
    """The set of ids is the same, and so are the counts."""
    fetched(bench)
    record_id = int(next(iter(present(bench, "tickets"))))
    bench.control("mutate", table="tickets", ids=[record_id], at="2026-03-17T10:00:00Z")
    bench.extract("tickets")
    bench.control("mutate", table="tickets", ids=[record_id], at="2026-03-17T10:00:07Z")
    assert check(bench, "tickets").bad == (), "so say the counts"
    (bad,) = check(bench, "tickets", keys=True).bad
    assert bad.window.start == moment("2026-03-17T10:00:07Z")
    assert bad.window.end - bad.window.start == SECOND
    assert (bad.source_count, bad.lake_count, bad.ids) == (1, 0, (str(record_id),))


@pytest.mark.parametrize("keys", [False, True])
def test_a_record_that_is_back_and_held_as_deleted_is_named(bench: Bench, keys: bool) -> None:
    fetched(bench)
    gone = bench.control("delete", table="tickets", count=2)["ids"]
    bench.extract("tickets", Mode.FULL)
    assert check(bench, "tickets", keys=keys).agrees
    bench.control("undelete", table="tickets")
    verified = check(bench, "tickets", keys=keys, limits=SMALL)
    assert_names(verified.bad, lost(bench, "tickets", promised(bench, "tickets")))
    assert {i for b in verified.bad for i in b.ids} == set(map(str, gone))
    assert {b.reason for b in verified.bad} == {"the lake holds these records as deleted"}
    bench.extract("tickets")
    assert check(bench, "tickets", keys=True).agrees


def test_a_record_that_moved_to_where_the_lake_lacks_it_is_named_there(bench: Bench) -> None:
    """Only the window that it left is looked at."""
    fetched(bench)
    parts = bench.partitions()
    january, march = parts[-3], parts[-1]
    one, other = [
        i for i, at in present(bench, "tickets").items() if january.start <= at < january.end
    ][:2]
    there = march.start + timedelta(days=3)
    bench.control("mutate", table="tickets", ids=[int(one), int(other)], at=there.isoformat())
    verified = check(bench, "tickets", start=january.start, end=january.end)
    assert [b.window for b in verified.bad] == [Window(there, there + SECOND)]
    assert verified.bad[0].ids == tuple(sorted([one, other])) and verified.bad[0].missing == 2
    bench.extract("tickets", partitions=(march,))
    verified = check(bench, "tickets", start=january.start, end=january.end)
    assert verified.agrees


def test_old_master_data_is_compared_and_fetched_with_the_first_partition(bench: Bench) -> None:
    fetched(bench, "companies")
    first = bench.partitions()[0].start
    old = [i for i, at in present(bench, "companies").items() if at < first]
    assert old
    lose_records(bench, "companies", old[:1])
    verified = check(bench, "companies")
    (bad,) = verified.bad
    assert bad.window.end <= first and bad.ids == (old[0],)
    verifier = Verifier(bench.installation.extractor)
    connection = verifier.connection(TENANT, SERVICE)
    assert verifier.to_fetch(connection, verified) == [Window(first, first + SECOND)]


@pytest.mark.parametrize("kind", ["no_id", "text_id", "last_updated_garbage"])
def test_a_record_that_cannot_be_taken_is_named_with_the_reason(bench: Bench, kind: str) -> None:
    fetched(bench)
    bench.control("poison", table="tickets", kinds=[kind], at="2026-02-10T10:00:00Z")
    verified = check(bench, "tickets")
    (bad,) = verified.bad
    assert moment("2026-02-10T10:00:00Z") in bad.window
    assert bad.window.end - bad.window.start <= timedelta(days=1)
    assert "1 record(s) cannot be taken" in bad.reason and bad.missing == 1


def test_a_late_record_without_a_change_time_in_lists_is_named_within_a_day(bench: Bench) -> None:
    fetched(bench)
    kinds = {"kinds": ["no_last_updated"], "at": "2026-02-10T10:00:00Z"}
    made = bench.control("poison", table="tickets", **kinds)["ids"]
    (bad,) = check(bench, "tickets").bad
    assert moment("2026-02-10T10:00:00Z") in bad.window
    assert bad.window.end - bad.window.start <= timedelta(days=1)
    assert bad.ids == (str(made["no_last_updated"]),)


def test_what_is_stored_while_it_is_compared_is_no_loss(bench: Bench) -> None:
    fetched(bench)
    lose_records(bench, "tickets", list(present(bench, "tickets"))[:5])
    verified = check_beside(bench, lambda window: True, lambda: bench.extract("tickets"))
    assert verified.agrees


def test_what_moves_on_between_two_looks_is_no_loss(bench: Bench) -> None:
    fetched(bench)
    (record_id, *_) = present(bench, "tickets")
    lose_records(bench, "tickets", [record_id])
    verified = check_beside(
        bench,
        lambda window: window.end - window.start <= timedelta(days=1),
        lambda: bench.control("mutate", table="tickets", ids=[int(record_id)]),
    )
    assert verified.bad == ()


@dataclass
class Beside:
    """A source; before the first count of such a window something happens."""

    source: Source
    when: Callable[[Window], bool]
    happens: Callable[[], object] | None

    def count(self, table: str, span: Span) -> int:
        assert span.window is not None
        if self.happens and self.when(span.window):
            happens, self.happens = self.happens, None
            happens()
        return self.source.count(table, span)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def check_beside(
    bench: Bench, when: Callable[[Window], bool], happens: Callable[[], object]
) -> Verified:
    verifier = Verifier(bench.installation.extractor)
    connection = verifier.connection(TENANT, SERVICE)
    promise = verifier.promise(connection, "tickets")
    source = bench.installation.open_source(connection, False, lambda: False)()
    beside = Beside(source, when, happens)
    verified = verify(
        beside,
        bench.installation.objects,
        tenant=TENANT,
        service=SERVICE,
        table="tickets",
        start=connection.history_start,
        end=promise.until,
        covered=promise.covered,
        promised=promise.until,
    )
    assert beside.happens is None, "it happened"
    return verified


# What is no loss


def test_a_record_that_nobody_of_these_credentials_may_read_is_hidden(bench: Bench) -> None:
    fetched(bench)
    bench.control("hostility", restricted_share=0.1)
    hidden = [i for i, r in bench.current("tickets").items() if r["restricted"]]
    until = promised(bench, "tickets")
    due = [i for i in hidden if moment(bench.current("tickets")[i]["updated_at"]) < until]
    verified = check(bench, "tickets", limits=SMALL)
    assert verified.bad == () and verified.deleted_unseen == 0
    assert verified.hidden == len(due) > 0


def test_so_many_are_asked_for_and_the_rest_is_called_undecided(bench: Bench) -> None:
    fetched(bench)
    gone = bench.control("delete", table="tickets", count=60)["ids"]
    bench.control("stats_reset")
    verified = check(bench, "tickets", limits=Limits(looked_up=12))
    assert verified.deleted_unseen == 12 and len(verified.deleted_ids) == 10
    assert verified.deleted_unseen + verified.undecided == len(gone)
    assert [e["kind"] for e in bench.log()].count("get") == 12


def test_what_changed_since_the_promise_is_listed_and_not_asked_for_one_by_one(
    bench: Bench,
) -> None:
    fetched(bench)
    bench.advance(3_000)
    bench.control("mutate", table="tickets", count=50)
    bench.control("stats_reset")
    assert check(bench, "tickets", limits=SMALL).agrees
    assert check(bench, "tickets", limits=SMALL, keys=True).moved_on == 50
    assert not [e for e in bench.log() if "id <=" in (e["conditions"] or "")]


def test_holes_and_what_is_not_promised_are_not_compared(bench: Bench) -> None:
    parts = bench.partitions()
    bench.extract("tickets", partitions=parts[:1])
    bench.extract("tickets", partitions=parts[2:])
    bench.advance(7_200)
    bench.control("create", table="tickets", count=5)
    verified = check(bench, "tickets", keys=True)
    assert verified.agrees
    late, early = verified.compared
    assert (early.start, early.end) == (parts[0].start, parts[0].end)
    mark = bench.watermark("tickets")
    assert mark is not None and late.start == parts[2].start and late.end < mark


def test_nothing_compared_is_no_agreement(bench: Bench) -> None:
    verified = check(bench, "tickets")
    assert verified.complete and verified.compared == () and not verified.agrees
    assert verified.requests == 0


# Limits


@pytest.mark.parametrize(("most", "keys"), [(1, False), (10, True), (30, False)])
def test_a_limit_ends_it_newest_first_and_the_next_call_goes_on(
    bench: Bench, most: int, keys: bool
) -> None:
    fetched(bench)
    lose(bench, "tickets", lambda row: int(row["record_id"]) % 20 == 0)
    gone = lost(bench, "tickets", promised(bench, "tickets"))
    bad: list[Bad] = []
    compared: list[Window] = []
    end: datetime | None = None
    for _ in range(200):
        verified = check(bench, "tickets", end=end, keys=keys, max_requests=most, limits=SMALL)
        assert verified.requests <= most + 80, "what was begun is finished"
        assert end is None or verified.reached < end, "each call comes further"
        assert all(b.window.start >= verified.reached for b in verified.bad)
        bad += verified.bad
        compared += verified.compared
        end = verified.reached
        if verified.complete:
            break
    assert verified.complete and len(bad) > 3
    assert_names(bad, gone)
    (whole,) = joined(compared)
    assert whole == Window(
        bench.partitions()[0].start, promised(bench, "tickets").replace(microsecond=0)
    )


def test_whoever_is_told_to_stop_says_how_far_it_came(bench: Bench) -> None:
    fetched(bench)
    steps: list[object] = []
    verified = check(
        bench, "tickets", limits=SMALL, report=steps.append, cancelled=lambda: len(steps) >= 2
    )
    assert len(steps) == 2 and not verified.complete and verified.error is None
    assert verified.asked.start < verified.reached < verified.asked.end
    assert [w.start for w in verified.compared] == [verified.reached]


def test_a_service_that_fails_leaves_what_was_found(bench: Bench) -> None:
    fetched(bench)
    newest, at = max(present(bench, "tickets").items(), key=lambda item: item[1])
    lose_records(bench, "tickets", [newest])
    refuses = {"kind": "status", "status": 500, "on": ["count"], "at": range(8, 99)}
    bench.control("hostility", faults=[refuses | {"at": list(range(8, 99))}])
    verified = check(bench, "tickets", limits=SMALL)
    assert isinstance(verified.error, RetriableError) and not verified.complete
    assert verified.error.where.table == "tickets"
    assert [b.window for b in verified.bad] == [Window(at, at + SECOND)]
    assert verified.reached <= at


def test_a_count_that_takes_too_long_is_asked_of_halves(bench: Bench) -> None:
    fetched(bench)
    slow = {"kind": "status", "status": 504, "on": ["count"], "at": [1], "burst": 8}
    bench.control("hostility", faults=[slow])
    verified = check(bench, "tickets")
    assert verified.agrees
    assert len({e["conditions"] for e in bench.log() if e["kind"] == "count"}) == 3


def test_refused_credentials_and_an_unreadable_lake_end_it(bench: Bench) -> None:
    fetched(bench)
    bench.control("revoke")
    with pytest.raises(FatalError):
        check(bench, "tickets")
    bench.control("restore")
    raw_files(bench, "tickets")[0].write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="tenant=acme service=connectwise table=tickets"):
        check(bench, "tickets")


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("2026-03-02", "2026-03-02", "the range is empty"),
        ("2026-03-03", "2026-03-02", "the range is empty"),
        ("2025-10-31", None, "begins before the history, which begins 2025-11-01"),
        (None, "2025-11-01", "begins before the history"),
        ("2027-01-01", None, "in the future"),
    ],
)
def test_a_range_that_cannot_be_meant_is_refused(
    bench: Bench, start: str | None, end: str | None, said: str
) -> None:
    def day(text: str | None) -> datetime | None:
        return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)

    with pytest.raises(ConfigurationError, match=said):
        check(bench, "tickets", start=day(start), end=day(end))
    assert bench.control("stats")["total"] == 0


def test_unknown_tables_and_those_that_are_off_are_told_apart(bench: Bench) -> None:
    verifier = Verifier(bench.installation.extractor)
    connection = verifier.connection(TENANT, SERVICE)
    assert verifier.tables(connection) == connection.tables
    assert verifier.tables(connection, ["tickets", "tickets"]) == ("tickets",)
    with pytest.raises(ConfigurationError, match="has no table 'tikets'"):
        verifier.tables(connection, ["tikets"])
    with pytest.raises(ConfigurationError, match="'members' is off"):
        verifier.tables(connection, ["tickets", "members"])
    with pytest.raises(ConfigurationError, match="has not connected"):
        verifier.connection("globex", SERVICE)
    bench.installation.disconnect(TENANT, SERVICE)
    with pytest.raises(ConfigurationError, match="disconnected"):
        verifier.connection(TENANT, SERVICE)


# Whatever happens


@settings(max_examples=SCRIPTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_lost_and_whatever_changes_the_losses_are_named_and_nothing_else(
    simulator: Simulator, data: st.DataObject
) -> None:
    draw = data.draw
    with tempfile.TemporaryDirectory() as home:
        seed = draw(st.integers(0, 50), "seed")
        bench = open_bench(simulator, Path(home), seed=seed, tickets=60, companies=30)
        table = draw(st.sampled_from(["tickets", "companies"]), "table")
        bench.extract(table)
        for change in draw(st.lists(_CHANGES, max_size=5), "changes"):
            _happen(bench, table, change)
        share = draw(st.sampled_from([0, 3, 10, 50, 100]), "per cent lost")
        lucky = draw(st.integers(0, 99), "and which")
        lose(bench, table, lambda row: (int(row["record_id"]) * 37 + lucky) % 100 < share)
        for change in draw(st.lists(_CHANGES, max_size=3), "later changes"):
            if change[0] != "extract":
                _happen(bench, table, change)
        gone = lost(bench, table, promised(bench, table))
        limits = draw(st.sampled_from([Limits(), SMALL, Limits(7, 4)]), "limits")
        bench.control("hostility", **draw(_SCRIPTS, "script"))
        verified = check(bench, table, keys=True, limits=limits)
        by_counts = check(bench, table, limits=limits)
        bench.control("hostility")
        moved_on = gone - lost(bench, table, promised(bench, table))
        assert verified.complete and verified.error is None and not verified.unsure
        if moved_on:
            assert_holds(verified.bad, gone - moved_on)
        else:
            assert_names(verified.bad, gone)
            assert sum(b.missing for b in verified.bad) == len(gone)
        for bad in (*verified.bad, *by_counts.bad):
            assert {bad.window.start, bad.window.end - SECOND} <= {at for _, at in gone}


_SCRIPTS = st.fixed_dictionaries(
    {
        "page_clamp": st.sampled_from([3, 20, 1000]),
        "shuffle_ties": st.booleans(),
        "mutate_per_request": st.integers(0, 2),
        "delete_per_request": st.integers(0, 1),
        "create_per_request": st.integers(0, 1),
        "max_consecutive": st.just(2),
        "faults": st.lists(
            st.sampled_from(["drop_row", "short_page", "empty_page", "repeat_page", "hang_up"]).map(
                lambda kind: {"kind": kind, "probability": 0.15}
            ),
            max_size=2,
        ),
    }
)
_CHANGES = st.one_of(
    st.tuples(st.sampled_from(["mutate", "create", "delete"]), st.integers(1, 8)),
    st.tuples(st.just("undelete"), st.integers(1, 3)),
    st.tuples(st.just("backdate"), st.integers(1, 90)),
    st.tuples(st.just("wait"), st.sampled_from([30, 500, 5_000])),
    st.tuples(st.just("extract"), st.sampled_from([Mode.SYNC, Mode.FULL, Mode.BACKFILL])),
)


def _happen(bench: Bench, table: str, change: tuple[str, Any]) -> None:
    match change:
        case "wait", seconds:
            bench.advance(seconds)
        case "extract", mode:
            bench.extract(table, mode)
        case "backdate", days:
            at = (bench.clock() - timedelta(days=days)).replace(microsecond=0)
            bench.control("mutate", table=table, count=2, at=at.isoformat())
        case kind, count:
            bench.control(kind, table=table, count=count)


# What the lake believes


_OBSERVATIONS = st.lists(
    st.tuples(
        st.integers(1, 3),  # the record
        st.integers(0, 3),  # its change time
        st.integers(0, 9),  # when it was seen
        st.booleans(),  # whether it was gone then
        st.integers(0, 2),  # the object it lies in
    ),
    max_size=14,
    unique_by=lambda row: (row[0], row[2]),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=_OBSERVATIONS, at_once=st.integers(0, 3))
def test_what_holds_is_what_a_fetch_takes_for_held(
    rows: list[tuple[int, int, int, bool, int]], at_once: int
) -> None:
    """In whatever objects it lies, and whether these are there at first or appear later."""
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    with tempfile.TemporaryDirectory() as folder:
        objects = LocalObjects(Path(folder))

        def store(number: int) -> None:
            own = [row for row in rows if row[4] == number]
            key = f"{TENANT}/raw/{SERVICE}/tickets/dt=2026-01-01/c-{number}.parquet"
            columns = {
                "record_id": [str(row[0]) for row in own],
                "updated_at": [begun + row[1] * SECOND for row in own],
                "observed_at": [begun + timedelta(hours=1 + row[2]) for row in own],
                "content_hash": [f"{row[1]:032x}" for row in own],
                "is_deleted": [row[3] for row in own],
            }
            schema = pa.schema([layout.RAW_SCHEMA.field(name) for name in columns])
            with objects.create(key) as path:
                pq.write_table(pa.table(columns, schema), path)

        for number in range(at_once):
            store(number)
        believed = Believed(objects, TENANT, SERVICE, "tickets")
        for number in range(at_once, 3):
            store(number)
        assert believed.refresh() == (at_once < 3) and not believed.refresh()
        held = Held(objects, TENANT, SERVICE, "tickets")
        wide = Window(begun, begun + timedelta(days=1))
        assert believed.count(wide) == held.alive()
        assert {i for i, _ in held.missing()} == set(believed.unlisted(wide, 99)[1])
        for record, second in itertools.product(range(1, 4), range(4)):
            at = begun + second * SECOND
            candidate = pa.table(
                {
                    "record_id": [str(record)],
                    "updated_at": [at],
                    "content_hash": [f"{second:032x}"],
                },
                pa.schema(
                    [
                        layout.RAW_SCHEMA.field(n)
                        for n in ("record_id", "updated_at", "content_hash")
                    ]
                ),
            )
            known = bool(rows) and held.new(candidate).num_rows == 0
            assert believed.holds(str(record), at) == known
        believed.close()
        held.close()


def test_ids_of_a_window_come_with_their_change_times(bench: Bench) -> None:
    verifier = Verifier(bench.installation.extractor)
    connection = verifier.connection(TENANT, SERVICE)
    source = bench.installation.open_source(connection, False, lambda: False)()
    window = Window(bench.partitions()[0].start, bench.clock().replace(microsecond=0))
    page = source.page("tickets", Span(window), ids_only=True)
    truth = present(bench, "tickets")
    assert {r.record_id: r.updated_at for r in page.records}.items() <= truth.items()
    assert all(len(record.payload) < 80 for record in page.records)
    (alone, *_) = source.page("tickets", Span(), ids_only=True).records
    assert alone == Record(alone.record_id, None, b'{"id":%s}' % alone.record_id.encode())
    bench.control("hostility", faults=[{"kind": "filter_ignored", "probability": 1.0}])
    narrow = Window(window.end - timedelta(days=1), window.end)
    page = source.page("tickets", Span(narrow), ids_only=True)
    assert page.rejected and all("is outside of" in item.reason for item in page.rejected)
