"""Cancelling, pausing and resuming on a live `avesa dev`, from the command line and from the UI."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import Job, JobStatus, Trigger
from avesa_dagster_tests.soak import truth
from avesa_dagster_tests.soak.house import COMPANY, House, house
from avesa_dagster_tests.soak.traffic import Traffic, asked_after_completion
from avesa_dagster_tests.soak.verdicts import Failed, Findings, Outcome, Scene

_STOP_SECONDS = 5.0
"""A command's own start counts, which takes one to two of them."""
_UI_STOP_SECONDS = 15.0
"""Dagster's page is looked at every five seconds."""
_QUIET = 10.0
_FRESH_SECONDS = 5.0
_TAG = re.compile(r"(\w+) \d+ %: (\d+) of (\d+) chunks")
_CANCELLED = ("CANCELED", "CANCELING")


@dataclass
class _Watcher:
    """Reads a job's progress, as people and scripts do, and notes how old what it says is.

    Attributes:
        told: When the command had printed, and which chunks it called completed.
        tagged: When the API had answered, the run, and its progress tag: table, and chunks done.
    """

    place: House
    job_id: str
    told: list[tuple[float, frozenset[tuple[str, datetime]]]] = field(default_factory=list)
    tagged: list[tuple[float, str, str, int]] = field(default_factory=list)
    updated: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(look,), daemon=True)
            for look in (self._command, self._page)
        ]

    def __enter__(self) -> _Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def oldest_told(self, chunks: Iterable[Chunk]) -> float:
        """Seconds that a chunk had been finished for while the command did not say so, at most."""
        ends = _ends(chunks)
        return max(
            (
                said_at - ended
                for said_at, completed in self.told
                for name, ended in ends.items()
                if name not in completed and ended < said_at
            ),
            default=0.0,
        )

    def oldest_tagged(self, chunks: Iterable[Chunk]) -> float:
        """The same of the tag of a run: of the chunks of its table, the next one after those."""
        runs = {run.id: run for run in self.place.dev.api.runs(avesa_job=self.job_id)}
        chunks, oldest = list(chunks), 0.0
        for said_at, run_id, table, done in self.tagged:
            first, last = runs[run_id].partitions
            ended = sorted(
                chunk.finished_at.timestamp()
                for chunk in chunks
                if chunk.table == table
                and chunk.finished_at is not None
                and (chunk.partition == "all" or str(first) <= chunk.partition <= str(last))
            )
            if done < len(ended) and ended[done] < said_at:
                oldest = max(oldest, said_at - ended[done])
        return oldest

    def _follow(self, look: Callable[[], None]) -> None:
        while not self._done.wait(1.0):
            look()

    def _command(self) -> None:
        said: dict[str, Any] = self.place.dev.avesa_json("job", self.job_id)
        completed = frozenset(
            (chunk["table"], datetime.fromisoformat(chunk["start"]))
            for chunk in said["chunks"]
            if chunk["state"] == "completed"
        )
        if said["status"] == "running":
            self.told.append((time.time(), completed))

    def _page(self) -> None:
        for run in self.place.dev.api.runs(avesa_job=self.job_id):
            found = _TAG.match(run.tags.get("avesa/progress", ""))
            if run.status == "STARTED" and found:
                self.tagged.append((time.time(), run.id, found[1], int(found[2])))


def prove(scene: Scene) -> Outcome:
    """One tenant, one job after another, each steered in another way."""
    tickets, hours = scene.size((6_000, 4_000), (1_600, 1_000))

    def small_chunks(config: dict[str, Any]) -> None:
        config["services"]["connectwise"]["chunk_size_days"] = 8
        config["upkeep"]["verify_hours"] = 0

    with house(
        scene,
        backfill=small_chunks,
        connectwise={"page_size": scene.size(50, 25)},
        seed=41,
        tickets=tickets,
        time_entries=hours,
        companies=100,
        contacts=200,
        years=1,
        latency_ms=500,
    ) as place:
        return _steered(scene, place)


