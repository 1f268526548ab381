"""REST queries: batches, locators, what SOQL takes and refuses, what a row looks like."""

from __future__ import annotations

from typing import Any

import pytest

from avesa_dagster.sandbox.process import Simulator

from .conftest import Client, error

STAMPED = "SELECT Id, SystemModstamp FROM Case"
WINDOW = "SystemModstamp >= 2024-06-01T00:00:00Z AND SystemModstamp < 2025-03-01T00:00:00Z"
HINT = {"Sforce-Query-Options": "batchSize=200"}


def follow(client: Client, answer: Any, headers: dict[str, str] | None = None) -> list[list[Any]]:
    """All batches of a query, the first given."""
    batches = [answer.json()["records"]]
    while not answer.json()["done"]:
        url = client.root + answer.json()["nextRecordsUrl"]
        answer = client.session.get(url, headers=headers, timeout=10)
        assert answer.status_code == 200, answer.text
        batches.append(answer.json()["records"])
    assert "nextRecordsUrl" not in answer.json()
    return batches


def test_a_query_comes_in_batches(client: Client) -> None:
    first = client.soql(f"{STAMPED} ORDER BY SystemModstamp, Id", HINT)
    assert first.json()["totalSize"] == 300
    assert first.json()["nextRecordsUrl"].startswith("/services/data/v60.0/query/01g")
    assert first.json()["nextRecordsUrl"].endswith("-200")
    batches = follow(client, first, HINT)
    assert [len(batch) for batch in batches] == [200, 100]
    rows = [(row["SystemModstamp"], row["Id"]) for batch in batches for row in batch]
    assert rows == sorted(set(rows))
    assert rows[0][0].endswith(".000+0000")


def test_the_batch_size_is_a_hint_of_200_to_2000(client: Client, simulator: Simulator) -> None:
    def rows(size: int) -> int:
        hint = {"Sforce-Query-Options": f"batchSize={size}"}
        return len(client.soql(STAMPED, hint).json()["records"])

    simulator.control("create", table="Case", count=2000)
    assert [rows(size) for size in (5, 250, 5000)] == [200, 250, 2000]
    simulator.control("hostility", page_clamp=70)
    assert rows(250) == 70
    simulator.control("hostility", fewer_rows=True)
    sizes = {rows(1000) for _ in range(5)}
    assert len(sizes) > 1
    assert all(500 <= size <= 1000 for size in sizes)


def test_query_all_has_the_deleted_and_the_archived(client: Client, simulator: Simulator) -> None:
    gone = simulator.control("delete", table="Case", count=30)["ids"]
    assert client.count("Case") == 270
    assert client.count("Case", all=True) == 300
    first = client.soql("SELECT Id, IsDeleted FROM Case ORDER BY Id", HINT, all=True)
    url = first.json()["nextRecordsUrl"]
    assert "/query/" in url
    assert "queryAll" not in url
    rows = [row for batch in follow(client, first, HINT) for row in batch]
    assert sorted(row["Id"] for row in rows if row["IsDeleted"]) == sorted(gone)
    assert len(rows) == 300
    live, whole = client.count("Task"), client.count("Task", all=True)
    assert 0 < live < whole == 60
    assert client.count("Task WHERE IsArchived = true", all=True) == whole - live


def test_a_locator_dies_after_two_days_and_when_told(client: Client, simulator: Simulator) -> None:
    def following() -> str:
        return str(client.soql(STAMPED, HINT).json()["nextRecordsUrl"])

    def ask(url: str) -> Any:
        return client.session.get(client.root + url, timeout=5)

    first = following()
    assert [ask(first).status_code for _ in range(2)] == [200, 200]
    simulator.control("advance", seconds=2 * 86_400 + 1)
    client.login()
    assert error(ask(first)) == (400, "INVALID_QUERY_LOCATOR")
    second = following()
    simulator.control("end_locators")
    assert error(ask(second)) == (400, "INVALID_QUERY_LOCATOR")
    third = following()
    simulator.control("hostility", faults=[{"kind": "lose_cursors", "at": [1]}])
    assert error(ask(third)) == (400, "INVALID_QUERY_LOCATOR")
    simulator.control("hostility", max_cursors=2)
    several = [following() for _ in range(3)]
    assert [ask(url).status_code for url in several] == [400, 200, 200]


