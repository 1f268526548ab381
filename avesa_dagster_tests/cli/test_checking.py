"""`avesa verify` as people and scripts call it."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from avesa_dagster.catalog import grain
from avesa_dagster.cli.main import main
from avesa_dagster.control.jobs import Job, JobStatus
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sources.base import Window
from avesa_dagster_tests.defs.conftest import House, house, simulator

__all__ = ["house", "simulator"]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def avesa(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("AVESA_HOME", str(house.home))
        monkeypatch.setattr(sys, "argv", ["avesa", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def fetch(installation: Installation, table: str, job: Job | None = None) -> None:
    """Fetches a table whole, or what a job is restricted to."""
    row = installation.control.registry.get("acme", "connectwise")
    assert row is not None
    settings = installation.catalog.settings("acme", "connectwise")
    parts = tuple(grain.partitions(settings.partitions, row.history_start, installation.clock()))
    stretches = () if job is None else job.stretches
    request = Request(
        tenant="acme",
        service="connectwise",
        table=table,
        partitions=parts,
        mode=Mode.BACKFILL,
        token=job.job_id if job else "t",
        run_id="run",
        stretches=tuple(Window(s.start, s.end) for s in stretches if s.table == table),
    )
    installation.extractor.extract(request, lambda progress: None, lambda: False)


@pytest.fixture
def lake(house: House, simulator: Simulator) -> Path:
    """Tickets and companies of acme, fetched; the folder of raw."""
    house.connect("acme", simulator)
    for table in ("tickets", "companies"):
        fetch(house.installation, table)
    return house.settings.lake / "acme" / "raw" / "connectwise"


def damage(lake: Path, table: str) -> None:
    """Loses the objects of the second partition."""
    month = sorted((lake / table).glob("dt=*"))[1]
    for file in month.glob("*.parquet"):
        file.unlink()


def test_a_good_lake_agrees_and_the_exit_code_says_so(avesa: Command, lake: Path) -> None:
    verify = ("verify", "acme", "connectwise", "--table", "tickets", "--table", "companies")
    code, said, _ = avesa(*verify)
    assert code == 0
    assert "tickets: agrees, " in said and "companies: agrees, " in said
    code, said, _ = avesa(*verify, "--keys", "--json")
    tickets, companies = json.loads(said)
    assert code == 0
    assert (tickets["table"], companies["table"]) == ("tickets", "companies")
    assert tickets["agrees"] and tickets["complete"] and tickets["bad"] == []
    assert tickets["job_id"] is None and tickets["requests"] > 0


def test_a_table_that_was_never_fetched_is_no_agreement(avesa: Command, lake: Path) -> None:
    code, said, _ = avesa("verify", "acme", "connectwise")
    assert code == 1
    assert "contacts: NOT COMPARED: nothing of it was fetched yet" in said
    assert "tickets: agrees" in said


def test_bad_windows_are_named(avesa: Command, lake: Path) -> None:
    damage(lake, "tickets")
    code, said, _ = avesa("verify", "acme", "connectwise", "--table", "tickets")
    assert code == 1
    assert "bad window(s)" in said and "the lake lacks these versions" in said
    code, said, _ = avesa("verify", "acme", "connectwise", "--table", "tickets", "--json")
    (tickets,) = json.loads(said)
    assert code == 1 and not tickets["agrees"] and tickets["complete"]
    assert sum(bad["missing"] for bad in tickets["bad"]) > 10
    assert all(bad["start"] < bad["end"] and bad["ids"] for bad in tickets["bad"])
    month = datetime.fromisoformat(tickets["bad"][0]["start"]).replace(day=1)
    before = ("--end", f"{month:%Y-%m-%d}")
    code, said, _ = avesa("verify", "acme", "connectwise", "--table", "tickets", *before, "--json")
    assert code == 0 and json.loads(said)[0]["agrees"]
    tenth = month.replace(day=10)
    within = ("--start", f"{month:%Y-%m-%dT00:00:00}", "--end", f"{tenth:%Y-%m-%d}")
    code, said, _ = avesa("verify", "acme", "connectwise", "--table", "tickets", *within, "--json")
    (tickets,) = json.loads(said)
    assert code == 1 and tickets["bad"]
    assert all(bad["end"] <= tenth.isoformat() for bad in tickets["bad"])


@contextmanager
def daemon(house: House, status: JobStatus, *, fetches: bool) -> Iterator[None]:
    """Takes up the job that appears, as the daemon's coordinator does."""
    failed: list[BaseException] = []

    def run() -> None:
        installation = house.installation
        jobs = installation.control.jobs
        try:
            deadline = time.monotonic() + 30
            while not (found := jobs.find("acme", "connectwise")):
                assert time.monotonic() < deadline, "no job appeared"
                time.sleep(0.05)
            (job,) = found
            for table in job.tables if fetches else ():
                fetch(installation, table, job)
            ended = lambda held: replace(held, status=status)  # noqa: E731
            jobs.change(job.job_id, ended, now=installation.clock())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert failed == []


