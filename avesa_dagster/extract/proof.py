"""Reading a span so that nothing of it can be missing.

While a span is read, records only leave it: a change moves a record beyond the frozen upper
bound, a deletion removes it, and neither brings one in. So if the service counts n records
*before* the reading and the reading finds n, nothing was left out: not by a page that was cut,
repeated or empty, and not by a record that moved. Where the figures differ, somebody changed or
something was lost; which one cannot be told, so the stretch is read again in halves until every
part is proven.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from avesa_dagster.errors import AvesaError, DataError
from avesa_dagster.sources.base import Page, Source, Span

SEGMENT_ROWS = 20_000
SEGMENT_BYTES = 48 * 1024 * 1024
_TRIES = 6
"""Readings of a stretch that cannot be halved any more."""
_PAGE_TRIES = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """A proven stretch of a span: everything with an id in (previous last_id, last_id].

    Attributes:
        pages: Every page read, those of unproven readings too: they are observations as well.
        count: Records that the service counted, all of which are in `pages` or hidden.
        last_id: Where the next segment goes on; None if nothing was read at all.
        hidden: Those that the service does not show to this user.
    """

    pages: tuple[Page, ...]
    count: int
    last_id: str | None
    hidden: int = 0


def segments(
    source: Source,
    table: str,
    span: Span,
    *,
    ids_only: bool = False,
    rows: int = SEGMENT_ROWS,
    size: int = SEGMENT_BYTES,
    counted: int | None = None,
) -> Iterator[Segment]:
    """Reads the span, oldest id first, in proven segments.

    Args:
        rows: A segment ends after the page that reaches this many rows,
        size: or this many bytes of payloads.
        counted: What the service counted of the span just now; None: it is asked.

    Raises:
        DataError: The service lists other than it counts, again and again.
    """
    remaining = source.count(table, span) if counted is None else counted
    ended = False
    while not ended:
        reading, again = _Reading(last_id=span.after), _Reading()
        try:
            _read(reading, source, table, span, remaining, ids_only, rows=rows, size=size)
            ended = reading.ended
            if ended:
                expected, here = remaining, span
            else:
                here = replace(span, upto=reading.last_id)
                span = replace(span, after=reading.last_id)
                left = source.count(table, span)
                expected, remaining = remaining - left, left
            last_id, hidden = reading.last_id, reading.hidden
            if reading.rows != expected:
                _prove(again, source, table, here, ids_only, reading)
                expected, hidden = again.rows, again.hidden
                if ended:  # the first reading may have ended early, or with nothing
                    last_id = again.last_id or last_id
        except AvesaError:
            if seen := (*reading.pages, *again.pages):  # unproven, and observations all the same
                yield Segment(seen, 0, None)
            raise
        yield Segment((*reading.pages, *again.pages), expected, last_id, hidden)


@dataclass(slots=True)
class _Reading:
    """What was read so far; whoever reads adds to it, so that a failure leaves it behind."""

    pages: list[Page] = field(default_factory=list)
    rows: int = 0
    hidden: int = 0
    last_id: str | None = None
    ended: bool = False


def _read(
    reading: _Reading,
    source: Source,
    table: str,
    span: Span,
    expected: int,
    ids_only: bool,
    *,
    rows: int | None = None,
    size: int | None = None,
) -> None:
    """Adds the pages of a span until it is exhausted, by count or an empty page, or at a limit."""
    bytes_read = 0
    unusable: set[bytes] = set()
    while True:
        page = _page(source, table, replace(span, after=reading.last_id), ids_only)
        reading.rows += page.hidden
        reading.hidden += page.hidden
        if not len(page):
            reading.ended = True
            return
        reading.pages.append(page)
        known = len(unusable)  # one without a usable id can end a page, and begin the next again
        unusable.update(item.payload for item in page.rejected)
        reading.rows += len(page.records) + len(unusable) - known
        bytes_read += sum(len(record.payload) for record in page.records)
        if reading.rows > expected or (reading.rows == expected and not _may_go_on(reading)):
            reading.last_id = page.last_id or reading.last_id
            reading.ended = True
            return
        if page.last_id is None:
            raise DataError(
                f"a page of {len(page)} records of {table} holds none with a usable id",
                hint="the cursor cannot advance; correct the records at the service",
            )
        reading.last_id = page.last_id
        if (rows and reading.rows >= rows) or (size and bytes_read >= size):
            return


def _may_go_on(reading: _Reading) -> bool:
    """Whether more may follow though the count is reached: the last page is full, or as long as
    the others, and a record that showed up late can have pushed another one out of it."""
    last = reading.pages[-1]
    return last.full or (len(reading.pages) > 1 and len(last) == max(map(len, reading.pages)))


def _page(source: Source, table: str, span: Span, ids_only: bool) -> Page:
    """A page; one with unusable records is asked for again, in case that was a passing fault."""
    for _ in range(_PAGE_TRIES):
        page = source.page(table, span, ids_only=ids_only)
        if not page.rejected:
            break
    return page


def _prove(
    proven: _Reading, source: Source, table: str, span: Span, ids_only: bool, before: _Reading
) -> None:
    """Reads the span again, in halves, until each part holds what was counted before it.

    Adds all pages read to `proven`; its rows are the sum of the proven counts.
    """
    stretches = _halves(span, before)
    tries: dict[Span, int] = {}
    while stretches:
        stretch = stretches.pop()
        expected = source.count(table, stretch)
        reading = _Reading(last_id=stretch.after)
        try:
            _read(reading, source, table, stretch, expected, ids_only)
        finally:
            proven.pages += reading.pages
        if reading.rows == expected:
            proven.rows += expected
            proven.hidden += reading.hidden
            if reading.pages:  # lower halves are read first
                proven.last_id = reading.last_id
            continue
        halves = _halves(stretch, reading)
        if len(halves) == 1:
            tries[stretch] = tries.get(stretch, 0) + 1
        if tries.get(stretch, 0) >= _TRIES:
            raise DataError(
                f"the service counts {expected} records of {table} but lists {reading.rows} "
                f"(ids after {stretch.after or 'the first'} up to {stretch.upto or 'the last'})",
                hint="what was read is stored; run it again, and if it stays so, look whether "
                "the API member may read all of these records",
            )
        stretches += halves


def _halves(span: Span, reading: _Reading) -> list[Span]:
    """The span split at the middle of the ids that were seen in it, or itself."""
    ids = [record.record_id for page in reading.pages for record in page.records]
    if len(ids) < 2:
        return [span]
    middle = ids[(len(ids) - 1) // 2]
    if middle == span.upto:
        return [span]
    return [replace(span, after=middle), replace(span, upto=middle)]
