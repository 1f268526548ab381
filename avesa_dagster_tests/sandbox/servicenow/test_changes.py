"""What happens to records: changes loud and silent, late ones, deletions, moves, damage."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from avesa_dagster.sandbox.process import SimulatorError
from avesa_dagster.sandbox.servicenow.poison import POISONS

from .conftest import NOW, Client

ORDER = "ORDERBYsys_updated_on^ORDERBYsys_id"
AT, AT_STORED = "2025-06-11T11:30:00Z", "2025-06-11 11:30:00"


def one(client: Client, table: str, sys_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(
        f"table/{table}/{sys_id}", exclude_reference_link="true"
    ).json()["result"]
    return found


def payload(client: Client, table: str, sys_id: str) -> dict[str, Any]:
    """The newest version that the truth knows."""
    record = client.control("truth", table=table, ids=[sys_id])["records"][sys_id]
    newest: dict[str, Any] = record["versions"][-1]["payload"]
    return newest


@pytest.mark.parametrize("table", ["incident", "sys_user", "core_company", "time_card", "cmdb_ci"])
def test_a_change_moves_the_record_and_the_truth_knows_both_versions(
    client: Client, table: str
) -> None:
    (sys_id,) = client.control("mutate", table=table, count=1, at=AT)["ids"]
    row = one(client, table, sys_id)
    assert row["sys_updated_on"] == AT_STORED
    versions = client.control("truth", table=table, ids=[sys_id])["records"][sys_id]["versions"]
    assert [version["updated_at"] for version in versions][1] == AT
    assert versions[1]["payload"] == row != versions[0]["payload"]
    about = client.truth(table, ids=[sys_id])[sys_id]
    assert (about["updated_at"], about["versions"], about["visible"]) == (AT, 2, True)


def test_the_truth_of_records_nobody_touched(client: Client) -> None:
    rows = {row["sys_id"]: row for row in client.rows("incident", exclude_reference_link="true")}
    truth = client.control("truth_current", table="incident")["records"]
    history = client.control("truth", table="incident")["records"]
    assert set(truth) == set(rows) == set(history)
    for sys_id, row in rows.items():
        assert truth[sys_id]["updated_at"].replace("T", " ")[:-1] == row["sys_updated_on"]
        assert [v["payload"] for v in history[sys_id]["versions"]] == [row]
    sys_id = next(iter(rows))
    text = json.dumps(rows[sys_id], separators=(",", ":"))
    assert truth[sys_id]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_silent_changes_leave_no_trace(client: Client) -> None:
    (sys_id,) = client.ids("incident", query=ORDER, limit=1)
    before = one(client, "incident", sys_id)
    client.control("mutate", table="incident", ids=[sys_id], silent=True)
    after = one(client, "incident", sys_id)
    assert after != before
    assert after["short_description"] != before["short_description"]
    for name in ("sys_updated_on", "sys_updated_by", "sys_mod_count"):
        assert after[name] == before[name]
    client.control("hostility", silent_share=1.0)
    client.control("mutate", table="incident", ids=[sys_id])
    assert one(client, "incident", sys_id)["sys_updated_on"] == before["sys_updated_on"]
    assert payload(client, "incident", sys_id) == one(client, "incident", sys_id)


def test_late_rows_show_behind_the_newest(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    client.control("hostility", late_seconds=90)
    (made,) = client.control("create", table="incident", count=1)["ids"]
    (changed,) = client.control("mutate", table="incident", count=1)["ids"]
    since = "sys_updated_on>=2025-06-11 12:00:00"
    assert client.ids("incident", query=since) == []
    assert client.control("truth_current", table="incident", brief=True)["pending"] == 2
    assert not client.truth("incident", ids=[made])[made]["visible"]
    client.control("advance", seconds=91)
    assert set(client.ids("incident", query=since)) == {made, changed}
    assert one(client, "incident", made)["sys_updated_on"] == "2025-06-11 12:00:00"


def test_records_move_away_while_being_read(client: Client) -> None:
    client.control("hostility", mutate_per_request=3, seed=4)
    first = client.ids("incident", query=ORDER, limit=50)
    second = client.ids("incident", query=ORDER, limit=50, offset=50)
    walked = first + second
    for offset in range(100, 300, 50):
        walked += client.ids("incident", query=ORDER, limit=50, offset=offset)
    assert len(set(walked)) < 300  # offsets lose what moves
    client.control("freeze")
    assert client.ids("incident", query=ORDER) == client.ids("incident", query=ORDER)
    client.control("thaw")
    client.control("hostility", create_per_request=2, delete_per_request=1, silent_per_request=1)
    for _ in range(5):
        client.ids("problem")
    truth = client.truth("problem")
    assert len(truth) == 30 and sum(about["deleted"] for about in truth.values()) == 5
    assert any(about["versions"] == 2 for about in truth.values())


def test_deletions_are_audited_under_the_class(client: Client) -> None:
    moment = "2025-06-11T11:00:00Z"
    kinds = {row["sys_id"]: row["sys_class_name"] for row in client.rows("task")}
    gone = client.control("delete", table="task", count=60, at=moment)["ids"]
    assert set(client.ids("task")) == set(kinds) - set(gone)
    audit = client.rows("sys_audit_delete", query="sys_created_on>=2025-06-11 11:00:00")
    assert {row["documentkey"]: row["tablename"] for row in audit} == {s: kinds[s] for s in gone}
    assert len({row["tablename"] for row in audit}) > 1  # not the parent's name
    assert {row["sys_created_on"] for row in audit} == {"2025-06-11 11:00:00"}
    assert all(row["documentkey"] in row["payload"] for row in audit)
    assert client.count("sys_audit_delete", "tablename=incident") == sum(
        kinds[sys_id] == "incident" for sys_id in gone
    )


def test_some_deletions_are_not_audited_and_audits_may_be_purged(client: Client) -> None:
    client.control("delete", table="syslog", count=5)
    client.control("table", table="problem", audited=False)
    client.control("delete", table="problem", count=2)
    assert client.rows("sys_audit_delete") == []
    client.control("delete", table="incident", count=2, at="2025-01-01T00:00:00Z")
    client.control("delete", table="incident", count=3, at=AT)
    assert client.control("purge_audit", before="2025-03-01T00:00:00Z") == {"purged": 2}
    assert len(client.rows("sys_audit_delete")) == 3
    with pytest.raises(SimulatorError, match="cannot be changed"):
        client.control("create", table="sys_audit_delete")


def test_an_undeleted_record_is_as_it_was_and_its_audit_stays(client: Client) -> None:
    (sys_id,) = client.ids("incident", query=ORDER, limit=1)
    before = one(client, "incident", sys_id)
    client.control("delete", table="incident", ids=[sys_id])
    assert client.truth("incident", ids=[sys_id])[sys_id]["deleted"]
    assert client.get(f"table/incident/{sys_id}").status_code == 404
    assert client.control("undelete", table="incident")["ids"] == [sys_id]
    assert one(client, "incident", sys_id) == before
    assert [row["documentkey"] for row in client.rows("sys_audit_delete")] == [sys_id]


def test_reparenting_changes_the_class_and_not_the_id(client: Client) -> None:
    (sys_id,) = client.ids("cmdb_ci_server", limit=1)
    client.control("reparent", table="cmdb_ci_server", ids=[sys_id], to="cmdb_ci_service", at=AT)
    assert client.get(f"table/cmdb_ci_server/{sys_id}").status_code == 404
    row = one(client, "cmdb_ci", sys_id)
    assert (row["sys_class_name"], row["sys_updated_on"]) == ("cmdb_ci_service", AT_STORED)
    assert sys_id in client.ids("cmdb_ci_service")
    assert sys_id not in client.ids("cmdb_ci_computer")
    assert client.truth("cmdb_ci_server")[sys_id]["deleted"]
    about = client.truth("cmdb_ci")[sys_id]
    assert (about["deleted"], about["kind"]) == (False, "cmdb_ci_service")
    assert client.rows("sys_audit_delete") == []
    with pytest.raises(SimulatorError, match="no common parent"):
        client.control("reparent", table="cmdb_ci", ids=[sys_id], to="incident")


def test_created_records(client: Client) -> None:
    made = client.control("create", table="incident", count=3, at="2023-01-01T00:00:00Z")["ids"]
    rows = client.rows("incident", query="sys_created_on<2023-02-01^ORDERBYsys_id")
    assert [row["sys_id"] for row in rows] == sorted(made)
    assert {row["sys_updated_on"] for row in rows} == {"2023-01-01 00:00:00"}
    assert len({row["number"] for row in client.rows("task")}) == 363


@pytest.mark.parametrize("table", ["incident", "core_company", "time_card"])
def test_poisoned_records(client: Client, table: str) -> None:
    """Each kind is found by queries as the database has it, and served damaged."""
    small = [kind for kind in POISONS if kind != "huge_text"]
    made = client.control("poison", table=table, kinds=small, at=AT)["ids"]
    assert made.keys() == set(small)
    rows = {}
    for kind, sys_id in made.items():
        (rows[kind],) = client.rows(table, query=f"sys_id={sys_id}")
    odd = made["odd_sys_id"]
    assert rows["odd_sys_id"]["sys_id"] == odd and len(odd) != 32
    assert one(client, table, odd)["sys_id"] == odd
    assert "sys_id" not in rows["no_sys_id"] and rows["null_sys_id"]["sys_id"] is None
    assert "sys_updated_on" not in rows["no_updated"]
    assert rows["updated_garbage"]["sys_updated_on"] == "yesterday"
    assert rows["year_9999"]["sys_updated_on"] == "9999-12-31 23:59:59"
    assert rows["year_0001"]["sys_updated_on"] == "0001-01-01 00:00:00"
    assert rows["null_updated"]["sys_updated_on"] == ""
    assert (rows["empty_row"], rows["null_row"], rows["text_row"]) == ({}, None, "row")
    assert 3 in rows["number_value"].values() and None in rows["null_value"].values()
    assert "\ud800" in rows["lone_surrogate"].values()
    window = f"sys_updated_on={AT_STORED}"
    in_window = len(made) - 3  # null, year 1 and year 9999 are elsewhere
    assert client.count(table, window) == in_window
    assert client.count(table, "sys_updated_onISEMPTY") == 1
    ordered = client.rows(table, query="ORDERBYsys_id")
    assert ordered[-1]["sys_id"] == odd  # after every GUID
    kinds = [about["poison"] for about in client.truth(table).values() if about["poison"]]
    assert sorted(kinds) == sorted(small)


def test_a_poisoned_text_may_be_huge(client: Client) -> None:
    (sys_id,) = client.control("poison", table="incident", kinds=["huge_text"])["ids"].values()
    (row,) = client.rows("incident", query=f"sys_id={sys_id}")
    assert len(row["short_description"]) == 5 * 1024 * 1024
