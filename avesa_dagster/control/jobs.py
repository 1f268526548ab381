"""The job tables as protocols: which backfills were asked for, and which runs are under way.

Dagster is the truth about runs, the ledger about what was fetched. A job says what somebody asked
for, and how far that is. Times are timezone-aware UTC datetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from avesa_dagster.errors import ConfigurationError


class JobStatus(StrEnum):
    """PENDING waits for its turn; PAUSED for `avesa resume`. The last four are ends."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = frozenset({JobStatus.PENDING, JobStatus.RUNNING})
"""Statuses in which a job may fetch."""
UNFINISHED = ACTIVE | {JobStatus.PAUSED}


class Trigger(StrEnum):
    """Why a job exists."""

    PERSON = "person"
    """`avesa backfill`."""
    ONBOARDING = "onboarding"
    DAGSTER = "dagster"
    """Launched in the Dagster UI or with `dagster`."""
    HOLE = "hole"
    """The ledger showed something that was never fetched."""
    REPAIR = "repair"
    """`avesa verify` found windows that disagree with the source."""


@dataclass(frozen=True, slots=True)
class JobError:
    """A window that was set aside, or what ended the job (table and window are None)."""

    text: str
    table: str | None = None
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A half-open stretch [start, end) of one table that a job is restricted to."""

    table: str
    start: datetime
    end: datetime


class PieceState(StrEnum):
    WAITING = "waiting"
    LAUNCHED = "launched"
    """A run was requested; Dagster says how it is."""
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one run of a job fetches: some tables over a stretch of partitions.

    Attributes:
        number: Counts the job's pieces from 0, in the order in which they are to run.
        first, last: Keys of the first and the last partition, `YYYY-MM-DD`.
        recent: Among the tenant's newest partitions: never waits for the off-peak window.
        derive: Fetches nothing: builds the canonical tables of what a piece that failed in part
            did fetch.
        attempt: Times that it was launched.
        launched_at: When it was launched last.
        ended_at: When the run of its last launch was seen to have ended.
        error: Why it failed.
        deaths: Runs of it that died since somebody took the job up.
    """

    number: int
    tables: tuple[str, ...]
    first: str
    last: str
    recent: bool
    state: PieceState = PieceState.WAITING
    derive: bool = False
    attempt: int = 0
    launched_at: datetime | None = None
    error: str | None = None
    deaths: int = 0
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One row of BackfillJobs.

    Attributes:
        job_id: 1 to 32 of a-z, 0-9, '_' and '-'. Token of its chunks in the ledger. A backfill that
            was started in the Dagster UI has Dagster's own id.
        start, end: What was asked for, [start, end), whole partitions.
        chunk_size_days: Overrides the service's and the tenant's, or None.
        only_missing: Fetches only what the ledger does not show as covered.
        stretches: If any: fetches only these.
        at_once: Never waits for the off-peak window.
        note: Why it does not go on at present, in words; empty if it does.
        total_chunks, completed_chunks, failed_chunks, records, requests: As the ledger last said;
            chunks of pieces that are not planned yet are estimated by the calendar.
        errors: What went wrong, at most 100.
        run_ids: Dagster's ids of its runs, oldest first.
        started_at: When its first run started; a job may take 24 hours from there.
    """

    job_id: str
    tenant: str
    service: str
    tables: tuple[str, ...]
    start: datetime
    end: datetime
    trigger: Trigger
    created_at: datetime
    updated_at: datetime
    status: JobStatus = JobStatus.PENDING
    chunk_size_days: int | None = None
    only_missing: bool = False
    stretches: tuple[Stretch, ...] = ()
    at_once: bool = False
    note: str = ""
    pieces: tuple[Piece, ...] = ()
    total_chunks: int = 0
    completed_chunks: int = 0
    failed_chunks: int = 0
    records: int = 0
    requests: int = 0
    errors: tuple[JobError, ...] = ()
    run_ids: tuple[str, ...] = ()
    started_at: datetime | None = None
    completed_at: datetime | None = None


class Jobs(Protocol):
    """BackfillJobs, keyed by job_id, looked up by tenant and service."""

    def create(self, job: Job, *, joins: Callable[[Job], bool] | None = None) -> Job:
        """Inserts; a row with this id that is there stays as it is. Returns what is stored.

        Args:
            joins: Asked about each unfinished job of the tenant's service, newest first: whether
                that one makes this one superfluous. Then it is returned and nothing is inserted;
                atomic, so of two who ask for the same at once one joins the other.
        """
        ...

    def get(self, job_id: str) -> Job | None: ...

    def find(
        self,
        tenant: str | None = None,
        service: str | None = None,
        *,
        statuses: Collection[JobStatus] | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Newest first. `service` without `tenant` is not asked for."""
        ...

    def ended(self, *, limit: int) -> list[Job]:
        """Finished jobs, the one that ended last first."""
        ...

    def winding_down(self) -> list[Job]:
        """Finished jobs of which a piece is still launched."""
        ...

    def change(self, job_id: str, change: Callable[[Job], Job], *, now: datetime) -> Job:
        """Replaces the row by what `change` makes of it; atomic between processes.

        `change` may be called several times and must do nothing else; an error that it raises
        leaves the row. Sets updated_at unless nothing changed. job_id, tenant, service and
        created_at stay.

        Raises:
            ConfigurationError: There is no such job.
        """
        ...

    def remove(self, *, finished_before: datetime) -> int:
        """Removes finished jobs whose completed_at is earlier; returns how many."""
        ...

    def forget(self, tenant: str) -> int:
        """Removes all rows of a tenant; returns how many."""
        ...


