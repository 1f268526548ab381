"""Errors of the API: a JSON array of `{message, errorCode, fields?}`; OAuth has an object instead.

Codes from the fact page; some of the pairings with a status are [GK].
"""

from __future__ import annotations

from typing import Any

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.wire import Response

DAILY = "TotalRequests Limit exceeded."
CONCURRENT = "ConcurrentRequests (Concurrent API Requests) Limit exceeded."

KNOWN: dict[str, tuple[int, str]] = {
    "MALFORMED_QUERY": (400, "unexpected token"),
    "INVALID_FIELD": (400, "No such column"),
    "INVALID_TYPE": (400, "sObject type is not supported."),
    "INVALID_TYPE_FOR_OPERATION": (400, "entity type does not support query"),
    "INVALID_QUERY_LOCATOR": (400, "invalid query locator"),
    "EXCEEDED_ID_LIMIT": (400, "exceeded maximum number of ids"),
    "INVALID_REPLICATION_DATE": (400, "startDate is out of range"),
    "INVALID_SESSION_ID": (401, "Session expired or invalid"),
    "REQUEST_LIMIT_EXCEEDED": (403, DAILY),
    "CONCURRENT": (403, CONCURRENT),
    "API_DISABLED_FOR_ORG": (403, "API is not enabled for this Organization or Partner"),
    "INSUFFICIENT_ACCESS": (403, "insufficient access rights on cross-reference id"),
    "TXN_SECURITY_METERING_ERROR": (
        403,
        "When you try to view your data, the transaction security policy could not be evaluated.",
    ),
    "NOT_FOUND": (404, "The requested resource does not exist"),
    "ENTITY_IS_DELETED": (404, "entity is deleted"),
    "METHOD_NOT_ALLOWED": (405, "HTTP Method not allowed"),
    "UNABLE_TO_LOCK_ROW": (400, "unable to obtain exclusive access to this record"),
    "QUERY_TIMEOUT": (400, "Your query request was running for too long."),
    "SERVER_UNAVAILABLE": (503, "The server is currently unavailable, please try again."),
    "UNKNOWN_EXCEPTION": (500, "An unexpected error occurred. Please include this ErrorId."),
}
"""Code to its usual status and message. `CONCURRENT` is the other REQUEST_LIMIT_EXCEEDED."""


class ApiError(Exception):
    """The API answers with this error."""

    def __init__(self, code: str, message: str | None = None, status: int | None = None) -> None:
        usual_status, usual_message = KNOWN.get(code, (400, code))
        self.status = usual_status if status is None else status
        self.message = usual_message if message is None else message
        self.code = "REQUEST_LIMIT_EXCEEDED" if code == "CONCURRENT" else code
        super().__init__(f"{self.code}: {self.message}")


class OAuthError(Exception):
    """The token endpoint answers 400 with `{error, error_description}`."""

    def __init__(self, error: str, description: str) -> None:
        self.error, self.description = error, description
        super().__init__(f"{error}: {description}")


def answer(error: ApiError) -> Response:
    """The response that an error is."""
    return problem(error.status, error.code, error.message)


def problem(status: int, code: str, message: str) -> Response:
    return json_response(status, [{"message": message, "errorCode": code}])


def by_status(status: int, message: str | None) -> Response:
    """The error of a status that somebody asked for."""
    codes = {401: "INVALID_SESSION_ID", 403: "REQUEST_LIMIT_EXCEEDED", 404: "NOT_FOUND"}
    codes |= {400: "MALFORMED_QUERY", 503: "SERVER_UNAVAILABLE"}
    code = codes.get(status, "UNKNOWN_EXCEPTION")
    return problem(status, code, message or KNOWN[code][1])


def oauth_answer(error: OAuthError) -> Response:
    body: dict[str, Any] = {"error": error.error, "error_description": error.description}
    return json_response(400, body)
