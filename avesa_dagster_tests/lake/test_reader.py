"""The reader is exact at every moment, however far a history's generation is behind."""

from __future__ import annotations

from datetime import datetime
from itertools import product
from typing import Any

import pytest

from avesa_dagster.canonical.answers import Histories
from avesa_dagster.canonical.history import rebuild
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.lake.layout import versions_key
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.lake.reader import Reader

from ..canonical.lakes import TICKS, Seen, at, build, store
from ..canonical.oracle import Row, history, last_rows, rows_of

PARTITIONS = ("2024-01-01", "2024-01-02", "2024-01-03")

FIRST = {
    PARTITIONS[0]: [Seen("1", 1, 1), Seen("2", 1, 1), Seen("4", 2, 2), Seen("5", 1, 1)],
    PARTITIONS[1]: [Seen("1", 3, 3, "b"), Seen("2", 4, 4, None)],
}
LATER = {
    # A late version between two that are known, and one of a record that nobody knew.
    PARTITIONS[0]: [Seen("1", 2, 6, "late"), Seen("3", 1, 6)],
    # A sign of life of a deleted record, and a better look at a known version.
    PARTITIONS[1]: [Seen("2", 1, 7), Seen("1", 3, 8, "better")],
    # A new partition: a deletion and a change.
    PARTITIONS[2]: [Seen("4", 6, 6, None), Seen("5", 5, 5, "newest")],
}


def fill(objects: LocalObjects, catalog: Catalog, table: str, what: dict[str, list[Seen]]) -> None:
    for partition, seen in what.items():
        store(objects, seen, table=table, partition=partition)
        build(objects, catalog, table=table, partition=partition)


def holding(rows: set[Row], hour: float) -> set[tuple[str, str, int]]:
    moment = int(hour * TICKS)
    return {
        (row.record, row.name, row.start)
        for row in rows
        if row.start <= moment and (row.end is None or row.end > moment)
    }


