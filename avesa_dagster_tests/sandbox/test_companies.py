"""Many companies in one process, each with its own size, limit and faults; announced limits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import NOW, Client

TICKETS = "service/tickets"


@pytest.fixture(scope="module")
def crowd() -> Iterator[tuple[Simulator, dict[str, Client], float, float]]:
    """A site with 30 more companies, the CPU seconds they took, and how many MB it holds."""
    with Simulator(seed=7, now=NOW, tickets=5) as simulator:
        process = psutil.Process(simulator.pid)
        began = sum(process.cpu_times()[:2])
        clients = {}
        for n in range(30):
            added = simulator.control(
                "add_company",
                company_id=f"msp_{n}",
                sizes={"tickets": 4000 if n == 17 else 400},
            )
            clients[f"msp_{n}"] = Client(simulator, added["credentials"])
        seconds = sum(process.cpu_times()[:2]) - began
        held = process.memory_info().rss / 2**20
        yield simulator, clients, seconds, held


def test_thirty_companies_are_there_quickly(
    crowd: tuple[Simulator, dict[str, Client], float, float],
) -> None:
    simulator, clients, seconds, held = crowd
    assert seconds < 6  # 1.9 s where nothing else runs
    assert held < 200  # 82 MB
    with ThreadPoolExecutor(30) as pool:
        counts = list(pool.map(lambda client: client.count(TICKETS), clients.values()))
    assert counts == [4000 if n == 17 else 400 for n in range(30)]
    listed = simulator.control("companies")["companies"]
    assert len(listed) == 31
    assert listed["msp_17"]["sizes"]["tickets"] == 4000
    assert listed["msp_3"]["credentials"] == clients["msp_3"].credentials


def test_their_keys_and_records_differ(
    crowd: tuple[Simulator, dict[str, Client], float, float],
) -> None:
    _, clients, _, _ = crowd
    keys = {client.credentials["private_key"] for client in clients.values()}
    bodies = {client.get(TICKETS, pageSize=5).content for client in clients.values()}
    assert len(keys) == len(bodies) == 30
    thief = Client(
        clients["msp_1"].simulator, clients["msp_1"].credentials | {"company_id": "msp_2"}
    )
    assert thief.get(TICKETS).status_code == 401


def test_each_company_has_its_own_limit_latency_and_script(
    client: Client, simulator: Simulator
) -> None:
    added = simulator.control(
        "add_company",
        company_id="odd_msp",
        sizes={"tickets": 60},
        limit_per_minute=4,
        latency_ms=150,
        hostility={"page_clamp": 7, "faults": [{"kind": "status", "status": 502, "at": [2]}]},
    )
    odd = Client(simulator, added["credentials"])
    began = time.monotonic()
    assert len(odd.ids(TICKETS, pageSize=50)) == 7
    assert time.monotonic() - began >= 0.15
    assert [odd.get(TICKETS).status_code for _ in range(4)] == [502, 200, 200, 429]
    assert [client.get(TICKETS, pageSize=50).status_code for _ in range(6)] == [200] * 6
    assert len(client.ids(TICKETS, pageSize=50)) == 50
    simulator.control("hostility", company_id="odd_msp")
    simulator.control("limit", company_id="odd_msp", limit_per_minute=None)
    assert len(odd.ids(TICKETS, pageSize=50)) == 50
    assert len(odd.ids(TICKETS, pageSize=50)) == 50


def test_a_company_without_a_script_has_the_sites(client: Client, simulator: Simulator) -> None:
    simulator.control("hostility", page_clamp=3)
    simulator.control("hostility", company_id="acme_msp", page_clamp=9)
    assert len(client.ids(TICKETS)) == 9
    simulator.control("hostility", company_id="acme_msp")
    assert len(client.ids(TICKETS)) == 3


def test_a_limit_is_not_told_unless_announced(client: Client, simulator: Simulator) -> None:
    simulator.control("limit", limit_per_minute=50)
    assert not [name for name in client.get(TICKETS).headers if "ratelimit" in name.lower()]
    simulator.control("limit", limit_per_minute=None, announced=True)
    assert "X-RateLimit-Limit" not in client.get(TICKETS).headers


def test_an_announced_limit_is_told_and_enforced(client: Client, simulator: Simulator) -> None:
    simulator.control("limit", limit_per_minute=100)
    client.get(TICKETS)
    simulator.control("limit", limit_per_minute=3, announced=True)
    answers = [client.get(TICKETS) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
    assert {answer.headers["X-RateLimit-Limit"] for answer in answers} == {"3"}
    remaining = [answer.headers["X-RateLimit-Remaining"] for answer in answers]
    assert remaining == ["2", "1", "0", "0", "0"]
    assert all(50 < int(answer.headers["Retry-After"]) <= 60 for answer in answers[3:])


def test_a_lowered_limit_can_count_what_was_asked_before(
    client: Client, simulator: Simulator
) -> None:
    simulator.control("limit", limit_per_minute=100)
    for _ in range(4):
        client.get(TICKETS)
    simulator.control("limit", limit_per_minute=6, announced=True, forget=False)
    assert client.get(TICKETS).headers["X-RateLimit-Remaining"] == "1"
    simulator.control("limit", limit_per_minute=3, announced=True, forget=False)
    refused = client.get(TICKETS)
    assert (refused.status_code, refused.headers["X-RateLimit-Remaining"]) == (429, "0")


def test_a_companys_limit_goes_before_the_sites(client: Client, simulator: Simulator) -> None:
    added = simulator.control("add_company", company_id="slow_msp", sizes={"tickets": 10})
    slow = Client(simulator, added["credentials"])
    simulator.control("limit", limit_per_minute=2, company_id="slow_msp", announced=True)
    assert slow.get(TICKETS).headers["X-RateLimit-Limit"] == "2"
    assert "X-RateLimit-Limit" not in client.get(TICKETS).headers
    simulator.control("limit", limit_per_minute=1)
    assert [slow.get(TICKETS).status_code for _ in range(2)] == [200, 429]
    assert [client.get(TICKETS).status_code for _ in range(2)] == [200, 429]
    simulator.control("reset", now=NOW)
    assert [client.get(TICKETS).status_code for _ in range(5)] == [200] * 5


def test_a_company_with_a_mistake_is_not_added(simulator: Simulator) -> None:
    with pytest.raises(SimulatorError, match="no fault of kind"):
        simulator.control(
            "add_company", company_id="bad", hostility={"faults": [{"kind": "gremlins"}]}
        )
    assert set(simulator.control("companies")["companies"]) == {"acme_msp"}
