"""`fail` and `hang` hold for exactly the requests they name, until `heal`."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import Client

TICKETS = "service/tickets"


def window(start: str, end: str) -> dict[str, str]:
    return {"conditions": f"lastUpdated >= [{start}] AND lastUpdated < [{end}]"}


def status(client: Client, path: str = TICKETS, **query: Any) -> int:
    return client.get(path, **query).status_code


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2024-09-01", "2024-10-01", 500),
        ("2024-08-01", "2024-09-01", 200),
        ("2024-08-01", "2024-09-01T00:00:01Z", 500),
        ("2024-10-01", "2024-11-01", 200),
        ("2024-09-30T23:59:59Z", "2024-11-01", 500),
        ("2024-01-01", "2025-01-01", 500),
        ("2024-09-10", "2024-09-10", 200),
    ],
)
def test_a_window_fails_what_overlaps_it(
    client: Client, start: str, end: str, expected: int
) -> None:
    client.simulator.control("fail", table="tickets", start="2024-09-01", end="2024-10-01")
    assert status(client, **window(start, end)) == expected
    assert status(client, f"{TICKETS}/count", **window(start, end)) == expected
    keyset = f"({window(start, end)['conditions']}) AND id > 1100"
    assert status(client, conditions=keyset, orderBy="id asc") == expected


def test_a_window_leaves_alone_requests_without_one(client: Client) -> None:
    client.simulator.control("fail", table="tickets", start="2024-09-01", end="2024-10-01")
    assert status(client) == status(client, f"{TICKETS}/1001") == 200
    assert status(client, conditions="id > 1100") == 200
    assert status(client, "time/entries", **window("2024-09-01", "2024-10-01")) == 200
    assert status(client, conditions="lastUpdated < [2024-09-02]") == 500
    assert status(client, conditions="lastUpdated > [2024-10-01]") == 200


def test_several_windows_fail_until_each_is_healed(client: Client) -> None:
    control = client.simulator.control
    months = [(f"2024-{n:02d}-01", f"2024-{n + 1:02d}-01") for n in range(7, 12)]
    names = [
        control("fail", table="tickets", start=start, end=end)["name"] for start, end in months
    ]
    for _ in range(3):
        assert [status(client, **window(*month)) for month in months] == [500] * 5
    assert control("heal", names=names[:2])["met"] == {names[0]: 3, names[1]: 3}
    assert [status(client, **window(*month)) for month in months] == [200] * 2 + [500] * 3
    assert [line["met"] for line in control("outages")["outages"]] == [4] * 3
    assert set(control("heal")["met"]) == set(names[2:])
    assert [status(client, **window(*month)) for month in months] == [200] * 5
    assert control("stats")["faults"] == {"fail": 18}


def test_a_tenant_that_is_down_answers_nothing(client: Client, simulator: Simulator) -> None:
    added = simulator.control("add_company", company_id="down_msp", sizes={"tickets": 10})
    down = Client(simulator, added["credentials"])
    simulator.control("fail", company_id="down_msp", status=503)
    info = f"{simulator.url}/login/companyinfo"
    for path in (TICKETS, "company/contacts/count", "system/info"):
        assert status(down, path) == 503
        assert status(client, path) == 200
    assert requests.get(f"{info}/down_msp", timeout=5).status_code == 503
    assert requests.get(f"{info}/acme_msp", timeout=5).status_code == 200
    simulator.control("heal", company_id="acme_msp")
    assert status(down) == 503
    simulator.control("heal", company_id="down_msp")
    assert status(down) == 200


def test_a_table_fails_for_every_company_and_kind_of_request_named(
    client: Client, simulator: Simulator
) -> None:
    added = simulator.control("add_company", company_id="other_msp", sizes={"tickets": 10})
    other = Client(simulator, added["credentials"])
    simulator.control("fail", table="contacts", on="count", name="counts")
    for caller in (client, other):
        assert status(caller, "company/contacts/count") == 500
        assert status(caller, "company/contacts") == 200
        assert status(caller, "company/companies/count") == 200
    assert simulator.control("heal", name="counts") == {"met": {"counts": 2}}


def test_a_request_hangs_for_its_seconds_and_is_answered(client: Client) -> None:
    client.simulator.control("hang", table="tickets", seconds=0.4)
    began = time.monotonic()
    assert status(client) == 200
    assert 0.4 <= time.monotonic() - began < 3
    client.simulator.control("heal")
    client.simulator.control("hang", seconds=0.3, status=504)
    assert status(client) == 504


def test_healing_lets_go_of_what_hangs(client: Client) -> None:
    client.simulator.control("hang", table="tickets", seconds=60)
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(status(client)))
    asking.start()
    deadline = time.monotonic() + 5
    while not client.simulator.control("outages")["outages"][0]["met"]:
        assert time.monotonic() < deadline
    other = Client(client.simulator)
    assert status(other, "time/entries") == 200
    assert list(client.simulator.control("heal")["met"].values()) == [1]
    asking.join(timeout=5)
    assert answers == [200]


def test_a_reset_heals(client: Client) -> None:
    client.simulator.control("fail")
    assert status(client) == 500
    client.simulator.control("reset")
    assert client.simulator.control("outages") == {"outages": []}
    assert status(client) == 200


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("fail", {"table": "nonsense"}, "table must be one of"),
        ("fail", {"company_id": "nobody"}, "no company"),
        ("fail", {"start": "2024-02-01", "end": "2024-01-01"}, "not before end"),
        ("fail", {"window": 3}, "an outage has no"),
        ("hang", {"table": "tickets"}, "seconds"),
        ("heal", {"name": "nonsense"}, "no outage"),
    ],
)
def test_mistakes_are_explained(
    simulator: Simulator, method: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SimulatorError, match=message):
        simulator.control(method, **arguments)
    assert simulator.control("outages") == {"outages": []}


def test_two_outages_of_one_name_are_refused(simulator: Simulator) -> None:
    simulator.control("fail", name="one")
    with pytest.raises(SimulatorError, match="in force"):
        simulator.control("hang", name="one", seconds=1)
