"""What a person reads on a materialization: links, previews, schemas."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Where a file or folder of the lake is. A browser opens no local file from a page, so a local
    one is a path to copy."""
    location = objects.location(key)
    if location.startswith("/"):
        return dg.MetadataValue.path(location)
    return dg.MetadataValue.url(location)


def preview(
    objects: Objects, key: str, columns: Sequence[str] | None = None
) -> dg.TableMetadataValue:
    """The first rows of a Parquet object; long texts are cut."""
    with objects.open(key) as source:
        file = pq.ParquetFile(source)
        batch = next(file.iter_batches(_PREVIEW_ROWS, columns=columns), None)
        rows = batch.to_pylist() if batch is not None else []
        names = list(columns or file.schema_arrow.names)
    return dg.MetadataValue.table(
        records=[dg.TableRecord({n: _shown(row[n]) for n in names}) for row in rows],
        schema=dg.TableSchema(columns=[dg.TableColumn(n, "string") for n in names]),
    )


_MOMENT = "timestamp with time zone"
_ADDED = (
    dg.TableColumn("tenant_id", "string", "whose record it is"),
    dg.TableColumn("source_service", "string", "the service that it came from"),
    dg.TableColumn("source_table", "string", "the service's endpoint"),
    dg.TableColumn("record_hash", "string", "equal for versions whose mapped fields are equal"),
    dg.TableColumn("ingested_at", _MOMENT, "when this content was observed last"),
)
_OF_VERSIONS = (
    dg.TableColumn("record_id", "string", "the service's id"),
    dg.TableColumn("updated_at", _MOMENT, "the source's change time, or when a deletion was seen"),
    dg.TableColumn("is_deleted", "boolean", "whether this version says that the record is gone"),
    dg.TableColumn("content_hash", "string", "of the payload"),
    dg.TableColumn("first_observed_at", _MOMENT, "when this version was seen first"),
    dg.TableColumn("observed_times", "list of timestamps", "all moments at which it was stored"),
)
_OF_HISTORY = (
    dg.TableColumn("first_observed_at", _MOMENT, "when this version was seen first"),
    dg.TableColumn("effective_start_date", _MOMENT, "from when on the version holds"),
    dg.TableColumn("effective_end_date", _MOMENT, "until when, exclusive; null: it still holds"),
    dg.TableColumn("is_current", "boolean", "whether it holds now"),
    dg.TableColumn("record_version", "bigint", "counts the record's versions from 1"),
    dg.TableColumn("effective_start_origin", "string", "source: its own date; observed: ours"),
    dg.TableColumn("effective_end_origin", "string", "source: its own date; observed: ours"),
)


def versions_columns(table: CanonicalTable) -> dg.TableSchema:
    """The columns of a canonical partition."""
    return dg.TableSchema(columns=[*_fields(table), *_ADDED, *_OF_VERSIONS])


def history_columns(table: CanonicalTable) -> dg.TableSchema:
    """The columns of a history."""
    return dg.TableSchema(columns=[*_fields(table), *_ADDED, *_OF_HISTORY])


def _fields(table: CanonicalTable) -> list[dg.TableColumn]:
    return [dg.TableColumn(name, _TYPES[kind]) for name, kind in table.fields.items()]


def parquet_rows(objects: Objects, keys: Sequence[str]) -> int:
    """Rows of these Parquet objects, by their footers."""
    return sum(_rows(objects, key) for key in keys)


def _rows(objects: Objects, key: str) -> int:
    with objects.open(key) as file:
        return int(pq.read_metadata(file).num_rows)


def _shown(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _PREVIEW_TEXT else text[: _PREVIEW_TEXT - 1] + "…"
