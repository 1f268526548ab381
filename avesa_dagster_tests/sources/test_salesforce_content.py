"""Salesforce's two forms of a record, made one: what the content hash of both is taken of."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.sources.records import InvalidPage
from avesa_dagster.sources.salesforce.content import (
    content_of,
    full_id,
    joined,
    payload_of,
    rows,
    values_of,
)

ID = "5005g0000000059AAA"
TYPES = {
    "Id": "id",
    "SystemModstamp": "datetime",
    "Subject": "string",
    "Amount": "currency",
    "Count": "int",
    "IsClosed": "boolean",
    "OwnerId": "reference",
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
SPECIAL = st.sampled_from(["NA", "null", "\r\n", 'say "so"', "a\x00b", ",", "\n", "#N/A", " ", "'"])
NUMBER = st.decimals(-(10**15), 10**15, places=4) | st.sampled_from(
    [Decimal(0), Decimal("3.5E8"), Decimal("1E-7")]
)


def csv_of(header: list[str], *lines: list[str]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return out.getvalue().encode()


@given(
    subject=st.none() | TEXT | SPECIAL,
    amount=st.none() | NUMBER,
    count=st.none() | st.integers(-(2**70), 2**70),
    closed=st.booleans(),
    short=st.booleans(),
    ways=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_record_is_the_same_whichever_way_it_came(
    subject: str | None,
    amount: Decimal | None,
    count: int | None,
    closed: bool,
    short: bool,
    ways: tuple[bool, bool, bool],
) -> None:
    escaped, scientific, pointed = ways
    number = "null" if amount is None else f"{amount:e}" if scientific else f"{amount:f}"
    rest = (
        f'{{"attributes":{{"type":"Case","url":"/x"}},"SystemModstamp":'
        f'"2026-03-01T10:00:00.123+0000","Id":"{ID}","Amount":{number},'
        f'"Subject":{json.dumps(subject, ensure_ascii=escaped)},"Count":{json.dumps(count)},'
        f'"IsClosed":{json.dumps(closed)},"OwnerId":"{ID}"}}'
    ).encode()
    cells = [
        ID,
        "2026-03-01T10:00:00.123Z",
        subject or "",
        "" if amount is None else f"{amount:f}",
        "" if count is None else f"{count}.0" if pointed else str(count),
        str(closed).lower(),
        ID[:15] if short else ID,
    ]
    [row] = rows(csv_of(list(TYPES), cells), TYPES)
    by_pages = values_of(rest)
    assert by_pages is not None
    assert content_of(row) == content_of(by_pages)
    payload = json.loads(payload_of(row, "Case", ID, "60.0"), parse_float=Decimal)
    assert payload.pop("attributes") == {
        "type": "Case",
        "url": f"/services/data/v60.0/sobjects/Case/{ID}",
    }
    expected = json.loads(rest, parse_float=Decimal)
    del expected["attributes"]
    assert payload == expected
    assert list(payload) == list(TYPES)


@given(
    first=st.dictionaries(TEXT, st.none() | TEXT | st.booleans() | st.integers()), data=st.data()
)
def test_other_content_is_told_apart(first: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(st.dictionaries(TEXT, st.none() | TEXT | st.booleans() | st.integers()))
    first.pop("attributes", None)
    other.pop("attributes", None)
    same = json.dumps(first, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_of(first) == content_of(other)) is same


def test_a_number_is_not_its_text() -> None:
    assert content_of({"a": 1}) != content_of({"a": "1"})
    assert content_of({"a": Decimal("1.0")}) == content_of({"a": 1})


@pytest.mark.parametrize("written", ["1E999999999", "-0", "0.0", "1e5", "123456789012345678"])
def test_no_number_is_too_large_to_compare(written: str) -> None:
    held = values_of(f'{{"a":{written}}}'.encode())
    assert held is not None
    assert len(content_of(held)) == 16


def test_the_parts_of_a_record_are_joined_as_they_were_sent() -> None:
    parts = [b'{"attributes":{"type":"Case"},"Id":"x","a":1.50}', b'{"Id":"x","b":"\\u00e9"}']
    whole = joined(parts)
    assert json.loads(whole) == {"attributes": {"type": "Case"}, "Id": "x", "a": 1.5, "b": "é"}
    assert b"1.50" in whole


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'"Id","Subject"\n"1"\n', "1 cells"),
        (b'"Id","Subject"\n"1","cut', "no CSV"),
        (b'"Id","Subject","Id"\n"1","2","3"\n', "two columns"),
        (b'"Id"\n"\xff"\n', "no UTF-8"),
        (b'"Id"\n"a"b"\n', "no CSV"),
    ],
)
def test_a_damaged_result_is_none(body: bytes, said: str) -> None:
    with pytest.raises(InvalidPage, match=said):
        list(rows(body, TYPES))


def test_a_header_that_comes_again_is_no_row_and_a_mark_at_the_start_is_no_text() -> None:
    body = b'\xef\xbb\xbf"Id","Subject"\n"1","a"\n"Id","Subject"\n"2","b"\n\n'
    assert [row["Id"] for row in rows(body, TYPES)] == ["1", "2"]
    assert list(rows(b"", TYPES)) == []
    assert list(rows(b"Records not found for this query\n", TYPES)) == []


def test_ids_have_eighteen_characters() -> None:
    assert full_id("001D000000IRFma") == "001D000000IRFmaIAH"
    assert full_id("5005g0000000059") == ID
    assert full_id("5005g0000000059AAA") == ID
    assert full_id("' OR Id != '") is None
    assert full_id("5005g000000005") is None
