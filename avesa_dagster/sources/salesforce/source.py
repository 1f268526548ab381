"""Salesforce: keyset paging over ids under a window with both bounds, and bulk jobs for large ones.

Everything is asked through `queryAll`, which lists what was deleted and what was archived too. A
page goes by the id after the last one, never by the service's own cursors, which it forgets; but a
batch that is shorter than asked for, or empty, ends nothing as long as the service says that more
follows. Source of the facts: shared fact page `salesforce.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import (
    AvesaError,
    PermissionRefused,
    RetriableError,
    TooMuch,
    Where,
)
from avesa_dagster.sources.asking import HttpSource, asking, place_of
from avesa_dagster.sources.base import (
    Cancelled,
    Clock,
    Deletion,
    Page,
    Record,
    Rejected,
    Span,
    Window,
)
from avesa_dagster.sources.http import Answer, Call, Http, NotFound
from avesa_dagster.sources.oauth import header
from avesa_dagster.sources.records import InvalidPage, RecordDecoder, ascending, usable, within
from avesa_dagster.sources.salesforce import query
from avesa_dagster.sources.salesforce.content import (
    content_of,
    full_id,
    id_order,
    joined,
    payload_of,
    rows,
    values_of,
)
from avesa_dagster.sources.salesforce.jobs import Jobs, Place
from avesa_dagster.sources.salesforce.login import VERSION
from avesa_dagster.sources.salesforce.objects import IS_DELETED, Described, Objects, described
from avesa_dagster.sources.salesforce.speech import Refused

T = TypeVar("T")
_API = f"/services/data/v{VERSION}"
_MOST, _FEWEST = 2000, 200
"""Records in a batch, by the service's bounds."""
_TRIES = 3
_REMEMBERED = timedelta(days=15) - timedelta(minutes=10)
"""The service lists deletions that are younger."""
_LATE = timedelta(hours=2)
"""The list of deletions is asked for so much more again: what lasted long shows up late."""
_MINUTE = timedelta(minutes=1)
_SHORTEST = timedelta(hours=1)


class _Batch(msgspec.Struct):
    totalSize: int
    done: bool
    records: msgspec.Raw
    nextRecordsUrl: str | None = None


class _Gone(msgspec.Struct):
    id: str
    deletedDate: datetime


class _GoneList(msgspec.Struct):
    deletedRecords: list[_Gone]
    earliestDateAvailable: datetime


_batch = msgspec.json.Decoder(_Batch)
_gone = msgspec.json.Decoder(_GoneList)


