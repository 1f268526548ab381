"""What only S3 can do to a lake: lose answers, break off, keep versions, be read by ranges."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.aws import client
from avesa_dagster.canonical.history import Restless, rebuild
from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.lake import ranges
from avesa_dagster.lake.database import connect, parquet, plain
from avesa_dagster.lake.objects import Conflict, LocalObjects, Objects
from avesa_dagster.lake.ranges import TAIL_BYTES, Ahead, Opened, RangeFiles, Stream
from avesa_dagster.lake.reader import Reader
from avesa_dagster.lake.s3 import S3Objects

from ..canonical.conftest import ON_S3
from ..canonical.lakes import Seen, build, small_catalog, store
from .between import Between, once

PART = 5 * 1024 * 1024


@pytest.fixture
def lake(bucket: str) -> S3Objects:
    return S3Objects(bucket, part_bytes=PART)


@pytest.fixture
def between(lake: S3Objects, aws: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """A proxy that `lake` speaks through."""
    with Between(aws.s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        client.cache_clear()
        yield proxy


# Answers that are lost, late or broken.


def test_a_put_if_whose_answer_is_lost_knows_its_own_write(
    lake: S3Objects, between: Between
) -> None:
    for tag, data in ((None, b"first"), ("held", b"second")):
        held = lake.stat("a/x")
        between.judge = once("lose", "PUT")
        info = lake.put_if("a/x", data, tag=held.tag if held and tag else None)
        assert (lake.get("a/x"), lake.stat("a/x")) == (data, info)
    assert [method for method, _ in between.seen].count("PUT") == 4


def test_a_lost_answer_is_no_excuse_to_overwrite_others(lake: S3Objects, between: Between) -> None:
    lake.put("a/x", b"theirs")
    between.judge = once("lose", "PUT")
    with pytest.raises(Conflict):
        lake.put_if("a/x", b"ours", tag=None)
    assert lake.get("a/x") == b"theirs"


def test_a_write_is_known_below_what_others_wrote_since(lake: S3Objects, between: Between) -> None:
    """Ours happened, its answer is lost; another replaces it before boto3 asks again."""
    first = lake.put("a/x", b"0")
    others = S3Objects(lake._bucket.name)

    def judge(method: str, path: str) -> str:
        if method == "PUT" and not written:
            written.append("ours")
            return "lose"
        if method == "PUT" and written == ["ours"]:
            written.append("theirs")
            seen = others.stat("a/x")
            assert seen is not None
            others.put_if("a/x", b"2", tag=seen.tag)
        return "pass"

    written: list[str] = []
    between.judge = judge
    info = lake.put_if("a/x", b"1", tag=first.tag)
    assert lake.get("a/x") == b"2"
    assert info.tag not in (first.tag, lake.stat("a/x").tag)  # type: ignore[union-attr]


def count_up(lake: Objects, times: int) -> None:
    for _ in range(times):
        while True:
            held = lake.stat("a/count")
            try:
                value = int(lake.get("a/count")) if held else 0
                lake.put_if("a/count", b"%d" % (value + 1), tag=held.tag if held else None)
                break
            except Conflict:
                continue


def test_two_that_count_together_lose_nothing_and_double_nothing(
    lake: S3Objects, between: Between
) -> None:
    """Every fifth write happens and its answer is lost."""
    puts = iter(range(10**6))
    between.judge = lambda method, path: (
        "lose" if method == "PUT" and next(puts) % 5 == 2 else "pass"
    )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: count_up(lake, 8), range(2)))
    assert lake.get("a/count") == b"16"
    assert next(puts) > 17


def test_a_busy_store_is_asked_again(lake: S3Objects, between: Between) -> None:
    for method in ("PUT", "HEAD", "GET"):
        between.judge = once("503 SlowDown", method)
        lake.put("a/x", b"x")
        assert (lake.get("a/x"), len(lake.list("a/"))) == (b"x", 1)


def test_an_undecided_condition_is_asked_again(lake: S3Objects, between: Between) -> None:
    between.judge = once("409 ConditionalRequestConflict", "PUT")
    lake.put_if("a/x", b"x", tag=None)
    assert lake.get("a/x") == b"x"


def test_a_body_that_breaks_off_is_read_again(lake: S3Objects, between: Between) -> None:
    data = os.urandom(3 * TAIL_BYTES)
    lake.put("a/x", data)
    between.judge = once("half", "GET", "a/x")
    assert lake.get("a/x") == data
    with lake.open("a/x") as file:
        between.judge = once("half", "GET", "a/x")
        assert file.read() == data


# Uploads in parts.


def write_large(lake: S3Objects, size: int = 2 * PART + 17) -> bytes:
    data = Random(size).randbytes(size)
    with lake.create("a/large") as path:
        path.write_bytes(data)
    return data


def test_a_large_object_comes_whole(lake: S3Objects, between: Between) -> None:
    seen = []

    def judge(method: str, path: str) -> str:
        if "partNumber" in path:
            seen.append(lake.stat("a/large"))
        return "pass"

    between.judge = judge
    data = write_large(lake)
    assert lake.get("a/large") == data
    assert seen == [None] * 3
    assert lake._bucket.uploads("") == []
    info = lake.stat("a/large")
    assert lake.list("a/") == [info]


def test_an_upload_that_fails_leaves_nothing(lake: S3Objects, between: Between) -> None:
    lake.put("a/large", b"old")
    between.judge = lambda method, path: "403 AccessDenied" if "partNumber=2" in path else "pass"
    with pytest.raises(ConfigurationError, match="AccessDenied"):
        write_large(lake)
    assert lake.get("a/large") == b"old"
    assert lake._bucket.uploads("") == []


def test_an_upload_whose_end_is_not_told_has_ended(lake: S3Objects, between: Between) -> None:
    between.judge = once("lose", "POST", "uploadId")
    assert write_large(lake) == lake.get("a/large")


def test_uploads_that_never_ended_are_aborted_after_a_day(lake: S3Objects) -> None:
    s3 = client("s3")
    s3.create_multipart_upload(Bucket=lake._bucket.name, Key="a/left")
    (left,) = lake._bucket.uploads("")
    began = left["Initiated"].timestamp()
    lake.clean(began + 23 * 3600)
    assert len(lake._bucket.uploads("")) == 1
    lake.clean(began + 25 * 3600)
    assert lake._bucket.uploads("") == []


# Versions.


def test_listings_of_many_pages_are_whole(lake: S3Objects, between: Between) -> None:
    """As with 1,000 a page: keys, versions of a key and marks of deletions are cut by pages."""
    for number in range(24):
        lake.put(f"a/{number:02}", b"x")
        if number % 3 == 0:
            lake.put(f"a/{number:02}", b"longer")
        if number % 4 == 0:
            lake.delete(f"a/{number:02}")

    def small(params: dict[str, Any], **_: object) -> dict[str, Any]:
        return params | {"MaxKeys": 7}

    lake._bucket._s3.meta.events.register("provide-client-params.s3.ListObjectVersions", small)
    between.seen.clear()
    held = [n for n in range(24) if n % 4]
    assert [info.key for info in lake.list("a/")] == [f"a/{n:02}" for n in held]
    assert [info.size for info in lake.list("a/")] == [6 if n % 3 == 0 else 1 for n in held]
    assert len(between.seen) == 2 * 6
    assert lake.prune("a") == 38
    assert lake.prune("a") == 0


def test_pruning_leaves_no_version_of_a_tenant_and_every_one_of_others(lake: S3Objects) -> None:
    lake.put("a/x", b"secret")
    other = lake.put("ab/x", b"theirs")
    lake.delete("a/x")
    client("s3").create_multipart_upload(Bucket=lake._bucket.name, Key="a/left")
    assert lake.prune("a") == 3
    said = client("s3").list_object_versions(Bucket=lake._bucket.name)
    assert [version["Key"] for version in said["Versions"]] == ["ab/x"]
    assert (lake.stat("ab/x"), said.get("DeleteMarkers", [])) == (other, [])


@pytest.mark.parametrize("codes", [["InternalError", "SlowDown"], ["AccessDenied"]])
def test_what_s3_says_of_single_keys_is_heard(
    lake: S3Objects, monkeypatch: pytest.MonkeyPatch, codes: list[str]
) -> None:
    """The answer as a whole is a success, which boto3 does not ask for again."""
    for number in range(4):
        lake.put(f"a/{number}", b"x")
    busy = list(codes)

    def hook(parsed: dict[str, Any], **_: object) -> None:
        if busy:
            first = asked[-1][0]
            parsed["Errors"] = [{**first, "Code": busy.pop(0)}]

    asked: list[list[dict[str, str]]] = []

    def note(params: dict[str, Any], **_: object) -> None:
        asked.append(params["Delete"]["Objects"])

    events = lake._bucket._s3.meta.events
    events.register("provide-client-params.s3.DeleteObjects", note)
    events.register("after-call.s3.DeleteObjects", hook)
    monkeypatch.setattr("avesa_dagster.lake.bucket.time.sleep", lambda seconds: None)
    if "AccessDenied" in codes:
        with pytest.raises(StoreError, match=r"keeps a version of a/0: AccessDenied"):
            lake.prune("a")
        return
    assert lake.prune("a") == 4
    assert [len(keys) for keys in asked] == [4, 1, 1]


def test_a_bucket_that_keeps_no_versions_is_refused(aws: Any) -> None:
    s3 = client("s3")
    s3.create_bucket(
        Bucket="plain-bucket", CreateBucketConfiguration={"LocationConstraint": "us-east-2"}
    )
    with pytest.raises(ConfigurationError, match="keeps no versions"):
        S3Objects("plain-bucket").put("a/x", b"x")


def test_an_object_from_before_there_were_versions_is_read_and_replaced(aws: Any) -> None:
    s3, name = client("s3"), "older-bucket"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    s3.put_object(Bucket=name, Key="a/x", Body=b"old")
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    lake = S3Objects(name)
    held = lake.stat("a/x")
    assert held is not None
    assert lake.list("a/") == [held]
    with lake.open("a/x") as file:
        assert file.read() == b"old"
    assert lake.put_if("a/x", b"old", tag=held.tag).tag != held.tag
    with pytest.raises(Conflict):
        lake.put_if("a/x", b"new", tag=held.tag)


@pytest.mark.parametrize(
    "use",
    [
        lambda lake: lake.stat("a/x"),
        lambda lake: lake.get("a/x"),
        lambda lake: lake.list("a/"),
        lambda lake: lake.put("a/x", b"x"),
        lambda lake: lake.open("a/x"),
    ],
)
def test_a_missing_bucket_is_no_empty_lake(aws: Any, use: Callable[[S3Objects], Any]) -> None:
    with pytest.raises(ConfigurationError, match="avesa bootstrap makes what is missing"):
        use(S3Objects("no-such-bucket"))


def test_encryption_is_asked_for_with_each_write(bucket: str) -> None:
    key = "arn:aws:kms:us-east-2:123456789012:key/abc"
    lake = S3Objects(bucket, encryption="aws:kms", kms_key=key, part_bytes=PART)
    lake.put("a/x", b"x")
    lake.put_if("a/y", b"x", tag=None)
    write_large(lake)
    for name in ("a/x", "a/y", "a/large"):
        said = client("s3").head_object(Bucket=bucket, Key=name)
        assert (said["ServerSideEncryption"], said["SSEKMSKeyId"]) == ("aws:kms", key)


# Reading by ranges.


def test_threads_that_share_a_file_get_each_its_own_bytes() -> None:
    """DuckDB seeks, then reads, without a lock between."""
    data = Random(1).randbytes(2_000_000)

    def slow(offset: int, count: int) -> bytes:
        time.sleep(0.001)
        return data[offset : offset + count]

    shared = _open_shared(Opened(len(data), "tag", data[-1000:], slow))
    barrier = threading.Barrier(8)

    def wrong(number: int) -> int:
        random, found = Random(number), 0
        for _ in range(25):
            offset, count = random.randrange(len(data)), random.randrange(1, 5000)
            shared.seek(offset)
            barrier.wait()
            found += shared.read(count) != data[offset : offset + count]
        return found

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong, range(8))) == 0


def _open_shared(opened: Opened) -> Any:
    files = RangeFiles("s3", "s3://b/", "s3://b/", lambda key: opened, lambda key: False)
    return files.open("s3://b/x")


@given(st.integers(0, 3000), st.integers(0, 500), st.data())
def test_a_stream_reads_as_a_file_does(size: int, tail: int, draw: st.DataObject) -> None:
    data = Random(size).randbytes(size)
    tail = min(size, tail)
    opened = Opened(size, "tag", data[size - tail :], lambda o, n: data[o : o + n])
    stream = Stream(opened)
    for _ in range(5):
        place = draw.draw(st.integers(0, size + 10))
        count = draw.draw(st.integers(0, size + 10))
        assert stream.seek(place) == place
        assert stream.read(count) == data[place : place + count]
    assert stream.seek(0, os.SEEK_END) == size


def test_a_file_of_many_row_groups_is_read_right(lake: S3Objects) -> None:
    """Larger than what is read at once, by as many threads as DuckDB likes."""
    rows = pa.table({"n": range(200_000), "text": [f"{n * 7919:020}" for n in range(200_000)]})
    with lake.create("a/x.parquet") as path:
        pq.write_table(rows, path, row_group_size=10_000, use_dictionary=False, compression="none")
    assert lake.stat("a/x.parquet").size > 20 * TAIL_BYTES  # type: ignore[union-attr]
    source = parquet([lake.location("a/x.parquet")])
    with connect(lake) as connection:
        for _ in range(3):
            found = connection.execute(
                f"SELECT count(*), sum(n), sum(hash(text)) FROM {source} WHERE n % 3 = 0"
            ).fetchall()
            connection.register("rows", rows)
            asked = "SELECT count(*), sum(n), sum(hash(text)) FROM rows WHERE n % 3 = 0"
            assert found == connection.execute(asked).fetchall()
    with lake.open("a/x.parquet") as file:
        assert pq.ParquetFile(file).read().equals(rows)


def numbers(lake: Objects, key: str, number: int, rows: int = 100_000) -> None:
    with lake.create(key) as path:
        pq.write_table(pa.table({"n": [number] * rows}), path, compression="none")


def test_what_replaces_an_object_is_read_within_one_connection(lake: S3Objects) -> None:
    """DuckDB keeps what it read for as long as time and size of a file are the same."""
    source = parquet([lake.location("a/x.parquet")])
    with connect(lake) as connection:
        for number in range(4):
            numbers(lake, "a/x.parquet", number)
            found = connection.execute(f"SELECT min(n), max(n), count(*) FROM {source}").fetchall()
            assert found == [(number, number, 100_000)]


def test_an_open_file_stays_what_it_was(lake: S3Objects) -> None:
    old = os.urandom(3 * TAIL_BYTES)
    lake.put("a/x", old)
    with lake.open("a/x") as file:
        lake.put("a/x", os.urandom(2 * TAIL_BYTES))
        assert file.read() == old
        lake.delete("a/x")
        file.seek(5)
        assert file.read(7) == old[5:12]


def test_a_missing_object_is_one_clean_line(lake: S3Objects) -> None:
    with pytest.raises(KeyError):
        lake.open("a/x")
    source = parquet([lake.location("a/x.parquet")])
    with connect(lake) as connection, pytest.raises(duckdb.Error, match=r"there is no s3://"):
        connection.execute(f"FROM {source}")
    with lake.open(lake.put("a/empty", b"").key) as file:
        assert file.read() == b""


def test_a_key_with_odd_characters_is_read(lake: S3Objects) -> None:
    key = "a/it's [a] *?/ü+%41 &x.parquet"
    numbers(lake, key, 7)
    numbers(lake, "a/it's a xx/ü+%41 &x.parquet", 8)
    with connect(lake) as connection:
        found = connection.execute(f"SELECT DISTINCT n FROM {parquet([lake.location(key)])}")
        assert found.fetchall() == [(7,)]
    assert key in {info.key for info in lake.list("a/")}


EMPTY = Opened(0, "", b"", lambda offset, count: b"")


@given(st.text("*?[]ab/", max_size=8))
def test_a_plain_pattern_means_itself_alone(path: str) -> None:
    root = "s3://b/"
    files = RangeFiles("s3", root, root, lambda _: EMPTY, lambda _: False)
    assert files.glob(plain(path)) == [path]


def test_many_small_objects_are_each_asked_for_once(lake: S3Objects, between: Between) -> None:
    keys = [f"a/raw/s/t/dt=2024-01-01/{number:02}.parquet" for number in range(40)]
    for number, key in enumerate(keys):
        numbers(lake, key, number, rows=10)
    between.seen.clear()
    source = parquet([lake.location(key) for key in keys])
    with connect(lake) as connection:
        for _ in range(3):
            found = connection.execute(f"SELECT sum(n), count(*) FROM {source}").fetchall()
            assert found == [(7800, 400)]
    assert len(between.seen) == 40


def test_what_is_kept_of_opened_objects_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "KEPT_BYTES", 1000)
    opened: list[str] = []

    def opener(path: str) -> Opened:
        opened.append(path)
        if path == "40" and opened.count("40") == 1:
            raise StoreError("broken once")
        return Opened(100, path, path.encode().ljust(100), lambda offset, count: b"")

    ahead = Ahead(opener)
    for number in range(80):
        ahead.note(str(number))
    for number in (*range(80), 5, 40):
        assert ahead.open(str(number)).tag == str(number)
    with pytest.raises(KeyError):
        Ahead(lambda path: {}[path]).open("x")
    assert ahead._bytes == sum(ahead._sizes.values()) <= 1000
    assert set(ahead._sizes) <= set(ahead._held)


# One lake and another.


def test_a_lake_copied_from_a_laptop_opens(lake: S3Objects, tmp_path: Path) -> None:
    laptop, catalog = LocalObjects(tmp_path), small_catalog()
    for table in ("things", "places"):
        store(laptop, [Seen("1", 1, 1), Seen("1", 2, 2, "b"), Seen("2", 1, 1)], table=table)
        build(laptop, catalog, table=table)
        rebuild(laptop, catalog, "acme", table)
    for info in laptop.list("acme/"):
        lake.put(info.key, laptop.get(info.key))
    sql = "FROM things_history ORDER BY ALL"
    expected = Reader(laptop, catalog).query("acme", sql)
    assert expected.num_rows == 3
    assert Reader(lake, catalog).query("acme", sql).equals(expected)
    assert rebuild(lake, catalog, "acme", "things").changed
    assert Reader(lake, catalog).query("acme", sql).equals(expected)


def test_those_who_build_rebuild_and_read_at_once_end_with_the_latest(lake: S3Objects) -> None:
    """A reader or rebuilder may be overtaken too often, and says so; it never goes back."""
    catalog, done = small_catalog(), threading.Event()
    store(lake, [Seen("0", 0, 0)])
    build(lake, catalog)

    def rebuilding() -> None:
        while not done.is_set():
            with suppress(Restless):
                rebuild(lake, catalog, "acme", "things")

    def reading() -> None:
        reader, before = Reader(lake, catalog), 0
        while not done.is_set():
            with suppress(Restless):
                seen = len(reader.current("acme", "things").fetchall())
                assert seen >= before
                before = seen

    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(rebuilding), pool.submit(rebuilding), pool.submit(reading)]
        try:
            for hour in range(1, 6):
                store(lake, [Seen(str(hour), hour, hour)])
                build(lake, catalog)
        finally:
            done.set()
        assert [future.result() for future in busy] == [None] * 3
    rebuild(lake, catalog, "acme", "things")
    assert len(Reader(lake, catalog).current("acme", "things").fetchall()) == 6


def test_times_of_writing_are_the_stores(lake: S3Objects) -> None:
    info = lake.put("a/x", b"x")
    assert abs(info.written - datetime.now(UTC)).total_seconds() < 60
    assert lake.list("a/") == [lake.stat("a/x")] == [info]


def test_the_tests_that_run_over_both_lakes_are_there() -> None:
    for module, names in ON_S3.items():
        there = import_module(f"avesa_dagster_tests.canonical.{module}")
        assert not [name for name in names if not hasattr(there, name)]
