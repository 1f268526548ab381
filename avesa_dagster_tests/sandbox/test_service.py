"""The simulated ConnectWise behaves as the fact page says when nothing is wrong."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator, SimulatorError
from avesa_dagster.sandbox.schema import PATHS

from .conftest import NOW, Client

FORWARD = {"pagination-type": "forward-only"}
WINDOW = "lastUpdated >= [2024-06-01T00:00:00Z] AND lastUpdated < [2025-03-01T00:00:00Z]"


def elements(body: bytes) -> dict[int, bytes]:
    """Id to exact bytes of each element of a list body."""
    text, decoder = body.decode(), json.JSONDecoder()
    at, found = 1, {}
    while text[at] != "]":
        record, end = decoder.raw_decode(text, at)
        found[record["id"]] = text[at:end].encode()
        at = end + (text[end] == ",")
    return found


def test_company_info_needs_no_credentials(simulator: Simulator) -> None:
    company = simulator.credentials["company_id"]
    info = requests.get(f"{simulator.url}/login/companyinfo/{company}", timeout=5).json()
    assert info["Codebase"] == "v2025_1/"
    assert info["IsCloud"] in ("True", "False")
    unknown = requests.get(f"{simulator.url}/login/companyinfo/nobody", timeout=5)
    assert unknown.json() is None


@pytest.mark.parametrize("table", PATHS)
def test_every_endpoint_lists_counts_and_gets(client: Client, table: str) -> None:
    path = PATHS[table]
    ids = client.ids(path, pageSize=1000)
    assert ids
    assert client.count(path) == len(ids)
    assert client.get(f"{path}/{ids[0]}").json()["id"] == ids[0]
    missing = client.get(f"{path}/99999999")
    assert missing.status_code == 404
    assert set(missing.json()) == {"code", "message", "errors"}


def test_headers_that_the_service_sends(client: Client) -> None:
    answer = client.get(
        "system/info", {"Accept": "application/vnd.connectwise.com+json; version=2022.1"}
    )
    assert answer.headers["api-current-version"] == "2022.1"
    assert answer.headers["x-cw-request-id"]
    assert answer.headers["Date"].startswith("Wed, 11 Jun 2025 12:00:0")


def test_wrong_credentials_are_401(client: Client) -> None:
    def status(**changes: Any) -> tuple[int, str]:
        url = f"{client.root()}/service/tickets"
        given: dict[str, Any] = {"auth": client.auth, "headers": client.headers} | changes
        answer = requests.get(url, timeout=5, **given)
        return answer.status_code, answer.json()["code"]

    refused = (401, "Unauthorized")
    assert status(auth=None) == refused
    assert status(auth=(client.auth[0], "wrong")) == refused
    assert status(auth=("acme_msp", client.auth[1])) == refused
    assert status(headers={}) == refused


def test_a_wrong_codebase_is_404(client: Client) -> None:
    url = f"{client.root('v4_6_release')}/service/tickets"
    answer = requests.get(url, auth=client.auth, headers=client.headers, timeout=5)
    assert answer.status_code == 404


def test_navigable_pages_link_to_each_other(client: Client) -> None:
    first = client.get("service/tickets", pageSize=120, orderBy="id asc")
    assert set(first.links) == {"next", "last"}
    seen, answer = [row["id"] for row in first.json()], first
    while "next" in answer.links:
        answer = client.session.get(
            answer.links["next"]["url"], auth=client.auth, headers=client.headers, timeout=5
        )
        seen += [row["id"] for row in answer.json()]
    assert set(answer.links) == {"first", "prev"}
    assert seen == sorted(set(seen))
    assert len(seen) == 300
    assert client.get("service/tickets", pageSize=120, page=4).json() == []


def test_forward_only_pages_follow_the_id(client: Client) -> None:
    seen: list[int] = []
    page_id = 0
    while True:
        answer = client.get("service/tickets", FORWARD, pageSize=90, pageId=page_id, page=9)
        seen += [row["id"] for row in answer.json()]
        if not answer.links:
            break
        page_id = seen[-1]
        assert f"pageId={page_id}" in answer.headers["Link"]
    assert answer.headers["Link"] == ""
    assert len(seen) == 300
    assert seen == sorted(set(seen))
    assert client.get("service/tickets", FORWARD, orderBy="id").status_code == 400


def test_a_hand_made_keyset_walks_a_window(client: Client) -> None:
    seen: list[int] = []
    while True:
        conditions = f"({WINDOW}) AND id > {seen[-1] if seen else 0}"
        rows = client.ids("service/tickets", pageSize=50, orderBy="id asc", conditions=conditions)
        if not rows:
            break
        seen += rows
    assert len(seen) == client.count("service/tickets", conditions=WINDOW) > 50
    truth = client.simulator.control("truth_current", table="tickets")["records"]
    inside = [
        int(id)
        for id, about in truth.items()
        if "2024-06-01T00:00:00Z" <= about["updated_at"] < "2025-03-01T00:00:00Z"
    ]
    assert sorted(inside) == seen


@pytest.mark.parametrize(
    "conditions",
    [
        WINDOW,
        "id > 1100 AND id <= 1200",
        "id in (1001, 5, 1150) OR id > 1300",
        'board/name = "Help Desk" AND closedFlag = True',
        "owner = null",
        "lastUpdated < [2024-12-01] OR company/id in (3, 4)",
    ],
)
def test_counts_agree_with_lists_and_search(client: Client, conditions: str) -> None:
    listed = client.ids("service/tickets", pageSize=1000, conditions=conditions)
    assert len(listed) == client.count("service/tickets", conditions=conditions)
    searched = client.session.post(
        f"{client.root()}/service/tickets/search?pageSize=1000",
        json={"conditions": conditions},
        auth=client.auth,
        headers=client.headers,
        timeout=5,
    )
    assert [row["id"] for row in searched.json()] == listed
    assert 0 < len(listed) < 300


def test_page_size_is_25_by_default_and_clamped_to_1000(client: Client) -> None:
    client.simulator.control("create", table="tickets", count=900)
    assert len(client.ids("service/tickets")) == 25
    assert len(client.ids("service/tickets", pageSize=5000)) == 1000
    client.simulator.control("hostility", page_clamp=40)
    assert len(client.ids("service/tickets", pageSize=1000)) == 40
    assert client.get("service/tickets", pageSize=0).status_code == 400


def test_order_and_fields(client: Client) -> None:
    rows = client.get(
        "service/tickets",
        pageSize=1000,
        orderBy="_info/lastUpdated desc",
        fields="id,company/name,_info.lastUpdated",
    ).json()
    stamps = [row["_info"]["lastUpdated"] for row in rows]
    assert stamps == sorted(stamps, reverse=True)
    assert set(rows[0]) <= {"id", "company", "_info"}
    assert set(rows[0]["_info"]) == {"lastUpdated"}
    assert client.get("time/entries", fields="id", pageSize=1).json()[0].keys() == {"id"}


@pytest.mark.parametrize(
    "query",
    [
        {"conditions": "_info.lastUpdated > [2024-01-01]"},
        {"conditions": "nonsense > 5"},
        {"conditions": "id >"},
        {"customFieldConditions": 'caption="X"'},
        {"orderBy": "nonsense asc"},
        {"page": "zero"},
    ],
)
def test_malformed_requests_are_400_in_connectwise_shape(
    client: Client, query: dict[str, Any]
) -> None:
    answer = client.get("service/tickets", **query)
    assert answer.status_code == 400
    assert set(answer.json()) == {"code", "message", "errors"}


def test_an_unencoded_plus_breaks_a_date_as_it_does_at_the_service(client: Client) -> None:
    url = f"{client.root()}/service/tickets?conditions=lastUpdated>[2024-01-01T00:00:00+00:00]"
    assert requests.get(url, auth=client.auth, headers=client.headers, timeout=5).status_code == 400


def test_the_limit_refuses_the_excess_in_both_shapes(client: Client) -> None:
    client.simulator.control("limit", limit_per_minute=5)
    client.simulator.control("stats_reset")
    answers = [client.get("system/info") for _ in range(9)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 4
    assert all(50 < int(answer.headers["Retry-After"]) <= 60 for answer in answers[5:])
    first, second = sorted(answer.text for answer in answers[5:7])  # in turns, and either first
    assert first.startswith("<!DOCTYPE html>")
    assert json.loads(second)["error"] == "ConnectWiseAPI"
    stats = client.simulator.control("stats")
    assert (stats["refused"], stats["max_in_60s"]) == (4, 9)
    assert stats["max_accepted_in_60s_by_credential"].popitem()[1] == 5


def test_tenants_are_told_apart(client: Client, simulator: Simulator) -> None:
    added = simulator.control("add_company", company_id="other_msp", seed=99, sizes={"tickets": 40})
    other = Client(simulator, added["credentials"])
    assert other.count("service/tickets") == 40
    assert client.count("service/tickets") == 300
    mixed = Client(simulator, other.credentials | {"company_id": "acme_msp"})
    assert mixed.get("service/tickets").status_code == 401
    simulator.control("revoke", company_id="other_msp")
    assert other.get("service/tickets").status_code == 401
    assert client.get("service/tickets").status_code == 200
    simulator.control("restore", company_id="other_msp")
    assert other.get("service/tickets").status_code == 200


def test_the_same_seed_and_now_make_the_same_bytes(client: Client, simulator: Simulator) -> None:
    def everything() -> dict[str, str]:
        simulator.control("mutate", table="tickets", count=5, at=NOW)
        return {
            table: hashlib.sha256(client.get(path, pageSize=1000).content).hexdigest()
            for table, path in PATHS.items()
        }

    first = everything()
    with Simulator(seed=7, now=NOW) as elsewhere:
        there = Client(elsewhere).get(PATHS["contacts"], pageSize=1000).content
    assert hashlib.sha256(there).hexdigest() == first["contacts"]
    simulator.control("reset", now=NOW)
    assert everything() == first
    simulator.control("reset", now=NOW, seed=8)
    assert everything() != first


def test_truth_is_what_lists_serve_byte_for_byte(client: Client, simulator: Simulator) -> None:
    changed = simulator.control("mutate", table="tickets", count=3)["ids"]
    gone = simulator.control("delete", table="tickets", ids=[1001])["ids"]
    served = elements(client.get("service/tickets", pageSize=1000).content)
    current = simulator.control("truth_current", table="tickets")["records"]
    assert set(served) == {int(id) for id, about in current.items() if not about["deleted"]}
    for id, body in served.items():
        assert hashlib.sha256(body).hexdigest() == current[str(id)]["sha256"]
    history = simulator.control("truth", table="tickets")["records"]
    assert history[str(gone[0])]["deleted_at"]
    for id in changed:
        versions = history[str(id)]["versions"]
        assert len(versions) == 2
        assert versions[1]["payload"] == json.loads(served[id])
        assert versions[0]["payload"] != versions[1]["payload"]
        assert versions[1]["updated_at"] == versions[1]["payload"]["_info"]["lastUpdated"]
    assert client.get("service/tickets/1001").status_code == 404
    simulator.control("undelete", table="tickets", ids=gone)
    assert client.get("service/tickets/1001").status_code == 200


def test_records_have_the_oddities_of_real_ones(client: Client) -> None:
    rows = client.get("service/tickets", pageSize=1000).json()
    body = json.dumps(rows, ensure_ascii=False)
    assert "\\u0000" in body
    assert "🔥" in body
    assert not any(None in row.values() for row in rows)
    assert any(row["_info"]["updatedBy"].endswith(" ") for row in rows)
    kinds = {type(field.get("value")) for row in rows for field in row["customFields"][:1]}
    assert {str, int, float, bool, type(None)} <= kinds
    stamps = [row["_info"]["lastUpdated"] for row in rows]
    assert max(stamps.count(stamp) for stamp in set(stamps)) >= 15
    assert max(stamps) <= NOW
    assert not any("dateEntered" in row or "initialDescription" in row for row in rows)


def test_the_clock_can_be_moved(client: Client, simulator: Simulator) -> None:
    simulator.control("advance", seconds=86_400)
    simulator.control("mutate", table="tickets", ids=[1001])
    stamp = client.get("service/tickets/1001").json()["_info"]["lastUpdated"]
    assert stamp.startswith("2025-06-12T12:00:0")
    stopped = simulator.control("clock", now="2030-01-01T00:00:00Z", stopped=True)
    assert simulator.control("clock") == stopped
    assert (
        abs(simulator.control("clock", stopped=False, offset_seconds=0)["epoch"] - time.time()) < 5
    )


def test_stats_say_what_was_asked(client: Client, simulator: Simulator) -> None:
    simulator.control("stats_reset")
    client.get("service/tickets", conditions="id > 5")
    client.get("service/tickets/count")
    client.get("service/tickets/1001")
    stats = simulator.control("stats", log=10)
    assert stats["total"] == 3
    assert stats["by_kind"] == {"list": 1, "count": 1, "get": 1}
    assert stats["by_credential"] == {"acme_msp": 3}
    assert [entry["status"] for entry in stats["log"]] == [200] * 3
    assert stats["log"][0]["conditions"] == "id > 5"
    assert stats["log"][0]["rows"] == 25


def test_control_needs_its_token_and_explains_mistakes(simulator: Simulator) -> None:
    assert requests.post(f"{simulator.url}/__sim__/stats", timeout=5).status_code == 403
    with pytest.raises(SimulatorError, match="table must be one of"):
        simulator.control("mutate", table="nonsense", count=1)
    with pytest.raises(SimulatorError, match="no fault of kind"):
        simulator.control("hostility", faults=[{"kind": "gremlins"}])


def test_many_connections_at_once(client: Client) -> None:
    def ask() -> None:
        answers.append(Client(client.simulator).count("service/tickets"))

    answers: list[int] = []
    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [300] * 40


def test_a_signal_ends_it_cleanly() -> None:
    simulator = Simulator(tickets=5, time_entries=5)
    assert simulator.stop() == 0
    port = urlsplit(simulator.url).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port or 0), timeout=1)


def test_it_ends_with_its_parent() -> None:
    script = (
        "import time; from avesa_dagster.sandbox.process import Simulator;"
        "s = Simulator(tickets=5); print(s.url, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            requests.get(f"{url}/login/companyinfo/acme_msp", timeout=1)
        except requests.ConnectionError:
            return
        time.sleep(0.1)
    pytest.fail("the simulator outlived its parent")