REPAIR = ("verify", "acme", "connectwise", "--table", "tickets", "--table", "companies", "--repair")


def test_a_repair_fetches_the_bad_windows_and_compares_them_again(
    avesa: Command, lake: Path, house: House
) -> None:
    damage(lake, "tickets")
    damage(lake, "companies")
    with daemon(house, JobStatus.COMPLETED, fetches=True):
        code, said, _ = avesa(*REPAIR, "--wait")
    assert code == 0, said
    assert "fetches" in said and ": completed" in said
    assert said.count("agrees") == 2
    (job,) = house.installation.control.jobs.find("acme")
    assert job.trigger == "repair" and {s.table for s in job.stretches} == {"tickets", "companies"}
    code, said, _ = avesa(*REPAIR, "--keys", "--json")
    assert code == 0 and {one["job_id"] for one in json.loads(said)} == {None}


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED])
def test_a_repair_that_brought_nothing_is_no_success(
    avesa: Command, lake: Path, house: House, status: JobStatus
) -> None:
    damage(lake, "tickets")
    with daemon(house, status, fetches=False):
        code, said, _ = avesa(*REPAIR, "--wait", "--json")
    tickets, companies = json.loads(said)
    assert code == 1
    assert tickets["job_status"] == status.value and not tickets["repaired"]
    assert companies["agrees"] and companies["job_id"] is None


def test_without_waiting_a_repair_is_begun_and_the_lake_still_disagrees(
    avesa: Command, lake: Path, house: House
) -> None:
    damage(lake, "tickets")
    code, said, _ = avesa(*REPAIR, "--json")
    tickets, _ = json.loads(said)
    assert code == 1
    (job,) = house.installation.control.jobs.find("acme")
    assert (tickets["job_id"], tickets["job_status"]) == (job.job_id, "pending")
    assert {(s.start.isoformat(), s.end.isoformat()) for s in job.stretches} == {
        (bad["start"], bad["end"]) for bad in tickets["bad"]
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("globex", "connectwise"), "has not connected this service"),
        (("acme", "salesforce"), "has not connected this service"),
        (("acme/..", "connectwise"), "no valid tenant name"),
        (("acme", "connectwise", "--table", "tikets"), "has no table 'tikets'"),
        (("acme", "connectwise", "--table", "members"), "'members' is off for this tenant"),
        (("acme", "connectwise", "--start", "2026-02-02", "--end", "2026-02-01"), "range is empty"),
        (("acme", "connectwise", "--start", "1999-01-01"), "begins before the history"),
        (("acme", "connectwise", "--start", "2999-01-01"), "lies in the future"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    avesa: Command, house: House, simulator: Simulator, arguments: tuple[str, ...], said: str
) -> None:
    house.connect("acme", simulator)
    code, _, complaint = avesa("verify", *arguments)
    assert code == 1 and said in complaint


def test_what_click_refuses_is_a_usage_error(avesa: Command) -> None:
    for arguments in (("--wait",), ("--start", "yesterday")):
        code, _, complaint = avesa("verify", "acme", "connectwise", *arguments)
        assert code == 2 and arguments[0].strip("-") in complaint
    code, said, _ = avesa("verify", "--help")
    assert code == 0 and "avesa verify acme connectwise" in said
