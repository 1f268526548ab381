"""Versions to history: a pure derivation in SQL, narrow first and wide last.

The records' keys and times alone decide which version holds when; only then are the wide rows
fetched, by their place in the files (10 million versions in 20 s and 1.3 GB). Most records have
each version once and no deletion: for those it is one window. The others take the long way.

What holds, for each record (source_service, source_table, record_id):

- Alive versions, sorted by change time U, hold from their U until the next one's.
- A deletion with stated time d, first observed at o, closes the record at
  d' = max(d, 1 us after the greatest U among alive versions that had been observed by o): what the
  source showed before it was seen deleted was alive until then.
- It opens again with the first sign of life after o: the least, over alive observations (U, seen)
  with seen > o, of U if U > d', else seen. Without one it stays closed.
- History is the versions' intervals less the closed ones. What begins at a reopening is a row of
  its own. Unchanged versions stay: that a source touched a record is information.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

import duckdb

from avesa_dagster.canonical.mapping import SQL
from avesa_dagster.catalog.models import CanonicalTable
from avesa_dagster.lake.database import identifier, parquet

DERIVATION_VERSION = 1
"""Goes up when the same versions would give another history."""

KEYS = ("tenant_id", "source_service", "source_table", "record_hash")
RECORD = ("source_service", "source_table", "record_id")

_ADDED_TYPES = {
    **dict.fromkeys((*KEYS, "record_id", "content_hash"), "VARCHAR"),
    "ingested_at": "TIMESTAMPTZ",
    "updated_at": "TIMESTAMPTZ",
    "is_deleted": "BOOLEAN",
    "first_observed_at": "TIMESTAMPTZ",
    "observed_times": "TIMESTAMPTZ[]",
}
_PIECE_TYPES = {
    "first_observed_at": "TIMESTAMPTZ",
    "effective_start_date": "TIMESTAMPTZ",
    "effective_end_date": "TIMESTAMPTZ",
    "is_current": "BOOLEAN",
    "record_version": "BIGINT",
    "effective_start_origin": "VARCHAR",
    "effective_end_origin": "VARCHAR",
}
HISTORY_ONLY = ("effective_end_date", "is_current", "record_version", "effective_end_origin")
"""Columns of a history that say nothing where each record has one row, which holds."""


def history_columns(table: CanonicalTable) -> dict[str, str]:
    """Columns of a history and their SQL types, in order."""
    return {
        **{name: SQL[kind] for name, kind in table.fields.items()},
        **dict.fromkeys(KEYS, "VARCHAR"),
        "ingested_at": "TIMESTAMPTZ",
        **_PIECE_TYPES,
    }


def fingerprint(table: CanonicalTable) -> str:
    """16 hex digits that change when the same versions would give another history."""
    said = {
        "version": DERIVATION_VERSION,
        "scd_type": table.scd_type.value,
        "fields": [[field, kind.value] for field, kind in table.fields.items()],
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def empty(table: CanonicalTable) -> str:
    """A SELECT with a history's columns and no rows."""
    columns = ", ".join(
        f"NULL::{kind} AS {identifier(name)}" for name, kind in history_columns(table).items()
    )
    return f"SELECT {columns} WHERE false"


