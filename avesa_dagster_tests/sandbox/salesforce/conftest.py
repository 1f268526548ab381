"""One simulator process for all tests of the simulated Salesforce, reset before each test."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator

NOW = "2025-06-11T12:00:00Z"
VERSION = "v60.0"


class Client:
    """A plain client: it sends what it is told, checks nothing and never retries."""

    def __init__(self, simulator: Simulator, credentials: dict[str, str] | None = None) -> None:
        self.simulator = simulator
        self.credentials = credentials or simulator.credentials
        self.session = requests.Session()
        self.root = simulator.url
        self.login()

    def token(self, path: str = "", **form: str) -> requests.Response:
        url = f"{self.simulator.url}{path}/services/oauth2/token"
        return requests.post(url, data=form, timeout=10)

    def login(self) -> None:
        keys = {name: self.credentials[name] for name in ("client_id", "client_secret")}
        answer = self.token(grant_type="client_credentials", **keys)
        assert answer.status_code == 200, answer.text
        self.root = answer.json()["instance_url"]
        self.session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def send(self, method: str, path: str, version: str = VERSION, **how: Any) -> requests.Response:
        url = f"{self.root}/services/data/{version}/{path}"
        return self.session.request(method, url, timeout=20, allow_redirects=False, **how)

    def get(self, path: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
        return self.send("GET", path, params=query, headers=headers)

    def soql(
        self, text: str, headers: dict[str, str] | None = None, *, all: bool = False
    ) -> requests.Response:
        answer: requests.Response = self.get("queryAll" if all else "query", headers, q=text)
        return answer

    def rows(self, text: str, *, all: bool = False) -> list[dict[str, Any]]:
        answer = self.soql(text, all=all)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["records"]
        return found

    def ids(self, text: str, *, all: bool = False) -> list[str]:
        return [row["Id"] for row in self.rows(text, all=all)]

    def count(self, text: str, *, all: bool = False) -> int:
        answer = self.soql(f"SELECT COUNT() FROM {text}", all=all)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["totalSize"])

    def job(self, text: str, version: str = VERSION, **about: str) -> requests.Response:
        given = {"operation": "query", "query": text, "contentType": "CSV"} | about
        return self.send("POST", "jobs/query", version, json=given)

    def finished(self, text: str, version: str = VERSION, **about: str) -> str:
        """The id of a job that has come to its end."""
        made = self.job(text, version, **about)
        assert made.status_code == 200, made.text
        for _ in range(20):
            state = self.send("GET", f"jobs/query/{made.json()['id']}", version).json()["state"]
            if state not in ("UploadComplete", "InProgress"):
                break
        return str(made.json()["id"])

    def results(self, job: str, version: str = VERSION, **query: Any) -> requests.Response:
        return self.send("GET", f"jobs/query/{job}/results", version, params=query)


def table_of(answer: requests.Response, delimiter: str = ",") -> list[list[str]]:
    """The rows of a CSV, its header first."""
    text = answer.content.decode()
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def error(answer: requests.Response) -> tuple[int, str]:
    """Status and code of an answer that is an error of the API."""
    [found] = answer.json()
    assert found["message"]
    return answer.status_code, found["errorCode"]


@pytest.fixture(scope="session")
def process() -> Iterator[Simulator]:
    with Simulator("salesforce", seed=7, now=NOW) as simulator:
        yield simulator


@pytest.fixture
def simulator(process: Simulator) -> Simulator:
    process.control("reset", now=NOW)
    return process


@pytest.fixture
def client(simulator: Simulator) -> Client:
    return Client(simulator)
