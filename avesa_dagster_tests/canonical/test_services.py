"""What ships: every mapped table of every service becomes the rows that it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import FieldType, source_paths
from avesa_dagster.lake.layout import versions_key
from avesa_dagster.lake.objects import LocalObjects

from .lakes import Seen, build, store
from .payloads import SAMPLES, Payload, cell, sent

CATALOG = load_catalog(Path(__file__).parents[2] / "mappings")
ALWAYS_ON = {"tickets", "time_entries", "companies", "contacts"}
EVERY = sorted(SAMPLES)


def rows(
    objects: LocalObjects, service: str, table: str, payloads: list[Payload]
) -> tuple[list[Payload], dict[str, int]]:
    """The rows of some records, by their place in the list, and what did not fit."""
    seen = [Seen(f"r{n}", 1, 1, payload=json.dumps(p)) for n, p in enumerate(payloads)]
    store(objects, seen, service=service, table=table)
    built = build(objects, CATALOG, service=service, table=table)
    assert built.versions == len(payloads)
    key = versions_key("acme", service, table, "2024-01-01")
    read = pq.ParquetFile(objects.location(key)).read()
    canonical, _ = mapping(service, table)
    return read.select(list(canonical)).to_pylist(), built.cast_failures


def mapping(service: str, table: str) -> tuple[dict[str, FieldType], dict[str, Any]]:
    found = CATALOG.mapping(service, table)
    assert found is not None
    return found[0].fields, found[1]


def test_every_mapped_table_has_a_sample_that_fills_every_field_that_it_maps() -> None:
    mapped = {(s, t) for s, known in CATALOG.services.items() for t in known.tables}
    assert {key for key in mapped if CATALOG.mapping(*key)} == mapped
    assert mapped - SAMPLES.keys() == {("connectwise", table) for table in ALWAYS_ON}
    for key, sample in SAMPLES.items():
        assert sample.row.keys() == mapping(*key)[1].keys(), key
        assert None not in sample.row.values(), key


@pytest.mark.parametrize(("service", "table"), EVERY)
def test_a_record_becomes_its_row(objects: LocalObjects, service: str, table: str) -> None:
    sample = SAMPLES[service, table]
    known = CATALOG.services[service].tables[table]
    fields, sources = mapping(service, table)
    unknown = sample.payload.keys() - set(known.record_fields)
    assert not unknown, "a field that the service file does not name"
    whole = sent(service, known, sample.payload)
    kept = {path.split(".")[0] for path in (known.id, known.change_field)}
    hidden = {name: whole[name] for name in kept}  # by a permission: the other keys are missing
    blanks = [None, "", cell(""), {"display_value": None, "value": ""}]
    empty = [
        dict.fromkeys(known.record_fields, blank) | hidden
        for blank in blanks[: 4 if service == "servicenow" else 1]
    ]
    (first, *others), unfit = rows(objects, service, table, [whole, hidden, *empty])
    assert first == dict.fromkeys(fields) | sample.row
    left = {
        field: sample.row[field]
        for field, source in sources.items()
        if any(path.split(".")[0] in kept for path in source_paths(source))
    }
    assert {"id"} <= left.keys() < sample.row.keys()
    assert others == [dict.fromkeys(fields) | left] * (1 + len(empty))
    assert unfit == {}


def test_no_time_of_servicenow_is_read_in_the_zone_of_a_user() -> None:
    for table in CATALOG.services["servicenow"].tables:
        fields, sources = mapping("servicenow", table)
        for field, source in sources.items():
            if fields[field] is not FieldType.STRING:
                assert all(path.endswith(".value") for path in source_paths(source)), field
