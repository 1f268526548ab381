"""One simulator process for all tests of the simulated ServiceNow, reset before each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator

NOW = "2025-06-11T12:00:00Z"
Rows = list[dict[str, Any]]


class Client:
    """A plain client: it sends what it is told, checks nothing and never retries."""

    def __init__(self, simulator: Simulator, credentials: dict[str, str] | None = None) -> None:
        self.simulator = simulator
        self.credentials = credentials or simulator.credentials
        self.url = self.credentials["instance_url"]
        self.session = requests.Session()
        self.session.auth = (self.credentials["username"], self.credentials["password"])

    def get(
        self, path: str, headers: dict[str, str] | None = None, **query: Any
    ) -> requests.Response:
        """GET below /api/now; a query parameter `limit` is sent as sysparm_limit."""
        named = {f"sysparm_{name}": value for name, value in query.items()}
        return self.session.get(
            f"{self.url}/api/now/{path}",
            params=named,
            headers=headers,
            timeout=10,
            allow_redirects=False,
        )

    def rows(self, table: str, **query: Any) -> Rows:
        answer = self.get(f"table/{table}", **query)
        assert answer.status_code == 200, answer.text
        found: Rows = answer.json()["result"]
        return found

    def ids(self, table: str, **query: Any) -> list[str]:
        return [row["sys_id"] for row in self.rows(table, fields="sys_id", **query)]

    def count(self, table: str, query: str = "") -> int:
        answer = self.get(f"stats/{table}", count="true", query=query)
        count = answer.json()["result"]["stats"]["count"]
        assert isinstance(count, str)
        return int(count)

    def control(self, method: str, /, **arguments: Any) -> Any:
        return self.simulator.control(method, **arguments)

    def truth(self, table: str, **arguments: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.control(
            "truth_current", table=table, brief=True, **arguments
        )["records"]
        return found

    def alive(self, table: str) -> set[str]:
        """The sys_ids that a table should show to somebody who may see all."""
        return {sys_id for sys_id, about in self.truth(table).items() if not about["deleted"]}


def keyset_pages(client: Client, table: str, start: str, end: str, size: int) -> list[Rows]:
    """Walk a window by (sys_updated_on, sys_id), the upper bound in both blocks, until a page that
    was empty before ACL."""
    window = f"sys_updated_on>={start}^sys_updated_on<{end}"
    order = "^ORDERBYsys_updated_on^ORDERBYsys_id"
    query, pages = window + order, []
    while True:
        rows = client.rows(table, query=query, limit=size)
        pages.append(rows)
        if not rows:
            return pages
        last, sys_id = rows[-1]["sys_updated_on"], rows[-1]["sys_id"]
        later = f"{window}^sys_updated_on>{last}"
        query = f"{later}^NQ{window}^sys_updated_on={last}^sys_id>{sys_id}{order}"


@pytest.fixture(scope="session")
def process() -> Iterator[Simulator]:
    with Simulator("servicenow", seed=7, now=NOW) as simulator:
        yield simulator


@pytest.fixture
def simulator(process: Simulator) -> Simulator:
    process.control("reset", now=NOW)
    return process


@pytest.fixture
def client(simulator: Simulator) -> Client:
    return Client(simulator)
