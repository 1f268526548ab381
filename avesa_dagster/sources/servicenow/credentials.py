"""What a person gives to connect ServiceNow."""

from __future__ import annotations

import base64
from enum import StrEnum

from pydantic import SecretStr, model_validator

from avesa_dagster.sources.credentials import Address, ServiceCredentials


class Grant(StrEnum):
    """How a request is authorised."""

    BASIC = "basic"
    CLIENT_CREDENTIALS = "client_credentials"
    PASSWORD = "password"
    REFRESH_TOKEN = "refresh_token"


_WANTED = {
    Grant.BASIC: ("username", "password"),
    Grant.CLIENT_CREDENTIALS: ("client_id", "client_secret"),
    Grant.PASSWORD: ("username", "password", "client_id", "client_secret"),
    Grant.REFRESH_TOKEN: ("client_id", "client_secret", "refresh_token"),
}
_EVERY = ("username", "password", "client_id", "client_secret", "refresh_token")


class Credentials(ServiceCredentials):
    """A ServiceNow user, an OAuth application, or both.

    Attributes:
        instance_url: `https://yourcompany.service-now.com`.
        session: The access token that a process had last, stored by `refreshing`.
        grant: Overrides what the fields that are given say.
    """

    instance_url: Address
    username: str | None = None
    password: SecretStr | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None
    refresh_token: SecretStr | None = None
    session: SecretStr | None = None
    grant: Grant | None = None

    @classmethod
    def needs(cls) -> str:
        return (
            "ServiceNow needs instance_url and username, password (basic), or client_id, "
            "client_secret (client credentials), or all four (password grant), or client_id, "
            "client_secret, refresh_token; all texts. The address is like "
            "https://yourcompany.service-now.com"
        )

    @model_validator(mode="after")
    def _complete(self) -> Credentials:
        way = self.way()
        given = [name for name in _EVERY if self._has(name)]
        missing = [name for name in _WANTED[way] if name not in given]
        if missing:
            raise ValueError(f"for the grant {way.value}, {', '.join(missing)} is missing")
        spare = [name for name in given if name not in _WANTED[way]]
        if spare and self.grant is None:
            raise ValueError(
                f"{', '.join(spare)} is not for the grant {way.value}: leave it out, or say which "
                'one is meant with "grant"'
            )
        if way is Grant.BASIC and ":" in (self.username or ""):
            raise ValueError("a username with a colon cannot be told from its password")
        return self

    def _has(self, name: str) -> bool:
        held = getattr(self, name)
        return bool(held.get_secret_value() if isinstance(held, SecretStr) else held)

    def way(self) -> Grant:
        """The grant that is named, or else the one that the fields are for."""
        if self.grant is not None:
            return self.grant
        user, application = self._has("username"), self._has("client_id")
        if application and self._has("refresh_token"):
            return Grant.REFRESH_TOKEN
        if user and application:
            return Grant.PASSWORD
        return Grant.CLIENT_CREDENTIALS if application else Grant.BASIC

    def basic(self) -> str:
        """The Authorization header of basic authentication."""
        return f"Basic {self._pair()}"

    def form(self) -> dict[str, str]:
        """What a request for a token says."""
        fields = {
            "grant_type": self.way().value,
            "client_id": self.client_id or "",
            "client_secret": shown(self.client_secret),
        }
        if self.way() is Grant.PASSWORD:
            fields |= {"username": self.username or "", "password": shown(self.password)}
        if self.way() is Grant.REFRESH_TOKEN:
            fields["refresh_token"] = shown(self.refresh_token)
        return fields

    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be shown."""
        held = (self.password, self.client_secret, self.refresh_token, self.session)
        pair = (self._pair(),) if self.password else ()
        return (*pair, *(shown(secret) for secret in held if secret))

    def _pair(self) -> str:
        return base64.b64encode(f"{self.username}:{shown(self.password)}".encode()).decode()


def shown(secret: SecretStr | None) -> str:
    """The text itself; empty for none."""
    return secret.get_secret_value() if secret else ""
