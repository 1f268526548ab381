"""How a service is spoken to that needs no code of its own: the `http` block of a service file.

Texts hold placeholders in braces. What describes a table is known everywhere: {endpoint}, {table},
{id_field} and {change_field}. A filter also has what is asked for: {start} and {end} of the window,
{last}, the last moment before its end, {before}, the last one before its start; {after} and {upto},
the ids between which the records lie; {only}, one id. A part of a filter is sent if all that it
names is asked for, so the same filter serves every question. Headers and authentication have the
credentials' fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from avesa_dagster.catalog.basics import Model, Name, Path

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
TABLE_PLACES = ("endpoint", "table", "id_field", "change_field")
SPAN_PLACES = ("start", "end", "last", "before", "after", "upto", "only")


def placeholders(text: str) -> set[str]:
    """The names in braces. Braces around anything else stand for themselves."""
    return set(_PLACEHOLDER.findall(text))


def filled(text: str, values: Mapping[str, str]) -> str | None:
    """The text with its placeholders' values; None if one of them has none."""
    if not placeholders(text) <= values.keys():
        return None
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _checked(texts: Iterable[str], allowed: Iterable[str], what: str) -> None:
    known = list(allowed)
    for text in texts:
        for name in sorted(placeholders(text) - set(known)):
            raise ValueError(
                f"{what}: there is no {{{name}}}; allowed here: "
                f"{', '.join(f'{{{one}}}' for one in known)}"
            )


def _rooted(value: str) -> str:
    if not re.fullmatch(r"(/[^\s?#]+)*", value):
        raise ValueError("a path begins with '/', does not end with one, and has no '?' or '#'")
    return value


