"""Backfill jobs: asking for one, and steering it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from avesa_dagster.backfill.covered import connection_coverage
from avesa_dagster.backfill.pieces import pieces
from avesa_dagster.backfill.progress import counted, ends_at, job_chunks
from avesa_dagster.backfill.schedule import off_peak_now
from avesa_dagster.backfill.span import recent_keys, requested
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import Ledger, Registry, TenantService, Watermarks
from avesa_dagster.control.jobs import (
    ACTIVE,
    UNFINISHED,
    Job,
    Jobs,
    JobStatus,
    Piece,
    PieceState,
    Stretch,
    Trigger,
)
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.sources.base import Clock, Window

LONGEST_CHUNK_DAYS = 366
_DISABLED = "the tenant service was disabled"
_RETRIED = (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.COMPLETED_WITH_ERRORS)


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks to have fetched.

    Attributes:
        tables: None: all of the connection's.
        start, end: Days, [start, end); widened to whole partitions.
        at_once: Do not wait for the off-peak window.
        job_id: None: a new one.
    """

    tenant: str
    service: str
    tables: Sequence[str] | None = None
    start: date | None = None
    end: date | None = None
    chunk_size_days: int | None = None
    at_once: bool = False
    trigger: Trigger = Trigger.PERSON
    only_missing: bool = False
    stretches: tuple[Stretch, ...] = ()
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class Backfills:
    """The jobs of an installation.

    Every change of a job is one atomic step on its row: whoever fetches looks at the row at least
    every second, so a pause or a cancellation holds within seconds, wherever it was said.
    """

    catalog: Catalog
    registry: Registry
    jobs: Jobs
    ledger: Ledger
    watermarks: Watermarks
    clock: Clock

    def start(self, wish: Wish) -> tuple[Job, bool]:
        """Makes a job, or joins one under way that fetches all of this already.

        Returns:
            The job, and whether it was there before.

        Raises:
            ConfigurationError: The wish cannot be; nothing was made.
        """
        job = self.plan(wish)

        def joins(other: Job) -> bool:
            return other.job_id != job.job_id and _fetches_all_of(other, job)

        stored = self.jobs.create(job, joins=joins)
        return stored, stored.job_id != job.job_id

    def plan(self, wish: Wish) -> Job:
        """The job that a wish would make.

        Raises:
            ConfigurationError: An unknown or disconnected tenant service, a table that is off, a
                range outside of its history, a chunk size that cannot be.
        """
        now = self.clock()
        connection = self.connection(wish.tenant, wish.service)
        tables = self._tables(connection, wish.tables)
        _check_chunk_size(wish)
        partitions = requested(connection, self.catalog, wish.start, wish.end, now)
        job = Job(
            job_id=wish.job_id or f"b{secrets.token_hex(4)}",
            tenant=wish.tenant,
            service=wish.service,
            tables=tables,
            start=partitions[0].start,
            end=partitions[-1].end,
            trigger=wish.trigger,
            created_at=now,
            updated_at=now,
            chunk_size_days=wish.chunk_size_days,
            only_missing=wish.only_missing,
            stretches=wish.stretches,
            at_once=wish.at_once,
            pieces=self._pieces(connection, tables, partitions, wish.stretches, now),
        )
        return counted(job, (), self.catalog)

    def adopt(
        self,
        job_id: str,
        connection: TenantService,
        tables: Sequence[str],
        partitions: Sequence[Partition],
    ) -> tuple[Job, Piece]:
        """The job, and the piece of it, of a run that was launched in Dagster itself.

        Two tenant services in one backfill of Dagster are two jobs; the second has the
        connection's number behind its id.
        """
        now = self.clock()
        job = Job(
            job_id=job_id,
            tenant=connection.tenant,
            service=connection.service,
            tables=(),
            start=partitions[0].start,
            end=partitions[-1].end,
            trigger=Trigger.DAGSTER,
            created_at=now,
            updated_at=now,
            status=JobStatus.RUNNING,
            at_once=True,
        )
        job = _with_run(job, tables, partitions, now)  # without a piece it would seem to be done
        stored = self.jobs.create(job)
        if (stored.tenant, stored.service) != (job.tenant, job.service):
            stored = self.jobs.create(replace(job, job_id=f"{job_id}-{connection.number}"))
        stored = self.jobs.change(
            stored.job_id, lambda held: _with_run(held, tables, partitions, now), now=now
        )
        return stored, _piece_over(stored, tables, partitions)

    def onboard(self, connection: TenantService, credentials: str) -> Job | None:
        """The first backfill of a connection, or of one that was made again: what is missing.

        Args:
            credentials: Names the generation of credentials, which is backfilled once.

        Returns:
            None if nothing is missing.
        """
        job_id = f"on{connection.number}-{credentials.lower()}"
        return self.fill(connection, Trigger.ONBOARDING, job_id=job_id)

    def fill(
        self,
        connection: TenantService,
        trigger: Trigger = Trigger.HOLE,
        *,
        job_id: str | None = None,
    ) -> Job | None:
        """A job over everything that the ledger does not show as covered; None if that is all."""
        if not connection.tables or not self._missing(connection):
            return None
        tenant, service = connection.tenant, connection.service
        wish = Wish(tenant, service, trigger=trigger, only_missing=True, job_id=job_id)
        return self.start(wish)[0]

    def fill_holes(self, connection: TenantService, holes: Sequence[Stretch]) -> Job:
        """A job over these holes.

        Raises:
            ConfigurationError: None of the tables is on.
        """
        return self._restricted(connection, holes, Trigger.HOLE)

    def repair(self, tenant: str, service: str, bad: Mapping[str, Sequence[Window]]) -> Job:
        """A job that fetches these windows of each table again.

        Raises:
            ConfigurationError: The service is not connected, or none of the tables is on.
        """
        stretches = [
            Stretch(table, window.start, window.end)
            for table, windows in sorted(bad.items())
            for window in windows
        ]
        return self._restricted(self.connection(tenant, service), stretches, Trigger.REPAIR)

    def pause(self, job_id: str, note: str = "") -> Job:
        """Stops fetching within seconds; `resume` goes on."""
        return self._turn(job_id, ACTIVE, JobStatus.PAUSED, "paused", note=note)

    def disabled(self, connection: TenantService) -> None:
        """Pauses the jobs of a connection that was disabled."""
        for job in self.jobs.find(connection.tenant, connection.service, statuses=ACTIVE):
            self.pause(job.job_id, _DISABLED)

    def enabled(self, connection: TenantService) -> list[Job]:
        """Goes on with the jobs that `disabled` paused."""
        paused = self.jobs.find(connection.tenant, connection.service, statuses={JobStatus.PAUSED})
        return [self.resume(job.job_id) for job in paused if job.note == _DISABLED]

    def resume(self, job_id: str) -> Job:
        """Goes on with what is not finished."""
        return self._turn(job_id, {JobStatus.PAUSED}, JobStatus.PENDING, "resumed")

    def cancel(self, job_id: str, note: str = "") -> Job:
        """Ends it within seconds; what is done stays."""
        return self._turn(job_id, UNFINISHED, JobStatus.CANCELLED, "cancelled", note=note)

    def retry(self, job_id: str) -> Job:
        """Takes up a job that ended before everything was fetched: just what is missing."""
        return self._turn(job_id, set(_RETRIED), JobStatus.PENDING, "retried")

    def get(self, job_id: str) -> Job:
        """Raises ConfigurationError if there is no such job."""
        job = self.jobs.get(job_id)
        if job is None:
            raise ConfigurationError(
                f"there is no job {job_id!r}",
                hint="avesa jobs lists them; finished ones leave after a while",
            )
        return job

    def refresh(self, job: Job) -> Job:
        """Stores what the ledger says of the job now."""
        chunks = job_chunks(job, self.ledger)
        return self.jobs.change(
            job.job_id, lambda held: counted(held, chunks, self.catalog), now=self.clock()
        )

    def stop_reason(self, job_id: str | None, tenant: str, service: str) -> str | None:
        """Why a run has to stop now, in words; None: it may go on."""
        row = self.registry.get(tenant, service)
        if row is None or not row.enabled:
            return "the tenant service was disconnected"
        job = None if job_id is None else self.jobs.get(job_id)
        if job is None:
            return None
        if job.status is JobStatus.PAUSED:
            return f"job {job_id} was paused"
        if job.status not in ACTIVE:
            return f"job {job_id} is {job.status.value}"
        if self.overdue(job):
            return f"job {job_id} took longer than it may"
        running = [piece for piece in job.pieces if piece.state is PieceState.LAUNCHED]
        if running and not any(self._may_run(job, piece) for piece in running):
            return "the off-peak hours are over"
        return None

    def overdue(self, job: Job) -> bool:
        """Whether the job took longer than one may."""
        hours = self.catalog.backfill.scheduling.max_hours
        return bool(job.started_at and self.clock() - job.started_at > timedelta(hours=hours))

    def needing(self) -> list[tuple[TenantService, str]]:
        """Connections that need a backfill, each with the reason in words.

        Those whose history has holes that no job is filling: never completed, enabled again, or
        connected a short while ago.
        """
        found = []
        for row in self.registry.all():
            if row.enabled and row.tables and not self._being_filled(row):
                missing = self._missing(row)
                if missing:
                    found.append((row, missing))
        return found

    def wanted(self, job: Job, table: str) -> list[Window] | None:
        """What of a table the job is to fetch; None: all of its range."""
        if job.stretches:
            return [Window(s.start, s.end) for s in job.stretches if s.table == table]
        if not job.only_missing:
            return None
        items = connection_coverage(
            self.connection(job.tenant, job.service),
            self.catalog,
            self.ledger,
            self.watermarks,
            self.clock(),
            [table],
        )
        return [hole for item in items for hole in item.holes]

    def seconds_until(self, job: Job) -> float:
        """About how long the job will wait for those of its tenant's service that are under way."""
        now = self.clock()
        seconds = 0.0
        for other in self.jobs.find(job.tenant, job.service, statuses=ACTIVE):
            chunks = job_chunks(other, self.ledger)
            ends = ends_at(counted(other, chunks, self.catalog), chunks, now)
            if other.job_id != job.job_id and ends is not None:
                seconds += max(0.0, (ends - now).total_seconds())
        return seconds

    def connection(self, tenant: str, service: str) -> TenantService:
        """Raises ConfigurationError unless the tenant service is connected."""
        row = self.registry.get(tenant, service)
        where = Where(tenant, service)
        if row is None:
            raise ConfigurationError(
                "this tenant has not connected this service",
                where=where,
                hint="avesa tenants lists what is connected",
            )
        if not row.enabled:
            raise ConfigurationError(
                "this tenant service is disconnected",
                where=where,
                hint="avesa enable, or connect it again, to fetch; what was fetched stays",
            )
        return row

    def _missing(self, row: TenantService) -> str:
        """How much of the connection's history is covered, in words; empty if all of it is."""
        items = connection_coverage(row, self.catalog, self.ledger, self.watermarks, self.clock())
        if not any(item.holes for item in items):
            return ""
        share = sum(item.share for item in items) / len(items)
        return f"{share:.0%} of its history is covered"

    def _being_filled(self, row: TenantService) -> bool:
        under_way = self.jobs.find(row.tenant, row.service, statuses=UNFINISHED)
        return any(not job.stretches for job in under_way)

    def _restricted(
        self, connection: TenantService, stretches: Iterable[Stretch], trigger: Trigger
    ) -> Job:
        held = tuple(s for s in stretches if s.table in connection.tables)
        if not held:
            raise ConfigurationError(
                "none of these tables is on for this tenant",
                where=Where(connection.tenant, connection.service),
                hint=f"on: {', '.join(connection.tables)}",
            )
        wish = Wish(
            connection.tenant,
            connection.service,
            tables=sorted({s.table for s in held}),
            start=max(min(s.start for s in held), connection.history_start).date(),
            end=max(s.end for s in held).date() + timedelta(days=1),
            trigger=trigger,
            at_once=True,
            stretches=held,
        )
        return self.start(wish)[0]

    def _tables(self, connection: TenantService, tables: Sequence[str] | None) -> tuple[str, ...]:
        if tables is None:
            return connection.tables
        for table in tables:
            if table not in connection.tables:
                known = self.catalog.services[connection.service].tables
                state = "off for this tenant" if table in known else "unknown"
                raise ConfigurationError(
                    f"the table {table!r} is {state}",
                    where=Where(connection.tenant, connection.service),
                    hint=f"on: {', '.join(connection.tables)}",
                )
        return tuple(sorted(set(tables)))

    def _pieces(
        self,
        connection: TenantService,
        tables: Sequence[str],
        partitions: Sequence[Partition],
        stretches: Sequence[Stretch],
        now: datetime,
    ) -> tuple[Piece, ...]:
        return pieces(
            tables,
            partitions,
            self.catalog.services[connection.service],
            self.catalog.backfill.scheduling,
            recent=recent_keys(connection, self.catalog, now),
            stretches=stretches,
        )

    def _turn(
        self,
        job_id: str,
        allowed: Iterable[JobStatus],
        status: JobStatus,
        turned: str,
        *,
        note: str = "",
    ) -> Job:
        self.get(job_id)
        now = self.clock()
        allowed = frozenset(allowed)

        def change(job: Job) -> Job:
            if job.status not in allowed:
                raise ConfigurationError(
                    f"job {job_id} is {job.status.value} and cannot be {turned}",
                    where=Where(job.tenant, job.service),
                    hint=_possible(job),
                )
            return _turned(job, status, note, now)

        return self.jobs.change(job_id, change, now=now)

    def _may_run(self, job: Job, piece: Piece) -> bool:
        return off_peak_now(job, piece, self.catalog, self.clock())