def shown(relation: Any) -> set[tuple[str, str, int]]:
    return {
        (row["id"], row["name"], (row["effective_start_date"] - at(0)) // datetime.resolution)
        for row in relation.to_arrow_table().to_pylist()
    }


EVERY = product(["local"], ["things", "places"], [False, True], product([False, True], repeat=3))
SOME = [
    ("s3", "things", True, (True, False, True)),
    ("s3", "places", False, (False, True, True)),
]

both = pytest.mark.parametrize("objects", ["local", "s3"], indirect=True)


@pytest.mark.parametrize(
    ("objects", "table", "rebuilt", "behind"), [*EVERY, *SOME], indirect=["objects"]
)
def test_answers_equal_the_oracle_however_stale_the_manifest_is(
    objects: LocalObjects, catalog: Catalog, table: str, rebuilt: bool, behind: tuple[bool, ...]
) -> None:
    fill(objects, catalog, table, FIRST)
    if rebuilt:
        rebuild(objects, catalog, "acme", table)
    later = {p: LATER[p] for p, is_behind in zip(PARTITIONS, behind, strict=True) if is_behind}
    fill(objects, catalog, table, later)
    seen = [one for many in (*FIRST.values(), *later.values()) for one in many]
    expected = history(seen)
    reader = Reader(objects, catalog)
    rows = last_rows(expected) if table == "places" else expected
    assert rows_of(reader.history("acme", table)) == rows
    assert shown(reader.current("acme", table)) == {
        (row.record, row.name, row.start) for row in expected if row.current
    }
    for hour in (0.5, 1, 2.5, 3, 4.5, 7.5, 99):
        assert shown(reader.as_of("acme", table, at(hour))) == holding(expected, hour)
    counted = reader.query("acme", f"SELECT count(*) AS n FROM {table}_history")
    assert counted.to_pylist() == [{"n": len(rows)}]


@both
def test_a_vanished_partition_is_gone_from_the_answer(
    objects: LocalObjects, catalog: Catalog
) -> None:
    fill(objects, catalog, "things", FIRST)
    rebuild(objects, catalog, "acme", "things")
    objects.delete(versions_key("acme", "east", "things", PARTITIONS[1]))
    expected = history(FIRST[PARTITIONS[0]])
    assert rows_of(Reader(objects, catalog).history("acme", "things")) == expected


@both
def test_a_relation_made_before_a_rebuild_can_be_fetched_after_it(
    objects: LocalObjects, catalog: Catalog
) -> None:
    fill(objects, catalog, "things", FIRST)
    rebuild(objects, catalog, "acme", "things")
    expected = history([seen for many in FIRST.values() for seen in many])
    before = Reader(objects, catalog).history("acme", "things")
    fill(objects, catalog, "things", LATER)
    rebuild(objects, catalog, "acme", "things")
    assert rows_of(before) == expected


@both
def test_a_generation_that_vanishes_while_it_is_looked_at_is_no_trouble(
    objects: LocalObjects, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(objects, catalog, "things", FIRST)
    generation = rebuild(objects, catalog, "acme", "things").generation
    reader = Reader(objects, catalog)
    serves = Histories._serves

    def then_it_goes(*arguments: Any) -> bool:
        answer = serves(*arguments)
        objects.delete(generation)
        return answer

    monkeypatch.setattr(Histories, "_serves", then_it_goes)
    expected = history([seen for many in FIRST.values() for seen in many])
    assert rows_of(reader.history("acme", "things")) == expected


@both
def test_relations_become_pandas_and_arrow(objects: LocalObjects, catalog: Catalog) -> None:
    fill(objects, catalog, "things", FIRST)
    reader = Reader(objects, catalog)
    frame = reader.current("acme", "things").df()
    assert str(frame["effective_start_date"].dtype) == "datetime64[us, UTC]"
    assert list(frame.columns) == reader.as_of("acme", "things", at(1)).columns
    assert reader.current("acme", "things").to_arrow_table().num_rows == len(frame) == 3


def test_a_table_without_data_is_empty_and_typed(objects: LocalObjects, catalog: Catalog) -> None:
    fill(objects, catalog, "things", FIRST)
    reader = Reader(objects, catalog)
    assert reader.tables("acme") == ["things"]
    full = reader.history("acme", "things")
    bare = reader.history("acme", "places")
    assert bare.fetchall() == []
    assert (bare.columns, bare.types) == (full.columns, full.types)
    assert reader.as_of("acme", "places", at(1)).fetchall() == []
    assert reader.current("acme", "places").fetchall() == []


@both
def test_a_connected_tenant_without_data_is_no_mistake(
    objects: LocalObjects, catalog: Catalog
) -> None:
    reader = Reader(objects, catalog, tenants=["new"])
    assert reader.tables("new") == []
    assert reader.current("new", "things").fetchall() == []
    assert reader.query("new", "SELECT * FROM things").num_rows == 0


@pytest.mark.parametrize("tenants", [None, ["acme", "other"]])
def test_an_unknown_tenant_is_refused(
    objects: LocalObjects, catalog: Catalog, tenants: list[str] | None
) -> None:
    fill(objects, catalog, "things", FIRST)
    reader = Reader(objects, catalog, tenants=tenants)
    for ask in (
        lambda: reader.tables("nobody"),
        lambda: reader.current("nobody", "things"),
        lambda: reader.query("nobody", "SELECT 1"),
    ):
        with pytest.raises(ConfigurationError, match="there is no tenant 'nobody'") as caught:
            ask()
        assert tenants is None or "known: acme, other" in str(caught.value)


def test_an_unknown_table_is_refused_with_what_there_is(
    objects: LocalObjects, catalog: Catalog
) -> None:
    with pytest.raises(ConfigurationError, match="known: things, places"):
        Reader(objects, catalog).current("acme", "thing")


def test_a_name_that_would_leave_the_lake_is_refused(
    objects: LocalObjects, catalog: Catalog
) -> None:
    with pytest.raises(ConfigurationError, match="is no valid tenant name"):
        Reader(objects, catalog).current("../acme", "things")


def test_a_moment_without_a_zone_is_refused(objects: LocalObjects, catalog: Catalog) -> None:
    fill(objects, catalog, "things", FIRST)
    with pytest.raises(ConfigurationError, match="has no time zone"):
        Reader(objects, catalog).as_of("acme", "things", datetime(2024, 1, 1))


def test_a_lake_below_a_folder_with_odd_characters_is_read(tmp_path: Any, catalog: Catalog) -> None:
    objects = LocalObjects(tmp_path / "it's a [lake]*?")
    fill(objects, catalog, "things", FIRST)
    rebuild(objects, catalog, "acme", "things")
    reader = Reader(objects, catalog)
    assert len(reader.current("acme", "things").fetchall()) == 3
    assert reader.query("acme", "SELECT * FROM things").num_rows == 3
