"""Faults and exhausted transactions: each can be seen, happens when told, and is counted."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import SimulatorError

from .conftest import Client

ORDER = "ORDERBYsys_updated_on^ORDERBYsys_id"
CANCELLED = "Transaction cancelled: maximum execution time exceeded"


def script(client: Client, *faults: dict[str, Any], **rest: Any) -> None:
    client.control("hostility", faults=list(faults), **rest)


def injected(client: Client) -> dict[str, int]:
    found: dict[str, int] = client.control("stats")["faults"]
    return found


def test_an_error_can_come_inside_a_200_after_part_of_the_rows(client: Client) -> None:
    script(client, {"kind": "error_object_200", "at": [1]})
    answer = client.get("table/incident", limit=40)
    assert answer.status_code == 200 and answer.headers["X-Total-Count"] == "300"
    body = answer.json()
    assert len(body["result"]) == 20
    assert (body["error"]["message"], body["status"]) == (CANCELLED, "failure")
    assert len(client.rows("incident", limit=40)) == 40
    script(client, {"kind": "error_object_200", "at": [1], "on": "count"})
    assert client.get("stats/incident", count="true").json()["error"]["message"] == CANCELLED
    assert injected(client) == {"error_object_200": 2}


def test_large_pages_are_cut_short_in_one_way_or_the_other(client: Client) -> None:
    client.control("hostility", sound_rows=100)
    answers = [client.get("table/incident", limit=150) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    broken = 0
    for answer in answers:
        try:
            assert answer.json()["error"]["message"] == CANCELLED
        except requests.JSONDecodeError:
            broken += 1
    assert broken == 1
    assert len(client.rows("incident", limit=100)) == 100
    client.control("hostility", sound_rows=100, oversize="cancel")
    assert all("error" in client.get("table/incident", limit=101).json() for _ in range(3))
    assert injected(client)["oversize"] == 5
    with pytest.raises(SimulatorError, match="oversize"):
        client.control("hostility", oversize="explode")


def test_a_window_of_many_rows_exhausts_the_transaction(client: Client) -> None:
    client.control("hostility", quota_rows=100)
    assert "error" in client.get("table/incident", limit=10).json()
    assert "error" in client.get("stats/incident", count="true").json()
    narrow = "sys_updated_on>=2025-03-01^sys_updated_on<2025-04-01"
    assert len(client.rows("incident", query=narrow)) == client.count("incident", narrow) > 0


def test_rows_dropped_doubled_repeated_or_all_gone(client: Client) -> None:
    sound = client.ids("incident", query=ORDER, limit=20)
    script(client, {"kind": "drop_row", "at": [1]}, {"kind": "duplicate_row", "at": [2]})
    assert len(client.ids("incident", query=ORDER, limit=20)) == 19
    doubled = client.ids("incident", query=ORDER, limit=20)
    assert len(doubled) == 21 and set(doubled) == set(sound)
    script(client, {"kind": "empty_page", "at": [1]}, {"kind": "short_page", "at": [2], "rows": 4})
    assert client.ids("incident", query=ORDER, limit=20) == []
    assert client.ids("incident", query=ORDER, limit=20) == sound[:4]
    script(client, {"kind": "repeat_page", "at": [2]})
    first = client.ids("incident", query=ORDER, limit=20)
    assert client.ids("incident", query=ORDER, limit=20, offset=20) == first == sound
    script(client, {"kind": "filter_ignored", "at": [1]})
    assert len(client.ids("incident", query="sys_updated_on>=2025-06-01")) == 300


def test_pages_may_be_clamped(client: Client) -> None:
    client.control("hostility", page_clamp=25)
    answer = client.get("table/incident", query=ORDER, limit=100)
    assert len(answer.json()["result"]) == 25
    assert "sysparm_offset=25" in answer.headers["Link"]


@pytest.mark.parametrize("framing", ["content-length", "chunked", "close"])
def test_bodies_cut_in_every_framing(client: Client, framing: str) -> None:
    script(client, {"kind": "cut_body", "framing": framing, "probability": 1.0})
    with pytest.raises((requests.RequestException, ValueError)):
        client.get("table/incident", limit=100).json()
    script(client)
    assert len(client.rows("incident", limit=100)) == 100


@pytest.mark.parametrize("kind", ["reset_before", "reset_after_headers", "broken_json"])
def test_connections_break_and_json_ends_early(client: Client, kind: str) -> None:
    script(client, {"kind": kind, "at": [1]})
    with pytest.raises((requests.RequestException, ValueError)):
        client.get("table/incident", limit=5).json()
    assert len(client.rows("incident", limit=5)) == 5
    assert injected(client) == {kind: 1}


def test_statuses_pages_redirects_and_slowness(client: Client) -> None:
    script(
        client,
        {"kind": "status", "status": 503, "at": [1], "body": "html"},
        {"kind": "status", "status": 429, "at": [2], "retry_after": 7},
        {"kind": "html_200", "at": [3]},
        {"kind": "redirect", "at": [4]},
        {"kind": "slow", "at": [5], "seconds": 0.3},
    )
    assert client.get("table/incident").headers["Content-Type"].startswith("text/html")
    refused = client.get("table/incident")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "7")
    assert "hibernating" in client.get("table/incident").text
    assert client.get("table/incident").status_code == 302
    began = time.monotonic()
    assert client.get("table/incident").status_code == 200
    assert time.monotonic() - began > 0.3
    with pytest.raises(SimulatorError, match="codebase_upgrade"):
        script(client, {"kind": "codebase_upgrade", "at": [1]})
    with pytest.raises(SimulatorError, match="nonsense"):
        client.control("hostility", nonsense=1)


def test_caps_and_limits_to_tables_and_kinds(client: Client) -> None:
    always = {"kind": "status", "status": 500, "probability": 1.0}
    script(client, always | {"table": "problem"}, max_faults=2)
    assert client.get("table/incident").status_code == 200
    assert [client.get("table/problem").status_code for _ in range(3)] == [500, 500, 200]
    script(client, always, max_consecutive=1)
    window = "sys_updated_on>={}^sys_updated_on<2025-05-05^ORDERBYsys_updated_on"
    statuses = [
        client.get("table/incident", query=window.format(day)).status_code
        for day in ("2024-01-01", "2024-02-01", "2024-03-01")
    ]
    assert statuses == [500, 200, 500]  # one stream, whatever its lower bound
    script(client, always | {"on": "token"})
    assert client.get("table/incident").status_code == 200
    assert requests.post(f"{client.url}/oauth_token.do", timeout=10).status_code == 500


def test_an_outage_holds_for_a_window_until_healed(client: Client) -> None:
    march = {"start": "2025-03-01T00:00:00Z", "end": "2025-04-01T00:00:00Z"}
    client.control("fail", name="march", table="incident", status=502, **march)

    def status(start: str, end: str) -> int:
        window = f"sys_updated_on>={start}^sys_updated_on<{end}"
        keyset = f"{window}^sys_updated_on>{start}^NQ{window}^sys_updated_on={start}^sys_id>a"
        return client.get("table/incident", query=keyset + "^" + ORDER).status_code

    assert status("2025-03-10", "2025-03-20") == 502
    assert status("2025-04-01", "2025-05-01") == 200
    assert client.get("table/incident", query=ORDER).status_code == 200
    assert client.get("table/problem", query="sys_updated_on>=2025-03-05").status_code == 200
    assert client.control("outages")["outages"][0]["met"] == 1
    assert client.control("heal", name="march") == {"met": {"march": 1}}
    assert status("2025-03-10", "2025-03-20") == 200


def test_what_hangs_goes_on_when_healed(client: Client) -> None:
    client.control("hang", seconds=30, table="incident")
    healer = threading.Timer(0.3, lambda: client.control("heal"))
    healer.start()
    began = time.monotonic()
    assert len(client.rows("incident", limit=3)) == 3
    assert 0.25 < time.monotonic() - began < 10


def test_latency(client: Client) -> None:
    client.control("latency", latency_ms=150)
    began = time.monotonic()
    client.rows("incident", limit=1)
    assert time.monotonic() - began > 0.14


def test_plain_http_without_a_library(client: Client) -> None:
    host = client.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", "/api/now/table/incident")
    answer = connection.getresponse()
    assert answer.status == 401
    assert json.loads(answer.read())["status"] == "failure"
    connection.close()