def _possible(job: Job) -> str:
    """What can be done with a job, in words."""
    if job.status in ACTIVE:
        return "it is under way: avesa pause and avesa cancel are possible"
    if job.status is JobStatus.PAUSED:
        return "avesa resume goes on with it, avesa cancel ends it"
    if job.status in _RETRIED:
        return "avesa retry takes up what of it is missing"
    return "all of it has arrived; avesa backfill fetches it again"


def _turned(job: Job, status: JobStatus, note: str, now: datetime) -> Job:
    if status is not JobStatus.PENDING:
        ended = now if status not in UNFINISHED else None
        pieces = tuple(map(_followed, job.pieces))
        return replace(job, status=status, note=note, completed_at=ended, pieces=pieces)
    pieces = tuple(map(_anew, job.pieces))
    if all(piece.state is PieceState.DONE for piece in pieces):  # and yet something is missing
        pieces = tuple(
            piece if piece.derive else replace(piece, state=PieceState.WAITING) for piece in pieces
        )
    return replace(
        job,
        status=status,
        note=note,
        pieces=pieces,
        errors=(),
        started_at=None,
        completed_at=None,
    )


def _followed(piece: Piece) -> Piece:
    """The piece of a job that may not fetch any more: launched until its newest run has ended.

    One that was taken up again and not launched since may still have the run from before.
    """
    if piece.state is PieceState.WAITING and piece.attempt:
        return replace(piece, state=PieceState.LAUNCHED)
    return piece


