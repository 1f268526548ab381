"""What all credentials have in common: an address that is safe, errors that show no value."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from avesa_dagster.errors import ConfigurationError, Where


def _safe_address(value: str) -> str:
    parts = urlsplit(value if "://" in value else f"https://{value}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is no address like https://example.com")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold neither a user, a query nor a fragment")
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise ValueError("must begin with https:// (plain http only reaches this machine)")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


Address = Annotated[str, AfterValidator(_safe_address)]
"""An https address without a slash at its end; `https://` may be left out."""


class ServiceCredentials(BaseModel):
    """The credentials of one service; a subclass names its fields.

    Attributes:
        needs: What a complete set holds, in words; a class attribute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def needs(cls) -> str:
        return ", ".join(cls.model_fields)

    @classmethod
    def parse(cls, values: Mapping[str, object], where: Where) -> Self:
        """Checks the values.

        Raises:
            ConfigurationError: Names each wrong or missing field, and never shows a value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'they'}: "
                f"{_without_value(item['msg'], item['type'])}"
                for item in error.errors(include_url=False, include_input=False)
            )
            raise ConfigurationError(
                f"the credentials are not usable: {wrong}", where=where, hint=cls.needs()
            ) from None


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
