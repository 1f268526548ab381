"""Rows of Parquet made into the JSON that the service had sent, as far as Parquet still knows it.

The platform before wrote pages through pandas: nested objects as struct columns, or flattened by
`__` with arrays as JSON text. What comes back is the same values in the same order of fields. What
no file tells any more:

- whether a field was absent or null: it is null;
- how a number was written (`1.50`, `1.5e0`), and whether it was whole: pandas makes integers beside
  nulls, or beside fractions, into floats. Where a column has nulls and whole numbers only, they are
  written as integers, else as `12.0`;
- of a flattened file, whether an object was null or had nulls only (it is null), an empty object
  (it is null or absent), and a text that is itself a JSON array, if all texts of its column are
  and no mapping reads it as a text (it is an array);
- of a flattened file, names that contain `__` or end in `_`, but for Salesforce's own (`X__c`).

So contents do not compare equal, byte for byte, with what a connector stores of the same version,
unless the service's JSON is compact, has each field in each record, and no null among integers.
Versions do: they are told by id and change time.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avesa_dagster.catalog.models import Catalog, source_paths
from avesa_dagster.errors import DataError
from avesa_dagster.sources.base import SECOND_FORMAT, Rejected

_BATCH = 2_000
_EXACT = 2**53
_INDEX = re.compile(r"__index_level_\d+__")
_BETWEEN = re.compile(r"(?<=[^_])__(?=.)")
_OWN_OF_SALESFORCE = re.compile(r"__(c|r|pc|pr|x|e|b|mdt|kav|share|history|feed|tag)$", re.I)
_encoder = msgspec.json.Encoder(decimal_format="number")


class Unreadable(DataError):
    """A file that is no whole Parquet file, or that two columns of one name make useless."""


class _Unusable(Exception):
    """A row that cannot be told as JSON; says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a table's records are told.

    Attributes:
        texts: Paths whose values are texts, never arrays.
        never_stored: Top-level fields that are left out of what is rejected.
    """

    service: str
    texts: frozenset[str] = frozenset()
    never_stored: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Told:
    """Rows as JSON.

    Attributes:
        payloads: Of those that can be told.
        rejected: Of the others, what can be shown of them.
    """

    payloads: list[bytes]
    rejected: list[Rejected]


def shape_of(catalog: Catalog, service: str, table: str) -> Shape:
    """How the records of a table are told."""
    mapped = catalog.mapping(service, table)
    paths = (p for source in mapped[1].values() for p in source_paths(source)) if mapped else ()
    lists = {
        source.list for source in (mapped[1].values() if mapped else ()) if hasattr(source, "list")
    }
    known = catalog.services[service].tables[table]
    return Shape(service, frozenset(paths) - lists, frozenset(known.never_stored))


def told(data: bytes, shape: Shape) -> Iterator[Told]:
    """The rows of a file, some thousand at a time.

    Raises:
        Unreadable: It cannot be read to its end.
    """
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            columns = _Columns.of(file, shape)
            for batch in file.iter_batches(_BATCH, columns=columns.read):
                yield _told(batch, columns, shape)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise Unreadable(f"it is no whole Parquet file: {said}") from None


@dataclass(frozen=True, slots=True)
class _Columns:
    """What is read of a file.

    Attributes:
        read: Names of columns.
        paths: Column -> keys down to its value.
        arrays: Columns whose texts are JSON arrays.
        integers: Columns of floats that were integers before pandas saw nulls among them.
    """

    read: list[str]
    paths: Mapping[str, Sequence[str]]
    arrays: Collection[str]
    integers: Collection[str]

    @classmethod
    def of(cls, file: Any, shape: Shape) -> _Columns:
        schema: pa.Schema = file.schema_arrow
        names = [name for name in schema.names if not _INDEX.fullmatch(name)]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise Unreadable(f"it has two columns {doubled[:60]!r}")
        types = [schema.field(name).type for name in names]
        flat = not any(pa.types.is_nested(kind) for kind in types)
        paths = {name: _path(name, shape.service) if flat else (name,) for name in names}
        floats = [n for n, kind in zip(names, types, strict=True) if pa.types.is_floating(kind)]
        integers = _integers(file, floats)
        if all(len(path) == 1 for path in paths.values()):
            # Nothing shows that it was flattened, so a text stays a text.
            return cls(names, paths, (), integers)
        candidates = [
            name
            for name, kind in zip(names, types, strict=True)
            if (pa.types.is_string(kind) or pa.types.is_large_string(kind))
            and ".".join(paths[name]) not in shape.texts
        ]
        return cls(names, paths, _arrays(file, candidates), integers)


def _path(name: str, service: str) -> tuple[str, ...]:
    if service == "salesforce" and _OWN_OF_SALESFORCE.search(name):
        return (name,)
    return tuple(_BETWEEN.split(name))


def _arrays(file: Any, candidates: list[str]) -> frozenset[str]:
    """Those of some columns that hold texts, all of which are JSON arrays."""
    left, seen = list(candidates), set[str]()
    for group in range(file.num_row_groups if left else 0):
        part = file.read_row_group(group, columns=left)
        for name in list(left):
            values = part.column(name).drop_null()
            if not all(_is_array(value.as_py()) for value in values):
                left.remove(name)
            elif len(values):
                seen.add(name)
    return frozenset(left) & seen


def _integers(file: Any, candidates: list[str]) -> frozenset[str]:
    """Those of some columns of floats that have nulls, and whole numbers besides."""
    left, nulls = list(candidates), set[str]()
    for group in range(file.num_row_groups if left else 0):
        part = file.read_row_group(group, columns=left)
        for name in list(left):
            column = part.column(name)
            numbers = column.filter(pc.is_finite(pc.fill_null(column, math.nan)))
            whole = pc.all(pc.equal(numbers, pc.floor(numbers)), min_count=0).as_py()
            fits = pc.all(pc.less_equal(pc.abs(numbers), _EXACT), min_count=0).as_py()
            if not whole or not fits:
                left.remove(name)
            elif len(numbers) < len(column):
                nulls.add(name)
    return frozenset(left) & nulls


def _is_array(text: str) -> bool:
    if not text.startswith("["):
        return False
    try:
        return isinstance(json.loads(text, parse_constant=_refused), list)
    except (ValueError, RecursionError):
        return False


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _told(batch: pa.RecordBatch, columns: _Columns, shape: Shape) -> Told:
    payloads: list[bytes] = []
    rejected: list[Rejected] = []
    for row in _rows(batch):
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        try:
            payloads.append(_encoder.encode(_record(row, columns, shape)))
        except (_Unusable, RecursionError, UnicodeEncodeError) as error:
            shown = {name: v for name, v in row.items() if _kept(name, columns, shape)}
            text = json.dumps(shown, default=str, ensure_ascii=True).encode()
            rejected.append(Rejected(str(error) or "it is nested too deeply", text))
    return Told(payloads, rejected)


def _kept(name: str, columns: _Columns, shape: Shape) -> bool:
    return columns.paths[name][0] not in shape.never_stored


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Rejected]:
    """Each row as Python values; where one cannot be, the others still are."""
    try:
        yield from batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except (pa.ArrowException, ValueError, OverflowError) as error:
                reason = f"its values cannot be read: {' '.join(str(error).split())[:200]}"
                yield Rejected(reason, b"")


def _record(row: Mapping[str, Any], columns: _Columns, shape: Shape) -> dict[str, Any]:
    moment = _MOMENTS.get(shape.service, _seconds)
    found: dict[str, Any] = {}
    for name, value in row.items():
        if value is not None and name in columns.arrays:
            plain: Any = msgspec.Raw(value.encode())
        elif name in columns.integers and isinstance(value, float) and value.is_integer():
            plain = int(value)
        else:
            plain = _plain(value, moment)
        _insert(found, columns.paths[name], plain)
    if any(len(path) > 1 for path in columns.paths.values()):
        found = {name: _hollow(value, name, columns) for name, value in found.items()}
    return _dressed(found) if shape.service == "servicenow" else found


def _insert(into: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *above, last = path
    for part in above:
        below = into.get(part)
        if below is None:
            below = into[part] = {}
        elif not isinstance(below, dict):
            if value is None:
                return
            raise _Unusable(f"{part} is both a value and an object")
        into = below
    if isinstance(into.get(last), dict):
        if value is not None:
            raise _Unusable(f"{last} is both a value and an object")
        return
    into[last] = value


def _hollow(value: Any, name: str, columns: _Columns) -> Any:
    """Null for an object that unflattening made of nulls only."""
    if not isinstance(value, dict):
        return value
    below = {key: _hollow(inner, key, columns) for key, inner in value.items()}
    return None if all(inner is None for inner in below.values()) else below


def _plain(value: Any, moment: Callable[[datetime], str]) -> Any:
    """The value as JSON has it. Raises _Unusable."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return {key: _plain(inner, moment) for key, inner in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) for one in value):  # a map column
            return {str(key): _plain(inner, moment) for key, inner in value}
        return [_plain(inner, moment) for inner in value]
    if isinstance(value, datetime):
        plain = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if getattr(value, "nanosecond", 0):
            raise _Unusable(f"the time {value.isoformat()} is finer than a microsecond")
        return moment(plain)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal) and value.is_finite():
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _Unusable("it holds bytes that are no text") from None
    raise _Unusable(f"it holds a {type(value).__name__}, which JSON has not")


