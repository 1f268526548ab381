"""A tenant's histories as they are now: the generation, and what it does not cover yet.

Where a generation covers all canonical partitions, it is the answer. Where it is behind, the
records that lie in newer partitions are derived on the spot, and the others are read from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import duckdb

from avesa_dagster.canonical.derivation import (
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
    covers,
    read_manifest,
    standing,
)
from avesa_dagster.catalog.models import CanonicalTable, Catalog, ScdType
from avesa_dagster.errors import StoreError, Where
from avesa_dagster.lake.database import explained, identifier, parquet
from avesa_dagster.lake.objects import Conflict, Objects

ATTEMPTS = 10
"""Rounds of reading while partitions and generations are replaced, before giving up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A history as SQL: a SELECT of `history_columns`, and the files that it reads.

    `dropped` is a table to drop once a view stands on it.
    """

    sql: str
    files: tuple[str, ...]
    dropped: str | None = None


class Histories:
    """The histories of one tenant, as SQL to run in one database.

    Args:
        objects: The lake.
        catalog: Which service tables feed which canonical table.
        tenant: Whose histories.
        connection: An empty database; what has to be derived is left in its schema `avesa`.
    """

    def __init__(
        self,
        objects: Objects,
        catalog: Catalog,
        tenant: str,
        connection: duckdb.DuckDBPyConnection,
    ) -> None:
        self._objects = objects
        self._catalog = catalog
        self._tenant = tenant
        self._connection = connection
        # What is derived lies out of the sight of SHOW TABLES, and not among temporary tables,
        # which even a read-only transaction may write.
        connection.execute("CREATE SCHEMA avesa")

    def view(
        self,
        canonical: CanonicalTable,
        named: bool,
    ) -> Answer:
        """A history for `query`; what would have to be derived is, if the query names it."""
        inputs = self._inputs(canonical.table)
        manifest = read_manifest(self._objects, self._tenant, canonical.table)
        if named or not inputs or (manifest and covers(self._objects, manifest, canonical, inputs)):
            return self.of(canonical)
        # Any answer would be a wrong one. A view whose table is gone is listed, yet gives none.
        stub = identifier(f"write the name {canonical.table} plainly in the query")
        self._connection.execute(f"CREATE TEMP TABLE {stub} AS {empty(canonical)}")
        return Answer(f"SELECT * FROM {stub}", (), dropped=stub)

    def of(self, canonical: CanonicalTable) -> Answer:
        """The history as of now; leaves what had to be derived in schema `avesa`."""
        table = canonical.table
        columns = ", ".join(map(identifier, history_columns(canonical)))
        for _ in range(ATTEMPTS):
            # The manifest first: what it covers was there before the listing.
            manifest = read_manifest(self._objects, self._tenant, table)
            inputs = self._inputs(table)
            try:
                with self._reading(table, inputs):
                    if manifest is None or not self._serves(manifest, canonical, inputs):
                        answer = self._derived(canonical, inputs, columns)
                    elif manifest.inputs == inputs:
                        answer = self._generation(manifest, columns)
                    else:
                        answer = self._patched(canonical, manifest, inputs, columns)
                    self._connection.execute(f"DESCRIBE {answer.sql}").fetchall()
            except Conflict:
                continue
            except StoreError:
                # The generation may have been removed while it was looked at.
                if manifest is None or self._objects.stat(manifest.generation):
                    raise
                continue
            return answer
        raise self._restless(table)

    @contextmanager
    def _reading(self, table: str, inputs: dict[str, str]) -> Iterator[None]:
        where = Where(self._tenant, table=table)
        with (
            explained("reading the history", where),
            standing(self._objects, self._catalog, self._tenant, table, inputs),
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

    def _generation(self, manifest: Manifest, columns: str) -> Answer:
        path = self._objects.location(manifest.generation)
        return Answer(f"SELECT {columns} FROM {parquet([path])}", (path,))

    def _derived(
        self,
        canonical: CanonicalTable,
        inputs: dict[str, str],
        columns: str,
        records: str | None = None,
    ) -> Answer:
        if not inputs:
            return Answer(empty(canonical), ())
        wide = derive(
            self._connection,
            canonical,
            [self._objects.location(key) for key in inputs],
            every_version=canonical.scd_type == ScdType.TYPE_2,
            records=records,
        )
        fresh = f"avesa.{identifier(canonical.table)}"
        self._connection.execute(f"CREATE OR REPLACE TABLE {fresh} AS {wide}")
        self._connection.execute("DROP TABLE pieces")
        return Answer(f"SELECT {columns} FROM {fresh}", ())

    def _patched(
        self,
        canonical: CanonicalTable,
        manifest: Manifest,
        inputs: dict[str, str],
        columns: str,
    ) -> Answer:
        """The generation, but for records that lie in partitions which it does not cover.

        Raw is append-only, so a record that lay in a partition lies there still.
        """
        behind = [key for key, tag in inputs.items() if manifest.inputs.get(key) != tag]
        touched = f"avesa.{identifier(canonical.table + ' touched')}"
        source = parquet(self._objects.location(key) for key in behind)
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {touched} AS "
            f"SELECT DISTINCT {', '.join(RECORD)} FROM {source}"
        )
        fresh = self._derived(canonical, inputs, columns, touched)
        path = self._objects.location(manifest.generation)
        return Answer(
            f"SELECT {columns} FROM {parquet([path])} ANTI JOIN {touched} "
            f"USING ({', '.join(RECORD)}) UNION ALL {fresh.sql}",
            (path,),
        )

    def held_at(self, canonical: CanonicalTable, moment: datetime) -> Answer:
        """Type 2 rows that hold at a moment, whatever the table's own type is."""
        for _ in range(ATTEMPTS):
            inputs = self._inputs(canonical.table)
            files = [self._objects.location(key) for key in inputs]
            try:
                with self._reading(canonical.table, inputs):
                    wide = derive(
                        self._connection, canonical, files, every_version=True, moment=moment
                    )
                    self._connection.execute(f"CREATE OR REPLACE TABLE avesa.held AS {wide}")
            except Conflict:
                continue
            return Answer("SELECT * FROM avesa.held", ())
        raise self._restless(canonical.table)

    def _inputs(self, table: str) -> dict[str, str]:
        return canonical_inputs(self._objects, self._catalog, self._tenant, table)

    def _restless(self, table: str) -> Restless:
        return Restless(
            f"the partitions were replaced each of {ATTEMPTS} times that they were read",
            where=Where(self._tenant, table=table),
            hint="read again when fewer partitions are being written",
        )
