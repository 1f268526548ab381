"""An embedded home moves into AWS whole, however often it is killed, and works on there."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.control.jobs import Job, JobStatus, Trigger
from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.extract.request import Mode
from avesa_dagster.installation import Installation
from avesa_dagster.lake.reader import Reader
from avesa_dagster.migration.home import opened
from avesa_dagster.migration.moving import Options, Report, migrate
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Aws
from avesa_dagster_tests.extract.support import (
    SERVICE,
    TENANT,
    Bench,
    SharedClock,
    assert_equals_truth,
    open_bench,
)
from avesa_dagster_tests.moto import Moto

from .homes import SECRET, TABLES, answers, derive, files, furnish, installation_at, new_target

SMALL: dict[str, Any] = {
    "lookback_days": 75, "years": 0.2, "tickets": 60, "contacts": 2, "time_entries": 2,
}  # fmt: skip
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A home with all that a home has; nobody changes it."""
    home = tmp_path_factory.mktemp("origin") / "home"
    with Simulator(tickets=20, time_entries=5, companies=5, contacts=5) as running:
        bench = open_bench(running, home, **SMALL)
        furnish(bench)
        bench.installation.control.close()
        yield bench


@dataclass
class Case:
    """A home of a test's own, and where it moves to."""

    home: Path
    bench: Bench

    @cached_property
    def where(self) -> Aws:
        return new_target(self.home.parent)

    @property
    def source(self) -> Installation:
        return installation_at(self.home, self.bench.clock)

    @property
    def target(self) -> Installation:
        return installation_at(self.home.parent / "elsewhere", self.bench.clock, self.where)

    def move(self, progress: Callable[..., None] | None = None, **options: Any) -> Report:
        said = {} if progress is None else {"progress": progress}
        return migrate(self.home, self.target, Options(**options), **said)


@pytest.fixture
def case(origin: Bench, tmp_path: Path, aws: object) -> Case:
    shutil.copytree(origin.home, tmp_path / "home")
    return Case(tmp_path / "home", origin)


def test_it_arrives_whole_and_the_source_is_as_it_was(case: Case) -> None:
    before = files(case.home)
    report = case.move()
    assert report.well and files(case.home) == before
    assert {one.tenant: one.state for one in report.tenants} == {TENANT: "moved", "globex": "moved"}
    assert SECRET not in repr(report.document()) and SECRET not in repr(report)
    source, target = case.source, case.target
    own, there = source.control, target.control
    assert there.registry.all() == own.registry.all()
    assert target.snapshot.read() == own.registry.all()
    for table in TABLES:
        place = (TENANT, SERVICE, table)
        assert there.watermarks.get(*place) == own.watermarks.get(*place)
        assert there.ledger.covered(*place) == own.ledger.covered(*place) != []
        assert there.ledger.stretches(*place) == own.ledger.stretches(*place) != []
        assert there.drift.fields(*place) == own.drift.fields(*place) != {}
    assert there.jobs.find(TENANT) == own.jobs.find(TENANT)
    assert len(there.jobs.find(TENANT, statuses={JobStatus.PAUSED})) == 1
    assert target.secrets.get("globex", SERVICE) == {"private_key": SECRET}
    assert answers(target) == answers(source)
    listed = target.objects.list(f"{TENANT}/")
    assert [i.key for i in listed] == [i.key for i in source.objects.list(f"{TENANT}/")]
    assert any("/rejected/" in info.key for info in listed)
    now = case.bench.clock()
    new = there.registry.connect(
        "later", SERVICE, history_start=now, tables=[], requests_per_minute=None, now=now
    )
    given = {row.number for row in own.registry.all()}
    assert new.number > max(given) + 3, "numbers that were forgotten are not given again"
    tags = {info.key: info.tag for info in listed}
    again, compared = case.move(), case.move(verify_only=True)
    for one in (again, compared):
        assert one.well and [(t.state, t.copied) for t in one.tenants] == [("arrived", 0)] * 2
        assert [t.digest for t in one.tenants] == [t.digest for t in report.tenants]
    assert {info.key: info.tag for info in target.objects.list(f"{TENANT}/")} == tags


def test_a_reader_uses_the_history_that_was_copied(case: Case) -> None:
    derive(case.source)  # the tags of a copied home are others
    case.move()
    objects, where = case.target.objects, f"{TENANT}/canonical/{SERVICE}/tickets/"
    reader = Reader(objects, case.source.catalog)
    expected = Reader(case.source.objects, case.source.catalog).history(TENANT, "tickets")
    read: list[str] = []
    opened_by = type(objects)._opened

    def spy(self: Any, key: str) -> Any:
        read.append(key)
        return opened_by(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(objects), "_opened", spy)
        rows = reader.history(TENANT, "tickets").fetchall()
    assert sorted(rows, key=repr) == sorted(expected.fetchall(), key=repr)
    assert not [key for key in read if key.startswith(where)], "the generation covers them"


