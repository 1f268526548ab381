"""What a person gives to connect ConnectWise."""

from __future__ import annotations

import base64

from pydantic import Field, SecretStr

from avesa_dagster.sources.credentials import Address, ServiceCredentials


class Credentials(ServiceCredentials):
    """A ConnectWise API member.

    Attributes:
        api_base_url: The site, `https://na.myconnectwise.net`; the API's own host and path
            (`https://api-na.myconnectwise.net/v4_6_release/apis/3.0`) are taken too.
        company_id: The company that one types at login.
        client_id: The GUID of the integration, from the vendor's developer site.
    """

    api_base_url: Address
    company_id: str = Field(min_length=1)
    public_key: SecretStr = Field(min_length=1)
    private_key: SecretStr = Field(min_length=1)
    client_id: SecretStr = Field(min_length=1)

    @classmethod
    def needs(cls) -> str:
        return (
            "ConnectWise needs api_base_url, company_id, public_key, private_key and client_id, "
            "all texts; the address is like https://na.myconnectwise.net"
        )

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
