"""What is found, and what is not, from real control tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from avesa_dagster.catalog.models import AlertSettings, Catalog
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.health import Alarm, BreakerState
from avesa_dagster.control.jobs import Job, JobError, JobStatus, Stretch, Trigger
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.watch.findings import Disagreement, Finding, findings, title
from avesa_dagster.watch.notify import Severity

from .conftest import NOW

SERVICE = "connectwise"
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class House:
    """Control tables, and the few things that happen in them."""

    def __init__(self, control: SqliteControl, catalog: Catalog) -> None:
        self.control, self.catalog = control, catalog

    def connect(
        self, tenant: str = "acme", at: datetime = NOW - 30 * DAY, tables: Sequence[str] = ()
    ) -> None:
        self.control.registry.connect(
            tenant,
            SERVICE,
            history_start=NOW - 365 * DAY,
            tables=tables,
            requests_per_minute=None,
            now=at,
        )

    def synced(self, age: timedelta, tenant: str = "acme", table: str = "tickets") -> None:
        self.control.watermarks.advance(
            tenant, SERVICE, table, lower=NOW - 400 * DAY, upper=NOW - age, now=NOW
        )

    def job(self, job_id: str = "j1", **more: object) -> Job:
        job = Job(
            job_id=job_id,
            tenant="acme",
            service=SERVICE,
            tables=("tickets", "contacts"),
            start=NOW - 300 * DAY,
            end=NOW,
            trigger=Trigger.PERSON,
            created_at=NOW - 2 * DAY,
            updated_at=NOW,
            status=JobStatus.RUNNING,
        )
        return self.control.jobs.create(replace(job, **more))  # type: ignore[arg-type]

    def chunk(self, number: int, job_id: str = "j1", table: str = "tickets") -> Chunk:
        start = NOW - (number + 1) * DAY
        chunk = Chunk(
            job_id, "acme", SERVICE, table, f"c{number}", "2026-03-01", "window", start, start + DAY
        )
        return self.control.ledger.plan([chunk], now=NOW)[0]

    def ended(self, number: int, outcome: str, minute: int, table: str = "tickets") -> None:
        chunk = self.control.ledger.begin(self.chunk(number, table=table), now=NOW)
        at = NOW + minute * MINUTE
        if outcome == "failed":
            error = f"it broke\nin minute {minute}"
            self.control.ledger.fail(chunk, error=error, requests=1, now=at)
        else:
            self.control.ledger.complete(chunk, source_count=0, requests=1, now=at)

    def found(
        self, now: datetime = NOW, disagreements: Sequence[Disagreement] = ()
    ) -> list[Finding]:
        return findings(self.control, self.catalog, now, disagreements)

    def keys(self, now: datetime = NOW) -> list[str]:
        return [finding.key for finding in self.found(now)]


@pytest.fixture
def house(control: SqliteControl, catalog: Catalog) -> House:
    return House(control, catalog)


def test_nothing_is_wrong_with_nothing(house: House) -> None:
    assert house.keys() == []
    house.connect(tables=["tickets"])
    house.synced(HOUR)
    assert house.keys() == []


def test_a_service_that_refuses_is_found_until_it_answers(house: House) -> None:
    house.connect()
    at = NOW - 5 * MINUTE
    house.control.breakers.failed("acme", SERVICE, "401\n  refused", credentials=True, now=at)
    [finding] = house.found()
    assert finding.key == "breaker_open/acme/connectwise"
    assert finding.severity is Severity.ERROR
    assert finding.text == (
        "not asked since 2026-03-10 11:55 UTC: 401 refused — connect it again with valid "
        "credentials"
    )
    assert house.control.breakers.probe("acme", SERVICE, now=NOW + DAY)
    assert house.control.breakers.get("acme", SERVICE).state is BreakerState.HALF_OPEN
    assert len(house.keys()) == 1  # a probe is no cure
    house.control.breakers.succeeded("acme", SERVICE)
    assert house.keys() == []


def test_few_failures_are_nothing_and_neither_is_a_service_that_was_disconnected(
    house: House,
) -> None:
    house.connect()
    house.control.breakers.failed("acme", SERVICE, "once", credentials=False, now=NOW)
    assert house.keys() == []
    house.control.breakers.failed("acme", SERVICE, "401", credentials=True, now=NOW)
    house.control.registry.disconnect("acme", SERVICE, now=NOW)
    assert house.keys() == []


@pytest.mark.parametrize(
    ("age", "kinds"),
    [
        (180 * MINUTE, []),
        (181 * MINUTE, ["late"]),
        (26 * HOUR, ["late"]),
        (27 * HOUR, ["late", "stale"]),
    ],
)
def test_a_table_that_is_not_synced_is_late_then_stale(
    house: House, age: timedelta, kinds: list[str]
) -> None:
    house.connect(tables=["tickets", "contacts"])
    house.synced(age)
    house.synced(MINUTE, table="contacts")
    assert house.keys() == [f"{kind}/acme/connectwise/tickets" for kind in kinds]
    severities = {finding.kind.value: finding.severity for finding in house.found()}
    assert severities in ({}, {"late": "warning"}, {"late": "warning", "stale": "error"})


def test_what_was_connected_just_now_has_time_for_its_first_sync(house: House) -> None:
    house.connect(at=NOW - HOUR, tables=["tickets"])
    assert house.keys() == []
    assert house.keys(NOW + 3 * HOUR) == ["late/acme/connectwise/tickets"]
    house.synced(40 * DAY)  # it was connected before, and was disconnected for long
    assert house.keys() == []


def test_the_text_stays_the_same_while_nothing_changes(house: House) -> None:
    house.connect(tables=["tickets", "contacts"])
    house.synced(4 * HOUR)
    house.job(started_at=NOW - 21 * HOUR)
    for number in range(3):
        house.ended(number, "failed", -9)
    texts = {finding.key: finding.text for finding in house.found()}
    assert len(texts) >= 4
    later = {finding.key: finding.text for finding in house.found(NOW + 30 * MINUTE)}
    assert later == texts


def test_a_table_that_left_the_mappings_is_not_waited_for(house: House) -> None:
    house.connect(tables=["tickets", "long_gone"])
    house.synced(HOUR)
    house.control.registry.connect(
        "acme", "gone", history_start=NOW, tables=["x"], requests_per_minute=None, now=NOW - DAY
    )
    assert house.keys() == []


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        ("fff", True),
        ("ff", False),
        ("ffcf", False),
        ("cfff", True),
        ("fffc", False),
        ("fcff", False),
        ("ccfffff", True),
    ],
)
def test_three_failures_in_a_row_by_the_time_they_ended(
    house: House, outcomes: str, found: bool
) -> None:
    house.job()
    for at, outcome in enumerate(outcomes):
        # Newest windows first, over two tables; what counts is when each ended.
        kind = "failed" if outcome == "f" else "completed"
        house.ended(9 - at, kind, at, table=("tickets", "contacts")[at % 2])
    expected = ["chunks_failing/acme/connectwise/j1"] if found else []
    assert house.keys() == expected
    if found:
        [finding] = house.found()
        assert f"it broke in minute {len(outcomes) - 1}" in finding.text


def test_a_retry_under_way_is_no_cure_and_a_chunk_that_arrives_is(house: House) -> None:
    house.job()
    for number in range(3):
        house.ended(number, "failed", number - 9)
    [finding] = house.found()
    house.control.alarms.put(Alarm(finding.key, "acme", finding.text, NOW))
    house.control.ledger.begin(house.chunk(0), now=NOW + MINUTE)
    assert house.found() == [finding]
    house.ended(1, "failed", 2)
    assert house.keys() == [finding.key]
    house.ended(2, "completed", 3)
    assert house.keys() == []


def test_without_an_alarm_a_retry_under_way_leaves_it_open(house: House) -> None:
    house.job()
    for number in range(3):
        house.ended(number, "failed", number - 9)
    house.control.ledger.begin(house.chunk(0), now=NOW)
    assert house.keys() == []


@pytest.mark.parametrize(
    ("status", "found"),
    [("pending", True), ("running", True), ("paused", False), ("failed", False)],
)
def test_only_a_job_that_may_fetch_keeps_failing(house: House, status: str, found: bool) -> None:
    house.job(status=JobStatus(status))
    for number in range(3):
        house.ended(number, "failed", number - 9)
    assert bool(house.keys()) is found


def test_a_job_that_takes_long(house: House) -> None:
    house.job("quick", started_at=NOW - 20 * HOUR)
    house.job("waits", status=JobStatus.PENDING)
    house.job("done", status=JobStatus.COMPLETED, started_at=NOW - 90 * HOUR)
    house.job("slow", started_at=NOW - 21 * HOUR, note="waits for the off-peak window")
    [finding] = house.found()
    assert finding.key == "job_long/acme/connectwise/slow"
    assert "over 20 h (waits for the off-peak window)" in finding.text


def ended(share: int, status: JobStatus = JobStatus.COMPLETED_WITH_ERRORS) -> dict[str, object]:
    return {
        "status": status, "total_chunks": 100, "completed_chunks": share,
        "completed_at": NOW - DAY, "errors": (JobError("the service broke"),),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (ended(89), True),
        (ended(90), False),
        (ended(0, JobStatus.FAILED), True),
        ({**ended(0, JobStatus.FAILED), "total_chunks": 0}, True),
        ({**ended(0, JobStatus.COMPLETED), "total_chunks": 0}, False),
        (ended(0, JobStatus.CANCELLED), False),
        ({**ended(10), "completed_at": NOW - 7 * DAY}, True),
        ({**ended(10), "completed_at": NOW - 8 * DAY}, False),
    ],
)
def test_a_job_that_ended_incomplete(house: House, more: dict[str, object], found: bool) -> None:
    house.job(**more)
    assert house.keys() == (["job_incomplete/acme/connectwise/j1"] if found else [])
    if found:
        assert "the service broke" in house.found()[0].text


@pytest.mark.parametrize(
    ("more", "supersedes"),
    [
        ({}, True),
        ({"tables": ("contacts", "tickets", "companies")}, True),
        ({"tables": ("tickets",)}, False),
        ({"created_at": NOW - 3 * DAY}, False),
        ({"start": NOW - 299 * DAY}, False),
        ({"end": NOW - DAY}, False),
        ({"status": JobStatus.FAILED, "completed_chunks": 95}, False),
        ({"status": JobStatus.RUNNING}, False),
        ({"tenant": "other"}, False),
        ({"stretches": (Stretch("tickets", NOW - 9 * DAY, NOW),)}, False),
        ({"only_missing": True}, True),
    ],
)
def test_a_later_job_over_the_same_supersedes_it(
    house: House, more: dict[str, object], supersedes: bool
) -> None:
    house.job(**ended(10))
    later = {**ended(100, JobStatus.COMPLETED), "created_at": NOW - DAY, **more}
    house.job("j2", **later)
    found = house.keys()
    assert ("job_incomplete/acme/connectwise/j1" in found) is not supersedes


def test_several_later_jobs_together_supersede_it(house: House) -> None:
    house.job(**ended(10))
    for number, table in enumerate(("tickets", "contacts")):
        later = {**ended(100, JobStatus.COMPLETED), "created_at": NOW - DAY, "tables": (table,)}
        assert len(house.keys()) == 1
        house.job(f"later{number}", **later)
    assert house.keys() == []


def test_disagreements_are_one_finding_a_table(house: House) -> None:
    told = [
        Disagreement("acme", SERVICE, "tickets", "3 of 100 differ in 2026-02"),
        Disagreement("acme", SERVICE, "tickets", "1 of 90 differs in 2026-01"),
        Disagreement("acme", SERVICE, "contacts", "x" * 5000),
    ]
    contacts, tickets = house.found(disagreements=told)
    assert tickets.text == "3 of 100 differ in 2026-02 (and 1 more)"
    assert len(contacts.text) == 300


def test_the_limits_are_the_catalogs(control: SqliteControl, catalog: Catalog) -> None:
    limits = AlertSettings(failed_chunks=1, job_hours=1, completion_share=0.95, fresh_minutes=30)
    strict = House(
        control,
        catalog.model_copy(
            update={"backfill": catalog.backfill.model_copy(update={"alerts": limits})}
        ),
    )
    strict.connect(tables=["tickets"])
    strict.synced(HOUR)
    strict.job(started_at=NOW - 2 * HOUR)
    strict.ended(0, "failed", 0)
    strict.job("j2", **ended(94))
    assert strict.keys() == [
        "chunks_failing/acme/connectwise/j1",
        "job_incomplete/acme/connectwise/j2",
        "job_long/acme/connectwise/j1",
        "late/acme/connectwise/tickets",
    ]
    assert House(control, catalog).keys() == []


def test_a_title_is_one_line_for_a_person() -> None:
    assert title("late/acme/connectwise/tickets") == "acme connectwise tickets: sync is late"
    assert title("breaker_open/acme/connectwise") == "acme connectwise: service suspended"
