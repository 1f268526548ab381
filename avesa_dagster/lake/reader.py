"""The public way to read: exact at every moment.

    reader = Reader(objects, catalog)
    reader.current("acme", "tickets").df()
    reader.as_of("acme", "tickets", datetime(2024, 3, 31, tzinfo=UTC)).arrow()
    reader.query("acme", "SELECT status, count(*) FROM tickets GROUP BY ALL")

Where a history's generation covers all canonical partitions it is read as it is. Where it is
behind, the records that changed since are derived on the spot, and the others are read from it.
"""

# ruff: noqa: S608 - SQL is built from checked names and quoted literals only.
from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import duckdb
import pyarrow as pa

from avesa_dagster.canonical.derivation import (
    HISTORY_ONLY,
    RECORD,
    derive,
    empty,
    fingerprint,
    history_columns,
)
from avesa_dagster.canonical.history import (
    Manifest,
    Restless,
    canonical_inputs,
    canonical_table,
    covers,
    read_manifest,
    standing,
)
from avesa_dagster.catalog.models import CanonicalTable, Catalog, ScdType
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.lake.database import (
    MEMORY_LIMIT,
    THREADS,
    connect,
    explained,
    identifier,
    literal,
    parquet,
)
from avesa_dagster.lake.objects import Conflict, Objects
from avesa_dagster.lake.sandbox import checked_query, lock, run
from avesa_dagster.names import checked

ATTEMPTS = 10
"""Rounds of reading while partitions and generations are replaced, before giving up."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A history as SQL: a SELECT of `history_columns`, and the files that it reads.

    `dropped` is a table to drop once a view stands on it.
    """

    sql: str
    files: tuple[str, ...]
    dropped: str | None = None


