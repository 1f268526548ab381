"""Records in both of the forms that Salesforce gives them: REST's JSON and a bulk job's CSV.

A payload of REST stays byte for byte. A row of CSV becomes the object that REST would have sent:
the same names in the same order, numbers and booleans by the fields' types, null for an empty cell,
datetimes with `+0000`. What the two still write differently (`3.5E8` and `350000000`, `1.0` and
`1`) is made one in `content_of`, which the content hash is taken of: a record that came by the one
way and comes again by the other is not a changed one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation

import msgspec
from msgspec import Raw

from avesa_dagster.sources.records import InvalidPage

_INTEGERS = frozenset({"int", "long"})
_NUMBERS = frozenset({"double", "currency", "percent"})
_IDS = frozenset({"id", "reference"})
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 60
_UTC_END = "+0000"
_ID = re.compile(r"[A-Za-z0-9]{15}([A-Za-z0-9]{3})?")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
_values = msgspec.json.Decoder(dict[str, object], float_hook=Decimal)
_raws = msgspec.json.Decoder(dict[str, Raw])

csv.field_size_limit(64 * 1024 * 1024)  # a long text area; the default is 128 kB


def full_id(text: str) -> str | None:
    """The id in its 18 characters, whose last three tell upper from lower case; None: it is none.

    Example: `001D000000IRFma` is `001D000000IRFmaIAH`.
    """
    if not _ID.fullmatch(text):
        return None
    if len(text) == 18:
        return text
    ends = ""
    for part in (text[0:5], text[5:10], text[10:15]):
        ends += _ALPHABET[sum(1 << n for n, sign in enumerate(part) if "A" <= sign <= "Z")]
    return text + ends


def id_order(record_id: str) -> str:
    """Orders ids as the service does: by their case-sensitive part."""
    return record_id[:15]


def values_of(payload: bytes) -> dict[str, object] | None:
    """The fields of a record's JSON, numbers exact; None: it cannot be read."""
    try:
        return _values.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        pass
    try:  # halves of a surrogate pair
        said = json.loads(payload, parse_float=Decimal)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def content_of(values: Mapping[str, object]) -> bytes:
    """16 bytes that are equal for equal fields, however they are written."""
    plain = {name: _plain(value) for name, value in values.items() if name != "attributes"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def joined(payloads: list[bytes]) -> bytes:
    """One record out of its parts, which were asked for with different fields."""
    fields: dict[str, Raw] = {}
    for payload in payloads:
        fields = {**_raws.decode(payload), **fields}
    return msgspec.json.encode(fields)


def payload_of(row: Mapping[str, object], name: str, record_id: str, version: str) -> bytes:
    """A row's JSON, as REST would have sent it.

    Args:
        row: As `rows` gives it.
        name: The object's name.
    """
    url = f"/services/data/v{version}/sobjects/{name}/{record_id}"
    fields = {field: _written(value) for field, value in row.items()}
    return msgspec.json.encode({"attributes": {"type": name, "url": url}, **fields})


def rows(body: bytes, types: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """The rows of a CSV with a header, values by the fields' types.

    Yields:
        Field -> text, bool, `Decimal` for a number, or None for an empty cell. A number keeps the
        digits that came. None of an empty body; a header that comes again is no row.

    Raises:
        InvalidPage: It is no such CSV, or was cut.
    """
    lines = io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline="")
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            doubled = next(name for name in header if header.count(name) > 1)
            raise InvalidPage(f"the result has two columns {doubled[:40]!r}")
        for cells in reader:
            if not cells or cells == header:
                continue
            if len(cells) != len(header):
                raise InvalidPage(
                    f"a row of the result has {len(cells)} cells, and its header {len(header)}"
                )
            yield {n: _value(cell, types.get(n)) for n, cell in zip(header, cells, strict=True)}
    except UnicodeDecodeError as error:
        raise InvalidPage(f"the result is no UTF-8: {error.reason}") from None
    except csv.Error as error:
        raise InvalidPage(f"the result is no CSV: {error}") from None


def _value(cell: str, kind: str | None) -> object:
    if cell == "":
        return None
    if kind == "boolean":
        return cell.lower() == "true" if cell.lower() in ("true", "false") else cell
    if kind in _INTEGERS or kind in _NUMBERS:
        return _number(cell, whole=kind in _INTEGERS)
    if kind == "datetime" and cell.endswith("Z"):
        return f"{cell[:-1]}+0000"
    if kind in _IDS and len(cell) == 15:
        return full_id(cell) or cell
    return cell


def _number(cell: str, *, whole: bool) -> object:
    if len(cell) > _LONGEST_NUMBER or not _NUMBER.fullmatch(cell):
        return cell
    try:
        number = Decimal(cell)
    except InvalidOperation:
        return cell
    if not whole:
        return number
    return int(number) if abs(number.adjusted()) < 40 and number == int(number) else number


def _written(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return value
    if isinstance(value, int):
        return Raw(str(value).encode())  # also one of more than 64 bits
    text = str(value)  # of a number with a fraction, REST writes it even where it is 0
    return Raw((text if "." in text or "E" in text else f"{text}.0").encode())


def _plain(value: object) -> object:
    """The value in its one form: a number as the list of its text."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | Decimal):
        return [_plain_number(Decimal(value))]
    if isinstance(value, str):
        if len(value) == 28 and value.endswith(_UTC_END):
            return f"{value[:23]}Z"
        return value
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value)


def _plain_number(number: Decimal) -> str:
    if number == 0:
        return "0"
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # JSON has no infinity
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    return f"{'-' if sign else ''}{stripped}E{exponent + len(text) - len(stripped)}"
