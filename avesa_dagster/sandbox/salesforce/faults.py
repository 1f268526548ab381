"""What the faults do to a request, as far as `sandbox.faults` does not know it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain

from avesa_dagster.sandbox.answers import html_response, json_response
from avesa_dagster.sandbox.faults import damage as damage_body
from avesa_dagster.sandbox.hostility import Fault, Hostility
from avesa_dagster.sandbox.salesforce.problems import ApiError, answer, by_status
from avesa_dagster.sandbox.salesforce.site import Site, Tenancy
from avesa_dagster.sandbox.wire import Framing, Request, Response

_FRAMINGS: tuple[Framing, ...] = ("chunked", "close")


def maintenance(status: int, text: str = "Salesforce is temporarily unavailable.") -> Response:
    """The page of an instance that is down, or of an org that sleeps."""
    return html_response(status, "Site Maintenance", text)


def instead(fault: Fault, site: Site, tenancy: Tenancy | None, request: Request) -> Response | None:
    """The response that takes the place of the answer, or None to go on and answer."""
    given = fault.parameters
    match fault.kind:
        case "status":
            return _failure(fault)
        case "error":
            status = given.get("status")
            return answer(ApiError(str(given.get("code", "")), given.get("message"), status))
        case "reset_before":
            return Response(0, reset=True)
        case "html_200":
            return maintenance(200)
        case "maintenance":
            return maintenance(int(given.get("status", 503)))
        case "error_object_200":
            found = {"message": "An unexpected error occurred.", "errorCode": "UNKNOWN_EXCEPTION"}
            return json_response(200, [found])
        case "redirect":
            there = str(given.get("location", "https://maintenance.invalid")).rstrip("/")
            moved = Response(int(given.get("status", 302)))
            moved.headers.append(("Location", there + request.target))
            return moved
        case "session_expired" if tenancy is not None:
            site.sessions.end_all(tenancy.org.company_id, site.clock.now())
        case "lose_cursors" if tenancy is not None:
            end_locators(tenancy)
    return None


def end_locators(tenancy: Tenancy) -> int:
    """End every locator of an org, of queries and of results."""
    with tenancy.org.lock:
        ended = tenancy.cursors.end_all()
        for job in tenancy.jobs.all(0.0):
            job.generation += 1
            ended += 1
    return ended


def afterwards(fault: Fault, tenancy: Tenancy | None, table: str | None) -> bool:
    """What a fault changes once its request is answered; False if it changes nothing."""
    name = fault.table or table
    if tenancy is None or name is None or name not in tenancy.org.tables:
        return False
    with tenancy.org.lock:
        known = tenancy.org.tables[name]
        if fault.kind == "lose_object":
            known.accessible = False
        else:
            known.hidden.add(str(fault.parameters.get("field")))
    return True


def _failure(fault: Fault) -> Response:
    given = fault.parameters
    status, body = int(given.get("status", 503)), str(given.get("body", "json"))
    if body == "json":
        response = by_status(status, given.get("message"))
    elif body == "empty":
        response = Response(status)
    else:
        response = html_response(status, f"{status}", given.get("message") or "Unavailable.")
    if given.get("retry_after") is not None:
        response.headers.append(("Retry-After", str(given["retry_after"])))
    return response


def spoil_places(fault: Fault, places: Sequence[int], hostility: Hostility) -> Sequence[int] | None:
    """Rows of a page of results with some missing or twice; None if there was nothing to spoil."""
    if not places:
        return None
    spoilt = array("q", places)
    match fault.kind:
        case "drop_row":
            for _ in range(min(len(spoilt), int(fault.parameters.get("rows", 1)))):
                del spoilt[hostility.below(len(spoilt))]
        case "duplicate_row":
            spoilt.append(spoilt[hostility.below(len(spoilt))])
        case "empty_page":
            del spoilt[:]
        case _:
            return None
    return spoilt


def damage(fault: Fault, response: Response, hostility: Hostility, rows_at_once: int) -> bool:
    """Spoil the delivery of an answer; False if there was nothing to spoil."""
    if response.stream is None:
        return damage_body(fault, response, hostility)
    first = next(response.stream, b"")
    rows = response.rows or 0
    size = int(len(first) * max(1.0, rows / rows_at_once))
    part = int(size * float(fault.parameters.get("fraction", 0.5)))
    response.stream = chain([first], response.stream)
    match fault.kind:
        case "reset_after_headers":
            response.cut_at, response.reset = 0, True
        case "hang_up":
            response.hang_up = True
        case "broken_json":
            response.stream = _first(response.stream, part)
        case "cut_body":
            response.framing = fault.parameters.get("framing") or _FRAMINGS[hostility.below(2)]
            response.cut_at = part
            response.reset = fault.parameters.get("ending", "fin") == "reset"
    return True


def _first(stream: Iterator[bytes], size: int) -> Iterator[bytes]:
    """As much of a body, which then seems whole."""
    for piece in stream:
        yield piece[:size]
        size -= len(piece)
        if size <= 0:
            return
