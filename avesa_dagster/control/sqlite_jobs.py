"""BackfillJobs and ProcessingJobs in SQLite."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import msgspec

from avesa_dagster.control.jobs import (
    UNFINISHED,
    Job,
    JobStatus,
    PieceState,
    Processing,
    unknown_job,
)
from avesa_dagster.control.sqlite_database import Database, to_micros
from avesa_dagster.names import checked

# document: the whole row as JSON; the columns beside it are what is looked up by.
SCHEMA = (
    """
    CREATE TABLE BackfillJobs (
        job_id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        completed_at INTEGER,
        document BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX BackfillJobs_service ON BackfillJobs (tenant, service, created_at)",
    "CREATE INDEX BackfillJobs_status ON BackfillJobs (status, created_at)",
    """
    CREATE TABLE ProcessingJobs (
        run_id TEXT NOT NULL,
        tenant TEXT NOT NULL,
        service TEXT NOT NULL,
        table_name TEXT NOT NULL,
        lane TEXT NOT NULL,
        status TEXT NOT NULL,
        job_id TEXT,
        beat_at INTEGER NOT NULL,
        document BLOB NOT NULL,
        PRIMARY KEY (run_id, tenant, service, table_name)
    ) STRICT
    """,
    "CREATE INDEX ProcessingJobs_lane ON ProcessingJobs (lane, beat_at)",
    "CREATE INDEX ProcessingJobs_running ON ProcessingJobs (beat_at) WHERE status = 'running'",
    "CREATE INDEX ProcessingJobs_job ON ProcessingJobs (job_id)",
    "CREATE INDEX ProcessingJobs_beat ON ProcessingJobs (beat_at)",
)

_ENDED = f"status NOT IN ({', '.join(sorted(repr(status.value) for status in UNFINISHED))})"
_job = msgspec.json.Decoder(Job)
_processing = msgspec.json.Decoder(Processing)


class SqliteJobs:
    """Implements `control.jobs.Jobs`. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, job: Job, *, joins: Callable[[Job], bool] | None = None) -> Job:
        """See Jobs.create.

        Raises:
            ConfigurationError: A name is invalid or a time has no zone; nothing is inserted.
        """
        checked("tenant", job.tenant)
        checked("service", job.service)
        with self._database.write() as connection:
            for other in _unfinished(connection, job.tenant, job.service) if joins else ():
                if joins and joins(other):
                    return other
            connection.execute(
                "INSERT INTO BackfillJobs VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                _job_row(job),
            )
            stored = _find_job(connection, job.job_id)
        return stored or job

    def get(self, job_id: str) -> Job | None:
        """See Jobs.get."""
        with self._database.read() as connection:
            return _find_job(connection, job_id)

    def find(
        self,
        tenant: str | None = None,
        service: str | None = None,
        *,
        statuses: Collection[JobStatus] | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """See Jobs.find."""
        conditions, values = ["1"], list[str | int]()
        for column, wanted in (("tenant", tenant), ("service", service)):
            if wanted is not None:
                conditions.append(f"{column} = ?")
                values.append(wanted)
        if statuses is not None:
            conditions.append(f"status IN ({', '.join('?' * len(statuses))})")
            values += sorted(status.value for status in statuses)
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT document FROM BackfillJobs WHERE {' AND '.join(conditions)}"
                " ORDER BY created_at DESC, job_id DESC LIMIT ?",
                (*values, -1 if limit is None else limit),
            ).fetchall()
        return [_job.decode(row[0]) for row in rows]

    def ended(self, *, limit: int) -> list[Job]:
        """See Jobs.ended."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document FROM BackfillJobs WHERE rowid IN ("
                f"SELECT rowid FROM BackfillJobs WHERE {_ENDED}"
                " ORDER BY completed_at DESC, created_at DESC, job_id DESC LIMIT ?)"
                " ORDER BY completed_at DESC, created_at DESC, job_id DESC",
                (limit,),
            ).fetchall()
        return [_job.decode(row[0]) for row in rows]

    def winding_down(self) -> list[Job]:
        """See Jobs.winding_down. Looks into the documents without decoding them."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT document FROM BackfillJobs WHERE {_ENDED} AND instr(document, ?) > 0",
                (msgspec.json.encode(PieceState.LAUNCHED),),
            ).fetchall()
        found: list[Job] = [_job.decode(row[0]) for row in rows]
        return [job for job in found if _has_launched(job)]

    def change(self, job_id: str, change: Callable[[Job], Job], *, now: datetime) -> Job:
        """See Jobs.change."""
        with self._database.write() as connection:
            before = _find_job(connection, job_id)
            if before is None:
                raise unknown_job(job_id)
            after = change(before)
            if after == before:
                return before
            after = dataclasses.replace(
                after,
                job_id=before.job_id,
                tenant=before.tenant,
                service=before.service,
                created_at=before.created_at,
                updated_at=now,
            )
            connection.execute(
                "UPDATE BackfillJobs SET status = ?, completed_at = ?, document = ?"
                " WHERE job_id = ?",
                (*_job_row(after)[3:4], *_job_row(after)[5:], job_id),
            )
        return after

    def remove(self, *, finished_before: datetime) -> int:
        """See Jobs.remove."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM BackfillJobs WHERE completed_at < ?", (to_micros(finished_before),)
            ).rowcount

    def forget(self, tenant: str) -> int:
        """See Jobs.forget."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM BackfillJobs WHERE tenant = ?", (tenant,)
            ).rowcount


class SqliteProcessingJobs:
    """Implements `control.jobs.ProcessingJobs`. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self, row: Processing, *, stale_before: datetime, tenants: int | None = None
    ) -> Processing | None:
        """See ProcessingJobs.claim."""
        for kind in ("tenant", "service", "table"):
            checked(kind, getattr(row, kind))
        with self._database.write() as connection:
            held = connection.execute(
                "SELECT document FROM ProcessingJobs WHERE lane = ? AND status = 'running'"
                " AND run_id != ? AND beat_at >= ? LIMIT 1",
                (row.lane, row.run_id, to_micros(stale_before)),
            ).fetchone()
            if held is not None:
                return _processing.decode(held[0])
            if tenants is not None:
                others = _working(connection, row, stale_before)
                if len({other.tenant for other in others}) >= tenants:
                    return others[-1]
            # Whoever held it before has died; it must not seem to run when it is looked at later.
            dead = connection.execute(
                "SELECT document FROM ProcessingJobs WHERE lane = ? AND status = 'running'"
                " AND run_id != ?",
                (row.lane, row.run_id),
            ).fetchall()
            for (document,) in dead:
                died = _processing.decode(document)
                _store(
                    connection,
                    dataclasses.replace(
                        died, status="failed", error="its process died", ended_at=row.beat_at
                    ),
                )
            _store(connection, row)
        return None

    def beat(self, row: Processing) -> None:
        """See ProcessingJobs.beat."""
        with self._database.write() as connection:
            _store(connection, row)

    def under_way(self, tenant: str | None = None, *, stale_before: datetime) -> list[Processing]:
        """See ProcessingJobs.under_way."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document FROM ProcessingJobs WHERE status = 'running' AND beat_at >= ?"
                " AND (? IS NULL OR tenant = ?) ORDER BY tenant, service, table_name, run_id",
                (to_micros(stale_before), tenant, tenant),
            ).fetchall()
        return [_processing.decode(row[0]) for row in rows]

    def of_job(self, job_id: str) -> list[Processing]:
        """See ProcessingJobs.of_job."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document FROM ProcessingJobs WHERE job_id = ?", (job_id,)
            ).fetchall()
        found: list[Processing] = [_processing.decode(row[0]) for row in rows]
        return sorted(found, key=lambda row: (row.started_at, row.table, row.run_id))

    def latest(self, kind: str) -> list[Processing]:
        """See ProcessingJobs.latest."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document, max(beat_at) FROM ProcessingJobs"
                " WHERE lane >= ? || '/' AND lane < ? || '0' GROUP BY lane ORDER BY lane",
                (kind, kind),
            ).fetchall()
        return [_processing.decode(row[0]) for row in rows]

    def remove(self, *, ended_before: datetime) -> int:
        """See ProcessingJobs.remove."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM ProcessingJobs WHERE beat_at < ?", (to_micros(ended_before),)
            ).rowcount

    def forget(self, tenant: str) -> int:
        """See ProcessingJobs.forget."""
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM ProcessingJobs WHERE tenant = ?", (tenant,)
            ).rowcount