def test_a_row_has_attributes_explicit_nulls_and_objects_in_it(client: Client) -> None:
    [row] = client.rows(
        "SELECT Id, AssetId, Account.Name, Account.Owner.Email, ParentId, Subject FROM Case "
        "WHERE AccountId != null AND ParentId = null ORDER BY Id LIMIT 1"
    )
    url = f"/services/data/v60.0/sobjects/Case/{row['Id']}"
    assert row["attributes"] == {"type": "Case", "url": url}
    assert list(row) == ["attributes", "Id", "AssetId", "Account", "ParentId", "Subject"]
    assert row["ParentId"] is None
    account = row["Account"]
    assert account["attributes"]["type"] == "Account"
    assert account["Owner"]["Email"].endswith("@example.com")
    assert client.rows("SELECT Account.Name FROM Case WHERE AccountId = null LIMIT 1")[0][
        "Account"
    ] is None  # fmt: skip
    [whole] = client.rows("SELECT BillingAddress FROM Account WHERE BillingCity != null LIMIT 1")
    assert {"city", "street", "stateCode", "latitude"} <= set(whole["BillingAddress"])


def test_child_subqueries_nest_a_result(client: Client) -> None:
    rows = client.rows("SELECT Id, (SELECT Id, AccountId FROM Contacts LIMIT 3) FROM Account")
    nested = [row for row in rows if row["Contacts"] is not None]
    assert nested
    for row in nested:
        found = row["Contacts"]
        assert found["done"]
        assert found["totalSize"] == len(found["records"]) <= 3
        assert {child["AccountId"] for child in found["records"]} == {row["Id"]}


def test_a_hand_made_keyset_walks_a_window(client: Client, simulator: Simulator) -> None:
    simulator.control("bump", table="Case", count=120, at="2024-09-09T09:09:09Z")
    seen: list[tuple[str, str]] = []
    while True:
        where = WINDOW
        if seen:
            at, id = seen[-1]
            at = at.replace("+0000", "Z")
            tie = f"(SystemModstamp = {at} AND Id > '{id}')"
            where += f" AND ({tie} OR SystemModstamp > {at})"
        text = f"{STAMPED} WHERE {where} ORDER BY SystemModstamp, Id LIMIT 50"
        rows = client.rows(text)
        if not rows:
            break
        seen += [(row["SystemModstamp"], row["Id"]) for row in rows]
    assert seen == sorted(set(seen))
    assert len(seen) == client.count(f"Case WHERE {WINDOW}") > 120
    truth = simulator.control("truth_current", table="Case")["records"]
    inside = {
        id
        for id, about in truth.items()
        if "2024-06-01T00:00:00Z" <= about["updated_at"] < "2025-03-01T00:00:00Z"
    }
    assert {id for _, id in seen} == inside


@pytest.mark.parametrize(
    "where",
    [
        WINDOW,
        "SystemModstamp > 2024-06-01T02:00:00+02:00 AND Status = 'closed'",
        "(Priority = 'High' OR Priority IN ('Low')) AND (NOT IsClosed = true)",
        "Subject LIKE '%VPN%'",
        "Account.Name LIKE 'c%' OR Account.Owner.IsActive = false",
        "ClosedDate = null",
        "Id > '5005g000000004rAAA' AND Id <= '5005g00000000BZ'",
        "Sla_Hours_Left__c >= 24.5",
        "NOT (Status = 'Closed' OR Origin = 'Web')",
        "CreatedDate < 2025-01-01T00:00:00.000Z AND Id != '5005g0000000001AAA'",
        "Type NOT IN ('Request', 'Alert')",
    ],
)
def test_counts_agree_with_lists(client: Client, where: str) -> None:
    counted = client.count(f"Case WHERE {where}")
    rows = client.ids(f"SELECT Id FROM Case WHERE {where}")
    [about] = client.rows(f"SELECT COUNT(Id), MIN(SystemModstamp) low FROM Case WHERE {where}")
    assert counted == len(set(rows)) == about["expr0"]
    assert 0 < counted < 300
    assert about["attributes"] == {"type": "AggregateResult"}
    assert about["low"].endswith("+0000")


def test_count_answers_without_records(client: Client) -> None:
    answer = client.soql("SELECT COUNT() FROM Case")
    assert answer.json() == {"totalSize": 300, "done": True, "records": []}


def test_groups_and_their_limit_of_2000(client: Client, simulator: Simulator) -> None:
    rows = client.rows("SELECT Status, COUNT(Id) n FROM Case GROUP BY Status")
    assert sum(row["n"] for row in rows) == 300
    days = client.rows(
        "SELECT DAY_ONLY(SystemModstamp), COUNT(Id) FROM Case GROUP BY DAY_ONLY(SystemModstamp)"
    )
    assert sum(row["expr1"] for row in days) == 300
    simulator.control("create", table="Case", count=1900)
    answer = client.soql("SELECT CaseNumber, COUNT(Id) FROM Case GROUP BY CaseNumber")
    assert error(answer) == (400, "MALFORMED_QUERY")