def _steered(scene: Scene, place: House) -> Outcome:
    findings = Findings(scene)
    scene.say(f"avesa dev is up after {place.dev.start():.0f} s")
    with Traffic(place.simulator) as traffic:
        place.connect("acme", place.simulator.credentials, days=360)
        job_id = scene.wait("the onboarding job", lambda: place.first_job("acme"), 120).job_id
        place.dev.stop_schedules()
        _paused_and_resumed(place, traffic, findings, job_id)
        _cancelled(place, traffic, findings)
        _cancelled_on_the_page(place, traffic, findings)
        _launched_on_the_page(place, findings)
        compared = truth.compare(place.installation, place.simulator, "acme", COMPANY)
        figure, exact = truth.said(compared)
        findings.judge("lake and history equal the service", figure, exact)
        findings.judge("requests that were not seen", traffic.lost, not traffic.lost, "none")
    return findings.outcome("Steering")


def _paused_and_resumed(place: House, traffic: Traffic, findings: Findings, job_id: str) -> None:
    """Watches the job, pauses it in the middle of a chunk, and goes on."""
    scene = place.scene
    with _Watcher(place, job_id) as watcher:
        _until_fetching(place, job_id, least=scene.size(25, 10))
        began = time.time()
        place.dev.avesa_json("pause", job_id)
        _stopped(findings, traffic, "avesa pause", began, _STOP_SECONDS)
        at_rest = place.chunks(place.job(job_id))
        done = sum(chunk.state is ChunkState.COMPLETED for chunk in at_rest)
        resumed = place.dev.avesa_json("resume", job_id)
        findings.judge(
            "after avesa resume the job is", resumed["status"], resumed["status"] == "pending"
        )
        job = place.until_ended(job_id, 600)
    chunks = place.chunks(job)
    again = asked_after_completion(chunks, traffic.all())
    findings.judge(
        "resumed: finished chunks that were asked for again",
        f"{len(again)} of {done} that were finished",
        not again and 0 < done < len(chunks),
        "none",
    )
    ended = job.status.value
    findings.judge("paused and resumed, it ends as", ended, job.status is JobStatus.COMPLETED)
    told, tagged = watcher.oldest_told(chunks), watcher.oldest_tagged(chunks)
    findings.judge(
        "`avesa job --json` was at most so old, its own start included",
        f"{told:.1f} s in {len(watcher.told)} looks",
        told <= _FRESH_SECONDS and len(watcher.told) > 3,
        f"≤ {_FRESH_SECONDS:.0f} s",
    )
    findings.judge(
        "progress of the run in the UI was at most so old",
        f"{tagged:.1f} s in {len(watcher.tagged)} looks",
        tagged <= _FRESH_SECONDS and len(watcher.tagged) > 3,
        f"≤ {_FRESH_SECONDS:.0f} s",
    )


def _cancelled(place: House, traffic: Traffic, findings: Findings) -> None:
    job_id = _begun(place)
    began = time.time()
    place.dev.avesa_json("cancel", job_id)
    _stopped(findings, traffic, "avesa cancel", began, _STOP_SECONDS)
    _judge_cancelled(place, findings, "avesa cancel", job_id)


def _cancelled_on_the_page(place: House, traffic: Traffic, findings: Findings) -> None:
    job_id = _begun(place)
    (run,) = [run for run in place.dev.api.runs(avesa_job=job_id) if run.status == "STARTED"]
    began = time.time()
    place.dev.cancel_backfill(run.tags["dagster/backfill"])
    place.scene.wait("the end of the job", lambda: place.ended(job_id), 60)
    _stopped(findings, traffic, "cancelled on the backfill page", began, _UI_STOP_SECONDS)
    _judge_cancelled(place, findings, "cancelled on the backfill page", job_id)


