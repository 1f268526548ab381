"""Bulk API 2.0: jobs from creation to deletion, and what is odd about their CSV."""

from __future__ import annotations

from typing import Any

import pytest

from avesa_dagster.sandbox.process import Simulator

from .conftest import Client, error, table_of

IDS = "SELECT Id, SystemModstamp FROM Case"


def state(client: Client, job: str) -> str:
    return str(client.get(f"jobs/query/{job}").json()["state"])


def hostile(simulator: Simulator, *faults: dict[str, Any], **rest: Any) -> None:
    simulator.control("hostility", faults=list(faults), **rest)


def test_a_job_from_creation_to_deletion(client: Client) -> None:
    made = client.job(IDS)
    told = made.json()
    assert (told["state"], told["object"], told["apiVersion"]) == ("UploadComplete", "Case", 60.0)
    assert told["id"].startswith("750")
    assert told["createdDate"].endswith(".000+0000")
    assert error(client.results(told["id"])) == (400, "INVALIDJOBSTATE")
    assert [state(client, told["id"]) for _ in range(3)] == [
        "InProgress",
        "JobComplete",
        "JobComplete",
    ]
    assert client.get(f"jobs/query/{told['id']}").json()["numberRecordsProcessed"] == 300
    answer = client.results(told["id"])
    assert answer.headers["Sforce-NumberOfRecords"] == "300"
    assert answer.headers["Sforce-Locator"] == "null"
    assert answer.headers["Content-Type"] == "text/csv"
    head, *rows = table_of(answer)
    assert head == ["Id", "SystemModstamp"]
    truth = client.simulator.control("truth_current", table="Case")["records"]
    assert {id: at[:19] for id, at in rows} == {
        id: about["updated_at"][:19] for id, about in truth.items()
    }
    assert client.send("DELETE", f"jobs/query/{told['id']}").status_code == 204
    assert error(client.results(told["id"])) == (404, "NOT_FOUND")


def test_a_job_takes_as_many_looks_and_seconds_as_told(
    client: Client, simulator: Simulator
) -> None:
    hostile(simulator, bulk_polls=4)
    job = client.job(IDS).json()["id"]
    assert [state(client, job) for _ in range(4)] == ["InProgress"] * 3 + ["JobComplete"]
    hostile(simulator, bulk_polls=1, bulk_seconds=60)
    job = client.job(IDS).json()["id"]
    assert [state(client, job) for _ in range(3)] == ["InProgress"] * 3


def test_pages_of_results_and_locators_that_replay(client: Client) -> None:
    job = client.finished(IDS)
    pages, locator, locators = [], "", []
    while locator != "null":
        answer = client.results(job, maxRecords=130, **({"locator": locator} if locator else {}))
        pages.append(table_of(answer))
        locator = answer.headers["Sforce-Locator"]
        locators.append(locator)
    assert [len(page) for page in pages] == [131, 131, 41]
    assert all(page[0] == ["Id", "SystemModstamp"] for page in pages)
    assert len({row[0] for page in pages for row in page[1:]}) == 300
    again = table_of(client.results(job, maxRecords=130, locator=locators[0]))
    assert again == pages[1]
    assert error(client.results(job, locator="nonsense")) == (400, "INVALID_QUERY_LOCATOR")
    client.simulator.control("end_locators")
    assert error(client.results(job, locator=locators[0])) == (400, "INVALID_QUERY_LOCATOR")
    assert client.results(job).status_code == 200
    told = client.get(f"jobs/query/{job}/resultPages", maxRecords=50).json()
    assert len(told["resultPages"]) == 5
    assert told["done"] is False
    parts = [client.session.get(client.root + one["resultUrl"]) for one in told["resultPages"]]
    assert len({row[0] for part in parts for row in table_of(part)[1:]}) == 250


