"""What is asked of a declared service: the requests about one table, and what their answers say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from urllib.parse import quote, urljoin, urlsplit

from avesa_dagster.catalog.http import (
    Count,
    Cursor,
    Filter,
    Keyset,
    Link,
    Listing,
    RecordPath,
    Resolution,
    TimeFormat,
    filled,
)
from avesa_dagster.catalog.models import ServiceTable
from avesa_dagster.errors import ConfigurationError, FatalError
from avesa_dagster.sources.base import Record, Rejected, Span, Window
from avesa_dagster.sources.declared import body
from avesa_dagster.sources.http import Answer, Call
from avesa_dagster.sources.oauth import header
from avesa_dagster.sources.records import InvalidPage, RecordDecoder, ascending, usable, within

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGER = re.compile(r"-?[0-9]{1,40}")
_PLAIN = re.compile(r"[A-Za-z0-9_.:@+-]{1,128}")
"""Ids that may stand within an expression."""
_LONGEST = 256
_FIRST: Mapping[str, str | int] = MappingProxyType({})
_NEXT = re.compile(r'<([^>]*)>[^,]*;\s*rel\s*=\s*"?next"?\s*(?:[;,]|$)')
Params = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Listed:
    """One answer of a listing.

    Attributes:
        held: Elements of its list; those outside of the window are among them.
        ids: Of all that have a usable one, in the answer's order.
        following: What the next page is asked with; None: nothing says that one follows.
        more: What the answer says about whether one follows; None: nothing.
    """

    records: list[Record]
    rejected: list[Rejected]
    held: int
    ids: tuple[str, ...]
    following: str | None
    more: bool | None


@dataclass(frozen=True, eq=False)
class Plan:
    """One table of a declared service, or its list of deletions.

    Args:
        place: Of its part of the service file, for errors.
        root: Stands before every path.
        record: Where one record is found; None: by the filter.
    """

    name: str
    known: ServiceTable
    listing: Listing
    place: str
    root: str
    page_size: int
    record: RecordPath | None = None
    deleted_field: str | None = None
    _decoder: RecordDecoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_decoder", RecordDecoder(self.known))

    @property
    def by_id(self) -> bool:
        """Whether extraction can prove any stretch of ids by itself."""
        return self.listing.proven_by_id and self.deleted_field is None

    @property
    def counted(self) -> bool:
        """Whether the service can count a window of which records only leave."""
        return self.listing.count is not None and self.listing.closed

    def list_call(
        self,
        span: Span,
        which: Mapping[str, str | int] = _FIRST,
        *,
        ids_only: bool = False,
        size: int | None = None,
    ) -> Call:
        """Asks for a page; `which` are the parameters by which it is known."""
        params = self._constant(self.listing.params)
        if ids_only:
            params |= self._constant(self.listing.ids_only)
        if self.listing.size:
            params[self.listing.size] = size or self.page_size
        params |= self._filter(span)
        return Call(self._url(self.listing.path), params={**params, **which})

    def newest_call(self) -> Call:
        """Asks for the greatest id, where they ascend; else for any."""
        paging = self.listing.paging
        newest = paging.newest if isinstance(paging, Keyset) and paging.newest else {}
        call = self.list_call(Span(), ids_only=True, size=1)
        return replace(call, params={**call.params, **self._constant(newest)})

    def count_call(self, span: Span) -> Call:
        """Asks how many records there are."""
        count = self._count
        if count.path is None:
            call = self.list_call(span, ids_only=True, size=1)
            return replace(call, params={**call.params, **self._constant(count.params)})
        params = {**self._constant(count.params), **self._filter(span)}
        return Call(self._url(count.path), params=params)

    def counted_in(self, answer: Answer) -> int:
        """What an answer counts. Raises InvalidPage."""
        count = self._count
        if count.header is not None:
            return body.number(header(answer, count.header).encode() or None)
        return body.number(body.at(answer.body, self._named(count.at or "")))

    def record_call(self, record_id: str) -> Call | None:
        """Asks for one record at its own address, if it has one."""
        if self.record is None:
            return None
        named = self._places | {"id": quote(record_id, safe="")}
        path = filled(self.record.path, named) or ""
        return Call(self.root + path, accepted=frozenset({200, 404, 410}))

    def record_in(self, answer: Answer, record_id: str) -> tuple[list[Record], list[Rejected]]:
        """The record that an answer holds; nothing if it says that there is none."""
        if answer.status != 200:
            return [], []
        where = self.record.at if self.record else None
        raw = answer.body if where is None else body.at(answer.body, self._named(where))
        if raw is None:
            raise InvalidPage("the answer holds no record")
        records, rejected = self._decoder.decode(b"[" + raw.strip() + b"]")
        ascending([record.record_id for record in records], Span(only=record_id), key=str)
        return self._flagged(records), rejected

    def listed(self, answer: Answer, span: Span) -> Listed:
        """What a page holds of the span.

        Raises:
            InvalidPage: It cannot be the page that was asked for.
            ConfigurationError: The resolution is finer than the service file says.
        """
        where = self.listing.records
        raw = answer.body if where is None else body.at(answer.body, self._named(where))
        if raw is None:
            raise InvalidPage(f"the answer holds no {where}")
        records, rejected = self._decoder.decode(raw)
        held = len(records) + len(rejected)
        records = self._usable(records, rejected)
        ids = tuple(record.record_id for record in records)
        if isinstance(self.listing.paging, Keyset):
            ascending(ids, span, key=self.order)
        self._check_resolution(records)
        records = self._asked_for(span, records)
        records = within(span.window, records, rejected, undated=False)
        more = getattr(self.listing.paging, "more", None)
        return Listed(
            self._flagged(records),
            rejected,
            held,
            ids,
            self._following(answer),
            None if more is None else body.flag(body.at(answer.body, self._named(more))),
        )

    def newest_in(self, answer: Answer) -> str | None:
        """The first usable id of a page."""
        where = self.listing.records
        raw = answer.body if where is None else body.at(answer.body, self._named(where))
        if raw is None:
            raise InvalidPage(f"the answer holds no {where}")
        records = self._usable(self._decoder.decode(raw)[0], [])
        return records[0].record_id if records else None

    def place_of(self, rejected: Rejected) -> str:
        """The id of what cannot be taken for another reason; empty if that is the reason."""
        try:
            raw = body.at(rejected.payload, self.known.id)
            found = "" if raw is None else body.text(raw)
        except InvalidPage:
            return ""
        return found if self._is_usable(found) else ""

    def next_url(self, link: str) -> str:
        """A link's address. Raises InvalidPage for one that leads to another host."""
        own = self._url(self.listing.path)
        url = urljoin(own, link)
        here, there = urlsplit(own), urlsplit(url)
        if (here.scheme, here.netloc) != (there.scheme, there.netloc):
            raise InvalidPage(
                f"the next page is said to be at {there.scheme}://{there.netloc}, which gets no "
                f"credentials of {here.netloc}"
            )
        return url

    def order(self, record_id: str) -> int | str:
        """Orders ids as the service does; where it does not, any order will do."""
        ids = self.listing.paging.ids if isinstance(self.listing.paging, Keyset) else "text"
        if ids == "integer":
            return int(record_id)
        return record_id.lower() if ids == "caseless" else record_id

    @property
    def _count(self) -> Count:
        assert self.listing.count is not None
        return self.listing.count

    @property
    def _places(self) -> dict[str, str]:
        return {
            "endpoint": self.known.endpoint,
            "table": self.name,
            "id_field": self.known.id,
            "change_field": self.known.change_field,
        }

    def _url(self, path: str) -> str:
        return self.root + self._named(path)

    def _named(self, text: str) -> str:
        return filled(text, self._places) or text

    def _constant(self, params: Mapping[str, str]) -> Params:
        return {name: self._named(text) for name, text in params.items()}

    def _filter(self, span: Span) -> Params:
        asked = self.listing.filter
        if asked is None:
            return {}
        values = {**self._places, **self._asked(asked, span)}
        if asked.param is None:
            texts = {name: filled(text, values) for name, text in asked.params.items()}
            return {name: text for name, text in texts.items() if text is not None}
        parts = [text for part in asked.parts if (text := filled(part, values)) is not None]
        return {asked.param: asked.join.join(parts)} if parts else {}

    def _asked(self, asked: Filter, span: Span) -> dict[str, str]:
        values = {"after": span.after, "upto": span.upto, "only": span.only}
        found = {name: value for name, value in values.items() if value is not None}
        for value in found.values():
            if not self._is_usable(value):
                raise FatalError(f"the id {value[:40]!r} cannot be asked for")
        if span.window is not None:
            tick = asked.resolution.tick
            for name, moment in (
                ("start", span.window.start),
                ("before", span.window.start - tick),
                ("end", span.window.end),
                ("last", span.window.end - tick),
            ):
                found[name] = written(moment, asked)
        return found

    def _asked_for(self, span: Span, records: list[Record]) -> list[Record]:
        """Without those that the filter could not leave out."""
        window = span.window
        if window is None:
            return records
        listing = self.listing
        return [
            record
            for record in records
            if record.updated_at is None
            or (
                (listing.starts or record.updated_at >= window.start)
                and (listing.closed or record.updated_at < window.end)
            )
        ]

    def _is_usable(self, record_id: str) -> bool:
        listing = self.listing
        if isinstance(listing.paging, Keyset) and listing.paging.ids == "integer":
            return _INTEGER.fullmatch(record_id) is not None
        named = listing.filter is not None and listing.filter.names() & {"after", "upto", "only"}
        if named and listing.filter is not None and listing.filter.param is not None:
            return _PLAIN.fullmatch(record_id) is not None
        return 0 < len(record_id) <= _LONGEST and record_id.isprintable()

    def _usable(self, records: list[Record], rejected: list[Rejected]) -> list[Record]:
        def id_of(record_id: str) -> str | None:
            return record_id if self._is_usable(record_id) else None

        return usable(records, rejected, id_of, "its id {} cannot be asked for")

    def _check_resolution(self, records: list[Record]) -> None:
        asked = self.listing.filter
        if asked is None or not asked.names() & {"last", "before"}:
            return
        tick = asked.resolution.tick // timedelta(microseconds=1)
        for record in records:
            if record.updated_at is not None and record.updated_at.microsecond % tick:
                raise ConfigurationError(
                    f"the change time {record.updated_at.isoformat()} is finer than "
                    f"{asked.resolution.value}: records at the end of a window would be missed",
                    hint=f"set {self.place}.filter.resolution to what the service has",
                )

    def _flagged(self, records: list[Record]) -> list[Record]:
        """The records, marked as deleted where they say so."""
        if self.deleted_field is None:
            return records
        flags = [body.at(record.payload, self.deleted_field) for record in records]
        return [
            replace(record, deleted=flag is not None and body.says_yes(flag))
            for record, flag in zip(records, flags, strict=True)
        ]

    def _following(self, answer: Answer) -> str | None:
        match self.listing.paging:
            case Cursor(header=str(name)):
                return header(answer, name) or None
            case Cursor(next=place) | Link(next=str() as place):
                raw = body.at(answer.body, self._named(place or ""))
                return None if raw is None else body.text(raw) or None
            case Link():
                found = _NEXT.search(header(answer, "Link"))
                return found[1] if found else None
        return None


def written(moment: datetime, asked: Filter) -> str:
    """A moment as the service writes it.

    Raises:
        FatalError: It is finer than the service's resolution.
    """
    ticks, rest = divmod(moment - _EPOCH, asked.resolution.tick)
    if rest:
        raise FatalError(
            f"{moment.isoformat()}: the service dates its records in {asked.resolution.value}"
        )
    if asked.time is TimeFormat.EPOCH:
        return str(max(0, ticks))  # nobody dates records before 1970, and few take a sign
    moment = moment.astimezone(UTC).replace(tzinfo=None)
    separator = " " if asked.time is TimeFormat.PLAIN else "T"
    precision = {
        Resolution.SECONDS: "seconds",
        Resolution.MILLISECONDS: "milliseconds",
        Resolution.MICROSECONDS: "microseconds",
    }[asked.resolution]
    said = moment.isoformat(separator, precision)
    return said if asked.time is TimeFormat.PLAIN else f"{said}Z"


def covers(outer: Window | None, inner: Window | None) -> bool:
    """Whether all of a window lies in another; None is all of the table."""
    if outer is None or inner is None:
        return outer is None
    return outer.start <= inner.start and inner.end <= outer.end
