"""Getting a session: the token endpoint in its four grants, and the old SOAP login.

`client_credentials` works on My Domain only [SS]; a JWT's audience must be the login host of the
org's kind; a refresh token that is exchanged under rotation dies at once, and the sixth grant of a
user to an app kills the oldest. Answers have no `expires_in`. A production org's keys are unknown
on the sandboxes' login host, and the other way round.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape, unescape

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.salesforce import rsa
from avesa_dagster.sandbox.salesforce.ids import lengthen
from avesa_dagster.sandbox.salesforce.org import Org
from avesa_dagster.sandbox.salesforce.problems import OAuthError
from avesa_dagster.sandbox.wire import Request, Response

SESSION_SECONDS = 7200.0
GRANTS = ("client_credentials", "jwt", "refresh_token", "password")
_MOST_GRANTS = 5
_LONGEST_ASSERTION_SECONDS = 300
_JWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
AUDIENCES = {False: "https://login.salesforce.com", True: "https://test.salesforce.com"}
"""Whether an org is a sandbox to its login host."""
_EXPIRED = "expired access/refresh token"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass
class App:
    """The connected app of an org, and the user that it runs as."""

    org: Org
    rotation: bool = True
    session_seconds: float = SESSION_SECONDS
    refresh_tokens: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _key: rsa.Key | None = None

    @property
    def client_id(self) -> str:
        return "3MVG9" + _digest(f"client:{self.org.company_id}", 60)

    @property
    def client_secret(self) -> str:
        return self.client_secrets[0]

    @property
    def client_secrets(self) -> list[str]:
        """Those that are good, the newest first."""
        seeds = self.org.rotation.seeds(f"secret:{self.org.company_id}")
        return [_digest(seed, 64).upper() for seed in seeds]

    @property
    def org_id(self) -> str:
        number = int(_digest(f"org:{self.org.company_id}", 8), 16) % 10**7
        return lengthen(f"00D5g0000{number:06d}"[:15])

    @property
    def username(self) -> str:
        name = f"integration@{self.org.company_id.replace('_', '-')}.example"
        return f"{name}.sandbox" if self.org.sandbox else name

    @property
    def password(self) -> str:
        return _digest(f"password:{self.org.company_id}", 20)

    @property
    def security_token(self) -> str:
        return _digest(f"token:{self.org.company_id}", 24)

    @property
    def key(self) -> rsa.Key:
        if self._key is None:
            self._key = rsa.generate(Random(f"key:{self.org.company_id}"))
        return self._key

    def new_refresh_token(self) -> str:
        """Grant the app once more; the oldest of more than five grants dies."""
        token = "5Aep861" + secrets.token_urlsafe(48)
        self.refresh_tokens[token] = None
        while len(self.refresh_tokens) > _MOST_GRANTS:
            self.refresh_tokens.popitem(last=False)
        return token

    def credentials(self, instance_url: str, grant: str) -> dict[str, str]:
        """What the owner of the org would type into a connector, for one grant.

        Raises:
            ValueError: there is no such grant.
        """
        app = {"instance_url": instance_url, "client_id": self.client_id}
        user = {"username": self.username}
        secret = {"client_secret": self.client_secret}
        match grant:
            case "client_credentials":
                return app | secret
            case "jwt":
                return app | user | {"private_key": rsa.to_pem(self.key)}
            case "refresh_token":
                return app | secret | {"refresh_token": self.new_refresh_token()}
            case "password":
                words = {"password": self.password, "security_token": self.security_token}
                return app | secret | user | words
        raise ValueError(f"no grant {grant!r}; there are {GRANTS}")


@dataclass(slots=True)
class Session:
    """An access token's. `ends` is by the simulator's clock."""

    token: str
    company_id: str
    ends: float


class Sessions:
    """The access tokens of a site. Safe to use from every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def open(self, app: App, now: float) -> Session:
        token = f"{app.org_id[:15]}!AQ{secrets.token_urlsafe(48).replace('-', '.')}"
        session = Session(token, app.org.company_id, now + app.session_seconds)
        with self._lock:
            self._sessions[token] = session
        return session

    def find(self, token: str) -> Session | None:
        """The session of a token, over or not."""
        with self._lock:
            return self._sessions.get(token)

    def end_all(self, company_id: str | None, now: float) -> int:
        """End the sessions of an org, or all; returns how many were open."""
        ended = 0
        with self._lock:
            for session in self._sessions.values():
                if company_id in (None, session.company_id) and session.ends > now:
                    session.ends, ended = now, ended + 1
        return ended

    def clear(self) -> None:
        with self._lock:
            self._sessions.clear()


