"""Raw files of the platform before become observations, once; none goes missing silently."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.extract.request import Mode
from avesa_dagster.installation import Installation
from avesa_dagster.lake.reader import Reader
from avesa_dagster.migration.avesa1.connecting import connected
from avesa_dagster.migration.avesa1.importing import TableReport, find, import_files
from avesa_dagster.migration.avesa1.places import Place, Unplaced, place_of, time_of
from avesa_dagster.migration.avesa1.shelves import FolderShelf, shelf
from avesa_dagster.migration.deriving import build
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster_tests.extract.support import (
    MAPPINGS,
    NOW,
    SERVICE,
    TENANT,
    SharedClock,
    open_bench,
    raw_rows,
)

from .homes import installation_at, new_target
from .old import Json, flattened, nested

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])

FOLDER = f"{TENANT}/raw/{SERVICE}"
PULLS = ("2025-07-01T20:18:03.123456", "2025-08-02T03:00:00+00:00", "2025-11-20T03:00:00.5Z")


def ticket(number: int, changed: str | None, **fields: Any) -> Json:
    info = {"lastUpdated": changed, "updatedBy": "kim"}
    return {
        "id": number,
        "summary": f"ticket {number}",
        "company": {"id": 1},
        "_info": info,
        **fields,
    }


def put(root: Path, key: str, data: bytes) -> str:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return key


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Three pulls of tickets, with the faults that its pulls had."""
    root = tmp_path / "old"
    first = [ticket(n, f"2025-06-{n:02}T08:00:00Z", priority=n) for n in range(1, 21)]
    later = [ticket(n, "2025-07-15T08:00:00Z", status={"name": "Closed"}) for n in range(1, 6)]
    name = "{}_{}_batch{:03}.parquet"
    put(root, f"{FOLDER}/tickets/{name.format(PULLS[0], 'c0', 1)}", nested(first))
    # A chunk pulled all again, and the table called as its endpoint; types are other ones.
    put(root, f"{FOLDER}/service/tickets/{name.format(PULLS[0], 'c1', 1)}", nested(first))
    mixed = [{**record, "priority": f"P{record['id']}"} for record in later + first[5:]]
    put(root, f"{FOLDER}/service/tickets/{name.format(PULLS[1], 'c0', 1)}", flattened(mixed))
    broken = [ticket(31, "2025-11-01T00:00:00Z"), ticket(32, "soon"), ticket(33, None)]
    broken += [{**broken[0], "id": None}, broken[0], ticket(34, "2999-01-01T00:00:00Z")]
    put(root, f"{FOLDER}/tickets/{name.format(PULLS[2], 'c0', 1)}", nested(broken))
    put(root, f"{FOLDER}/tickets/{name.format(PULLS[2], 'c0', 2)}", nested(first)[:-100])
    put(root, f"{FOLDER}/tickets/{name.format(PULLS[2], 'c0', 3)}", b"")
    put(root, f"{FOLDER}/tickets/{name.format(PULLS[2], 'c0', 4)}", nested(first[:1])[:0])
    put(root, f"{FOLDER}/gadgets/{name.format(PULLS[2], 'c0', 1)}", nested(first))
    put(root, f"{FOLDER}/tickets/without-time.parquet", nested(first))
    put(root, f"{TENANT}/canonical/tickets/acme-tickets-x.parquet", nested(first))
    put(root, f"{FOLDER}/tickets/dt=2025-06-01/ours.parquet", nested(first))
    return root


