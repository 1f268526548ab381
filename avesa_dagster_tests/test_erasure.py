"""Erasing a tenant leaves nothing of it and everything of the others, whenever it is killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.control.jobs import JobStatus
from avesa_dagster.control.snapshot import read_snapshot
from avesa_dagster.erasure.erasing import Receipt, Say, erase, survey
from avesa_dagster.errors import ConfigurationError, RetriableError, StoreError
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings

from . import erasable
from .erasable import SERVICE, files_of, furnish, rows_of, traces
from .extract.support import LOOKBACK_DAYS, assert_equals_truth, open_bench

MAPPINGS = Path(__file__).parents[1] / "mappings"
FORK = multiprocessing.get_context("fork")
ACME = "acme(?!2)"
STRIDE = 1 if "AVESA_KILLS" in os.environ else 2
"""Every other step, or with AVESA_KILLS every one."""


class NoRuns:
    """An installation without an orchestrator. `busy` is said to run; `erased` counts calls."""

    def __init__(self, busy: list[str] | None = None) -> None:
        self.busy = busy or []
        self.erased = 0

    def under_way(self, tenant: str) -> list[str]:
        return self.busy

    def erase(self, tenant: str, numbers: Collection[int], say: Say) -> Mapping[str, int]:
        self.erased += 1
        return {"runs": 1} if self.erased == 1 else {}

    def settle(self) -> None: ...

    def compact(self) -> None: ...

    def named(self, tenant: str, numbers: Collection[int]) -> list[str]:
        return []


def installed(home: Path) -> Installation:
    return Installation(Settings(home=home, mappings=MAPPINGS))


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """Two tenants, one's name a prefix of the other's."""
    there = installed(tmp_path / "home")
    for tenant in ("acme", "acme2"):
        furnish(there, tenant)
    return there


def erased(
    installation: Installation,
    tenant: str = "acme",
    history: NoRuns | None = None,
    say: Say = lambda text: None,
) -> Receipt:
    delivered: list[Receipt] = []
    receipt = erase(
        installation, tenant, history or NoRuns(), delivered.append, wait_seconds=0, say=say
    )
    assert delivered == [receipt]
    return receipt


def test_nothing_of_the_tenant_is_left_and_all_of_the_other(installation: Installation) -> None:
    home = installation.settings.home
    assert traces(home, "acme-content") and traces(home, f"name|{ACME}")
    before = files_of(home, "acme2"), rows_of(home, "acme2")
    assert len(before[0]) == 5
    erased(installation)
    assert traces(home, ACME) == []
    assert (files_of(home, "acme2"), rows_of(home, "acme2")) == before
    assert [row.tenant for row in read_snapshot(installation.settings.snapshot)] == ["acme2"]
    assert installation.secrets.get("acme2", SERVICE)["private_key"] == "key of acme2-content"


def test_the_receipt_says_what_went_and_nothing_of_what_was_in_it(
    installation: Installation,
) -> None:
    held = installation.objects.list("acme/")
    number = installation.control.registry.all()[0].number
    receipt = erased(installation)
    assert receipt.connections == [{"service": SERVICE, "number": number}]
    assert (receipt.objects, receipt.bytes) == (len(held), sum(info.size for info in held))
    keys = "".join(f"{info.key}\n" for info in held)
    assert receipt.keys_sha256 == hashlib.sha256(keys.encode()).hexdigest()
    assert receipt.rows == {
        "Alarms": 1,
        "BackfillJobs": 1,
        "Breakers": 1,
        "Budget": 2,
        "ChunkProgress": 1,
        "Counters": 1,
        "Drift": 2,
        "LastUpdated": 1,
        "ProcessingJobs": 1,
        "TenantServices": 1,
    }
    assert receipt.secrets == [SERVICE]
    assert receipt.runs == {"runs": 1}
    assert receipt.not_erased == []
    assert "content" not in json.dumps(receipt.document())


def test_deleted_bytes_are_gone_from_the_databases(installation: Installation) -> None:
    with installation.control.database.write() as connection:
        connection.execute("PRAGMA secure_delete = OFF")
    with installation.control.database.write() as connection:
        connection.execute("UPDATE Alarms SET text = '' WHERE tenant = 'acme'")
    assert traces(installation.settings.control, "acme-content")
    erased(installation)
    assert traces(installation.settings.control, "acme-content") == []


def erase_until(home: Path, step: int, killed_at: Path) -> None:
    """Erases, and is killed when the given step is said."""
    said = 0

    def say(text: str) -> None:
        nonlocal said
        said += 1
        if said == step:
            killed_at.write_text(text)
            os.kill(os.getpid(), signal.SIGKILL)

    erased(installed(home), say=say)


def test_killed_at_any_step_and_run_again_it_ends_alike(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    furnish(installed(origin), "acme", objects=105)
    furnish(installed(origin), "acme2")
    other = files_of(origin, "acme2"), rows_of(origin, "acme2")
    whole = None
    steps = []
    for step in range(1, 100, STRIDE):
        home, killed_at = tmp_path / f"home{step}", tmp_path / "killed"
        shutil.copytree(origin, home)
        child = FORK.Process(target=erase_until, args=(home, step, killed_at))
        child.start()
        child.join(30)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        steps.append(killed_at.read_text())
        receipt = erased(installed(home))
        assert receipt.interruptions == 1
        assert traces(home, ACME) == [], steps[-1]
        assert (files_of(home, "acme2"), rows_of(home, "acme2")) == other
        whole = whole or receipt
        same = ("connections", "objects", "bytes", "keys_sha256", "rows", "secrets")
        assert [getattr(receipt, n) for n in same] == [getattr(whole, n) for n in same], steps[-1]
        shutil.rmtree(home)
    assert whole is not None and whole.objects == 105
    assert len(steps) > 15


def test_a_number_is_not_given_again(installation: Installation) -> None:
    numbers = [row.number for row in installation.control.registry.all()]
    erased(installation, "acme2")
    furnish(installation, "globex")
    row = installation.control.registry.get("globex", SERVICE)
    assert row is not None and row.number > max(numbers)


def test_while_runs_are_under_way_nothing_is_removed(installation: Installation) -> None:
    home = installation.settings.home
    control = installation.control
    before = files_of(home, "acme")
    control.processing.claim(
        erasable.processing(installation, "acme"), stale_before=installation.clock()
    )
    with pytest.raises(RetriableError, match=r"run-of-acme \(connectwise tickets\).*run it again"):
        erased(installation)
    assert files_of(home, "acme") == before
    row, job = control.registry.get("acme", SERVICE), control.jobs.get("job-acme")
    assert row is not None and not row.enabled
    assert not read_snapshot(installation.settings.snapshot)[0].enabled
    assert job is not None and job.status is JobStatus.CANCELLED
    control.processing.beat(erasable.processing(installation, "acme", status="stopped"))
    with pytest.raises(RetriableError, match="run 17 in Dagster"):
        erased(installation, history=NoRuns(["run 17 in Dagster"]))
    assert erased(installation).interruptions == 2


def test_another_tenants_runs_and_jobs_go_on(installation: Installation) -> None:
    running = erasable.processing(installation, "acme2")
    installation.control.processing.claim(running, stale_before=installation.clock())
    erased(installation)
    job = installation.control.jobs.get("job-acme2")
    assert job is not None and job.status is JobStatus.PENDING
    early = installation.clock().replace(year=2000)
    assert installation.control.processing.under_way("acme2", stale_before=early) == [running]


@pytest.mark.parametrize("tenant", ["a/b", "..", "", "Acme", "acme/../acme2", "acme*", "a\n"])
def test_names_that_could_escape_are_refused(installation: Installation, tenant: str) -> None:
    home = installation.settings.home
    before = files_of(home, "acme"), rows_of(home, "acme")
    with pytest.raises(ConfigurationError, match="no valid tenant name"):
        erased(installation, tenant)
    assert (files_of(home, "acme"), rows_of(home, "acme")) == before


@pytest.mark.parametrize("tenant", ["acm", "acme3", "connectwise", "raw"])
def test_an_unknown_tenant_is_refused(installation: Installation, tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="nothing is known"):
        survey(installation, tenant, NoRuns())
    with pytest.raises(ConfigurationError, match="nothing is known"):
        erased(installation, tenant)
    assert traces(installation.settings.home, f"erasing-{tenant}") == []


def test_erasing_twice_is_refused_and_connecting_anew_is_not(installation: Installation) -> None:
    erased(installation)
    with pytest.raises(ConfigurationError, match="nothing is known"):
        erased(installation)
    furnish(installation, "acme", objects=2)
    assert erased(installation).objects == 2


def test_connected_anew_it_is_fetched_from_nothing(tmp_path: Path) -> None:
    with Simulator(tickets=20, time_entries=5, companies=5, contacts=5) as simulator:
        bench = open_bench(simulator, tmp_path / "home")
        there = bench.installation
        bench.extract("tickets")
        key = simulator.credentials["private_key"]
        assert traces(bench.home, key) and traces(bench.home, "acme")
        erased(there)
        assert traces(bench.home, "acme") == traces(bench.home, key) == []
        row = there.connect("acme", SERVICE, simulator.credentials, lookback_days=LOOKBACK_DAYS)
        assert (row.generation, row.enabled) == (1, True)
        job = there.backfills.onboard(row, "again")
        assert job is not None
        assert (job.start, set(job.tables)) == (row.history_start, set(row.tables))
        assert there.control.ledger.covered("acme") == []
        bench.extract("tickets")
        assert_equals_truth(bench, "tickets")


def test_runs_that_began_meanwhile_are_waited_for(installation: Installation) -> None:
    history = NoRuns()
    begin = on("looking again", lambda: history.busy.append("run 17"))
    with pytest.raises(RetriableError, match="run 17"):
        erased(installation, history=history, say=begin)
    assert installation.control.registry.get("acme", SERVICE) is None
    history.busy.clear()
    assert erased(installation, history=history).interruptions == 1
    assert traces(installation.settings.home, ACME) == []


def test_what_is_left_without_a_connection_is_erased_too(installation: Installation) -> None:
    control = installation.control
    control.registry.disconnect("acme", SERVICE, now=installation.clock())
    control.registry.forget("acme")
    receipt = erased(installation)
    assert (receipt.connections, receipt.objects) == ([], 4)
    assert traces(installation.settings.home, ACME) == []


def on(text: str, act: Callable[[], object]) -> Say:
    """Acts once, when the text is said."""
    acts = [act]

    def say(said: str) -> None:
        if said == text and acts:
            acts.pop()()

    return say


@pytest.mark.parametrize("moment", ["waiting for its runs to end", "removing the connection"])
def test_a_tenant_that_is_connected_meanwhile_stays_connected(
    installation: Installation, moment: str
) -> None:
    reconnect = on(moment, lambda: furnish(installation, "acme"))
    with pytest.raises(ConfigurationError, match="connected again"):
        erased(installation, say=reconnect)
    row = installation.control.registry.get("acme", SERVICE)
    assert row is not None and row.enabled
    assert erased(installation).objects == 4
    assert traces(installation.settings.home, ACME) == []


def test_what_is_written_late_is_removed_too(installation: Installation) -> None:
    control = installation.control
    late = on(
        "looking again",
        lambda: control.alarms.put(replace(control.alarms.all()[0], key="late", tenant="acme")),
    )
    assert erased(installation, say=late).rows["Alarms"] == 2
    assert [alarm.tenant for alarm in control.alarms.all()] == ["acme2"]


def test_one_erasure_at_a_time(installation: Installation) -> None:
    def another() -> None:
        with pytest.raises(ConfigurationError, match="another erasure runs"):
            erased(installation, "acme2")

    erased(installation, say=on("looking again", another))
    assert files_of(installation.settings.home, "acme2")


def test_credentials_that_cannot_be_read_are_removed(installation: Installation) -> None:
    (installation.settings.secrets / "acme.json").write_bytes(b'{"acme-content')
    (installation.settings.secrets / ".acme.json.new").write_text("acme-content")
    assert erased(installation).secrets == ["*"]
    assert traces(installation.settings.home, ACME) == []


def test_what_cannot_be_removed_is_said(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AVESA_SECRET_ACME_CONNECTWISE", '{"private_key": "acme-content"}')
    monkeypatch.setenv("AVESA_SECRET_ACME__D2_CONNECTWISE", "{}")
    mappings = tmp_path / "mappings"
    shutil.copytree(MAPPINGS, mappings)
    config = json.loads((mappings / "backfill_config.json").read_text())
    config["tenants"] = {"acme": {SERVICE: {"lookback_days": 9}}}
    (mappings / "backfill_config.json").write_text(json.dumps(config))
    (installation.settings.control / "budget.db.corrupt").write_bytes(b"\0connectwise/acme\0")
    there = Installation(replace(installation.settings, mappings=mappings))
    said = erased(there).not_erased
    assert [line.split()[-1] for line in said[:2]] == [
        "AVESA_SECRET_ACME_CONNECTWISE",
        "backfill_config.json",
    ]
    assert "budget.db.corrupt" in said[2] and len(said) == 3
    assert "content" not in json.dumps(said)


def test_a_snapshot_that_cannot_be_written_stops_it_before_anything_is_removed(
    installation: Installation,
) -> None:
    home, lock = installation.settings.home, installation.settings.control / ".registry.json.lock"
    before = files_of(home, "acme")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        erased(installation)
    assert files_of(home, "acme") == before
    lock.rmdir()
    assert erased(installation).objects == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named_and_the_rest_follows(
    installation: Installation,
) -> None:
    folder = installation.settings.lake / "acme" / "raw" / SERVICE / "tickets" / "dt=2026-01-01"
    folder.chmod(0o500)
    with pytest.raises(StoreError, match="acme/raw"):
        erased(installation)
    folder.chmod(0o700)
    assert erased(installation).objects == 4


def test_a_journal_that_cannot_be_read_is_named(installation: Installation) -> None:
    key = "_avesa/erasing/acme/journal.json"
    installation.objects.put(key, b"{")
    with pytest.raises(StoreError, match=key):
        erased(installation)
    installation.objects.delete(key)
    erased(installation)


def test_links_out_of_the_lake_are_not_followed(installation: Installation, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (installation.settings.lake / "acme" / "link").symlink_to(outside)
    erased(installation)
    assert (outside / "kept").read_text() == "kept"


NAMES = st.text("ab-_2", min_size=1, max_size=4).filter(lambda name: name[0] not in "-_")


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tenants=st.sets(NAMES, min_size=2, max_size=4).map(sorted), data=st.data())
def test_whatever_the_names_only_one_tenant_goes(
    tmp_path_factory: pytest.TempPathFactory, tenants: list[str], data: st.DataObject
) -> None:
    installation = installed(tmp_path_factory.mktemp("home"))
    home = installation.settings.home
    for tenant in tenants:
        furnish(installation, tenant, objects=1)
    gone = data.draw(st.sampled_from(tenants))
    others = [tenant for tenant in tenants if tenant != gone]
    before = [(files_of(home, tenant), own_rows(home, tenant)) for tenant in others]
    receipt = erased(installation, gone)
    assert [(files_of(home, tenant), own_rows(home, tenant)) for tenant in others] == before
    assert files_of(home, gone) == {} and own_rows(home, gone) == set()
    assert (receipt.objects, sum(receipt.rows.values())) == (1, 12)


def own_rows(home: Path, tenant: str) -> set[tuple[str, str, str]]:
    """Rows of which one value is the tenant's name."""
    return {row for row in rows_of(home, tenant) if f"'{tenant}'" in row[2]}
