"""What each oddity of JSON becomes in a typed column."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from avesa_dagster.canonical.mapping import fingerprint
from avesa_dagster.canonical.versions import mapping_fingerprint
from avesa_dagster.errors import DataError
from avesa_dagster.lake.layout import versions_key
from avesa_dagster.lake.objects import LocalObjects

from .lakes import Seen, build, small_catalog, store

FIELDS = {
    "id": "string",
    "text": "string",
    "flag": "bool",
    "whole": "int64",
    "real": "float64",
    "time": "datetime",
}


def mapped(
    objects: LocalObjects, payload: str, **sources: Any
) -> tuple[dict[str, Any], dict[str, int]]:
    """The one row that a payload becomes, and the fields that failed to cast."""
    store(objects, [Seen("1", 1, 1, payload=payload)])
    built = build(objects, small_catalog(FIELDS, **sources))
    key = versions_key("acme", "east", "things", "2024-01-01")
    return pq.ParquetFile(objects.location(key)).read().to_pylist()[0], built.cast_failures


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ('"plain"', "plain"),
        ('""', ""),
        ("null", None),
        ('"null"', "null"),
        (r'"a\u0000b\u0000"', "ab"),
        (r'"\\u0000"', r"\u0000"),
        (r'"\ud83d\ude00"', "😀"),
        ("true", "true"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("18446744073709551616", "18446744073709551616"),
        ("0.1", "0.1"),
        ('{"b" : [1, "x"]}', '{"b":[1,"x"]}'),
        ("[1, null]", "[1,null]"),
        ('"Robert\'); DROP TABLE x;--"', "Robert'); DROP TABLE x;--"),
    ],
)
def test_a_string_field_keeps(objects: LocalObjects, said: str, text: str | None) -> None:
    row, failures = mapped(objects, f'{{"id": 1, "text": {said}}}')
    assert (row["text"], failures) == (text, {})


def test_a_text_of_five_megabytes_survives(objects: LocalObjects) -> None:
    long = "é" * 2_500_000
    row, _ = mapped(objects, json.dumps({"id": "1", "text": long}, ensure_ascii=False))
    assert row["text"] == long


def test_an_absent_field_is_null_and_no_failure(objects: LocalObjects) -> None:
    row, failures = mapped(objects, '{"id": 1}')
    assert [row[name] for name in FIELDS] == ["1", None, None, None, None, None]
    assert failures == {}


@pytest.mark.parametrize(
    ("field", "said", "value"),
    [
        ("flag", "true", True),
        ("flag", '"false"', False),
        ("flag", '"true"', True),
        ("whole", "9223372036854775807", 2**63 - 1),
        ("whole", '"-12"', -12),
        ("whole", "12.0", 12),
        ("whole", '"3"', 3),
        ("real", "123456789012345678901234567890", 1.2345678901234568e29),
        ("real", '"1.5e3"', 1500.0),
        ("real", '".25"', 0.25),
        ("time", '"2024-01-01"', datetime(2024, 1, 1, tzinfo=UTC)),
        ("time", '"2024-01-01 10:00:00"', datetime(2024, 1, 1, 10, tzinfo=UTC)),
        ("time", '"2024-01-01T10:00:00+05:30"', datetime(2024, 1, 1, 4, 30, tzinfo=UTC)),
        ("time", '"2024-01-01T10:00:00.000+0000"', datetime(2024, 1, 1, 10, tzinfo=UTC)),
        ("time", '"0001-01-01T00:00:00Z"', datetime(1, 1, 1, tzinfo=UTC)),
        (
            "time",
            '"9999-12-31T23:59:59.999999Z"',
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        ),
        ("flag", '""', None),
        ("whole", '""', None),
        ("real", '""', None),
        ("time", '""', None),
        ("time", "null", None),
    ],
)
def test_a_typed_field_takes(objects: LocalObjects, field: str, said: str, value: Any) -> None:
    row, failures = mapped(objects, f'{{"id": 1, "{field}": {said}}}')
    assert (row[field], failures) == (value, {})


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("flag", '"maybe"'),
        ("flag", "{}"),
        ("whole", "9223372036854775808"),
        ("whole", "1.5"),
        ("whole", '"0x10"'),
        ("whole", '"1_000"'),
        ("whole", "[1]"),
        ("real", "1e400"),
        ("real", '"NaN"'),
        ("real", '"1,5"'),
        ("time", '"2024-02-30"'),
        ("time", '"0001-01-01T00:00:00+05:30"'),
        ("time", '"9999-12-31T23:59:59-05:00"'),
        ("time", '"infinity"'),
        ("time", '"epoch"'),
        ("time", "1704067200"),
    ],
)
def test_what_does_not_fit_is_null_and_counted(
    objects: LocalObjects, field: str, said: str
) -> None:
    row, failures = mapped(objects, f'{{"id": 1, "{field}": {said}}}')
    assert (row[field], failures) == (None, {field: 1})


@pytest.mark.parametrize(
    "payload",
    ['{"id": 1', " ", "[1]", '"text"', "null", r'{"id": "\ud800"}', '{"id": 1} x', "{'id': 1}"],
)
def test_a_payload_that_is_no_object_is_named_and_nothing_is_replaced(
    objects: LocalObjects, payload: str
) -> None:
    key = versions_key("acme", "east", "things", "2024-01-01")
    store(objects, [Seen("good", 1, 1)])
    build(objects, small_catalog())
    before = objects.stat(key)
    store(objects, [Seen("bad-17", 2, 2, payload=payload)])
    with pytest.raises(DataError) as caught:
        build(objects, small_catalog())
    text = str(caught.value)
    assert "'bad-17'" in text
    assert "tenant=acme service=east table=things window=2024-01-01" in text
    assert objects.stat(key) == before


def test_nested_paths_and_first_of(objects: LocalObjects) -> None:
    payload = '{"id": 1, "a": {"b": {"c": "deep"}}, "x": "", "y": "second"}'
    row, _ = mapped(objects, payload, text="a.b.c", time="nowhere.at.all")
    assert (row["text"], row["time"]) == ("deep", None)
    row, _ = mapped(objects, payload, text={"first": ["nowhere", "x", "y"]})
    assert row["text"] == "second"
    row, _ = mapped(objects, payload, text={"first": ["nowhere", "x"]})
    assert row["text"] == ""


@pytest.mark.parametrize(
    ("said", "flag", "failures"),
    [
        ("true", False, {}),
        ("false", True, {}),
        ('"true"', False, {}),
        ('"0"', True, {}),
        ("null", None, {}),
        ('""', None, {}),
        ('"maybe"', None, {"flag": 1}),
        ("[]", None, {"flag": 1}),
    ],
)
def test_the_opposite_of_a_bool(
    objects: LocalObjects, said: str, flag: bool | None, failures: dict[str, int]
) -> None:
    row, failed = mapped(objects, f'{{"id": 1, "active": {said}}}', flag={"not": "active"})
    assert (row["flag"], failed) == (flag, failures)


def test_a_service_that_writes_null_as_an_empty_text_has_no_empty_text(
    objects: LocalObjects,
) -> None:
    fields = dict.fromkeys(("id", "plain", "first", "picked", "blank", "kept"), "string")
    catalog = small_catalog(
        fields, first={"first": ["plain", "none"]}, picked={"list": "items", "take": "value"}
    )
    store(objects, [Seen("1", 1, 1, payload=BLANKS)])
    key = versions_key("acme", "east", "things", "2024-01-01")
    for blank_is_null, empty in ((False, ""), (True, None)):
        east = catalog.services["east"].model_copy(update={"blank_is_null": blank_is_null})
        catalog.services["east"] = east
        said = mapping_fingerprint(catalog, "east", "things")
        build(objects, catalog)
        file = pq.ParquetFile(objects.location(key))
        row = file.read().to_pylist()[0]
        assert [row[name] for name in fields] == ["1", empty, empty, empty, " ", "x"]
        assert file.schema_arrow.metadata[b"avesa.mapping"].decode() == said
    canonical = catalog.canonical["things"]
    assert said != fingerprint(canonical, canonical.sources["east"]["api/things"])


BLANKS = '{"id": "1", "plain": "", "items": [{"value": ""}], "blank": " ", "kept": "x"}'
PICK = {"list": "items", "where": {"kind": "Mail's"}, "prefer": "main", "take": "value"}


@pytest.mark.parametrize(
    ("items", "value"),
    [
        ([{"kind": "Mail's", "value": "a"}, {"kind": "Mail's", "value": "b", "main": True}], "b"),
        ([{"kind": "Mail's", "value": "a", "main": False}, {"kind": "Mail's", "value": "b"}], "a"),
        ([{"kind": "Fax", "value": "a", "main": True}], None),
        ([], None),
        (None, None),
        ("text", None),
        ("[broken", None),
        ({"kind": "Mail's", "value": "a"}, None),
        ([1, None, {"kind": "Mail's", "value": "c"}], "c"),
    ],
)
def test_an_element_of_a_list_is_picked(objects: LocalObjects, items: Any, value: Any) -> None:
    row, _ = mapped(objects, json.dumps({"id": 1, "items": items}), text=PICK)
    assert row["text"] == value


def test_a_fingerprint_changes_with_mapping_and_types() -> None:
    table = small_catalog(FIELDS).canonical["things"]
    mapping = table.sources["east"]["api/things"]
    same = fingerprint(table, dict(mapping))
    assert same == fingerprint(table, mapping)
    assert same != fingerprint(table, {**mapping, "text": "other"})
    retyped = small_catalog(FIELDS | {"text": "bool"}).canonical["things"]
    assert same != fingerprint(retyped, mapping)
