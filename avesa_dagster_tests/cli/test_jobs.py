"""`avesa backfill`, `jobs`, `job`, `pause`, `resume`, `cancel`, `retry`: as people and scripts
call them, against a real simulated service. Runs are played without Dagster."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.backfill.moves import move
from avesa_dagster.backfill.settle import RunState, Seen
from avesa_dagster.backfill.span import job_partitions
from avesa_dagster.cli import jobs as cli_jobs
from avesa_dagster.cli.main import main
from avesa_dagster.cli.progress import drawn, duration, print_jobs
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import Job, JobError, JobStatus, Piece, PieceState, Trigger
from avesa_dagster.errors import AvesaError, Stopped
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster.sources.http import Retrying
from avesa_dagster.watch import recipients
from avesa_dagster.watch.notify import WebhookNotifier
from avesa_dagster_tests.watch.conftest import HASTY
from avesa_dagster_tests.watch.servers import listening

MAPPINGS = Path(__file__).parents[2] / "mappings"
DAYS = 150
SERVICE = "connectwise"
TABLES = ["companies", "contacts", "tickets", "time_entries"]
SECRET = "T0K3N-very-secret"
IMPATIENT = Retrying(attempts=2, initial=0.05)


@dataclass
class Home:
    """An installation whose tenant acme is connected to the simulator; nothing is fetched."""

    path: Path
    mappings: Path

    @functools.cached_property
    def installation(self) -> Installation:
        return Installation(Settings(home=self.path, mappings=self.mappings), retrying=IMPATIENT)

    def configure(self, change: Callable[[Any], None]) -> None:
        """Edits backfill_config.json."""
        file = self.mappings / "backfill_config.json"
        document = json.loads(file.read_text("utf-8"))
        change(document)
        file.write_text(json.dumps(document), "utf-8")

    def job(self, job_id: str) -> Job:
        return self.installation.backfills.get(job_id)

    def put(self, job_id: str, status: JobStatus, **fields: Any) -> Job:
        """A job in this state, as if all that led there had happened."""
        planned = self.installation.backfills.plan(Wish("acme", SERVICE, job_id=job_id))
        return self.installation.control.jobs.create(replace(planned, status=status, **fields))


@dataclass
class Runs:
    """Plays the runs of jobs in this process, one after the other: the fetching is real."""

    installation: Installation
    outcomes: dict[tuple[str, int, int], Seen] = field(default_factory=dict)

    def seen(self, job: Job) -> Mapping[int, Seen]:
        """See moves.Runs.seen."""
        return {
            piece.number: self.outcomes.get(
                (job.job_id, piece.number, piece.attempt), Seen(RunState.NONE)
            )
            for piece in job.pieces
            if piece.state is PieceState.LAUNCHED
        }

    def hold_back(self, job: Job) -> None:
        """See moves.Runs.hold_back: nothing is ever queued here."""

    def turn(self) -> int:
        """One tick of what moves jobs; returns how many runs it came to."""
        backfills, breakers = self.installation.backfills, self.installation.control.breakers
        launched = list(move(backfills, breakers.all(), self, lambda job: ""))
        for job, piece in launched:
            run_id = f"run-{job.job_id}-{piece.number}-{piece.attempt}"
            self.outcomes[job.job_id, piece.number, piece.attempt] = self._run(job, piece, run_id)
        return len(launched)

    def to_rest(self) -> None:
        """Until nothing is left to be launched."""
        while self.turn():
            pass
        self.turn()

    def _run(self, job: Job, piece: Piece, run_id: str) -> Seen:
        backfills = self.installation.backfills
        parts = job_partitions(job, self.installation.catalog)
        errors = []
        for table in piece.tables if not piece.derive else ():
            request = Request(
                tenant=job.tenant,
                service=job.service,
                table=table,
                partitions=tuple(p for p in parts if piece.first <= p.key <= piece.last),
                mode=Mode.BACKFILL,
                token=job.job_id,
                run_id=run_id,
                job_id=job.job_id,
                chunk_days=job.chunk_size_days,
                only_missing=job.only_missing,
            )

            def stopped(job: Job = job) -> bool:
                return bool(backfills.stop_reason(job.job_id, job.tenant, job.service))

            try:
                self.installation.extractor.extract(request, lambda progress: None, stopped)
            except Stopped:
                return Seen(RunState.DIED, run_id)
            except AvesaError as error:
                errors.append(str(error))
        state = RunState.FAILED if errors else RunState.SUCCEEDED
        return Seen(state, run_id, "; ".join(errors) or None)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(
        seed=5, tickets=300, time_entries=60, companies=10, contacts=20, years=1
    ) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, simulator: Simulator) -> Iterator[Home]:
    simulator.control("heal")
    mappings = tmp_path / "mappings"
    shutil.copytree(MAPPINGS, mappings)
    made = Home(tmp_path / "home", mappings)
    made.configure(lambda config: config["retry"].update(attempts=1))
    made.installation.connect(
        "acme", SERVICE, simulator.credentials, lookback_days=DAYS, requests_per_minute=1_000_000
    )
    yield made
    made.installation.control.close()


@pytest.fixture
def avesa(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("AVESA_HOME", str(home.path))
    monkeypatch.setenv("AVESA_MAPPINGS", str(home.mappings))
    monkeypatch.setattr(cli_jobs, "_LOOK_SECONDS", 0.05)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avesa", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


Command = Callable[..., tuple[int, str, str]]


def spoken(answer: tuple[int, str, str]) -> Any:
    """The JSON of a command that went well."""
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)


def day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


# Starting


def test_it_prints_the_id_and_says_who_will_run_it(home: Home, avesa: Command) -> None:
    code, out, err = avesa("backfill", "acme", SERVICE)
    assert code == 0
    job_id = out.strip()
    assert out == f"{job_id}\n"
    assert "No daemon of avesa dev runs here" in err
    assert f"avesa job {job_id} --watch" in err
    job = home.job(job_id)
    row = home.installation.backfills.connection("acme", SERVICE)
    assert (job.tables, job.start, job.status) == (row.tables, row.history_start, "pending")
    assert job.trigger is Trigger.PERSON


def test_what_is_asked_for_is_in_the_job(home: Home, avesa: Command) -> None:
    arguments = ("--table", "tickets", "--chunk-size-days", "7", "--now", "--json")
    said = spoken(avesa("backfill", "acme", SERVICE, *arguments))
    assert (said["tables"], said["chunk_size_days"], said["joined"]) == (["tickets"], 7, False)
    assert (said["status"], said["completed_chunks"], said["errors"]) == ("pending", 0, [])
    assert said["total_chunks"] >= DAYS // 10
    assert home.job(said["job_id"]).at_once
    assert not home.put("later", JobStatus.PENDING).at_once


def test_with_a_start_only_it_goes_to_the_present_with_an_end_only_as_far_as_the_lookback(
    home: Home, avesa: Command
) -> None:
    now = home.installation.clock()
    begin = home.installation.backfills.connection("acme", SERVICE).history_start
    since, until = now - timedelta(days=70), now - timedelta(days=40)
    one = home.job(
        spoken(avesa("backfill", "acme", SERVICE, "--start", day(since), "--json"))["job_id"]
    )
    assert one.start == since.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert one.end > now
    home.installation.backfills.cancel(one.job_id)
    two = home.job(
        spoken(avesa("backfill", "acme", SERVICE, "--end", day(until), "--json"))["job_id"]
    )
    assert two.start == begin
    assert until <= two.end.replace(tzinfo=UTC) and two.end <= until + timedelta(days=31)
    home.installation.backfills.cancel(two.job_id)
    home.configure(lambda c: c["services"][SERVICE].update(lookback_days=20))
    three = spoken(avesa("backfill", "acme", SERVICE, "--end", day(until), "--json"))
    back = until - timedelta(days=20)
    assert three["start"][:10] == day(back.replace(day=1))


def test_a_dry_run_starts_nothing_and_says_what_it_will_cost(
    home: Home, avesa: Command, simulator: Simulator
) -> None:
    plan = spoken(avesa("backfill", "acme", SERVICE, "--dry-run", "--json"))
    truth = {t: len(simulator.control("truth_current", table=t)["records"]) for t in TABLES}
    counted: dict[str, int] = dict.fromkeys(TABLES, 0)
    for window in plan["windows"]:
        counted[window["table"]] += window["records"]
    assert (counted["companies"], counted["contacts"]) == (truth["companies"], truth["contacts"])
    assert 0 < counted["tickets"] <= truth["tickets"]
    assert plan["records"] == sum(counted.values())
    assert plan["chunks"] == len(plan["windows"])
    assert plan["seconds"] > 0 and plan["ends_at"] > plan["start"]
    assert home.installation.control.jobs.find() == []
    code, out, err = avesa("backfill", "acme", SERVICE, "--dry-run", "--table", "tickets")
    assert (code, err) == (0, "")
    assert f"{counted['tickets']:,} records" in out
    assert "it would end about" in out and "Nothing was started" in out
    assert "companies" not in out
    job = home.put("real", JobStatus.PENDING)
    simulator.control("stats_reset")
    Runs(home.installation).to_rest()
    done = home.job(job.job_id)
    assert done.status is JobStatus.COMPLETED
    assert (done.records, done.total_chunks) == (plan["records"], plan["chunks"])
    made = simulator.control("stats")["total"]
    assert abs(made - plan["requests"]) <= 0.15 * made


def test_auto_detect_starts_what_lacks_something_once(home: Home, avesa: Command) -> None:
    [need] = spoken(avesa("backfill", "--auto-detect", "--dry-run", "--json"))
    assert (need["tenant"], need["service"]) == ("acme", SERVICE)
    assert (
        "acme connectwise: 0% of its history is covered"
        in avesa("backfill", "--auto-detect", "--dry-run")[1]
    )
    assert home.installation.control.jobs.find() == []
    [started] = spoken(avesa("backfill", "--auto-detect", "--json"))
    assert started["status"] == "pending" and started["trigger"] == "hole"
    assert spoken(avesa("backfill", "--auto-detect", "--json")) == []  # it is being filled
    Runs(home.installation).to_rest()
    assert home.job(started["job_id"]).status is JobStatus.COMPLETED
    assert avesa("backfill", "--auto-detect")[1] == (
        "Every tenant service has all of its history.\n"
    )


def test_wait_follows_to_the_end_and_exits_by_the_outcome(
    home: Home, avesa: Command, simulator: Simulator
) -> None:
    def runs(until: threading.Event) -> None:
        playing = Runs(Installation(home.installation.settings, retrying=IMPATIENT))
        while not until.is_set():
            playing.turn()
            time.sleep(0.05)

    over = threading.Event()
    thread = threading.Thread(target=runs, args=(over,))
    thread.start()
    try:
        code, out, err = avesa("backfill", "acme", SERVICE, "--table", "contacts", "--wait")
        assert code == 0, err
        assert re.search(r"job b\w+: completed, 1 of 1 chunks, 20 records, \d+ requests\n", out)
        simulator.control("fail", table="contacts")
        code, out, err = avesa(
            "backfill", "acme", SERVICE, "--table", "contacts", "--wait", "--json"
        )
    finally:
        over.set()
        thread.join()
    assert code == 1
    said = json.loads(out)
    assert (said["status"], said["completed_chunks"]) == ("failed", 0)
    assert "500" in said["errors"][0]["text"]


# Looking


def test_there_may_be_no_job(avesa: Command) -> None:
    assert avesa("jobs") == (0, "There is no job. Start one: avesa backfill TENANT SERVICE\n", "")
    assert spoken(avesa("jobs", "--json")) == []


def test_a_job_that_set_a_window_aside_names_it_and_retry_takes_just_that(
    home: Home, avesa: Command, simulator: Simulator
) -> None:
    month = home.installation.clock().replace(day=1) - timedelta(days=65)
    spoiled = day(month.replace(day=1))
    after = day((month.replace(day=1) + timedelta(days=31)).replace(day=1))
    simulator.control("fail", table="tickets", start=spoiled, end=after, on=["list"])
    job_id = spoken(avesa("backfill", "acme", SERVICE, "--json"))["job_id"]
    runs = Runs(home.installation)
    runs.to_rest()
    said = spoken(avesa("job", job_id, "--json"))
    assert said["status"] == "completed_with_errors"
    assert said["failed_chunks"] == 1, said["errors"]
    assert said["completed_chunks"] == said["total_chunks"] - 1
    [error] = said["errors"]
    assert (error["table"], error["window"]) == ("tickets", f"[{spoiled}, {after})")
    [failed] = [chunk for chunk in said["chunks"] if chunk["state"] == "failed"]
    assert failed["start"][:10] == spoiled
    assert sum(chunk["records"] for chunk in said["chunks"]) == said["records"]
    assert sum(chunk["requests"] for chunk in said["chunks"]) == said["requests"]
    code, out, _ = avesa("job", job_id)
    assert code == 0
    assert f"✗ tickets [{spoiled}, {after}): " in out
    [row] = spoken(avesa("jobs", "acme", "--json"))
    assert (row["job_id"], row["failed_chunks"]) == (job_id, 1)
    assert ", 1 failed" in avesa("jobs")[1]

    simulator.control("heal")
    assert avesa("retry", job_id)[1] == f"Job {job_id} is pending.\n"
    simulator.control("stats_reset")
    runs.to_rest()
    done = spoken(avesa("job", job_id, "--json"))
    assert (done["status"], done["errors"]) == ("completed", [])
    assert done["completed_chunks"] == done["total_chunks"] == said["total_chunks"]
    again = done["requests"] - said["requests"]
    assert 0 < again <= 4  # a count and a page, of one window
    listed = [e for e in simulator.control("stats", log=500)["log"] if e["kind"] == "list"]
    assert len(listed) == 1


def test_pause_resume_and_cancel(home: Home, avesa: Command) -> None:
    job_id = spoken(avesa("backfill", "acme", SERVICE, "--json"))["job_id"]
    assert spoken(avesa("pause", job_id, "--json"))["status"] == "paused"
    runs = Runs(home.installation)
    assert runs.turn() == 0
    code, out, err = avesa("resume", job_id)
    assert (code, out) == (0, f"Job {job_id} is pending.\n")
    assert "No daemon" in err
    assert runs.turn() == 1
    held = spoken(avesa("job", job_id, "--json"))
    assert 0 < held["completed_chunks"] < held["total_chunks"]
    assert avesa("cancel", job_id) == (0, f"Job {job_id} is cancelled.\n", "")
    assert runs.turn() == 0
    kept = spoken(avesa("job", job_id, "--json"))
    assert (kept["status"], kept["records"]) == ("cancelled", held["records"])
    avesa("retry", job_id)
    runs.to_rest()
    assert spoken(avesa("job", job_id, "--json"))["status"] == "completed"


def test_watching_a_paused_job_does_not_wait_for_ever(home: Home, avesa: Command) -> None:
    home.put("held", JobStatus.PAUSED, note="somebody paused it")
    code, out, err = avesa("job", "held", "--watch", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["note"] == "somebody paused it"


# Bad input

WHERE = "[tenant=acme service=connectwise]"
LATER = "2199-01-01"
WRONG = [
    (("acme", SERVICE, "--table", "members"), "the table 'members' is off for this tenant"),
    (("acme", SERVICE, "--table", "members"), f"{WHERE} — on: companies, contacts, tickets"),
    (("acme", SERVICE, "--table", "tikets"), f"the table 'tikets' is unknown {WHERE} — on: "),
    (("acme", "salesforce"), "has not connected this service [tenant=acme service=salesforce]"),
    (("globex", SERVICE), "[tenant=globex service=connectwise] — avesa tenants lists"),
    (("../etc", SERVICE), "'../etc' is no valid tenant name"),
    (("acme", SERVICE, "--start", "2001-05-05"), "the range begins 2001-05-05, and this history"),
    (
        ("acme", SERVICE, "--end", "2001-05-05"),
        "the range ends before 2001-05-05, and this history",
    ),
    (
        ("acme", SERVICE, "--end", "2001-05-05"),
        f"{WHERE} — history grows to the left by connecting",
    ),
    (("acme", SERVICE, "--end", "0001-01-01"), "the range ends before 0001-01-01"),
    (("acme", SERVICE, "--start", "0001-01-01"), "the range begins 0001-01-01"),
    (
        ("acme", SERVICE, "--start", LATER),
        f"begins {LATER}, which is in the future {WHERE} — it is",
    ),
    (("acme", SERVICE, "--start", "9999-12-31"), "in the future"),
    (("acme", SERVICE, "--start", "2026-03-02", "--end", "2026-03-02"), "the range is empty"),
    (("acme", SERVICE, "--start", "2026-03-02", "--end", "2026-03-01"), "--end is the first day"),
    (("acme", SERVICE, "--chunk-size-days", "0"), f"a chunk of 0 days is not possible {WHERE}"),
    (("acme", SERVICE, "--chunk-size-days", "-1"), "--chunk-size-days takes 1 to 366"),
    (("acme", SERVICE, "--chunk-size-days", "10000"), "a chunk of 10000 days is not possible"),
]


@pytest.mark.parametrize("mode", [(), ("--json",), ("--dry-run", "--json")])
@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_cannot_be_fetched_is_refused_and_nothing_is_started(
    home: Home, avesa: Command, arguments: tuple[str, ...], said: str, mode: tuple[str, ...]
) -> None:
    code, out, err = avesa("backfill", *arguments, *mode)
    assert (code, out) == (1, "")
    assert err.startswith("avesa: ")
    assert said in err
    assert home.installation.control.jobs.find() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("acme", SERVICE, "--start", "yesterday"), "'yesterday' is no day; write it like 2026-"),
        (("acme", SERVICE, "--end", "2026-02-30"), "'2026-02-30' is no day"),
        (("acme", SERVICE, "--chunk-size-days", "many"), "'many' is not a valid integer"),
        (("acme",), "Name TENANT and SERVICE, or use --auto-detect"),
        (("acme", SERVICE, "--auto-detect"), "looks at every tenant service by itself"),
        (("--auto-detect", "--chunk-size-days", "3"), "looks at every tenant service by itself"),
    ],
)
def test_what_makes_no_command_is_a_usage_error(
    avesa: Command, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = avesa("backfill", *arguments)
    assert (code, out) == (2, "")
    assert "Usage:" in err
    assert said in err


def test_an_end_in_the_future_is_the_present(home: Home, avesa: Command) -> None:
    said = spoken(avesa("backfill", "acme", SERVICE, "--end", "9999-12-31", "--json"))
    assert said["end"][:10] < LATER


def test_the_same_range_again_joins_and_says_which(home: Home, avesa: Command) -> None:
    first = spoken(avesa("backfill", "acme", SERVICE, "--json"))["job_id"]
    code, out, err = avesa("backfill", "acme", SERVICE, "--table", "tickets")
    assert (code, out) == (0, f"{first}\n")
    assert f"Job {first} fetches all of this already; it was joined." in err
    again = spoken(avesa("backfill", "acme", SERVICE, "--json"))
    assert (again["job_id"], again["joined"]) == (first, True)
    smaller = spoken(avesa("backfill", "acme", SERVICE, "--chunk-size-days", "3", "--json"))
    assert smaller["job_id"] != first  # somebody wants it in other chunks
    assert len(home.installation.control.jobs.find()) == 2


def test_of_many_who_ask_at_once_all_but_one_join(home: Home) -> None:
    def start() -> None:
        backfills = Installation(home.installation.settings).backfills
        together.wait(10)
        found.append(backfills.start(Wish("acme", SERVICE)))

    found: list[tuple[Job, bool]] = []
    together = threading.Barrier(6)
    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(joined for _, joined in found) == [False, *[True] * 5]
    assert len({job.job_id for job, _ in found}) == 1
    assert len(home.installation.control.jobs.find()) == 1


@pytest.mark.parametrize("command", ["job", "pause", "resume", "cancel", "retry"])
def test_an_unknown_job_is_named(avesa: Command, command: str) -> None:
    for mode in ((), ("--json",)):
        code, out, err = avesa(command, "b0", *mode)
        assert (code, out) == (1, "")
        assert err.startswith("avesa: there is no job 'b0' — avesa jobs lists them")


TURNS = [
    (JobStatus.COMPLETED, "resume", "resumed — all of it has arrived; avesa backfill fetches"),
    (JobStatus.COMPLETED, "pause", "paused"),
    (JobStatus.COMPLETED, "cancel", "cancelled"),
    (JobStatus.COMPLETED, "retry", "retried — all of it has arrived; avesa backfill fetches"),
    (JobStatus.CANCELLED, "cancel", "cancelled — avesa retry takes up what of it is missing"),
    (JobStatus.CANCELLED, "resume", "resumed — avesa retry takes up what of it is missing"),
    (JobStatus.COMPLETED_WITH_ERRORS, "pause", "paused — avesa retry takes up what of it"),
    (JobStatus.FAILED, "resume", "resumed — avesa retry"),
    (JobStatus.PAUSED, "pause", "paused — avesa resume goes on with it, avesa cancel ends it"),
    (JobStatus.PAUSED, "retry", "retried — avesa resume goes on with it"),
    (JobStatus.PENDING, "resume", "resumed — it is under way: avesa pause and avesa cancel are"),
    (JobStatus.RUNNING, "retry", "retried — it is under way"),
]


@pytest.mark.parametrize(("status", "command", "said"), TURNS)
def test_what_a_job_cannot_do_says_what_it_can(
    home: Home, avesa: Command, status: JobStatus, command: str, said: str
) -> None:
    before = home.put("b1", status)
    text = f"avesa: job b1 is {status.value} and cannot be {said.split(' — ')[0]} {WHERE} — "
    code, out, err = avesa(command, "b1", "--json")
    assert (code, out) == (1, "")
    assert err.startswith(text)
    assert said.partition(" — ")[2] in err
    assert home.job("b1") == before


def test_a_disabled_service_is_not_backfilled(home: Home, avesa: Command) -> None:
    home.installation.disable("acme", SERVICE)
    code, _, err = avesa("backfill", "acme", SERVICE)
    assert code == 1
    assert f"this tenant service is disconnected {WHERE} — avesa enable" in err


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "../../etc/passwd", "CEST+2\n"])
def test_a_time_zone_that_does_not_exist_is_named_where_it_stands(
    home: Home, avesa: Command, zone: str
) -> None:
    def of_service(config: Any) -> None:
        config["services"][SERVICE]["timezone"] = zone

    def of_tenant(config: Any) -> None:
        del config["services"][SERVICE]["timezone"]
        config["tenants"]["acme"] = {SERVICE: {"timezone": zone}}

    for change, place in (
        (of_service, "services.connectwise.timezone"),
        (of_tenant, "tenants.acme.connectwise.timezone"),
    ):
        home.configure(change)
        code, out, err = avesa("backfill", "acme", SERVICE)
        assert (code, out) == (1, "")
        assert "backfill_config.json" in err
        assert place in err
        assert f"there is no time zone {zone!r}; write one like Europe/Berlin or UTC" in err
    home.configure(lambda config: config.update(tenants={}))
    assert avesa("jobs")[0] == 0


def test_a_webhook_that_hangs_is_given_up_and_said(
    home: Home, avesa: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = functools.partial(WebhookNotifier, patience=HASTY)
    monkeypatch.setattr(recipients, "WebhookNotifier", hasty)
    let_go = threading.Event()

    def hang(connection: socket.socket) -> None:
        let_go.wait(20)

    with listening(hang) as port:
        monkeypatch.setenv("AVESA_ALERT_WEBHOOK", f"http://127.0.0.1:{port}/{SECRET}")
        began = time.monotonic()
        code, out, err = avesa("alerts", "--test")
        took = time.monotonic() - began
        let_go.set()
    assert code == 1
    assert took < 10
    assert "webhook: FAILED: " in out
    assert SECRET not in out + err


# What a person sees

NOW = datetime(2026, 7, 14, 10, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
LONG_ID = "on1-g1-20261121t160413"


def a_job(**fields: Any) -> Job:
    base = Job(
        job_id=LONG_ID,
        tenant="acme",
        service=SERVICE,
        tables=("tickets", "time_entries"),
        start=START,
        end=datetime(2026, 8, 1, tzinfo=UTC),
        trigger=Trigger.PERSON,
        created_at=NOW - timedelta(minutes=2),
        updated_at=NOW,
        status=JobStatus.RUNNING,
        pieces=(
            Piece(0, ("tickets", "time_entries"), "2026-06-01", "2026-07-01", recent=True,
                  state=PieceState.LAUNCHED, launched_at=NOW - timedelta(seconds=90)),
            Piece(1, ("tickets", "time_entries"), "2026-01-01", "2026-05-01", recent=False),
        ),
        started_at=NOW - timedelta(seconds=80),
    )  # fmt: skip
    return replace(base, **fields)


def chunks(table: str, *states: ChunkState) -> list[Chunk]:
    """One a day, newest first; each took ten seconds, one after the other."""
    found = []
    for number, state in enumerate(states):
        start = datetime(2026, 7, 13, tzinfo=UTC) - timedelta(days=number)
        begun = NOW - timedelta(seconds=70 - 10 * number)
        chunk = Chunk(
            "t", "acme", SERVICE, table, f"c{number}", f"{start:%Y-%m}-01", "window",
            start, start + timedelta(days=1),
        )  # fmt: skip
        if state is not ChunkState.PLANNED:
            ended = begun + timedelta(seconds=10) if state is not ChunkState.RUNNING else None
            chunk = replace(
                chunk, state=state, rows=5, requests=2, started_at=begun, finished_at=ended
            )
        found.append(chunk)
    return found


def shown(job: Job, held: list[Chunk], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(drawn(job, held, NOW, width))
    return [line.rstrip() for line in capture.get().splitlines()]


DONE, BUSY, AHEAD, SPOILED = (
    ChunkState.COMPLETED, ChunkState.RUNNING, ChunkState.PLANNED, ChunkState.FAILED,
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 130])
def test_progress_in_a_terminal(width: int) -> None:
    held = chunks("tickets", DONE, DONE, DONE, BUSY, AHEAD)
    job = a_job(total_chunks=23, completed_chunks=3, records=20, requests=8)
    lines = shown(job, held, width)
    assert lines[0] == f"job {LONG_ID}  acme connectwise  running for 80 s"
    assert lines[1] == "3 of 23 chunks, 20 records, 8 requests"
    # 70 s for three chunks; 20 are left, and a run has to start.
    assert re.search(r"━ +13 %  ends about 10:07:5[89] UTC, in 7 min 59 s$", lines[2])
    assert lines[3].split() == ["table", "newest", "…", "oldest", "chunks", "records", "requests"]
    assert lines[4].split() == ["tickets", "■■■◧·", "3", "of", "5", "20", "8"]
    assert lines[5].split() == ["time_entries", "not", "planned", "yet", "0", "0"]
    assert lines[6] == "  tickets [2026-07-10, 2026-07-11): fetching for 40 s"
    assert lines[7] == "  1 of 2 runs still to come"
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 130])
def test_many_chunks_share_a_sign_and_none_is_hidden(width: int) -> None:
    held = chunks("tickets", *[DONE] * 400, SPOILED, *[DONE] * 99)
    failure = JobError("the service answered 500 " * 9, "tickets", "[2025-06-07, 2025-06-08)")
    job = a_job(
        status=JobStatus.COMPLETED_WITH_ERRORS, total_chunks=500, completed_chunks=499,
        failed_chunks=1, errors=(failure,) * 7, completed_at=NOW, note="[red]no markup",
    )  # fmt: skip
    lines = shown(job, held, width)
    assert max(map(len, lines)) <= width
    assert lines[1] == "  [red]no markup"
    assert "499 of 500 chunks, 1 failed, " in lines[2]
    assert lines[3].endswith("99 %  took 80 s")  # not 100: one is missing
    row = next(line for line in lines if line.startswith("tickets"))
    each = -(-500 // (row.count("■") + row.count("✗")))
    assert f"a sign is {each} chunks, and shows the worst of them" in lines
    assert row.count("✗") == 1
    assert sum("✗ tickets [2025-06-07, 2025-06-08): " in line for line in lines) == 5
    assert lines[-1] == "  … and 2 more; --json shows them"


@pytest.mark.parametrize("width", [80, 130])
def test_the_list_of_jobs_never_breaks_an_id(width: int) -> None:
    several = [
        a_job(note="waits for another backfill of this tenant's service " * 3),
        a_job(job_id="b1a2b3c4", tenant="a-tenant-with-quite-a-long-name", records=1_234_567),
        a_job(job_id="b2", status=JobStatus.COMPLETED_WITH_ERRORS, failed_chunks=2),
    ]
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        print_jobs(console, several)
    text = capture.get()
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "job", LONG_ID, "b1a2b3c4", "b2",
    ]  # fmt: skip
    assert "1,234,567" in text and "2026-01-01" in text and "2026-08-01" in text
    assert "0 of 0, 2 failed" in text
    flowing = " ".join(text.split())
    assert ("waits for another backfill of this tenant's service " * 3).strip() in flowing


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 s"), (0.4, "0 s"), (119.4, "119 s"), (119.6, "2 min"), (141, "2 min 21 s"),
        (3_599.9, "1 h"), (7_500, "2 h 5 min"), (86_400, "1 d"), (183_000, "2 d 2 h"),
    ],
)  # fmt: skip
def test_durations_are_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said
