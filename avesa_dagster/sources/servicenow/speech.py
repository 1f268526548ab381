"""How ServiceNow is spoken to, and how it says that something is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from avesa_dagster.errors import (
    AvesaError,
    CredentialsRefused,
    FatalError,
    RetriableError,
    TooMuch,
    Where,
)
from avesa_dagster.sources.http import Answer, Call, Dialect, Http
from avesa_dagster.sources.oauth import Token, Tokens, form, header
from avesa_dagster.sources.records import InvalidPage, parsed
from avesa_dagster.sources.servicenow.credentials import Credentials, Grant

_TOKENS = "/oauth_token.do"
_CANCELLED = "transaction cancelled"
_NO_TABLE = "invalid table"


class Speech(Dialect):
    """Basic authentication or OAuth; errors are `{"error": {…}}`, at any status."""

    permission = "give the API user a role that may read this table (often itil or snc_read_only)"
    address = "instance_url"

    def __init__(self, credentials: Credentials, where: Where) -> None:
        super().__init__({"Accept": "application/json"}, credentials.secrets())
        self._credentials = credentials
        self._where = where
        self._tokens = None if credentials.way() is Grant.BASIC else Tokens(self._ask)

    def headers(self, http: Http) -> Mapping[str, str]:
        said = super().headers(http)
        if self._tokens is None:
            return {**said, "Authorization": self._credentials.basic()}
        return {**said, "Authorization": f"Bearer {self._tokens.get(http)}"}

    def secrets(self) -> tuple[str, ...]:
        return (*super().secrets(), *(self._tokens.known if self._tokens else ()))

    def renewed(self, http: Http, sent: Mapping[str, str]) -> bool:
        refused = sent["Authorization"].removeprefix("Bearer ")
        return self._tokens is not None and self._tokens.renewed(http, refused)

    def trouble(self, call: Call, answer: Answer) -> AvesaError | None:
        host = urlsplit(call.url).netloc
        if header(answer, "Content-Type").startswith("text/html") and answer.status < 400:
            return RetriableError(
                f"{host} answers with a web page: the instance hibernates or is being upgraded",
                hint="wake it up at the service; nothing is lost, it is asked again",
            )
        if call.url.endswith(_TOKENS) and answer.status in (400, 401, 403):
            return self._token_refused(host, answer)
        said = _error(answer.body)
        if said is None:
            return None
        text = self.message(answer.body)
        if _CANCELLED in text.lower():
            return TooMuch(f"{host} cancelled the request: {text[:200]}")
        if answer.status == 400 and _NO_TABLE in text.lower():
            return FatalError(
                f"{host} has no such table: {text[:200]}",
                hint="its plugin may be off; leave the table out when you connect (--table)",
            )
        if answer.status == 200:
            return RetriableError(f"{host} answered with an error inside of a 200: {text[:200]}")
        return None

    def message(self, body: bytes) -> str:
        said = _error(body)
        if said is None:
            return super().message(body)
        if isinstance(said, str):
            return said
        return ": ".join(str(part) for part in (said.get("message"), said.get("detail")) if part)

    def _token_refused(self, host: str, answer: Answer) -> AvesaError:
        way = self._credentials.way().value
        hint = "connect again with valid ones"
        if way == Grant.CLIENT_CREDENTIALS:
            hint += "; this grant needs the property glide.oauth.inbound.client.credential."
            hint += "grant_type.enabled and an OAuth application user"
        if way == Grant.PASSWORD:
            hint += "; this grant may be disabled (glide.oauth.inbound.ropc.grant_type.disabled)"
        said = parsed_object(answer.body).get("error")
        return CredentialsRefused(
            f"{host} gives no token for the grant {way}: {str(said)[:100]}",
            where=self._where,
            hint=hint,
        )

    def _ask(self, http: Http) -> Token:
        call = form(f"{self._credentials.instance_url}{_TOKENS}", self._credentials.form())
        return http.ask(call, _token)


def _token(answer: Answer) -> Token:
    said = parsed_object(answer.body)
    access, seconds = said.get("access_token"), said.get("expires_in")
    if not isinstance(access, str) or not access:
        raise InvalidPage("the answer is no token")
    lasts = float(seconds) if isinstance(seconds, int | float | str) and str(seconds) else None
    return Token(access, lasts)


def parsed_object(body: bytes) -> dict[str, object]:
    """The body's JSON object. Raises InvalidPage."""
    said = parsed(body)
    if not isinstance(said, dict):
        raise InvalidPage("the answer is no JSON object")
    return said


def _error(body: bytes) -> dict[str, object] | str | None:
    """The `error` of a body, also of one that holds a part of a result before it."""
    if b'"error"' not in body:
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, dict | str) and error else None
