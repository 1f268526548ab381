"""What is deleted: recycle bin, purges, merges, getDeleted and getUpdated."""

from __future__ import annotations

from typing import Any

import pytest

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import Client, error

START, END = "2025-06-01T00:00:00Z", "2025-06-11T12:00:00Z"


def replicated(client: Client, what: str, name: str, start: str = START, end: str = END) -> Any:
    return client.get(f"sobjects/{name}/{what}/", start=start, end=end)


def test_a_deletion_moves_only_the_system_stamp(client: Client, simulator: Simulator) -> None:
    [id] = simulator.control("delete", table="Case", count=1, at="2025-06-10T00:00:00Z")["ids"]
    text = f"SELECT IsDeleted, SystemModstamp, LastModifiedDate FROM Case WHERE Id = '{id}'"
    assert client.rows(text) == []
    [row] = client.rows(text, all=True)
    assert row["IsDeleted"] is True
    assert row["SystemModstamp"] == "2025-06-10T00:00:00.000+0000"
    assert row["LastModifiedDate"] < row["SystemModstamp"]
    recent = "Case WHERE SystemModstamp >= 2025-06-10T00:00:00Z"
    assert id in client.ids(f"SELECT Id FROM {recent}", all=True)
    [truth] = simulator.control("truth_current", table="Case", ids=[id])["records"].values()
    assert (truth["deleted"], truth["gone"], truth["deleted_at"]) == (
        True,
        False,
        "2025-06-10T00:00:00Z",
    )


def test_an_undeletion_is_told_by_a_stamp_or_by_none(client: Client, simulator: Simulator) -> None:
    first, second = simulator.control(
        "delete", table="Account", count=2, at="2025-06-10T00:00:00Z"
    )["ids"]
    simulator.control("undelete", table="Account", ids=[first], at="2025-06-11T00:00:00Z")
    simulator.control("undelete", table="Account", ids=[second], silent=True)
    text = "SELECT Id, SystemModstamp, IsDeleted FROM Account WHERE Id IN ('{}', '{}')"
    rows = {row["Id"]: row for row in client.rows(text.format(first, second))}
    assert rows[first]["SystemModstamp"].startswith("2025-06-11T00:00:00")
    assert rows[second]["SystemModstamp"].startswith("2025-06-10T00:00:00")
    assert not any(row["IsDeleted"] for row in rows.values())
    assert replicated(client, "deleted", "Account").json()["deletedRecords"] == []


def test_the_recycle_bin_is_emptied_after_15_days(client: Client, simulator: Simulator) -> None:
    [id] = simulator.control("delete", table="Case", count=1)["ids"]
    simulator.control("advance", seconds=14 * 86_400)
    client.login()
    assert client.count(f"Case WHERE Id = '{id}'", all=True) == 1
    simulator.control("advance", seconds=86_401)
    client.login()
    assert client.count(f"Case WHERE Id = '{id}'", all=True) == 0
    [truth] = simulator.control("truth_current", table="Case", ids=[id])["records"].values()
    assert (truth["deleted"], truth["gone"]) == (True, True)
    with pytest.raises(SimulatorError, match="count"):
        simulator.control("delete", table="Case")


def test_a_purge_above_the_quota_spares_what_is_younger(
    client: Client, simulator: Simulator
) -> None:
    old = simulator.control("delete", table="Case", count=5, at="2025-06-11T09:00:00Z")["ids"]
    simulator.control("delete", table="Case", count=5, at="2025-06-11T11:00:00Z")
    assert sorted(simulator.control("purge", table="Case")["ids"]) == sorted(old)
    assert client.count("Case WHERE IsDeleted = true", all=True) == 5
    told = replicated(client, "deleted", "Case").json()
    assert {one["id"] for one in told["deletedRecords"]} >= set(old)


def test_a_purged_log_moves_the_earliest_date(client: Client, simulator: Simulator) -> None:
    simulator.control("delete", table="Case", count=5, at="2025-06-05T00:00:00Z")
    late = simulator.control("delete", table="Case", count=2, at="2025-06-11T00:00:00Z")["ids"]
    before = replicated(client, "deleted", "Case").json()
    assert before["earliestDateAvailable"].startswith("2025-05-27T12:00")
    simulator.control("purge", table="Case", min_age_seconds=5 * 86_400, log=True)
    told = replicated(client, "deleted", "Case").json()
    assert told["earliestDateAvailable"] > "2025-06-06T12:00"
    assert {one["id"] for one in told["deletedRecords"]} == set(late)


