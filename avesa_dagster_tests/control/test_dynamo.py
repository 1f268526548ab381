"""What only DynamoDB can do wrong: lost answers, pages, stale reads, items that others wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster import aws as aws_module
from avesa_dagster import settings
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.dynamo import DynamoControl
from avesa_dagster.control.dynamo_database import DynamoDatabase, Put, Row, to_text
from avesa_dagster.control.dynamo_ledger import DynamoLedger
from avesa_dagster.control.dynamo_tables import (
    CHUNK_PROGRESS,
    HEALTH,
    LAST_UPDATED,
    TABLES,
    TENANT_SERVICES,
    create_arguments,
    recovery_arguments,
)
from avesa_dagster.errors import ConfigurationError, RetriableError, StoreError
from avesa_dagster_tests.lossy import Lossy
from avesa_dagster_tests.moto import Moto

from .conftest import Control, day, environment_of, open_dynamodb, open_sqlite


@pytest.fixture
def control(lossy: Lossy, tmp_path: Path) -> DynamoControl:
    return opened(tmp_path)


def opened(folder: Path) -> DynamoControl:
    control = open_dynamodb(folder)
    assert isinstance(control, DynamoControl)
    return control


def chunk(number: int = 0, token: str = "run") -> Chunk:
    return Chunk(
        token, "acme", "connectwise", "t", f"c{number:05}", "2026-01-01", "window", day(number),
        day(number + 1),
    )  # fmt: skip


def rows(control: Control, token: str = "run") -> list[Chunk]:
    return control.ledger.rows(token, "acme", "connectwise", "t")


def connect(control: Control, tenant: str = "acme", at: int = 1) -> int:
    return control.registry.connect(
        tenant, "connectwise", history_start=day(0), tables=["t"], requests_per_minute=None,
        now=day(at),
    ).number  # fmt: skip


def progress(control: Control, one: Chunk, *objects: str) -> Chunk:
    return control.ledger.progress(
        one, cursor="5", rows=1, stored=1, requests=1, objects=objects, now=day(1)
    )


# Tables.


def test_moto_makes_the_tables_as_they_are_described(aws: Moto, tmp_path: Path) -> None:
    opened(tmp_path)
    client = aws_module.client("dynamodb")
    for table in TABLES:
        name = environment_of(tmp_path).table(table.name)
        arguments = create_arguments(table, name)
        told = client.describe_table(TableName=name)["Table"]
        assert told["KeySchema"] == arguments["KeySchema"]
        assert told["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        assert told["DeletionProtectionEnabled"] is table.protected
        for kind in ("LocalSecondaryIndexes", "GlobalSecondaryIndexes"):
            made = {i["IndexName"]: (i["KeySchema"], i["Projection"]) for i in told.get(kind, ())}
            wanted = arguments.get(kind, ())
            assert made == {i["IndexName"]: (i["KeySchema"], i["Projection"]) for i in wanted}
        client.update_continuous_backups(**recovery_arguments(name))


def test_nothing_is_called_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_module, "client", lambda name: pytest.fail("called"))
    DynamoControl(settings.Aws("dev", "bucket")).close()


def test_a_missing_table_is_named_with_what_to_do(aws: Moto) -> None:
    control = DynamoControl(settings.Aws("nowhere", "bucket"))
    for call in (
        lambda: control.registry.all(),
        lambda: control.registry.get("a", "b"),
        lambda: connect(control),
    ):
        with pytest.raises(ConfigurationError, match=r"TenantServices-nowhere.*avesa bootstrap"):
            call()
    with pytest.raises(ConfigurationError, match=r"LastUpdated-nowhere.*avesa bootstrap"):
        advance(control)
    with pytest.raises(ConfigurationError, match=r"ChunkProgress-nowhere.*avesa bootstrap"):
        control.ledger.plan([chunk()], now=day(0))


# Moments and values.


@given(
    moments=st.lists(
        st.datetimes(
            datetime(1, 1, 2), datetime(9999, 12, 30),
            timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=30))]),
        ),
        min_size=2,
    )
)  # fmt: skip
def test_texts_of_moments_sort_as_time_does_and_come_back(moments: list[datetime]) -> None:
    assert sorted(map(to_text, moments)) == [to_text(moment) for moment in sorted(moments)]
    for moment in moments:
        back = Row("t", ("k",), {"at": to_text(moment)}).moment("at")
        assert (back, back.utcoffset()) == (moment, timedelta(0))


def test_a_moment_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no time zone"):
        to_text(datetime(2026, 1, 1))
    with pytest.raises(ConfigurationError, match="lies outside"):
        to_text(datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))))


def test_a_float_is_never_stored(control: DynamoControl) -> None:
    with pytest.raises(TypeError, match="float"):
        control.database.insert(HEALTH, {"scope": "a", "item": "b", "value": 0.1})


# Lost answers.


def advance(control: Control, lower: int = 0, upper: int = 5) -> object:
    return control.watermarks.advance(
        "acme", "connectwise", "t", lower=day(lower), upper=day(upper), now=day(upper)
    )


HALVES = [replace(chunk(), chunk_id=f"half{n}", start=day(n / 2)) for n in (1, 0)]

WRITES: dict[str, Callable[[Control], object]] = {
    "connect": lambda control: connect(control, "globex", 8),
    "reconnect": lambda control: control.registry.connect(
        "acme", "connectwise", history_start=day(-5), tables=[], requests_per_minute=1, now=day(9)
    ),
    "disconnect": lambda control: control.registry.disconnect("acme", "connectwise", now=day(9)),
    "forget a connection": lambda control: control.registry.forget("gone"),
    "first advance": lambda control: control.watermarks.advance(
        "acme", "connectwise", "new", lower=day(0), upper=day(5), now=day(5)
    ),
    "advance": lambda control: advance(control, 3, 9),
    "forget watermarks": lambda control: control.watermarks.forget("acme"),
    "plan": lambda control: control.ledger.plan([chunk(1), chunk(7), chunk(8)], now=day(9)),
    "plan many": lambda control: control.ledger.plan([chunk(n) for n in range(104)], now=day(9)),
    "split": lambda control: control.ledger.split(chunk(), HALVES, now=day(9)),
    "begin": lambda control: control.ledger.begin(chunk(1), now=day(9)),
    "restart": lambda control: control.ledger.restart(chunk(1), now=day(9)),
    "progress": lambda control: progress(control, chunk(1), "c", "d"),
    "progress without objects": lambda control: progress(control, chunk(1)),
    "complete": lambda control: control.ledger.complete(
        chunk(1), source_count=3, requests=2, now=day(9)
    ),
    "fail": lambda control: control.ledger.fail(chunk(1), error="e", requests=2, now=day(9)),
    "release": lambda control: control.ledger.release(chunk(1), requests=2),
    "forget chunks": lambda control: control.ledger.forget("acme"),
}


def prepared(control: Control) -> Control:
    connect(control)
    connect(control, "gone")
    control.registry.disconnect("gone", "connectwise", now=day(2))
    advance(control)
    control.ledger.plan([chunk(0), chunk(1)], now=day(0))
    control.ledger.begin(chunk(1), now=day(1))
    progress(control, chunk(1), "a", "b")
    return control


def everything(control: Control) -> list[object]:
    return [
        control.registry.all(),
        [control.watermarks.get("acme", "connectwise", table) for table in ("t", "new")],
        rows(control),
        control.ledger.covered("acme"),
        control.ledger.objects("acme", "connectwise", "t", "2026-01-01"),
        control.ledger.resting("acme", "connectwise", "t", before=day(100)),
    ]


@pytest.mark.parametrize(
    ("name", "misreport"),
    [*((name, False) for name in WRITES), *((n, True) for n in ("advance", "split", "progress"))],
)
def test_a_write_whose_answer_is_lost_counts_once(
    lossy: Lossy, tmp_path: Path, name: str, misreport: bool
) -> None:
    """SQLite, which loses no answer, says what is right."""
    calm, struck = prepared(open_sqlite(tmp_path)), prepared(opened(tmp_path))
    assert everything(calm) == everything(struck)
    expected = WRITES[name](calm)
    lossy.faults.misreport = misreport
    lossy.faults.drop = 2  # of each write the first answer, and not that of the second try
    lossy.faults.drop_next = 1
    found = WRITES[name](struck)
    lossy.faults.drop = lossy.faults.drop_next = 0
    assert lossy.lost > 0
    assert found == expected
    assert everything(struck) == everything(calm)


def test_threads_count_every_progress_once_while_answers_are_lost(
    lossy: Lossy, control: DynamoControl
) -> None:
    control.ledger.plan([chunk()], now=day(0))
    lossy.faults.drop = 9
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: progress(control, chunk(), f"o{n}"), range(24)))
    assert lossy.lost >= 3
    (found,) = rows(control)
    assert (found.rows, found.requests) == (24, 24)
    assert sorted(found.objects) == sorted(f"o{n}" for n in range(24))


def test_another_write_between_the_lost_answer_and_the_second_try_is_no_matter(
    lossy: Lossy, control: DynamoControl, tmp_path: Path
) -> None:
    """The item has another's revision by then, and still remembers the one of the lost answer."""
    control.ledger.plan([chunk()], now=day(0))
    puts = 0
    lock = threading.Lock()

    def second_put(call: Any) -> bool:
        nonlocal puts
        if call.operation not in ("PutItem", "TransactWriteItems"):
            return False
        with lock:
            puts += 1
            mine = puts
        if mine == 2:  # the second try of the first write: before it, another writes
            opened(tmp_path).ledger.release(chunk(), requests=7)
        return mine == 1

    lossy.faults.only = second_put
    lossy.faults.drop_next = 1
    control.ledger.complete(chunk(), source_count=0, requests=2, now=day(1))
    lossy.faults.only = None
    assert lossy.lost == 1
    (found,) = rows(control)
    assert (found.state, found.requests) == (ChunkState.COMPLETED, 9)


