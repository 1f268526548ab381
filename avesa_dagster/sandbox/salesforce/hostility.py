"""The faults and conditions of `sandbox.hostility`, and those that only Salesforce has.

A script is written as there. Requests are of the kinds list (a batch of a query), count (COUNT and
aggregates), get (one record), results (rows of a bulk job), job (its creation), status (of a job,
or the list of jobs), describe, sobjects, deleted, updated, limits, recordcount, token. Faults that
concern rows happen to lists and results unless `on` says otherwise; the others to list, count, get,
results, job and status.

Faults of its own:

    error           code (see `problems.KNOWN`), status, message: an error of the API. CONCURRENT is
                    REQUEST_LIMIT_EXCEEDED for too many requests at once
    session_expired every token of the org dies; this request meets it first
    maintenance     status (503): an HTML page
    lose_field      table, field: hidden by field-level security once this request is answered
    lose_object     table: the same for the whole object
    lose_cursors    every query locator and results locator of the org dies, before the answer
    job_fails       message: of a job that is created by this request, as the next three
    job_hangs       state: where it stays for ever (InProgress)
    job_aborted     by an admin, while it is running
    job_empty       its results have a body of no bytes
    duplicate_header  results have a column twice
    wrong_count     results announce another number of records (by: 1) than they have
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from avesa_dagster.sandbox.hostility import ON_PAGE, Fault, Hostility, Standing

OWN: Mapping[str, frozenset[str]] = {
    "error": frozenset(["code", "status", "message"]),
    "session_expired": frozenset(),
    "maintenance": frozenset(["status"]),
    "lose_field": frozenset(["field"]),
    "lose_object": frozenset(),
    "lose_cursors": frozenset(),
    "job_fails": frozenset(["message"]),
    "job_hangs": frozenset(["state"]),
    "job_aborted": frozenset(),
    "job_empty": frozenset(),
    "duplicate_header": frozenset(),
    "wrong_count": frozenset(["by"]),
}
"""Kind to its own parameters."""
ON_JOB = frozenset(["job_fails", "job_hangs", "job_aborted", "job_empty"])
ON_RESULTS = frozenset(["duplicate_header", "wrong_count"])
AFTERWARDS = frozenset(["lose_field", "lose_object"])
"""Faults that happen when their request is answered."""
_ROWS = ["list", "results"]
_EVERYWHERE = ["list", "count", "get", "results", "job", "status"]


@dataclass(slots=True)
class Conditions(Standing):
    """Standing conditions of a Salesforce org, besides those of every service.

    Attributes:
        page_clamp: most rows of a batch, whatever is asked (never above 2,000).
        fewer_rows: each batch has some rows fewer than were asked for, at random.
        cursor_live: what comes by a locator is as it is then, not as it was at the query.
        max_cursors: an org's older locators die when it has more than these.
        bulk_polls: how often a job is looked at until it is complete, at least.
        bulk_seconds: real seconds until a job is complete, at least.
        bulk_page: rows of a page of results where `maxRecords` is not given.
        bulk_clamp: most rows of a page of results, whatever is asked.
        bulk_zero: results of no rows: `header`, `empty`, or Bulk 1.0's `text`.
        short_ids: references in results have 15 characters.
        timeout_rows: QUERY_TIMEOUT for statements with more rows than these.
        order_rows: QUERY_TIMEOUT for jobs with ORDER BY or LIMIT over more rows than these.
        replication_lag_seconds: how far getDeleted and getUpdated lag behind the clock.
        id_limit: most ids that these two give.
        count_error: share by which recordCount may be wrong.
    """

    page_clamp: int = 2000
    fewer_rows: bool = False
    cursor_live: bool = False
    max_cursors: int | None = None
    bulk_polls: int = 2
    bulk_seconds: float = 0.0
    bulk_page: int = 50_000
    bulk_clamp: int = 250_000
    bulk_zero: str = "header"
    short_ids: bool = False
    timeout_rows: int | None = None
    order_rows: int = 1_000_000
    replication_lag_seconds: float = 60.0
    id_limit: int = 600_000
    count_error: float = 0.05


def parse(script: dict[str, Any]) -> Hostility:
    """Read a script.

    Raises:
        ValueError: it names a fault, parameter or condition that does not exist.
    """
    rest = dict(script)
    faults = [_fault(line) for line in rest.pop("faults", [])]
    caps = {k: rest.pop(k) for k in ("max_faults", "max_consecutive", "seed") if k in rest}
    unknown = set(rest) - set(get_type_hints(Conditions))
    if unknown:
        raise ValueError(f"a hostility script has no {sorted(unknown)}")
    conditions = Conditions(**rest)
    if conditions.bulk_zero not in ("header", "empty", "text"):
        raise ValueError(f"bulk_zero is header, empty or text, not {conditions.bulk_zero!r}")
    return Hostility(conditions, faults, **caps)


def conditions_of(hostility: Hostility) -> Conditions:
    """The standing conditions of a script that `parse` read."""
    standing = hostility.standing
    assert isinstance(standing, Conditions)
    return standing


def none() -> Hostility:
    """No hostility at all."""
    return Hostility(Conditions())


def _fault(line: dict[str, Any]) -> Fault:
    kind = str(line.get("kind"))
    own = {name: value for name, value in line.items() if name in OWN.get(kind, ())}
    shared = {name: value for name, value in line.items() if name not in own}
    if kind in ON_JOB:
        usual = ["job"]
    elif kind in ON_RESULTS:
        usual = ["results"]
    else:
        usual = _ROWS if kind in ON_PAGE else _EVERYWHERE
    shared = {"on": usual} | shared
    if kind == "codebase_upgrade":
        raise ValueError("codebase_upgrade is a fault of ConnectWise only")
    if kind not in OWN:
        return Fault.parse(shared)
    fault = Fault.parse(shared | {"kind": "status"})
    if fault.parameters:
        raise ValueError(f"{kind} has no parameter {sorted(fault.parameters)}")
    fault.kind, fault.parameters = kind, own
    return fault
