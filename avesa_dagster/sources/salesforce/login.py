"""The requests for an access token, one for each grant, and what their answers say."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from html import unescape
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from avesa_dagster.sources.http import Answer, Call
from avesa_dagster.sources.oauth import form
from avesa_dagster.sources.records import InvalidPage, parsed
from avesa_dagster.sources.salesforce.credentials import Credentials, Grant, shown

VERSION = "60.0"
"""Of the API, in every path: a job's results are only given to the version that made it."""
TOKENS = "/services/oauth2/token"
SOAP = f"/services/Soap/u/{VERSION}"
_JWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_JWT_SECONDS = 180
_PRODUCTION, _SANDBOXES = "https://login.salesforce.com", "https://test.salesforce.com"
_OWN_HOSTS = (".salesforce.com", ".force.com", ".salesforce.mil", ".sfcrmproducts.cn")
_ENVELOPE = """<?xml version="1.0" encoding="utf-8"?>
<env:Envelope xmlns:env="http://schemas.xmlsoap.org/soap/envelope/"><env:Body>\
<login xmlns="urn:partner.soap.sforce.com"><username>{username}</username>\
<password>{password}</password></login></env:Body></env:Envelope>"""


@dataclass(frozen=True, slots=True)
class Session:
    """What a login gives.

    Attributes:
        instance: The address for every call with this token, without a path.
        refresh_token: The next one, where the service gives another with each use.
    """

    access: str
    instance: str
    refresh_token: str | None = None


def request(credentials: Credentials, now: datetime) -> Call:
    """The request for a token."""
    way = credentials.way()
    if way is Grant.PASSWORD and credentials.client_id is None:
        return _soap(credentials)
    match way:
        case Grant.CLIENT_CREDENTIALS:
            fields = _application(credentials)
        case Grant.REFRESH_TOKEN:
            fields = _refresh(credentials)
        case Grant.PASSWORD:
            fields = _password(credentials)
        case Grant.JWT_BEARER:
            fields = _jwt(credentials, now)
    return form(f"{credentials.instance_url}{TOKENS}", fields)


def session(credentials: Credentials, answer: Answer) -> Session:
    """What the answer says.

    Raises:
        InvalidPage: It is no token, or is for an address that credentials must not be sent to.
    """
    if answer.body.lstrip().startswith(b"<"):
        said: Mapping[str, object] = _from_soap(answer.body)
    else:
        document = parsed(answer.body)
        said = document if isinstance(document, dict) else {}
    access, instance = said.get("access_token"), said.get("instance_url")
    if not isinstance(access, str) or not access or not isinstance(instance, str):
        raise InvalidPage("the answer is no token")
    fresh = said.get("refresh_token")
    return Session(
        access,
        _own(instance, credentials),
        fresh if isinstance(fresh, str) and fresh else None,
    )


def _own(instance: str, credentials: Credentials) -> str:
    parts = urlsplit(instance)
    given = urlsplit(credentials.instance_url)
    host = parts.hostname or ""
    if parts.netloc == given.netloc and parts.scheme == given.scheme:
        return f"{parts.scheme}://{parts.netloc}"
    loopback = given.scheme == "http"  # which the credentials only take for this machine
    theirs = parts.scheme == "https" and host.endswith(_OWN_HOSTS)
    if theirs or (loopback and host in ("127.0.0.1", "localhost", "::1")):
        return f"{parts.scheme}://{parts.netloc}"
    raise InvalidPage(f"the token is for {parts.netloc or 'no address'}, no host of Salesforce")


def _application(credentials: Credentials) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_id": credentials.client_id or "",
        "client_secret": shown(credentials.client_secret),
    }


def _refresh(credentials: Credentials) -> dict[str, str]:
    fields = {
        "grant_type": "refresh_token",
        "client_id": credentials.client_id or "",
        "refresh_token": shown(credentials.refresh_token),
    }
    return fields | _secret(credentials)


def _password(credentials: Credentials) -> dict[str, str]:
    fields = {
        "grant_type": "password",
        "client_id": credentials.client_id or "",
        "username": credentials.username or "",
        "password": shown(credentials.password) + shown(credentials.security_token),
    }
    return fields | _secret(credentials)


def _secret(credentials: Credentials) -> dict[str, str]:
    held = credentials.client_secret
    return {"client_secret": shown(held)} if held else {}


def _jwt(credentials: Credentials, now: datetime) -> dict[str, str]:
    usual = _SANDBOXES if credentials.is_sandbox else _PRODUCTION
    claims = {
        "iss": credentials.client_id,
        "sub": credentials.username,
        "aud": credentials.audience or usual,
        "exp": int(now.timestamp()) + _JWT_SECONDS,
    }
    signed = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(claims)}"
    signature = credentials.signing_key().sign(signed.encode(), PKCS1v15(), SHA256())
    return {"grant_type": _JWT, "assertion": f"{signed}.{_base64(signature)}"}


def _part(value: Mapping[str, object]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _soap(credentials: Credentials) -> Call:
    """The login of the SOAP API: the only one that needs no app."""
    password = shown(credentials.password) + shown(credentials.security_token)
    body = _ENVELOPE.format(username=escape(credentials.username or ""), password=escape(password))
    return Call(
        f"{credentials.instance_url}{SOAP}",
        method="POST",
        headers={"Content-Type": "text/xml; charset=UTF-8", "SOAPAction": "login"},
        body=body.encode(),
        authenticated=False,
    )


def _from_soap(body: bytes) -> dict[str, object]:
    text = body.decode("utf-8", "replace")
    access, server = element(text, "sessionId"), urlsplit(element(text, "serverUrl"))
    return {"access_token": access, "instance_url": f"{server.scheme}://{server.netloc}"}


def element(text: str, name: str) -> str:
    """The text of the first element of this name, whatever its prefix; empty without one."""
    found = re.search(rf"<(?:\w+:)?{name}(?:\s[^>]*)?>([^<]*)<", text)
    return unescape(found[1]).strip() if found else ""