def test_orders(client: Client) -> None:
    rows = client.rows("SELECT Priority, ClosedDate FROM Case ORDER BY Priority DESC, ClosedDate")
    keys = [row["Priority"] for row in rows]
    assert keys == sorted(keys, reverse=True)
    highs = [row["ClosedDate"] or "" for row in rows if row["Priority"] == "High"]
    assert highs[0] == ""
    assert highs == sorted(highs)
    last = client.rows("SELECT ClosedDate FROM Case ORDER BY ClosedDate DESC NULLS LAST")
    assert last[-1]["ClosedDate"] is None
    assert [
        row["Id"] for row in client.rows("SELECT Id FROM Case ORDER BY Id LIMIT 3 OFFSET 2")
    ] == (client.ids("SELECT Id FROM Case ORDER BY Id LIMIT 5")[2:])


def test_without_an_order_there_is_none(client: Client) -> None:
    rows = client.rows(STAMPED)
    assert [row["Id"] for row in rows] != sorted(row["Id"] for row in rows)
    stamps = [row["SystemModstamp"] for row in rows]
    assert stamps != sorted(stamps)


def test_fields_functions(client: Client) -> None:
    assert error(client.soql("SELECT FIELDS(ALL) FROM Account")) == (400, "MALFORMED_QUERY")
    [all_of] = client.rows("SELECT FIELDS(ALL) FROM Account LIMIT 1")
    [custom] = client.rows("SELECT FIELDS(CUSTOM) FROM Account LIMIT 1")
    standard = client.rows("SELECT FIELDS(STANDARD) FROM Account")[0]
    assert set(custom) == {"attributes", "Health__c", "Region__c"}
    assert set(all_of) == set(custom) | set(standard)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SELECT Nonsense FROM Case", "INVALID_FIELD"),
        ("SELECT Id FROM Case WHERE Nonsense = 1", "INVALID_FIELD"),
        ("SELECT Id FROM Case ORDER BY Nonsense", "INVALID_FIELD"),
        ("SELECT Nonsense.Name FROM Case", "INVALID_FIELD"),
        ("SELECT Id FROM Nonsense", "INVALID_TYPE"),
        ("SELECT Id FROM ActivityHistory", "INVALID_TYPE_FOR_OPERATION"),
        ("SELECT Id Case", "MALFORMED_QUERY"),
        ("SELECT Id, FROM Case", "MALFORMED_QUERY"),
        ("SELECT Id, Id FROM Case", "MALFORMED_QUERY"),
        ("SELECT Id FROM Case WHERE Type = 'a' AND Type = 'b' OR Type = 'c'", "MALFORMED_QUERY"),
        ("SELECT Id FROM Case WHERE IsClosed = true AND NOT Type = 'a'", "MALFORMED_QUERY"),
        ("SELECT Id FROM Case WHERE SystemModstamp > '2024-01-01T00:00:00Z'", "INVALID_FIELD"),
        ("SELECT Id FROM Case WHERE SystemModstamp > 2024-01-01", "INVALID_FIELD"),
        ("SELECT Id FROM Case WHERE SystemModstamp > 2024-01-01T00:00:00", "MALFORMED_QUERY"),
        ("SELECT Id FROM Opportunity WHERE CloseDate > 2024-01-01T00:00:00Z", "INVALID_FIELD"),
        ("SELECT Id FROM Case WHERE Description = 'long'", "INVALID_FIELD"),
        ("SELECT Id FROM Case ORDER BY Description", "INVALID_FIELD"),
        ("SELECT Id FROM TopicAssignment WHERE SystemModstamp = 2024-01-01T00:00:00Z",
         "INVALID_FIELD"),
        ("SELECT Id FROM CaseHistory WHERE SystemModstamp > 2024-01-01T00:00:00Z", "INVALID_FIELD"),
        ("SELECT IsDeleted FROM User", "INVALID_FIELD"),
        ("SELECT Id FROM Case WHERE Id = 'nonsense'", "INVALID_QUERY_FILTER_OPERATOR"),
        ("SELECT Id FROM Case LIMIT 5 OFFSET 3000", "NUMBER_OUTSIDE_VALID_RANGE"),
        ("SELECT Subject, COUNT(Id) FROM Case", "MALFORMED_QUERY"),
    ],
)  # fmt: skip
def test_refused_statements(client: Client, text: str, code: str) -> None:
    assert error(client.soql(text)) == (400, code)