def _anew(piece: Piece) -> Piece:
    """The piece of a job that is taken up again: what is done stays so."""
    if piece.derive:
        return replace(piece, state=PieceState.DONE, error=None)
    if piece.state is PieceState.DONE:
        return piece
    return replace(piece, state=PieceState.WAITING, error=None, deaths=0)


def _with_run(
    job: Job, tables: Sequence[str], partitions: Sequence[Partition], now: datetime
) -> Job:
    """The job with the piece that a run launched in Dagster fetches.

    A job that ended before this run of its backfill was seen goes on; one that somebody paused or
    cancelled does not, and the run will notice.
    """
    if any(_is_over(piece, tables, partitions) for piece in job.pieces):
        return job
    piece = Piece(
        number=len(job.pieces),
        tables=tuple(sorted(tables)),
        first=partitions[0].key,
        last=partitions[-1].key,
        recent=True,
        state=PieceState.LAUNCHED,
        attempt=1,
        launched_at=now,
    )
    if job.status not in UNFINISHED | {JobStatus.CANCELLED}:
        job = replace(job, status=JobStatus.RUNNING, note="", started_at=None, completed_at=None)
    return replace(
        job,
        tables=tuple(sorted({*job.tables, *tables})),
        start=min(job.start, partitions[0].start),
        end=max(job.end, partitions[-1].end),
        pieces=(*job.pieces, piece),
    )


