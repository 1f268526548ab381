"""How ServiceNow is spoken to, and how it says that something is wrong."""

from __future__ import annotations

import json
import math
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
from avesa_dagster.sources.refreshing import RefreshTokens, Shared
from avesa_dagster.sources.servicenow.credentials import Credentials, Grant, shown
from avesa_dagster.sources.vault import Vault

_TOKENS = "/oauth_token.do"
_CANCELLED = "transaction cancelled"
_NO_TABLE = "invalid table"
_ASLEEP = ("hibernat", "login", "logon", "signon", "developer.servicenow.com")
"""Parts of the addresses of pages for people, to which an instance that sleeps redirects."""
_REFUSED = {
    Grant.BASIC: "look whether username and password are right and the user is active, not locked "
    "out, and may use basic authentication (else add client_id and client_secret)",
    Grant.CLIENT_CREDENTIALS: "client_id and client_secret may be wrong; this grant needs the "
    "property glide.oauth.inbound.client.credential.grant_type.enabled and an OAuth application "
    "user, active and not locked out",
    Grant.PASSWORD: "username, password, client_id or client_secret may be wrong, the user "
    "inactive or locked out, or this grant disabled "
    "(glide.oauth.inbound.ropc.grant_type.disabled)",
    Grant.REFRESH_TOKEN: "the refresh token may have ended or been replaced by another program; "
    "have a new one made",
}
"""What to look at, by grant, before one connects again."""


class Speech(Dialect):
    """Basic authentication or OAuth; errors are `{"error": {…}}`, at any status."""

    permission = "give the API user a role that may read this table (often itil or snc_read_only)"
    address = "instance_url"

    def __init__(self, credentials: Credentials, vault: Vault, where: Where) -> None:
        super().__init__({"Accept": "application/json"}, ())
        self._credentials = credentials
        self._where = where
        self._refresh = RefreshTokens(vault, where, before="may be dead")
        self._tokens = None if credentials.way() is Grant.BASIC else Tokens(self._ask)

    def headers(self, http: Http) -> Mapping[str, str]:
        said = super().headers(http)
        if self._tokens is None:
            return {**said, "Authorization": self._credentials.basic()}
        return {**said, "Authorization": f"Bearer {self._tokens.get(http)}"}

    def secrets(self) -> tuple[str, ...]:
        tokens = self._tokens.known if self._tokens else ()
        return (*self._credentials.secrets(), *self._refresh.known, *tokens)

    def renewed(self, http: Http, sent: Mapping[str, str]) -> bool:
        refused = sent["Authorization"].removeprefix("Bearer ")
        return self._tokens is not None and self._tokens.renewed(http, refused)

    def trouble(self, call: Call, answer: Answer) -> AvesaError | None:
        host = urlsplit(call.url).netloc
        if _is_page(answer):
            return RetriableError(
                f"{host} answers with a web page: the instance hibernates or is being upgraded",
                hint="wake it up at the service; nothing is lost, it is asked again",
            )
        if call.url.endswith(_TOKENS) and answer.status in (400, 401, 403):
            return self._token_refused(host, answer)
        if answer.status == 401:
            return self._refused(f"{host} refused the credentials: {self.quoted(answer.body)}")
        if _error(answer.body) is None:
            return None
        text = self.quoted(answer.body)
        if _CANCELLED in text.lower():
            return TooMuch(f"{host} cancelled the request: {text}")
        if answer.status == 400 and _NO_TABLE in text.lower():
            return FatalError(
                f"{host} has no such table: {text}",
                hint="its plugin may be off; leave the table out when you connect (--table)",
            )
        if answer.status == 200:
            return RetriableError(f"{host} answered with an error inside of a 200: {text}")
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
        return self._refused(
            f"{host} gives no token for the grant {way}: {self.quoted(answer.body)}"
        )

    def _refused(self, what: str) -> CredentialsRefused:
        hint = (
            f"{_REFUSED[self._credentials.way()]}; then connect again: avesa connect "
            f"{self._where.tenant} {self._where.service} --credentials FILE"
        )
        return CredentialsRefused(what, where=self._where, hint=hint)

    def _ask(self, http: Http) -> Token:
        if self._credentials.way() is not Grant.REFRESH_TOKEN:
            return self._exchange(http)
        with self._refresh.exclusive():
            stored = self._refresh.stored()
            self._take(stored)
            shared = self._refresh.session(stored)
            return self._exchange(http) if shared is None else shared.token

    def _exchange(self, http: Http) -> Token:
        """A token; a refresh token that comes with it is the next one."""
        credentials = self._credentials
        call = form(f"{credentials.instance_url}{_TOKENS}", credentials.form())
        token, fresh = http.ask(call, _granted)
        if fresh and credentials.way() is Grant.REFRESH_TOKEN:
            self._refresh.keep(shown(credentials.refresh_token), fresh, Shared(token))
        return token

    def _take(self, values: Mapping[str, object]) -> None:
        stored = Credentials.parse(values, self._where)
        # Whoever connected again in another way does not change what is under way.
        if stored.way() is Grant.REFRESH_TOKEN:
            self._credentials = stored


def _is_page(answer: Answer) -> bool:
    """Whether it is a page for people in place of an answer, or leads to one."""
    if answer.status < 300:
        return header(answer, "Content-Type").lower().startswith("text/html")
    if answer.status >= 400:
        return False
    to = urlsplit(header(answer, "Location").lower())
    place = f"{to.netloc}{to.path}#{to.fragment}"
    return any(part in place for part in _ASLEEP)


def _granted(answer: Answer) -> tuple[Token, str | None]:
    """The access token, and the refresh token that came with it."""
    said = parsed_object(answer.body)
    access, fresh = said.get("access_token"), said.get("refresh_token")
    if not isinstance(access, str) or not access:
        raise InvalidPage("the answer is no token")
    token = Token(access, _seconds(said.get("expires_in")))
    return token, fresh if isinstance(fresh, str) and fresh else None


def _seconds(said: object) -> float | None:
    """How long a token lasts; None: until it is refused, as nothing usable was said."""
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return None
    try:
        seconds = float(said)
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


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