class Salesforce(HttpSource):
    """A `BulkSource` over one connection. Ids are texts, in no order of creation.

    Args:
        objects: The descriptions of the objects, shared by the threads of a connection.
    """

    lists_deletions = True
    ids_ascend = False

    def __init__(
        self,
        service: Service,
        http: Http,
        objects: Objects,
        where: Where,
        *,
        clock: Clock,
        cancelled: Cancelled,
    ) -> None:
        super().__init__(service, http, where, clock)
        self._objects = objects
        self._jobs = Jobs(http, cancelled)
        self._decoders = {name: RecordDecoder(table) for name, table in service.tables.items()}
        self._limit = min(_MOST, service.page_size)

    @property
    def bulk_records(self) -> int | None:
        return self._service.bulk_records

    def now(self) -> datetime:
        if self._http.server_time is None:
            self._http.ask(Call("/services/data"), lambda answer: None)
        return self._http.present()

    def count(self, table: str, span: Span) -> int:
        """By halves where the whole takes too long: while they are counted, records only leave."""
        known = self._service.tables[table]

        def ask(one: Described) -> int:
            return self._ask(table, span, _asking(query.counting(known, one, span)), _total)

        try:
            return self._knowing(table, span, ask)
        except TooMuch:
            if span.window is None or len(halves := _halves(span.window)) == 1:
                raise
            return sum(self.count(table, replace(span, window=half)) for half in halves)

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        while True:
            try:
                return self._knowing(
                    table, span, lambda one: self._page(table, one, span, ids_only)
                )
            except TooMuch:
                if self._limit <= _FEWEST:
                    raise
                self._limit = max(_FEWEST, self._limit // 2)

    def newest_id(self, table: str) -> str | None:
        known = self._service.tables[table]
        call = _asking(query.newest(known))
        records, _, _ = self._batch(table, Span(), call, ordered=False)
        return records[0].record_id if records else None

    def exists(self, table: str, record_id: str) -> bool:
        """Gone is what is neither counted nor found by its id: a user who may not see the object
        or the record is told so by one of them."""
        known = self._service.tables[table]
        span = Span(only=record_id, alive=True)
        if self.count(table, span):
            return True
        call = Call(f"{_API}/sobjects/{known.endpoint}/{record_id}", params={"fields": known.id})
        try:
            self._ask(table, span, call, lambda answer: None)
        except NotFound:
            return False
        except PermissionRefused:
            return True
        return True

    def deletions(self, table: str, window: Window) -> list[Deletion] | None:
        """What the service lists as deleted, but for what it still keeps: that is listed with the
        other records, marked as deleted."""
        span = Span(window)
        since = self.now() - _REMEMBERED
        if window.start < since:
            return None
        start = max(_minute(window.start - _LATE), _minute(since) + _MINUTE)
        end = max(_minute(window.end) + _MINUTE, start + 2 * _MINUTE)
        try:
            told = self._deletions(table, Window(start, end), needed_from=window.start)
        except (PermissionRefused, NotFound, Refused):
            return None
        if told and self._described(table, span).deletable:
            kept = self._kept(table, start)
            told = [one for one in told if one.record_id not in kept]
        return told

    def bulk(self, table: str, span: Span, at: str | None) -> Iterator[Page]:
        known = self._service.tables[table]
        try:
            if at is None:
                place = self._knowing(
                    table,
                    span,
                    lambda one: self._jobs.begin(query.every(known, one, tuple(one.types), span)),
                )
                yield self._nothing(place)
            else:
                place = Place.parse(at)
            one = self._described(table, span)
            if not place.locator:
                self._jobs.wait(place)
            read = self._reader(table, one, span)
            for page, after in self._jobs.parts(place, read):
                yield replace(page, last_id=str(after))
        except AvesaError as error:
            error.at(**place_of(self._where, table, span))
            raise

    def abandon(self, at: str) -> None:
        self._jobs.remove(Place.parse(at))

    def _page(self, table: str, one: Described, span: Span, ids_only: bool) -> Page:
        known = self._service.tables[table]
        selections = [one.keys(known)] if ids_only else one.selections(known)
        for _ in range(_TRIES):
            records, rejected, received_at = self._list(
                table, query.listing(known, one, selections[0], span, self._limit), span
            )
            last = records[-1].record_id if records else None
            full = len(records) + len(rejected) >= self._limit
            if last is not None and len(selections) > 1:
                whole = self._completed(table, one, span, selections, records)
                if len(whole) < len(records) and span.window is None:
                    continue  # it changed between two questions
                records = whole
            if not ids_only:
                records = [_with_content(record) for record in records]
            kept = within(span.window, records, rejected, undated=False)
            return Page(kept, rejected, last, received_at, full=full)
        raise RetriableError("the record changes while its fields are asked for").at(
            **place_of(self._where, table, span)
        )

    def _completed(
        self,
        table: str,
        one: Described,
        span: Span,
        selections: Sequence[tuple[str, ...]],
        records: Sequence[Record],
    ) -> list[Record]:
        """The records with the fields of the other selections; those that changed meanwhile are
        left out: they have left the window."""
        known = self._service.tables[table]
        pieces = {(r.record_id, r.updated_at): [r.payload] for r in records}
        bounded = replace(span, upto=records[-1].record_id)
        for selection in selections[1:]:
            rest = bounded
            while True:
                question = query.listing(known, one, selection, rest, self._limit)
                more, _, _ = self._list(table, question, rest)
                for record in more:
                    if (held := pieces.get((record.record_id, record.updated_at))) is not None:
                        held.append(record.payload)
                if not more or more[-1].record_id == bounded.upto:
                    break
                rest = replace(rest, after=more[-1].record_id)
        return [
            replace(record, payload=joined(found))
            for record in records
            if len(found := pieces[record.record_id, record.updated_at]) == len(selections)
        ]

    def _list(
        self, table: str, question: str, span: Span
    ) -> tuple[list[Record], list[Rejected], datetime]:
        """The first batch of an answer that holds anything."""
        call: Call | None = _asking(question, self._limit)
        while call is not None:
            records, rejected, following = self._batch(table, span, call, ordered=True)
            if records or rejected:
                break
            call = following
        return records, rejected, self._clock()

    def _batch(
        self, table: str, span: Span, call: Call, *, ordered: bool
    ) -> tuple[list[Record], list[Rejected], Call | None]:
        decoder = self._decoders[table]

        def parse(answer: Answer) -> tuple[list[Record], list[Rejected], Call | None]:
            try:
                batch = _batch.decode(answer.body)
            except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
                raise InvalidPage("the answer is no JSON with records") from None
            records, rejected = decoder.decode(bytes(batch.records))
            records = usable(records, rejected, full_id, "its id {} is none")
            if ordered:
                ascending([record.record_id for record in records], span, key=id_order)
            if not batch.done:
                following = batch.nextRecordsUrl or ""
                if not following.startswith("/services/data/"):
                    raise InvalidPage("the answer has more records, and does not say where")
                return records, rejected, Call(following)
            if call.params and len(records) + len(rejected) < batch.totalSize:
                raise InvalidPage(
                    f"the answer says {batch.totalSize} records and holds "
                    f"{len(records) + len(rejected)}"
                )
            return records, rejected, None

        return self._ask(table, span, call, parse)

    def _reader(self, table: str, one: Described, span: Span) -> Callable[[Answer], Page]:
        known = self._service.tables[table]

        def read(answer: Answer) -> Page:
            records: list[Record] = []
            rejected: list[Rejected] = []
            for row in rows(answer.body, one.types):
                key, changed = row.get(known.id), row.get(known.change_field)
                if known.id not in row or known.change_field not in row:
                    raise InvalidPage(f"the result has no {known.id} or {known.change_field}")
                record_id = full_id(key) if isinstance(key, str) else None
                payload = payload_of(row, one.name, record_id or "", VERSION)
                moment = _moment(changed)
                if record_id is None or moment is None:
                    reason = f"its {known.id} or {known.change_field} is none"
                    rejected.append(Rejected(reason, payload))
                    continue
                deleted = row.get(IS_DELETED) is True
                records.append(Record(record_id, moment, payload, deleted, content_of(row)))
            told = header(answer, "Sforce-NumberOfRecords")
            if told.isdecimal() and int(told) != len(records) + len(rejected):
                raise InvalidPage(
                    f"a part of the result says {told} records and holds "
                    f"{len(records) + len(rejected)}"
                )
            kept = within(span.window, records, rejected, undated=False)
            return Page(kept, rejected, None, self._clock())

        return read

    def _nothing(self, place: Place) -> Page:
        return Page([], [], str(place), self._clock())

    def _deletions(
        self, table: str, window: Window, *, needed_from: datetime
    ) -> list[Deletion] | None:
        known = self._service.tables[table]
        params: dict[str, str | int] = {
            "start": query.moment(window.start),
            "end": query.moment(window.end),
        }
        call = Call(f"{_API}/sobjects/{known.endpoint}/deleted/", params=params)
        try:
            said = self._ask(table, Span(window), call, _deleted)
        except TooMuch:
            middle = _minute(window.start + (window.end - window.start) / 2)
            if window.end - window.start < 4 * _MINUTE:  # a part has to be longer than one
                raise
            parts = Window(window.start, middle), Window(middle, window.end)
            lists = [self._deletions(table, part, needed_from=needed_from) for part in parts]
            return None if None in lists else [one for told in lists for one in told or ()]
        if said.earliestDateAvailable > max(needed_from, window.start):
            return None
        found = ((full_id(one.id), one.deletedDate.astimezone(UTC)) for one in said.deletedRecords)
        return [Deletion(record_id, when) for record_id, when in found if record_id is not None]

    def _kept(self, table: str, since: datetime) -> set[str]:
        known = self._service.tables[table]
        kept: set[str] = set()
        after: str | None = None
        while True:
            question = query.kept_deletions(known, since, after, self._limit)
            records, _, _ = self._list(table, question, Span(after=after))
            if not records:
                return kept
            kept.update(record.record_id for record in records)
            after = records[-1].record_id

    def _knowing(self, table: str, span: Span, ask: Callable[[Described], T]) -> T:
        """Asks with the object's fields; once more where one of them has gone."""
        one = self._described(table, span)
        try:
            return ask(one)
        except Refused as error:
            if error.code != "INVALID_FIELD":
                raise
            endpoint = self._service.tables[table].endpoint
            fresh = self._objects.again(endpoint, one, lambda: self._describe(table, span))
            if fresh == one:
                raise
        return ask(fresh)

    def _described(self, table: str, span: Span) -> Described:
        endpoint = self._service.tables[table].endpoint
        return self._objects.get(endpoint, lambda: self._describe(table, span))

    def _describe(self, table: str, span: Span) -> Described:
        known = self._service.tables[table]
        call = Call(f"{_API}/sobjects/{known.endpoint}/describe")
        return self._ask(table, span, call, lambda answer: described(known, answer))

    def _ask(self, table: str, span: Span, call: Call, parse: Callable[[Answer], T]) -> T:
        with asking(self._where, table, span, self._service.tables[table].endpoint):
            return self._http.ask(call, parse)


def _asking(question: str, batch: int = _MOST) -> Call:
    return Call(
        f"{_API}/queryAll",
        params={"q": question},
        headers={"Sforce-Query-Options": f"batchSize={max(_FEWEST, batch)}"},
    )


def _total(answer: Answer) -> int:
    try:
        said = _batch.decode(answer.body)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        raise InvalidPage("the answer is no count") from None
    if said.totalSize < 0:
        raise InvalidPage("the answer is no count")
    return said.totalSize


def _deleted(answer: Answer) -> _GoneList:
    try:
        return _gone.decode(answer.body)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        raise InvalidPage("the answer is no list of deletions") from None


def _with_content(record: Record) -> Record:
    values = values_of(record.payload)
    if values is None:
        return record
    return replace(record, deleted=values.get(IS_DELETED) is True, content=content_of(values))


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return msgspec.convert(value, datetime).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        return None


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _halves(window: Window) -> list[Window]:
    half = timedelta(seconds=int((window.end - window.start).total_seconds() // 2))
    if half < _SHORTEST:
        return [window]
    middle = window.start + half
    return [Window(window.start, middle), Window(middle, window.end)]
