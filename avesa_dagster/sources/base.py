"""How extraction speaks to any service.

A service is one folder beside this file: a class that is a `Source`, and a line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

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

    None leaves that side open; without a window every record of the table is meant.
    """

    window: Window | None = None
    after: str | None = None
    upto: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the service sent it.

    Attributes:
        record_id: The id as text.
        updated_at: The record's own change time; None where it states none.
        payload: Its JSON, byte for byte.
    """

    record_id: str
    updated_at: datetime | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be stored as it is, and why; kept beside the raw objects."""

    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Records in the order of their ids, each after the span's `after`. Empty: nothing there.

    Attributes:
        last_id: Id to go on after; None for a page without records.
        received_at: When the answer arrived, by our clock: the observation time of its records.
    """

    records: list[Record]
    rejected: list[Rejected]
    last_id: str | None
    received_at: datetime

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
        """The greatest id at present: a full pull ends there. None: no record with an id was
        listed, which does not prove that there is none."""
        ...

    def exists(self, table: str, record_id: str) -> bool:
        """Whether the service still has the record. False only where it says that it is gone."""
        ...

    def close(self) -> None: ...


Cancelled = Callable[[], bool]
Clock = Callable[[], datetime]