# Busy, stale, in part.


@pytest.mark.parametrize("refusal", ["throttled", "500", "503"])
def test_refusals_are_tried_again_and_in_the_end_told(
    lossy: Lossy, control: DynamoControl, refusal: str
) -> None:
    lossy.faults.refusal, lossy.faults.refuse = refusal, 3
    control.ledger.plan([chunk(n) for n in range(3)], now=day(0))
    for number in range(3):
        progress(control, chunk(number), "x")
    assert [one.rows for one in rows(control)] == [1, 1, 1]
    lossy.faults.refuse = 1
    with pytest.raises(RetriableError, match=r"ChunkProgress-.*run it again"):
        rows(control)


def test_reads_that_decide_are_never_stale(lossy: Lossy, control: DynamoControl) -> None:
    lossy.faults.stale = True
    control.ledger.plan([chunk()], now=day(0))
    seen = []
    for number in range(3):
        begun = control.ledger.begin(chunk(), now=day(number))
        progress(control, chunk(), f"o{number}")
        seen.append((begun.attempts, len(rows(control)[0].objects)))
        objects = control.ledger.objects("acme", "connectwise", "t", "2026-01-01")
        assert len(objects) == number + 1
        assert len(control.ledger.resting("acme", "connectwise", "t", before=day(50))) == 1
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert control.ledger.covered("acme") == []
    control.ledger.complete(chunk(), source_count=None, requests=0, now=day(3))
    assert control.ledger.stretches("acme", "connectwise", "t") == [(day(0), day(1))]
    assert control.ledger.resting("acme", "connectwise", "t", before=day(50)) == []
    for upper in (5, 6, 7):
        advance(control, 0, upper)
        held = control.watermarks.get("acme", "connectwise", "t")
        assert held is not None and held.upper == day(upper)
        assert connect(control, at=upper) == 1
        assert control.registry.all()[0].updated_at == day(upper)


