"""Jobs, a clock and runs without Dagster, for the tests of what moves jobs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from avesa_dagster.backfill.jobs import Backfills
from avesa_dagster.backfill.settle import RunState, Seen
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog, Grain, Scheduling, TenantOverrides
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import ACTIVE, Job, JobStatus, Piece, PieceState, Trigger
from avesa_dagster.control.sqlite import SqliteControl

SERVICE = "connectwise"
NOW = datetime(2026, 7, 14, 10, tzinfo=UTC)
CATALOG = load_catalog(Path(__file__).parents[2] / "mappings")


def catalog_of(
    *, grain: Grain = Grain.MONTHLY, zones: dict[str, str] | None = None, **scheduling: Any
) -> Catalog:
    """The real catalog with this grain, these time zones of tenants and this scheduling."""
    own = CATALOG.backfill.services[SERVICE].model_copy(update={"partitions": grain})
    backfill = CATALOG.backfill.model_copy(
        update={
            "services": {SERVICE: own},
            "scheduling": Scheduling(max_concurrent_runs=200, **scheduling),
            "tenants": {
                tenant: {SERVICE: TenantOverrides(timezone=zone)}
                for tenant, zone in (zones or {}).items()
            },
        }
    )
    return CATALOG.model_copy(update={"backfill": backfill})


class HandClock:
    """Stands still until somebody moves it."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **passes: float) -> datetime:
        self.now += timedelta(**passes)
        return self.now


def connection_of(
    tenant: str = "acme",
    *,
    start: datetime = datetime(2025, 1, 1, tzinfo=UTC),
    tables: tuple[str, ...] = ("contacts", "tickets"),
) -> TenantService:
    """A row of the registry that stands in no registry."""
    return TenantService(tenant, SERVICE, 1, 1, True, start, tables, None, start, start)


def piece_of(number: int = 0, **fields: Any) -> Piece:
    """A recent piece over May and June 2026, of tickets, that waits."""
    base = Piece(number, ("tickets",), "2026-05-01", "2026-06-01", recent=True)
    return replace(base, **fields)


def job_of(job_id: str = "b1", *pieces: Piece, tenant: str = "acme", **fields: Any) -> Job:
    """A job over May and June 2026; of one waiting piece if none is given."""
    base = Job(
        job_id=job_id,
        tenant=tenant,
        service=SERVICE,
        tables=("tickets",),
        start=datetime(2026, 5, 1, tzinfo=UTC),
        end=datetime(2026, 7, 1, tzinfo=UTC),
        trigger=Trigger.PERSON,
        created_at=NOW,
        updated_at=NOW,
        pieces=pieces or (piece_of(),),
    )
    return replace(base, **fields)


@dataclass
class Run:
    """A run as Dagster would know it.

    Attributes:
        told: Somebody said on it that it is being stopped.
    """

    run_id: str
    job: Job
    piece: Piece
    state: RunState = RunState.QUEUED
    error: str | None = None
    told: bool = False

    @property
    def lane(self) -> tuple[str, str]:
        return self.job.tenant, self.job.service

    @property
    def under_way(self) -> bool:
        return self.state in (RunState.QUEUED, RunState.RUNNING)


@dataclass
class FakeRuns:
    """Implements `moves.Runs` in memory, with Dagster's rules: a name is launched once, a queued
    run that is taken out of the queue counts as terminated."""

    runs: list[Run] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    lose: int = 0
    """So many of the next requests never become a run."""

    def request(self, job: Job, piece: Piece) -> Run | None:
        name = f"{job.job_id}-{piece.number}.{piece.attempt}"
        if self.lose:
            self.lose -= 1
            return None
        if name in self.names:
            return None
        self.names.add(name)
        self.runs.append(Run(f"run-{len(self.runs)}", job, piece))
        return self.runs[-1]

    def of(self, job: Job) -> list[Run]:
        return [run for run in self.runs if run.job.job_id == job.job_id]

    def seen(self, job: Job) -> dict[int, Seen]:
        """See Runs.seen."""
        return {
            piece.number: self._newest(job, piece)
            for piece in job.pieces
            if piece.state is PieceState.LAUNCHED
        }

    def hold_back(self, job: Job) -> None:
        """See Runs.hold_back."""
        if job.status in ACTIVE:
            return
        for run in self.of(job):
            if run.state is RunState.QUEUED:
                run.state = RunState.TERMINATED
            run.told = run.told or run.state is RunState.RUNNING

    def _newest(self, job: Job, piece: Piece) -> Seen:
        named = (piece.number, piece.attempt)
        for run in reversed(self.of(job)):
            if (run.piece.number, run.piece.attempt) == named:
                return Seen(run.state, run.run_id, run.error)
        return Seen(RunState.NONE)


class Books:
    """The control tables of connected tenants, and their jobs, on one clock."""

    def __init__(self, folder: Path, *tenants: str, catalog: Catalog | None = None) -> None:
        self.catalog = catalog or catalog_of()
        self.clock = HandClock()
        self.control = SqliteControl(folder / "control.db")
        self.control.database._durable = False  # nobody pulls the plug here
        self.control.close()
        for tenant in tenants or ("acme",):
            self.connect(tenant)
        self.backfills = Backfills(
            self.catalog,
            self.control.registry,
            self.control.jobs,
            self.control.ledger,
            self.control.watermarks,
            self.clock,
        )

    def connect(self, tenant: str, *, start: datetime = datetime(2026, 2, 1, tzinfo=UTC)) -> None:
        self.control.registry.connect(
            tenant, SERVICE, history_start=start, tables=("contacts", "tickets"),
            requests_per_minute=None, now=self.clock(),
        )  # fmt: skip

    def job(self, job_id: str = "b1") -> Job:
        return self.backfills.get(job_id)

    def put(self, job: Job) -> Job:
        return self.control.jobs.create(job)

    def turn(self, job_id: str, **fields: Any) -> Job:
        """Changes the row of a job behind everybody's back."""
        return self.control.jobs.change(
            job_id, lambda held: replace(held, **fields), now=self.clock()
        )


ENDS = frozenset(JobStatus) - ACTIVE - {JobStatus.PAUSED}
