"""The questions that people and sensors ask of the state tables, with a full ledger."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from avesa_dagster.backfill.covered import connection_coverage, connection_holes
from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.backfill.progress import counted, ends_at, job_chunks
from avesa_dagster.backfill.schedule import turns
from avesa_dagster.catalog.grain import Partition, partitions
from avesa_dagster.catalog.models import Grain
from avesa_dagster.cli.jobs import listed
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus, PieceState
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.bench.measure import Measured, Meter

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SERVICE = "connectwise"
TABLES = ("companies", "contacts", "tickets", "time_entries")
TENANTS = 250
JOBS_EACH = 2
RUNNING, PENDING, PAUSED = 5, 40, 10
LARGEST = "t000"
"""A tenant with a twentieth of all chunks of the ledger."""
LARGEST_JOB = f"j0-{LARGEST}"
_CHUNKS_A_MONTH = 10
_LARGEST_CHUNKS_A_MONTH = 40
_ROUNDS = 15

_Row = tuple[str | int | None, ...]


def prepare(home: str, chunks: int) -> Measured:
    """Connects the tenants, and fills the ledger and the job table.

    Each table of a tenant has two backfills of 24 months, ten chunks a month, and else the chunks
    of hourly syncs. Of the newer jobs, some run, wait and are paused; the others have ended.
    """
    installation = _installation(home)
    meter = Meter()
    with meter:
        rows = _connect(installation)
        jobs = _jobs(installation, rows)
        each = chunks * 19 // 20 // (TENANTS * len(TABLES))
        count = 0
        for row in rows:
            amount = each if row.tenant != LARGEST else each + chunks // 20 // len(TABLES)
            count += _fill(installation, row, jobs[row.tenant], amount)
        installation.control.close()
    return meter.measured(count)


def ask(home: str) -> Measured:
    """Asks each question some rounds, in turn; `extra` has each one's median milliseconds."""
    installation = _installation(home)
    control, catalog = installation.control, installation.catalog
    largest, usual = (_connection(installation, tenant) for tenant in (LARGEST, "t100"))
    running = control.jobs.find("t002", limit=1)[0].job_id

    def progress(job_id: str) -> object:
        job = installation.backfills.get(job_id)
        chunks = job_chunks(job, control.ledger)
        return ends_at(counted(job, chunks, catalog), chunks, NOW)

    def covered(row: TenantService) -> object:
        return connection_coverage(
            row, catalog, control.ledger, control.watermarks, NOW, ["tickets"]
        )

    def holes(row: TenantService) -> object:
        return connection_holes(row, catalog, control.ledger, control.watermarks, NOW)

    def following() -> object:
        ended = control.jobs.find(statuses=set(JobStatus) - UNFINISHED, limit=50)
        known = {(b.tenant, b.service): b for b in control.breakers.all()}
        return turns([*control.jobs.find(statuses=UNFINISHED), *ended], known, catalog, NOW)

    questions: dict[str, Callable[[], object]] = {
        "jobs": lambda: listed(installation, None, 50),
        "jobs of a tenant": lambda: listed(installation, usual.tenant, 50),
        "progress": lambda: progress(running),
        "progress of the largest": lambda: progress(LARGEST_JOB),
        "coverage": lambda: covered(usual),
        "coverage of the largest": lambda: covered(largest),
        "next": following,
        "holes": lambda: holes(usual),
        "holes of the largest": lambda: holes(largest),
        "breakers": control.breakers.all,
    }
    took: dict[str, list[float]] = {}
    meter = Meter()
    for _ in range(_ROUNDS):
        for name, question in questions.items():
            began, busy = time.perf_counter(), time.process_time()
            with meter:
                question()
            took.setdefault(name, []).append(1000 * (time.perf_counter() - began))
            took.setdefault(f"{name}, CPU", []).append(1000 * (time.process_time() - busy))
    medians = {name: statistics.median(found) for name, found in took.items()}
    control.close()
    return meter.measured(_ROUNDS, **medians)


def _installation(home: str) -> Installation:
    shipped = Settings.from_environment({})
    return Installation(Settings(home=Path(home), mappings=shipped.mappings), clock=lambda: NOW)


def _connect(installation: Installation) -> list[TenantService]:
    registry, breakers = installation.control.registry, installation.control.breakers
    rows = []
    for number in range(TENANTS):
        tenant = f"t{number:03}"
        row = registry.connect(
            tenant,
            SERVICE,
            history_start=datetime(2024, 12, 1, tzinfo=UTC),
            tables=TABLES,
            requests_per_minute=None,
            now=NOW - timedelta(days=1),
        )
        rows.append(row)
        if number % 10 == 1:
            breakers.failed(tenant, SERVICE, "it is down", credentials=number % 20 == 1, now=NOW)
        for table in TABLES:
            installation.control.watermarks.advance(
                tenant, SERVICE, table, lower=NOW, upper=NOW, now=NOW
            )
    return rows