class Reader:
    """Reads canonical tables of a lake.

    A relation reads when it is fetched; fetch it before the history is rebuilt twice, for then
    the generation that it reads is removed.

    Args:
        objects: The lake.
        catalog: Which canonical tables there are, and which service tables feed them.
        tenants: The tenants that there are, so that one without data yet is no mistake. Without
            them, a tenant is one that has any object in the lake.
        memory_limit: Of the engine, for each relation.
        threads: Of the engine, for each relation.
    """

    def __init__(
        self,
        objects: Objects,
        catalog: Catalog,
        *,
        tenants: Collection[str] | None = None,
        memory_limit: str = MEMORY_LIMIT,
        threads: int = THREADS,
    ) -> None:
        self._objects = objects
        self._catalog = catalog
        self._tenants = tenants
        self._memory_limit = memory_limit
        self._threads = threads

    def tables(self, tenant: str) -> list[str]:
        """The canonical tables that hold data of a tenant, by name.

        Raises:
            ConfigurationError: There is no such tenant.
        """
        held = [name for name in sorted(self._catalog.canonical) if self._inputs(tenant, name)]
        if not held:
            self._known(tenant)
        return held

    def current(self, tenant: str, table: str) -> duckdb.DuckDBPyRelation:
        """The records as they are now: one row a record that is not deleted.

        Returns:
            The table's fields, `tenant_id`, `source_service`, `source_table`, `record_hash`,
            `ingested_at`, `first_observed_at`, `effective_start_date`, `effective_start_origin`.

        Raises:
            ConfigurationError: There is no such tenant or table.
            StoreError: The lake cannot be read.
        """
        canonical, connection = self._open(tenant, table)
        answer = self._history(connection, tenant, canonical)
        return self._relation(
            connection,
            f"SELECT {_present(canonical)} FROM ({answer.sql}) WHERE is_current",
            tenant,
            table,
        )

    def history(self, tenant: str, table: str) -> duckdb.DuckDBPyRelation:
        """Every version that holds or held (type 2), or each record's last one (type 1).

        Returns:
            The columns of `current`, and `effective_end_date`, `is_current`, `record_version`
            and `effective_end_origin`. A row holds from its start until just before its end.

        Raises:
            ConfigurationError: There is no such tenant or table.
            StoreError: The lake cannot be read.
        """
        canonical, connection = self._open(tenant, table)
        answer = self._history(connection, tenant, canonical)
        return self._relation(connection, answer.sql, tenant, table)

    def as_of(self, tenant: str, table: str, moment: datetime) -> duckdb.DuckDBPyRelation:
        """The records as they were at a moment, with the columns of `current`.

        Also of a type 1 table: its versions are kept, though its history shows the last only.

        Args:
            tenant: Whose data.
            table: The canonical table.
            moment: With a time zone.

        Raises:
            ConfigurationError: There is no such tenant or table, or the moment has no time zone.
            StoreError: The lake cannot be read.
        """
        if moment.tzinfo is None:
            raise ConfigurationError(
                f"{moment} has no time zone",
                where=Where(tenant, table=table),
                hint="pass one, for example moment.replace(tzinfo=UTC)",
            )
        canonical, connection = self._open(tenant, table)
        if canonical.scd_type == ScdType.TYPE_2:
            answer = self._history(connection, tenant, canonical)
        else:
            answer = self._derived_at(connection, tenant, canonical, moment)
        at = f"TIMESTAMPTZ {literal(moment.isoformat())}"
        return self._relation(
            connection,
            f"SELECT {_present(canonical)} FROM ({answer.sql}) WHERE effective_start_date <= {at} "
            f"AND (effective_end_date > {at} OR effective_end_date IS NULL)",
            tenant,
            table,
        )

    def query(self, tenant: str, sql: str) -> pa.Table:
        """Answers one SELECT over a tenant's tables, and can do nothing else.

        Args:
            tenant: Whose data; no other tenant's can be read, nor any file.
            sql: DuckDB SQL. For each canonical table there are `{table}` (as `current`) and
                `{table}_history` (as `history`).

        Returns:
            The whole answer, in memory.

        Raises:
            ConfigurationError: The text is no single reading statement or fails; one line says
                why. Or there is no such tenant.
            StoreError: The lake cannot be read.
        """
        if not any(self._inputs(tenant, name) for name in self._catalog.canonical):
            self._known(tenant)
        where = Where(tenant)
        with self._connect() as connection:
            statement = checked_query(connection, sql, where)
            files: list[str] = []
            for name, canonical in self._catalog.canonical.items():
                answer = self._view(connection, tenant, canonical, name.lower() in sql.lower())
                files += answer.files
                history = identifier(f"{name}_history")
                connection.execute(f"CREATE VIEW {history} AS {answer.sql}")
                connection.execute(
                    f"CREATE VIEW {identifier(name)} AS "
                    f"SELECT {_present(canonical)} FROM {history} WHERE is_current"
                )
                if answer.dropped:
                    connection.execute(f"DROP TABLE {answer.dropped}")
            lock(connection, files)
            return run(connection, statement, where)

    def _view(
        self,
        connection: duckdb.DuckDBPyConnection,
        tenant: str,
        canonical: CanonicalTable,
        named: bool,
    ) -> _Answer:
        """A history for `query`; what would have to be derived is, if the query names it."""
        inputs = self._inputs(tenant, canonical.table)
        manifest = read_manifest(self._objects, tenant, canonical.table)
        if named or not inputs or (manifest and covers(self._objects, manifest, canonical, inputs)):
            return self._history(connection, tenant, canonical)
        # Any answer would be a wrong one. A view whose table is gone is listed, yet gives none.
        stub = identifier(f"write the name {canonical.table} plainly in the query")
        connection.execute(f"CREATE TEMP TABLE {stub} AS {empty(canonical)}")
        return _Answer(f"SELECT * FROM {stub}", (), dropped=stub)

    def _history(
        self, connection: duckdb.DuckDBPyConnection, tenant: str, canonical: CanonicalTable
    ) -> _Answer:
        """The history as of now; leaves what had to be derived in schema `avesa`."""
        table = canonical.table
        columns = ", ".join(map(identifier, history_columns(canonical)))
        for _ in range(ATTEMPTS):
            # The manifest first: what it covers was there before the listing.
            manifest = read_manifest(self._objects, tenant, table)
            inputs = self._inputs(tenant, table)
            try:
                with self._reading(tenant, table, inputs):
                    if manifest is None or not self._serves(manifest, canonical, inputs):
                        answer = self._derived(connection, canonical, inputs, columns)
                    elif manifest.inputs == inputs:
                        answer = self._generation(manifest, columns)
                    else:
                        answer = self._patched(connection, canonical, manifest, inputs, columns)
                    connection.execute(f"DESCRIBE {answer.sql}").fetchall()
            except Conflict:
                continue
            except StoreError:
                # The generation may have been removed while it was looked at.
                if manifest is None or self._objects.stat(manifest.generation):
                    raise
                continue
            return answer
        raise _restless(tenant, table)

    @contextmanager
    def _reading(self, tenant: str, table: str, inputs: dict[str, str]) -> Iterator[None]:
        where = Where(tenant, table=table)
        with (
            explained("reading the history", where),
            standing(self._objects, self._catalog, tenant, table, inputs),
        ):
            yield

    def _serves(
        self, manifest: Manifest, canonical: CanonicalTable, inputs: dict[str, str]
    ) -> bool:
        """Whether the generation can answer for records in unchanged partitions."""
        return (
            manifest.fingerprint == fingerprint(canonical)
            and manifest.inputs.keys() <= inputs.keys()
            and self._objects.stat(manifest.generation) is not None
        )

    def _generation(self, manifest: Manifest, columns: str) -> _Answer:
        path = self._objects.location(manifest.generation)
        return _Answer(f"SELECT {columns} FROM {parquet([path])}", (path,))

    def _derived(
        self,
        connection: duckdb.DuckDBPyConnection,
        canonical: CanonicalTable,
        inputs: dict[str, str],
        columns: str,
        records: str | None = None,
    ) -> _Answer:
        if not inputs:
            return _Answer(empty(canonical), ())
        wide = derive(
            connection,
            canonical,
            [self._objects.location(key) for key in inputs],
            every_version=canonical.scd_type == ScdType.TYPE_2,
            records=records,
        )
        fresh = f"avesa.{identifier(canonical.table)}"
        connection.execute(f"CREATE OR REPLACE TABLE {fresh} AS {wide}")
        connection.execute("DROP TABLE pieces")
        return _Answer(f"SELECT {columns} FROM {fresh}", ())

    def _patched(
        self,
        connection: duckdb.DuckDBPyConnection,
        canonical: CanonicalTable,
        manifest: Manifest,
        inputs: dict[str, str],
        columns: str,
    ) -> _Answer:
        """The generation, but for records that lie in partitions which it does not cover.

        Raw is append-only, so a record that lay in a partition lies there still.
        """
        behind = [key for key, tag in inputs.items() if manifest.inputs.get(key) != tag]
        touched = f"avesa.{identifier(canonical.table + ' touched')}"
        source = parquet(self._objects.location(key) for key in behind)
        connection.execute(
            f"CREATE OR REPLACE TABLE {touched} AS "
            f"SELECT DISTINCT {', '.join(RECORD)} FROM {source}"
        )
        fresh = self._derived(connection, canonical, inputs, columns, touched)
        path = self._objects.location(manifest.generation)
        return _Answer(
            f"SELECT {columns} FROM {parquet([path])} ANTI JOIN {touched} "
            f"USING ({', '.join(RECORD)}) UNION ALL {fresh.sql}",
            (path,),
        )

    def _derived_at(
        self,
        connection: duckdb.DuckDBPyConnection,
        tenant: str,
        canonical: CanonicalTable,
        moment: datetime,
    ) -> _Answer:
        """Type 2 rows that hold at a moment, whatever the table's own type is."""
        for _ in range(ATTEMPTS):
            inputs = self._inputs(tenant, canonical.table)
            files = [self._objects.location(key) for key in inputs]
            try:
                with self._reading(tenant, canonical.table, inputs):
                    wide = derive(connection, canonical, files, every_version=True, moment=moment)
                    connection.execute(f"CREATE OR REPLACE TABLE avesa.held AS {wide}")
            except Conflict:
                continue
            return _Answer("SELECT * FROM avesa.held", ())
        raise _restless(tenant, canonical.table)

    def _open(self, tenant: str, table: str) -> tuple[CanonicalTable, duckdb.DuckDBPyConnection]:
        canonical = canonical_table(self._catalog, table)
        if not self._inputs(tenant, table):
            self._known(tenant)
        return canonical, self._connect()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = connect(memory_limit=self._memory_limit, threads=self._threads)
        # What is derived lies out of the sight of SHOW TABLES, and not among temporary tables,
        # which even a read-only transaction may write.
        connection.execute("CREATE SCHEMA avesa")
        return connection

    def _relation(
        self, connection: duckdb.DuckDBPyConnection, sql: str, tenant: str, table: str
    ) -> duckdb.DuckDBPyRelation:
        with explained("reading the history", Where(tenant, table=table)):
            return connection.sql(sql)

    def _inputs(self, tenant: str, table: str) -> dict[str, str]:
        return canonical_inputs(self._objects, self._catalog, tenant, table)

    def _known(self, tenant: str) -> None:
        """Raises if there is no such tenant; asked only where it has no data."""
        if self._tenants is not None:
            if tenant in self._tenants:
                return
            hint = f"known: {', '.join(sorted(self._tenants)) or 'none'}"
        else:
            if self._objects.list(checked("tenant", tenant) + "/"):
                return
            hint = "nothing in the lake is this tenant's; look at its name, or connect it first"
        raise ConfigurationError(f"there is no tenant {tenant!r}", hint=hint)


def _present(canonical: CanonicalTable) -> str:
    return ", ".join(
        identifier(name) for name in history_columns(canonical) if name not in HISTORY_ONLY
    )


def _restless(tenant: str, table: str) -> Restless:
    return Restless(
        f"the partitions were replaced each of {ATTEMPTS} times that they were read",
        where=Where(tenant, table=table),
        hint="read again when fewer partitions are being written",
    )