def _judge_cancelled(place: House, findings: Findings, name: str, job_id: str) -> None:
    """The job, its runs and Dagster's records of them must all come to rest as cancelled."""

    def at_rest() -> bool:
        return all(run.ended for run in place.dev.api.runs(avesa_job=job_id))

    place.scene.wait("the end of its runs", at_rest, 120)
    job, runs = place.job(job_id), place.dev.api.runs(avesa_job=job_id)
    records = {run.tags["dagster/backfill"] for run in runs}
    states = sorted({run.status for run in runs})
    findings.judge(
        f"{name}: the job, and its runs, are",
        f"{job.status.value}, {', '.join(states)}",
        job.status is JobStatus.CANCELLED and "CANCELED" in states,
    )
    open_ones = [place.dev.api.backfill_status(record) for record in records]
    findings.judge(
        f"{name}: on the backfill page",
        ", ".join(sorted(set(open_ones))),
        any(status in _CANCELLED for status in open_ones) and "REQUESTED" not in open_ones,
    )


def _launched_on_the_page(place: House, findings: Findings) -> None:
    """*Materialize* on four months of tickets: a job with Dagster's own id, which ends."""
    now = datetime.now(UTC)
    keys = [
        f"{now.year - (now.month <= n):04}-{(now.month - n - 1) % 12 + 1:02}-01" for n in (1, 2)
    ]
    assets = [f"acme/{layer}/connectwise/tickets" for layer in ("raw", "canonical")]
    backfill_id = place.dev.launch_backfill(assets, sorted(keys))

    def adopted() -> Job | None:
        return place.installation.backfills.jobs.get(backfill_id)

    job = place.scene.wait("the job of the UI's backfill", adopted, 120)
    findings.judge(
        "a backfill launched in the UI becomes a job",
        f"{job.job_id} over {', '.join(job.tables)}, {job.trigger.value}",
        job.trigger is Trigger.DAGSTER and job.tables == ("tickets",),
    )
    job = place.until_ended(backfill_id, 240)
    wanted = {(now.replace(day=1)).date().isoformat()[:8]}  # the open month was not asked for
    months = {f"{chunk.start:%Y-%m-%d}"[:8] for chunk in place.chunks(job)}
    findings.judge(
        "which fetches just its partitions, and ends as",
        f"{len(months)} months, {job.status.value}",
        job.status is JobStatus.COMPLETED and len(months) == len(keys) and not months & wanted,
    )


def _begun(place: House) -> str:
    """A new job over everything, some chunks of which are fetched."""
    job_id = str(place.dev.avesa_json("backfill", "acme", truth.SERVICE)["job_id"])
    _until_fetching(place, job_id, least=2)
    return job_id


def _until_fetching(place: House, job_id: str, least: int) -> None:
    """Waits until so many chunks are finished, and others are being fetched."""

    def look() -> bool:
        chunks = place.chunks(place.job(job_id))
        if place.ended(job_id):
            raise Failed(f"job {job_id} ended before it could be steered")
        done = sum(chunk.state is ChunkState.COMPLETED for chunk in chunks)
        return done >= least and any(chunk.state is ChunkState.RUNNING for chunk in chunks)

    place.scene.wait(f"{least} chunks of job {job_id}", look, 240)


def _stopped(findings: Findings, traffic: Traffic, name: str, began: float, limit: float) -> None:
    """Judges how long requests went on after a moment; looks for a while."""
    time.sleep(max(0.0, began + limit + _QUIET - time.time()))
    seconds = max(0.0, traffic.last(COMPANY) - began)
    findings.judge(
        f"{name}: the service was asked for so long after it",
        f"{seconds:.1f} s",
        seconds <= limit,
        f"≤ {limit:.0f} s",
    )


def _ends(chunks: Iterable[Chunk]) -> dict[tuple[str, datetime], float]:
    return {
        (chunk.table, chunk.start): chunk.finished_at.timestamp()
        for chunk in chunks
        if chunk.finished_at is not None and chunk.state is ChunkState.COMPLETED
    }