def test_what_a_batch_leaves_is_asked_for_again(lossy: Lossy, control: DynamoControl) -> None:
    lossy.faults.halves = True
    chunks = [chunk(n) for n in range(30)]
    assert len(control.ledger.plan(chunks, now=day(0))) == 30
    assert control.ledger.plan(chunks, now=day(5))[29].planned_at == day(0)
    assert control.ledger.forget("acme") == 30
    assert rows(control) == []


# Pages.


def put(control: DynamoControl, table: Any, *items: dict[str, Any]) -> None:
    for place in range(0, len(items), 100):
        writes = [Put(table, item, anyhow=True) for item in items[place : place + 100]]
        assert control.database.transact(writes) is None


def test_all_connections_are_found_over_pages(control: DynamoControl, lossy: Lossy) -> None:
    for number in range(6):
        connect(control, f"t{number}")
        row = control.database.get(TENANT_SERVICES, (f"t{number}", "connectwise"))
        assert row is not None
        put(control, TENANT_SERVICES, {**row.item, "their_notes": "x" * 300_000})
    lossy.calls.clear()
    assert [row.tenant for row in control.registry.all()] == [f"t{n}" for n in range(6)]
    assert lossy.calls["Scan"] >= 2
    disconnected = control.registry.disconnect("t1", "connectwise", now=day(5))
    assert disconnected is not None and not disconnected.enabled
    row = control.database.get(TENANT_SERVICES, ("t1", "connectwise"))
    assert row is not None and len(row.text("their_notes")) == 300_000, "others' notes stay"