def test_results_are_as_they_were_when_the_job_completed(
    client: Client, simulator: Simulator
) -> None:
    job = client.finished("SELECT Id, Subject, SystemModstamp FROM Case")
    before = table_of(client.results(job))
    simulator.control("mutate", table="Case", count=100)
    simulator.control("delete", table="Case", count=50)
    simulator.control("hard_delete", table="Case", count=50)
    assert table_of(client.results(job)) == before


def test_another_version_is_a_conflict(client: Client) -> None:
    job = client.finished(IDS)
    assert error(client.results(job, "v61.0"))[0] == 409
    assert error(client.send("POST", "jobs/query", "v46.0", json={})) == (404, "NOT_FOUND")


def test_columns_are_in_select_order_from_v50(client: Client) -> None:
    text = "SELECT Subject, Id, Account.Name FROM Case"
    [new, *_] = table_of(client.results(client.finished(text)))
    assert new == ["Subject", "Id", "Account.Name"]
    [old, *_] = table_of(client.results(client.finished(text, "v49.0"), "v49.0"))
    assert old == ["Account.Name", "Id", "Subject"]


def test_query_all_has_the_deleted(client: Client, simulator: Simulator) -> None:
    gone = simulator.control("delete", table="Case", count=7)["ids"]
    text = "SELECT Id, IsDeleted FROM Case"
    _, *live = table_of(client.results(client.finished(text)))
    assert (len(live), {row[1] for row in live}) == (293, {"false"})
    _, *rows = table_of(client.results(client.finished(text, operation="queryAll")))
    assert len(rows) == 300
    assert sorted(id for id, deleted in rows if deleted == "true") == sorted(gone)


def test_rows_come_in_no_order_unless_one_is_asked_for(client: Client) -> None:
    ids = [row[0] for row in table_of(client.results(client.finished(IDS)))[1:]]
    assert ids != sorted(ids)
    text = f"{IDS} ORDER BY SystemModstamp, Id LIMIT 50"
    rows = [row[::-1] for row in table_of(client.results(client.finished(text)))[1:]]
    assert rows == sorted(rows)
    assert len(rows) == 50


def test_an_order_over_too_many_rows_times_out(client: Client, simulator: Simulator) -> None:
    hostile(simulator, order_rows=200)
    job = client.finished(f"{IDS} ORDER BY SystemModstamp")
    told = client.get(f"jobs/query/{job}").json()
    assert told["state"] == "Failed"
    assert told["errorMessage"].startswith("QUERY_TIMEOUT")
    assert state(client, client.finished(IDS)) == "JobComplete"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("SELECT COUNT() FROM Case", "API_ERROR", "Implementation restriction"),
        ("SELECT MAX(Id) FROM Case", "API_ERROR", "Implementation restriction"),
        ("SELECT Type FROM Case GROUP BY Type", "API_ERROR", "GROUP BY"),
        ("SELECT Id FROM Case LIMIT 5 OFFSET 5", "API_ERROR", "OFFSET"),
        ("SELECT Id, (SELECT Id FROM Cases) FROM Account", "API_ERROR", "nested"),
        ("SELECT TYPEOF What WHEN Account THEN Name END FROM Event", "API_ERROR", "TYPEOF"),
        ("SELECT BillingAddress FROM Account", "FUNCTIONALITY_NOT_ENABLED", "compound data"),
        ("SELECT Site__c FROM Project__c", "FUNCTIONALITY_NOT_ENABLED", "compound data"),
        ("SELECT Body FROM Attachment", "API_ERROR", "base64"),
        ("SELECT Id FROM CaseStatus", "INVALIDENTITY", "not supported by the Bulk API"),
        ("SELECT Id FROM ActivityHistory", "INVALID_TYPE_FOR_OPERATION", "does not support query"),
        ("SELECT Nonsense FROM Case", "INVALID_FIELD", "No such column"),
        ("SELECT Id Case", "MALFORMED_QUERY", "unexpected"),
    ],
)
def test_what_bulk_cannot_do(client: Client, text: str, code: str, message: str) -> None:
    answer = client.job(text)
    assert error(answer) == (400, code)
    assert message in answer.json()[0]["message"]


