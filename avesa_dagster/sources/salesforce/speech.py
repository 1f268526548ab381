"""How Salesforce is spoken to, and how it says that something is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from avesa_dagster.errors import (
    AvesaError,
    CredentialsRefused,
    FatalError,
    PermissionRefused,
    RetriableError,
    TooMuch,
    Where,
)
from avesa_dagster.sources.base import Clock
from avesa_dagster.sources.http import Answer, Call, Dialect, Http
from avesa_dagster.sources.oauth import Token, Tokens, header
from avesa_dagster.sources.refreshing import RefreshTokens, Shared
from avesa_dagster.sources.salesforce import login
from avesa_dagster.sources.salesforce.allowance import DailyAllowance
from avesa_dagster.sources.salesforce.credentials import Credentials, Grant, shown
from avesa_dagster.sources.vault import Vault

_log = logging.getLogger(__name__)
_MOMENT = 5.0
"""Seconds to wait where too many requests run at once."""
_LOGIN_PAUSE = 60.0
_AGAIN = frozenset({406, 420})
_PASSING = frozenset(
    {"server_error", "unknown_error", "temporarily_unavailable", "SERVER_UNAVAILABLE"}
)
_BUSY = frozenset({"SERVER_UNAVAILABLE", "UNABLE_TO_LOCK_ROW"})
_TOO_MUCH = frozenset({"QUERY_TIMEOUT", "EXCEEDED_ID_LIMIT"})
_FORBIDDEN = frozenset({"INSUFFICIENT_ACCESS", "INSUFFICIENT_ACCESS_OR_READONLY"})
_NO_REST = "not valid for use with the rest api"
_SAID_OF_A_PLACE = {
    "INVALID_TYPE": "the object is unknown, or this user may not see it: give the user read "
    "access, or leave the table out when you connect (--table)",
    "MALFORMED_QUERY": "look whether the table's id and change_field are right for this object",
}


class Refused(FatalError):
    """An error that Salesforce gives a code.

    Attributes:
        code: For example INVALID_FIELD.
    """

    code = ""


@dataclass(frozen=True, slots=True)
class _Said:
    code: str
    message: str


class Speech(Dialect):
    """Bearer tokens without an end, renewed when refused; errors are lists with codes.

    Args:
        vault: Where the credentials lie; a refresh token that the service replaces is put there.
        daily_share: See `DailyAllowance`.
    """

    permission = "give the user read access to this object (best: the permission View All Data)"
    address = "instance_url"

    def __init__(
        self,
        credentials: Credentials,
        vault: Vault,
        where: Where,
        *,
        clock: Clock,
        daily_share: float | None,
    ) -> None:
        super().__init__({"Accept": "application/json"}, ())
        self._credentials = credentials
        self._where = where
        self._clock = clock
        self._allowance = DailyAllowance(daily_share, where)
        self._instance = credentials.instance_url
        self._sent: tuple[str, ...] = ()
        self._refresh = RefreshTokens(vault, where, before="is dead")
        self._tokens = Tokens(self._ask)

    def headers(self, http: Http) -> Mapping[str, str]:
        self._allowance.admit()
        return {**super().headers(http), "Authorization": f"Bearer {self._tokens.get(http)}"}

    def located(self, http: Http, url: str) -> str:
        return f"{self._instance}{url}" if url.startswith("/") else url

    def secrets(self) -> tuple[str, ...]:
        replaced = self._refresh.known
        return (*self._credentials.secrets(), *replaced, *self._sent, *self._tokens.known)

    def renewed(self, http: Http, sent: Mapping[str, str]) -> bool:
        return self._tokens.renewed(http, sent["Authorization"].removeprefix("Bearer "))

    def trouble(self, call: Call, answer: Answer) -> AvesaError | None:
        host = urlsplit(call.url).netloc
        if not call.authenticated:
            return self._token_trouble(host, call, answer)
        spent = self._allowance.noted(answer.headers)
        if _is_page(answer) and answer.status not in (401, 403) and not _redirects(answer):
            return _web_page(host)
        if answer.status in _AGAIN:
            return RetriableError(f"{host} answered {answer.status}: try again")
        said = _said(answer.body) if answer.status >= 400 else None
        if said is not None:
            return self._said_trouble(host, answer.status, said)
        return spent if answer.status < 400 else None

    def message(self, body: bytes) -> str:
        said = _said(body)
        return f"{said.code}: {said.message}" if said else super().message(body)

    def _said_trouble(self, host: str, status: int, said: _Said) -> AvesaError | None:
        code, text = said.code, f"{host} says {said.code}: {self._clean(said.message)}"
        if code == "INVALID_SESSION_ID":
            if _NO_REST in said.message.lower():
                return PermissionRefused(
                    text, hint="the user's profile or the app does not permit the REST API"
                )
            return CredentialsRefused(
                text, hint="each new token is refused too; connect again with valid credentials"
            )
        if code == "REQUEST_LIMIT_EXCEEDED":
            if "concurrent" in said.message.lower():
                return RetriableError(
                    text, hint="too many long requests run at once", retry_after=_MOMENT
                )
            return self._allowance.exhausted(self._clean(said.message))
        if code == "API_DISABLED_FOR_ORG":
            return CredentialsRefused(
                text, hint="this edition of Salesforce has no API, or it is off"
            )
        if code == "TXN_SECURITY_METERING_ERROR":
            return PermissionRefused(
                text, hint="give the user the permission Exempt from Transaction Security"
            )
        if code in _FORBIDDEN:
            return PermissionRefused(text, hint=self.permission)
        if code in _TOO_MUCH:
            return TooMuch(text)
        if code in _BUSY:
            return RetriableError(text)
        if status == 400:
            refused = Refused(text, hint=_SAID_OF_A_PLACE.get(code))
            refused.code = code
            return refused
        return None

    def _token_trouble(self, host: str, call: Call, answer: Answer) -> AvesaError | None:
        if _is_page(answer) and not _redirects(answer):
            return _web_page(host)
        if call.url.endswith(login.SOAP):
            fault = answer.body.decode("utf-8", "replace")
            code = login.element(fault, "exceptionCode") or login.element(fault, "faultcode")
            text = login.element(fault, "faultstring")
            return self._token_refused(host, code, text) if code else None
        document = _document(answer.body) if 400 <= answer.status < 500 else None
        if not isinstance(document, dict):
            return None
        error, description = (document.get(name) for name in ("error", "error_description"))
        return self._token_refused(host, str(error), str(description or ""))

    def _token_refused(self, host: str, error: str, description: str) -> AvesaError:
        said = self._clean(f"{error}: {description}" if description else error)
        low = f"{error} {description}".lower()
        if "rate exceeded" in low:
            return RetriableError(f"{host} wants fewer logins: {said}", retry_after=_LOGIN_PAUSE)
        if error in _PASSING:
            return RetriableError(f"{host} gives no token: {said}")
        way = self._credentials.way()
        return CredentialsRefused(
            f"{host} gives no token for the grant {way.value}: {said}",
            hint=_advice(way, low, self._credentials.is_sandbox),
        )

    def _clean(self, text: str) -> str:
        return " ".join(self.hidden(text)[:2000].split())[:300]

    def _ask(self, http: Http) -> Token:
        if self._credentials.way() is not Grant.REFRESH_TOKEN:
            return self._exchange(http)
        with self._refresh.exclusive():
            stored = self._refresh.stored()
            self._credentials = Credentials.parse(stored, self._where)
            shared = self._refresh.session(stored)
            if shared is None:
                return self._exchange(http)
            self._instance = shared.address or self._credentials.instance_url
            return shared.token

    def _exchange(self, http: Http) -> Token:
        now = self._clock()
        told = http.server_time
        call = login.request(self._credentials, told if told and told > now else now)
        self._sent = tuple(parse_qs((call.body or b"").decode()).get("assertion", ()))
        credentials = self._credentials
        said = http.ask(call, lambda answer: login.session(credentials, answer))
        self._instance = said.instance
        if said.refresh_token and credentials.way() is Grant.REFRESH_TOKEN:
            shared = Shared(Token(said.access), said.instance)
            self._refresh.keep(shown(credentials.refresh_token), said.refresh_token, shared)
        return Token(said.access)


def _advice(way: Grant, said: str, is_sandbox: bool) -> str:
    here, there = ("sandbox", "production") if is_sandbox else ("production", "sandbox")
    mixed = (
        f"instance_url is a {here} address: an app or user of {there} is not known there"
        " (https://test.salesforce.com is for sandboxes, whose users' names end in the sandbox's)"
    )
    if "invalid_client" in said:
        return (
            "the consumer key or secret (client_id, client_secret) is not known there. "
            f"{mixed}; a new app needs some minutes"
        )
    if "unsupported_grant_type" in said or "not supported on this domain" in said:
        return (
            "the app does not permit this grant, or not at this address; choose another one with "
            '"grant", or give the fields of another one'
        )
    causes = {
        Grant.CLIENT_CREDENTIALS: "the app needs the client credentials flow and a user to run as",
        Grant.JWT_BEARER: "the user must be pre-authorised for the app, whose certificate must "
        "belong to private_key; look at the clock of this machine too",
        Grant.REFRESH_TOKEN: "the refresh token is expired, was revoked, or was replaced by "
        "another program; connect again with a new one",
        Grant.PASSWORD: "username, password or security_token are wrong, the user is locked, or "
        "the org permits this login no more",
    }
    return f"{causes[way]}. {mixed}"


def _said(body: bytes) -> _Said | None:
    """The first error of a list of errors."""
    if not body.lstrip().startswith(b"["):
        return None
    document = _document(body)
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, dict) or not isinstance(first.get("errorCode"), str):
        return None
    return _Said(first["errorCode"], str(first.get("message", "")))


def _document(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _is_page(answer: Answer) -> bool:
    return header(answer, "Content-Type").startswith("text/html") or answer.body.lstrip()[
        :15
    ].lower().startswith((b"<!doctype html", b"<html"))


def _redirects(answer: Answer) -> bool:
    return 300 <= answer.status < 400


def _web_page(host: str) -> RetriableError:
    return RetriableError(
        f"{host} answers with a web page: the org is under maintenance or hibernates, or this is "
        "not the API's address",
        hint="nothing is lost, it is asked again; the address is like "
        "https://yourcompany.my.salesforce.com, and an org that hibernates is woken by a login",
    )
