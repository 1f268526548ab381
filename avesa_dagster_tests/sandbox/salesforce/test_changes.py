"""What moves a stamp, what moves none, and what moves while it is read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import NOW, Client, table_of

STAMPS = "SELECT Id, SystemModstamp, LastModifiedDate FROM Case"


def hashed(payload: dict[str, Any]) -> str:
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_stamps_have_ties_and_run_ahead_of_modifications(client: Client) -> None:
    rows = client.rows(STAMPS)
    assert all(row["LastModifiedDate"] <= row["SystemModstamp"] for row in rows)
    assert any(row["LastModifiedDate"] < row["SystemModstamp"] for row in rows)
    assert Counter(row["SystemModstamp"] for row in rows).most_common(1)[0][1] >= 15


def test_a_mass_bump_moves_system_stamps_alone(client: Client, simulator: Simulator) -> None:
    before = {row["Id"]: row["LastModifiedDate"] for row in client.rows(STAMPS)}
    moved = simulator.control("bump", table="Case", all=True, at="2025-06-11T10:00:00Z")
    assert moved == {"changed": 300}
    rows = client.rows(STAMPS)
    assert {row["SystemModstamp"] for row in rows} == {"2025-06-11T10:00:00.000+0000"}
    assert {row["Id"]: row["LastModifiedDate"] for row in rows} == before


def test_formulas_change_and_no_stamp_tells_it(client: Client, simulator: Simulator) -> None:
    text = "SELECT Id, SystemModstamp, Sla_Hours_Left__c, ContactPhone, Subject FROM Case"
    before = {row["Id"]: row for row in client.rows(text)}
    simulator.control("formulas", table="Case")
    after = {row["Id"]: row for row in client.rows(text)}
    for name, moved in (("Sla_Hours_Left__c", True), ("ContactPhone", True), ("Subject", False)):
        assert any(after[id][name] != before[id][name] for id in before) is moved
    assert all(after[id]["SystemModstamp"] == before[id]["SystemModstamp"] for id in before)


def test_a_mutation_changes_values_and_both_stamps(client: Client, simulator: Simulator) -> None:
    [id] = simulator.control("mutate", table="Case", count=1, at="2025-06-11T11:00:00Z")["ids"]
    [row] = client.rows(f"{STAMPS} WHERE Id = '{id}'")
    assert row["SystemModstamp"] == row["LastModifiedDate"] == "2025-06-11T11:00:00.000+0000"
    [history] = simulator.control("truth", table="Case", ids=[id[:15]])["records"].values()
    first, second = (version["payload"] for version in history["versions"])
    assert first["CaseNumber"] == second["CaseNumber"]
    assert sum(first[name] != second[name] for name in first) > 5


def test_truth_is_what_queries_serve(client: Client, simulator: Simulator) -> None:
    simulator.control("mutate", table="Case", count=20)
    simulator.control("delete", table="Case", count=5)
    described = client.get("sobjects/Case/describe").json()["fields"]
    names = ",".join(about["name"] for about in described)
    rows = {row["Id"]: row for row in client.rows(f"SELECT {names} FROM Case", all=True)}
    truth = simulator.control("truth_current", table="Case")["records"]
    assert set(truth) == set(rows)
    for id, row in rows.items():
        del row["attributes"]
        assert hashed(row) == truth[id]["sha256"]
        assert row["IsDeleted"] == truth[id]["deleted"]
    few = simulator.control("truth_current", table="Case", fields=["Id", "Subject"])["records"]
    some = next(iter(rows))
    assert few[some]["sha256"] == hashed({"Id": some, "Subject": rows[some]["Subject"]})
    counts = simulator.control("counts", table="Case")
    assert (counts["all"], counts["live"], counts["visible"]) == (300, 295, 300)


def test_rows_become_visible_late(client: Client, simulator: Simulator) -> None:
    simulator.control("hostility", late_seconds=120)
    [changed] = simulator.control("mutate", table="Case", count=1)["ids"]
    [made] = simulator.control("create", table="Case", count=1)["ids"]
    recent = f"{STAMPS} WHERE SystemModstamp >= {NOW}"
    assert client.rows(recent) == []
    assert client.rows(f"{STAMPS} WHERE Id = '{changed}'")
    assert client.rows(f"{STAMPS} WHERE Id = '{made}'") == []
    told = simulator.control("truth_current", table="Case", ids=[changed, made])
    assert {about["visible"] for about in told["records"].values()} == {False}
    assert told["pending"] == 2
    simulator.control("advance", seconds=121)
    assert {row["Id"] for row in client.rows(recent)} == {changed, made}
    assert client.rows(recent)[0]["SystemModstamp"] < "2025-06-11T12:01"


def test_records_move_while_they_are_read(client: Client, simulator: Simulator) -> None:
    window = "SystemModstamp < 2025-01-01T00:00:00Z"
    before = client.count(f"Case WHERE {window}")
    simulator.control("hostility", mutate_per_request=3, delete_per_request=2, create_per_request=1)
    for _ in range(2):
        client.ids(f"SELECT Id FROM Case WHERE {window}")
    assert before - 10 <= client.count(f"Case WHERE {window}") <= before - 8
    simulator.control("freeze")
    left = client.count("Case")
    client.ids("SELECT Id FROM Case")
    assert client.count("Case") == left
    simulator.control("thaw")
    client.finished("SELECT Id FROM Case")
    assert client.count("Case") != left


def test_locators_read_the_past_or_the_present(client: Client, simulator: Simulator) -> None:
    hint = {"Sforce-Query-Options": "batchSize=200"}
    text = f"{STAMPS} ORDER BY Id"

    def second() -> list[dict[str, Any]]:
        url = client.soql(text, hint).json()["nextRecordsUrl"]
        last = client.ids("SELECT Id FROM Case ORDER BY Id DESC LIMIT 9")
        simulator.control("mutate", table="Case", ids=last[:5])
        simulator.control("hard_delete", table="Case", ids=last[5:])
        found = client.session.get(client.root + url, timeout=5).json()
        rows: list[dict[str, Any]] = found["records"]
        return rows

    past = second()
    assert len(past) == 100
    assert all(row["SystemModstamp"] < "2025-06-11T12" for row in past)
    simulator.control("hostility", cursor_live=True)
    present = second()
    assert len(present) == 92
    assert sum(row["SystemModstamp"] >= "2025-06-11T12" for row in present) == 5


def test_archived_activities_leave_the_plain_query(client: Client, simulator: Simulator) -> None:
    before = client.count("Event")
    archived = simulator.control("archive", table="Event", before="2025-01-01T00:00:00Z")
    assert archived["archived"] > 0
    assert client.count("Event") == before - archived["archived"]
    assert client.count("Event", all=True) == 40
    with pytest.raises(SimulatorError, match="never archived"):
        simulator.control("archive", table="Case", before=NOW)


def test_histories_never_change(simulator: Simulator) -> None:
    with pytest.raises(SimulatorError, match="never change"):
        simulator.control("mutate", table="CaseHistory", count=1)


def test_poisoned_records(client: Client, simulator: Simulator) -> None:
    made = simulator.control("poison", table="Case")["ids"]
    assert set(made) == {
        "no_id", "null_id", "no_stamp", "stamp_garbage", "year_1700", "year_4000", "huge_text",
        "nuls", "wide_integer", "lone_surrogate",
    }  # fmt: skip

    def body(kind: str) -> bytes:
        content: bytes = client.get(f"sobjects/Case/{made[kind]}").content
        return content

    assert b'"Id"' not in body("no_id")
    assert b'"Id":null' in body("null_id")
    assert b'"SystemModstamp"' not in body("no_stamp")
    assert b'"SystemModstamp":"yesterday"' in body("stamp_garbage")
    assert b"1700-01-01T00:00:00.000+0000" in body("year_1700")
    assert b"4000-12-31T23:59:59.000+0000" in body("year_4000")
    assert len(body("huge_text")) > 131_000
    assert b"\\u0000" in body("nuls")
    assert str(10**30).encode() in body("wide_integer")
    assert b"\\ud800" in body("lone_surrogate")
    recent = f"SELECT Id, Subject, Description FROM Case WHERE SystemModstamp >= {NOW}"
    assert len(client.rows(recent)) == len(made)
    rows = table_of(client.results(client.finished(recent)))
    assert len(rows) == len(made) + 1
    truth = simulator.control("truth_current", table="Case", ids=[made["no_id"]])["records"]
    assert truth[made["no_id"]]["poison"] == "no_id"


def test_the_same_seed_makes_the_same_records(client: Client, simulator: Simulator) -> None:
    def everything() -> dict[str, str]:
        told = simulator.control("truth_current", table="Contact")["records"]
        return {id: about["sha256"] for id, about in told.items()}

    first = everything()
    simulator.control("mutate", table="Contact", count=5)
    assert everything() != first
    simulator.control("reset", now=NOW)
    assert everything() == first
    simulator.control("reset", now=NOW, seed=8)
    assert everything() != first
