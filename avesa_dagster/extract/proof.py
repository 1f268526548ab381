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
from dataclasses import dataclass, replace

from avesa_dagster.errors import DataError
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
        count: Records that the service counted, all of which are in `pages`.
        last_id: Where the next segment goes on; None if nothing was read at all.
    """

    pages: tuple[Page, ...]
    count: int
    last_id: str | None


def segments(
    source: Source,
    table: str,
    span: Span,
    *,
    ids_only: bool = False,
    rows: int = SEGMENT_ROWS,
    size: int = SEGMENT_BYTES,
) -> Iterator[Segment]:
    """Reads the span, oldest id first, in proven segments.

    Args:
        rows: A segment ends after the page that reaches this many rows,
        size: or this many bytes of payloads.

    Raises:
        DataError: The service lists other than it counts, again and again.
    """
    remaining = source.count(table, span)
    while True:
        reading = _read(source, table, span, remaining, ids_only, rows=rows, size=size)
        if reading.ended:
            expected, here = remaining, span
        else:
            here = replace(span, upto=reading.last_id)
            span = replace(span, after=reading.last_id)
            left = source.count(table, span)
            expected, remaining = remaining - left, left
        pages, last_id = reading.pages, reading.last_id
        if reading.rows != expected:
            again, expected = _prove(source, table, here, ids_only, reading)
            pages = [*pages, *again]
            if reading.ended:  # the first reading may have ended early, or with nothing
                ids = (page.last_id for page in reversed(again))
                last_id = next((last for last in ids if last is not None), last_id)
        yield Segment(tuple(pages), expected, last_id)
        if reading.ended:
            return


@dataclass(slots=True)
class _Reading:
    pages: list[Page]
    rows: int
    last_id: str | None
    ended: bool


def _read(
    source: Source,
    table: str,
    span: Span,
    expected: int,
    ids_only: bool,
    *,
    rows: int | None = None,
    size: int | None = None,
) -> _Reading:
    """Pages of a span until it is exhausted, by count or by an empty page, or a limit reached."""
    reading = _Reading([], 0, span.after, ended=False)
    bytes_read = 0
    unusable: set[bytes] = set()
    while True:
        page = _page(source, table, replace(span, after=reading.last_id), ids_only)
        if not len(page):
            reading.ended = True
            return reading
        reading.pages.append(page)
        known = len(unusable)  # one without a usable id can end a page, and begin the next again
        unusable.update(item.payload for item in page.rejected)
        reading.rows += len(page.records) + len(unusable) - known
        bytes_read += sum(len(record.payload) for record in page.records)
        if reading.rows > expected or (reading.rows == expected and not _may_go_on(reading)):
            reading.last_id = page.last_id or reading.last_id
            reading.ended = True
            return reading
        if page.last_id is None:
            raise DataError(
                f"a page of {len(page)} records of {table} holds none with a usable id",
                hint="the cursor cannot advance; correct the records at the service",
            )
        reading.last_id = page.last_id
        if (rows and reading.rows >= rows) or (size and bytes_read >= size):
            return reading


def _may_go_on(reading: _Reading) -> bool:
    """Whether more may follow though the count is reached: the last page is as full as the others,
    and a record that showed up late can have pushed another one out of it."""
    return len(reading.pages) > 1 and len(reading.pages[-1]) == max(map(len, reading.pages))


def _page(source: Source, table: str, span: Span, ids_only: bool) -> Page:
    """A page; one with unusable records is asked for again, in case that was a passing fault."""
    for _ in range(_PAGE_TRIES):
        page = source.page(table, span, ids_only=ids_only)
        if not page.rejected:
            break
    return page


def _prove(
    source: Source, table: str, span: Span, ids_only: bool, before: _Reading
) -> tuple[list[Page], int]:
    """Reads the span again, in halves, until each part holds what was counted before it.

    Returns all pages read, and the sum of the proven counts.
    """
    pages: list[Page] = []
    total = 0
    stretches = _halves(span, before)
    tries: dict[Span, int] = {}
    while stretches:
        stretch = stretches.pop()
        expected = source.count(table, stretch)
        reading = _read(source, table, stretch, expected, ids_only)
        pages += reading.pages
        if reading.rows == expected:
            total += expected
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
    return pages, total


def _halves(span: Span, reading: _Reading) -> list[Span]:
    """The span split at the middle of the ids that were seen in it, or itself."""
    ids = [record.record_id for page in reading.pages for record in page.records]
    if len(ids) < 2:
        return [span]
    middle = ids[(len(ids) - 1) // 2]
    if middle == span.upto:
        return [span]
    return [replace(span, after=middle), replace(span, upto=middle)]
