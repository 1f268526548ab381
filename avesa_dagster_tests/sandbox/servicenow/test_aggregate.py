"""The Aggregate API, checked against the rows themselves."""

from __future__ import annotations

from typing import Any

from .conftest import Client


def stats(client: Client, table: str, **query: Any) -> Any:
    answer = client.get(f"stats/{table}", **query)
    assert answer.status_code == 200
    return answer.json()["result"]


def test_figures_are_strings(client: Client) -> None:
    rows = client.rows("incident", query="active=true")
    found = stats(
        client,
        "incident",
        query="active=true",
        count="true",
        min_fields="sys_created_on,priority",
        max_fields="sys_created_on",
        sum_fields="reassignment_count",
        avg_fields="reassignment_count",
    )["stats"]
    counts = [int(row["reassignment_count"]) for row in rows]
    created = [row["sys_created_on"] for row in rows]
    assert found["count"] == str(len(rows))
    assert found["min"] == {"sys_created_on": min(created), "priority": "1"}
    assert found["max"] == {"sys_created_on": max(created)}
    assert found["sum"] == {"reassignment_count": str(sum(counts))}
    assert abs(float(found["avg"]["reassignment_count"]) - sum(counts) / len(counts)) < 1e-6


def test_least_and_greatest_instants_of_a_window(client: Client) -> None:
    window = "sys_created_on>=2025-01-01^sys_created_on<2025-03-01"
    created = [row["sys_created_on"] for row in client.rows("incident", query=window)]
    both = {"min_fields": "sys_created_on", "max_fields": "sys_created_on"}
    found = stats(client, "incident", query=window, **both)["stats"]
    assert found == {
        "min": {"sys_created_on": min(created)},
        "max": {"sys_created_on": max(created)},
    }
    nothing = stats(client, "incident", query="sys_created_on<1999-01-01", count="true", **both)
    assert nothing["stats"]["count"] == "0"
    assert nothing["stats"]["min"] == {"sys_created_on": ""}
    shown = stats(client, "incident", query=window, display_value="true", **both)["stats"]
    assert shown["min"]["sys_created_on"] < found["min"]["sys_created_on"]  # Los Angeles


def test_groups(client: Client) -> None:
    rows = client.rows("task")
    kinds = [row["sys_class_name"] for row in rows]
    grouped = stats(client, "task", count="true", group_by="sys_class_name")
    counted = {line["groupby_fields"][0]["value"]: line["stats"]["count"] for line in grouped}
    assert counted == {kind: str(kinds.count(kind)) for kind in set(kinds)}
    assert grouped[0]["groupby_fields"][0]["field"] == "sys_class_name"
    large = stats(
        client, "task", count="true", group_by="sys_class_name", having="count^number^>^25"
    )
    assert {line["groupby_fields"][0]["value"] for line in large} == {"incident", "change_request"}
