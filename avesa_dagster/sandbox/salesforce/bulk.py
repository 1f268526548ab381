"""Query jobs of Bulk API 2.0: created, looked at until complete, read in pages of CSV, deleted.

UploadComplete → InProgress → JobComplete | Failed | Aborted. A job runs its query when it is
complete; its rows stay as they were at that moment while the job exists (7 days), whatever becomes
of the records. Locators may be replayed until they are ended. That results asked for too
early, and dead locators, are refused with these codes is [INF].
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from avesa_dagster.sandbox.hostility import Fault, Hostility
from avesa_dagster.sandbox.salesforce import finding
from avesa_dagster.sandbox.salesforce import plan as plans
from avesa_dagster.sandbox.salesforce.fields import COMPOUND
from avesa_dagster.sandbox.salesforce.hostility import Conditions, conditions_of
from avesa_dagster.sandbox.salesforce.ids import IdMaker
from avesa_dagster.sandbox.salesforce.instants import rest_text
from avesa_dagster.sandbox.salesforce.org import Org
from avesa_dagster.sandbox.salesforce.plan import Plan
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.rows import DELIMITERS, LINE_ENDINGS
from avesa_dagster.sandbox.salesforce.soql import Query, parse
from avesa_dagster.sandbox.timestamps import DAY

OLDEST_VERSION = 47
_KEPT_SECONDS = 7 * DAY
_ENDED = ("JobComplete", "Failed", "Aborted")
_LISTED = 100
_RESULT_PAGES = 5
_ids = IdMaker("750")


@dataclass
class Job:
    """A query job.

    Attributes:
        plan: None of a job that another app made.
        numbers, sequence: the rows, and the moment that they are of, once it is complete.
        began: by the simulator's clock; `clock` is the real (monotonic) one.
        fault: what will become of it, if not what should.
    """

    id: str
    operation: str
    query: str
    table: str
    plan: Plan | None
    version: float
    created_by: str
    began: float
    delimiter: str = "COMMA"
    line_ending: str = "LF"
    state: str = "UploadComplete"
    polls: int = 0
    clock: float = field(default_factory=time.monotonic)
    numbers: Sequence[int] = ()
    sequence: int = 0
    error: str | None = None
    fault: Fault | None = None
    generation: int = 1

    @property
    def everything(self) -> bool:
        return self.operation == "queryAll"

    def report(self, *, whole: bool = True) -> dict[str, Any]:
        """The job as the API tells it; what only running tells is left out unless `whole`."""
        told: dict[str, Any] = {
            "id": self.id,
            "operation": self.operation,
            "object": self.table,
            "createdById": self.created_by,
            "createdDate": rest_text(int(self.began)),
            "systemModstamp": rest_text(int(self.began)),
            "state": self.state,
            "concurrencyMode": "Parallel",
            "contentType": "CSV",
            "apiVersion": self.version,
            "lineEnding": self.line_ending,
            "columnDelimiter": self.delimiter,
        }
        if whole:
            told |= {
                "jobType": "V2Query",
                "numberRecordsProcessed": len(self.numbers),
                "retries": 0,
                "totalProcessingTime": 0 if self.state == "UploadComplete" else 334,
            }
            if self.error is not None:
                told["errorMessage"] = self.error
        return told


@dataclass(slots=True)
class Results:
    """A page of results as it is about to be sent: places in the job's rows."""

    job: Job
    start: int
    end: int
    locator: str


