"""A request as far as it makes sense before it is known whether it is allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from avesa_dagster.sandbox.salesforce import plan as plans
from avesa_dagster.sandbox.salesforce.paths import Route
from avesa_dagster.sandbox.salesforce.plan import Plan
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.site import Tenancy
from avesa_dagster.sandbox.salesforce.soql import parse
from avesa_dagster.sandbox.wire import Request


@dataclass(slots=True)
class Asked:
    """A request, read as far as it makes sense.

    Attributes:
        kind: as in a hostility script: the route's, with `list` or `count` for a query.
        problem: why there is no plan, if there should be one.
    """

    where: Route
    kind: str
    table: str | None = None
    plan: Plan | None = None
    everything: bool = False
    problem: ApiError | None = None


def understand(request: Request, where: Route, tenancy: Tenancy | None, now: float) -> Asked:
    """Read a request as the org's schema has it."""
    asked = Asked(where, where.kind, everything=where.everything)
    if where.kind in ("describe", "basic", "deleted", "updated", "get"):
        asked.table = where.name
    if tenancy is None:
        asked.kind = "list" if where.kind == "query" else where.kind
        return asked
    with tenancy.org.lock:
        try:
            _find_plan(request, asked, tenancy, now)
        except ApiError as found:
            asked.problem = found
    if where.kind == "query":
        counts = asked.plan is not None and asked.plan.query.aggregate
        asked.kind = "count" if counts else "list"
    elif where.kind in ("pages", "more"):
        asked.kind = "status" if where.kind == "pages" else "list"
    elif where.kind == "basic":
        asked.kind = "describe"
    if asked.plan is not None:
        asked.table = asked.plan.table.info.name
    return asked


def _find_plan(request: Request, asked: Asked, tenancy: Tenancy, now: float) -> None:
    where, org = asked.where, tenancy.org
    match where.kind:
        case "query":
            if "q" not in request.query:
                raise ApiError("MALFORMED_QUERY", "q is missing")
            asked.plan = plans.check(org, parse(request.query["q"]))
        case "more":
            _, cursor, _ = tenancy.cursors.find(where.name, now)
            asked.plan, asked.everything = cursor.plan, cursor.everything
        case "job":
            try:
                text = json.loads(request.body)["query"]
                asked.plan = plans.check(org, parse(text))
            except (ValueError, KeyError, TypeError):
                return
        case "results" | "pages":
            asked.plan = tenancy.jobs.find(where.name, now).plan


def stream_of(asked: Asked, company_id: str | None) -> str:
    """What belongs to one reading of a window, whatever the page: its upper bound tells."""
    high = "" if asked.plan is None else asked.plan.changed.high
    return f"{company_id}|{asked.table}|{asked.kind}|{high}|{asked.everything}"