def test_a_date_field_takes_dates(client: Client) -> None:
    assert client.count("Opportunity WHERE CloseDate >= 2024-01-01") > 0
    row = client.rows("SELECT CloseDate FROM Opportunity WHERE CloseDate != null LIMIT 1")[0]
    assert len(row["CloseDate"]) == 10


def test_an_offset_needs_its_plus_encoded(client: Client) -> None:
    text = "SELECT COUNT() FROM Case WHERE SystemModstamp > 2024-06-01T02:00:00+02:00"
    url = f"{client.root}/services/data/v60.0/query?q={text.replace(' ', '%20')}"
    raw = client.session.get(url, timeout=5)
    assert error(raw) == (400, "MALFORMED_QUERY")
    sound = client.session.get(url.replace("+", "%2B"), timeout=5)
    assert sound.json()["totalSize"] > 0


def test_names_are_found_in_any_case_and_written_in_their_own(client: Client) -> None:
    [row] = client.rows("select id, CASENUMBER from CASE where ISCLOSED = TRUE limit 1")
    assert list(row) == ["attributes", "Id", "CaseNumber"]


def test_long_addresses_are_refused_near_16k(client: Client) -> None:
    def status(length: int, **headers: str) -> int:
        text = "SELECT Id FROM Case WHERE Subject = '" + "x" * length + "'"
        return int(client.soql(text, headers).status_code)

    assert status(15_000) == 200
    assert status(16_384) == 414
    assert status(15_900, **{"X-Long": "y" * 600}) == 431


def test_history_objects_and_their_cursors(client: Client) -> None:
    rows = client.rows("SELECT FIELDS(ALL) FROM CaseHistory ORDER BY CreatedDate LIMIT 200")
    assert len(rows) == 60
    assert "SystemModstamp" not in rows[0]
    assert "LastModifiedDate" in client.rows("SELECT FIELDS(ALL) FROM CaseShare LIMIT 1")[0]
    assert client.count("LoginHistory WHERE LoginTime > 2024-01-01T00:00:00Z") > 0


def test_ids_of_15_and_18_characters(client: Client) -> None:
    [first] = client.ids("SELECT Id FROM Case ORDER BY Id LIMIT 1")
    assert len(first) == 18
    assert client.ids(f"SELECT Id FROM Case WHERE Id = '{first[:15]}'") == [first]
    assert client.get(f"sobjects/Case/{first[:15]}").json()["Id"] == first
    ids = client.ids("SELECT Id FROM Case")
    assert len({id[:15].lower() for id in ids}) < len(ids)
    wrong = next(id[:15] for id in ids if id[:15].lower() != id[:15])
    assert client.ids(f"SELECT Id FROM Case WHERE Id = '{wrong.lower()}'") != [wrong]
    [old] = client.rows(
        "SELECT Legacy_Account_Id__c FROM Project__c WHERE Legacy_Account_Id__c != null LIMIT 1"
    )
    assert len(old["Legacy_Account_Id__c"]) == 15


def test_one_record_and_what_cannot_be_got(client: Client, simulator: Simulator) -> None:
    ids = client.ids("SELECT Id FROM Account ORDER BY Id LIMIT 3")
    assert client.get(f"sobjects/Account/{ids[0]}").json()["Name"]
    simulator.control("delete", table="Account", ids=[ids[1]])
    simulator.control("hard_delete", table="Account", ids=[ids[2]])
    assert error(client.get(f"sobjects/Account/{ids[1]}")) == (404, "ENTITY_IS_DELETED")
    assert error(client.get(f"sobjects/Account/{ids[2]}")) == (404, "NOT_FOUND")
    assert error(client.get("nonsense")) == (404, "NOT_FOUND")
    assert error(client.send("GET", "limits", "v99.0")) == (404, "NOT_FOUND")
    assert error(client.send("POST", "query")) == (405, "METHOD_NOT_ALLOWED")


def test_25_requests_in_one(client: Client) -> None:
    parts = [
        {"method": "GET", "url": "v60.0/query?q=SELECT+COUNT()+FROM+Case"},
        {"method": "GET", "url": "v60.0/sobjects/Nonsense/describe"},
    ]
    before = client.simulator.control("allowance")["own"]
    told = client.send("POST", "composite/batch", json={"batchRequests": parts}).json()
    assert told["hasErrors"] is True
    assert [part["statusCode"] for part in told["results"]] == [200, 404]
    assert told["results"][0]["result"]["totalSize"] == 300
    assert client.simulator.control("allowance")["own"] == before + 3
    answer = client.send("POST", "composite/batch", json={"batchRequests": parts * 13})
    assert answer.status_code == 400
