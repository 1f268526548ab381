"""Pages become records: byte for byte, every one accounted for, and nothing else raised."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.catalog.models import ServiceTable
from avesa_dagster.sources.records import InvalidPage, RecordDecoder

TABLE = ServiceTable(endpoint="x/y", enabled=True, id="id", change_field="_info.lastUpdated")
DECODER = RecordDecoder(TABLE)
GOOD = b'{"id":1,"_info":{"lastUpdated":"2026-01-02T03:04:05Z"}}'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"x": JSON},
            optional={
                "id": JSON | st.integers(1, 10**12),
                "_info": JSON
                | st.fixed_dictionaries({"lastUpdated": JSON | st.datetimes().map(str)}),
            },
        ),
        max_size=5,
    ),
    indent=st.sampled_from([None, 1]),
)
def test_every_object_of_a_page_is_a_record_or_a_rejected_one(
    rows: list[dict[str, Any]], indent: int | None
) -> None:
    body = json.dumps(rows, indent=indent).encode()
    records, rejected = DECODER.decode(body)
    assert len(records) + len(rejected) == len(rows)
    for payload in [r.payload for r in records] + [r.payload for r in rejected]:
        assert payload in body and json.loads(payload) in rows


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_bytes_that_are_no_page_are_refused_as_such(body: bytes) -> None:
    try:
        records, rejected = DECODER.decode(body)
    except InvalidPage:
        return
    assert len(records) + len(rejected) == len(json.loads(body))


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 3 * (len(GOOD) + 1)), joined=st.sampled_from([b",", b" ,\n"]))
def test_a_page_cut_anywhere_is_refused(cut: int, joined: bytes) -> None:
    whole = b"[" + joined.join([GOOD, b'{"id":2,"t":"\\ud83d"}', GOOD]) + b"]"
    if cut < len(whole):
        with pytest.raises(InvalidPage):
            DECODER.decode(whole[:cut])


def test_half_a_surrogate_pair_spoils_its_own_record_only() -> None:
    half = b'{"id":2,"summary":"cut \\ud83d"}'
    records, rejected = DECODER.decode(b" [ " + GOOD + b" ,\n" + half + b"," + GOOD + b" ] \n")
    assert [r.payload for r in records] == [GOOD, GOOD]
    assert [r.payload for r in rejected] == [half]
    assert records[0].updated_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_nesting_without_end_is_refused(depth: int) -> None:
    body = b'[{"id":1,"x":' + b"[" * depth + b"]" * depth + b"}]"
    try:
        records, rejected = DECODER.decode(body)
    except InvalidPage:
        return
    assert len(records) + len(rejected) == 1


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_change_time_beyond_the_calendar_is_rejected(text: str) -> None:
    body = json.dumps([{"id": 1, "_info": {"lastUpdated": text}}]).encode()
    records, (rejected,) = DECODER.decode(body)
    assert not records and "beyond the years" in rejected.reason


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T05:04:05+02:00"])
def test_change_times_are_utc(text: str) -> None:
    body = json.dumps([{"id": 1, "_info": {"lastUpdated": text}}]).encode()
    ((record,), _) = DECODER.decode(body)
    assert record.updated_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert record.updated_at.tzinfo is UTC
