"""The allowance of a day, requests at once, and what statements take too long."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

from avesa_dagster.sandbox.process import Simulator

from .conftest import Client, error

IDS = "SELECT Id FROM Case"


def usage(answer: Any) -> tuple[int, int]:
    found = re.search(r"api-usage=(\d+)/(\d+)", answer.headers["Sforce-Limit-Info"])
    assert found is not None
    return int(found[1]), int(found[2])


def test_every_answer_tells_the_usage(client: Client, simulator: Simulator) -> None:
    assert [usage(client.soql(IDS)) for _ in range(3)] == [(n, 100_000) for n in (1, 2, 3)]
    simulator.control("allowance", per_app={"limit": 250, "name": "sample"})
    told = client.soql(IDS).headers["Sforce-Limit-Info"]
    assert told == "api-usage=4/100000; per-app-api-usage=4/250(appName=sample)"
    assert client.get("limits").json()["DailyApiRequests"] == {"Max": 100_000, "Remaining": 99_995}


def test_the_allowance_is_shared_with_other_apps_and_returns(
    client: Client, simulator: Simulator
) -> None:
    simulator.control("allowance", max=1000, spend=998)
    answers = [client.soql(IDS) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    assert error(answers[2]) == (403, "REQUEST_LIMIT_EXCEEDED")
    assert answers[2].json()[0]["message"] == "TotalRequests Limit exceeded."
    assert "Retry-After" not in answers[2].headers
    assert usage(answers[2]) == (1000, 1000)
    client.login()
    simulator.control("advance", seconds=86_401)
    client.login()
    assert usage(client.soql(IDS)) == (1, 1000)
    simulator.control("allowance", spend=999)
    assert client.soql(IDS).status_code == 403
    assert simulator.control("allowance", restore=True)["remaining"] == 1000
    assert client.soql(IDS).status_code == 200


def test_too_many_long_requests_at_once(client: Client, simulator: Simulator) -> None:
    simulator.control("concurrency", limit=2, long_seconds=0.2)
    simulator.control("hang", table="Case", on="list", seconds=30)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(Client(simulator).soql(IDS).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while client.get("limits").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = client.get("limits")
    assert error(answer) == (403, "REQUEST_LIMIT_EXCEEDED")
    assert answer.json()[0]["message"].startswith("ConcurrentRequests (Concurrent API Requests)")
    simulator.control("heal")
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]
    assert client.get("limits").status_code == 200


def test_other_apps_hold_long_requests_too(client: Client, simulator: Simulator) -> None:
    simulator.control("concurrency", held=25)
    assert error(client.soql(IDS)) == (403, "REQUEST_LIMIT_EXCEEDED")
    simulator.control("concurrency", held=24)
    assert client.soql(IDS).status_code == 200


def test_a_limit_per_minute_as_every_service_has_it(client: Client, simulator: Simulator) -> None:
    simulator.control("limit", limit_per_minute=2, announced=True)
    answers = [client.soql(IDS) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    assert "Concurrent" in answers[2].json()[0]["message"]
    assert "Retry-After" not in answers[2].headers
    assert "per-app-api-usage=2/2(appName=avesa)" in answers[1].headers["Sforce-Limit-Info"]
    stats = simulator.control("stats")
    assert (stats["refused"], stats["max_accepted_in_60s_by_credential"].popitem()[1]) == (1, 2)


def test_a_statement_over_too_many_rows_times_out(client: Client, simulator: Simulator) -> None:
    simulator.control("hostility", timeout_rows=200)
    assert error(client.soql(f"{IDS} ORDER BY SystemModstamp LIMIT 10")) == (400, "QUERY_TIMEOUT")
    assert error(client.soql("SELECT COUNT() FROM Case")) == (400, "QUERY_TIMEOUT")
    half = "WHERE SystemModstamp < 2024-06-01T00:00:00Z"
    assert client.soql(f"{IDS} {half} ORDER BY SystemModstamp LIMIT 10").status_code == 200
    job = client.finished(IDS)
    assert client.get(f"jobs/query/{job}").json()["errorMessage"].startswith("QUERY_TIMEOUT")


def test_record_counts_are_cached_and_not_exact(client: Client, simulator: Simulator) -> None:
    def counts() -> dict[str, int]:
        told = client.get("limits/recordCount", sObjects="Account,Case,Nonsense").json()
        return {one["name"]: one["count"] for one in told["sObjects"]}

    first = counts()
    assert set(first) == {"Account", "Case"}
    assert first["Case"] != 300
    assert abs(first["Case"] - 300) <= 15
    simulator.control("delete", table="Case", count=200)
    assert counts() == first
    simulator.control("advance", seconds=3601)
    assert counts()["Case"] < 110
