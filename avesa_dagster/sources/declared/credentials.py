"""What a person gives to connect a declared service: the fields that its file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model

from avesa_dagster.catalog.http import HttpService, Kind
from avesa_dagster.errors import Where
from avesa_dagster.sources.credentials import Address, ServiceCredentials


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of one connection.

    Attributes:
        address: Where the service is, without a slash at its end.
        texts: The other fields by name, what templates are filled with.
        secrets: Texts that must never be shown.
    """

    address: str
    texts: Mapping[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Credentials({self.address!r})"


class _Fields(ServiceCredentials):
    wanted: ClassVar[str] = ""

    @classmethod
    def needs(cls) -> str:
        return cls.wanted


def parsed(
    http: HttpService, title: str, values: Mapping[str, object], where: Where
) -> Credentials:
    """Checks the values that a person gave.

    Raises:
        ConfigurationError: Names each wrong or missing field, and never shows a value.
    """
    given = _model(http, title).parse(values, where).model_dump()
    secret = [name for name, kind in http.credentials.items() if kind is Kind.SECRET]
    return Credentials(
        address=given[http.address],
        texts={name: text for name, text in given.items() if name != http.address},
        secrets=tuple(given[name] for name in secret),
    )


def _model(http: HttpService, title: str) -> type[ServiceCredentials]:
    text = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n\x00]+$")]
    kinds: dict[str, Any] = {
        name: (Address if kind is Kind.ADDRESS else text, ...)
        for name, kind in http.credentials.items()
    }
    made: type[_Fields] = create_model("Credentials", __base__=_Fields, **kinds)
    made.wanted = f"{title} needs {', '.join(http.credentials)}, all texts"
    return made