def test_an_object_without_bulk_is_there_by_rest(client: Client) -> None:
    assert client.count("CaseStatus") == 6


def test_jobs_that_end_badly(client: Client, simulator: Simulator) -> None:
    hostile(simulator, {"kind": "job_fails", "message": "InternalServerError: bad", "at": [1]})
    job = client.finished(IDS)
    told = client.get(f"jobs/query/{job}").json()
    assert (told["state"], told["errorMessage"]) == ("Failed", "InternalServerError: bad")
    assert error(client.results(job)) == (400, "INVALIDJOBSTATE")
    hostile(simulator, {"kind": "job_aborted", "at": [1]})
    assert state(client, client.finished(IDS)) == "Aborted"
    hostile(simulator, {"kind": "job_hangs", "at": [1]})
    job = client.job(IDS).json()["id"]
    assert {state(client, job) for _ in range(10)} == {"InProgress"}
    assert simulator.control("stats")["faults"] == {
        "job_fails": 1,
        "job_aborted": 1,
        "job_hangs": 1,
    }


def test_an_admin_aborts_and_fails_what_runs(client: Client, simulator: Simulator) -> None:
    first, second = (client.job(IDS).json()["id"] for _ in range(2))
    assert simulator.control("end_jobs", ids=[first])["ids"] == [first]
    assert state(client, first) == "Aborted"
    simulator.control("end_jobs", state="Failed", message="quota")
    assert client.get(f"jobs/query/{second}").json()["errorMessage"] == "quota"


def test_a_client_aborts_and_deletes(client: Client) -> None:
    job = client.job(IDS).json()["id"]
    assert error(client.send("DELETE", f"jobs/query/{job}"))[1] == "INVALIDJOBSTATE"
    abort = {"state": "Aborted"}
    assert client.send("PATCH", f"jobs/query/{job}", json=abort).json()["state"] == "Aborted"
    assert error(client.send("PATCH", f"jobs/query/{job}", json=abort))[0] == 400
    assert client.send("DELETE", f"jobs/query/{job}").status_code == 204


def test_jobs_that_were_left_over(client: Client, simulator: Simulator) -> None:
    own = simulator.control("leave_jobs", count=2)["ids"]
    foreign = simulator.control("leave_jobs", count=120, own=False)["ids"]
    mine = client.job(IDS).json()
    first = client.get("jobs/query").json()
    assert (first["done"], len(first["records"])) == (False, 100)
    rest = client.session.get(client.root + first["nextRecordsUrl"], timeout=5).json()
    told = {job["id"]: job["createdById"] for job in first["records"] + rest["records"]}
    assert set(told) == {*own, *foreign, mine["id"]}
    assert {told[id] for id in own} == {mine["createdById"]}
    assert mine["createdById"] not in {told[id] for id in foreign}


def test_a_job_is_kept_for_seven_days(client: Client, simulator: Simulator) -> None:
    job = client.finished(IDS)
    simulator.control("advance", seconds=7 * 86_400 + 1)
    client.login()
    assert error(client.results(job)) == (404, "NOT_FOUND")


def test_no_rows_are_a_header_or_less(client: Client, simulator: Simulator) -> None:
    text = f"{IDS} WHERE Subject = 'there is none'"
    answer = client.results(client.finished(text))
    assert answer.text == '"Id","SystemModstamp"\n'
    assert answer.headers["Sforce-NumberOfRecords"] == "0"
    hostile(simulator, bulk_zero="empty")
    assert client.results(client.finished(text)).content == b""
    hostile(simulator, bulk_zero="text")
    assert client.results(client.finished(text)).text == "Records not found for this query\n"


def test_a_job_with_rows_and_an_empty_body(client: Client, simulator: Simulator) -> None:
    hostile(simulator, {"kind": "job_empty", "at": [1]})
    job = client.finished(IDS)
    answer = client.results(job)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Sforce-NumberOfRecords"] == "300"