def test_chunks_with_many_objects_are_read_over_pages(control: DynamoControl, lossy: Lossy) -> None:
    control.ledger.plan([chunk(n) for n in range(2)], now=day(0))
    names = {n: tuple(f"{n}/{place:05}{'k' * 110}" for place in range(4_600)) for n in range(2)}
    for number in range(2):
        assert progress(control, chunk(number), *names[number]).objects == names[number]
        control.ledger.complete(chunk(number), source_count=1, requests=0, now=day(2))
    assert progress(control, chunk(0), "last").objects == (*names[0], "last")
    lossy.calls.clear()
    assert [one.objects for one in rows(control)] == [names[1], (*names[0], "last")]
    assert lossy.calls["Query"] >= 2
    lossy.calls.clear()
    objects = control.ledger.objects("acme", "connectwise", "t", "2026-01-01")
    assert objects == sorted({"last", *names[0], *names[1]})
    assert lossy.calls["Query"] >= 2
    lossy.calls.clear()
    assert control.ledger.stretches("acme", "connectwise", "t") == [(day(0), day(2))]
    assert len(control.ledger.covered("acme")) == 2
    assert lossy.calls["Query"] == 2, "coverage reads no objects"
    assert control.ledger.forget("acme") == 2
    assert control.ledger.objects("acme", "connectwise", "t", "2026-01-01") == []


# Plans of many, plans of several at once.


def test_eight_threads_plan_the_same_and_one_row_each_is_made(
    control: DynamoControl, tmp_path: Path
) -> None:
    def plan(number: int) -> list[Chunk]:
        own = [chunk(n) for n in range(number, 40 + number)]
        return opened(tmp_path).ledger.plan(own, now=day(number))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(plan, range(8)))
    stored = {one.chunk_id: one for one in rows(control)}
    assert len(stored) == 47
    assert all(one == stored[one.chunk_id] for own in found for one in own)


