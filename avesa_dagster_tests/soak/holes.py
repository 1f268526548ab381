"""Days without a live sync, and chunks that fail for good: coverage shows them, sensors fill them.

Weeks pass in minutes: the sensors and schedules are evaluated in this process, on a clock that is
moved together with the simulated service's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner

from avesa_dagster.cli.main import cli
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import Job, JobStatus
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import Window
from avesa_dagster.sources.http import Retrying
from avesa_dagster_tests.defs.inside import Inside, inside
from avesa_dagster_tests.soak import truth
from avesa_dagster_tests.soak.dev import mappings_with
from avesa_dagster_tests.soak.house import COMPANY, UNLIMITED
from avesa_dagster_tests.soak.verdicts import Failed, Findings, Outcome, Scene

_TENANT = "acme"
_LOOKBACK = 120
_OFF_DAYS = 3
_BROKEN = 5
_LATE = timedelta(hours=13)
"""A sync that is so late leaves a hole; must exceed the time between two."""
Holes = dict[str, list[Window]]


@dataclass(frozen=True)
class _Place:
    """Where it plays; `wait` lets time pass for the service and for us.

    Attributes:
        filled: table -> until when the sensors filled the last day off.
    """

    scene: Scene
    simulator: Simulator
    installation: Installation
    inner: Inside
    clock: _Clock
    rng: Random
    filled: dict[str, datetime] = field(default_factory=dict)

    @property
    def sync_every(self) -> timedelta:
        return timedelta(hours=self.scene.size(8, 12))

    def wait(self, span: timedelta) -> None:
        self.clock.move(span)
        self.simulator.control("clock", now=self.clock().isoformat())

    def business(self) -> None:
        """What people do at the service in a few hours."""
        for table in truth.TABLES:
            self.simulator.control("mutate", table=table, count=self.rng.randint(1, 6))
            self.simulator.control("create", table=table, count=self.rng.randint(0, 4))

    def shown(self) -> Holes:
        """The holes that `avesa coverage` tells."""
        with patch.object(Installation, "from_environment", lambda: self.installation):
            done = CliRunner().invoke(cli, ["coverage", _TENANT, "--json"], catch_exceptions=False)
        if done.exit_code != 0:
            raise Failed(f"avesa coverage: {done.output}")
        found: Holes = {}
        for item in json.loads(done.stdout):
            own = found.setdefault(item["table"], [])
            for hole in item["holes"]:
                start, end = map(datetime.fromisoformat, (hole["start"], hole["end"]))
                if own and own[-1].end == start:
                    start = own.pop().start
                own.append(Window(start, end))
        return {table: holes for table, holes in found.items() if holes}


class _Clock:
    """Runs with the real time, from another moment on."""

    def __init__(self, now: datetime) -> None:
        self._start, self._began = now, time.monotonic()

    def __call__(self) -> datetime:
        return self._start + timedelta(seconds=time.monotonic() - self._began)

    def move(self, span: timedelta) -> None:
        self._start += span


def prove(scene: Scene) -> Outcome:
    """Weeks of live sync with days off, after a backfill of which five chunks failed."""
    findings = Findings(scene)
    days = scene.size(10, 5)
    with _place(scene, days) as place:
        broken = _backfill_with_failures(place, findings)
        off = sorted(place.rng.sample(range(1, days), _OFF_DAYS))
        scene.say(f"{days} days, the live sync is off on days {off}")
        for day in range(days):
            if day in off:
                _day_off(place, findings, broken, day)
            else:
                _day_of_sync(place)
        _heal(place, findings, broken)
        compared = truth.compare(place.installation, place.simulator, _TENANT, COMPANY)
        figure, exact = truth.said(compared)
        findings.judge("lake and history equal the service", figure, exact)
        jobs = place.installation.control.jobs.find()
        words = ", ".join(f"{j.trigger.value} {j.status.value}" for j in reversed(jobs))
        findings.tell("jobs", words)
    return findings.outcome("Holes")


@contextmanager
def _place(scene: Scene, days: int) -> Iterator[_Place]:
    def small(config: dict[str, Any]) -> None:
        config["services"]["connectwise"]["chunk_size_days"] = 8
        config["retry"] |= {"attempts": 3, "first_wait_seconds": 0.05}
        config["upkeep"]["hole_minutes"] = _LATE.total_seconds() / 60

    mappings = mappings_with(scene.folder, backfill=small, connectwise={"page_size": 50})
    clock = _Clock(datetime.now(UTC) - timedelta(days=days + 3))
    installation = Installation(
        Settings(home=scene.folder / "home", mappings=mappings),
        clock=clock,
        retrying=Retrying(attempts=3, initial=0.01, longest=0.05),
    )
    world: dict[str, Any] = {"tickets": 1200, "time_entries": 900, "companies": 60}
    with Simulator(
        seed=53,
        now=clock().isoformat(timespec="seconds"),
        contacts=120,
        years=(_LOOKBACK - 10) / 365,
        **world,
    ) as simulator:
        clock.move(timedelta(minutes=5))  # the world's last change is beyond the service's lag
        simulator.control("clock", now=clock().isoformat())
        installation.connect(
            _TENANT,
            truth.SERVICE,
            simulator.credentials,
            lookback_days=_LOOKBACK,
            requests_per_minute=UNLIMITED,
        )
        with inside(installation) as inner:
            yield _Place(scene, simulator, installation, inner, clock, Random(53))


def _backfill_with_failures(place: _Place, findings: Findings) -> list[Chunk]:
    """The first backfill, while five windows answer 500; returns the chunks that failed."""
    installation, now = place.installation, place.clock()
    days = place.rng.sample(range(10, _LOOKBACK - 5, 9), _BROKEN)  # so that each has its chunk
    moments = [
        (place.rng.choice(("tickets", "time_entries")), now - timedelta(days=day)) for day in days
    ]
    for table, moment in moments:
        start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        place.simulator.control(
            "fail",
            table=table,
            on="list",
            start=start.isoformat(),
            end=(start + timedelta(hours=12)).isoformat(),
        )
    row = installation.backfills.connection(_TENANT, truth.SERVICE)
    onboarding = installation.backfills.onboard(row, "g1")
    if onboarding is None:
        raise Failed("nothing was missing at the beginning")
    (job,) = place.inner.settle()
    ended = JobStatus.COMPLETED_WITH_ERRORS
    findings.judge("the first backfill ended as", job.status.value, job.status is ended, ended)
    failed = [chunk for chunk in _chunks(place, job) if chunk.state is ChunkState.FAILED]
    hit = all(
        any(c.table == table and c.start <= moment < c.end for c in failed)
        for table, moment in moments
    )
    findings.judge(
        "chunks that failed for good, and the job names",
        f"{len(failed)}, {len(job.errors)}",
        hit and len(failed) == len(job.errors) == _BROKEN,
        f"{_BROKEN}, each around one of the broken days",
    )
    _expect(place, findings, "coverage after it shows just these chunks", _windows(failed))
    return failed


def _day_of_sync(place: _Place) -> None:
    for _ in range(int(timedelta(days=1) / place.sync_every)):
        place.wait(place.sync_every)
        place.business()
        for result in place.inner.sync():
            if not result.success:
                raise Failed(f"a live sync failed: {result.all_events[-1].message}")


def _day_off(place: _Place, findings: Findings, broken: list[Chunk], day: int) -> None:
    """A day without the schedule; then the sensors look."""
    marks = place.installation.control.watermarks
    before = {}
    for table in truth.TABLES:
        mark = marks.get(_TENANT, truth.SERVICE, table)
        if mark is None:
            raise Failed(f"{table} has no watermark after a sync")
        before[table] = max(mark.upper, place.filled.get(table, mark.upper))
    for _ in range(4):
        place.wait(timedelta(hours=6))
        place.business()
    place.wait(timedelta(minutes=5))
    expected = _windows(broken)
    lag = timedelta(seconds=place.installation.catalog.services[truth.SERVICE].lag_seconds)
    for table, upper in before.items():
        place.filled[table] = place.clock() - lag
        expected.setdefault(table, []).append(Window(upper, place.filled[table]))
    name = f"day {day} without a sync"
    _expect(place, findings, f"{name}: coverage shows just that and the chunks", expected)
    started = place.inner.look_after()
    jobs = [place.installation.backfills.get(job_id) for job_id in started]
    place.inner.settle()
    # A broken window is asked for again in between, after its wait: in vain.
    ends = {JobStatus.COMPLETED, JobStatus.COMPLETED_WITH_ERRORS}
    jobs = [place.installation.backfills.get(job.job_id) for job in jobs]
    words = ", ".join(f"{job.job_id} {job.status.value}" for job in jobs)
    findings.judge(
        f"{name}: the sensor starts a job, which ends as",
        words or "none",
        len(jobs) == 1 and jobs[0].status in ends,
    )
    _expect(place, findings, f"{name}: what is left are the chunks", _windows(broken))


def _heal(place: _Place, findings: Findings, broken: list[Chunk]) -> None:
    """The service answers again; the sensor asks once its wait is over."""
    place.simulator.control("heal")
    _expect(
        place, findings, "before it is healed coverage still shows the chunks", _windows(broken)
    )
    place.wait(timedelta(days=1, hours=1))  # the longest wait between two tries
    place.business()
    place.wait(timedelta(minutes=5))  # beyond the service's lag
    for result in place.inner.sync():
        if not result.success:
            raise Failed("the sync after healing failed")
    started = place.inner.look_after()
    place.inner.settle()
    jobs = [place.installation.backfills.get(job_id) for job_id in started]
    filled = [chunk for job in jobs for chunk in _chunks(place, job)]
    alike = {(c.table, c.start, c.end) for c in filled} == {
        (c.table, c.start, c.end) for c in broken
    }
    findings.judge(
        "healed: the sensor's job fetches just these chunks",
        f"{len(jobs)} job, {len(filled)} chunks",
        len(jobs) == 1 and alike,
    )
    _expect(place, findings, "in the end coverage has no hole", {})


def _expect(place: _Place, findings: Findings, what: str, expected: Holes) -> None:
    """Judges whether coverage shows these holes; the present moves on by seconds meanwhile."""
    just_now = place.clock() - timedelta(minutes=5)
    shown = {
        table: [hole for hole in found if hole.start < just_now]
        for table, found in place.shown().items()
    }
    wrong = []
    for table in sorted({*shown, *expected}):
        left, right = shown.get(table, []), sorted(expected.get(table, []), key=lambda w: w.start)
        alike = len(left) == len(right) and all(
            a == b or (a.end > just_now and _about(a.start, b.start) and _about(a.end, b.end))
            for a, b in zip(left, right, strict=True)
        )
        if not alike:
            wrong.append(f"{table} has {list(map(str, left))}, not {list(map(str, right))}")
    count = sum(map(len, shown.values()))
    findings.judge(what, "; ".join(wrong) or f"{count} holes", not wrong)


def _about(one: datetime, other: datetime) -> bool:
    return abs(one - other) < timedelta(seconds=120)


def _windows(chunks: list[Chunk]) -> Holes:
    """The windows of these chunks by table, those that meet as one."""
    found: Holes = {}
    for chunk in sorted(chunks, key=lambda chunk: (chunk.table, chunk.start)):
        own = found.setdefault(chunk.table, [])
        start = own.pop().start if own and own[-1].end == chunk.start else chunk.start
        own.append(Window(start, chunk.end))
    return found


def _chunks(place: _Place, job: Job) -> list[Chunk]:
    return [
        chunk
        for table in job.tables
        for chunk in place.installation.control.ledger.rows(
            job.job_id, job.tenant, job.service, table
        )
    ]
