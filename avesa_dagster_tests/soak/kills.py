"""SIGKILL every few seconds, of workers, daemon and all: exact, nothing fetched twice."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus

from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus
from avesa_dagster_tests.soak import truth
from avesa_dagster_tests.soak.dev import kill
from avesa_dagster_tests.soak.house import COMPANY, House, house, progress
from avesa_dagster_tests.soak.traffic import Traffic, asked_after_completion, given_too_often
from avesa_dagster_tests.soak.verdicts import Failed, Findings, Outcome, Scene

_DAYS = 730
_STALLED = 300
"""Seconds in which something has to go on."""
_SAY_EVERY = 10.0
_ENDS = {
    BulkActionStatus.COMPLETED,
    BulkActionStatus.COMPLETED_SUCCESS,
    BulkActionStatus.COMPLETED_FAILED,
    BulkActionStatus.CANCELED,
    BulkActionStatus.FAILED,
}
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class _Killer:
    """Kills at random moments, and starts again what nobody else would.

    Attributes:
        plan: What to kill one after another: worker (whatever it does), fetching (a worker, once
            it fetches a chunk), daemon, or all.
    """

    house: House
    rng: Random
    plan: list[str]
    done: dict[str, int] = field(default_factory=dict)
    job_id: str = ""
    starts: int = 0
    next_at: float = 0.0
    killed_at: datetime = _LONG_AGO

    def step(self) -> None:
        dev = self.house.dev
        if dev.ended():
            for left in dev.processes():
                self.house.scene.say(f"left over: {left.pid} {' '.join(left.cmdline())[:80]}")
            self.house.scene.say(f"avesa dev has ended and is started: {dev.start():.0f} s")
            self.starts += 1
            self._rest()
        if not self.plan or time.monotonic() < self.next_at:
            return
        if self._kill(self.plan[0]):
            what = self.plan.pop(0)
            self.done[what] = self.done.get(what, 0) + 1
            self.house.scene.say(f"SIGKILL {self.done[what]} of {what}")
            self._rest()

    def _kill(self, what: str) -> bool:
        dev = self.house.dev
        if what == "worker":
            workers = dev.workers()
            return bool(workers) and kill(self.rng.choice(workers))
        if what == "fetching":
            chunks = self.house.chunks(self.house.job(self.job_id))
            if not any(self._is_begun(chunk) for chunk in chunks):
                return False
            workers = dev.workers()
            return sum(map(kill, workers)) > 0
        if what == "daemon":
            daemon = dev.daemon()
            return daemon is not None and kill(daemon)
        return dev.kill_all() > 0

    def _is_begun(self, chunk: Chunk) -> bool:
        """Whether it is being fetched, and not left behind by one that was killed."""
        begun = chunk.started_at is not None and chunk.started_at > self.killed_at
        return begun and chunk.state is ChunkState.RUNNING

    def _rest(self) -> None:
        self.killed_at = datetime.now(UTC)
        self.next_at = time.monotonic() + self.rng.uniform(1.5, 14.0)


def prove(scene: Scene) -> Outcome:
    """24 months of four tables, while everything is killed again and again."""
    tickets, hours = scene.size((7_000, 5_000), (2_600, 1_300))

    def small_chunks(config: dict[str, Any]) -> None:
        config["services"]["connectwise"]["chunk_size_days"] = scene.size(5, 15)

    with house(
        scene,
        backfill=small_chunks,
        connectwise={"page_size": scene.size(100, 50)},
        seed=31,
        tickets=tickets,
        time_entries=hours,
        companies=600,
        contacts=1_500,
        years=2,
        latency_ms=scene.size(500, 250),
    ) as place:
        return _killed(scene, place, Random(31))


def _killed(scene: Scene, place: House, rng: Random) -> Outcome:
    findings = Findings(scene)
    plan = ["worker"] * scene.size(6, 1) + ["fetching"] * scene.size(10, 3)
    plan += ["daemon"] * scene.size(2, 1)
    rng.shuffle(plan)
    plan.insert(len(plan) // 2, "all")
    scene.say(f"avesa dev is up after {place.dev.start():.0f} s")
    with Traffic(place.simulator) as traffic:
        place.connect("acme", place.simulator.credentials, days=_DAYS)
        began = time.monotonic()
        job_id = scene.wait("the onboarding job", lambda: place.first_job("acme"), 120).job_id
        place.dev.stop_schedules()
        killer = _Killer(place, rng, plan, job_id=job_id)
        job = _until_ended(scene, place, job_id, killer)
        seconds = time.monotonic() - began
        left = _backfills_left(scene, place, killer)
        asked = traffic.all()
    chunks = place.chunks(job)
    pages = place.simulator.control("fetched", company_id=COMPANY)["pages"]
    findings.tell("kills", ", ".join(f"{n} × {what}" for what, n in sorted(killer.done.items())))
    findings.tell("took", f"{seconds:.0f} s; avesa dev was started again {killer.starts} times")
    findings.judge("job ended as", job.status.value, job.status is JobStatus.COMPLETED, "completed")
    figure, exact = truth.said(truth.compare(place.installation, place.simulator, "acme", COMPANY))
    findings.judge("lake and history equal the service", figure, exact)
    late = asked_after_completion(chunks, asked)
    findings.judge(
        "requests for a chunk after it was completed",
        f"{len(late)} of {len(chunks)} chunks, {len(asked)} requests{_first(late)}",
        not late and not traffic.lost,
        "none",
    )
    often = given_too_often(chunks, pages)
    again = sum(chunk.attempts > 1 for chunk in chunks)
    findings.judge(
        "pages given more often than their chunk was begun",
        f"{len(often)}; {again} chunks were begun more than once{_first(often)}",
        not often,
        "none",
    )
    findings.judge("chunks were interrupted", again, again > 0, "some")
    findings.judge("Dagster's backfills left open", len(left), not left, "none")
    running = place.installation.control.processing.of_job(job_id)
    open_rows = [row for row in running if row.status == "running"]
    findings.judge("rows of ProcessingJobs left running", len(open_rows), not open_rows, "none")
    return findings.outcome("Kills")


def _until_ended(scene: Scene, place: House, job_id: str, killer: _Killer) -> Job:
    """Kills until the plan is through and the job has ended."""
    told_at, seen, seen_at = 0.0, "", time.monotonic()
    while True:
        killer.step()
        job = place.job(job_id)
        text = f"{progress(job)}, launched {[piece.attempt for piece in job.pieces]}"
        if text != seen:
            seen, seen_at = text, time.monotonic()
        if time.monotonic() - told_at > _SAY_EVERY:
            told_at = time.monotonic()
            scene.say(f"{text}; load {os.getloadavg()[0]:.1f}")
        if job.status not in UNFINISHED:
            if killer.plan:
                scene.say(f"it ended before {len(killer.plan)} of the kills")
            return job
        if time.monotonic() - seen_at > _STALLED:
            raise Failed(f"nothing went on for {_STALLED} s: {text}; runs: {place.runs(job_id)}")
        time.sleep(0.2)


def _backfills_left(scene: Scene, place: House, killer: _Killer) -> list[str]:
    """Records on Dagster's backfill page that have not ended two minutes after the job."""
    killer.plan.clear()

    def open_ones() -> list[str]:
        with place.instance() as instance:
            found = instance.get_backfills()
        return [one.backfill_id for one in found if one.status not in _ENDS]

    began = datetime.now(UTC)
    while left := open_ones():
        if (datetime.now(UTC) - began).total_seconds() > 120:
            return left
        killer.step()
        time.sleep(1)
    with place.instance() as instance:
        states = [one.status.value for one in instance.get_backfills()]
        runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    scene.say(f"Dagster's backfills: {states}; runs still started: {len(runs)}")
    return []


def _first(texts: list[str]) -> str:
    return f"; the first: {texts[0]}" if texts else ""
