"""Bodies that the service answers with, good and bad."""

from __future__ import annotations

from typing import Any

from avesa_dagster.sandbox.answers import html_response, json_response
from avesa_dagster.sandbox.wire import Response

CANCELLED = "Transaction cancelled: maximum execution time exceeded"
_CANCELLED_DETAIL = (
    "maximum execution time exceeded Check logs for error trace or enable glide.rest.debug "
    "property to verify REST request processing"
)


def error_body(message: str, detail: str | None = None) -> dict[str, Any]:
    """ServiceNow's error shape [SND]."""
    return {"error": {"message": message, "detail": detail}, "status": "failure"}


def error(status: int, message: str, detail: str | None = None) -> Response:
    return json_response(status, error_body(message, detail))


def unauthenticated() -> Response:
    return error(401, "User Not Authenticated", "Required to provide Auth information")


def no_record() -> Response:
    """A record that is missing, or that an ACL hides: the two look the same."""
    return error(
        404, "No Record found", "Record doesn't exist or ACL restricts the record retrieval"
    )


def hibernating() -> Response:
    """A developer instance asleep: a page for people, with status 200 and no redirect. [INF]"""
    return html_response(200, "Instance Hibernating", "Your instance is hibernating. Wake it up.")


def cancelled_error() -> dict[str, Any]:
    return error_body(CANCELLED, _CANCELLED_DETAIL)


def too_many(retry_after: int, limit: int) -> Response:
    response = error(
        429,
        "Rate limit exceeded",
        f"Rate limit of {limit} requests per hour for Table API exceeded",
    )
    response.headers.append(("Retry-After", str(retry_after)))
    return response


def failure(status: int, body: str, retry_after: str | None, message: str | None) -> Response:
    """A failing status; `body` is json, html (or cloudflare) or empty."""
    if body == "empty":
        response = Response(status)
    elif body == "json" and status == 401:
        response = unauthenticated()
    elif body == "json":
        response = error(status, message or "Operation Failed", f"status {status}")
    else:
        response = html_response(status, f"{status}", message or "The service is unavailable.")
    if retry_after is not None:
        response.headers.append(("Retry-After", retry_after))
    return response