def test_get_deleted_says_how_far_it_got(client: Client, simulator: Simulator) -> None:
    gone = simulator.control("delete", table="Account", count=2, at="2025-06-11T11:00:00Z")["ids"]
    simulator.control("delete", table="Account", count=1, at="2025-06-11T11:59:50Z")
    told = replicated(client, "deleted", "Account").json()
    assert set(told) == {"deletedRecords", "earliestDateAvailable", "latestDateCovered"}
    assert told["latestDateCovered"].startswith("2025-06-11T11:59:0")
    assert sorted(one["id"] for one in told["deletedRecords"]) == sorted(gone)
    assert told["deletedRecords"][0]["deletedDate"] == "2025-06-11T11:00:00.000+0000"
    simulator.control("hostility", replication_lag_seconds=0)
    assert len(replicated(client, "deleted", "Account").json()["deletedRecords"]) == 3


def test_windows_that_are_refused(client: Client, simulator: Simulator) -> None:
    late, same = "2025-05-01T00:00:00Z", "2025-06-01T00:00:30Z"
    assert error(replicated(client, "deleted", "Case", late))[1] == "INVALID_REPLICATION_DATE"
    assert error(replicated(client, "deleted", "Case", START, same))[1] == (
        "INVALID_REPLICATION_DATE"
    )
    assert replicated(client, "updated", "Case", "2025-05-20T00:00:00+00:00").status_code == 200
    assert error(replicated(client, "updated", "Case", late))[1] == "INVALID_REPLICATION_DATE"
    assert error(replicated(client, "deleted", "CaseHistory"))[0] == 400
    assert error(replicated(client, "deleted", "Nonsense")) == (404, "NOT_FOUND")
    simulator.control("delete", table="Case", count=5, at="2025-06-10T00:00:00Z")
    simulator.control("hostility", id_limit=4)
    assert error(replicated(client, "deleted", "Case")) == (400, "EXCEEDED_ID_LIMIT")


def test_get_updated(client: Client, simulator: Simulator) -> None:
    changed = simulator.control("mutate", table="Lead", count=6, at="2025-06-10T10:00:00Z")["ids"]
    told = replicated(client, "updated", "Lead", "2025-06-10T09:59:00Z").json()
    assert set(told) == {"ids", "latestDateCovered"}
    assert set(changed) <= set(told["ids"])


def test_a_hard_deletion_leaves_no_trace(client: Client, simulator: Simulator) -> None:
    [id] = simulator.control("hard_delete", table="Contact", count=1)["ids"]
    assert client.count(f"Contact WHERE Id = '{id}'", all=True) == 0
    assert client.count("Contact", all=True) == 49
    assert replicated(client, "deleted", "Contact").json()["deletedRecords"] == []


def test_a_merge_says_whom_the_loser_went_into(client: Client, simulator: Simulator) -> None:
    master, loser = client.ids("SELECT Id FROM Account ORDER BY Id LIMIT 2")
    simulator.control("merge", table="Account", master=master, ids=[loser])
    text = f"SELECT MasterRecordId, IsDeleted FROM Account WHERE Id = '{loser}'"
    [row] = client.rows(text, all=True)
    assert (row["MasterRecordId"], row["IsDeleted"]) == (master, True)
    recent = f"SELECT Id FROM Account WHERE SystemModstamp >= {END}"
    assert set(client.ids(recent, all=True)) == {master, loser}
    simulator.control("undelete", table="Account", ids=[loser])
    assert client.rows(text, all=True)[0]["MasterRecordId"] is None


def test_users_are_never_deleted(client: Client, simulator: Simulator) -> None:
    with pytest.raises(SimulatorError, match="cannot be deleted"):
        simulator.control("delete", table="User", count=1)
    assert {row["IsActive"] for row in client.rows("SELECT IsActive FROM User")} <= {True, False}
    assert error(client.soql("SELECT Id FROM User WHERE IsDeleted = false"))[1] == "INVALID_FIELD"
