"""Each fault can be seen from outside, happens when the script says, and is counted."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator

from .conftest import Client

TICKETS = "service/tickets"
OLD = "lastUpdated < [2025-01-01T00:00:00Z]"


def script(client: Client, *faults: dict[str, Any], **rest: Any) -> None:
    client.simulator.control("hostility", faults=list(faults), **rest)


def injected(client: Client) -> dict[str, int]:
    found: dict[str, int] = client.simulator.control("stats")["faults"]
    return found


def statuses(client: Client, requests_made: int) -> list[int]:
    return [client.get(TICKETS, pageSize=1).status_code for _ in range(requests_made)]


def test_faults_happen_at_the_ordinals_given(client: Client) -> None:
    script(client, {"kind": "status", "status": 503, "at": [2, 4]})
    assert statuses(client, 5) == [200, 503, 200, 503, 200]
    assert injected(client) == {"status": 2}


def test_bursts_caps_and_limits_to_a_kind_of_request(client: Client) -> None:
    script(client, {"kind": "status", "status": 500, "at": [1], "burst": 3})
    assert statuses(client, 5) == [500, 500, 500, 200, 200]
    script(client, {"kind": "status", "status": 500, "probability": 1.0}, max_faults=2)
    assert statuses(client, 4) == [500, 500, 200, 200]
    script(client, {"kind": "status", "status": 500, "probability": 1.0}, max_consecutive=1)
    assert statuses(client, 4) == [500, 200, 500, 200]
    script(client, {"kind": "status", "status": 500, "probability": 1.0, "on": "count"})
    assert statuses(client, 1) == [200]
    assert client.get(f"{TICKETS}/count").status_code == 500


def test_the_same_seed_gives_the_same_faults(client: Client) -> None:
    def pattern(seed: int) -> list[int]:
        script(client, {"kind": "status", "status": 502, "probability": 0.5}, seed=seed)
        return statuses(client, 20)

    assert pattern(1) == pattern(1) != pattern(2)


@pytest.mark.parametrize("retry_after", [0, 0.5, 7])
@pytest.mark.parametrize("body", ["json", "cloudflare", "empty"])
def test_429_with_any_retry_after(client: Client, retry_after: float, body: str) -> None:
    line = {"kind": "status", "status": 429, "retry_after": retry_after, "body": body, "at": [1]}
    script(client, line)
    answer = client.get(TICKETS)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == str(retry_after)
    assert answer.text.startswith({"json": "{", "cloudflare": "<", "empty": ""}[body])


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("body", ["json", "html", "empty"])
def test_server_errors_in_every_body(client: Client, status: int, body: str) -> None:
    script(client, {"kind": "status", "status": status, "body": body, "at": [1]})
    answer = client.get(TICKETS)
    assert answer.status_code == status
    assert answer.text.startswith({"json": "{", "html": "<", "empty": ""}[body])


def test_reset_before_the_answer(client: Client) -> None:
    script(client, {"kind": "reset_before", "at": [1]})
    with pytest.raises(requests.ConnectionError):
        client.get(TICKETS)
    assert injected(client) == {"reset_before": 1}


def test_reset_after_the_headers(client: Client) -> None:
    script(client, {"kind": "reset_after_headers", "at": [1]})
    answer = requests.get(
        f"{client.root()}/{TICKETS}",
        auth=client.auth,
        headers=client.headers,
        stream=True,
        timeout=5,
    )
    assert answer.status_code == 200
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        answer.content  # noqa: B018


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("ending", ["fin", "reset"])
def test_a_body_cut_in_half_where_the_framing_tells(
    client: Client, framing: str, ending: str
) -> None:
    script(client, {"kind": "cut_body", "framing": framing, "ending": ending, "at": [1]})
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        client.get(TICKETS)


def test_a_body_cut_in_half_where_nothing_tells(client: Client) -> None:
    script(client, {"kind": "cut_body", "framing": "close", "at": [1]})
    answer = client.get(TICKETS)
    assert answer.status_code == 200
    assert "Content-Length" not in answer.headers
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_broken_json_with_a_true_length(client: Client) -> None:
    script(client, {"kind": "broken_json", "at": [1]})
    answer = client.get(TICKETS)
    assert len(answer.content) == int(answer.headers["Content-Length"])
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_success_with_the_wrong_body(client: Client) -> None:
    script(client, {"kind": "html_200", "at": [1]}, {"kind": "error_object_200", "at": [2]})
    page = client.get(TICKETS)
    assert page.status_code == 200
    assert page.text.startswith("<!DOCTYPE html>")
    error = client.get(TICKETS)
    assert error.status_code == 200
    assert set(error.json()) == {"code", "message", "errors"}


def test_an_empty_page_in_place_of_a_real_one(client: Client) -> None:
    script(client, {"kind": "empty_page", "at": [1]})
    assert client.ids(TICKETS) == []
    assert len(client.ids(TICKETS)) == 25


def test_slow_answers(client: Client) -> None:
    script(client, {"kind": "slow", "seconds": 0.3, "at": [1]})
    began = time.perf_counter()
    assert len(client.ids(TICKETS)) == 25
    assert time.perf_counter() - began >= 0.3


def test_a_body_that_trickles(client: Client) -> None:
    script(client, {"kind": "slow", "seconds": 0.4, "drip": True, "at": [1]})
    began = time.perf_counter()
    assert len(client.ids(TICKETS)) == 25
    assert time.perf_counter() - began >= 0.4


def test_a_connection_that_ends_unannounced_after_a_whole_answer(client: Client) -> None:
    address = urlsplit(client.simulator.url)
    script(client, {"kind": "hang_up", "at": [1]})
    request = requests.Request(
        "GET", f"{client.root()}/{TICKETS}/count", headers=client.headers, auth=client.auth
    ).prepare()
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    connection.request("GET", request.path_url, headers=dict(request.headers))
    answer = connection.getresponse()
    assert (json.loads(answer.read()), answer.getheader("Connection")) == ({"count": 300}, None)
    assert connection.sock.recv(1) == b""


def test_the_previous_page_again(client: Client) -> None:
    script(client, {"kind": "repeat_page", "at": [2]})
    first = client.ids(TICKETS, conditions=f"{OLD} AND id > 0", orderBy="id asc")
    again = client.ids(TICKETS, conditions=f"{OLD} AND id > {first[-1]}", orderBy="id asc")
    assert again == first
    assert client.ids(TICKETS, conditions=f"{OLD} AND id > {first[-1]}") != first


def test_a_row_dropped_and_a_row_twice(client: Client) -> None:
    whole = client.ids(TICKETS)
    script(client, {"kind": "drop_row", "at": [1]}, {"kind": "duplicate_row", "at": [2]})
    assert len(set(whole) - set(client.ids(TICKETS))) == 1
    twice = client.ids(TICKETS)
    assert (len(twice), set(twice)) == (26, set(whole))


def test_short_pages_keep_their_links_honest(client: Client) -> None:
    script(client, {"kind": "short_page", "rows": 3, "at": [1]})
    answer = client.get(TICKETS, {"pagination-type": "forward-only"}, pageSize=100)
    assert len(answer.json()) == 3
    assert f"pageId={answer.json()[-1]['id']}" in answer.headers["Link"]


def test_a_filter_ignored(client: Client) -> None:
    sound = client.ids(TICKETS, conditions=f"{OLD} AND id > 1100", pageSize=1000)
    script(client, {"kind": "filter_ignored", "at": [1]})
    spoilt = client.ids(TICKETS, conditions=f"{OLD} AND id > 1100", pageSize=1000)
    assert set(spoilt) > set(sound)
    assert min(spoilt) > 1100


def test_a_fault_that_finds_nothing_to_spoil_is_not_counted(client: Client) -> None:
    script(client, {"kind": "drop_row", "at": [1]})
    assert client.ids(TICKETS, conditions="id < 0") == []
    assert injected(client) == {}


def test_records_change_while_they_are_paged(client: Client) -> None:
    window = f"{OLD} AND lastUpdated >= [2024-01-01T00:00:00Z]"
    before = client.count(TICKETS, conditions=window)
    script(client, mutate_per_request=3)
    for page in (1, 2):
        client.ids(TICKETS, conditions=window, page=page, orderBy="id asc")
    assert client.count(TICKETS, conditions=window) == before - 6
    assert client.count(TICKETS, conditions="lastUpdated >= [2025-06-11T12:00:00Z]") == 6
    client.simulator.control("freeze")
    client.ids(TICKETS, conditions=window)
    client.simulator.control("thaw")
    assert client.count(TICKETS, conditions=window) == before - 6


def test_deletions_and_creations_between_requests(client: Client) -> None:
    script(client, delete_per_request=2)
    client.ids(TICKETS)
    assert client.count(TICKETS) == 298
    script(client, create_per_request=5)
    client.ids(TICKETS)
    assert client.count(TICKETS) == 303


def test_offset_paging_over_a_changing_window_loses_rows(client: Client) -> None:
    """The reason for the simulator: a connector that pages by number is caught."""
    inside = set(client.ids(TICKETS, conditions=OLD, pageSize=1000))
    script(client, mutate_per_request=5)
    seen: set[int] = set()
    for page in range(1, 20):
        seen |= set(client.ids(TICKETS, conditions=OLD, pageSize=20, page=page, orderBy="id asc"))
    truth = client.simulator.control("truth_current", table="tickets")["records"]
    unchanged = {id for id in inside if truth[str(id)]["versions"] == 1}
    assert unchanged - seen


def test_the_codebase_changes_under_way(client: Client, simulator: Simulator) -> None:
    script(client, {"kind": "codebase_upgrade", "at": [2]})
    assert statuses(client, 3) == [200, 404, 404]
    company = client.credentials["company_id"]
    info = requests.get(f"{simulator.url}/login/companyinfo/{company}", timeout=5).json()
    assert info["Codebase"] == "v2025_2/"
    url = f"{client.root('v2025_2')}/{TICKETS}"
    again = requests.get(url, auth=client.auth, headers=client.headers, timeout=5)
    assert again.status_code == 200


def test_a_redirect_to_another_host(client: Client) -> None:
    script(client, {"kind": "redirect", "location": "http://127.0.0.2:1", "at": [1]})
    answer = client.get(TICKETS)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("http://127.0.0.2:1/v2025_1/apis")


def test_changes_that_become_visible_late(client: Client, simulator: Simulator) -> None:
    script(client, late_seconds=60)
    simulator.control("mutate", table="tickets", ids=[1001])
    created = simulator.control("create", table="tickets", count=1)["ids"]
    recent = "lastUpdated >= [2025-06-11T12:00:00Z]"
    assert client.count(TICKETS, conditions=recent) == 0
    current = simulator.control("truth_current", table="tickets", ids=[1001])
    assert current["records"]["1001"]["visible"] is False
    simulator.control("advance", seconds=61)
    assert client.ids(TICKETS, conditions=recent) == [1001, *created]
    stamp = client.get(f"{TICKETS}/1001").json()["_info"]["lastUpdated"]
    assert stamp.startswith("2025-06-11T12:00:0")


def test_a_permission_loss_shrinks_lists_and_counts_alike(
    client: Client, simulator: Simulator
) -> None:
    whole = client.ids(TICKETS, pageSize=1000)
    script(client, restricted_share=0.3, restricted_tables=["tickets"])
    left = client.ids(TICKETS, pageSize=1000)
    assert 150 < len(left) < 260
    assert client.count(TICKETS) == len(left)
    lost = set(whole) - set(left)
    assert client.get(f"{TICKETS}/{lost.pop()}").status_code == 403
    assert client.count("time/entries") == 100
    assert len(client.ids("time/entries", pageSize=1000)) == 100


def test_ties_in_another_order_at_each_request(client: Client) -> None:
    first = client.ids(TICKETS, pageSize=300, orderBy="lastUpdated asc")
    script(client, shuffle_ties=True)
    second = client.ids(TICKETS, pageSize=300, orderBy="lastUpdated asc")
    assert first != second
    assert set(first) == set(second)


def test_poisoned_records(client: Client, simulator: Simulator) -> None:
    made = simulator.control("poison", table="tickets")["ids"]

    def body(kind: str) -> bytes:
        return client.get(f"{TICKETS}/{made[kind]}").content

    assert b'"id":%d' % made["no_id"] not in body("no_id")
    assert b'"lastUpdated"' not in body("no_last_updated")
    assert b"0001-01-01T00:00:00Z" in body("year_0001")
    assert b"9999-12-31T23:59:59Z" in body("year_9999")
    assert len(body("huge_text")) > 5_000_000
    assert b"\\u0000" in body("nuls")
    assert str(2**70).encode() in body("wide_integer")
    assert client.ids(TICKETS, conditions="lastUpdated < [1900-01-01]") == [made["year_0001"]]
    found = client.get(TICKETS, conditions=f"id >= {made['no_id']}", pageSize=1000).json()
    assert len(found) == len(made)
    recent = client.count(TICKETS, conditions="lastUpdated >= [2025-06-11T12:00:00Z]")
    assert recent == len(made) - len(["null_last_updated", "year_0001"])
    truth = simulator.control("truth_current", table="tickets")["records"]
    assert truth[str(made["no_id"])]["poison"] == "no_id"
