"""The mappings: what ships is whole, and a mistake names file, path and what is allowed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import FieldType, ScdType
from avesa_dagster.catalog.schemas import schemas
from avesa_dagster.errors import ConfigurationError

SHIPPED = Path(__file__).parents[2] / "mappings"


@pytest.fixture
def mappings(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "mappings")
    return tmp_path / "mappings"


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_all_eight_endpoints_of_connectwise_are_described_and_four_are_on() -> None:
    tables = load_catalog(SHIPPED).services["connectwise"].tables
    assert {t.endpoint for t in tables.values()} == {
        "service/tickets", "time/entries", "company/companies", "company/contacts",
        "procurement/products", "finance/agreements", "project/projects", "system/members",
    }  # fmt: skip
    on = {name for name, table in tables.items() if table.enabled}
    assert on == {"tickets", "time_entries", "companies", "contacts"}


def test_the_canonical_tables_have_the_fields_and_kinds_that_they_always_had() -> None:
    canonical = load_catalog(SHIPPED).canonical
    assert {name: len(table.fields) for name, table in canonical.items()} == {
        "companies": 21, "contacts": 19, "tickets": 35, "time_entries": 26,
    }  # fmt: skip
    assert canonical["tickets"].scd_type is ScdType.TYPE_2
    assert canonical["companies"].scd_type is ScdType.TYPE_1
    assert canonical["time_entries"].fields["actual_hours"] is FieldType.FLOAT64


def test_a_new_endpoint_is_a_json_change(mappings: Path) -> None:
    def add(document: Any) -> None:
        document["tables"]["invoices"] = {
            "endpoint": "finance/invoices",
            "enabled": True,
            "id": "id",
            "change_field": "_info.lastUpdated",
        }

    edit(mappings / "services/connectwise.json", add)
    assert load_catalog(mappings).services["connectwise"].tables["invoices"].enabled


def test_a_tenant_may_override_the_service_settings(mappings: Path) -> None:
    own = {"acme": {"connectwise": {"requests_per_minute": 60}}}
    edit(mappings / "backfill_config.json", lambda d: d["tenants"].update(own))
    catalog = load_catalog(mappings)
    assert catalog.settings("acme", "connectwise").requests_per_minute == 60
    assert catalog.settings("globex", "connectwise").requests_per_minute == 200


MISTAKES: list[tuple[str, Callable[[Any], None], list[str]]] = [
    (
        "services/connectwise.json",
        lambda d: d["tables"]["tickets"].update(endpiont="service/tickets"),
        ["tables.tickets.endpiont", "unknown key", "change_field", "endpoint"],
    ),
    (
        "services/connectwise.json",
        lambda d: d["tables"]["tickets"].pop("endpoint"),
        ["tables.tickets.endpoint", "required"],
    ),
    (
        "services/connectwise.json",
        lambda d: d["tables"]["tickets"].update(canonical="tikets"),
        ["tables.tickets.canonical", "'tikets'", "companies, contacts, tickets, time_entries"],
    ),
    (
        "services/connectwise.json",
        lambda d: d["tables"].update({"../up": d["tables"]["tickets"]}),
        ["../up", "a-z, 0-9"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d["fields"].update(approved="boolean"),
        ["fields.approved", "'string', 'bool', 'int64', 'float64' or 'datetime'", "'boolean'"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d["sources"]["connectwise"]["service/tickets"].update(sumary="summary"),
        ["unknown field 'sumary'", "summary"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d["sources"]["connectwise"]["service/tickets"].update(summary="sumary"),
        ["service/tickets.summary", "unknown path 'sumary'", "near: summary"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d["sources"]["connectwise"]["service/tickets"].update(summary="a'; drop--"),
        ["service/tickets.summary", "field names joined by dots"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d["sources"]["connectwise"].update({"service/tickts": {"id": "id"}}),
        ["sources.connectwise.service/tickts", "unknown endpoint", "service/tickets"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d["sources"].update({"conectwise": {}}),
        ["sources.conectwise", "unknown service", "connectwise"],
    ),
    (
        "canonical/tickets.json",
        lambda d: d.update(scd_type="type_3"),
        ["scd_type", "'type_1' or 'type_2'", "'type_3'"],
    ),
    (
        "backfill_config.json",
        lambda d: d["services"]["connectwise"].update(partitions="hourly"),
        ["services.connectwise.partitions", "'daily', 'weekly', 'semi-monthly' or 'monthly'"],
    ),
    (
        "backfill_config.json",
        lambda d: d["services"]["connectwise"].update(requests_per_minute=0),
        ["services.connectwise.requests_per_minute", "greater than or equal to 1"],
    ),
    ("backfill_config.json", lambda d: d["services"].pop("connectwise"), ["connectwise"]),
]


@pytest.mark.parametrize(("file", "change", "said"), MISTAKES)
def test_a_mistake_names_file_path_and_what_is_allowed(
    mappings: Path, file: str, change: Callable[[Any], None], said: list[str]
) -> None:
    edit(mappings / file, change)
    with pytest.raises(ConfigurationError) as raised:
        load_catalog(mappings)
    for part in (file.rsplit("/", 1)[-1], *said):
        assert part in str(raised.value)


def test_a_file_that_is_no_json_is_named(mappings: Path) -> None:
    (mappings / "canonical/tickets.json").write_text('{"table": ')
    with pytest.raises(ConfigurationError, match=r"tickets\.json: is no JSON"):
        load_catalog(mappings)


def test_a_key_that_stands_twice_is_named(mappings: Path) -> None:
    file = mappings / "services/connectwise.json"
    file.write_text(file.read_text().replace('"tables": {', '"tables": {"tickets": {},', 1))
    with pytest.raises(ConfigurationError, match=r"connectwise\.json.* key twice: tickets"):
        load_catalog(mappings)


def test_a_folder_without_mappings_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="AVESA_MAPPINGS"):
        load_catalog(tmp_path)


def test_the_schemas_that_ship_are_those_of_the_models() -> None:
    shipped = {path.name: path.read_text() for path in (SHIPPED / "schema").glob("*.json")}
    assert shipped == schemas(), "write them anew: python -m avesa_dagster.catalog.schemas"


def test_every_file_names_its_schema() -> None:
    for path in [
        *SHIPPED.glob("*.json"),
        *SHIPPED.glob("services/*"),
        *SHIPPED.glob("canonical/*"),
    ]:
        schema = json.loads(path.read_text())["$schema"]
        assert (path.parent / schema).exists(), path