def derive(
    connection: duckdb.DuckDBPyConnection,
    table: CanonicalTable,
    files: Sequence[str],
    *,
    every_version: bool,
    records: str | None = None,
    moment: datetime | None = None,
) -> str:
    """Works out which version holds when, and returns the SELECT that fetches the rows.

    Leaves the temporary table `pieces` in the connection, one narrow row a row of history; the
    SELECT needs it, and needs the files unchanged: run it at once, then see that they are.

    Args:
        connection: The database to work in.
        table: The canonical table.
        files: The versions files of all its services; in any order.
        every_version: All rows (type 2), else each record's last (type 1).
        records: A table with columns RECORD: only these records.
        moment: Only the rows that hold at this moment.

    Returns:
        A SELECT of `history_columns` and `record_id`.
    """
    for name in ("pieces", "found", "hard", "hard_versions"):
        connection.execute(f"DROP TABLE IF EXISTS {name}")
    if not files:
        connection.execute(_NO_PIECES)
        return f"SELECT *, NULL::VARCHAR AS record_id FROM ({empty(table)})"
    source = _source(connection, table, files)
    among = f"SEMI JOIN {records} USING ({', '.join(RECORD)})" if records else ""
    connection.execute(_FOUND.format(source=source, among=among))
    connection.execute(_HARD)
    connection.execute(_EASY_PIECES)
    connection.execute(_HARD_VERSIONS.format(source=source))
    connection.execute(_HARD_PIECES)
    connection.execute("DROP TABLE hard_versions; DROP TABLE hard; DROP TABLE found")
    if not every_version:
        connection.execute(_LAST_PIECES)
    if moment is not None:
        connection.execute(
            "DELETE FROM pieces WHERE starts > $1 OR ends <= $1", [moment.isoformat()]
        )
    wide = ", ".join(f"v.{identifier(name)}" for name in (*table.fields, *KEYS, "ingested_at"))
    return f"""
        SELECT {wide}, p.seen AS first_observed_at,
            p.starts AS effective_start_date, p.ends AS effective_end_date,
            p.ends IS NULL AS is_current, p.number AS record_version,
            CASE WHEN p.starts_seen THEN 'observed' ELSE 'source' END AS effective_start_origin,
            CASE WHEN p.ends IS NULL THEN NULL WHEN p.ends_seen THEN 'observed' ELSE 'source' END
                AS effective_end_origin,
            v.record_id
        FROM {source} v JOIN pieces p ON v.place = p.place"""


