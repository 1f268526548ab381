"""What a file of the platform before says of a record is what comes out, or says why not."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.migration.avesa1.records import Shape, Unreadable, shape_of, told
from avesa_dagster_tests.extract.support import MAPPINGS

from .old import Json, flattened, nested, parquet, told_alike

CONNECTWISE = Shape("connectwise")
EXACT = 2**53
names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,5}(_[a-z0-9]{1,3})?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda text: not text.lstrip().startswith("[")  # in a flattened file, that is an array
)
scalars = [
    st.booleans(),
    st.integers(-EXACT, EXACT),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
]


def values(depth: int) -> st.SearchStrategy[st.SearchStrategy[Any]]:
    """Strategies of values of one type each, as a column has."""
    leaves = st.sampled_from(scalars)
    if not depth:
        return leaves
    inner = values(depth - 1)
    return st.one_of(
        leaves,
        inner.map(lambda one: st.lists(one, max_size=3)),
        st.dictionaries(names, inner, min_size=1, max_size=3).map(objects),
    )


def objects(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Json]:
    """Objects of which each field may be null or absent."""
    return st.fixed_dictionaries({}, optional={n: st.none() | one for n, one in fields.items()})


@st.composite
def pages(draw: st.DrawFn) -> list[Json]:
    fields = draw(st.dictionaries(names, values(2), max_size=5))
    records = draw(st.lists(objects(fields), min_size=1, max_size=6))
    stamp = {"_info": {"lastUpdated": "2025-07-01T20:18:03Z", "updatedBy": "kim"}}
    return [{"id": number, **stamp, **record} for number, record in enumerate(records, 1)]


def comes_back(data: bytes, shape: Shape = CONNECTWISE) -> list[Json]:
    found = []
    for part in told(data, shape):
        assert not part.rejected, part.rejected
        found += [json.loads(payload) for payload in part.payloads]
    return found


def written(make: Any, records: list[Json]) -> bytes | None:
    """None: the platform before could not write it, said nothing and lost it."""
    try:
        data: bytes = make(records)
    except (pa.ArrowException, OverflowError):
        return None
    return data


@settings(max_examples=80, deadline=None)
@given(pages())
@example([{"id": 1, "a": None, "b": {"c": None}}, {"id": 2, "a": 3, "b": {"c": [{"d": None}]}}])
@example([{"id": 1, "summary": "[1]", "budget": 0.1}])
def test_a_nested_file_comes_back(records: list[Json]) -> None:
    data = written(nested, records)
    if data is not None:
        assert told_alike(comes_back(data)) == told_alike(records)


@settings(max_examples=80, deadline=None)
@given(pages())
@example([{"id": 1, "_info": {"lastUpdated": "x"}, "customFields": [{"id": 1, "value": 1.10}]}])
@example([{"id": 1, "company": None}, {"id": 2, "company": {"id": 5, "_info": {"href": "h"}}}])
def test_a_flattened_file_comes_back(records: list[Json]) -> None:
    data = written(flattened, records)
    if data is not None:
        assert told_alike(comes_back(data)) == told_alike(records)


def test_what_the_connector_would_store_is_the_same_bytes_where_it_can_be() -> None:
    payload = b'{"id":7,"summary":"\xc3\xa4","company":{"id":2,"name":"x"},"hours":1.5,"tags":[]}'
    (part,) = told(nested([json.loads(payload)]), CONNECTWISE)
    assert part.payloads == [payload]
    payload = b'{"id":7,"summary":"[1]","company":{"id":2,"name":"x"},"fields":[{"value":1.10}]}'
    column = {"id": 7, "summary": "[1]", "company__id": 2, "company__name": "x"}
    data = parquet(pa.Table.from_pylist([{**column, "fields": '[{"value":1.10}]'}]))
    (part,) = told(data, Shape("connectwise", texts=frozenset({"summary"})))
    assert part.payloads == [payload], "a mapped text stays a text, an array its digits"


def test_ids_that_pandas_made_into_floats_are_integers_again() -> None:
    records = [{"id": 1, "company": {"id": 12}, "parent": None}, {"id": 2, "parent": 9}]
    assert b'"parent":9' in b"".join(next(told(flattened(records), CONNECTWISE)).payloads)
    assert b'"company":{"id":12}' in next(told(flattened(records), CONNECTWISE)).payloads[0]


@pytest.mark.parametrize(
    ("service", "moment", "text"),
    [
        ("connectwise", datetime(2025, 7, 1, 20, 18, 3), "2025-07-01T20:18:03Z"),
        ("connectwise", datetime(2025, 7, 1, 20, 18, 3, 120_000), "2025-07-01T20:18:03.12Z"),
        ("salesforce", datetime(2025, 7, 1, 20, 18, 3, tzinfo=UTC), "2025-07-01T20:18:03.000+0000"),
    ],
)
@pytest.mark.parametrize("unit", ["us", "ns"])
def test_times_have_the_services_own_form(
    service: str, moment: datetime, text: str, unit: str
) -> None:
    kind = pa.timestamp(unit, tz="UTC" if moment.tzinfo else None)
    table = pa.table({"id": [1], "at": pa.array([moment], kind)})
    assert comes_back(parquet(table), Shape(service)) == [{"id": 1, "at": text}]


def test_servicenow_has_the_form_of_its_connector() -> None:
    at = pa.array([datetime(2025, 7, 1, 20, 18, 3)], pa.timestamp("us"))
    company = pa.array([{"link": "https://x", "value": "c1"}])
    table = pa.table(
        {"sys_id": ["a1"], "sys_updated_on": at, "active": [True], "company": company, "x": [None]}
    )
    (record,) = comes_back(parquet(table), Shape("servicenow"))
    assert record["sys_id"]["value"] == "a1" and record["active"]["value"] == "true"
    assert record["sys_updated_on"]["value"] == "2025-07-01 20:18:03"
    assert record["company"]["value"] == "c1" and record["x"]["value"] == ""


def test_salesforces_own_names_are_no_paths() -> None:
    table = pa.table({"Id": ["1"], "Plan__c": ["gold"], "ns__Rank__c": [3], "Owner__Name": ["k"]})
    (record,) = comes_back(parquet(table), Shape("salesforce"))
    assert record == {"Id": "1", "Plan__c": "gold", "ns__Rank__c": 3, "Owner": {"Name": "k"}}


def test_rows_that_json_cannot_hold_are_rejected_with_a_reason_and_without_secrets() -> None:
    table = pa.table(
        {
            "id": [1, 2, 3],
            "a": [1.5, float("inf"), None],
            "b": pa.array([b"text", b"\xff", b""], pa.binary()),
            "password": ["p1", "p2", "p3"],
            "price": pa.array([Decimal("0.10")] * 3, pa.decimal128(9, 2)),
        }
    )
    (part,) = told(parquet(table), Shape("connectwise", never_stored=frozenset({"password"})))
    assert [json.loads(p)["id"] for p in part.payloads] == [1, 3]
    assert b'"price":0.10' in part.payloads[0]
    (one,) = part.rejected
    assert "infinite" in one.reason and b'"id": 2' in one.payload and b"p2" not in one.payload


def test_a_value_and_an_object_of_one_name_are_rejected() -> None:
    table = pa.table({"id": [1, 2], "a": ["x", None], "a__b": ["y", "z"]})
    (part,) = told(parquet(table), CONNECTWISE)
    assert json.loads(part.payloads[0]) == {"id": 2, "a": {"b": "z"}}
    assert part.rejected[0].reason == "a is both a value and an object"


def test_a_file_that_is_no_parquet_says_so() -> None:
    data = nested([{"id": number} for number in range(500)])
    for spoilt in (data[: len(data) // 2], b"PAR1", b"{}", data[:-1]):
        with pytest.raises(Unreadable, match="it is no whole Parquet file"):
            list(told(spoilt, CONNECTWISE))
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    file = io.BytesIO()
    pq.write_table(twice, file)
    with pytest.raises(Unreadable, match="two columns 'id'"):
        list(told(file.getvalue(), CONNECTWISE))


def test_what_mappings_read_as_texts_is_never_taken_for_an_array() -> None:
    shape = shape_of(load_catalog(MAPPINGS), "connectwise", "contacts")
    assert "firstName" in shape.texts and "communicationItems" not in shape.texts
