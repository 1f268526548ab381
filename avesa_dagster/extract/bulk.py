"""Reading a large window as one job of the service, so that nothing of it can be missing.

The same proof as for pages (extract/proof.py): records only leave a window of the past, so if the
service counts n of them *before* the job begins, and its result holds n that all differ, none was
left out. Where that is not so, the window is read by pages. The ledger knows the job and the place
in its result, so whoever goes on after a crash reads the rest of the same result.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from avesa_dagster.control.base import Chunk, Ledger
from avesa_dagster.errors import BulkUnusable
from avesa_dagster.extract.proof import Segment
from avesa_dagster.sources.base import BulkSource, Page, Source, Span

_MARK = "bulk:"
_LEFT_OVER = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Begun:
    """A chunk's cursor while it is read in bulk.

    Attributes:
        expected: Records that the service counted before the job began.
        at: The service's own words for the place in the result; None: there is no job yet.
    """

    expected: int
    at: str | None = None

    def __str__(self) -> str:
        return f"{_MARK}{self.expected}:{self.at}"

    @classmethod
    def of(cls, chunk: Chunk) -> Begun | None:
        """What the chunk's cursor says; None: it is not being read in bulk."""
        if chunk.cursor is None or not chunk.cursor.startswith(_MARK):
            return None
        expected, _, at = chunk.cursor.removeprefix(_MARK).partition(":")
        return cls(int(expected), at)


def able(source: Source) -> BulkSource | None:
    """The source, if it can give windows in bulk and is meant to."""
    if isinstance(source, BulkSource) and source.bulk_records is not None:
        return source
    return None


def segments(source: BulkSource, chunk: Chunk, span: Span, begun: Begun) -> Iterator[Segment]:
    """Reads the chunk's span from where it was left.

    Args:
        begun: From the chunk's cursor, or for a new job.

    Yields:
        A segment for each part of the result, its `last_id` the chunk's next cursor; the first
        one, without records, as soon as there is a job.

    Raises:
        BulkGone, BulkUnusable: What came so far is stored, and proves nothing: the window has to be
            read again.
    """
    rows = chunk.rows
    ids = array("q")  # hashes: a million take 8 MB
    for page in source.bulk(chunk.table, span, begun.at):
        if page.rejected:
            raise BulkUnusable(f"a record of the result cannot be taken: {page.rejected[0].reason}")
        rows += len(page.records)
        ids.extend(hash(record.record_id) for record in page.records)
        yield _segment(page, begun.expected)
    if rows != begun.expected:
        raise BulkUnusable(
            f"the service counts {begun.expected} records of {chunk.table} and gives {rows} in bulk"
        )
    if twice := _doubled(ids):
        raise BulkUnusable(f"the service gives {twice} records of {chunk.table} twice in bulk")


def tidy(source: BulkSource, chunk: Chunk, ledger: Ledger, now: datetime) -> None:
    """Removes the jobs of this table that were left over: nobody went on with them for a day.

    Whoever still does begins a new one.
    """
    place = (chunk.tenant, chunk.service, chunk.table)
    for left in ledger.resting(*place, before=now - _LEFT_OVER):
        if Begun.of(left) is not None:
            abandon(source, left)
            ledger.restart(left, now=now)


def abandon(source: BulkSource, chunk: Chunk) -> None:
    """Removes the job that the chunk's cursor names, if it names one."""
    begun = Begun.of(chunk)
    if begun is not None and begun.at is not None:
        source.abandon(begun.at)


def _segment(page: Page, expected: int) -> Segment:
    return Segment((page,), len(page.records), str(Begun(expected, page.last_id)))


def _doubled(ids: array[int]) -> int:
    """How many of them were there before. By sorting: a hash table of a million takes 120 MB."""
    if len(ids) < 2:
        return 0
    column = pa.Array.from_buffers(pa.int64(), len(ids), [None, pa.py_buffer(ids)])
    ordered = column.take(pc.array_sort_indices(column))
    return int(pc.sum(pc.equal(ordered[1:], ordered[:-1])).as_py())