def test_threads_plan_more_than_a_transaction_takes(control: DynamoControl, tmp_path: Path) -> None:
    def plan(number: int) -> list[Chunk]:
        own = [chunk(n) for n in range(104)]
        return opened(tmp_path).ledger.plan(own, now=day(number))

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(plan, range(3)))
    stored = {one.chunk_id: one for one in rows(control)}
    assert len(stored) == 104
    assert all(one == stored[one.chunk_id] for own in found for one in own)
    assert list(control.database.query(CHUNK_PROGRESS, "acme", "connectwise#t#run##")) == []


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("writes", range(4))
def test_a_plan_of_many_is_there_whole_or_not_at_all_wherever_it_is_cut_off(
    control: DynamoControl, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left = writes
    transact = DynamoDatabase.transact

    def dies(self: DynamoDatabase, *arguments: Any) -> Any:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        return transact(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DynamoDatabase, "transact", dies)
        with pytest.raises(Killed):
            control.ledger.plan([chunk(n) for n in range(104)], now=day(0))
    found = rows(control)
    assert len(found) == (104 if writes else 0)
    assert {one.planned_at for one in found} <= {day(0)}
    assert rows(control) == found


def test_who_is_late_with_a_plan_does_not_bring_back_what_was_split(
    control: DynamoControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = control.ledger
    assert isinstance(ledger, DynamoLedger)
    with monkeypatch.context() as patch:
        patch.setattr(DynamoLedger, "_finish", lambda self, plans: None)
        ledger.plan([chunk(n) for n in range(104)], now=day(0))
    plans = ledger._plans("acme", "connectwise#t#run")
    assert len(plans) == 1
    assert len(rows(control)) == 104
    assert len(ledger.split(chunk(), HALVES, now=day(1))) == 2
    before = rows(control)
    ledger._finish(plans)
    assert rows(control) == before


def test_a_split_into_more_than_a_transaction_takes_is_refused(control: DynamoControl) -> None:
    control.ledger.plan([chunk()], now=day(0))
    parts = [replace(chunk(), chunk_id=f"p{n}") for n in range(100)]
    with pytest.raises(StoreError, match="101 items cannot be written at once"):
        control.ledger.split(chunk(), parts, now=day(1))
    assert [one.chunk_id for one in rows(control)] == [chunk().chunk_id]
    assert len(control.ledger.split(chunk(), parts[:99], now=day(1))) == 99


@pytest.mark.parametrize("field", ["token", "chunk_id", "partition"])
@pytest.mark.parametrize("text", ["", "a#b"])
def test_a_chunk_that_would_have_another_s_key_is_refused(
    control: DynamoControl, field: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=field):
        control.ledger.plan([chunk(1), replace(chunk(), **{field: text})], now=day(0))
    assert rows(control) == []


def test_chunks_of_names_that_begin_alike_are_kept_apart(control: DynamoControl) -> None:
    ids = ["c", "c!", "c1", "c-1", "c x"]
    control.ledger.plan([replace(chunk(), chunk_id=name) for name in ids], now=day(0))
    control.ledger.plan([replace(chunk(token="run2"), chunk_id="c")], now=day(0))
    for name in ids:
        progress(control, replace(chunk(), chunk_id=name), f"of {name}")
    assert {one.chunk_id: one.objects for one in rows(control)} == {n: (f"of {n}",) for n in ids}


def test_eight_threads_move_one_watermark_without_a_gap(
    control: DynamoControl, tmp_path: Path
) -> None:
    advance(control, 0, 1)

    def work(number: int) -> list[datetime]:
        own = opened(tmp_path).watermarks
        held = []
        for lower in range(1 + number, 41, 8):
            held.append(
                own.advance(
                    "acme", "connectwise", "t", lower=day(lower), upper=day(lower + 1), now=day(99)
                ).upper
            )
        return held

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(work, range(8)))
    assert all(own == sorted(own) for own in seen)
    final = control.watermarks.get("acme", "connectwise", "t")
    assert final is not None and day(1) <= final.upper <= day(41)


# Numbers.


def test_a_number_is_not_given_again_though_the_counter_was_lost(control: DynamoControl) -> None:
    numbers = [connect(control, tenant) for tenant in ("a", "b")]
    assert control.database.remove(HEALTH, [("numbers", "TenantServices")]) == 1
    assert connect(control, "c") > max(numbers)


# Items that others wrote.


def damaged(control: DynamoControl, table: Any, key: tuple[str, ...], **changes: Any) -> None:
    row = control.database.get(table, key)
    assert row is not None
    put(control, table, {**row.item, **changes})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *((name, None) for name in (
            "number", "generation", "enabled", "history_start", "tables", "created_at",
            "updated_at")),
        ("number", "7"), ("number", True), ("enabled", 1), ("tables", "t"), ("tables", [1]),
        ("history_start", "soon"), ("history_start", "2026-01-01T00:00:00"),
    ],
)  # fmt: skip
def test_a_damaged_connection_is_named(
    control: DynamoControl, attribute: str, value: object
) -> None:
    connect(control)
    damaged(control, TENANT_SERVICES, ("acme", "connectwise"), **{attribute: value})
    named = rf"TenantServices-\w+, item acme/connectwise: attribute {attribute} is"
    with pytest.raises(StoreError, match=named):
        control.registry.all()
    with pytest.raises(StoreError, match=named):
        control.registry.get("acme", "connectwise")


