"""How a declared service is spoken to, and how it says that something is wrong."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, quote_plus, urlencode, urlsplit, urlunsplit

from avesa_dagster.catalog.http import Basic, ClientCredentials, HeaderKey, HttpService, QueryKey
from avesa_dagster.catalog.http import filled as _filled
from avesa_dagster.errors import AvesaError, CredentialsRefused, RetriableError, Where
from avesa_dagster.sources.declared import body
from avesa_dagster.sources.declared.credentials import Credentials
from avesa_dagster.sources.http import Answer, Call, Dialect, Http
from avesa_dagster.sources.oauth import Token, Tokens, form
from avesa_dagster.sources.records import InvalidPage


class _Unlogged(logging.Filter):
    """Takes keys out of the addresses that urllib3 writes down while somebody debugs."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: set[str] = set()

    def add(self, key: str) -> None:
        self._keys |= {key, quote(key, safe=""), quote_plus(key)}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if any(key in text for key in self._keys):
            for key in sorted(self._keys, key=len, reverse=True):
                text = text.replace(key, "***")
            record.msg, record.args = text, ()
        return True


_unlogged = _Unlogged()
logging.getLogger("urllib3.connectionpool").addFilter(_unlogged)


class Speech(Dialect):
    """Headers and keys as the service file says; one for all threads of a connection."""

    def __init__(self, http: HttpService, credentials: Credentials, where: Where) -> None:
        self._http = http
        self._credentials = credentials
        self._where = where
        self.permission = http.permission
        self.address = http.address
        headers = {name: self._text(template) for name, template in http.headers.items()}
        shown: list[str] = []
        match http.auth:
            case Basic(username=user, password=password):
                pair = _pair(self._text(user), self._text(password))
                headers["Authorization"] = f"Basic {pair}"
                shown.append(pair)
            case HeaderKey(header=name, value=value):
                headers[name] = self._text(value)
            case QueryKey(value=value):
                _unlogged.add(self._text(value))
            case ClientCredentials(client_id=user, client_secret=password):
                shown.append(_pair(self._text(user), self._text(password)))
        super().__init__(headers, (*credentials.secrets, *shown))
        oauth = isinstance(http.auth, ClientCredentials)
        self._tokens = Tokens(self._ask) if oauth else None

    def headers(self, http: Http) -> Mapping[str, str]:
        said = super().headers(http)
        if self._tokens is None:
            return said
        return {**said, "Authorization": f"Bearer {self._tokens.get(http)}"}

    def located(self, http: Http, url: str) -> str:
        """The address with the key, where that is a parameter; a link may hold one already."""
        if not isinstance(self._http.auth, QueryKey):
            return url
        parts = urlsplit(url)
        name = self._http.auth.param
        query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != name]
        query.append((name, self._text(self._http.auth.value)))
        return urlunsplit(parts._replace(query=urlencode(query)))

    def secrets(self) -> tuple[str, ...]:
        return (*super().secrets(), *(self._tokens.known if self._tokens else ()))

    def renewed(self, http: Http, sent: Mapping[str, str]) -> bool:
        if self._tokens is None:
            return False
        return self._tokens.renewed(http, sent["Authorization"].removeprefix("Bearer "))

    def trouble(self, call: Call, answer: Answer) -> AvesaError | None:
        host = urlsplit(call.url).netloc
        if call.url == self._token_url and answer.status in (400, 401, 403):
            return CredentialsRefused(
                f"{host} gives no token for these credentials ({answer.status})",
                where=self._where,
                hint="connect again with valid ones",
            )
        if answer.status == 200 and (said := self._error(answer.body)):
            return RetriableError(
                f"{host} answered with an error inside of a 200: {self.hidden(said)[:200]}"
            )
        return None

    def message(self, said: bytes) -> str:
        return self._error(said) or super().message(said)

    @property
    def _token_url(self) -> str | None:
        auth = self._http.auth
        path = auth.path if isinstance(auth, ClientCredentials) else None
        return None if path is None else f"{self._credentials.address}{path}"

    def _error(self, said: bytes) -> str:
        if self._http.error is None:
            return ""
        try:
            raw = body.at(said, self._http.error)
        except InvalidPage:
            return ""
        return body.text(raw) if raw is not None and body.says_yes(raw) else ""

    def _text(self, template: str) -> str:
        text = _filled(template, self._credentials.texts)
        assert text is not None  # the service file was checked: these are its credentials
        return text

    def _ask(self, http: Http) -> Token:
        auth = self._http.auth
        assert isinstance(auth, ClientCredentials)
        fields = {"grant_type": "client_credentials"}
        if auth.scope:
            fields["scope"] = self._text(auth.scope)
        user, password = self._text(auth.client_id), self._text(auth.client_secret)
        if auth.sent == "form":
            fields |= {"client_id": user, "client_secret": password}
        call = form(self._token_url or "", fields)
        if auth.sent == "basic":
            basic = {"Authorization": f"Basic {_pair(user, password)}"}
            call = Call(
                call.url,
                method=call.method,
                headers={**call.headers, **basic},
                body=call.body,
                authenticated=False,
            )
        return http.ask(call, _token)


def _pair(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _token(answer: Answer) -> Token:
    members = body.members(answer.body)
    access = body.text(members.get("access_token", b"null"))
    seconds = body.text(members.get("expires_in", b"null"))
    if not access:
        raise InvalidPage("the answer is no token")
    try:
        return Token(access, float(seconds) if seconds else None)
    except ValueError:
        raise InvalidPage("the token's expires_in is no number") from None
