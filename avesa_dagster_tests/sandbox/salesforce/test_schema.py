"""What the org says of itself, and what a user may not see of it."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sandbox.salesforce.schema import OBJECTS

from .conftest import Client, error


def fields_of(client: Client, name: str) -> dict[str, dict[str, Any]]:
    return {
        about["name"]: about for about in client.get(f"sobjects/{name}/describe").json()["fields"]
    }


def test_versions_need_no_session_and_tell_no_limit(simulator: Simulator) -> None:
    answer = requests.get(f"{simulator.url}/services/data", timeout=5)
    assert {"version", "url", "label"} == set(answer.json()[0])
    assert "Sforce-Limit-Info" not in answer.headers


def test_the_global_describe(client: Client) -> None:
    told = {one["name"]: one for one in client.get("sobjects").json()["sobjects"]}
    assert set(told) == set(OBJECTS)
    assert told["ActivityHistory"]["queryable"] is False
    assert told["CaseHistory"]["replicateable"] is False
    assert told["Case"]["keyPrefix"] == "500"
    assert told["Project__c"]["custom"] is True
    assert "query" in client.send("GET", "").json()


@pytest.mark.parametrize("name", [name for name, about in OBJECTS.items() if about.queryable])
def test_what_is_described_can_be_selected(client: Client, name: str) -> None:
    fields = fields_of(client, name)
    [row] = client.rows(f"SELECT {', '.join(fields)} FROM {name} LIMIT 1")
    assert list(row) == ["attributes", *fields]
    kinds = {
        "boolean": bool, "int": int, "double": float, "currency": float, "percent": float,
        "address": dict, "location": dict,
    }  # fmt: skip
    for field, about in fields.items():
        if row[field] is not None:
            assert isinstance(row[field], kinds.get(about["type"], str)), field


def test_field_types(client: Client) -> None:
    case, account = fields_of(client, "Case"), fields_of(client, "Account")
    assert case["ContactEmail"]["calculated"] is True
    assert case["Description"]["filterable"] is False
    assert case["AccountId"]["referenceTo"] == ["Account"]
    assert case["AccountId"]["relationshipName"] == "Account"
    assert account["BillingAddress"]["type"] == "address"
    assert account["BillingCity"]["compoundFieldName"] == "BillingAddress"
    assert fields_of(client, "Contact")["LastName"]["compoundFieldName"] == "Name"
    assert fields_of(client, "TopicAssignment")["SystemModstamp"]["filterable"] is False
    assert "IsDeleted" not in fields_of(client, "User")
    assert fields_of(client, "Project__c")["Tags__c"]["type"] == "multipicklist"
    assert error(client.get("sobjects/Nonsense/describe")) == (404, "NOT_FOUND")


def test_field_level_security_hides_fields_as_if_they_were_not_there(
    client: Client, simulator: Simulator
) -> None:
    simulator.control("fields", table="Case", hide=["Subject", "AccountId"])
    assert not {"Subject", "AccountId"} & set(fields_of(client, "Case"))
    for text in ("SELECT Subject FROM Case", "SELECT Id FROM Case WHERE Subject = 'x'"):
        assert error(client.soql(text)) == (400, "INVALID_FIELD")
    assert error(client.soql("SELECT Account.Name FROM Case")) == (400, "INVALID_FIELD")
    assert error(client.job("SELECT Subject FROM Case")) == (400, "INVALID_FIELD")
    assert "Subject" not in client.rows("SELECT FIELDS(STANDARD) FROM Case LIMIT 1")[0]
    simulator.control("fields", table="Case", show=["Subject", "AccountId"])
    assert client.soql("SELECT Subject FROM Case").status_code == 200


def test_a_field_that_disappears_between_describe_and_query(
    client: Client, simulator: Simulator
) -> None:
    lose = {"kind": "lose_field", "field": "Origin", "on": "describe", "table": "Case", "at": [1]}
    simulator.control("hostility", faults=[lose])
    fields = fields_of(client, "Case")
    assert "Origin" in fields
    assert error(client.soql(f"SELECT {','.join(fields)} FROM Case")) == (400, "INVALID_FIELD")
    assert "Origin" not in fields_of(client, "Case")
    assert simulator.control("stats")["faults"] == {"lose_field": 1}


def test_a_permission_that_vanishes_in_the_middle(client: Client, simulator: Simulator) -> None:
    simulator.control("hostility", faults=[{"kind": "lose_object", "table": "Case", "at": [2]}])
    answers = [client.soql("SELECT Id FROM Case") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert error(answers[2]) == (400, "INVALID_TYPE")
    assert "Case" not in {one["name"] for one in client.get("sobjects").json()["sobjects"]}
    assert error(client.get("sobjects/Case/describe")) == (404, "NOT_FOUND")
    simulator.control("object", table="Case", accessible=True)
    assert client.soql("SELECT Id FROM Case").status_code == 200


def test_a_custom_field_that_somebody_adds(client: Client, simulator: Simulator) -> None:
    simulator.control("fields", table="Case", add=["Mood__c:picklist", "Score__c:double"])
    assert fields_of(client, "Case")["Score__c"]["custom"] is True
    values = {row["Mood__c"] for row in client.rows("SELECT Mood__c FROM Case")}
    assert len(values) > 2


def test_orgs_do_not_share_their_schema(client: Client, simulator: Simulator) -> None:
    simulator.control("add_company", company_id="other", sizes={"Case": 5})
    given = simulator.control("companies")["companies"]["other"]["credentials"]
    simulator.control("fields", table="Case", hide=["Subject"])
    other = Client(simulator, given)
    assert "Subject" in fields_of(other, "Case")
    assert other.count("Case") == 5
    assert client.count("Case") == 300
