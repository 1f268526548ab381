"""The control tables in one SQLite file: the embedded profile needs no server.

TenantServices, LastUpdated and ChunkProgress lie in one file, so that a copy of it (made with
`sqlite3 FILE '.backup COPY'`) is consistent. Times are integer microseconds since 1970 in UTC.
"""

from __future__ import annotations

from pathlib import Path

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control import sqlite_health, sqlite_jobs, sqlite_ledger, sqlite_registry
from avesa_dagster.control.sqlite_database import Database
from avesa_dagster.control.sqlite_health import (
    SqliteAlarms,
    SqliteBreakers,
    SqliteCounters,
    SqliteDriftLog,
)
from avesa_dagster.control.sqlite_jobs import SqliteJobs, SqliteProcessingJobs
from avesa_dagster.control.sqlite_ledger import SqliteLedger
from avesa_dagster.control.sqlite_registry import SqliteRegistry, SqliteWatermarks

_UPGRADES = (
    # 1 to 2: jobs and health; the index that answers coverage.
    (*sqlite_jobs.SCHEMA, *sqlite_health.SCHEMA, *sqlite_ledger.UPGRADE_2),
)


class SqliteControl:
    """Opens, or creates, the control tables in `path`. Safe for many threads and processes.

    Every change is one transaction with a durable commit: after SIGKILL or power loss nothing that
    a method returned is lost.

    Attributes:
        registry: TenantServices.
        watermarks: LastUpdated.
        ledger: ChunkProgress.
        jobs: BackfillJobs.
        processing: ProcessingJobs.
        breakers, counters, alarms, drift: See `control.health`.

    Args:
        path: The database file; missing folders are made. Must lie on a local disk: SQLite's
            locks do not hold on network file systems.
        busy_seconds: How long a call waits for the transactions of others.
        breaker: When breakers open, and for how long.

    Raises:
        StoreError: If the file cannot be opened, is corrupt, or a newer AVESA wrote it.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_seconds: float = 30.0,
        breaker: BreakerSettings = BreakerSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.database = Database(
            path,
            schema=(*sqlite_registry.SCHEMA, *sqlite_ledger.SCHEMA),
            upgrades=_UPGRADES,
            busy_seconds=busy_seconds,
        )
        self.registry = SqliteRegistry(self.database)
        self.watermarks = SqliteWatermarks(self.database)
        self.ledger = SqliteLedger(self.database)
        self.jobs = SqliteJobs(self.database)
        self.processing = SqliteProcessingJobs(self.database)
        self.breakers = SqliteBreakers(self.database, breaker)
        self.counters = SqliteCounters(self.database)
        self.alarms = SqliteAlarms(self.database)
        self.drift = SqliteDriftLog(self.database)

    def close(self) -> None:
        """Closes the open files; a later call opens them again."""
        self.database.close()
