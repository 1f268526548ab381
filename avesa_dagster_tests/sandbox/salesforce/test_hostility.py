"""Each fault can be seen from outside, happens when the script says, and is counted."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import Client, error, table_of

IDS = "SELECT Id FROM Case ORDER BY SystemModstamp, Id"
BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def script(client: Client, *faults: dict[str, Any], **rest: Any) -> None:
    client.simulator.control("hostility", faults=list(faults), **rest)


def injected(client: Client) -> dict[str, int]:
    found: dict[str, int] = client.simulator.control("stats")["faults"]
    return found


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("REQUEST_LIMIT_EXCEEDED", 403),
        ("UNABLE_TO_LOCK_ROW", 400),
        ("SERVER_UNAVAILABLE", 503),
        ("QUERY_TIMEOUT", 400),
        ("TXN_SECURITY_METERING_ERROR", 403),
        ("INSUFFICIENT_ACCESS", 403),
        ("INVALID_QUERY_LOCATOR", 400),
    ],
)
def test_errors_of_the_api(client: Client, code: str, status: int) -> None:
    script(client, {"kind": "error", "code": code, "at": [1]})
    assert error(client.soql(IDS)) == (status, code)
    assert client.soql(IDS).status_code == 200
    assert injected(client) == {"error": 1}


def test_too_many_requests_at_once(client: Client) -> None:
    script(client, {"kind": "error", "code": "CONCURRENT", "at": [1]})
    answer = client.soql(IDS)
    assert error(answer) == (403, "REQUEST_LIMIT_EXCEEDED")
    assert answer.json()[0]["message"].startswith("ConcurrentRequests")


@pytest.mark.parametrize("status", [406, 420, 429, 500, 502, 503])
@pytest.mark.parametrize("body", ["json", "html", "empty"])
def test_any_status_in_any_body(client: Client, status: int, body: str) -> None:
    script(client, {"kind": "status", "status": status, "body": body, "at": [1]})
    answer = client.soql(IDS)
    assert answer.status_code == status
    assert answer.text.startswith({"json": "[", "html": "<", "empty": ""}[body])


def test_success_with_the_wrong_body_and_maintenance(client: Client) -> None:
    script(client, {"kind": "html_200", "at": [1]}, {"kind": "error_object_200", "at": [2]},
           {"kind": "maintenance", "at": [3]})  # fmt: skip
    first, second, third = (client.soql(IDS) for _ in range(3))
    assert (first.status_code, first.text[:15]) == (200, "<!DOCTYPE html>")
    assert (second.status_code, set(second.json()[0])) == (200, {"message", "errorCode"})
    assert (third.status_code, third.text[:15]) == (503, "<!DOCTYPE html>")


def test_an_org_that_hibernates_answers_html_to_everything(
    client: Client, simulator: Simulator
) -> None:
    simulator.control("hibernate")
    keys = {name: client.credentials[name] for name in ("client_id", "client_secret")}
    answers = [client.soql(IDS), client.token(grant_type="client_credentials", **keys)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(answer.text.startswith("<!DOCTYPE html>") for answer in answers)
    simulator.control("hibernate", on=False)
    assert client.soql(IDS).status_code == 200


def test_resets_and_hang_ups(client: Client) -> None:
    script(client, {"kind": "reset_before", "at": [1]}, {"kind": "reset_after_headers", "at": [2]})
    for _ in range(2):
        with pytest.raises(BROKEN):
            client.soql(IDS)
    script(client, {"kind": "hang_up", "at": [1]})
    address = urlsplit(client.root)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    path = "/services/data/v60.0/query?q=SELECT+COUNT()+FROM+Case"
    token = str(client.session.headers["Authorization"])
    connection.request("GET", path, headers={"Authorization": token})
    answer = connection.getresponse()
    assert json.loads(answer.read())["totalSize"] == 300
    assert answer.getheader("Connection") is None
    assert connection.sock.recv(1) == b""
    connection.close()


def test_a_redirect_to_another_host(client: Client) -> None:
    script(client, {"kind": "redirect", "location": "http://127.0.0.2:1", "at": [1]})
    answer = client.soql(IDS)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("http://127.0.0.2:1/services/data")


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_bodies_cut_in_half_where_it_shows(client: Client, framing: str) -> None:
    script(client, {"kind": "cut_body", "framing": framing, "on": "list", "at": [1]})
    with pytest.raises(BROKEN):
        client.soql(IDS)


def test_bodies_cut_in_half_where_it_does_not_show(client: Client) -> None:
    script(client, {"kind": "cut_body", "framing": "close", "at": [1]},
           {"kind": "broken_json", "at": [2]})  # fmt: skip
    for _ in range(2):
        with pytest.raises(requests.JSONDecodeError):
            client.soql(IDS).json()


def test_results_cut_in_half(client: Client) -> None:
    job = client.finished(IDS)
    cut = {"kind": "cut_body", "on": "results"}
    script(client, cut | {"framing": "chunked", "at": [1]}, cut | {"framing": "close", "at": [2]},
           {"kind": "broken_json", "at": [3]},
           {"kind": "reset_after_headers", "at": [4]})  # fmt: skip
    with pytest.raises(BROKEN):
        client.results(job)
    for _ in range(2):
        answer = client.results(job)
        assert 100 < len(table_of(answer)) < 200 < int(answer.headers["Sforce-NumberOfRecords"])
    with pytest.raises(BROKEN):
        client.results(job)
    assert len(table_of(client.results(job))) == 301


def test_rows_dropped_and_rows_twice(client: Client) -> None:
    whole = client.ids(IDS)
    script(client, {"kind": "drop_row", "at": [1, 3]}, {"kind": "duplicate_row", "at": [2, 4]})
    first = client.soql(IDS).json()
    assert (len(first["records"]), first["totalSize"]) == (299, 300)
    twice = client.ids(IDS)
    assert (len(twice), set(twice)) == (301, set(whole))
    job = client.finished(IDS)
    answers = [client.results(job) for _ in range(2)]
    assert [len(table_of(answer)) for answer in answers] == [300, 302]
    assert {answer.headers["Sforce-NumberOfRecords"] for answer in answers} == {"300"}


def test_pages_repeated_emptied_shortened(client: Client) -> None:
    script(client, {"kind": "repeat_page", "on": "list", "at": [2]})
    url = client.soql("SELECT Id FROM Case", {"Sforce-Query-Options": "batchSize=200"}).json()
    again = client.session.get(client.root + url["nextRecordsUrl"], timeout=5).json()
    assert again["records"] == url["records"]
    script(client, {"kind": "empty_page", "at": [1]})
    empty = client.soql(IDS).json()
    assert (empty["records"], empty["done"], empty["totalSize"]) == ([], True, 300)
    script(client, {"kind": "short_page", "rows": 20, "at": [1]})
    short = client.soql(IDS).json()
    assert (len(short["records"]), short["done"]) == (20, False)
    assert short["nextRecordsUrl"].endswith("-20")


def test_a_filter_ignored(client: Client) -> None:
    text = "SELECT Id FROM Case WHERE SystemModstamp < 2024-06-01T00:00:00Z ORDER BY Id"
    sound = client.ids(text)
    script(client, {"kind": "filter_ignored", "at": [1]})
    assert set(client.ids(text)) > set(sound)


def test_slow_answers(client: Client) -> None:
    script(client, {"kind": "slow", "seconds": 0.3, "at": [1]})
    began = time.monotonic()
    assert len(client.ids(IDS)) == 300
    assert time.monotonic() - began >= 0.3


def test_ties_in_another_order_at_each_request(client: Client, simulator: Simulator) -> None:
    simulator.control("bump", table="Case", count=50, at="2025-06-01T00:00:00Z")
    script(client, shuffle_ties=True)
    text = "SELECT Id FROM Case ORDER BY SystemModstamp"
    first, second = client.ids(text), client.ids(text)
    assert first != second
    assert set(first) == set(second)
    assert client.ids(IDS) == client.ids(IDS)


def test_a_loss_of_sharing_shrinks_everything_alike(client: Client) -> None:
    whole = client.ids(IDS)
    script(client, restricted_share=0.3, restricted_tables=["Case"])
    left = client.ids(IDS)
    assert 150 < len(left) < 260
    assert client.count("Case") == len(left)
    assert client.rows("SELECT COUNT(Id) n FROM Case")[0]["n"] == len(left)
    assert len(table_of(client.results(client.finished(IDS)))) == len(left) + 1
    lost = next(iter(set(whole) - set(left)))
    assert error(client.get(f"sobjects/Case/{lost}")) == (403, "INSUFFICIENT_ACCESS")
    assert client.count("Contact") == 50


def test_ordinals_bursts_and_caps(client: Client) -> None:
    def statuses(count: int) -> list[int]:
        return [client.soql(IDS).status_code for _ in range(count)]

    script(client, {"kind": "status", "at": [2], "burst": 2})
    assert statuses(5) == [200, 503, 503, 200, 200]
    script(client, {"kind": "status", "probability": 1.0}, max_faults=2)
    assert statuses(4) == [503, 503, 200, 200]
    script(client, {"kind": "error", "code": "UNABLE_TO_LOCK_ROW", "probability": 1.0},
           max_consecutive=1)  # fmt: skip
    assert statuses(4) == [400, 200, 400, 200]
    script(client, {"kind": "status", "on": "describe", "table": "Case", "at": [1]})
    assert statuses(2) == [200, 200]
    assert client.get("sobjects/Lead/describe").status_code == 200
    assert client.get("sobjects/Case/describe").status_code == 503


def test_outages_hold_for_what_they_name(client: Client, simulator: Simulator) -> None:
    window = "SystemModstamp >= {} AND SystemModstamp < {}"
    inside = window.format("2024-09-01T00:00:00Z", "2024-10-01T00:00:00Z")
    outside = window.format("2024-10-01T00:00:00Z", "2024-11-01T00:00:00Z")
    job = client.finished(f"SELECT Id FROM Case WHERE {inside}")
    simulator.control("fail", table="Case", start="2024-09-01", end="2024-10-01", name="september")
    assert client.soql(f"SELECT Id FROM Case WHERE {inside}").status_code == 500
    assert client.job(f"SELECT Id FROM Case WHERE {inside}").status_code == 500
    assert client.results(job).status_code == 500
    assert client.soql(f"SELECT Id FROM Case WHERE {outside}").status_code == 200
    assert client.soql("SELECT Id FROM Case").status_code == 200
    assert simulator.control("heal", name="september")["met"] == {"september": 3}
    simulator.control("fail", on="token", status=503)
    assert client.token(grant_type="client_credentials").status_code == 503
    simulator.control("heal")
    simulator.control("hang", table="Case", seconds=60)
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(client.soql(IDS).status_code))
    asking.start()
    deadline = time.monotonic() + 10
    while not simulator.control("outages")["outages"][0]["met"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    simulator.control("heal")
    asking.join(timeout=5)
    assert answers == [200]


def test_pages_are_accounted_for(client: Client, simulator: Simulator) -> None:
    low, high = "2024-06-01T00:00:00Z", "2025-03-01T00:00:00Z"
    window = f"SystemModstamp >= {low} AND SystemModstamp < {high}"
    text = "SELECT Id, SystemModstamp FROM Case WHERE {} ORDER BY SystemModstamp, Id LIMIT 60"
    rows = client.rows(text.format(window))
    at, id = rows[-1]["SystemModstamp"].replace("+0000", "Z"), rows[-1]["Id"]
    tie = f"((SystemModstamp = {at} AND Id > '{id}') OR SystemModstamp > {at})"
    for _ in range(2):
        client.rows(text.format(f"{window} AND {tie}"))
    job = client.finished(f"SELECT Id FROM Case WHERE {window}")
    for page in ({}, {"locator": ""}):
        client.results(job, maxRecords=20, **page)
    client.count(f"Case WHERE {window}")
    first, second, third = simulator.control("fetched")["pages"]
    assert (first["changed_from"], first["changed_to"], first["above_id"]) == (low, high, "")
    assert (second["changed_from"][:19], second["above_id"]) == (at[:19], id)
    assert [line["times"] for line in (first, second, third)] == [1, 2, 2]
    assert third["page_size"] == "20"
    assert first["conditions"] == window
    script(client, {"kind": "broken_json", "at": [1]})
    client.soql(text.format(window))
    assert simulator.control("fetched", table="Case")["pages"][0]["spoilt"] == 1
    simulator.control("stats_reset")
    assert simulator.control("fetched")["pages"] == []


def test_mistakes_are_explained(simulator: Simulator) -> None:
    def mistake(method: str, match: str, **given: Any) -> None:
        with pytest.raises(SimulatorError, match=match):
            simulator.control(method, **given)

    mistake("hostility", "no fault of kind", faults=[{"kind": "gremlins"}])
    mistake("hostility", "has no parameter", faults=[{"kind": "job_fails", "status": 5}])
    mistake("hostility", "a hostility script has no", gremlins=1)
    mistake("mutate", "table must be one of", table="nonsense", count=1)
    mistake("mutate", "no Case", table="Case", ids=["500000000000000"])
    mistake("fail", "no company", company_id="nobody")
    mistake("merge", "no Task", table="Task", master="x", ids=[])
    assert requests.post(f"{simulator.url}/__sim__/stats", timeout=5).status_code == 403


def test_orgs_have_their_own_limits_faults_and_latency(
    client: Client, simulator: Simulator
) -> None:
    added = simulator.control(
        "add_company",
        company_id="odd",
        sizes={"cases": 30},
        limit_per_minute=3,
        latency_ms=150,
        hostility={"page_clamp": 7},
    )
    odd = Client(simulator, added["credentials"])
    began = time.monotonic()
    assert len(odd.ids(IDS)) == 7
    assert time.monotonic() - began >= 0.15
    assert [odd.soql(IDS).status_code for _ in range(3)] == [200, 200, 403]
    assert [len(client.ids(IDS)) for _ in range(5)] == [300] * 5
    stats = simulator.control("stats")
    assert stats["per_minute_by_credential"]["odd"][0]["refused"] == 1