class Jobs:
    """The jobs of an org; used under the org's lock."""

    def __init__(self) -> None:
        self._made = 0
        self._jobs: dict[str, Job] = {}

    def all(self, now: float) -> list[Job]:
        """The jobs that have not been deleted, the newest first."""
        for job in list(self._jobs.values()):
            if job.began <= now - _KEPT_SECONDS:
                del self._jobs[job.id]
        return list(reversed(self._jobs.values()))

    def find(self, id: str, now: float) -> Job:
        self.all(now)
        job = self._jobs.get(id)
        if job is None:
            raise ApiError("NOT_FOUND")
        return job

    def create(self, org: Org, body: bytes, version: float, fault: Fault | None, now: float) -> Job:
        """Make a job of a request.

        Raises:
            ApiError: the request or its statement is refused, or the day's jobs are spent.
        """
        given = _request(body)
        operation, text = given.get("operation"), given.get("query")
        if operation not in ("query", "queryAll") or not isinstance(text, str):
            raise ApiError("INVALIDJOB", "operation must be query or queryAll, with a query")
        delimiter = str(given.get("columnDelimiter", "COMMA"))
        line_ending = str(given.get("lineEnding", "LF"))
        content = given.get("contentType", "CSV")
        if delimiter not in DELIMITERS or line_ending not in LINE_ENDINGS or content != "CSV":
            raise ApiError("INVALIDJOB", "contentType, columnDelimiter or lineEnding is unknown")
        query = parse(text)
        _check_features(query)
        plan = plans.check(org, query)
        _check_plan(plan)
        if not org.allowance.admit_job(now):
            raise ApiError("EXCEEDEDQUOTA", "DailyBulkV2QueryJobs Limit exceeded.")
        user = org.known_ids("User")[0]
        job = self._add(operation, text, plan.table.info.name, plan, version, user, now)
        job.delimiter, job.line_ending, job.fault = delimiter, line_ending, fault
        return job

    def leave(self, org: Org, count: int, user: str, now: float, version: float) -> list[str]:
        """Put in jobs that were left over by an earlier run, or that another user made."""
        query = "SELECT Id FROM Case"
        plan = plans.check(org, parse(query))
        return [
            self._add("query", query, "Case", plan, version, user, now).id for _ in range(count)
        ]

    def _add(
        self, operation: str, query: str, table: str, plan: Plan, version: float, user: str,
        now: float,
    ) -> Job:  # fmt: skip
        self._made += 1
        job = Job(_ids.make(self._made), operation, query, table, plan, version, user, now)
        self._jobs[job.id] = job
        return job

    def delete(self, job: Job) -> None:
        if job.state not in _ENDED:
            raise ApiError("INVALIDJOBSTATE", f"Job {job.id} in {job.state} cannot be deleted")
        del self._jobs[job.id]


