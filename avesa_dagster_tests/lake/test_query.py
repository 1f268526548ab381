"""A query reads the tenant's own tables, and can do nothing else."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from avesa_dagster.canonical.history import rebuild
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.lake.database import connect
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.lake.ranges import RangeFiles
from avesa_dagster.lake.reader import Reader
from avesa_dagster.lake.s3 import S3Objects

from ..canonical.lakes import Seen, build, small_catalog, store


@pytest.fixture(scope="module", params=["rebuilt", "behind", "derived"])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalObjects:
    """A lake of two tenants, in each state of staleness."""
    lake = LocalObjects(tmp_path_factory.mktemp("lake"))
    catalog = small_catalog()
    for tenant in ("acme", "rival"):
        store(lake, [Seen("1", 1, 1, "secret of " + tenant)], tenant=tenant)
        build(lake, catalog, tenant=tenant)
        if request.param != "derived":
            rebuild(lake, catalog, tenant, "things")
        if request.param == "behind":
            store(lake, [Seen("1", 1, 2, "secret of " + tenant)], tenant=tenant)
            build(lake, catalog, tenant=tenant)
    return lake


@pytest.fixture
def reader(lake: LocalObjects) -> Reader:
    return Reader(lake, small_catalog())


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT name FROM things", [("secret of acme",)]),
        ("SELECT name FROM Things_History", [("secret of acme",)]),
        ("WITH t AS (FROM things) SELECT count(*) FROM t;", [(1,)]),
        ("VALUES (1), (2)", [(1,), (2,)]),
        ("SELECT count(*) FROM places", [(0,)]),
        ("SHOW TABLES", [(n,) for n in ("places", "places_history", "things", "things_history")]),
        ("SELECT 'drop table x' FROM things -- delete", [("drop table x",)]),
    ],
)
def test_what_reads_is_answered(reader: Reader, sql: str, rows: list[tuple[object, ...]]) -> None:
    answer = reader.query("acme", sql)
    assert isinstance(answer, pa.Table)
    assert [tuple(row.values()) for row in answer.to_pylist()] == rows


@pytest.mark.parametrize(
    "sql",
    ["DESCRIBE things", "SUMMARIZE things", "EXPLAIN FROM things", "EXPLAIN ANALYZE FROM things"],
)
def test_what_describes_is_answered(reader: Reader, sql: str) -> None:
    assert reader.query("acme", sql).num_rows > 0


FORBIDDEN = [
    "CREATE TABLE t (a INT)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "INSERT INTO things VALUES (1)",
    "UPDATE things SET name = 'x'",
    "DELETE FROM things",
    "DROP VIEW things",
    "ALTER VIEW things RENAME TO t",
    "COPY things TO '{folder}/stolen.csv'",
    "COPY (SELECT 1) TO '{folder}/stolen.parquet' (FORMAT parquet)",
    "EXPORT DATABASE '{folder}/stolen'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/other.db'",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '900GB'",
    "RESET memory_limit",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL enable_logging()",
    "CHECKPOINT",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TABLE t (a INT)",
    "EXPLAIN CREATE TABLE t (a INT)",
    "/* EXPLAIN */ EXPLAIN ANALYZE CREATE TABLE t (a INT)",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_what_does_more_than_read_is_refused(reader: Reader, tmp_path: Path, sql: str) -> None:
    with pytest.raises(ConfigurationError, match="a query only reads"):
        reader.query("acme", sql.format(folder=tmp_path))
    assert not list(tmp_path.glob("stolen*"))


@pytest.mark.parametrize("sql", ["", "-- nothing", "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE t"])
def test_other_than_one_statement_is_refused(reader: Reader, sql: str) -> None:
    with pytest.raises(ConfigurationError, match="a query is one statement"):
        reader.query("acme", sql)


@pytest.mark.parametrize(
    "source",
    [
        "read_text('/etc/passwd')",
        "read_blob('/proc/self/environ')",
        "read_csv('/etc/passwd')",
        "sniff_csv('/etc/passwd')",
        "'/etc/passwd'",
        "glob('/etc/*')",
        "glob('{lake}/*')",
        "read_parquet('{rival}')",
        "'{rival}'",
        "read_parquet('{lake}/*/*/*/*.parquet')",
        "read_parquet('{lake}/acme/../rival/canonical/east/things/dt=2024-01-01/versions.parquet')",
        "parquet_metadata('{rival}')",
        "parquet_file_metadata('{rival}')",
        "read_duckdb('{lake}/x.db')",
        "read_text(current_setting('temp_directory') || '/../../etc/passwd')",
        "query('FROM read_text(''/etc/passwd'')')",
        "read_json('http://127.0.0.1:9/x')",
    ],
)
def test_no_file_can_be_opened(reader: Reader, lake: LocalObjects, source: str) -> None:
    rival = lake.location("rival/canonical/east/things/dt=2024-01-01/versions.parquet")
    assert Path(rival).exists()
    with pytest.raises(ConfigurationError, match=r"the query fails: \w+"):
        reader.query("acme", f"SELECT * FROM {source.format(rival=rival, lake=lake.root)}")


def test_pythons_variables_are_no_tables(reader: Reader) -> None:
    secret = pa.table({"a": [1]})
    assert secret.num_rows
    with pytest.raises(ConfigurationError, match="secret does not exist"):
        reader.query("acme", "SELECT * FROM secret")


@pytest.mark.parametrize(
    "sql",
    [
        "WITH x AS (INSERT INTO avesa.things FROM avesa.things RETURNING 1) FROM x",
        "WITH x AS (DELETE FROM avesa.things RETURNING 1) FROM x",
        "FROM query('WITH x AS (DELETE FROM avesa.things RETURNING 1) FROM x')",
    ],
)
def test_a_change_hidden_in_a_select_is_refused(reader: Reader, sql: str) -> None:
    with pytest.raises(ConfigurationError, match="the query fails"):
        reader.query("acme", sql)


def test_a_hidden_name_is_never_answered_wrongly(reader: Reader) -> None:
    sql = "SELECT count(*) AS n FROM query_table('thi' || 'ngs')"
    try:
        answer = reader.query("acme", sql).to_pylist()
    except ConfigurationError as error:
        assert "write the name things plainly in the query" in str(error)
    else:
        assert answer == [{"n": 1}]


def test_settings_and_views_tell_nothing_of_other_tenants(reader: Reader) -> None:
    for source in ("duckdb_settings()", "duckdb_views()", "duckdb_tables()", "duckdb_columns()"):
        answer = reader.query("acme", f"SELECT * FROM {source}, (SELECT 'things')")
        assert "rival" not in str(answer.to_pylist())
    assert reader.query("acme", "FROM duckdb_secrets()").num_rows == 0
    assert reader.query("acme", "FROM duckdb_logs").num_rows == 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELEC 1",
        "SELECT * FROM nothing",
        "SELECT nothing FROM things",
        "SELECT 'a'::INT FROM things",
    ],
)
def test_a_mistake_is_one_clean_line(reader: Reader, sql: str) -> None:
    with pytest.raises(ConfigurationError, match="the query fails: ") as caught:
        reader.query("acme", sql)
    assert "\n" not in str(caught.value)
    assert "tenant=acme" in str(caught.value)


def test_an_ordered_answer_is_in_order(reader: Reader) -> None:
    sql = "SELECT (range * 7919) % 500009 AS n FROM range(500009) ORDER BY n"
    assert reader.query("acme", sql)["n"].to_pylist() == list(range(500_009))


# The same on S3, where our own Python opens what DuckDB reads.


@pytest.fixture
def kept(bucket: str) -> S3Objects:
    lake = S3Objects(bucket)
    catalog = small_catalog()
    for tenant in ("acme", "rival"):
        store(lake, [Seen("1", 1, 1, "secret of " + tenant)], tenant=tenant)
        build(lake, catalog, tenant=tenant)
        rebuild(lake, catalog, tenant, "things")
    return lake


RIVALS = "rival/canonical/east/things/dt=2024-01-01/versions.parquet"

OUT_OF_REACH = [
    "read_text('/etc/passwd')",
    "glob('/etc/*')",
    "glob('{root}*')",
    "glob('{root}**')",
    "glob('{root}rival/**')",
    "glob('{rival}')",
    "read_parquet('{rival}')",
    "read_parquet(['{rival}'])",
    "'{rival}'",
    "read_blob('{rival}')",
    "read_csv('{rival}')",
    "parquet_metadata('{rival}')",
    "read_parquet('{root}*/*/*/*/*/*.parquet')",
    "read_parquet('{root}acme/../" + RIVALS + "')",
    "read_parquet('{own}/../../../../../" + RIVALS + "')",
    "read_parquet('{root}[r]ival/canonical/east/things/dt=2024-01-01/versions.parquet')",
    "read_parquet('S3{rest}')",
    "read_parquet('s3a{rest}')",
    "read_blob('{own}')",
    "query('FROM read_blob(''{rival}'')')",
]


def test_on_s3_no_object_can_be_opened(kept: S3Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_once = RangeFiles.open

    def noted(self: RangeFiles, path: str, mode: str = "rb", **more: object) -> object:
        opened.append(path)
        return open_once(self, path, mode, **more)

    monkeypatch.setattr(RangeFiles, "open", noted)
    reader = Reader(kept, small_catalog())
    assert reader.query("acme", "SELECT name FROM things").to_pylist() == [
        {"name": "secret of acme"}
    ]
    rival = kept.location(RIVALS)
    own = next(info.key for info in kept.list("acme/raw/"))
    for source in OUT_OF_REACH:
        named = source.format(
            root=rival.removesuffix(RIVALS),
            rival=rival,
            rest=rival.removeprefix("s3"),
            own=kept.location(own),
        )
        with pytest.raises(ConfigurationError, match=r"the query fails: \w+"):
            reader.query("acme", f"SELECT * FROM {named}")
    assert opened
    assert not [path for path in opened if "/acme/" not in path or "/raw/" in path]


def test_on_s3_nothing_can_be_written(kept: S3Objects) -> None:
    """Neither by a statement that writes, nor, were there no such wall, through the files."""
    reader, target = Reader(kept, small_catalog()), kept.location("acme/raw/x.parquet")
    with pytest.raises(ConfigurationError, match="a query only reads"):
        reader.query("acme", f"COPY (SELECT 1) TO '{target}'")
    with connect(kept) as connection, pytest.raises(duckdb.Error):
        connection.execute(f"COPY (SELECT 1) TO '{target}' (FORMAT parquet)")
    assert kept.stat("acme/raw/x.parquet") is None


def test_on_s3_the_second_wall_stands_without_the_first(kept: S3Objects) -> None:
    """The files that DuckDB is given reach no other tenant, locked or not."""
    count = "SELECT count(*) FROM read_parquet('{}')"
    with connect(kept, tenant="acme") as connection:
        own = kept.location(RIVALS.replace("rival", "acme"))
        assert connection.execute(count.format(own)).fetchall() == [(1,)]
        with pytest.raises(duckdb.Error, match="out of reach"):
            connection.execute(count.format(kept.location(RIVALS)))
        with pytest.raises(duckdb.Error):
            connection.execute(count.format(kept.location("acme/") + "../" + RIVALS))
