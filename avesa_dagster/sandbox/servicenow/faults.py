"""What a fault does to a request, where that differs from other services (`sandbox.faults`)."""

from __future__ import annotations

import json
from dataclasses import replace

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.hostility import Fault
from avesa_dagster.sandbox.servicenow import answers
from avesa_dagster.sandbox.servicenow.listing import Ask, only_ids
from avesa_dagster.sandbox.servicenow.query import Query
from avesa_dagster.sandbox.wire import Request, Response


def instead(fault: Fault, kind: str, request: Request) -> Response | None:
    """The response that takes the place of the answer, or None to go on and answer."""
    given = fault.parameters
    match fault.kind:
        case "status":
            status, wait = int(given.get("status", 503)), given.get("retry_after")
            body = str(given.get("body", "json"))
            after = None if wait is None else str(wait)
            return answers.failure(status, body, after, given.get("message"))
        case "reset_before":
            return Response(0, reset=True)
        case "html_200":
            return answers.hibernating()
        case "error_object_200" if kind != "list":
            return json_response(200, answers.cancelled_error())
        case "redirect":
            there = str(given.get("location", "https://maintenance.invalid")).rstrip("/")
            moved = Response(int(given.get("status", 302)))
            moved.headers.append(("Location", there + request.target))
            return moved
    return None


def ask_for(fault: Fault | None, ask: Ask) -> Ask | None:
    """The request as a faulty service understands it; None if the fault makes no difference."""
    if fault is None:
        return None
    if fault.kind == "short_page":
        size = min(ask.limit, int(fault.parameters.get("rows", max(1, ask.limit // 2))))
        return None if ask.offset or size == ask.limit else replace(ask, limit=size)
    if fault.kind == "filter_ignored":
        keep_id = fault.parameters.get("ignore", "all_but_id") == "all_but_id"
        loose = only_ids(ask.query) if keep_id else Query(order=ask.query.order)
        return None if loose.blocks == ask.query.blocks else replace(ask, query=loose)
    return None


def cancelled(rows: list[bytes]) -> bytes:
    """A 200 whose rows end early, with the error of a cancelled transaction after them."""
    error = json.dumps(answers.cancelled_error()).encode()
    part = rows[: len(rows) // 2]
    return b'{"result":[' + b",".join(part) + b"]," + error[1:]
