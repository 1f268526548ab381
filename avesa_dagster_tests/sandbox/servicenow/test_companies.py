"""Companies are instances on ports of their own; statistics and page accounting tell them apart."""

from __future__ import annotations

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import NOW, Client, keyset_pages

WINDOW = ("2025-01-01 00:00:00", "2025-06-01 00:00:00")


def second(client: Client, **about: object) -> Client:
    given = client.control("add_company", company_id="globex", seed=99, **about)
    return Client(client.simulator, given["credentials"])


def test_a_company_has_a_port_credentials_and_records_of_its_own(client: Client) -> None:
    other = second(client, sizes={"incident": 7, "companies": 3})
    assert other.url != client.url
    assert (len(other.ids("incident")), len(client.ids("incident"))) == (7, 300)
    assert not set(other.ids("sys_user")) & set(client.ids("sys_user"))
    strangers = Client(client.simulator, client.credentials | {"instance_url": other.url})
    assert strangers.get("table/incident").status_code == 401
    companies = client.control("companies")["companies"]
    assert companies["globex"]["credentials"] == other.credentials
    assert companies["globex"]["sizes"]["incidents"] == 7
    with pytest.raises(SimulatorError, match="there already"):
        client.control("add_company", company_id="globex")


def test_settings_of_one_company_leave_the_other_alone(client: Client) -> None:
    other = second(client, limit_per_minute=2, hostility={"restricted_share": 1.0})
    assert other.rows("incident") == []
    assert [other.get("table/incident").status_code for _ in range(2)] == [200, 429]
    assert len(client.rows("incident")) == 300
    client.control("hibernate", company_id="globex")
    client.control("fail", company_id="globex")
    client.control("user", time_zone="GMT", company_id="globex")
    shown = client.rows("incident", display_value="all", limit=1)[0]["sys_created_on"]
    assert shown["display_value"] != shown["value"]
    assert client.control("stats")["by_credential"] == {"globex": 3, "acme_msp": 2}


def test_a_reset_takes_the_other_companies_away(client: Client) -> None:
    other = second(client)
    client.control("reset", now=NOW)
    assert requests.get(other.url, timeout=10).status_code == 404
    assert list(client.control("companies")["companies"]) == ["acme_msp"]
    assert second(client).url == other.url


def test_each_page_of_records_is_a_line(client: Client) -> None:
    pages = keyset_pages(client, "incident", *WINDOW, 40)
    lines = client.control("fetched")["pages"]
    assert [line["rows"] for line in lines] == [len(page) for page in pages[:-1]]
    assert {line["times"] for line in lines} == {1}
    assert {line["changed_to"] for line in lines} == {"2025-06-01T00:00:00Z"}
    assert (lines[0]["changed_from"], lines[0]["above_id"]) == ("2025-01-01T00:00:00Z", "")
    assert (lines[0]["company_id"], lines[0]["table"]) == ("acme_msp", "incident")
    for line, page in zip(lines[1:], pages, strict=False):
        last = page[-1]
        assert line["changed_from"] == last["sys_updated_on"].replace(" ", "T") + "Z"
        assert line["above_id"] == last["sys_id"]
    keyset_pages(client, "incident", *WINDOW, 40)
    assert {line["times"] for line in client.control("fetched", table="incident")["pages"]} == {2}
    client.control("stats_reset")
    assert client.control("fetched")["pages"] == []


def test_windows_of_creation_and_spoilt_pages_are_told_apart(client: Client) -> None:
    client.control("hostility", faults=[{"kind": "drop_row", "at": [2]}])
    created = "sys_created_on>=2025-01-01^sys_created_on<2025-02-01"
    for _ in range(2):
        client.ids("incident", query=created)
    (line,) = client.control("fetched", company_id="acme_msp")["pages"]
    assert line["changed_from"] == "2025-01-01T00:00:00Z"
    assert (line["times"], line["spoilt"]) == (1, 1)


def test_statistics_count_kinds_and_keep_a_log(client: Client) -> None:
    client.ids("incident", query="priority=1", limit=2)
    client.count("incident")
    client.get("table/incident/" + "0" * 32)
    stats = client.control("stats", log=3)
    assert stats["by_kind"] == {"list": 1, "count": 1, "get": 1}
    assert stats["by_status"] == {"200": 2, "404": 1}
    first = stats["log"][0]
    assert (first["table"], first["conditions"], first["rows"]) == ("incident", "priority=1", 2)
    assert first["query"] == {"sysparm_fields": "sys_id", "sysparm_limit": "2"}


def test_control_wants_its_token_and_says_what_is_wrong(client: Client) -> None:
    assert requests.post(f"{client.url}/__sim__/stats", timeout=10).status_code == 403
    for method, about in {
        "nonsense": {},
        "mutate": {"table": "nothing", "count": 1},
        "truth": {"table": "incident", "ids": ["0" * 32]},
        "property": {"name": "glide.x", "value": 1},
        "user": {"time_zone": "Mars/Olympus"},
        "reset": {"sizes": {"spaceships": 3}},
    }.items():
        with pytest.raises(SimulatorError):
            client.control(method, **about)


def test_the_same_seed_gives_the_same_business(client: Client) -> None:
    def everything() -> list[object]:
        return [
            client.rows("task", query="ORDERBYsys_id", exclude_reference_link="true"),
            client.rows("sys_user", query="ORDERBYsys_id", exclude_reference_link="true"),
        ]

    first = everything()
    client.control("reset", now=NOW)
    assert everything() == first
    client.control("reset", now=NOW, seed=8)
    assert everything() != first


def test_a_large_world_is_quick_to_make_and_to_page() -> None:
    with Simulator("servicenow", incidents=200_000, now=NOW, startup_seconds=20) as simulator:
        client = Client(simulator)
        start, end = "2024-01-01 00:00:00", "2025-01-01 00:00:00"
        window = f"sys_updated_on>={start}^sys_updated_on<{end}"
        rows = client.rows(
            "incident", query=f"{window}^ORDERBYsys_updated_on^ORDERBYsys_id", limit=500
        )
        assert len(rows) == 500 and rows[0]["sys_updated_on"] >= start
        total = client.count("incident", window)
        assert 50_000 < total < 200_000
        busiest = client.get("stats/incident", count="true", max_fields="sys_created_on")
        assert busiest.json()["result"]["stats"]["max"]["sys_created_on"] < "2025-06-11 12:00:00"
