"""Paths, parameters, headers and statuses of the Table API."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from .conftest import Client

NO_RECORD = "No Record found"
NOWHERE = "sys_updated_on<1999-01-01"


def links(header: str) -> dict[str, str]:
    """rel to offset."""
    found = re.findall(r'<([^>]*)>;rel="(\w+)"', header)
    return {rel: parse_qs(urlsplit(url).query)["sysparm_offset"][0] for url, rel in found}


@pytest.mark.parametrize("version", ["", "v1/", "v2/"])
def test_versions_answer_alike_when_there_are_rows(client: Client, version: str) -> None:
    answer = client.get(f"{version}table/incident", limit=3)
    assert [len(answer.json()["result"]), answer.headers["X-Total-Count"]] == [3, "300"]


def test_only_v1_says_404_when_nothing_matches(client: Client) -> None:
    assert client.get("table/incident", query=NOWHERE).json() == {"result": []}
    assert client.get("v2/table/incident", query=NOWHERE).json() == {"result": []}
    refused = client.get("v1/table/incident", query=NOWHERE)
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == NO_RECORD
    assert refused.json()["status"] == "failure"


def test_one_record_by_sys_id_through_its_class_and_its_parent(client: Client) -> None:
    sys_id = client.ids("incident", limit=1)[0]
    whole = client.get(f"table/incident/{sys_id}").json()["result"]
    seen_as_task = client.get(f"table/task/{sys_id}").json()["result"]
    assert whole["sys_id"] == seen_as_task["sys_id"] == sys_id
    assert "caller_id" in whole and "caller_id" not in seen_as_task
    for missing in (f"table/problem/{sys_id}", "table/incident/" + "0" * 32, "table/task/x"):
        refused = client.get(missing)
        assert (refused.status_code, refused.json()["error"]["message"]) == (404, NO_RECORD)


def test_a_parent_table_has_the_rows_of_its_subclasses_with_its_own_columns(
    client: Client,
) -> None:
    rows = client.rows("task")
    assert len(rows) == 360
    assert {row["sys_class_name"] for row in rows} == {
        "task",
        "incident",
        "change_request",
        "problem",
    }
    assert all("caller_id" not in row for row in rows)
    kinds = {row["sys_class_name"] for row in client.rows("cmdb_ci")}
    assert kinds == {"cmdb_ci", "cmdb_ci_computer", "cmdb_ci_server", "cmdb_ci_service"}


def test_refusals(client: Client) -> None:
    table = f"{client.url}/api/now/table/incident"
    assert client.get("table/nothing").status_code == 400
    assert client.get("tables/incident").status_code == 400
    assert client.session.post(table, json={}).status_code == 405
    assert client.get("table/incident", {"Accept": "application/xml"}).status_code == 406
    for wrong in ({"offset": -1}, {"limit": "many"}):
        refused = client.get("table/incident", **wrong)
        assert (refused.status_code, refused.json()["status"]) == (400, "failure")


def test_the_default_limit_is_10000_and_an_offset_past_the_end_is_empty(client: Client) -> None:
    client.control("reset", sizes={"incident": 10_050}, now="2025-06-11T12:00:00Z")
    client.control("hostility", sound_rows=20_000)
    assert len(client.ids("incident")) == 10_000
    assert len(client.ids("incident", offset=10_000)) == 50
    assert client.rows("incident", offset=11_000) == []


def test_fields_that_do_not_exist_are_ignored(client: Client) -> None:
    (row,) = client.rows("incident", fields="number,sys_id,nonsense", limit=1)
    assert list(row) == ["number", "sys_id"]


def test_links_and_counts(client: Client) -> None:
    first = client.get("table/incident", limit=100, query="ORDERBYsys_id")
    assert links(first.headers["Link"]) == {"first": "0", "next": "100", "last": "200"}
    middle = client.get("table/incident", limit=100, offset=100)
    assert links(middle.headers["Link"]) == {
        "first": "0",
        "prev": "0",
        "next": "200",
        "last": "200",
    }
    assert "next" not in links(client.get("table/incident", limit=100, offset=200).headers["Link"])
    assert "Link" not in client.get("table/incident", limit=300).headers
    quiet = client.get(
        "table/incident", limit=100, no_count="true", suppress_pagination_header="true"
    )
    assert "Link" not in quiet.headers and "X-Total-Count" not in quiet.headers
    uncounted = client.get("table/incident", limit=100, no_count="true")
    assert links(uncounted.headers["Link"]) == {"first": "0", "next": "100"}


def test_offset_paging_is_unstable_without_a_unique_order(client: Client) -> None:
    def walk(query: str) -> list[str]:
        found = []
        for offset in range(0, 300, 50):
            found += client.ids("incident", query=query, limit=50, offset=offset)
        return found

    unstable, by_time = walk(""), walk("ORDERBYsys_updated_on")
    assert len(unstable) == len(by_time) == 300
    assert len(set(unstable)) < 300
    assert len(set(walk("ORDERBYsys_updated_on^ORDERBYsys_id"))) == 300


def test_ties_come_in_another_order_each_time(client: Client) -> None:
    tied = client.control("mutate", table="incident", count=40, at="2025-06-11T11:00:00Z")["ids"]
    query = "sys_updated_on=2025-06-11 11:00:00^ORDERBYsys_updated_on"
    walks = [client.ids("incident", query=query) for _ in range(3)]
    assert all(sorted(walk) == sorted(tied) for walk in walks)
    assert walks[0] != walks[1] or walks[1] != walks[2]
    by_id = client.ids("incident", query=query + "^ORDERBYsys_id")
    assert by_id == sorted(tied)


def test_tables_without_an_update_time(client: Client) -> None:
    for table in ("sys_user_has_role", "syslog"):
        rows = client.rows(table, query="sys_updated_on<1999-01-01")
        assert len(rows) == len(client.rows(table))  # the clause names no column: dropped
        assert all("sys_updated_on" not in row and row["sys_created_on"] for row in rows)
        assert client.rows(table, query="sys_created_on<1999-01-01") == []


def test_a_table_may_be_absent(client: Client) -> None:
    assert client.rows("time_card", limit=1)[0]["week_starts_on"]
    client.control("table", table="time_card", installed=False)
    refused = client.get("table/time_card")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "Invalid table time_card"


def test_the_dictionary_names_columns_where_they_are_declared(client: Client) -> None:
    parents = {row["sys_id"]: row["name"] for row in client.rows("sys_db_object")}
    table = next(r for r in client.rows("sys_db_object") if r["name"] == "incident")
    assert parents[table["super_class"]["value"]] == "task"
    own = client.rows("sys_dictionary", query="name=incident")
    assert {"caller_id", "severity"} <= {row["element"] for row in own}
    inherited = client.rows("sys_dictionary", query="name=task")
    declared = {row["element"]: row for row in own + inherited}
    assert declared["caller_id"]["reference"] == "sys_user"
    assert declared["sys_updated_on"]["internal_type"] == "glide_date_time"
    assert set(client.rows("incident", limit=1)[0]) == set(declared)
    client.control("column", table="incident", add="u_colour")
    client.control("column", table="incident", drop="severity")
    row = client.rows("incident", limit=1)[0]
    assert row["u_colour"].startswith("u_colour") and "severity" not in row
    own = client.rows("sys_dictionary", query="name=incident")
    assert {"u_colour"} == {r["element"] for r in own} - set(declared)
