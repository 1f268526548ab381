"""What a person gives to connect Salesforce."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import AfterValidator, BeforeValidator, SecretStr, model_validator

from avesa_dagster.sources.credentials import Address, ServiceCredentials

_SHARED_LOGINS = ("login.salesforce.com", "test.salesforce.com")
_PAGES = (".lightning.force.com", ".lightning.com")
_SANDBOX = re.compile(r"test\.salesforce\.com|[^.]+--[^.]+\..*|.*\.sandbox\..*")


class Grant(StrEnum):
    """How an access token is asked for."""

    CLIENT_CREDENTIALS = "client_credentials"
    JWT_BEARER = "jwt_bearer"
    REFRESH_TOKEN = "refresh_token"
    PASSWORD = "password"


def _api_address(value: str) -> str:
    parts = urlsplit(value)
    if (parts.hostname or "").endswith(_PAGES):
        raise ValueError(
            "is the address of the web pages; the API's is like https://yourcompany.my."
            "salesforce.com (Setup, My Domain)"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _key(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    # In a JSON file of one line, the line ends of the key often arrive escaped twice.
    text = value.get_secret_value().replace("\\n", "\n").strip() + "\n"
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("is no private key in PEM without a passphrase") from None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("is no RSA key, which this grant needs")
    return SecretStr(text)


def _given(value: object) -> object:
    """Nothing for an empty text: a field that is asked for and left empty is not given."""
    return None if value == "" else value


_Text = Annotated[str | None, BeforeValidator(_given)]
_Secret = Annotated[SecretStr | None, BeforeValidator(_given)]


class Credentials(ServiceCredentials):
    """A Salesforce app, a user, or both.

    Attributes:
        instance_url: The org's My Domain, `https://yourcompany.my.salesforce.com`; for grants with
            a user, `https://login.salesforce.com` or, for a sandbox, `https://test.salesforce.com`
            are taken too.
        client_id: The consumer key of the connected app.
        client_secret: Its consumer secret.
        private_key: PEM of the RSA key whose certificate the app has.
        security_token: What is appended to the password from an unknown network.
        audience: Overrides whom a JWT is for: the production's or the sandboxes' login.
        session: The access token that a process had last, stored by `refreshing`.
        grant: Overrides what the fields that are given say.
    """

    instance_url: Annotated[Address, AfterValidator(_api_address)]
    client_id: _Text = None
    client_secret: _Secret = None
    refresh_token: _Secret = None
    session: _Secret = None
    username: _Text = None
    private_key: Annotated[_Secret, AfterValidator(_key)] = None
    password: _Secret = None
    security_token: _Secret = None
    audience: Annotated[Address | None, BeforeValidator(_given)] = None
    grant: Annotated[Grant | None, BeforeValidator(_given)] = None

    @classmethod
    def needs(cls) -> str:
        return (
            "Salesforce needs instance_url and client_id, client_secret (client credentials), or "
            "client_id, refresh_token (client_secret if the app wants it), or client_id, username, "
            "private_key (JWT bearer), or username, password, security_token (client_id, "
            "client_secret to log in through an app); all texts. The address is like "
            "https://yourcompany.my.salesforce.com"
        )

    @model_validator(mode="after")
    def _complete(self) -> Credentials:
        way = self.way()
        wanted = {
            Grant.CLIENT_CREDENTIALS: ("client_id", "client_secret"),
            Grant.JWT_BEARER: ("client_id", "username", "private_key"),
            Grant.REFRESH_TOKEN: ("client_id", "refresh_token"),
            Grant.PASSWORD: ("username", "password"),
        }[way]
        missing = [name for name in wanted if not getattr(self, name)]
        if missing:
            raise ValueError(f"for the grant {way.value}, {', '.join(missing)} is missing")
        if way is Grant.CLIENT_CREDENTIALS and self.host in _SHARED_LOGINS:
            raise ValueError(
                f"for the grant {way.value}, instance_url must be the org's own address (My "
                f"Domain, like https://yourcompany.my.salesforce.com): {self.host} gives no token "
                "for it"
            )
        return self

    @property
    def host(self) -> str:
        return urlsplit(self.instance_url).hostname or ""

    @property
    def is_sandbox(self) -> bool:
        """Whether the address is that of a sandbox, by its form."""
        return _SANDBOX.fullmatch(self.host) is not None

    def way(self) -> Grant:
        """The grant that is named, or else the one that the fields are for."""
        if self.grant is not None:
            return self.grant
        if self.private_key is not None:
            return Grant.JWT_BEARER
        if self.refresh_token is not None:
            return Grant.REFRESH_TOKEN
        return Grant.PASSWORD if self.password is not None else Grant.CLIENT_CREDENTIALS

    def signing_key(self) -> RSAPrivateKey:
        """The key that signs a JWT; only for that grant."""
        key = load_pem_private_key(shown(self.private_key).encode(), password=None)
        assert isinstance(key, RSAPrivateKey)
        return key

    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be shown."""
        names = (
            "client_secret", "refresh_token", "session", "private_key", "password",
            "security_token",
        )  # fmt: skip
        return tuple(shown(getattr(self, name)) for name in names if getattr(self, name))


def shown(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""