def test_values_in_csv_have_their_own_forms(client: Client) -> None:
    text = (
        "SELECT Id, IsDeleted, CreatedDate, AnnualRevenue, NumberOfEmployees, Description, Site, "
        "LastActivityDate FROM Account"
    )
    client.simulator.control("create", table="Account", count=300)
    by_rest = {row["Id"]: row for row in client.rows(text)}
    answer = client.results(client.finished(text))
    assert answer.content.startswith(b'"Id","IsDeleted"')
    _, *rows = table_of(answer)
    whole = 0
    for id, deleted, created, revenue, staff, description, site, active in rows:
        row = by_rest[id]
        assert (deleted, created) == ("false", row["CreatedDate"].replace("+0000", "Z"))
        assert description == (row["Description"] or "")
        assert site == (row["Site"] or "")
        assert active == (row["LastActivityDate"] or "")
        assert (float(revenue) if revenue else None) == row["AnnualRevenue"]
        assert (float(staff) if staff else None) == row["NumberOfEmployees"]
        whole += staff.endswith(".0")
    assert 0 < whole < len(rows)
    assert any("E7" in row[3] for row in rows)


def test_texts_that_break_careless_readers(client: Client) -> None:
    answer = client.results(client.finished("SELECT Id, Subject FROM Case"))
    _, *rows = table_of(answer)
    subjects = [row[1] for row in rows]
    assert len(rows) == 300
    assert {"NA", "null", "N/A", "None"} <= set(subjects)
    assert any("\x00" in text for text in subjects)
    assert any("\n" in text and "\r" in text for text in subjects)
    assert any('"' in text and "," in text for text in subjects)
    assert any("🔥" in text for text in subjects)
    assert "🔥" not in answer.text  # no charset is told: a guess is wrong
    assert answer.content.count(b"\n") > 301


def test_delimiters_and_line_endings(client: Client) -> None:
    job = client.finished(IDS, columnDelimiter="PIPE", lineEnding="CRLF")
    answer = client.results(job)
    assert answer.content.startswith(b'"Id"|"SystemModstamp"\r\n')
    assert len(table_of(answer, "|")) == 301
    assert error(client.job(IDS, columnDelimiter="DOT"))[1] == "INVALIDJOB"
    assert error(client.job(IDS, operation="insert"))[1] == "INVALIDJOB"


def test_short_references(client: Client, simulator: Simulator) -> None:
    hostile(simulator, short_ids=True)
    _, *rows = table_of(client.results(client.finished("SELECT Id, OwnerId FROM Case")))
    assert {(len(id), len(owner)) for id, owner in rows} == {(18, 15)}


def test_a_header_twice_and_a_wrong_count(client: Client, simulator: Simulator) -> None:
    job = client.finished(IDS)
    hostile(simulator, {"kind": "duplicate_header", "at": [1]}, {"kind": "wrong_count", "at": [2]})
    head, first, *_ = table_of(client.results(job))
    assert head == ["Id", "SystemModstamp", "Id"]
    assert first[0] == first[2]
    assert client.results(job).headers["Sforce-NumberOfRecords"] == "301"
    assert table_of(client.results(job))[0] == ["Id", "SystemModstamp"]


def test_the_days_jobs_and_megabytes(client: Client, simulator: Simulator) -> None:
    simulator.control("allowance", jobs_max=2)
    client.results(client.finished(IDS))
    client.finished(IDS)
    assert error(client.job(IDS)) == (400, "EXCEEDEDQUOTA")
    told = client.get("limits").json()
    assert told["DailyBulkV2QueryJobs"] == {"Max": 2, "Remaining": 0}
    simulator.control("advance", seconds=86_401)
    client.login()
    assert client.job(IDS).status_code == 200
    simulator.control("allowance", jobs_max=100, storage_mb_max=0.001)
    client.results(client.finished(IDS))
    assert error(client.job(IDS)) == (400, "EXCEEDEDQUOTA")
    assert client.get("limits").json()["DailyBulkV2QueryFileStorageMB"]["Max"] == 0
