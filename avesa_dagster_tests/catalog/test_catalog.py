"""The mappings: what ships is whole, and a mistake names file, path and what is allowed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import FieldType, Grain, ScdType
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


ON: dict[str, dict[str, str]] = {
    "connectwise": {
        "service/tickets": "tickets", "time/entries": "time_entries",
        "company/companies": "companies", "company/contacts": "contacts",
    },
    "servicenow": {
        "incident": "tickets", "sys_user": "contacts", "core_company": "companies",
        "time_card": "time_entries",
    },
    "salesforce": {"Account": "companies", "Contact": "contacts", "Case": "tickets"},
}  # fmt: skip
OFF: dict[str, dict[str, str]] = {
    "connectwise": {
        "procurement/products": "products", "finance/agreements": "agreements",
        "project/projects": "projects", "system/members": "members",
    },
    "servicenow": {
        "change_request": "change_requests", "problem": "problems",
        "cmdb_ci": "configuration_items",
    },
    "salesforce": {
        "Opportunity": "opportunities", "Lead": "leads", "Task": "tasks", "Event": "events",
        "User": "members",
    },
}  # fmt: skip
MASTER_DATA = {
    "connectwise": {"company/companies", "company/contacts", "system/members"},
    "servicenow": {"core_company", "sys_user"},
    "salesforce": {"Account", "Contact"},
}
PAGING = {  # page size, id, change field, lag in seconds
    "connectwise": (1000, "id", "_info.lastUpdated", 60),
    "servicenow": (1000, "sys_id.value", "sys_updated_on.value", 60),
    "salesforce": (2000, "Id", "SystemModstamp", 300),
}
PACE = {  # lookback days, chunk days, requests a minute
    "connectwise": (730, 30, 200),
    "servicenow": (365, 14, 100),
    "salesforce": (1095, 7, 1000),
}
HISTORISED = {
    "tickets", "opportunities", "leads", "tasks", "change_requests", "problems", "projects",
}  # fmt: skip


@pytest.mark.parametrize("service", ON)
def test_every_endpoint_is_described_and_mapped_and_some_are_on(service: str) -> None:
    catalog = load_catalog(SHIPPED)
    known = catalog.services[service]
    tables = known.tables.values()
    assert {t.endpoint: t.canonical for t in tables} == ON[service] | OFF[service]
    assert {t.endpoint for t in tables if t.enabled} == ON[service].keys()
    assert {t.endpoint for t in tables if t.master_data} == MASTER_DATA[service]
    assert {(known.page_size, t.id, t.change_field, known.lag_seconds) for t in tables} == {
        PAGING[service]
    }
    pace = catalog.backfill.services[service]
    assert (pace.lookback_days, pace.chunk_size_days, pace.requests_per_minute) == PACE[service]
    assert pace.partitions is Grain.MONTHLY


def test_the_canonical_tables_have_the_fields_and_kinds_that_they_always_had() -> None:
    canonical = load_catalog(SHIPPED).canonical
    historised = {name for name, table in canonical.items() if table.scd_type is ScdType.TYPE_2}
    assert historised == HISTORISED
    fields = {name: set(table.fields) for name, table in canonical.items()}
    days = {field for field in fields["time_entries"] if field.endswith("day_hours")}
    new = {"category", "subcategory", "status", "week_starts_on"} | days
    assert len(days) == 7
    assert len(fields["companies"]) == 21
    assert len(fields["contacts"]) == 19
    assert len(fields["tickets"] - {"category", "subcategory"}) == 35
    assert len(fields["time_entries"] - new) == 26
    assert canonical["time_entries"].fields["actual_hours"] is FieldType.FLOAT64


def test_what_a_service_does_not_have_is_mapped_to_nothing() -> None:
    canonical = load_catalog(SHIPPED).canonical
    company = canonical["companies"].sources["servicenow"]["core_company"]
    assert not {"status", "company_identifier"} & company.keys()
    card = canonical["time_entries"].sources["servicenow"]["time_card"]
    assert not {"time_start", "time_end", "company_id"} & card.keys()
    assert card["actual_hours"] == "total.value"


@pytest.mark.parametrize(
    ("service", "name", "endpoint"),
    [
        ("connectwise", "invoices", "finance/invoices"),
        ("servicenow", "u_asset_loan", "u_asset_loan"),
        ("salesforce", "invoice__c", "Invoice__c"),
    ],
)
def test_a_new_endpoint_is_a_json_change(
    mappings: Path, service: str, name: str, endpoint: str
) -> None:
    file = mappings / f"services/{service}.json"
    _, record_id, changed, _ = PAGING[service]
    table = {"endpoint": endpoint, "enabled": True, "id": record_id, "change_field": changed}
    edit(file, lambda document: document["tables"].update({name: table}))
    catalog = load_catalog(mappings)
    assert catalog.services[service].tables[name].enabled
    assert catalog.mapping(service, name) is None
    edit(file, lambda document: document["tables"][name].update(canonical="loans"))
    loans = {
        "table": "loans",
        "scd_type": "type_1",
        "fields": {"id": "string", "extra": "bool"},
        "sources": {service: {endpoint: {"id": record_id, "extra": "Extra__c"}}},
    }
    (mappings / "canonical/loans.json").write_text(json.dumps(loans))
    assert load_catalog(mappings).mapping(service, name)


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
        ["tables.tickets.canonical", "'tikets'", "known: agreements, ", "tickets, time_entries"],
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
        lambda d: d["sources"]["servicenow"]["incident"].update(status={"not": "active.value"}),
        ["sources.servicenow.incident.status", "'not' is for a bool field", "status is string"],
    ),
    (
        "canonical/contacts.json",
        lambda d: d["sources"]["servicenow"]["sys_user"].update(inactive_flag={"not": "activ.val"}),
        ["sys_user.inactive_flag", "unknown path 'activ.val'", "near: active"],
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