@dataclass(frozen=True, slots=True)
class Processing:
    """One row of ProcessingJobs: a run over one table, as it says of itself.

    Attributes:
        run_id: Dagster's.
        lane: Who may not work at the same time: `backfill/{tenant}/{service}/{table}`, `live/…`
            or `verify/…`.
        mode: backfill, sync, full or verify.
        job_id: Its backfill job, or None.
        status: running, completed, failed or stopped.
        window: What it fetches at present, or fetched last.
        beat_at: When it last said that it lives, at most 5 s apart.
        extra: What else it says; of a verification, `disagrees` and `reached`.
    """

    run_id: str
    tenant: str
    service: str
    table: str
    lane: str
    mode: str
    started_at: datetime
    beat_at: datetime
    job_id: str | None = None
    status: str = "running"
    window: str = ""
    total_chunks: int = 0
    completed_chunks: int = 0
    records: int = 0
    requests: int = 0
    error: str | None = None
    ended_at: datetime | None = None
    extra: dict[str, str] = field(default_factory=dict)


class ProcessingJobs(Protocol):
    """ProcessingJobs, keyed by (run_id, tenant, service, table)."""

    def claim(
        self, row: Processing, *, stale_before: datetime, tenants: int | None = None
    ) -> Processing | None:
        """Inserts or replaces the row, unless another run works in its lane.

        Args:
            tenants: Of the row's mode, runs of at most so many tenants work at once.

        Returns:
            None if the row holds the lane now; else the row of the run that holds it, or that has
            the last tenant's place, whose last beat is not before `stale_before`. Atomic between
            processes.
        """
        ...

    def beat(self, row: Processing) -> None:
        """Stores what the row says now."""
        ...

    def under_way(self, tenant: str | None = None, *, stale_before: datetime) -> list[Processing]:
        """Rows with status running whose last beat is not earlier."""
        ...

    def of_job(self, job_id: str) -> list[Processing]:
        """Oldest first."""
        ...

    def latest(self, kind: str) -> list[Processing]:
        """The newest row of each lane `{kind}/…`, ordered by lane."""
        ...

    def remove(self, *, ended_before: datetime) -> int:
        """Removes rows that ended, or beat last, earlier; returns how many."""
        ...

    def forget(self, tenant: str) -> int: ...


def unknown_job(job_id: str) -> ConfigurationError:
    """The error for an id that no job has."""
    return ConfigurationError(
        f"there is no job {job_id!r}", hint="avesa jobs lists them; finished ones leave in time"
    )
