"""The control tables as protocols: who is connected, and how far we are.

Two implementations join behind each protocol: SQLite (embedded) and DynamoDB (aws). One behaviour
suite a protocol runs over all of them. Times are timezone-aware UTC datetimes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TenantService:
    """One row of TenantServices: a tenant's connection to a service.

    Attributes:
        number: Unique and stable for the life of the connection; keeps partition definitions of
            different tenants unequal (facts/dagster.md, trap A1).
        generation: Counts the credentials: 1 at first connection, one more at each reconnection.
        history_start: First instant of the first partition, frozen at connection. May move left.
        tables: Names of the enabled tables, sorted.
        requests_per_minute: The tenant's own budget, or None for the service's.
    """

    tenant: str
    service: str
    number: int
    generation: int
    enabled: bool
    history_start: datetime
    tables: tuple[str, ...]
    requests_per_minute: int | None
    connected_at: datetime
    updated_at: datetime


class Registry(Protocol):
    """TenantServices, keyed by (tenant, service)."""

    def connect(
        self,
        tenant: str,
        service: str,
        *,
        history_start: datetime,
        tables: Iterable[str],
        requests_per_minute: int | None,
        now: datetime,
    ) -> TenantService:
        """Inserts, or reconnects: generation + 1, enabled, history_start = the earlier of both,
        number and connected_at kept; tables and requests_per_minute replaced."""
        ...

    def disconnect(self, tenant: str, service: str, *, now: datetime) -> TenantService | None:
        """Disables; the row stays. None if there is no such row."""
        ...

    def enable(self, tenant: str, service: str, *, now: datetime) -> TenantService | None:
        """Enables; the row is otherwise as it was. None if there is no such row."""
        ...

    def get(self, tenant: str, service: str) -> TenantService | None: ...

    def all(self) -> list[TenantService]:
        """Every row, disabled ones too, ordered by (tenant, service)."""
        ...

    def forget(self, tenant: str) -> int:
        """Removes the tenant's disabled rows, and returns how many; an enabled one stays.

        No number is ever given again: another connection that had it would take over definitions
        and records of runs.
        """
        ...


@dataclass(frozen=True, slots=True)
class Watermark:
    """One row of LastUpdated: everything changed before `upper` (exclusive, the *requested* bound
    of the newest sync, never the newest row seen) has been asked for."""

    tenant: str
    service: str
    table: str
    upper: datetime
    updated_at: datetime


class Watermarks(Protocol):
    """LastUpdated, keyed by (tenant, service, table)."""

    def get(self, tenant: str, service: str, table: str) -> Watermark | None: ...

    def of(self, tenant: str, service: str) -> dict[str, Watermark]:
        """Those of a connection, by table, in one question; tables without one are left out."""
        ...

    def advance(
        self,
        tenant: str,
        service: str,
        table: str,
        *,
        lower: datetime,
        upper: datetime,
        now: datetime,
    ) -> Watermark:
        """Records that [lower, upper) was fetched; returns the row that holds afterwards.

        Sets the watermark if there is none; moves it to `upper` if lower <= current < upper; else
        leaves it (a gap would open, or it is ahead already). Atomic between processes: in any
        interleaving of advances the watermark never moves back and never skips a gap.
        """
        ...

    def forget(self, tenant: str) -> int:
        """Removes all rows of a tenant; returns how many."""
        ...


class ChunkState(StrEnum):
    PLANNED = "planned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


COVERING = ("full", "window")
"""Kinds of chunks that bring every record of their window."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row of ChunkProgress: a half-open window [start, end) of one table of one partition.

    Attributes:
        token: Who fetches: the root run id (or job id). A retry has the same token and skips what
            is completed; a new materialization has a new one and fetches anew.
        chunk_id: Deterministic within (token, tenant, service, table), e.g. `20260301-20260401`.
        partition: Key of the partition, `YYYY-MM-DD`.
        kind: `window` (records by change time), `full` (all records, no date filter), `sweep` (all
            ids, for what is gone) or `deletions` (the service's own list of what is gone).
        cursor: Last record id that is safely stored, None before the first part.
        rows: Rows fetched so far (of this attempt chain). Equals what the objects hold for
            windows; a full pull stores only what differs from what is held.
        stored: Rows written so far.
        source_count: What the service counted for the window; None where it cannot or was not.
        requests: Requests spent so far.
        objects: Keys of the objects written so far, in order.
        attempts: Times that the chunk was started.
        error: Text of the last failure, None otherwise.
    """

    token: str
    tenant: str
    service: str
    table: str
    chunk_id: str
    partition: str
    kind: str
    start: datetime
    end: datetime
    state: ChunkState = ChunkState.PLANNED
    cursor: str | None = None
    rows: int = 0
    stored: int = 0
    source_count: int | None = None
    requests: int = 0
    objects: tuple[str, ...] = ()
    attempts: int = 0
    error: str | None = None
    planned_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    as_of: datetime | None = None
    """When the fetch of a completed chunk began: nothing that changed later is promised in it."""


@dataclass(frozen=True, slots=True)
class Covered:
    """A completed chunk as the coverage record sees it."""

    table: str
    partition: str
    kind: str
    start: datetime
    end: datetime
    as_of: datetime
    rows: int
    source_count: int | None


class Ledger(Protocol):
    """ChunkProgress, keyed by (token, tenant, service, table, chunk_id)."""

    def plan(self, chunks: Sequence[Chunk], *, now: datetime) -> list[Chunk]:
        """Inserts the rows that are not there; rows that are there stay as they are.

        Returns all rows of the keys given, in the order given, as they stand afterwards.
        """
        ...

    def rows(self, token: str, tenant: str, service: str, table: str) -> list[Chunk]:
        """All rows of one token and table, newest window first."""
        ...

    def split(self, chunk: Chunk, parts: Sequence[Chunk], *, now: datetime) -> list[Chunk]:
        """Replaces a chunk that has no progress by its parts, atomically; their requests begin
        with the chunk's, in the first. Returns the stored parts, or, if the chunk is gone, done or
        under way by now, none.
        """
        ...

    def begin(self, chunk: Chunk, *, now: datetime) -> Chunk:
        """state=running, attempts + 1, started_at=now, error=None; as_of=now if cursor is None.

        Returns the stored row. Progress (cursor, rows, objects) is kept, so the fetch resumes.
        Raises StoreError if the row is unknown.
        """
        ...

    def restart(self, chunk: Chunk, *, now: datetime) -> Chunk:
        """Forgets the chunk's progress (cursor, rows, stored, source_count, objects) but not its
        requests and attempts; as_of=now. The objects stay in the lake: they are observations."""
        ...

    def progress(
        self,
        chunk: Chunk,
        *,
        cursor: str,
        rows: int,
        stored: int,
        requests: int,
        objects: Sequence[str],
        now: datetime,
    ) -> Chunk:
        """Checkpoint after objects were written whole: sets cursor; adds rows, stored, requests;
        appends objects. Call only when the objects are readable."""
        ...

    def complete(
        self, chunk: Chunk, *, source_count: int | None, requests: int, now: datetime
    ) -> Chunk:
        """state=completed, finished_at=now; adds requests."""
        ...

    def fail(self, chunk: Chunk, *, error: str, requests: int, now: datetime) -> Chunk:
        """state=failed, finished_at=now, error; adds requests. Progress is kept.

        A chunk that another run completed meanwhile stays as it is, but for the requests.
        """
        ...

    def release(self, chunk: Chunk, *, requests: int) -> Chunk:
        """A running chunk whose fetch was told to stop is planned again; one that another run
        ended meanwhile stays as it is. Adds requests. Progress is kept."""
        ...

    def resting(self, tenant: str, service: str, table: str, *, before: datetime) -> list[Chunk]:
        """Chunks of any token that have a cursor, are not completed, and were begun or failed last
        before this moment, oldest window first."""
        ...

    def covered(
        self, tenant: str, service: str | None = None, table: str | None = None
    ) -> list[Covered]:
        """Every completed chunk, ordered by (table, start, as_of)."""
        ...

    def stretches(self, tenant: str, service: str, table: str) -> list[tuple[datetime, datetime]]:
        """What the completed windows and full pulls cover together: disjoint half-open stretches,
        oldest first, none touching the next; sweeps cover nothing. The same as
        `coverage.union(covered(...))`, without the rows."""
        ...

    def objects(self, tenant: str, service: str, table: str, partition: str) -> list[str]:
        """Keys of all objects that any token's chunks of this partition wrote."""
        ...

    def forget(self, tenant: str) -> int:
        """Removes all rows of a tenant; returns how many."""
        ...


class Secrets(Protocol):
    """One JSON object a tenant, keyed by service: {service: {field: value}}."""

    def get(self, tenant: str, service: str, *, fresh: bool = False) -> dict[str, str]:
        """Raises ConfigurationError if there are none, or they are unreadable; no value in it.

        Args:
            fresh: As they are now: those that were read a moment ago were refused, or are to be
                changed.
        """
        ...

    def put(self, tenant: str, service: str, values: dict[str, str]) -> None: ...

    def remove(self, tenant: str, service: str) -> None: ...

    def exclusive(self, tenant: str, service: str) -> AbstractContextManager[None]:
        """A block that one process and thread is in at a time for each tenant and service; `get`
        and `put` go on working for everybody. Raises StoreError after minutes of waiting."""
        ...

    def overrides(self, tenant: str) -> list[str]:
        """Names of the environment's variables that hold credentials of a tenant, sorted."""
        ...

    def forget(self, tenant: str) -> list[str]:
        """Removes all of a tenant's credentials, readable or not.

        Returns:
            The names of the services whose credentials they were, sorted; where that cannot be
            read, `*`.
        """
        ...


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What one key of the budget used.

    Attributes:
        limit: Requests per minute in force.
        used: Requests counted against the current window.
        waiting_until: When the service said it wants no request before, or None.
    """

    limit: int
    used: int
    waiting_until: datetime | None = None
    extra: dict[str, str] = field(default_factory=dict)
