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


class Credentials(ServiceCredentials):
    """A ServiceNow user, an OAuth application, or both.

    Attributes:
        instance_url: `https://yourcompany.service-now.com`.
        grant: Overrides what the fields that are given say.
    """

    instance_url: Address
    username: str | None = None
    password: SecretStr | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None
    refresh_token: SecretStr | None = None
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
        wanted = {
            Grant.BASIC: ("username", "password"),
            Grant.CLIENT_CREDENTIALS: ("client_id", "client_secret"),
            Grant.PASSWORD: ("username", "password", "client_id", "client_secret"),
            Grant.REFRESH_TOKEN: ("client_id", "client_secret", "refresh_token"),
        }[self.way()]
        missing = [name for name in wanted if not getattr(self, name)]
        if missing:
            raise ValueError(f"for the grant {self.way().value}, {', '.join(missing)} is missing")
        return self

    def way(self) -> Grant:
        """The grant that is named, or else the one that the fields are for."""
        if self.grant is not None:
            return self.grant
        user, application = self.username is not None, self.client_id is not None
        if application and self.refresh_token is not None:
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
            "client_secret": _shown(self.client_secret),
        }
        if self.way() is Grant.PASSWORD:
            fields |= {"username": self.username or "", "password": _shown(self.password)}
        if self.way() is Grant.REFRESH_TOKEN:
            fields["refresh_token"] = _shown(self.refresh_token)
        return fields

    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be shown."""
        held = (self.password, self.client_secret, self.refresh_token)
        pair = (self._pair(),) if self.password else ()
        return (*pair, *(_shown(secret) for secret in held if secret))

    def _pair(self) -> str:
        return base64.b64encode(f"{self.username}:{_shown(self.password)}".encode()).decode()


def _shown(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""
