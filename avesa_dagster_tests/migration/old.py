"""Files as the platform before wrote them: pages through pandas, nested or flattened by `__`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Json = dict[str, Any]


def nested(records: Sequence[Json]) -> bytes:
    """Nested objects stay struct columns."""
    return parquet(pa.Table.from_pandas(pd.DataFrame(list(records))))


def flattened(records: Sequence[Json]) -> bytes:
    """Nested objects become columns `a__b`, arrays JSON."""
    return parquet(pa.Table.from_pandas(pd.DataFrame([flat(record) for record in records])))


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def flat(record: Mapping[str, Any], before: str = "") -> Json:
    found: Json = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}__")
        elif isinstance(value, list):
            found[f"{before}{name}"] = json.dumps(value)
        else:
            found[f"{before}{name}"] = value
    return found


def told_alike(value: Any) -> Any:
    """What is left of a value when a field that is null counts as absent, as in these files."""
    if isinstance(value, dict):
        kept = {name: told_alike(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if inner is not None and inner != {}}
    if isinstance(value, list):
        return [told_alike(inner) for inner in value]
    return value
