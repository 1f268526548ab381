"""How extraction speaks to any service.

A service is one folder beside this file: a class that is a `Source`, and a line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

SECOND_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open stretch of change times, [start, end), in UTC."""

    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def __str__(self) -> str:
        return f"[{_short(self.start)}, {_short(self.end)})"


def _short(moment: datetime) -> str:
    text = moment.astimezone(UTC).strftime(SECOND_FORMAT)
    return text.removesuffix("T00:00:00Z")


@dataclass(frozen=True, slots=True)
class Span:
    """What to list: records whose id is in (after, upto], and whose change time is in `window`.

    None leaves that side open; without a window every record of the table is meant. `only` is
    the one record with this id; `alive` leaves out what a service lists though it is deleted.
    """

    window: Window | None = None
    after: str | None = None
    upto: str | None = None
    only: str | None = None
    alive: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the service sent it.

    Attributes:
        record_id: The id as text.
        updated_at: The record's own change time; None where it states none.
        payload: Its JSON, byte for byte.
        deleted: The service says that it was deleted at its change time.
        content: Where the service writes the same content in several ways: what is equal if and
            only if the content is. None: the payload.
    """

    record_id: str
    updated_at: datetime | None
    payload: bytes
    deleted: bool = False
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be stored as it is, and why; kept beside the raw objects."""

    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Deletion:
    """A record that the service says was deleted, and when."""

    record_id: str
    deleted_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Records in the order of their ids, each after the span's `after`. Empty: nothing there.

    Attributes:
        last_id: Id to go on after; None for a page without records.
        received_at: When the answer arrived, by our clock: the observation time of its records.
        hidden: Records up to `last_id`, or to the span's end if nothing follows, that the service
            counts and, asked again, does not show to this user.
        full: It is as long as was asked for, so that more may follow whatever was counted before.
    """

    records: list[Record]
    rejected: list[Rejected]
    last_id: str | None
    received_at: datetime
    hidden: int = 0
    full: bool = False

    def __len__(self) -> int:
        return len(self.records) + len(self.rejected)


class Source(Protocol):
    """A tenant's connection to a service. One instance belongs to one thread.

    Every method asks the budget before each request, retries what can be retried, and raises
    errors that name tenant, service and table:

    Raises:
        CredentialsRefused: At once, without a retry.
        RetriableError: When the retries are used up.
        DataError: The service answers with what cannot be true, again and again.
        FatalError: The service will never answer this.
    """

    @property
    def requests(self) -> int:
        """Requests sent so far, repeated ones too."""
        ...

    @property
    def retries(self) -> int:
        """Those among them that repeat one."""
        ...

    def now(self) -> datetime:
        """The service's present: ours or the service's clock, whichever is behind."""
        ...

    def count(self, table: str, span: Span) -> int:
        """How many records the span holds."""
        ...

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        """The first records of the span, in the order of their ids.

        With `ids_only` the payloads hold the id alone, which costs the service little; within a
        window the change time too, where the service can say it in a list of ids.
        """
        ...

    def newest_id(self, table: str) -> str | None:
        """The greatest id at present: where ids ascend, a full pull ends there. None: no record
        with an id was listed, which does not prove that there is none."""
        ...

    def exists(self, table: str, record_id: str) -> bool:
        """Whether the service still has the record. False only where it says that it is gone."""
        ...

    @property
    def lists_deletions(self) -> bool:
        """Whether the service keeps a list of what was deleted, which this user may read or not."""
        ...

    @property
    def ids_ascend(self) -> bool:
        """Whether the id of a new record comes after all that were given before."""
        ...

    def deletions(self, table: str, window: Window) -> list[Deletion] | None:
        """What was deleted within the window, by the service's own list.

        Returns:
            None if it keeps none, or this user may not read it: only a list of all ids tells then.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class BulkSource(Source, Protocol):
    """A source that can also give a large window as one job, whose result it keeps for days."""

    @property
    def bulk_records(self) -> int | None:
        """From so many records on a window is worth a job; None: none is."""
        ...

    def bulk(self, table: str, span: Span, at: str | None) -> Iterator[Page]:
        """The records of the span, in any order, each once.

        Args:
            span: A window and nothing else.
            at: Where to go on: the `last_id` of a page that came earlier, also of another process.
                None: with a new job.

        Yields:
            Pages whose `last_id` is where to go on; one without records as soon as there is a job.

        Raises:
            BulkGone: The job, or its place in it, is gone.
            BulkUnusable: It does not give this table in bulk, or the job came to nothing.
            TooMuch: The window is too large for the service.
        """
        ...

    def abandon(self, at: str) -> None:
        """Ends the job of a page's `last_id` and removes it, if it is there; never fails for it."""
        ...


Cancelled = Callable[[], bool]
Clock = Callable[[], datetime]
