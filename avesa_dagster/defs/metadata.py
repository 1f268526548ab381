"""What a person reads on a materialization: links, previews, schemas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

from avesa_dagster.catalog.models import CanonicalTable, FieldType
from avesa_dagster.lake.objects import Objects

_PREVIEW_ROWS = 5
_PREVIEW_TEXT = 120
_TYPES = {
    FieldType.STRING: "string",
    FieldType.BOOL: "boolean",
    FieldType.INT64: "bigint",
    FieldType.FLOAT64: "double",
    FieldType.DATETIME: "timestamp with time zone",
}


def link(objects: Objects, key: str) -> dg.MetadataValue:
    """A link to a file or folder of the lake."""
    location = objects.location(key)
    if location.startswith("/"):
        return dg.MetadataValue.url(Path(location).as_uri())
    return dg.MetadataValue.url(location)


def preview(
    objects: Objects, key: str, columns: Sequence[str] | None = None
) -> dg.TableMetadataValue:
    """The first rows of a Parquet object; long texts are cut."""
    file = pq.ParquetFile(objects.location(key))
    batch = next(file.iter_batches(_PREVIEW_ROWS, columns=columns), None)
    rows = batch.to_pylist() if batch is not None else []
    names = list(columns or file.schema_arrow.names)
    return dg.MetadataValue.table(
        records=[dg.TableRecord({n: _shown(row[n]) for n in names}) for row in rows],
        schema=dg.TableSchema(columns=[dg.TableColumn(n, "string") for n in names]),
    )


def column_schema(table: CanonicalTable) -> dg.TableSchema:
    """The canonical columns with their types, and those that every row carries."""
    own = [dg.TableColumn(name, _TYPES[kind]) for name, kind in table.fields.items()]
    added = [
        dg.TableColumn("tenant_id", "string"),
        dg.TableColumn("source_service", "string"),
        dg.TableColumn("source_table", "string"),
        dg.TableColumn("record_hash", "string"),
        dg.TableColumn("ingested_at", "timestamp with time zone"),
    ]
    return dg.TableSchema(columns=own + added)


def parquet_rows(objects: Objects, keys: Sequence[str]) -> int:
    """Rows of these Parquet objects, by their footers."""
    return sum(pq.read_metadata(objects.location(key)).num_rows for key in keys)


def _shown(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _PREVIEW_TEXT else text[: _PREVIEW_TEXT - 1] + "…"
