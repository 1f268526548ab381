"""Rate limits: rules an hour, told in headers and enforced late; and the sliding minute."""

from __future__ import annotations

import pytest
import requests

from avesa_dagster.sandbox.process import SimulatorError

from .conftest import NOW, Client

EXCEEDED = {
    "error": {
        "message": "Rate limit exceeded",
        "detail": "Rate limit of 5 requests per hour for Table API exceeded",
    },
    "status": "failure",
}


def statuses(client: Client, count: int, table: str = "incident") -> list[int]:
    return [client.get(f"table/{table}", limit=1).status_code for _ in range(count)]


def test_without_a_rule_nothing_is_said(client: Client) -> None:
    headers = client.get("table/incident", limit=1).headers
    assert not [name for name in headers if name.startswith("X-RateLimit")]


def test_a_rule_is_announced_and_counts_until_the_hour_ends(client: Client) -> None:
    client.control("clock", now="2025-06-11T12:40:00Z", stopped=True)
    client.control("rates", rules=[{"per_hour": 5, "lag": 0}])
    first = client.get("table/incident", limit=1)
    assert first.headers["X-RateLimit-Limit"] == "5"
    assert first.headers["X-RateLimit-Reset"] == "1749646800"  # 13:00:00
    assert len(first.headers["X-RateLimit-Rule"]) == 32
    assert "X-RateLimit-Remaining" not in first.headers
    assert statuses(client, 4) == [200] * 4
    refused = client.get("stats/incident", count="true")
    assert (refused.status_code, refused.json()) == (429, EXCEEDED)
    assert refused.headers["Retry-After"] == "1200"
    assert refused.headers["X-RateLimit-Limit"] == "5"
    client.control("advance", seconds=1200)
    assert statuses(client, 1) == [200]


def test_enforcement_lags_behind_the_count(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    client.control("rates", rules=[{"per_hour": 5}])
    assert statuses(client, 9) == [200] * 9
    client.control("advance", seconds=31)
    assert statuses(client, 2) == [429, 429]


def test_user_goes_before_role_before_all(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    rules = [
        {"scope": scope, "per_hour": n, "lag": 0} for n, scope in enumerate(["all", "role"], 1)
    ]
    client.control("rates", rules=rules)
    assert statuses(client, 3) == [200, 200, 429]
    client.control("rates", rules=[*rules, {"scope": "user", "per_hour": 4, "lag": 0}])
    assert statuses(client, 5) == [200] * 4 + [429]
    client.control("rates", rules=[{"per_hour": 1, "lag": 0, "table": "problem"}])
    assert statuses(client, 2, "problem") == [200, 429]
    assert statuses(client, 3) == [200] * 3
    client.control("rates", rules=[])
    assert statuses(client, 3, "problem") == [200] * 3
    with pytest.raises(SimulatorError, match="scope"):
        client.control("rates", rules=[{"scope": "everyone", "per_hour": 1}])


def test_a_window_may_be_shorter_than_an_hour(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    client.control("rates", rules=[{"per_hour": 1, "lag": 0, "window": 10}])
    assert statuses(client, 2) == [200, 429]
    client.control("advance", seconds=10)
    assert statuses(client, 1) == [200]


def test_the_sliding_minute_of_the_other_services(client: Client) -> None:
    client.control("limit", limit_per_minute=3, announced=True)
    assert statuses(client, 4) == [200, 200, 200, 429]
    refused = client.get("table/incident")
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["X-RateLimit-Limit"] == "180"
    assert requests.get(f"{client.url}/api/now/table/incident", timeout=10).status_code == 401
    stats = client.control("stats")
    assert stats["refused"] == 2
    assert stats["max_accepted_in_60s_by_credential"] == {"acme_msp+avesa.acme_msp": 3}
    client.control("limit", limit_per_minute=None)
    assert statuses(client, 4) == [200] * 4
