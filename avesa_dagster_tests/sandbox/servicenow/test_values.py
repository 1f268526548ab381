"""How values are written."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from avesa_dagster.sandbox.servicenow.content import CONSTANTS, HELD, MAKERS
from avesa_dagster.sandbox.servicenow.projection import Style
from avesa_dagster.sandbox.servicenow.schema import TABLES
from avesa_dagster.sandbox.servicenow.stamps import Zone
from avesa_dagster.sandbox.servicenow.world import World, WorldSpec

from .conftest import Client

PACIFIC = ZoneInfo("America/Los_Angeles")
ORDER = "ORDERBYsys_id"


def named(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """The rows where a column, as a reference or scalar, is not empty."""
    return [row for row in rows if row[column] != "" and row[column] != {"value": ""}]


@pytest.mark.parametrize("table", TABLES)
def test_every_scalar_is_a_string_and_nulls_are_empty(client: Client, table: str) -> None:
    if table == "sys_audit_delete":
        client.control("delete", table="incident", count=5)
    rows = client.rows(table, query=ORDER)
    assert rows
    for row in rows:
        for value in row.values():
            assert isinstance(value, str) or set(value) == {"link", "value"}
            assert isinstance(value, str) or value["link"].endswith(value["value"])


@pytest.mark.parametrize("table", ["incident", "change_request", "sys_user", "cmdb_ci_server"])
def test_the_three_display_modes_agree(client: Client, table: str) -> None:
    stored = client.rows(table, query=ORDER, exclude_reference_link="true")
    whole = client.rows(table, query=ORDER, display_value="all")
    bare = client.rows(table, query=ORDER, display_value="all", exclude_reference_link="true")
    shown = client.rows(table, query=ORDER, display_value="true", exclude_reference_link="true")
    for row, both, neat, display in zip(stored, whole, bare, shown, strict=True):
        assert {name: cell["value"] for name, cell in both.items()} == row
        assert {name: cell["display_value"] for name, cell in neat.items()} == display
        assert all(set(cell) == {"display_value", "value"} for cell in neat.values())
        linked = {name for name, cell in both.items() if "link" in cell}
        assert "company" in linked or row["company"] == ""
        assert all(both[name]["link"].endswith(row[name]) for name in linked)


def test_references(client: Client) -> None:
    rows = client.rows("incident", query=ORDER)
    row = named(rows, "caller_id")[0]
    user = client.get(row["caller_id"]["link"].partition("/api/now/")[2]).json()["result"]
    assert user["sys_id"] == row["caller_id"]["value"]
    shown = client.rows("incident", query=f"sys_id={row['sys_id']}", display_value="true")[0]
    assert shown["caller_id"] == {
        "display_value": user["name"],
        "link": row["caller_id"]["link"],
    }
    assert any(row["caller_id"] == "" for row in rows)


def test_a_reference_value_need_not_be_a_guid(client: Client) -> None:
    (row,) = client.rows("incident", limit=1)
    assert row["sys_domain"]["value"] == "global"


def test_displayed_instants_are_in_the_zone_of_the_user(client: Client) -> None:
    row = client.rows("incident", query=ORDER, display_value="all", limit=1)[0]
    cell = row["sys_updated_on"]
    stored = datetime.fromisoformat(cell["value"] + "+00:00")
    assert cell["display_value"] == f"{stored.astimezone(PACIFIC):%Y-%m-%d %H:%M:%S}"
    assert cell["display_value"] != cell["value"]
    client.control(
        "user", time_zone="Asia/Kolkata", date_format="dd-MM-yyyy", time_format="hh:mm:ss a"
    )
    cell = client.rows("incident", query=ORDER, display_value="all", limit=1)[0]["sys_updated_on"]
    there = stored.astimezone(ZoneInfo("Asia/Kolkata"))
    assert cell["display_value"] == f"{there:%d-%m-%Y %I:%M:%S %p}"
    assert cell["value"] == f"{stored:%Y-%m-%d %H:%M:%S}"
    client.control("user", time_zone="GMT")
    cell = client.rows("incident", query=ORDER, display_value="all", limit=1)[0]["sys_updated_on"]
    assert cell["display_value"] == cell["value"]


def test_durations_are_instants_after_1970_and_choices_have_labels(client: Client) -> None:
    rows = client.rows("incident", query=ORDER, display_value="all")
    spent = next(row["business_duration"] for row in rows if row["business_duration"]["value"])
    assert spent["value"].startswith("1970-01-0") and "Second" in spent["display_value"]
    states = {row["state"]["value"]: row["state"]["display_value"] for row in rows}
    assert (
        states.items()
        <= {
            "1": "New",
            "2": "In Progress",
            "3": "On Hold",
            "6": "Resolved",
            "7": "Closed",
        }.items()
    )
    costs = client.rows("cmdb_ci", query=ORDER, display_value="all", limit=3)
    for cost in (row["cost"] for row in costs):
        assert cost["display_value"] == f"${float(cost['value']):,.2f}"


def test_secrets_are_there_to_be_left_out_and_texts_are_hostile(client: Client) -> None:
    assert all(row["user_password"].startswith("$scrypt$") for row in client.rows("sys_user"))
    texts = "".join(row["short_description"] for row in client.rows("incident"))
    for sign in ("\x00", "🔥", "\r\n", '"', "\\"):
        assert sign in texts


@pytest.mark.parametrize("table", [t for t in TABLES if t not in HELD])
def test_both_ways_of_rendering_give_the_same(table: str) -> None:
    """Templates with constants folded in, and those for records with held columns."""
    world = World(3, WorldSpec(incidents=120, cis=60), 1_749_000_000)
    store, zone = world.store_of(table), Zone("Asia/Kathmandu", "MM/dd/yyyy", "hh:mm a")
    version = store.latest(0)
    for display in ("false", "true", "all"):
        for exclude in (False, True):
            style = Style(display, exclude)
            render = world.projection(table, table, style, zone, "http://x/").render
            for number in (0, 1, 7, 19, 31, 43):
                version.kind = table
                row = world.row(store, min(number, len(store) - 1), version)
                constants = CONSTANTS.get(table, {})
                assert render(dict(row)) == render(constants | row, held=True)


@pytest.mark.parametrize("table", [t for t in TABLES if t not in HELD])
def test_every_record_of_a_class_has_the_same_varying_columns(table: str) -> None:
    world = World(3, WorldSpec(), 1_749_000_000)
    store = world.store_of(table)
    version = store.latest(0)
    version.kind = table
    columns = {
        frozenset(world.row(store, number, version)) for number in range(min(200, len(store)))
    }
    assert len(columns) == 1
    assert columns.pop() <= set(world.schema.columns(table))
    assert table in MAKERS