def _number(value: float) -> float | None:
    if math.isnan(value):
        return None  # how pandas writes null among numbers
    if math.isinf(value):
        raise _Unusable("it holds an infinite number, which JSON has not")
    return value


def _seconds(moment: datetime) -> str:
    if not moment.microsecond:
        return moment.strftime(SECOND_FORMAT)
    fraction = f"{moment.microsecond:06}".rstrip("0")
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction}Z"


def _spaced(moment: datetime) -> str:
    return _seconds(moment).replace("T", " ").removesuffix("Z")


def _thousandths(moment: datetime) -> str:
    digits = 3 if moment.microsecond % 1000 == 0 else 6
    fraction = f"{moment.microsecond:06}"[:digits]
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction}+0000"


_MOMENTS: Mapping[str, Callable[[datetime], str]] = {
    "servicenow": _spaced,
    "salesforce": _thousandths,
}


def _dressed(record: dict[str, Any]) -> dict[str, Any]:
    """A record of ServiceNow in the form that the connector asks for: each field a text and what
    is shown for it. One that has that form already stays."""
    if isinstance(record.get("sys_id"), dict | None):
        return record
    return {name: _field(value) for name, value in record.items()}


def _field(value: Any) -> Any:
    if isinstance(value, dict) and "value" in value:
        text = _text(value["value"])
        return {"display_value": _text(value.get("display_value", text)), "value": text}
    if isinstance(value, dict | list | msgspec.Raw):
        return value
    return {"display_value": _text(value), "value": _text(value)}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _encoder.encode(value).decode()