def form_of(request: Request) -> dict[str, str]:
    """The parameters of a token request, with the client of a Basic header."""
    form = dict(request.query)
    form |= dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            text = base64.b64decode(token, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return form
        form["client_id"], _, form["client_secret"] = text.partition(":")
    if form.get("grant_type") == _JWT and "client_id" not in form:
        try:
            form["client_id"] = str(_read_jwt(form.get("assertion", ""))[1].get("iss", ""))
        except OAuthError:
            return form
    return form


def grant(
    request: Request, form: dict[str, str], app: App | None, host: str, now: float
) -> dict[str, str]:
    """Check a token request.

    Args:
        app: that of the client id.
        host: `login`, `test`, or `instance` for My Domain.

    Returns:
        What the answer has besides the session: a new refresh token, or nothing.

    Raises:
        OAuthError: it is refused.
    """
    if request.method != "POST":
        raise OAuthError("invalid_request", "must use HTTP POST")
    kind = form.get("grant_type", "")
    if app is None or host not in ("instance", "test" if app.org.sandbox else "login"):
        raise OAuthError("invalid_client_id", "client identifier invalid")
    if app.org.revoked:
        raise OAuthError("invalid_grant", "inactive user")
    match kind:
        case "client_credentials":
            if host != "instance":
                raise OAuthError("invalid_grant", "request not supported on this domain")
            _check_secret(app, form, required=True)
        case "password":
            _check_secret(app, form, required=True)
            expected = app.password + app.security_token
            right = form.get("username") == app.username
            if not right or not _same(form.get("password", ""), expected):
                raise OAuthError("invalid_grant", "authentication failure")
        case "refresh_token":
            _check_secret(app, form, required=False)
            return _refresh(app, form.get("refresh_token", ""))
        case _ if kind == _JWT:
            _check_assertion(app, form.get("assertion", ""), now)
        case _:
            raise OAuthError("unsupported_grant_type", "grant type not supported")
    return {}


def token_answer(
    app: App, session: Session, more: dict[str, str], instance_url: str, host_url: str, now: float
) -> Response:
    """The answer of the token endpoint."""
    identity = f"{host_url}/id/{app.org_id}/{app.org.known_ids('User')[0]}"
    issued = str(int(now * 1000))
    signed = hmac.new(app.client_secret.encode(), (identity + issued).encode(), hashlib.sha256)
    body: dict[str, Any] = {
        "access_token": session.token,
        "signature": base64.b64encode(signed.digest()).decode(),
        "scope": "api refresh_token",
        "instance_url": instance_url,
        "id": identity,
        "token_type": "Bearer",
        "issued_at": issued,
    }
    return json_response(200, body | more)


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(), expected.encode())


def _check_secret(app: App, form: dict[str, str], *, required: bool) -> None:
    given = form.get("client_secret")
    if given is None and not required:
        return
    if not any(_same(given or "", good) for good in app.client_secrets):
        raise OAuthError("invalid_client", "invalid client credentials")


def _refresh(app: App, token: str) -> dict[str, str]:
    with app.org.lock:
        if token not in app.refresh_tokens:
            raise OAuthError("invalid_grant", _EXPIRED)
        if not app.rotation:
            return {}
        del app.refresh_tokens[token]
        return {"refresh_token": app.new_refresh_token()}


def _read_jwt(text: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """(header, claims, what was signed, signature)."""
    parts = text.split(".")
    try:
        head, claims, signature = (
            base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts
        )
        read = json.loads(head), json.loads(claims)
    except ValueError:
        raise OAuthError("invalid_grant", "invalid assertion") from None
    if not all(isinstance(one, dict) for one in read):
        raise OAuthError("invalid_grant", "invalid assertion")
    return *read, ".".join(parts[:2]).encode(), signature


def _check_assertion(app: App, text: str, now: float) -> None:
    head, claims, signed, signature = _read_jwt(text)
    if head.get("alg") != "RS256" or not rsa.verify(app.key, signed, signature):
        raise OAuthError("invalid_grant", "invalid assertion")
    audience = claims.get("aud")
    if AUDIENCES[app.org.sandbox] not in (audience if isinstance(audience, list) else [audience]):
        raise OAuthError("invalid_grant", "audience is invalid")
    ends = claims.get("exp")
    clocks = (now, time.time())  # a connector's own clock is the real one
    if not isinstance(ends, (int, float)):
        raise OAuthError("invalid_grant", "assertion has no exp")
    if not any(clock < ends <= clock + _LONGEST_ASSERTION_SECONDS for clock in clocks):
        late = ends > max(clocks)
        why = "expires too far in the future" if late else "is expired"
        raise OAuthError("invalid_grant", f"assertion {why}")
    if claims.get("sub") != app.username:
        raise OAuthError("invalid_grant", "user hasn't approved this consumer")


# ---- SOAP


def soap_credentials(body: bytes) -> tuple[str, str]:
    """(username, password with its security token) of a SOAP login."""
    text = body.decode("utf-8", "replace")
    found = [re.search(rf"<(?:\w+:)?{name}>(.*?)</", text) for name in ("username", "password")]
    user, password = ("" if one is None else unescape(one[1]) for one in found)
    return user, password


def soap_login_ok(app: App | None, password: str, host: str) -> bool:
    if app is None or app.org.revoked:
        return False
    right_host = host in ("instance", "test" if app.org.sandbox else "login")
    return right_host and _same(password, app.password + app.security_token)


def soap_answer(app: App | None, session: Session | None, instance_url: str) -> Response:
    """What the SOAP login says; no session is INVALID_LOGIN."""
    if app is None or session is None:
        fault = (
            "<soapenv:Fault><faultcode>INVALID_LOGIN</faultcode><faultstring>INVALID_LOGIN: "
            "Invalid username, password, security token; or user locked out.</faultstring>"
            "<detail><sf:LoginFault><sf:exceptionCode>INVALID_LOGIN</sf:exceptionCode>"
            "<sf:exceptionMessage>Invalid username, password, security token; or user locked out."
            "</sf:exceptionMessage></sf:LoginFault></detail></soapenv:Fault>"
        )
        return _envelope(500, fault)
    server = escape(f"{instance_url}/services/Soap/u/60.0/{app.org_id}")
    return _envelope(
        200,
        f"<loginResponse><result><serverUrl>{server}</serverUrl><sessionId>"
        f"{escape(session.token)}</sessionId></result></loginResponse>",
    )


def _envelope(status: int, inside: str) -> Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope '
        'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:sf="urn:fault.partner.soap.sforce.com">'
        f"<soapenv:Body>{inside}</soapenv:Body></soapenv:Envelope>"
    )
    return Response(status, text.encode(), [("Content-Type", "text/xml;charset=UTF-8")])