def _request(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ApiError("JSON_PARSER_ERROR", "The body is not a JSON object")
    return given


def _check_features(query: Query) -> None:
    """Refuse what Bulk API 2.0 cannot do. [DOC]"""
    children = any(isinstance(item, Query) for item in query.items)
    unsupported = {
        "GROUP BY": bool(query.group_by),
        "OFFSET": query.offset > 0,
        "TYPEOF": query.typeof,
        "aggregate functions": query.aggregate,
        "nested queries": children,
    }
    for feature, used in unsupported.items():
        if used:
            raise ApiError(
                "API_ERROR", f"Implementation restriction: {feature} not supported in Bulk Query"
            )


def _check_plan(plan: Plan) -> None:
    name = plan.table.info.name
    if not plan.table.info.bulk:
        raise ApiError("INVALIDENTITY", f"Entity '{name}' is not supported by the Bulk API.")
    for one in plan.fields:
        if one.about.type in COMPOUND:
            raise ApiError(
                "FUNCTIONALITY_NOT_ENABLED", "Selecting compound data not supported in Bulk Query"
            )
        if one.about.type == "base64":
            raise ApiError("API_ERROR", "Implementation restriction: base64 fields not supported")


def progress(org: Org, job: Job, hostility: Hostility, now: float, *, polled: bool) -> None:
    """Move a job on; it completes when it was looked at often enough and enough time went by."""
    conditions = conditions_of(hostility)
    if job.state in _ENDED:
        return
    job.polls += polled
    kind = None if job.fault is None else job.fault.kind
    if kind == "job_hangs" and job.fault is not None:
        job.state = str(job.fault.parameters.get("state", "InProgress"))
        return
    if job.polls:
        job.state = "InProgress"
    waited = time.monotonic() - job.clock >= conditions.bulk_seconds
    if job.polls < conditions.bulk_polls or not waited:
        return
    if kind == "job_fails" and job.fault is not None:
        usual = "InternalServerError: The job could not be processed."
        fail(job, str(job.fault.parameters.get("message", usual)))
    elif kind == "job_aborted":
        job.state = "Aborted"
    else:
        _run(org, job, conditions)


def fail(job: Job, message: str) -> None:
    """End a job that is not yet ended."""
    if job.state not in _ENDED:
        job.state, job.error = "Failed", message


def _run(org: Org, job: Job, conditions: Conditions) -> None:
    assert job.plan is not None
    numbers = finding.matching(org, job.plan, job.everything)
    slow = job.plan.order or job.plan.query.limit is not None
    most = conditions.order_rows if slow else conditions.timeout_rows
    if most is not None and len(numbers) > most:
        fail(job, "QUERY_TIMEOUT: Your query request was running for too long.")
        return
    numbers = org.permitted(conditions, job.table, numbers)
    found = finding.ordered(org, job.plan, numbers, None)
    job.numbers = found[: job.plan.query.limit]
    job.sequence = job.plan.table.sequence
    job.state = "JobComplete"


def abort(job: Job) -> None:
    if job.state in _ENDED:
        raise ApiError("INVALIDJOBSTATE", f"Job {job.id} is {job.state} already")
    job.state = "Aborted"


def results(job: Job, query: dict[str, str], version: float, conditions: Conditions) -> Results:
    """The page of results that a request is for.

    Raises:
        ApiError: another API version than at the creation (409), not complete, or a dead locator.
    """
    if version != job.version:
        raise ApiError(
            "API_VERSION_MISMATCH", f"The job was created by version {job.version}", status=409
        )
    if job.state != "JobComplete":
        raise ApiError("INVALIDJOBSTATE", f"Job {job.id} is {job.state}: it has no results")
    start = 0
    if query.get("locator"):
        start = _place(job, query["locator"])
    size = _most(query, conditions)
    end = min(len(job.numbers), start + size)
    return Results(job, start, end, locator(job, end))


def _most(query: dict[str, str], conditions: Conditions) -> int:
    text = query.get("maxRecords") or str(conditions.bulk_page)
    if not text.isdigit() or int(text) < 1:
        raise ApiError("INVALID_QUERY_LOCATOR", "maxRecords is not a positive number")
    return min(int(text), conditions.bulk_clamp)


def locator(job: Job, place: int) -> str:
    """The opaque text of a place; the *text* `null` behind the last row. [DOC]"""
    if place >= len(job.numbers):
        return "null"
    return base64.urlsafe_b64encode(f"{job.generation}.{place}".encode()).decode().rstrip("=")


def _place(job: Job, text: str) -> int:
    try:
        told = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode()
        generation, place = map(int, told.split("."))
    except (binascii.Error, ValueError):
        raise ApiError("INVALID_QUERY_LOCATOR", f"invalid locator {text!r}") from None
    if generation != job.generation or not 0 <= place < len(job.numbers):
        raise ApiError("INVALID_QUERY_LOCATOR", "the locator has expired")
    return place


def result_pages(
    job: Job, query: dict[str, str], version: float, conditions: Conditions
) -> dict[str, Any]:
    """Up to five addresses that can be read at once. The shape is [INF]."""
    first = results(job, query, version, conditions)
    size = _most(query, conditions)
    root = f"/services/data/v{version}/jobs/query/{job.id}"
    pages: list[dict[str, str]] = []
    place = first.start
    while place < len(job.numbers) and len(pages) < _RESULT_PAGES:
        at = f"&locator={locator(job, place)}" if place else ""
        pages.append({"resultUrl": f"{root}/results?maxRecords={size}{at}"})
        place += size
    more = locator(job, place)
    told: dict[str, Any] = {"done": more == "null", "resultPages": pages}
    if more != "null":
        told["nextRecordsUrl"] = f"{root}/resultPages?maxRecords={size}&locator={more}"
    return told


def listed(jobs: Sequence[Job], query: dict[str, str], version: str) -> dict[str, Any]:
    """The list of jobs, a hundred at a time."""
    start = int(query["queryLocator"]) if query.get("queryLocator", "").isdigit() else 0
    end = start + _LISTED
    done = end >= len(jobs)
    following = None if done else f"/services/data/{version}/jobs/query?queryLocator={end}"
    shown = [job.report(whole=False) | {"jobType": "V2Query"} for job in jobs[start:end]]
    return {"done": done, "records": shown, "nextRecordsUrl": following}
