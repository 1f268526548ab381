"""A canonical partition is a pure function of its raw objects, whoever builds it at once."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avesa_dagster.canonical import observations, versions
from avesa_dagster.canonical.observations import versions_schema
from avesa_dagster.canonical.versions import build_partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.lake.layout import raw_key, versions_key
from avesa_dagster.lake.objects import LocalObjects

from .lakes import START, Seen, at, build, small_catalog, store

KEY = versions_key("acme", "east", "things", "2024-01-01")


def rows(objects: LocalObjects) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.ParquetFile(objects.location(KEY)).read().to_pylist()
    return found


def test_the_latest_observation_wins_and_ties_go_to_the_greatest_hash(
    objects: LocalObjects, catalog: Catalog
) -> None:
    early, late = Seen("1", 1, 2, "early"), Seen("1", 1, 3, "late")
    tied = [Seen("2", 1, 4, name) for name in ("x", "y", "z")]
    store(objects, [late, *tied, early])
    build(objects, catalog)
    best = max(tied, key=lambda seen: seen.content_hash)
    assert [(row["record_id"], row["name"]) for row in rows(objects)] == [
        ("1", "late"),
        ("2", best.name),
    ]
    first = rows(objects)[0]
    assert first["ingested_at"] == at(3)
    assert first["first_observed_at"] == at(2)
    assert first["observed_times"] == [at(2), at(3)]


def test_a_build_tells_what_it_holds(objects: LocalObjects, catalog: Catalog) -> None:
    store(objects, [Seen("1", 1, 1), Seen("1", 1, 2), Seen("1", 3, 3, None)])
    store(objects, [Seen("2", 1, 1)])
    built = build(objects, catalog)
    assert (built.raw_objects, built.observations, built.versions) == (2, 4, 3)
    assert (built.records, built.deletions, built.changed) == (2, 1, True)
    info = objects.stat(KEY)
    assert info is not None
    assert (info.key, info.size) == (built.key, built.bytes)


def test_a_deletion_keeps_the_id_and_nothing_else(objects: LocalObjects, catalog: Catalog) -> None:
    store(objects, [Seen("1", 3, 3, None)])
    build(objects, catalog)
    row = rows(objects)[0]
    assert (row["id"], row["name"], row["is_deleted"]) == ("1", None, True)


def test_equal_observations_make_equal_bytes(tmp_path: Path, catalog: Catalog) -> None:
    chance = random.Random(7)
    seen = [
        Seen(str(chance.randrange(2_000)), chance.randrange(9), chance.randrange(9), "n")
        for _ in range(20_000)
    ]
    made = set()
    for number in range(4):
        lake = LocalObjects(tmp_path / str(number))
        observations = seen + chance.sample(seen, 500)
        chance.shuffle(observations)
        size = chance.randrange(1_000, 9_000)
        for start in range(0, len(observations), size):
            store(lake, observations[start : start + size])
        build(lake, catalog)
        made.add(lake.get(KEY))
    assert len(made) == 1


def test_row_groups_have_their_fixed_size_and_rows_their_order(
    objects: LocalObjects, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observations, "ROW_GROUP", 3_000)
    store(objects, [Seen(f"{n * 7_919 % 10_000:05}", 1, 1) for n in range(10_000)])
    build(objects, catalog)
    held = pq.ParquetFile(objects.location(KEY)).metadata
    assert [held.row_group(n).num_rows for n in range(held.num_row_groups)] == [3_000] * 3 + [1_000]
    assert [row["record_id"] for row in rows(objects)] == [f"{n:05}" for n in range(10_000)]


def test_building_again_leaves_the_tag(objects: LocalObjects, catalog: Catalog) -> None:
    key = store(objects, [Seen("1", 1, 1)])
    build(objects, catalog)
    tag = objects.stat(KEY)
    with objects.create(key.replace("chunk", "again")) as path:
        path.write_bytes(objects.get(key))
    assert not build(objects, catalog).changed
    assert objects.stat(KEY) == tag


def test_a_partition_without_raw_is_an_empty_typed_file(
    objects: LocalObjects, catalog: Catalog
) -> None:
    built = build(objects, catalog)
    held = pq.ParquetFile(objects.location(KEY)).read()
    assert (built.versions, built.changed, held.num_rows) == (0, True, 0)
    assert held.schema.equals(versions_schema(catalog.canonical["things"]))


def test_thousands_of_small_objects_are_one_partition(
    objects: LocalObjects, catalog: Catalog
) -> None:
    for number in range(1_500):
        store(objects, [Seen(str(number), 1, 1)])
    assert build(objects, catalog).versions == 1_500


def test_more_typed_fields_than_a_mask_has_bits_are_all_counted(objects: LocalObjects) -> None:
    fields = {"id": "string"} | {f"n{number}": "int64" for number in range(130)}
    said = ", ".join(f'"n{number}": "x"' for number in range(130))
    store(objects, [Seen("1", 1, 1, payload=f'{{"id": 1, {said}}}')])
    built = build(objects, small_catalog(fields))
    assert built.cast_failures == {f"n{number}": 1 for number in range(130)}


def test_a_broken_raw_object_is_a_store_error(objects: LocalObjects, catalog: Catalog) -> None:
    key = raw_key(
        "acme", "east", "things", "2024-01-01", chunk_id="c", observed_at=START, writer="w"
    )
    objects.put(key, b"PAR1 this is no parquet file PAR1")
    with pytest.raises(StoreError, match="building versions"):
        build(objects, catalog)
    assert objects.stat(KEY) is None


def test_a_foreign_file_among_raw_is_a_store_error(objects: LocalObjects, catalog: Catalog) -> None:
    key = store(objects, [Seen("1", 1, 1)])
    with objects.create(key.replace("chunk", "a")) as path:
        pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(StoreError):
        build(objects, catalog)


def test_raw_objects_without_rows_are_an_empty_file(
    objects: LocalObjects, catalog: Catalog
) -> None:
    store(objects, [])
    built = build(objects, catalog)
    assert (built.raw_objects, built.observations, built.versions) == (1, 0, 0)


@pytest.mark.parametrize(
    ("service", "table", "text"),
    [
        ("north", "things", "known: east, west"),
        ("east", "nothing", "known: things, places, unmapped"),
        ("east", "unmapped", "feeds no canonical table"),
    ],
)
def test_what_is_not_mapped_is_refused(
    objects: LocalObjects, catalog: Catalog, service: str, table: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text):
        build_partition(objects, catalog, "acme", service, table, "2024-01-01")


def test_threads_that_store_and_build_lose_nothing(objects: LocalObjects, catalog: Catalog) -> None:
    def work(worker: int) -> None:
        for number in range(5):
            store(objects, [Seen(f"{worker}-{number}", number, number)])
            build(objects, catalog)
            assert f"{worker}-{number}" in {row["record_id"] for row in rows(objects)}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(rows(objects)) == 20


def build_in_process(root: Path) -> int:
    return build(LocalObjects(root), small_catalog()).versions


def test_processes_that_build_at_once_agree(objects: LocalObjects) -> None:
    store(objects, [Seen(str(number), 1, 1) for number in range(500)])
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(build_in_process, [objects.root] * 8)) == [500] * 8
    assert len(rows(objects)) == 500


def test_an_older_build_never_replaces_a_newer_one(
    objects: LocalObjects, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that listed raw sleeps; another stores more and builds; then the first wakes."""
    monkeypatch.setattr(versions, "ROUNDS", 1)
    store(objects, [Seen("old", 1, 1)])
    listed = objects.list
    meanwhile = [True]

    def slow(prefix: str) -> list[object]:
        found = listed(prefix)
        if meanwhile:
            meanwhile.clear()
            other = LocalObjects(objects.root)
            store(other, [Seen("new", 2, 2)])
            build(other, catalog)
        return list(found)

    monkeypatch.setattr(objects, "list", slow)
    build(objects, catalog)
    assert {row["record_id"] for row in rows(objects)} == {"old", "new"}


def test_raw_that_comes_while_building_is_built_too(
    objects: LocalObjects, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(objects, [Seen("early", 1, 1)])
    build_once = versions.write_versions
    meanwhile = [True]

    def build_and_more(*arguments: object, **named: object) -> object:
        counts = build_once(*arguments, **named)  # type: ignore[arg-type]
        if meanwhile:
            meanwhile.clear()
            store(objects, [Seen("late", 2, 2)])
        return counts

    monkeypatch.setattr(versions, "write_versions", build_and_more)
    assert build(objects, catalog).versions == 2