def _jobs(installation: Installation, rows: list[TenantService]) -> dict[str, list[Job]]:
    """tenant -> its jobs, the newest last."""
    made: dict[str, list[Job]] = {}
    for number, row in enumerate(rows):
        for turn in range(JOBS_EACH):
            wish = Wish(row.tenant, SERVICE, job_id=f"j{turn}-{row.tenant}")
            created = NOW - timedelta(hours=1 + 24 * (JOBS_EACH - turn), minutes=number)
            job = replace(installation.backfills.plan(wish), created_at=created, started_at=created)
            status = _status(number) if turn == JOBS_EACH - 1 else JobStatus.COMPLETED
            ended = None if status in UNFINISHED else created + timedelta(minutes=30)
            state = PieceState.LAUNCHED if status is JobStatus.RUNNING else PieceState.WAITING
            job = replace(
                job,
                status=status,
                completed_at=ended,
                pieces=tuple(
                    replace(piece, state=PieceState.DONE if ended else state, launched_at=created)
                    for piece in job.pieces
                ),
            )
            made.setdefault(row.tenant, []).append(installation.control.jobs.create(job))
    return made


def _status(number: int) -> JobStatus:
    for status, many in (
        (JobStatus.RUNNING, RUNNING),
        (JobStatus.PENDING, PENDING),
        (JobStatus.PAUSED, PAUSED),
    ):
        if number < many:
            return status
        number -= many
    return JobStatus.COMPLETED_WITH_ERRORS if number % 7 == 0 else JobStatus.COMPLETED


def _fill(installation: Installation, row: TenantService, jobs: list[Job], amount: int) -> int:
    """Chunks of each table of a connection; returns how many."""
    months = list(partitions(Grain.MONTHLY, row.history_start, NOW))
    found: list[_Row] = []
    for table in TABLES:
        own = [chunk for job in jobs for chunk in _backfilled(row, table, job, months)]
        found += own
        found += _synced(row, table, amount - len(own))
    with installation.control.database.write() as connection:
        connection.executemany(
            "INSERT INTO ChunkProgress (tenant, service, table_name, token, chunk_id, partition,"
            " kind, window_start, window_end, state, rows, stored, source_count, requests,"
            " objects, attempts, planned_at, started_at, finished_at, as_of)"
            f" VALUES ({', '.join('?' * 20)})",
            found,
        )
    return len(found)


def _backfilled(
    row: TenantService, table: str, job: Job, months: list[Partition]
) -> Iterator[_Row]:
    """The chunks of a job: all done if it ended, else the newer half."""
    many = _LARGEST_CHUNKS_A_MONTH if job.job_id == LARGEST_JOB else _CHUNKS_A_MONTH
    done_from = months[0 if job.completed_at else len(months) // 2].start
    for month in months:
        length = (month.end - month.start) / many
        for place in range(many):
            start = month.start + place * length
            if start < NOW:
                done = start >= done_from
                yield _chunk(row, table, job.job_id, month, start, start + length, done=done)


def _synced(row: TenantService, table: str, amount: int) -> Iterator[_Row]:
    """The chunks of the hourly syncs of so many hours up to now."""
    for number in range(max(0, amount)):
        start = NOW - timedelta(minutes=60 * (number + 1) / max(1, amount / 4000))
        month = next(iter(partitions(Grain.MONTHLY, start, start)))
        end = min(month.end, start + timedelta(hours=1))
        yield _chunk(row, table, f"run-{number}", month, start, end, done=True)


def _chunk(
    row: TenantService,
    table: str,
    token: str,
    month: Partition,
    start: datetime,
    end: datetime,
    *,
    done: bool,
) -> _Row:
    seen = _micros(NOW - timedelta(hours=3))
    name = f"{row.tenant}/raw/{SERVICE}/{table}/dt={month.key}/{start:%Y%m%dT%H%M%S}.parquet"
    return (
        row.tenant, SERVICE, table, token, f"{start:%Y%m%dT%H%M%S}-{end:%Y%m%dT%H%M%S}",
        month.key, "window", _micros(start), _micros(end), "completed" if done else "planned",
        900 if done else 0, 900 if done else 0, 900 if done else None, 2 if done else 0,
        f'["{name}"]' if done else "[]", int(done), seen, *([seen] * 3 if done else [None] * 3),
    )  # fmt: skip


def _micros(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000


def _connection(installation: Installation, tenant: str) -> TenantService:
    return installation.backfills.connection(tenant, SERVICE)
