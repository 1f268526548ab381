"""What each fault does to a request. When it happens is decided in `hostility`."""

from __future__ import annotations

from dataclasses import replace

from avesa_dagster.sandbox.answers import error, failure, html_response
from avesa_dagster.sandbox.conditions import Filter
from avesa_dagster.sandbox.hostility import Fault, Hostility
from avesa_dagster.sandbox.listing import Ask, Page
from avesa_dagster.sandbox.site import Site
from avesa_dagster.sandbox.wire import Framing, Request, Response

_FRAMINGS: tuple[Framing, ...] = ("content-length", "chunked", "close")


def instead(fault: Fault, site: Site, request: Request) -> Response | None:
    """The response that takes the place of the answer, or None to go on and answer."""
    given = fault.parameters
    match fault.kind:
        case "status":
            status, wait = int(given.get("status", 503)), given.get("retry_after")
            body = str(given.get("body", "json"))
            return failure(status, body, None if wait is None else str(wait), given.get("message"))
        case "reset_before":
            return Response(0, reset=True)
        case "html_200":
            return html_response(200, "Sign in", "Scheduled maintenance is in progress.")
        case "error_object_200":
            return error(200, "ConnectWiseApi", "An error occurred while fetching the data.")
        case "redirect":
            there = str(given.get("location", "https://maintenance.invalid")).rstrip("/")
            moved = Response(int(given.get("status", 302)))
            moved.headers.append(("Location", there + request.target))
            return moved
        case "codebase_upgrade":
            site.upgrade(given.get("to"))
    return None


def slow_down(fault: Fault, response: Response) -> None:
    """Hold the answer back, or let its body trickle, for the fault's `seconds`."""
    if fault.kind == "slow":
        length = float(fault.parameters.get("seconds", 1.0))
        if fault.parameters.get("drip"):
            response.drip += length
        else:
            response.delay += length


def ask_for(fault: Fault | None, ask: Ask) -> Ask | None:
    """The request as a faulty service understands it; None if the fault makes no difference."""
    if fault is None:
        return None
    if fault.kind == "short_page":
        size = min(ask.size, int(fault.parameters.get("rows", max(1, ask.size // 2))))
        paged = not ask.forward_only and ask.page > 1
        return None if paged or size == ask.size else replace(ask, size=size)
    if fault.kind == "filter_ignored":
        keep_id = fault.parameters.get("ignore", "all_but_id") == "all_but_id"
        loose = Filter(ids=ask.filter.ids, one_of=ask.filter.one_of) if keep_id else Filter()
        return None if loose == ask.filter else replace(ask, filter=loose)
    return None


def spoil(fault: Fault, page: Page, previous: list[bytes] | None, hostility: Hostility) -> bool:
    """Damage a page's rows in place; False if there was nothing to damage."""
    rows = page.rows
    if not rows:
        return False
    match fault.kind:
        case "drop_row":
            for _ in range(min(len(rows), int(fault.parameters.get("rows", 1)))):
                del rows[hostility.below(len(rows))]
        case "duplicate_row":
            rows.append(rows[hostility.below(len(rows))])
        case "empty_page":
            rows.clear()
            page.link = None if page.link is None else ""
        case "repeat_page":
            if previous is None or previous == rows:
                return False
            rows[:] = previous
    return True


def damage(fault: Fault, response: Response, hostility: Hostility) -> bool:
    """Spoil the delivery of an answer; False if there was nothing to spoil."""
    given = fault.parameters
    part = int(len(response.body) * float(given.get("fraction", 0.5)))
    if not response.body:
        return False
    match fault.kind:
        case "reset_after_headers":
            response.cut_at, response.reset = 0, True
        case "hang_up":
            response.hang_up = True
        case "broken_json":
            response.body = response.body[:part]
        case "cut_body":
            framing = given.get("framing")
            response.framing = framing or _FRAMINGS[hostility.below(3)]
            response.cut_at = part
            response.reset = given.get("ending", "fin") == "reset"
    return True
