"""History is what the oracle says, from any order, repetition and split of the observations."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.canonical import history as history_module
from avesa_dagster.canonical.history import (
    Restless,
    canonical_inputs,
    read_manifest,
    rebuild,
)
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.lake.layout import manifest_key
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.lake.reader import Reader

from .lakes import TICKS, Seen, build, small_catalog, store
from .oracle import history, last_rows, rows_of

SCRIPTS = 45
PARTITIONS = ("2024-01-01", "2024-01-02", "2024-01-03")
CATALOG = small_catalog()

# One observation and where it lies, as one small number: change time, seen time, what, where.
CHANGES, MOMENTS, NAMES, PLACES, COPIES = 5, 7, ("a", "b", None), 4, 3
DOMAIN = CHANGES * MOMENTS * len(NAMES) * PLACES * COPIES
lives = st.lists(st.integers(0, DOMAIN - 1), min_size=1, max_size=7)
scripts_met: set[tuple[int, ...]] = set()


def told(record: str, life: list[int]) -> list[tuple[Seen, int, int]]:
    """Each observation with its displacement and number of copies."""
    out = []
    for code in life:
        code, changed = divmod(code, CHANGES)
        code, moment = divmod(code, MOMENTS)
        code, name = divmod(code, len(NAMES))
        copies, place = divmod(code, PLACES)
        out.append((Seen(record, changed, moment, NAMES[name]), place, copies))
    return out


@settings(
    max_examples=45,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(lives, min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.sampled_from(["things", "places"]),
)
def _history_of_a_batch_is_what_the_oracle_says(
    batch: list[list[int]], seed: int, table: str
) -> None:
    random = Random(repr((seed, batch, table)))
    # A few lives that hypothesis can shrink, and many more for the price of one build.
    batch = batch + [
        [random.randrange(DOMAIN) for _ in range(random.randint(2, 7))] for _ in range(SCRIPTS)
    ]
    everything: list[Seen] = []
    objects_of: dict[tuple[str, int], list[Seen]] = {}
    for number, life in enumerate(batch):
        scripts_met.add(tuple(sorted(c % (CHANGES * MOMENTS * len(NAMES)) for c in life)))
        for seen, place, copies in told(f"r{number}", life):
            everything.append(seen)
            for copy in range(copies + 1):
                # A deletion lies where it was seen, a change where it happened; some lie elsewhere,
                # and a second copy may lie in another partition than the first.
                hour = seen.seen if seen.dead else seen.changed
                partition = PARTITIONS[(int(hour) // 3 + (place == 3) + copy * (place == 2)) % 3]
                objects_of.setdefault((partition, random.randrange(2)), []).append(seen)
    with TemporaryDirectory() as folder:
        lake = LocalObjects(Path(folder))
        for (partition, _), observations in objects_of.items():
            random.shuffle(observations)
            store(lake, observations, table=table, partition=partition)
        for partition in PARTITIONS:
            build(lake, CATALOG, table=table, partition=partition)
        rebuild(lake, CATALOG, "acme", table)
        expected = history(everything)
        if table == "places":
            expected = last_rows(expected)
        assert rows_of(Reader(lake, CATALOG).history("acme", table)) == expected


def test_history_from_any_order_and_split_is_what_the_oracle_says() -> None:
    scripts_met.clear()
    _history_of_a_batch_is_what_the_oracle_says()
    assert len(scripts_met) >= 2_000, "so many different scripts, each checked"


def test_a_deletion_closes_and_a_later_look_opens_a_row_of_its_own(
    objects: LocalObjects, catalog: Catalog
) -> None:
    store(objects, [Seen("1", 1, 1), Seen("1", 3, 3, None), Seen("1", 1, 5)])
    build(objects, catalog)
    rebuild(objects, catalog, "acme", "things")
    rows = Reader(objects, catalog).history("acme", "things").order("record_version")
    shown = [
        (row["effective_start_date"].hour, row["effective_start_origin"], row["is_current"])
        for row in rows.to_arrow_table().to_pylist()
    ]
    assert shown == [(1, "source", False), (5, "observed", True)]


def test_a_stated_deletion_ends_by_the_source(objects: LocalObjects, catalog: Catalog) -> None:
    store(objects, [Seen("1", 1, 1), Seen("1", 3, 4, None)])
    build(objects, catalog)
    row = Reader(objects, catalog).history("acme", "things").to_arrow_table().to_pylist()[0]
    assert (row["effective_end_date"].hour, row["effective_end_origin"]) == (3, "source")


def test_of_two_deletions_that_close_at_one_moment_the_stated_one_speaks(
    objects: LocalObjects, catalog: Catalog
) -> None:
    seen = [
        Seen("1", 4, 4),
        Seen("1", 4 + 1 / TICKS, 6, None),  # stated: a microsecond after the version
        Seen("1", 3, 5, None),  # moved there, for the version was alive by then
    ]
    store(objects, seen)
    build(objects, catalog)
    rows = rows_of(Reader(objects, catalog).history("acme", "things"))
    assert rows == history(seen)
    assert [row.end_origin for row in rows] == ["source"]


def test_unchanged_versions_stay(objects: LocalObjects, catalog: Catalog) -> None:
    store(objects, [Seen("1", hour, hour, "same") for hour in (1, 2, 3)])
    build(objects, catalog)
    assert len(Reader(objects, catalog).history("acme", "things").fetchall()) == 3


def test_services_with_the_same_ids_are_kept_apart(objects: LocalObjects, catalog: Catalog) -> None:
    for service in ("east", "west"):
        store(objects, [Seen("1", 1, 1, service)], service=service)
        build(objects, catalog, service=service)
    assert rebuild(objects, catalog, "acme", "things").records == 2
    rows = Reader(objects, catalog).current("acme", "things").to_arrow_table().to_pylist()
    assert {(row["source_service"], row["name"]) for row in rows} == {
        ("east", "east"),
        ("west", "west"),
    }


def test_a_rebuild_with_nothing_new_writes_nothing(objects: LocalObjects, catalog: Catalog) -> None:
    store(objects, [Seen("1", 1, 1)])
    build(objects, catalog)
    first = rebuild(objects, catalog, "acme", "things", built_at=datetime(2024, 5, 1, tzinfo=UTC))
    tag = objects.stat(manifest_key("acme", "things"))
    second = rebuild(objects, catalog, "acme", "things")
    assert (first.changed, second.changed) == (True, False)
    assert objects.stat(manifest_key("acme", "things")) == tag
    manifest = read_manifest(objects, "acme", "things")
    assert manifest is not None
    assert manifest.built_at == datetime(2024, 5, 1, tzinfo=UTC)
    assert (manifest.rows, manifest.records) == (1, 1)


def test_a_generation_outlives_those_who_may_be_reading_it(
    objects: LocalObjects, catalog: Catalog
) -> None:
    built = []

    def age(key: str, minutes: float) -> None:
        written = time.time() - minutes * 60
        os.utime(objects.location(key), (written, written))

    for hour in range(1, 6):
        store(objects, [Seen("1", hour, hour)])
        build(objects, catalog)
        if hour == 5:  # the second took the first one's place 16 minutes ago, the third just now
            for key, minutes in zip(built, (60, 16, 14, 1), strict=True):
                age(key, minutes)
        built.append(rebuild(objects, catalog, "acme", "things").generation)
    held = {info.key for info in objects.list("acme/history/things/")}
    assert held == {*built[1:], manifest_key("acme", "things")}


def test_what_a_killed_rebuild_left_ends_nobodys_reading(
    objects: LocalObjects, catalog: Catalog
) -> None:
    store(objects, [Seen("1", 1, 1)])
    build(objects, catalog)
    first = rebuild(objects, catalog, "acme", "things").generation
    left = "acme/history/things/generation-0-0.parquet"
    objects.put(left, b"")
    for key, minutes in ((first, 60), (left, 30)):
        written = time.time() - minutes * 60
        os.utime(objects.location(key), (written, written))
    for hour in (2, 3):
        relation = Reader(objects, catalog).current("acme", "things")
        store(objects, [Seen("1", hour, hour)])
        build(objects, catalog)
        rebuild(objects, catalog, "acme", "things")
        assert len(relation.fetchall()) == 1


def test_a_vanished_generation_is_built_again(objects: LocalObjects, catalog: Catalog) -> None:
    store(objects, [Seen("1", 1, 1)])
    build(objects, catalog)
    objects.delete(rebuild(objects, catalog, "acme", "things").generation)
    assert len(Reader(objects, catalog).history("acme", "things").fetchall()) == 1
    assert rebuild(objects, catalog, "acme", "things").changed
    assert len(Reader(objects, catalog).history("acme", "things").fetchall()) == 1


def test_another_set_of_fields_makes_another_generation(objects: LocalObjects) -> None:
    store(objects, [Seen("1", 1, 1)])
    old = small_catalog()
    build(objects, old)
    rebuild(objects, old, "acme", "things")
    new = small_catalog({"id": "string", "name": "string", "extra": "int64"})
    row = Reader(objects, new).current("acme", "things").to_arrow_table().to_pylist()[0]
    assert (row["name"], row["extra"]) == ("a", None)
    assert rebuild(objects, new, "acme", "things").changed


def test_rebuilds_at_once_and_while_partitions_change_end_with_the_latest(
    objects: LocalObjects, catalog: Catalog
) -> None:
    store(objects, [Seen("0", 0, 0)])
    build(objects, catalog)
    done = threading.Event()

    def rebuilding() -> None:
        while not done.is_set():
            with contextlib.suppress(Restless):
                rebuild(objects, catalog, "acme", "things")

    def reading() -> int:
        reader = Reader(objects, catalog)
        before = looks = 0
        while not done.is_set():
            seen = len(reader.current("acme", "things").fetchall())
            assert seen >= before
            before, looks = seen, looks + 1
        return looks

    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(rebuilding), pool.submit(rebuilding), pool.submit(reading)]
        for hour in range(1, 13):
            store(objects, [Seen(str(hour), hour, hour)])
            build(objects, catalog)
        done.set()
        assert [future.result() for future in busy][2] > 0
    rebuild(objects, catalog, "acme", "things")
    manifest = read_manifest(objects, "acme", "things")
    assert manifest is not None
    assert manifest.records == 13
    assert len(Reader(objects, catalog).current("acme", "things").fetchall()) == 13


def test_a_partition_that_is_replaced_while_it_is_read_is_read_again(
    objects: LocalObjects, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(objects, [Seen("1", 1, 1)])
    build(objects, catalog)
    write_once = history_module._write
    meanwhile = [True]

    def replace_and_write(*arguments: Any) -> tuple[int, int]:
        if meanwhile:
            meanwhile.clear()
            store(objects, [Seen("2", 2, 2)])
            build(objects, catalog)
        return write_once(*arguments)

    monkeypatch.setattr(history_module, "_write", replace_and_write)
    built = rebuild(objects, catalog, "acme", "things")
    manifest = read_manifest(objects, "acme", "things")
    assert manifest is not None
    assert manifest.inputs == canonical_inputs(objects, catalog, "acme", "things")
    assert (built.records, len(objects.list("acme/history/things/"))) == (2, 2)


def test_an_unknown_table_is_refused_with_what_there_is(
    objects: LocalObjects, catalog: Catalog
) -> None:
    with pytest.raises(ConfigurationError, match="known: things, places"):
        rebuild(objects, catalog, "acme", "nothing")


def test_a_broken_manifest_is_named(objects: LocalObjects, catalog: Catalog) -> None:
    objects.put(manifest_key("acme", "things"), b"{}")
    with pytest.raises(StoreError, match="is no manifest"):
        rebuild(objects, catalog, "acme", "things")