def _find_job(connection: sqlite3.Connection, job_id: str) -> Job | None:
    row = connection.execute(
        "SELECT document FROM BackfillJobs WHERE job_id = ?", (job_id,)
    ).fetchone()
    return None if row is None else _job.decode(row[0])


def _unfinished(connection: sqlite3.Connection, tenant: str, service: str) -> list[Job]:
    """Newest first."""
    rows = connection.execute(
        "SELECT document FROM BackfillJobs WHERE tenant = ? AND service = ?"
        f" AND status IN ({', '.join('?' * len(UNFINISHED))})"
        " ORDER BY created_at DESC, job_id DESC",
        (tenant, service, *sorted(status.value for status in UNFINISHED)),
    )
    return [_job.decode(document) for (document,) in rows]


def _has_launched(job: Job) -> bool:
    return any(piece.state is PieceState.LAUNCHED for piece in job.pieces)


def _job_row(job: Job) -> tuple[Any, ...]:
    return (
        job.job_id,
        job.tenant,
        job.service,
        job.status.value,
        to_micros(job.created_at),
        None if job.completed_at is None else to_micros(job.completed_at),
        msgspec.json.encode(job),
    )


def _working(
    connection: sqlite3.Connection, row: Processing, stale_before: datetime
) -> list[Processing]:
    """What works for other tenants in the row's mode; nothing if its own tenant has a place."""
    found = [
        _processing.decode(document)
        for (document,) in connection.execute(
            "SELECT document FROM ProcessingJobs WHERE status = 'running' AND beat_at >= ?"
            " ORDER BY beat_at",
            (to_micros(stale_before),),
        )
    ]
    working = [other for other in found if other.mode == row.mode and other.run_id != row.run_id]
    return [] if any(other.tenant == row.tenant for other in working) else working


def _store(connection: sqlite3.Connection, row: Processing) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO ProcessingJobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.run_id,
            row.tenant,
            row.service,
            row.table,
            row.lane,
            row.status,
            row.job_id,
            to_micros(row.beat_at),
            msgspec.json.encode(row),
        ),
    )