def _piece_over(job: Job, tables: Sequence[str], partitions: Sequence[Partition]) -> Piece:
    return next(piece for piece in job.pieces if _is_over(piece, tables, partitions))


def _is_over(piece: Piece, tables: Sequence[str], partitions: Sequence[Partition]) -> bool:
    stretch = (partitions[0].key, partitions[-1].key)
    return piece.tables == tuple(sorted(tables)) and (piece.first, piece.last) == stretch


def _fetches_all_of(other: Job, job: Job) -> bool:
    """Whether a job under way makes this one superfluous."""
    return (
        set(job.tables) <= set(other.tables)
        and other.start <= job.start
        and job.end <= other.end
        and (other.stretches == job.stretches or _includes_stretches(other, job))
        and (job.only_missing or not other.only_missing or bool(job.stretches))
        and job.chunk_size_days in (None, other.chunk_size_days)
        and (other.at_once or not job.at_once or job.trigger is not Trigger.PERSON)
    )


def _includes_stretches(other: Job, job: Job) -> bool:
    """Whether a job over everything fetches these stretches; it may have passed those that a
    repair is for."""
    return not other.stretches and job.trigger is not Trigger.REPAIR


def _check_chunk_size(wish: Wish) -> None:
    days = wish.chunk_size_days
    if days is not None and not 1 <= days <= LONGEST_CHUNK_DAYS:
        raise ConfigurationError(
            f"a chunk of {days} days is not possible",
            where=Where(wish.tenant, wish.service),
            hint=f"--chunk-size-days takes 1 to {LONGEST_CHUNK_DAYS}; nothing was started",
        )