def test_a_dry_run_writes_nothing(case: Case) -> None:
    report = case.move(dry_run=True)
    assert report.well and report.tenants[0].state == "would be moved"
    assert report.tenants[0].objects > 15 and report.tenants[0].rows["ChunkProgress"] > 3
    assert case.target.objects.list(f"{TENANT}/") == []
    assert case.target.control.registry.all() == []
    assert not case.move(verify_only=True).well
    assert case.target.objects.list(f"{TENANT}/") == []


def test_only_the_tenants_that_are_named(case: Case) -> None:
    report = case.move(tenants=("globex",))
    assert [one.tenant for one in report.tenants] == ["globex"]
    assert [row.tenant for row in case.target.control.registry.all()] == ["globex"]
    with pytest.raises(ConfigurationError, match="has no tenant 'initech'"):
        case.move(tenants=("initech",))


def test_a_changed_byte_is_found(case: Case) -> None:
    case.move()
    listed = [i for i in case.target.objects.list(f"{TENANT}/") if i.key.endswith(".parquet")]
    chosen = random.Random(5).sample(listed, 3)
    for info in chosen:
        data = bytearray(case.target.objects.get(info.key))
        data[len(data) // 2] ^= 1
        case.target.objects.put(info.key, bytes(data))
    report = case.move(verify_only=True)
    assert not report.well
    assert all(info.key in " ".join(report.tenants[0].differs) for info in chosen)
    case.target.secrets.put("globex", SERVICE, {"private_key": "another"})
    report = case.move(verify_only=True)
    assert "secrets: connectwise: otherwise in the target" in report.tenants[1].differs
    assert SECRET not in repr(report) and "another" not in repr(report.tenants[1].differs)


def test_a_sync_goes_on_there_without_a_gap(origin: Bench, case: Case) -> None:
    """Last, for the world goes on."""
    case.move()
    moved = dataclasses.replace(origin, installation=case.target)
    for table in TABLES:
        moved.control("mutate", table=table, count=5)
        moved.control("create", table=table, count=2)
    moved.control("delete", table="tickets", count=2)
    moved.advance(900)
    for table in TABLES:
        moved.extract(table, Mode.FULL if table == "tickets" else Mode.SYNC)
        assert_equals_truth(moved, table)
    derive(moved.installation)
    report = case.move(verify_only=True)
    assert report.well, "that it went on there is no difference"
    assert "in the target and not in the source" in " ".join(report.tenants[0].since)
    lost = next(i.key for i in case.source.objects.list(f"{TENANT}/raw/"))
    case.target.objects.delete(lost)
    assert lost in " ".join(case.move(verify_only=True).tenants[0].differs)


# What is in the way.


def test_a_source_at_work_is_refused(case: Case) -> None:
    source, now = case.source, case.bench.clock()
    job = Job("works", TENANT, SERVICE, TABLES, now, now, Trigger.PERSON, now, now)
    source.control.jobs.create(job)
    source.control.close()
    with pytest.raises(ConfigurationError, match=r"job works .* is pending"):
        case.move()
    assert case.target.objects.list(f"{TENANT}/") == []


def test_no_home_and_a_corrupt_one_are_said(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no embedded installation"):
        migrate(tmp_path / "nowhere", case.target, Options())
    (case.home / "control" / "control.db-wal").unlink(missing_ok=True)
    (case.home / "control" / "control.db").write_bytes(b"no database at all" * 99)
    with pytest.raises(StoreError, match="is corrupt"), opened(case.home):
        pass


def test_an_embedded_target_is_refused(case: Case) -> None:
    with pytest.raises(ConfigurationError, match="AVESA_PROFILE is embedded"):
        migrate(case.home, case.source, Options())


def test_what_is_not_of_this_move_is_never_replaced(case: Case) -> None:
    target, now = case.target, case.bench.clock()
    control, objects = target.control, target.objects
    some = case.source.objects.list(f"{TENANT}/raw/")[0]
    foreign = f"{TENANT}/raw/{SERVICE}/tickets/dt=2026-01-01/theirs.parquet"

    def refused(named: str) -> None:
        before = {info.key: info.tag for info in objects.list(f"{TENANT}/")}
        report = case.move()
        assert not report.well and named in " ".join(report.tenants[0].differs)
        assert control.registry.get("globex", SERVICE) is None, "none is moved then"
        assert {info.key: info.tag for info in objects.list(f"{TENANT}/")} == before

    def connect(tenant: str) -> None:
        control.registry.connect(
            tenant, SERVICE, history_start=now, tables=[], requests_per_minute=None, now=now
        )

    objects.put(foreign, b"theirs")
    refused(f"{foreign}: in the target and not in the source")
    objects.delete(foreign)
    objects.put(some.key, bytes(some.size))
    refused(f"{some.key}: other bytes in the target")
    objects.delete(some.key)
    control.watermarks.advance(TENANT, SERVICE, "tickets", lower=now, upper=now, now=now)
    refused("LastUpdated: connectwise/tickets: otherwise in the target")
    control.watermarks.forget(TENANT)
    target.secrets.put(TENANT, SERVICE, {"private_key": "theirs"})
    refused("secrets: connectwise: otherwise in the target")
    target.secrets.forget(TENANT)
    connect("theirs")
    refused("gave connectwise's number 1 to theirs")
    control.registry.disconnect("theirs", SERVICE, now=now)
    control.registry.forget("theirs")
    connect(TENANT)
    refused("connectwise is another connection in the target")


def test_equal_objects_that_are_there_are_not_copied_again(case: Case) -> None:
    source, target = case.source.objects, case.target.objects
    some = [info.key for info in source.list(f"{TENANT}/") if "manifest" not in info.key][::2]
    tags = {key: target.put(key, source.get(key)).tag for key in some}
    report = case.move()
    assert report.well and report.tenants[0].copied == report.tenants[0].objects - len(some)
    assert {key: info.tag for key in some if (info := target.stat(key))} == tags


def test_a_move_from_another_source_under_way_is_not_joined(case: Case) -> None:
    key = f"{TENANT}/migration.json"
    case.target.objects.put(key, b'{"source": "another"}')
    with pytest.raises(ConfigurationError, match="from another installation is under way"):
        case.move()
    assert [info.key for info in case.target.objects.list(f"{TENANT}/")] == [key]


# Killed.


def _move(
    home: Path, now: Any, where: Aws, environment: dict[str, str], while_: str, at: int
) -> None:
    """Moves, and kills itself when so much of that is done."""
    os.environ.update(environment)
    calls = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += while_ in what
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)

    installation = installation_at(home.parent / "elsewhere", SharedClock(now), where)
    migrate(home, installation, Options(), progress)


KILLS = (
    ("acme: copying", 4),
    ("acme: copying", 1),
    ("writing ChunkProgress", 2),
    ("acme: verifying", 9),
    ("globex: writing secrets", 1),
)


def test_killed_at_several_moments_it_goes_on_where_it_was(case: Case, aws: Moto) -> None:
    tags: dict[str, str] = {}
    for while_, at in KILLS:
        given = (case.home, case.bench.clock(), case.where, aws.environment, while_, at)
        ended = _server.Process(target=_move, args=given)
        ended.start()
        ended.join()
        assert ended.exitcode == -signal.SIGKILL
        listed = case.target.objects.list(f"{TENANT}/")
        now = {info.key: info.tag for info in listed if not info.key.endswith(".json")}
        assert tags.items() <= now.items(), "nothing is copied twice"
        tags = now
    report = case.move()
    assert report.well and {one.state for one in report.tenants} <= {"moved", "arrived"}
    there = {i.key: i.tag for i in case.target.objects.list(f"{TENANT}/")}
    assert tags.items() <= there.items()
    assert f"{TENANT}/migration.json" not in there
    assert answers(case.target) == answers(case.source)
    assert case.target.control.registry.all() == case.source.control.registry.all()


@pytest.mark.parametrize("at", [7, 30])
def test_a_source_that_went_on_after_a_kill_arrives_as_it_is_now(
    origin: Bench, case: Case, at: int
) -> None:
    class Killed(BaseException):
        pass

    calls = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed

    with pytest.raises(Killed):
        case.move(progress)
    source = case.source
    now = case.bench.clock()
    raw = source.objects.list(f"{TENANT}/raw/{SERVICE}/tickets/")[0]
    partition = raw.key.rsplit("/", 1)[0]
    source.objects.put(f"{partition}/later.parquet", source.objects.get(raw.key))
    derived = source.objects.list(f"{TENANT}/canonical/")[0]
    source.objects.put(derived.key, source.objects.get(derived.key) + b"more")
    old = next(i.key for i in source.objects.list(f"{TENANT}/history/") if "generation" in i.key)
    source.objects.delete(old)
    mark = source.control.watermarks.get(TENANT, SERVICE, "tickets")
    assert mark is not None
    source.control.watermarks.advance(
        TENANT, SERVICE, "tickets", lower=mark.upper, upper=now, now=now
    )
    source.control.jobs.remove(finished_before=now.replace(year=2999))
    source.secrets.put("globex", SERVICE, {"private_key": "rotated"})
    source.control.close()
    report = case.move()
    assert report.well, report
    assert case.move(verify_only=True).well
    assert case.target.secrets.get("globex", SERVICE) == {"private_key": "rotated"}
    assert case.target.objects.stat(old) is None


def test_a_source_that_changes_meanwhile_is_noticed(case: Case) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if "writing" in what:
            source = case.source
            now = case.bench.clock()
            source.control.registry.disconnect(TENANT, SERVICE, now=now)
            source.control.close()

    with pytest.raises(ConfigurationError, match="has changed while it was copied"):
        case.move(progress)
    assert case.target.control.registry.all() == []
