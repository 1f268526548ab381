"""One simulator process for all tests of the sandbox, reset before each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator

NOW = "2025-06-11T12:00:00Z"
CODEBASE = "v2025_1"


class Client:
    """A plain client: it sends what it is told, checks nothing and never retries."""

    def __init__(self, simulator: Simulator, credentials: dict[str, str] | None = None) -> None:
        self.simulator = simulator
        self.credentials = credentials or simulator.credentials
        self.session = requests.Session()
        self.headers = {"clientId": self.credentials["client_id"]}

    @property
    def auth(self) -> tuple[str, str]:
        user = f"{self.credentials['company_id']}+{self.credentials['public_key']}"
        return user, self.credentials["private_key"]

    def root(self, codebase: str = CODEBASE) -> str:
        return f"{self.simulator.url}/{codebase}/apis/3.0"

    def get(
        self, path: str, headers: dict[str, str] | None = None, **query: Any
    ) -> requests.Response:
        return self.session.get(
            f"{self.root()}/{path}",
            params=query,
            auth=self.auth,
            headers=self.headers | (headers or {}),
            timeout=10,
            allow_redirects=False,
        )

    def ids(self, path: str, headers: dict[str, str] | None = None, **query: Any) -> list[int]:
        answer = self.get(path, headers, **query)
        assert answer.status_code == 200, answer.text
        return [row["id"] for row in answer.json()]

    def count(self, path: str, **query: Any) -> int:
        return int(self.get(f"{path}/count", **query).json()["count"])


@pytest.fixture(scope="session")
def process() -> Iterator[Simulator]:
    with Simulator(seed=7, now=NOW) as simulator:
        yield simulator


@pytest.fixture
def simulator(process: Simulator) -> Simulator:
    process.control("reset", now=NOW)
    return process


@pytest.fixture
def client(simulator: Simulator) -> Client:
    return Client(simulator)
