"""What a person gives to connect ConnectWise."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

from avesa_dagster.errors import ConfigurationError, Where


class Credentials(BaseModel):
    """A ConnectWise API member.

    Attributes:
        api_base_url: The site, `https://na.myconnectwise.net`; the API's own host and path
            (`https://api-na.myconnectwise.net/v4_6_release/apis/3.0`) are taken too.
        company_id: The company that one types at login.
        client_id: The GUID of the integration, from the vendor's developer site.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    api_base_url: str
    company_id: str = Field(min_length=1)
    public_key: SecretStr = Field(min_length=1)
    private_key: SecretStr = Field(min_length=1)
    client_id: SecretStr = Field(min_length=1)

    @field_validator("api_base_url")
    @classmethod
    def _safe_address(cls, value: str) -> str:
        parts = urlsplit(value if "://" in value else f"https://{value}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no address like https://na.myconnectwise.net")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold neither a user, a query nor a fragment")
        if parts.scheme == "http" and not _loopback(parts.hostname):
            raise ValueError("must begin with https:// (plain http only reaches this machine)")
        return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")

    @classmethod
    def parse(cls, values: Mapping[str, object], where: Where) -> Credentials:
        """Checks the values.

        Raises:
            ConfigurationError: Names each wrong or missing field, and never shows a value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {_without_value(item['msg'], item['type'])}"
                for item in error.errors(include_url=False, include_input=False)
            )
            raise ConfigurationError(
                f"the credentials are not usable: {wrong}",
                where=where,
                hint="ConnectWise needs api_base_url, company_id, public_key, private_key and "
                "client_id, all texts",
            ) from None

    def headers(self) -> dict[str, str]:
        """The headers of an authenticated request."""
        return {
            "Authorization": f"Basic {self._token()}",
            "clientId": self.client_id.get_secret_value(),
            "Accept": "application/vnd.connectwise.com+json; version=2025.1",
        }

    def secrets(self) -> tuple[str, ...]:
        """Every text that must never be shown."""
        return (
            self._token(),
            self.private_key.get_secret_value(),
            self.public_key.get_secret_value(),
            self.client_id.get_secret_value(),
        )

    def _token(self) -> str:
        pair = (
            f"{self.company_id}+{self.public_key.get_secret_value()}"
            f":{self.private_key.get_secret_value()}"
        )
        return base64.b64encode(pair.encode()).decode()


def _without_value(message: str, kind: str) -> str:
    if kind == "extra_forbidden":
        return "is not a field of these credentials"
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
