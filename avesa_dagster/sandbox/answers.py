"""Bodies that the service and the gateways before it answer with, good and bad."""

from __future__ import annotations

import json
from typing import Any

from avesa_dagster.sandbox.wire import Response

JSON_TYPE = "application/json; charset=utf-8"
_HTML_TYPE = "text/html; charset=UTF-8"


def html(title: str, text: str) -> bytes:
    head = f"<head><title>{title}</title></head>"
    return f"<!DOCTYPE html><html>{head}<body>{text}</body></html>".encode()


def json_response(status: int, value: Any) -> Response:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Response(status, body, [("Content-Type", JSON_TYPE)])


def html_response(status: int, title: str, text: str) -> Response:
    return Response(status, html(title, text), [("Content-Type", _HTML_TYPE)])


def error(status: int, code: str, message: str, errors: list[Any] | None = None) -> Response:
    """ConnectWise's error shape: `{code, message, errors}`."""
    return json_response(status, {"code": code, "message": message, "errors": errors})


def unauthorized(message: str) -> Response:
    return error(401, "Unauthorized", message)


def too_many(retry_after: str | None, shape: str) -> Response:
    """A 429 in ConnectWise's own odd shape, or Cloudflare's page ([DG]; [PY] PR #41)."""
    if shape == "cloudflare":
        response = html_response(429, "Error 1015", "You are being rate limited. Cloudflare Ray ID")
    else:
        message = f"Too many requests. Please try again in {retry_after or 'a few'} seconds."
        response = json_response(429, {"error": "ConnectWiseAPI", "message": message})
    if retry_after is not None:
        response.headers.append(("Retry-After", retry_after))
    return response


def failure(status: int, body: str, retry_after: str | None, message: str | None) -> Response:
    """A failing status; `body` is json, html, empty or cloudflare."""
    if status == 429 and body in ("json", "cloudflare"):
        return too_many(retry_after, body)
    if body == "empty":
        response = Response(status)
    elif body == "json":
        code = "Unauthorized" if status == 401 else "ConnectWiseApi"
        response = error(status, code, message or "The operation has timed out.")
    else:
        response = html_response(status, f"{status}", message or "The service is unavailable.")
    if retry_after is not None:
        response.headers.append(("Retry-After", retry_after))
    return response
