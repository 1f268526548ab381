"""A tenant with three services has one history over them, told apart by `source_service`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avesa_dagster.canonical.history import rebuild
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.lake.reader import Reader

from .lakes import Seen, at, build, store
from .payloads import cell

CATALOG = load_catalog(Path(__file__).parents[2] / "mappings")
ID = "5005g00000AsDfGAAV"
"""Of a record in each of the services; ids are unique in their service alone."""
TABLES = {"connectwise": "tickets", "servicenow": "incident", "salesforce": "case"}
FIRST, SECOND = "2024-01-01", "2024-02-01"
LATER = 31 * 24.0
"""Hours after START at which the second partition begins."""


def ticket(service: str, record: str, status: str) -> str:
    """A ticket's payload, as the service writes it."""
    match service:
        case "connectwise":
            said = {"id": record, "summary": "Printer", "status": {"id": 1, "name": status}}
        case "servicenow":
            said = {
                "sys_id": cell(record),
                "short_description": cell("Printer"),
                "state": cell(("1", status)),
                "company": cell(""),
            }
        case _:
            said = {"Id": record, "Subject": "Printer", "Status": status, "AccountId": None}
    return json.dumps(said)


def put(
    lake: LocalObjects, service: str, partition: str, *seen: tuple[str, float, str | None]
) -> None:
    """Stores (record id, change time, status; None: deleted) and builds the partition."""
    table = TABLES[service]
    observations = [
        Seen(
            record,
            hour,
            hour,
            name=status and "",
            payload=status and ticket(service, record, status),
        )
        for record, hour, status in seen
    ]
    store(lake, observations, service=service, table=table, partition=partition)
    build(lake, CATALOG, service=service, table=table, partition=partition)


@pytest.fixture
def lake(objects: LocalObjects) -> LocalObjects:
    put(objects, "connectwise", FIRST, (ID, 1, "New"), (ID, 3, "Open"), ("77", 2, "New"))
    put(objects, "connectwise", SECOND, (ID, LATER, "Closed"))
    put(objects, "servicenow", FIRST, (ID, 1, "New"), (ID, 3, "In Progress"))
    put(objects, "salesforce", FIRST, (ID, 1, "New"))
    put(objects, "salesforce", SECOND, (ID, LATER + 1, None))
    return objects


def told(lake: LocalObjects, sql: str) -> list[tuple[object, ...]]:
    table = Reader(lake, CATALOG).query("acme", sql)
    return list(zip(*table.to_pydict().values(), strict=True))


VERSIONS = """SELECT source_service, source_table, id, status, record_version, is_current
    FROM tickets_history ORDER BY ALL"""
EXPECTED = [
    ("connectwise", "service/tickets", ID, "Closed", 3, True),
    ("connectwise", "service/tickets", ID, "New", 1, False),
    ("connectwise", "service/tickets", ID, "Open", 2, False),
    ("connectwise", "service/tickets", "77", "New", 1, True),
    ("salesforce", "Case", ID, "New", 1, False),
    ("servicenow", "incident", ID, "In Progress", 2, True),
    ("servicenow", "incident", ID, "New", 1, False),
]


def test_one_history_holds_every_version_of_each_service(lake: LocalObjects) -> None:
    assert told(lake, VERSIONS) == EXPECTED, "derived on the spot"
    built = rebuild(lake, CATALOG, "acme", "tickets")
    assert (built.inputs, built.rows, built.records) == (5, 7, 4)
    assert told(lake, VERSIONS) == EXPECTED, "read from the generation"
    companies = "SELECT count(company_id) FROM tickets_history"
    assert told(lake, companies) == [(0,)], "no service's null is a text"


def test_current_and_as_of_unite_the_services(lake: LocalObjects) -> None:
    rebuild(lake, CATALOG, "acme", "tickets")
    now = "SELECT source_service, id, status FROM tickets ORDER BY ALL"
    assert told(lake, now) == [
        ("connectwise", ID, "Closed"),
        ("connectwise", "77", "New"),
        ("servicenow", ID, "In Progress"),
    ]
    then = Reader(lake, CATALOG).as_of("acme", "tickets", at(2.5))
    assert then.project("source_service, id, status").order("ALL").fetchall() == [
        ("connectwise", ID, "New"),
        ("connectwise", "77", "New"),
        ("salesforce", ID, "New"),
        ("servicenow", ID, "New"),
    ]


def test_news_of_one_service_leave_the_others_as_they_were(lake: LocalObjects) -> None:
    rebuild(lake, CATALOG, "acme", "tickets")
    put(lake, "servicenow", SECOND, (ID, LATER + 2, "Closed"))
    news = ("servicenow", "incident", ID, "Closed", 3, True)
    older = ("servicenow", "incident", ID, "In Progress", 2, False)
    expected = sorted([*(row for row in EXPECTED if row[3] != "In Progress"), news, older])
    assert told(lake, VERSIONS) == expected, "the generation is behind in one service"
    assert rebuild(lake, CATALOG, "acme", "tickets").rows == 8
    assert told(lake, VERSIONS) == expected