def _place(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_{][A-Za-z0-9_{}-]*(\.[A-Za-z_{][A-Za-z0-9_{}-]*)*", value):
        raise ValueError("a place is names joined by dots, for example data.items")
    return value


UrlPath = Annotated[str, AfterValidator(_rooted)]
Place = Annotated[str, AfterValidator(_place)]
"""Where something lies in an answer's body; may hold {endpoint} and {table}."""
FieldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Text = Annotated[str, Field(min_length=1)]


class Kind(StrEnum):
    """What a field of the credentials holds; a secret is never shown."""

    ADDRESS = "address"
    TEXT = "text"
    SECRET = "secret"


class Resolution(StrEnum):
    """The finest difference between two change times of the service."""

    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    MICROSECONDS = "microseconds"

    @property
    def tick(self) -> timedelta:
        """The shortest time between two moments."""
        return timedelta(**{self.value: 1})


class TimeFormat(StrEnum):
    """How a moment is written: 2026-03-01T00:00:00Z, 2026-03-01 00:00:00, or a number since 1970,
    in units of the resolution. All in UTC."""

    ISO = "iso"
    PLAIN = "plain"
    EPOCH = "epoch"


class Basic(Model):
    """Basic authentication: `{email}/token` and `{api_token}`, for example."""

    kind: Literal["basic"]
    username: str
    password: str

    def texts(self) -> tuple[str, ...]:
        return (self.username, self.password)


class HeaderKey(Model):
    """A token or an API key in a header: `Bearer {token}`."""

    kind: Literal["header"]
    header: Text = "Authorization"
    value: str

    def texts(self) -> tuple[str, ...]:
        return (self.value,)


class QueryKey(Model):
    """An API key as a parameter of each request."""

    kind: Literal["query"]
    param: Text
    value: str

    def texts(self) -> tuple[str, ...]:
        return (self.value,)


class ClientCredentials(Model):
    """OAuth 2.0: an access token for a client's id and secret, sent as `Bearer`.

    Attributes:
        path: Where tokens are asked for, below the address; the root is not put before it.
        sent: Whether id and secret are sent in the form or by basic authentication.
    """

    kind: Literal["client_credentials"]
    path: UrlPath
    client_id: str = "{client_id}"
    client_secret: str = "{client_secret}"
    scope: str | None = None
    sent: Literal["form", "basic"] = "form"

    def texts(self) -> tuple[str, ...]:
        return (self.client_id, self.client_secret, self.scope or "")


Auth = Annotated[Basic | HeaderKey | QueryKey | ClientCredentials, Field(discriminator="kind")]


class Filter(Model):
    """How it is said which records are meant.

    Either `params`, one parameter for each condition, or `param`, one that holds all `parts`.

    Attributes:
        join: What stands between two parts.
        time: How moments are written.
        resolution: Of the records' change times. {last} and {before} are one such step before
            {end} and {start}; a record whose change time is finer is an error.
    """

    params: dict[str, str] = Field(default_factory=dict)
    param: Text | None = None
    join: str = " and "
    parts: tuple[Text, ...] = ()
    time: TimeFormat = TimeFormat.ISO
    resolution: Resolution = Resolution.SECONDS

    @model_validator(mode="after")
    def _one_way(self) -> Filter:
        if bool(self.params) == bool(self.parts) or (self.param is None) != (not self.parts):
            raise ValueError("give either params, or param and parts")
        _checked(self.texts(), (*SPAN_PLACES, *TABLE_PLACES), "filter")
        for pair in ({"start", "before"}, {"end", "last"}):
            if pair <= self.names():
                raise ValueError(
                    f"a bound is either inclusive or not: use {' or '.join(sorted(pair))}"
                )
        if (self.names() & {"end", "last"}) and not self.names() & {"start", "before"}:
            raise ValueError("a window that ends has to start: {start} or {before} is missing")
        return self

    def texts(self) -> tuple[str, ...]:
        return (*self.params.values(), *self.parts)

    def names(self) -> set[str]:
        """The placeholders that are used."""
        return {name for text in self.texts() for name in placeholders(text)}


class Count(Model):
    """Where the service says how many records a filter takes in.

    Attributes:
        path: An address of its own, asked with the filter; None: a listing says it.
        params: Sent with that.
        at, header: In the body, or a header's name.
    """

    path: UrlPath | None = None
    params: dict[str, str] = Field(default_factory=dict)
    at: Place | None = None
    header: Text | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Count:
        if (self.at is None) == (self.header is None):
            raise ValueError("give either at, a place in the body, or header")
        return self


class Keyset(Model):
    """Each page is asked for by the id after which it begins, which the filter says ({after}).

    Attributes:
        ids: How the service orders ids; the listing's params have to ask for that order.
            Caseless: as texts of which a and A are the same.
        newest: Parameters that ask for the greatest id first. Give them if, and only if, a new
            record's id comes after all that were given before.
    """

    style: Literal["keyset"]
    ids: Literal["integer", "text", "caseless"]
    newest: dict[str, str] | None = None


class Pages(Model):
    """Pages have numbers.

    Attributes:
        more: Place of a true or false in the body: whether another page follows. None: an empty
            page is the end.
    """

    style: Literal["page"]
    param: Text = "page"
    first: int = 1
    more: Place | None = None


class Offset(Model):
    """A page begins after so many records. For `more` see `Pages`."""

    style: Literal["offset"]
    param: Text = "offset"
    more: Place | None = None


class Cursor(Model):
    """The answer holds what the next page is asked with: in the body (`next`) or in `header`.

    Attributes:
        param: The parameter that takes it.
        more: Place of a true or false that says whether it means anything.
    """

    style: Literal["cursor"]
    param: Text = "cursor"
    next: Place | None = None
    header: Text | None = None
    more: Place | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Cursor:
        if (self.next is None) == (self.header is None):
            raise ValueError("give either next, a place in the body, or header")
        return self


class Link(Model):
    """The answer holds the next page's address: in the body (`next`), or, without it, in the
    header `Link` with rel="next". An address on another host is refused."""

    style: Literal["link"]
    next: Place | None = None
    more: Place | None = None


Paging = Annotated[Keyset | Pages | Offset | Cursor | Link, Field(discriminator="style")]


class Listing(Model):
    """How records are listed.

    Attributes:
        records: Place of the list in the body; None: the body is the list.
        params: Sent with each request for a page: order, fields, state.
        ids_only: Sent besides where ids and change times are enough.
        size: The parameter that takes the page size; None: the service decides.
        filter: None: it lists everything, always.
        count: None: it does not say how many there are.
        most: It lists no more than so many records, whatever page is asked for.
    """

    path: UrlPath = "/{endpoint}"
    records: Place | None = None
    params: dict[str, str] = Field(default_factory=dict)
    ids_only: dict[str, str] = Field(default_factory=dict)
    size: Text | None = None
    filter: Filter | None = None
    count: Count | None = None
    paging: Paging
    most: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Listing:
        count = self.count or Count(at="none")
        texts = [self.path, self.records or "", count.path or "", *count.params.values()]
        texts += [*self.params.values(), *self.ids_only.values()]
        _checked(texts, TABLE_PLACES, "listing")
        names = self.filter.names() if self.filter else set()
        if isinstance(self.paging, Keyset):
            if "after" not in names:
                raise ValueError("paging by keyset needs {after} in the filter")
            if self.paging.newest is not None and not self.proven_by_id:
                raise ValueError(
                    "newest needs a filter with both ends of the window, {after} and {upto}, and "
                    "a count: where new ids come last, they bound what is listed"
                )
        elif names & {"after", "upto"}:
            raise ValueError("{after} and {upto} are for paging by keyset")
        return self

    @property
    def starts(self) -> bool:
        """Whether a window's start can be asked for."""
        return self.filter is not None and bool(self.filter.names() & {"start", "before"})

    @property
    def closed(self) -> bool:
        """Whether a window's end can be asked for too: then, of it, records only leave."""
        return self.filter is not None and bool(self.filter.names() & {"end", "last"})

    @property
    def proven_by_id(self) -> bool:
        """Whether any stretch of ids can be listed and counted by itself."""
        return (
            isinstance(self.paging, Keyset)
            and self.closed
            and self.count is not None
            and self.most is None
            and self.filter is not None
            and {"after", "upto"} <= self.filter.names()
        )


class RecordPath(Model):
    """One record's own address; {id} is its id.

    Attributes:
        at: Place of the record in the body; None: the body is the record.
    """

    path: UrlPath = "/{endpoint}/{id}"
    at: Place | None = None

    @model_validator(mode="after")
    def _names_the_record(self) -> RecordPath:
        _checked((self.path, self.at or ""), ("id", *TABLE_PLACES), "record")
        if "id" not in placeholders(self.path):
            raise ValueError("the path of a record needs {id}")
        return self


class DeletionList(Model):
    """The service's own list of what was deleted.

    Attributes:
        id: Path of the deleted record's id in an element.
        deleted_at: Path of when it was deleted; the listing's filter is about that time.
    """

    listing: Listing
    id: Path
    deleted_at: Path


class LimitHeader(Model):
    """A header that announces how many requests are allowed.

    Attributes:
        seconds: What it counts over.
    """

    header: Text
    seconds: int = Field(default=60, ge=1)


class HttpService(Model):
    """A service that is spoken to in JSON over HTTP.

    Attributes:
        credentials: The fields that a person is asked for, in this order. Exactly one is the
            address of the service.
        root: Stands before every path but that of tokens.
        headers: Sent with each request.
        listing: How every table is listed, but those in `tables`.
        record: Where a record is found by its id; None: by a filter with {only}.
        deleted_field: Path of a field that marks a record as deleted: by anything but null, false,
            0 or an empty text.
        deletions: None: there is no such list.
        error: Place of what is wrong, if something is; also looked for in answers with status 200.
        permission: What a customer does about a 403.
    """

    credentials: dict[FieldName, Kind]
    root: UrlPath = ""
    auth: Auth
    headers: dict[str, str] = Field(default_factory=lambda: {"Accept": "application/json"})
    listing: Listing
    tables: dict[Name, Listing] = Field(default_factory=dict)
    record: RecordPath | None = None
    deleted_field: Path | None = None
    deletions: DeletionList | None = None
    error: Place | None = None
    limit: LimitHeader | None = None
    permission: str = "give the user the right to read all of this table"

    @model_validator(mode="after")
    def _consistent(self) -> HttpService:
        addresses = [name for name, kind in self.credentials.items() if kind is Kind.ADDRESS]
        if len(addresses) != 1:
            raise ValueError(
                "credentials need exactly one field of the kind address, which says where the "
                f"service is; there are {len(addresses)}"
            )
        others = [name for name in self.credentials if name not in addresses]
        texts = (*self.auth.texts(), *self.headers.values())
        _checked(texts, others, "auth and headers")
        used = {name for text in texts for name in placeholders(text)}
        unused = [name for name in others if name not in used]
        if unused:
            raise ValueError(f"credentials.{unused[0]} is used neither by auth nor by headers")
        for listing in (self.listing, *self.tables.values()):
            only = listing.filter is not None and "only" in listing.filter.names()
            if self.record is None and not only:
                raise ValueError(
                    "one record has to be found by its id: give record, or use {only} in the filter"
                )
            if self.deleted_field is not None and listing.ids_only:
                raise ValueError(
                    "ids_only cannot be used with deleted_field, which says whether they are there"
                )
        if self.deletions is not None and not self.deletions.listing.starts:
            raise ValueError("deletions.listing.filter needs the {start} of the window")
        return self

    @property
    def address(self) -> str:
        """The credentials' field that says where the service is."""
        return next(name for name, kind in self.credentials.items() if kind is Kind.ADDRESS)
