"""Dagster's records in Postgres: one database for all hosts, the events of all runs in one table.

Rows that were deleted can be read by no query any more. Their bytes stay in free room of pages
until that is written over, and in what the server keeps for recovery until it ends by age. VACUUM
lets the room be written over; VACUUM FULL would write the tables anew, but keep all runs of all
tenants waiting meanwhile, and change nothing about backups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as db
from dagster._core.storage.event_log.schema import (
    SqlEventLogStorageMetadata,
    SqlEventLogStorageTable,
)
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster_postgres.utils import create_pg_engine
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from avesa_dagster.defs.erase_rows import (
    BY_ASSET,
    Database,
    Text,
    clean_events,
    naming,
    remove_by_asset,
    remove_events,
)
from avesa_dagster.defs.run_files import RUN_ID
from avesa_dagster.defs.traces import Traces
from avesa_dagster.errors import AvesaError, RetriableError, StoreError

_METADATA = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)
_BETWEEN_STATEMENTS = "READ COMMITTED"
_ONE_VIEW = "REPEATABLE READ"


@dataclass(frozen=True)
class Postgres:
    """A database that one of Dagster's storages uses, over a connection of its own: Dagster's own
    commit each statement, and tell the values of one that failed."""

    url: str = field(repr=False)
    engine: Engine = field(repr=False, compare=False)

    @classmethod
    def of(cls, storage: Any) -> Postgres:
        """The database of one of dagster_postgres's storages."""
        engine = create_pg_engine(
            storage.postgres_url,
            storage._token_provider,
            pool_size=1,
            pool_pre_ping=True,
            hide_parameters=True,
        )
        return cls(storage.postgres_url, engine)

    @property
    def name(self) -> str:
        return f"database {self.engine.url.database}"

    @contextmanager
    def _opened(self, isolation: str) -> Iterator[Connection]:
        try:
            with self.engine.connect() as opened:
                connection = opened.execution_options(isolation_level=isolation)
                with connection.begin():
                    yield connection
        except DBAPIError as error:
            raise self._told(error) from None  # its text has statements in it

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """See Database.writing.

        Raises:
            RetriableError: The database is out of reach, or two transactions stood in each other's
                way.
            StoreError: It refuses.
        """
        with self._opened(_BETWEEN_STATEMENTS) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See Database.reading. Raises what `writing` does."""
        with self._opened(_ONE_VIEW) as connection:
            yield connection

    def compact(self) -> None:
        """VACUUM of Dagster's tables; nobody waits meanwhile. See the module."""
        try:
            with self.engine.connect() as opened:
                connection = opened.execution_options(isolation_level="AUTOCOMMIT")
                there = set(db.inspect(connection).get_table_names())
                ours = {name for metadata in _METADATA for name in metadata.tables}
                for table in sorted(there & ours):
                    connection.exec_driver_sql(f'VACUUM "{table}"')
        except DBAPIError as error:
            raise self._told(error) from None

    def _told(self, error: DBAPIError) -> AvesaError:
        code = getattr(error.orig, "pgcode", None)
        said = f"PostgreSQL says {code}" if code else "it cannot be reached"
        text = f"Dagster's {self.name}: {said}"
        if isinstance(error, OperationalError):
            return RetriableError(text, hint="check AVESA_DATABASE_*, then erase again: it goes on")
        return StoreError(text, hint="look the code up in PostgreSQL's manual, then erase again")


@dataclass(frozen=True)
class PostgresEvents:
    """Implements `erase_rows.Events`."""

    database: Database

    @property
    def databases(self) -> Sequence[Database]:
        return [self.database]

    def remove(self, run_ids: Collection[str]) -> None:
        """See Events.remove."""
        with self.database.writing() as connection:
            remove_events(connection, run_ids)

    def remove_by_asset(self, traces: Traces) -> int:
        """See Events.remove_by_asset."""
        removed = {}
        for table in BY_ASSET:
            with self.database.writing() as connection:
                removed[table] = remove_by_asset(connection, table, traces)
        return removed["asset_keys"]

    def clean(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """See Events.clean."""
        with self.database.writing() as connection:
            clean_events(connection, traces, stand_in, run_id)

    def holding(self, traces: Traces) -> set[str]:
        """See Events.holding. Reads every event once."""
        events = SqlEventLogStorageTable.c
        numbers: list[int] = []
        with self.database.reading() as connection:
            for column in ("event", "step_key"):
                text = Text("event_logs", column)
                numbers += [number for number, _ in naming(connection, text, traces)]
            found: set[str] = set()
            for at in range(0, len(numbers), 1000):
                asked = db.select(events.run_id).where(events.id.in_(numbers[at : at + 1000]))
                found |= set(connection.execute(asked.distinct()).scalars())
        return {run_id for run_id in found if run_id and RUN_ID.fullmatch(run_id)}

    def names(self, run_id: str, traces: Traces) -> bool:
        """See Events.names."""
        events = SqlEventLogStorageTable.c
        asked = db.select(events.event).where(events.run_id == run_id)
        with self.database.reading() as connection:
            return any(traces.found(event) for event in connection.execute(asked).scalars())

    def forget(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """See Events.forget. If assets of others have events of the run, those stay."""
        events = SqlEventLogStorageTable.c
        others = db.select(events.id).where(
            events.run_id == run_id,
            events.asset_key.is_not(None),
            ~events.asset_key.startswith(traces.asset_prefix, autoescape=True),
        )
        with self.database.writing() as connection:
            if connection.execute(others.limit(1)).first():
                clean_events(connection, traces, stand_in, run_id)
            else:
                remove_events(connection, [run_id])

    def left(self, known: Collection[str]) -> Sequence[Database]:
        """See Events.left."""
        return ()