@pytest.fixture(params=["embedded", "aws"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    where = None
    if request.param == "aws":
        request.getfixturevalue("aws")
        where = new_target(tmp_path)
    return installation_at(tmp_path / "new", SharedClock(NOW), where)


def imported(installation: Installation, root: Path) -> tuple[list[TableReport], list[Unplaced]]:
    files = FolderShelf(root)
    found = find(files, installation)

    def connecting(tenant: str, service: str) -> Any:
        return connected(installation, tenant, service, ["tickets"])[0]

    done = import_files(files, found, installation, connecting)
    return done, list(found.unplaced)


def derive(installation: Installation, done: list[TableReport]) -> None:
    touched = {(t.tenant, t.service, t.table): t.partitions for t in done}
    build(installation.objects, installation.catalog, touched)


def test_what_it_had_observed_is_history_and_each_fault_is_named(
    target: Installation, old: Path
) -> None:
    (done,), unplaced = imported(target, old)
    assert (done.files, done.imported, done.empty, len(done.unreadable)) == (7, 4, 2, 1)
    assert done.records == 20 + 20 + 20 + 6
    assert done.observations + done.repeated + done.rejected == done.records
    assert (done.repeated, done.rejected) == (1, 3)
    assert "batch002" in done.unreadable[0].key
    assert sorted(one.reason for one in unplaced) == [
        "connectwise has no table 'gadgets'",
        "its name does not say when it was fetched",
    ]
    rows = raw_rows(target.objects, TENANT, SERVICE, "tickets")
    assert len(rows) == done.observations
    assert {row["observed_at"] for row in rows} == {time_of(f"{pull}_c") for pull in PULLS}
    assert {(row["run_id"], row["mode"]) for row in rows} == {("avesa1", "import")}
    undated = next(row for row in rows if row["record_id"] == "33")
    assert undated["updated_at"] == undated["observed_at"]
    rejected = [
        json.loads(target.objects.get(info.key))
        for info in target.objects.list(f"{TENANT}/raw/{SERVICE}/tickets/rejected/")
    ]
    reasons = sorted(r["reason"].split(":")[0] for doc in rejected for r in doc["records"])
    assert reasons == [
        "it has no usable id",
        "it is no whole Parquet file",
        "its _info.lastUpdated",
        "its change time 2999-01-01 00",
    ]
    derive(target, [done])
    reader = Reader(target.objects, target.catalog)
    history = reader.history(TENANT, "tickets").to_arrow_table().to_pandas()
    one = history[history["id"] == "3"].sort_values("record_version")
    assert list(one["effective_start_date"].dt.strftime("%m-%d")) == ["06-03", "07-15"]
    assert list(one["is_current"]) == [False, True]
    assert list(one["status"])[1] == "Closed"
    assert len(history) == 25 + 2  # 31 and 33 are new, and the other faults are no versions
    assert target.control.ledger.covered(TENANT) == [], "nothing counts as fetched"
    assert target.control.watermarks.get(TENANT, SERVICE, "tickets") is None
    connection = target.control.registry.get(TENANT, SERVICE)
    assert connection is not None and not connection.enabled


def test_again_nothing_is_imported_twice(old: Path, tmp_path: Path) -> None:
    target = installation_at(tmp_path / "new", SharedClock(NOW))
    imported(target, old)
    before = {info.key: info.tag for info in target.objects.list(f"{TENANT}/raw/")}
    (done,), _ = imported(target, old)
    assert (done.imported, done.already, done.objects, done.records) == (0, 6, 0, 0)
    some = next(old.rglob("*c0_batch001.parquet"))
    some.write_bytes(some.read_bytes())  # another time, the same content
    (done,), _ = imported(target, old)
    assert (done.imported, done.already) == (0, 6)
    after = {i.key: i.tag for i in target.objects.list(f"{TENANT}/raw/") if "rejected" not in i.key}
    assert after == {key: tag for key, tag in before.items() if "rejected" not in key}
    assert after.keys() | {key for key in before if "rejected" in key} == before.keys()


def test_a_file_that_was_replaced_is_imported_anew(old: Path, tmp_path: Path) -> None:
    target = installation_at(tmp_path / "new", SharedClock(NOW))
    imported(target, old)
    cut = next(old.rglob("*batch002.parquet"))
    cut.write_bytes(nested([ticket(50, "2025-11-02T00:00:00Z")]))
    (done,), _ = imported(target, old)
    assert (done.imported, done.already, done.unreadable) == (1, 6, [])


def _import(home: Path, old: Path, at: int) -> None:
    """Imports, and kills itself in the middle of that object."""
    target = installation_at(home, SharedClock(NOW))
    create, calls = target.objects.create, 0

    @contextmanager
    def killing(key: str) -> Iterator[Path]:
        nonlocal calls
        calls += 1
        with create(key) as path:
            if calls == at:
                path.write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            yield path

    target.objects.create = killing  # type: ignore[method-assign]
    imported(target, old)


def test_killed_in_the_middle_of_an_object_it_goes_on(old: Path, tmp_path: Path) -> None:
    spread = [ticket(200 + n, f"2025-{n:02}-15T00:00:00Z") for n in range(1, 13)]
    put(old, f"{FOLDER}/tickets/2025-12-30T00:00:00_c_batch001.parquet", nested(spread))
    whole = installation_at(tmp_path / "whole", SharedClock(NOW))
    imported(whole, old)
    home = tmp_path / "new"
    for at in (1, 2, 5, 7, 9):
        process = _server.Process(target=_import, args=(home, old, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    target = installation_at(home, SharedClock(NOW))
    imported(target, old)

    def rows(installation: Installation) -> list[str]:
        found = raw_rows(installation.objects, TENANT, SERVICE, "tickets")
        return sorted(map(repr, found))

    assert rows(target) == rows(whole)
    keys = [[i.key for i in one.objects.list(f"{TENANT}/")] for one in (target, whole)]
    assert keys[0] == keys[1]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(tickets=20, time_entries=5, companies=5, contacts=5) as running:
        yield running


@pytest.mark.parametrize("write", [nested, flattened])
def test_beside_what_the_connector_fetches_it_makes_no_second_version(
    simulator: Simulator, tmp_path: Path, write: Callable[[list[Json]], bytes]
) -> None:
    bench = open_bench(simulator, tmp_path / "home", tickets=60, time_entries=2, contacts=2)
    bench.control("delete", table="tickets", count=1)
    truth = {
        table: [json.loads(next(iter(held))) for held in bench.versions(table).values()]
        for table in ("tickets", "companies")
    }
    old = tmp_path / "old"
    if write is nested:  # its values are of mixed types: such a file was never written
        truth = {t: [_without(record) for record in held] for t, held in truth.items()}
    for table, records in truth.items():
        put(old, f"{FOLDER}/{table}/2026-03-17T00:00:00_c_batch001.parquet", write(records))
    done, _ = imported(bench.installation, old)
    assert [t.observations for t in done] == [len(truth["companies"]), len(truth["tickets"])]
    derive(bench.installation, done)
    reader = bench.installation.reader()
    fields = {t: ", ".join(bench.installation.catalog.canonical[t].fields) for t in truth}
    before = {t: reader.history(TENANT, t).select(fields[t]).order("id").fetchall() for t in truth}
    bench.advance(60)
    bench.control("mutate", table="tickets", count=4)
    bench.advance(600)
    for table in truth:
        bench.extract(table, Mode.BACKFILL)
    bench.extract("tickets", Mode.FULL)
    known = raw_rows(bench.installation.objects, TENANT, SERVICE, "tickets")
    assert {row["mode"] for row in known} >= {"import", "backfill"}, "the backfill still fetches"
    fetched = [row for row in known if row["mode"] != "import"]
    assert len({row["record_id"] for row in fetched if not row["is_deleted"]}) == 59
    derive(bench.installation, done)
    after = reader.history(TENANT, "companies").select(fields["companies"]).order("id").fetchall()
    assert after == before["companies"]
    versions = reader.history(TENANT, "tickets").to_arrow_table().to_pandas()
    assert len(versions) == len(truth["tickets"]) + 4, "only what changed since is new"
    assert versions["is_current"].sum() == 59


def _without(record: Json) -> Json:
    return {name: value for name, value in record.items() if name != "customFields"}


def test_places() -> None:
    catalog = load_catalog(MAPPINGS)
    at = datetime(2025, 7, 1, 20, 18, 3, tzinfo=UTC)
    stamp = "2025-07-01T20:18:03+00:00_chunk_1_batch001.parquet"
    known = {
        "acme/raw/connectwise/tickets/": "tickets",
        "acme/raw/connectwise/service/tickets/": "tickets",
        "acme/raw/connectwise/service_tickets/": "tickets",
        "acme/raw/connectwise/time/entries/": "time_entries",
        "acme/raw/connectwise/entries/": "time_entries",
        "acme/raw/connectwise/time-entries/": "time_entries",
        "acme/raw/connectwise/company/companies/": "companies",
    }
    for folder, table in known.items():
        assert place_of(folder + stamp, catalog) == Place("acme", "connectwise", table, at)
    assert place_of(f"acme/raw/salesforce/Case/{stamp}", catalog) == Place(
        "acme", "salesforce", "case", at
    )
    for strange in ("Acme Inc/raw/connectwise/tickets/", "acme/raw/jira/issues/"):
        assert isinstance(place_of(strange + stamp, catalog), Unplaced)
    assert place_of("acme/raw/connectwise/tickets/dt=2025-07-01/x.parquet", catalog) is None
    assert place_of(f"acme/canonical/tickets/{stamp}", catalog) is None
    assert time_of("20250701T201803Z_c.parquet") == at
    assert time_of("2025-07-01T22:18:03+02:00_c.parquet") == at
    assert time_of("2025-13-01T22:18:03_c.parquet") is None


def test_files_in_a_bucket_are_found_below_a_prefix(aws: object, bucket: str, old: Path) -> None:
    from avesa_dagster.aws import client

    for path in old.rglob("*.parquet"):
        key = f"copy/{path.relative_to(old).as_posix()}"
        client("s3").put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    target = Installation(Settings(home=old.parent / "new", mappings=MAPPINGS), SharedClock(NOW))
    here = find(FolderShelf(old), target)
    there = find(shelf(f"s3://{bucket}/copy"), target)
    assert [[f.key for f, _ in files] for files in there.tables.values()] == [
        [f.key for f, _ in files] for files in here.tables.values()
    ]
    (files,) = there.tables.values()
    assert shelf(f"s3://{bucket}/copy").read(files[0][0].key).startswith(b"PAR1")
