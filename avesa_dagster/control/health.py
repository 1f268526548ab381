"""The state of health as protocols: breakers, what was alerted, counters, and schema drift.

Shared by all processes of an installation. Times are timezone-aware UTC datetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """One probe is under way."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether a tenant's service is asked at all.

    Attributes:
        failures: In a row.
        reason: Of the last failure; empty if there is none. While it is open because credentials
            were refused, of that refusal.
        credentials: The service refused the credentials: opens at once.
        opened_at: Since when, None while closed.
        probe_at: When the next probe may be made, None while closed.
        openings: Times that it opened in a row without a success between; doubles the wait.
    """

    tenant: str
    service: str
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    reason: str = ""
    credentials: bool = False
    opened_at: datetime | None = None
    probe_at: datetime | None = None
    openings: int = 0


class Breakers(Protocol):
    """Keyed by (tenant, service). Every method is atomic between processes."""

    def get(self, tenant: str, service: str) -> Breaker:
        """A closed one if nothing is known."""
        ...

    def all(self) -> list[Breaker]:
        """Those that are not closed, or have failures."""
        ...

    def failed(
        self,
        tenant: str,
        service: str,
        reason: str,
        *,
        credentials: bool,
        now: datetime,
        at_once: bool = False,
    ) -> Breaker:
        """Counts a failure: opens at once for refused credentials or if told so, else at the
        threshold; a probe that fails opens again, for twice as long (bounded)."""
        ...

    def succeeded(self, tenant: str, service: str) -> Breaker:
        """Closes, and forgets the failures."""
        ...

    def probe(self, tenant: str, service: str, *, now: datetime) -> bool:
        """Whether the caller may probe: True for one caller once `probe_at` has passed, which
        half-opens; a prober that says nothing for two minutes has died, and another may. False
        while closed: there is nothing to probe."""
        ...

    def forget(self, tenant: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """A counter's value. `labels` is sorted by name."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Counters(Protocol):
    """Numbers that only grow, kept across processes; the metrics endpoint shows them."""

    def add(self, amounts: Sequence[Sample]) -> None:
        """Adds to each counter, atomically."""
        ...

    def all(self) -> list[Sample]: ...

    def forget(self, tenant: str) -> int:
        """Removes every counter with the label tenant=…; returns how many."""
        ...


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that is wrong at present and was said.

    Attributes:
        key: What and whose, for example `breaker_open/acme/connectwise`.
        text: What was said.
        since: When it was found.
        said_at: When somebody was told; None: not yet (the notifier failed).
    """

    key: str
    tenant: str
    text: str
    since: datetime
    said_at: datetime | None = None


class Alarms(Protocol):
    """Keyed by `key`; a row is there as long as the thing is wrong."""

    def all(self) -> list[Alarm]: ...

    def put(self, *alarms: Alarm) -> None:
        """Replaces what was there; all or none."""
        ...

    def remove(self, *keys: str) -> None:
        """Removes what is there of these; all or none."""
        ...

    def forget(self, tenant: str) -> int: ...


@dataclass(frozen=True, slots=True)
class FieldSeen:
    """What is known of one field of an endpoint's records.

    Attributes:
        path: Dotted path in the record, arrays as `[]`.
        types: JSON types seen, sorted: array, boolean, integer, null, number, object, string.
        first_seen, last_seen: When a record with the field was observed.
        looked: Sampled records of the present from its first to its last appearance.
        seen: Of them, those that had it. Both are halved now and then, so that the past fades.
        absent: Sampled records of the present since then; none had it.
        gone: It was said to have vanished, and has not returned.
    """

    path: str
    types: tuple[str, ...]
    first_seen: datetime
    last_seen: datetime
    looked: int = 0
    seen: int = 0
    absent: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Drift:
    """A line of the drift log.

    Attributes:
        kind: new, vanished, returned or retyped.
        detail: In words: the types before and after.
    """

    tenant: str
    service: str
    table: str
    kind: str
    path: str
    detail: str
    seen_at: datetime


Fields = Mapping[str, FieldSeen]
"""What is known of an endpoint's fields, by path."""


class DriftLog(Protocol):
    """What each endpoint's records look like, and how that changed."""

    def fields(self, tenant: str, service: str, table: str) -> dict[str, FieldSeen]:
        """Ordered by path; empty if nothing was observed yet."""
        ...

    def note(
        self,
        tenant: str,
        service: str,
        table: str,
        judge: Callable[[Fields], tuple[Fields, Sequence[Drift]]],
    ) -> list[Drift]:
        """Replaces what is known of an endpoint's fields, and appends to the log; atomic between
        processes, so that of two that observe at once neither is lost.

        `judge` is given what is known and returns what is known from now on, and the lines. It may
        be called several times and must do nothing else; an error that it raises leaves all as it
        was.

        Returns:
            The lines that were appended.
        """
        ...

    def log(
        self, tenant: str, service: str | None = None, table: str | None = None, *, limit: int = 100
    ) -> list[Drift]:
        """Newest first; of one moment, the one noted last comes first."""
        ...

    def forget(self, tenant: str) -> int:
        """Removes fields and log of a tenant; returns how many rows."""
        ...
