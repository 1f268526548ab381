"""The public way to read: exact at every moment.

    reader = Reader(objects, catalog)
    reader.current("acme", "tickets").df()
    reader.as_of("acme", "tickets", datetime(2024, 3, 31, tzinfo=UTC)).arrow()
    reader.query("acme", "SELECT status, count(*) FROM tickets GROUP BY ALL")

Where a history's generation covers all canonical partitions it is read as it is. Where it is
behind, the records that changed since are derived on the spot, and the others are read from it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import duckdb
import pyarrow as pa

from avesa_dagster.canonical.answers import Histories
from avesa_dagster.canonical.derivation import HISTORY_ONLY, history_columns
from avesa_dagster.canonical.history import canonical_inputs, canonical_table
from avesa_dagster.catalog.models import CanonicalTable, Catalog, ScdType
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.lake.database import (
    MEMORY_LIMIT,
    THREADS,
    connect,
    explained,
    identifier,
    keep_order,
    literal,
)
from avesa_dagster.lake.objects import Objects
from avesa_dagster.lake.sandbox import checked_query, lock, run
from avesa_dagster.names import checked


class Reader:
    """Reads canonical tables of a lake.

    A relation reads when it is fetched; fetch it within a quarter of an hour, for a generation that
    it reads is removed so long after another one took its place.

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
        answer = self._histories(tenant, connection).of(canonical)
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
        answer = self._histories(tenant, connection).of(canonical)
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
            answer = self._histories(tenant, connection).of(canonical)
        else:
            answer = self._histories(tenant, connection).held_at(canonical, moment)
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
        with self._connect(tenant) as connection:
            statement = checked_query(connection, sql, where)
            histories = self._histories(tenant, connection)
            files: list[str] = []
            for name, canonical in self._catalog.canonical.items():
                answer = histories.view(canonical, name.lower() in sql.lower())
                files += answer.files
                history = identifier(f"{name}_history")
                connection.execute(f"CREATE VIEW {history} AS {answer.sql}")
                connection.execute(
                    f"CREATE VIEW {identifier(name)} AS "
                    f"SELECT {_present(canonical)} FROM {history} WHERE is_current"
                )
                if answer.dropped:
                    connection.execute(f"DROP TABLE {answer.dropped}")
            keep_order(connection)
            lock(connection, files)
            return run(connection, statement, where)

    def _open(self, tenant: str, table: str) -> tuple[CanonicalTable, duckdb.DuckDBPyConnection]:
        canonical = canonical_table(self._catalog, table)
        if not self._inputs(tenant, table):
            self._known(tenant)
        return canonical, self._connect(tenant)

    def _connect(self, tenant: str) -> duckdb.DuckDBPyConnection:
        return connect(
            self._objects, tenant=tenant, memory_limit=self._memory_limit, threads=self._threads
        )

    def _histories(self, tenant: str, connection: duckdb.DuckDBPyConnection) -> Histories:
        return Histories(self._objects, self._catalog, tenant, connection)

    def _relation(
        self, connection: duckdb.DuckDBPyConnection, sql: str, tenant: str, table: str
    ) -> duckdb.DuckDBPyRelation:
        with explained("reading the history", Where(tenant, table=table)):
            keep_order(connection)
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