def _source(
    connection: duckdb.DuckDBPyConnection, table: CanonicalTable, files: Sequence[str]
) -> str:
    """The versions files as one table with the columns of today's mapping, and `place`.

    A file that was built before a field came has null there until it is built anew.
    """
    read = parquet(files, "union_by_name = true")
    held = {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {read}").fetchall()}
    types = {**{name: SQL[kind] for name, kind in table.fields.items()}, **_ADDED_TYPES}
    columns = ", ".join(
        f"TRY_CAST({identifier(name) if name in held else 'NULL'} AS {kind}) AS {identifier(name)}"
        for name, kind in types.items()
    )
    return f"(SELECT {columns}, (file_index::BIGINT << 40) | file_row_number AS place FROM {read})"


_PIECE = (
    "place BIGINT, record VARCHAR, source VARCHAR, seen TIMESTAMPTZ, starts TIMESTAMPTZ, "
    "ends TIMESTAMPTZ, number BIGINT, starts_seen BOOLEAN, ends_seen BOOLEAN"
)
_NO_PIECES = f"CREATE TEMP TABLE pieces ({_PIECE})"

_FOUND = """
CREATE TEMP TABLE found AS
SELECT source_service || ' ' || source_table AS source, record_id AS record, updated_at AS changed,
    is_deleted AS dead, first_observed_at AS seen, place
FROM {source} v {among}"""

# A record goes the long way if it was ever deleted, or if a version lies in two partitions.
_HARD = """
CREATE TEMP TABLE hard AS
SELECT DISTINCT source, record FROM (
    SELECT source, record FROM found WHERE dead
    UNION ALL
    SELECT source, record FROM found GROUP BY source, record, changed, dead HAVING count(*) > 1
)"""

_EASY_PIECES = """
CREATE TEMP TABLE pieces AS
SELECT place, record, source, seen, changed AS starts, lead(changed) OVER times AS ends,
    row_number() OVER times AS number, false AS starts_seen, false AS ends_seen
FROM found ANTI JOIN hard USING (source, record)
WINDOW times AS (PARTITION BY source, record ORDER BY changed)"""

_HARD_VERSIONS = """
CREATE TEMP TABLE hard_versions AS
SELECT source, record, changed, dead, best.place AS place, seen, times FROM (
    SELECT f.source, f.record, f.changed, f.dead, min(f.seen) AS seen,
        max({{'seen': v.ingested_at, 'hash': v.content_hash, 'place': f.place}}) AS best,
        list_sort(list_distinct(flatten(list(v.observed_times)))) AS times
    FROM {source} v JOIN (FROM found SEMI JOIN hard USING (source, record)) f ON v.place = f.place
    GROUP BY f.source, f.record, f.changed, f.dead
)"""

_HARD_PIECES = """
INSERT INTO pieces
WITH alive AS (
    SELECT *, coalesce(lead(changed) OVER (PARTITION BY source, record ORDER BY changed),
        'infinity') AS until
    FROM hard_versions WHERE NOT dead
), deaths AS (
    SELECT d.source, d.record, d.changed, d.seen,
        greatest(d.changed, max(a.changed) + INTERVAL 1 microsecond) AS closes
    FROM hard_versions d LEFT JOIN alive a
        ON a.source = d.source AND a.record = d.record AND a.seen <= d.seen
    WHERE d.dead GROUP BY d.source, d.record, d.changed, d.seen
), gaps AS (
    SELECT d.source, d.record, d.closes, d.closes = d.changed AND d.changed < d.seen AS stated,
        -- A version after the closing was not seen before it: any sight of it is one of life.
        coalesce(min(CASE WHEN a.changed > d.closes THEN a.changed
            ELSE list_min(list_filter(a.times, lambda t: t > d.seen)) END), 'infinity') AS opens
    FROM deaths d LEFT JOIN alive a ON a.source = d.source AND a.record = d.record
    GROUP BY d.source, d.record, d.changed, d.seen, d.closes
), starts AS (
    SELECT source, record, closes, max(opens) AS opens, bool_or(stated) AS stated
    FROM gaps WHERE closes < opens GROUP BY source, record, closes
), islands AS (
    SELECT source, record, min(closes) AS closes, max(opens) AS opens,
        arg_min(stated, closes) AS stated
    FROM (
        SELECT *, sum(apart::INTEGER) OVER (PARTITION BY source, record ORDER BY closes) AS island
        FROM (
            SELECT *, coalesce(closes > max(opens) OVER (PARTITION BY source, record
                ORDER BY closes ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true) AS apart
            FROM starts
        )
    ) GROUP BY source, record, island
), open AS (
    SELECT h.source, h.record, '-infinity'::TIMESTAMPTZ AS opens,
        coalesce(i.closes, 'infinity') AS closes, i.stated
    FROM hard h LEFT JOIN (
        SELECT source, record, min(closes) AS closes, arg_min(stated, closes) AS stated
        FROM islands GROUP BY source, record
    ) i ON i.source = h.source AND i.record = h.record
    UNION ALL
    SELECT source, record, opens, coalesce(lead(closes) OVER following, 'infinity'),
        lead(stated) OVER following
    FROM islands WINDOW following AS (PARTITION BY source, record ORDER BY closes)
), cut AS (
    SELECT a.place, a.record, a.source, a.seen, greatest(a.changed, o.opens) AS starts,
        nullif(least(a.until, o.closes), 'infinity') AS ends,
        o.opens > a.changed AS starts_seen, o.closes < a.until AND NOT o.stated AS ends_seen
    FROM alive a JOIN open o ON a.source = o.source AND a.record = o.record
    WHERE greatest(a.changed, o.opens) < least(a.until, o.closes)
)
SELECT place, record, source, seen, starts, ends,
    row_number() OVER (PARTITION BY source, record ORDER BY starts), starts_seen, ends_seen
FROM cut"""

_LAST_PIECES = """
CREATE OR REPLACE TEMP TABLE pieces AS
SELECT * REPLACE (1::BIGINT AS number) FROM pieces
QUALIFY row_number() OVER (PARTITION BY source, record ORDER BY starts DESC) = 1"""
