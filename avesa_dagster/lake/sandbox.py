"""One reading statement, in a database that can do nothing else.

Two walls: the statement must be one that only reads, in a transaction that only reads; and the
database is locked before it runs: it opens no file but those that it was given, loads no
extension and changes no setting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import duckdb
import pyarrow as pa

from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.lake.database import first_line, literal, plain

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?", re.IGNORECASE)
_HINT = (
    "write one SELECT (or WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN); "
    "PIVOT needs its values: ON column IN (...)"
)


def checked_query(
    connection: duckdb.DuckDBPyConnection, sql: str, where: Where
) -> duckdb.Statement:
    """The one statement in `sql`.

    Raises:
        ConfigurationError: It is no SQL, not one statement, or does more than read.
    """
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise _failed(error, where) from None
    if len(statements) != 1:
        raise ConfigurationError(
            f"a query is one statement, and this is {len(statements)}", where=where, hint=_HINT
        )
    statement = statements[0]
    kind = statement.type
    if kind == duckdb.StatementType.EXPLAIN:
        # EXPLAIN ANALYZE runs what it explains.
        kind = _explained(connection, statement.query) or kind
    if kind != duckdb.StatementType.SELECT:
        raise ConfigurationError(
            f"a query only reads; this is {_name(statement.type)}", where=where, hint=_HINT
        )
    return statement


def lock(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
    """Lets the database read these files and nothing else, for good."""
    # A path with characters that DuckDB globs is looked up as a pattern, then as itself.
    allowed = ", ".join(
        literal(name) for path in files for name in dict.fromkeys((path, plain(path)))
    )
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def run(
    connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, where: Where
) -> pa.Table:
    """Runs a checked statement.

    Raises:
        ConfigurationError: It fails; one line says why.
    """
    try:
        # A WITH can hold an INSERT, and counts as a SELECT.
        connection.execute("BEGIN TRANSACTION READ ONLY")
        return connection.sql(statement).to_arrow_table()
    except duckdb.Error as error:
        raise _failed(error, where) from None


def _explained(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.StatementType | None:
    """What an EXPLAIN explains; None if it has options, which need not be understood here."""
    try:
        return connection.extract_statements(_EXPLAIN.sub("", query, count=1))[0].type
    except duckdb.ParserException:
        return None


def _failed(error: duckdb.Error, where: Where) -> ConfigurationError:
    hint = None
    if isinstance(error, duckdb.CatalogException):
        hint = '"show tables" lists what can be asked; a table without a mapping is raw only'
    return ConfigurationError(f"the query fails: {first_line(error)}", where=where, hint=hint)


def _name(kind: object) -> str:
    return str(kind).rsplit(".", 1)[-1].upper().replace("_", " ")
