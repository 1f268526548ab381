"""What the user may not see, and how little the service says about it."""

from __future__ import annotations

import pytest

from .conftest import Client, keyset_pages

ORDER = "ORDERBYsys_updated_on^ORDERBYsys_id"


def test_acls_run_after_the_limit(client: Client) -> None:
    client.control("hostility", restricted_share=0.4)
    truth = client.truth("incident")
    permitted = {sys_id for sys_id, about in truth.items() if not about["restricted"]}
    assert 100 < len(permitted) < 250
    found: list[str] = []
    lengths = []
    for offset in range(0, 300, 30):
        answer = client.get("table/incident", query=ORDER, limit=30, offset=offset)
        assert answer.headers["X-Total-Count"] == "300"
        rows = answer.json()["result"]
        lengths.append(len(rows))
        found += [row["sys_id"] for row in rows]
    assert set(found) == permitted and len(found) == len(permitted)
    assert min(lengths) < 30
    assert client.count("incident") == 300
    hidden = next(sys_id for sys_id in truth if sys_id not in permitted)
    assert client.get(f"table/incident/{hidden}").status_code == 404


def test_whole_pages_can_be_empty_in_the_middle(client: Client) -> None:
    client.control("hostility", restricted_window=["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])
    pages = [
        client.rows("incident", query=ORDER, limit=20, offset=offset)
        for offset in range(0, 300, 20)
    ]
    assert [] in pages[1:-1] and pages[0] and pages[-1]
    links = client.get("table/incident", query=ORDER, limit=20, offset=140).headers["Link"]
    assert 'rel="next"' in links


def test_an_empty_page_misleads_a_keyset_that_stops_at_it(client: Client) -> None:
    """What a wrong connector meets: rows behind the empty page are never seen."""
    window = ("2024-01-01 00:00:00", "2025-06-01 00:00:00")
    full = sum(map(len, keyset_pages(client, "incident", *window, 20)))
    client.control("hostility", restricted_window=["2024-03-01T00:00:00Z", "2024-12-01T00:00:00Z"])
    seen = sum(map(len, keyset_pages(client, "incident", *window, 20)))
    behind = client.count("incident", "sys_updated_on>=2024-12-01^sys_updated_on<2025-06-01")
    assert behind > 0 and seen + behind < full


def test_ids_can_be_hidden_by_range(client: Client) -> None:
    client.control("hostility", restricted_ids=["4", "8"])
    ids = client.ids("incident")
    assert not [sys_id for sys_id in ids if "4" <= sys_id < "8"]
    assert len(ids) == sum(not about["restricted"] for about in client.truth("incident").values())


def test_denied_rows_may_be_empty_objects(client: Client) -> None:
    client.control("hostility", restricted_share=0.4, restricted_rows="empty")
    rows = client.rows("incident")
    assert len(rows) == 300
    assert 50 < rows.count({}) < 200


def test_restriction_of_a_class_holds_through_its_parent(client: Client) -> None:
    client.control("hostility", restricted_share=1.0, restricted_tables=["incident"])
    assert client.rows("incident") == []
    assert {row["sys_class_name"] for row in client.rows("task")} == {
        "task",
        "change_request",
        "problem",
    }
    assert len(client.rows("sys_user")) == 50


def test_hidden_columns_are_missing_keys(client: Client) -> None:
    client.control("hostility", hidden_fields={"task": ["company"], "incident": ["caller_id"]})
    assert all(not {"company", "caller_id"} & set(row) for row in client.rows("incident"))
    assert all("company" not in row for row in client.rows("problem"))
    (row,) = client.rows("incident", fields="sys_id,caller_id", limit=1)
    assert list(row) == ["sys_id"]
    client.control("hostility", hidden_fields={"incident": ["caller_id"]}, hidden_fields_share=0.5)
    assert 50 < sum("caller_id" in row for row in client.rows("incident")) < 250


def test_before_query_rules_hide_rows_from_the_counts_too(client: Client) -> None:
    client.control("hostility", hidden_share=0.4)
    answer = client.get("table/incident")
    shown = len(answer.json()["result"])
    assert 100 < shown < 250
    assert client.count("incident") == shown == int(answer.headers["X-Total-Count"])
    assert shown == sum(not about["restricted"] for about in client.truth("incident").values())
    walked = keyset_pages(client, "incident", "2020-01-01 00:00:00", "2026-01-01 00:00:00", 17)
    assert sum(map(len, walked)) == shown


@pytest.mark.parametrize("table", ["sys_audit_delete", "incident"])
def test_a_table_may_be_denied_or_silently_empty(client: Client, table: str) -> None:
    client.control("delete", table="problem", count=3)
    assert client.rows(table, limit=1)
    client.control("table", table=table, readable="denied")
    refused = client.get(f"table/{table}")
    assert refused.status_code == 403
    assert refused.json()["error"]["message"] == "User Not Authorized"
    assert client.get(f"stats/{table}").status_code == 403
    client.control("table", table=table, readable="empty")
    silent = client.get(f"table/{table}")
    assert silent.json() == {"result": []}
    assert int(silent.headers["X-Total-Count"]) > 0
    client.control("table", table=table, readable=True)
    assert client.rows(table, limit=1)
