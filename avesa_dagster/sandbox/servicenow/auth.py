"""Who calls: basic authentication, or a bearer token of `/oauth_token.do`.

Sources: fact page, Auth [SND] (KB0791140). A client that asks again while its token lives gets the
same one, with less time left.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.wire import Request, Response

ACCESS_SECONDS = 1800.0
REFRESH_SECONDS = 8_640_000.0
NO_PASSWORD_GRANT = "glide.oauth.inbound.ropc.grant_type.disabled"
CLIENT_CREDENTIALS = "glide.oauth.inbound.client.credential.grant_type.enabled"
_FORM = "application/x-www-form-urlencoded"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True)
class Keys:
    """What an instance's integration user and OAuth client authenticate with."""

    username: str
    password: str
    client_id: str
    client_secret: str

    @classmethod
    def of(cls, company_id: str, password: str | None = None) -> Keys:
        """
        Args:
            password: What the user's password is made from, if not from the company's id.
        """
        return cls(
            f"avesa.{company_id}",
            _digest(password or f"password:{company_id}", 20),
            _digest(f"client:{company_id}", 32),
            _digest(f"secret:{company_id}", 24),
        )


@dataclass(slots=True)
class Token:
    """An access token and when it ends; `grant` is what it was first asked for with."""

    text: str
    grant: str
    ends: float


class Tokens:
    """The OAuth state of one instance. Instants are the simulator's seconds."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.lifetime = ACCESS_SECONDS
        self.refresh_lifetime = REFRESH_SECONDS
        self._access: dict[str, Token] = {}
        self._refresh: Token | None = None

    def expire(self, *, refresh: bool = False) -> None:
        """End every access token now, and with `refresh` the refresh token too."""
        self._access.clear()
        if refresh:
            self._refresh = None

    def valid(self, text: str, now: float) -> bool:
        """Whether an access token is good."""
        return any(
            token.ends > now and secrets.compare_digest(token.text.encode(), text.encode())
            for token in self._access.values()
        )

    def answer(self, request: Request, properties: dict[str, str], now: float) -> Response:
        """Answer `POST /oauth_token.do`."""
        if request.method != "POST":
            return _refused("access_denied", 405)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            return _refused("access_denied")
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        if not self._client(form):
            return _refused("access_denied")
        match form.get("grant_type"):
            case "password":
                if properties[NO_PASSWORD_GRANT] == "true":
                    return _refused("unauthorized_client")
                if not self._user(form):
                    return _refused("access_denied")
                return self._given("password", now)
            case "client_credentials":
                if properties[CLIENT_CREDENTIALS] != "true":
                    return _refused("unauthorized_client")
                return self._given("client_credentials", now)
            case "refresh_token":
                return self._refreshed(form.get("refresh_token", ""), now)
        return _refused("server_error")

    def _client(self, form: dict[str, str]) -> bool:
        given = f"{form.get('client_id', '')} {form.get('client_secret', '')}"
        mine = f"{self._keys.client_id} {self._keys.client_secret}"
        return secrets.compare_digest(given.encode(), mine.encode())

    def _user(self, form: dict[str, str]) -> bool:
        given = f"{form.get('username', '')} {form.get('password', '')}"
        mine = f"{self._keys.username} {self._keys.password}"
        return secrets.compare_digest(given.encode(), mine.encode())

    def _refreshed(self, given: str, now: float) -> Response:
        known = self._refresh
        if known is None or known.ends <= now:
            return _refused("invalid_grant")
        if not secrets.compare_digest(known.text.encode(), given.encode()):
            return _refused("invalid_grant")
        self._access.pop("password", None)
        return self._given("password", now)

    def _given(self, grant: str, now: float) -> Response:
        token = self._access.get(grant)
        if token is None or token.ends <= now:
            token = self._access[grant] = Token(secrets.token_hex(32), grant, now + self.lifetime)
        body: dict[str, object] = {
            "access_token": token.text,
            "scope": "useraccount",
            "token_type": "Bearer",
            "expires_in": max(0, int(token.ends - now)),
        }
        if grant == "password":
            if self._refresh is None or self._refresh.ends <= now:
                ends = now + self.refresh_lifetime
                self._refresh = Token(secrets.token_hex(32), "refresh", ends)
            body["refresh_token"] = self._refresh.text
        return json_response(200, body)


def _refused(code: str, status: int = 401) -> Response:
    return json_response(status, {"error": code, "error_description": "access_denied"})


def basic(request: Request) -> tuple[str, str] | None:
    """(username, password) of the Authorization header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        text = base64.b64decode(token, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if scheme.lower() == "basic" and colon else None


def authenticated(request: Request, good: Sequence[Keys], tokens: Tokens, now: float) -> bool:
    """Whether a request carries the instance's own credentials or a token that is good."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return tokens.valid(text.strip(), now)
    given = basic(request)
    if given is None:
        return False
    said = " ".join(given).encode()
    pairs = [f"{keys.username} {keys.password}".encode() for keys in good]
    return any(secrets.compare_digest(said, pair) for pair in pairs)
