"""The page accounting tells what was given to whom, and how often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator

from .conftest import Client

TICKETS = "service/tickets"
WINDOW = "lastUpdated >= [2024-06-01T00:00:00Z] AND lastUpdated < [2025-03-01T00:00:00Z]"
FORWARD = {"pagination-type": "forward-only"}


def pages(simulator: Simulator, **about: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = simulator.control("fetched", **about)["pages"]
    return found


def walk(client: Client, size: int) -> list[int]:
    """Read the window by a hand-made keyset; the number of rows of each page, the last empty."""
    last, rows = 0, []
    while True:
        conditions = f"({WINDOW}) AND id > {last}"
        ids = client.ids(TICKETS, pageSize=size, orderBy="id asc", conditions=conditions)
        rows.append(len(ids))
        if not ids:
            return rows
        last = ids[-1]


def test_each_page_of_records_is_a_line(client: Client, simulator: Simulator) -> None:
    rows = walk(client, 40)
    lines = pages(simulator)
    assert [line["rows"] for line in lines] == rows[:-1]
    assert {line["times"] for line in lines} == {1}
    first, second = lines[:2]
    assert (first["company_id"], first["table"]) == ("acme_msp", "tickets")
    assert (first["order_by"], first["page_size"], first["page"]) == ("id asc", "40", None)
    assert first["conditions"] == f"({WINDOW}) AND id > 0"
    assert (first["changed_from"], first["changed_to"], first["above_id"]) == (
        "2024-06-01T00:00:00Z",
        "2025-03-01T00:00:00Z",
        0,
    )
    assert second["conditions"].endswith(f"id > {second['above_id']}")


def test_a_second_walk_shows_even_with_another_page_size(
    client: Client, simulator: Simulator
) -> None:
    def twice() -> int:
        seen: Counter[tuple[str, str, int]] = Counter()
        for line in pages(simulator):
            seen[line["changed_from"], line["changed_to"], line["above_id"]] += line["times"]
        return sum(times > 1 for times in seen.values())

    walk(client, 40)
    assert twice() == 0
    walk(client, 60)
    assert twice() >= 1
    walk(client, 40)
    assert {line["times"] for line in pages(simulator) if line["page_size"] == "40"} == {2}


def test_forward_only_and_numbered_pages_are_told_apart(
    client: Client, simulator: Simulator
) -> None:
    client.ids(TICKETS, FORWARD, pageSize=90)
    client.ids(TICKETS, FORWARD, pageSize=90, pageId=1100)
    client.ids(TICKETS, pageSize=90, page=2)
    client.ids(TICKETS, pageSize=90, page=2, fields="id")
    lines = [
        (line["page_id"], line["page"], line["fields"], line["above_id"])
        for line in pages(simulator)
    ]
    assert lines == [
        (None, None, None, 0),
        ("1100", None, None, 1100),
        (None, "2", None, 0),
        (None, "2", "id", 0),
    ]


def test_only_pages_with_records_count(client: Client, simulator: Simulator) -> None:
    client.get(TICKETS, conditions="id > 999999")
    client.get(f"{TICKETS}/count")
    client.get(f"{TICKETS}/1001")
    simulator.control("fail", table="tickets")
    client.get(TICKETS)
    simulator.control("heal")
    simulator.control("limit", limit_per_minute=0)
    client.get(TICKETS)
    assert pages(simulator) == []


def test_a_spoilt_page_is_not_a_sound_one(client: Client, simulator: Simulator) -> None:
    fault = {"kind": "cut_body", "framing": "content-length", "at": [1]}
    simulator.control("hostility", faults=[fault])
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        client.get(TICKETS)
    assert [(line["times"], line["spoilt"]) for line in pages(simulator)] == [(0, 1)]
    client.get(TICKETS)
    assert [(line["times"], line["spoilt"]) for line in pages(simulator)] == [(1, 1)]


def test_a_client_that_gave_up_was_given_nothing(client: Client, simulator: Simulator) -> None:
    simulator.control("hang", table="tickets", seconds=0.5)
    url = f"{client.root()}/{TICKETS}"
    with pytest.raises(requests.ReadTimeout):
        requests.get(url, auth=client.auth, headers=client.headers, timeout=0.2)
    client.get(TICKETS)
    assert [(line["times"], line["undelivered"]) for line in pages(simulator)] == [(1, 1)]


def test_companies_and_tables_are_kept_apart(client: Client, simulator: Simulator) -> None:
    added = simulator.control("add_company", company_id="other_msp", sizes={"tickets": 10})
    other = Client(simulator, added["credentials"])
    for caller in (client, other, other):
        caller.get(TICKETS)
    other.get("company/contacts")
    assert [line["times"] for line in pages(simulator, company_id="acme_msp")] == [1]
    assert [line["times"] for line in pages(simulator, company_id="other_msp")] == [2, 1]
    assert [line["times"] for line in pages(simulator, table="tickets")] == [1, 2]
    simulator.control("stats_reset")
    assert pages(simulator) == []


def test_requests_are_counted_by_minute_and_company(client: Client, simulator: Simulator) -> None:
    added = simulator.control("add_company", company_id="other_msp", sizes={"tickets": 10})
    other = Client(simulator, added["credentials"])
    simulator.control("limit", limit_per_minute=3, company_id="other_msp")
    simulator.control("stats_reset")
    for caller in (client, other, other, other, other):
        caller.get(TICKETS)
    stats = simulator.control("stats")
    assert stats["per_minute_by_credential"] == {
        "acme_msp": [{"minute": 0, "requests": 1}],
        "other_msp": [{"minute": 0, "requests": 4, "refused": 1}],
    }
    assert stats["per_minute"] == [{"minute": 0, "requests": 5, "refused": 1}]