def test_a_damaged_watermark_is_named_and_not_moved(control: DynamoControl) -> None:
    advance(control)
    damaged(control, LAST_UPDATED, ("acme", "connectwise#t"), last_updated=None)
    for call in (
        lambda: advance(control, 3, 9),
        lambda: control.watermarks.get("acme", "connectwise", "t"),
    ):
        with pytest.raises(StoreError, match="acme/connectwise#t: attribute last_updated is not"):
            call()


@pytest.mark.parametrize("attribute", ["status", "window_start", "kind", "partition", "job_id"])
def test_a_damaged_chunk_is_named(control: DynamoControl, attribute: str) -> None:
    control.ledger.plan([chunk()], now=day(0))
    damaged(control, CHUNK_PROGRESS, ("acme", "connectwise#t#run#c00000"), **{attribute: None})
    with pytest.raises(StoreError, match=f"connectwise#t#run#c00000: attribute {attribute} is not"):
        rows(control)
    with pytest.raises(StoreError, match=f"attribute {attribute} is not"):
        control.ledger.begin(chunk(), now=day(0))


def test_an_unknown_status_and_a_lost_part_are_named(control: DynamoControl) -> None:
    control.ledger.plan([chunk()], now=day(0))
    progress(control, chunk(), "x")
    key = ("acme", "connectwise#t#run#c00000")
    assert control.database.remove(CHUNK_PROGRESS, [(key[0], f"{key[1]}#000000")]) == 1
    with pytest.raises(StoreError, match=r"c00000: the item of its objects 000000 is not there"):
        rows(control)
    damaged(control, CHUNK_PROGRESS, key, status="processing", next_part=0)
    with pytest.raises(StoreError, match=r"'processing'.*known: planned, running"):
        rows(control)


def test_what_is_extra_or_optional_is_no_matter(control: DynamoControl) -> None:
    """An item of somebody's script: no revision, a set, a fraction, a null; no counters."""
    control.ledger.plan([chunk()], now=day(0))
    client, name = aws_module.client("dynamodb"), control.database.name(CHUNK_PROGRESS)
    sort = {"S": "connectwise#t#run#c00000"}
    item = client.get_item(
        TableName=name, Key={"tenant_id": {"S": "acme"}, CHUNK_PROGRESS.keys[1]: sort}
    )["Item"]
    optional = (
        "revision", "records_processed", "records_stored", "requests", "attempts", "first_part",
        "next_part",
    )  # fmt: skip
    extra = {
        "a": {"SS": ["x", "y"]}, "b": {"N": "1.5"}, "c": {"NULL": True}, "d": {"B": b"\0"},
        "e": {"M": {"f": {"L": [{"N": "2"}]}}},
    }  # fmt: skip
    theirs = {key: value for key, value in item.items() if key not in optional} | extra
    theirs["error_message"] = {"NULL": True}
    client.put_item(TableName=name, Item=theirs)
    assert rows(control) == [replace(chunk(), planned_at=day(0))]
    assert control.ledger.begin(chunk(), now=day(1)).attempts == 1
    assert progress(control, chunk(), "x").objects == ("x",)
    stored = client.get_item(
        TableName=name, Key={"tenant_id": {"S": "acme"}, CHUNK_PROGRESS.keys[1]: sort}
    )["Item"]
    assert {key: stored.get(key) for key in extra} == extra, "kept as they were"


def test_users_find_the_chunks_of_a_job(control: DynamoControl) -> None:
    control.ledger.plan([chunk(1, "job-1"), chunk(2, "job-1"), chunk(3, "job-2")], now=day(0))
    progress(control, chunk(1, "job-1"), "x")
    index = CHUNK_PROGRESS.index("JobIndex")
    found = control.database.query(CHUNK_PROGRESS, "job-1", index=index)
    assert [row.item["chunk_id"] for row in found] == ["c00001", "c00002"]
