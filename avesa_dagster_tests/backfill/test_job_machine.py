"""Jobs under everything at once: steered in any order, while runs die, fail and get lost.

A model of runs fetches chunk by chunk, as `extract` does, over real SQLite stores of jobs and
ledger; the planner, the schedule, the moves and the steering are the real ones.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from avesa_dagster.backfill.jobs import Backfills, Wish
from avesa_dagster.backfill.moves import move
from avesa_dagster.backfill.progress import job_chunks
from avesa_dagster.backfill.settle import RunState, Seen
from avesa_dagster.backfill.span import job_partitions
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.coverage import gaps
from avesa_dagster.control.jobs import ACTIVE, UNFINISHED, Job, Jobs, JobStatus, Trigger
from avesa_dagster.errors import ConfigurationError, CredentialsRefused, RetriableError
from avesa_dagster.extract.planner import WHOLE
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.extract.runner import Extractor
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.sources.base import Span, Window

from .support import SERVICE, Books, FakeRuns, Run, catalog_of

TENANTS = ("acme", "globex", "initech")
VERBS = ("pause", "resume", "cancel", "retry")
TABLES = ("contacts", "tickets")
PER_DAY = 10
S = JobStatus
LEGAL = {
    S.PENDING: {S.RUNNING, S.PAUSED, S.CANCELLED, S.FAILED, S.COMPLETED, S.COMPLETED_WITH_ERRORS},
    S.RUNNING: {S.PAUSED, S.CANCELLED, S.FAILED, S.COMPLETED, S.COMPLETED_WITH_ERRORS},
    S.PAUSED: {S.PENDING, S.CANCELLED},
    S.FAILED: {S.PENDING},
    S.CANCELLED: {S.PENDING},
    S.COMPLETED_WITH_ERRORS: {S.PENDING},
    S.COMPLETED: set(),
}

FITTING: dict[str, Collection[JobStatus]] = {
    "pause": ACTIVE,
    "resume": {S.PAUSED},
    "cancel": UNFINISHED,
    "retry": {S.FAILED, S.CANCELLED, S.COMPLETED_WITH_ERRORS},
}


def catalog_small() -> Catalog:
    """Months of 300 records, of which a chunk may hold 200; pieces of two months."""
    base = catalog_of(max_jobs=2, max_tenants=2, piece_partitions=2, recent_partitions=1)
    own = base.backfill.services[SERVICE].model_copy(update={"max_chunk_records": 200})
    backfill = base.backfill.model_copy(update={"services": {SERVICE: own}})
    pages = base.services[SERVICE].model_copy(update={"page_size": 100})
    return base.model_copy(update={"backfill": backfill, "services": {SERVICE: pages}})


CATALOG = catalog_small()
LAG = timedelta(seconds=CATALOG.services[SERVICE].lag_seconds)


class Counting:
    """A source that says how many records a window holds, and nothing else."""

    requests = 0
    lists_deletions = False

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.now = clock

    def count(self, table: str, span: Span) -> int:
        assert span.window is not None
        return PER_DAY * (span.window.end - span.window.start).days


class Watched:
    """Implements `Jobs` over another; every change of a status has to be a legal one."""

    def __init__(self, jobs: Jobs, check: Callable[[Job], None]) -> None:
        self._jobs = jobs
        self._check = check

    def change(self, job_id: str, change: Callable[[Job], Job], *, now: datetime) -> Job:
        before: list[Job] = []

        def noted(job: Job) -> Job:
            before[:] = [job]
            return change(job)

        after = self._jobs.change(job_id, noted, now=now)
        if after.status is not before[0].status:
            move = f"{before[0].status.value} -> {after.status.value}"
            assert after.status in LEGAL[before[0].status], move
            assert (after.completed_at is None) is (after.status in UNFINISHED), move
            self._check(after)
        return after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jobs, name)


@dataclass
class Interrupted(FakeRuns):
    """Between the steps of a tick, somebody steers: after so many looks, so."""

    during: list[tuple[int, Callable[[], object]]] = field(default_factory=list)

    def seen(self, job: Job) -> dict[int, Seen]:
        found = super().seen(job)
        self.somebody_steers()
        return found

    def hold_back(self, job: Job) -> None:
        super().hold_back(job)
        self.somebody_steers()

    def somebody_steers(self) -> None:
        if self.during:
            looks, act = self.during.pop()
            if looks:
                self.during.append((looks - 1, act))
            else:
                act()


class World:
    """An installation, the runs of its jobs, and the faults of the day."""

    def __init__(self, folder: Path) -> None:
        self.books = Books(folder, *TENANTS, catalog=CATALOG)
        self.control, self.clock = self.books.control, self.books.clock
        self.ledger = self.control.ledger
        self.jobs = Watched(self.control.jobs, self.is_right)
        self.backfills = Backfills(
            CATALOG, self.control.registry, self.jobs, self.ledger, self.control.watermarks,
            self.clock,
        )  # fmt: skip
        self.extractor = Extractor(
            CATALOG, self.control.registry, self.control.watermarks, self.ledger,
            self.control.breakers, self.control.drift, LocalObjects(folder / "lake"),
            lambda *_: pytest.fail("nothing is asked"), self.clock,
        )  # fmt: skip
        self.runs = Interrupted()
        self.fetches: dict[tuple[str, ...], int] = {}
        self.failed_in: dict[str, list[str]] = {}
        self.bad: set[tuple[str, str]] = set()
        self.down: dict[str, type[RetriableError] | type[CredentialsRefused]] = {}

    # What runs do.

    def step(self, run: Run) -> None:
        """A run gets out of the queue, fetches one chunk, or ends."""
        if run.state is RunState.QUEUED:
            lane = [other for other in self.runs.runs if other.lane == run.lane]
            if not any(other.state is RunState.RUNNING for other in lane):
                run.state = RunState.RUNNING
            return
        if run.state is not RunState.RUNNING:
            return
        job = run.job
        if self.backfills.stop_reason(job.job_id, job.tenant, job.service):
            run.state = RunState.DIED  # it ends as cancelled, and nobody asked Dagster for that
            return
        if job.tenant in self.down:
            self._refused(run, self.down[job.tenant])
            return
        if run.piece.derive:
            run.state = RunState.SUCCEEDED
            return
        todo = [c for c in self.chunks_of(run) if c.state is not ChunkState.COMPLETED]
        failed = self.failed_in.setdefault(run.run_id, [])
        todo = [chunk for chunk in todo if chunk.chunk_id not in failed]
        if todo:
            self.fetch(todo[0], run)
        elif failed:
            run.state, run.error = RunState.FAILED, f"{len(failed)} windows failed"
        else:
            run.state = RunState.SUCCEEDED

    def _refused(self, run: Run, kind: type[RetriableError] | type[CredentialsRefused]) -> None:
        credentials = kind is CredentialsRefused
        for _ in range(1 if credentials else 5):
            self.control.breakers.failed(
                run.job.tenant, SERVICE, "no answer", credentials=credentials, now=self.clock()
            )
        run.state = RunState.FAILED if credentials else RunState.SUSPENDED
        run.error = "the service refuses" if credentials else "the service is suspended"

    def chunks_of(self, run: Run) -> list[Chunk]:
        """Plans what is not planned, as an extraction does."""
        job, piece = run.job, run.piece
        parts = [p for p in job_partitions(job, CATALOG) if piece.first <= p.key <= piece.last]
        connection = self.control.registry.get(job.tenant, SERVICE)
        assert connection is not None
        chunks = []
        for table in piece.tables:
            stretches = [Window(s.start, s.end) for s in job.stretches if s.table == table]
            request = Request(
                job.tenant, SERVICE, table, tuple(parts), Mode.BACKFILL, job.job_id, run.run_id,
                job.job_id, job.chunk_size_days, tuple(stretches), job.only_missing,
            )  # fmt: skip
            chunks += self.extractor._plan(request, connection, Counting(self.clock))  # type: ignore[arg-type]
        return chunks

    def fetch(self, chunk: Chunk, run: Run, *, dies: bool = False) -> None:
        key = (chunk.token, chunk.table, chunk.chunk_id)
        assert self.fetches.get(key, 0) == 0, f"{key} was finished, and is fetched again"
        job = self.control.jobs.get(chunk.token)
        assert job is None or job.status in ACTIVE, f"{chunk.token} is {job.status}, and fetches"
        now = self.clock()
        self.ledger.begin(chunk, now=now)
        if dies:
            run.state = RunState.DIED
            return
        if (chunk.table, chunk.partition) in self.bad:
            self.ledger.fail(chunk, error="counts disagree", requests=2, now=now)
            self.failed_in.setdefault(run.run_id, []).append(chunk.chunk_id)
            return
        self.ledger.progress(
            chunk, cursor="9", rows=7, stored=7, requests=2, objects=[f"{key}"], now=now
        )
        self.ledger.complete(chunk, source_count=7, requests=1, now=now)
        self.fetches[key] = 1

    # What the daemon does.

    def tick(self) -> None:
        calm = not self.runs.during
        registry, breakers = self.control.registry, self.control.breakers

        def waits(job: Job) -> str:
            self.runs.somebody_steers()
            row = registry.get(job.tenant, job.service)
            return "" if row is not None and row.enabled else "waits until it is connected"

        for job, piece in move(self.backfills, breakers.all(), self.runs, waits):
            if calm:
                assert self.backfills.get(job.job_id).status in ACTIVE
                assert not waits(job)
            self.runs.request(job, piece)
            self.runs.somebody_steers()
        self.runs.during.clear()
        if calm:
            self.counts_agree()

    # What has to be so.

    def is_right(self, job: Job) -> None:
        """A job that says that it completed did."""
        if job.status is JobStatus.COMPLETED:
            assert not [c for c in self.rows(job) if c.state is not ChunkState.COMPLETED]
            for table in job.tables:
                assert self.missing(job, table) == [], f"{job.job_id} {table}"
        if job.status is JobStatus.COMPLETED_WITH_ERRORS:
            assert job.completed_chunks
            assert job.errors

    def rows(self, job: Job) -> list[Chunk]:
        return job_chunks(job, self.ledger)

    def missing(self, job: Job, table: str) -> list[Window]:
        """What of the job's range nobody fetched, up to when it was planned."""
        if job.only_missing:
            own = self.ledger.stretches(job.tenant, SERVICE, table)
        else:
            rows = [c for c in self.rows(job) if c.table == table]
            done = [c for c in rows if c.state is ChunkState.COMPLETED]
            own = sorted((c.start, c.end) for c in done)
        end = min(job.end, job.created_at)
        return [gap for gap in gaps(own, Window(job.start, end)) if gap.end - gap.start > LAG]

    def counts_agree(self) -> None:
        for job in self.control.jobs.find():
            rows = self.rows(job)
            if job.status not in UNFINISHED and not job.pieces:
                continue
            said = job.completed_chunks, job.failed_chunks, job.records, job.requests
            held = (
                sum(c.state is ChunkState.COMPLETED for c in rows),
                sum(c.state is ChunkState.FAILED for c in rows),
                sum(c.rows for c in rows),
                sum(c.requests for c in rows),
            )
            if job.status in UNFINISHED or not any(r.under_way for r in self.runs.of(job)):
                assert said == held, job.job_id
            assert job.total_chunks >= job.completed_chunks + job.failed_chunks


class JobMachine(RuleBasedStateMachine):
    """Whatever people, services and processes do, and in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.home()))
        self.world = World(self.folder)
        self.names = 0
        self.backfills, self.clock = self.world.backfills, self.world.clock

    @staticmethod
    def home() -> Path:
        raise NotImplementedError

    tenants = st.sampled_from(TENANTS)
    months = st.integers(2, 7)
    numbers = st.integers(0, 99)

    def a_job(self, number: int, statuses: Iterable[JobStatus] = tuple(JobStatus)) -> str | None:
        found = self.world.control.jobs.find(statuses=set(statuses))
        return sorted(job.job_id for job in found)[number % len(found)] if found else None

    def a_run(self, number: int, states: Iterable[RunState]) -> Run | None:
        found = [run for run in self.world.runs.runs if run.state in states]
        return found[number % len(found)] if found else None

    def a_name(self) -> str:
        self.names += 1
        return f"job-{self.names:02}"

    def steer(self, verb: str, job_id: str | None) -> None:
        """Says it, whether it can be or not; what cannot be is refused and changes nothing."""
        if job_id is None:
            return
        before = self.backfills.get(job_id)
        if before.status in FITTING[verb]:
            getattr(self.backfills, verb)(job_id)
            return
        with pytest.raises(ConfigurationError, match=job_id):
            getattr(self.backfills, verb)(job_id)
        assert self.backfills.get(job_id) == before

    @initialize(tenants=st.lists(tenants, unique=True, max_size=2))
    def begin_with(self, tenants: list[str]) -> None:
        """Somebody is in the midst of it already."""
        for tenant in tenants:
            self.start(tenant, 2, None, None, None)
        self.all_goes_on(1, 2)

    # What people do.

    @rule(
        tenant=tenants,
        first=months,
        last=st.none() | months,
        table=st.none() | st.sampled_from(TABLES),
        chunk_days=st.sampled_from([None, 7]),
    )
    def start(
        self, tenant: str, first: int, last: int | None, table: str | None, chunk_days: int | None
    ) -> None:
        end = None if last is None else date(2026, last + 1, 1)
        wish = Wish(
            tenant, SERVICE, None if table is None else [table], date(2026, first, 1), end,
            chunk_days, job_id=self.a_name(),
        )  # fmt: skip
        row = self.world.control.registry.get(tenant, SERVICE)
        assert row is not None
        if not row.enabled or (last is not None and last < first):
            with pytest.raises(ConfigurationError):
                self.backfills.start(wish)
            return
        self.clock.advance(seconds=1)
        job, joined = self.backfills.start(wish)
        again, joined_again = self.backfills.start(replace(wish, job_id=self.a_name()))
        assert joined_again
        assert again.job_id == job.job_id or joined

    @rule(tenant=tenants)
    def fill(self, tenant: str) -> None:
        row = self.world.control.registry.get(tenant, SERVICE)
        if row is not None and row.enabled:
            self.clock.advance(seconds=1)
            self.backfills.fill(row, Trigger.HOLE, job_id=self.a_name())

    @rule(
        verb=st.sampled_from(VERBS), number=numbers, fits=st.sampled_from([True, True, True, False])
    )
    def say(self, verb: str, number: int, fits: bool) -> None:
        self.steer(verb, self.a_job(number, FITTING[verb] if fits else tuple(JobStatus)))

    @rule(
        verbs=st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from(VERBS)), min_size=1, max_size=4
        ),
        number=numbers,
    )
    def say_during_a_tick(self, verbs: list[tuple[int, str]], number: int) -> None:
        """Between the looks of one tick at runs and ledger."""
        job_id = self.a_job(number)
        for looks, verb in verbs:
            act = partial(self.steer, verb, job_id)
            self.world.runs.during.append((looks, act))
        self.world.tick()

    @rule(tenant=tenants, enabled=st.sampled_from([True, True, False]))
    def connect(self, tenant: str, enabled: bool) -> None:
        registry, now = self.world.control.registry, self.clock()
        if enabled:
            row = registry.enable(tenant, SERVICE, now=now)
            assert row is not None
            for job in self.backfills.enabled(row):
                assert job.status is JobStatus.PENDING
            return
        row = registry.disconnect(tenant, SERVICE, now=now)
        assert row is not None
        self.backfills.disabled(row)
        assert not self.world.control.jobs.find(tenant, SERVICE, statuses=ACTIVE)

    @rule(number=numbers)
    def terminate_in_dagster(self, number: int) -> None:
        run = self.a_run(number, [RunState.QUEUED, RunState.RUNNING])
        if run is not None:
            run.state = RunState.TERMINATED

    # What time and processes do.

    @rule(hours=st.sampled_from([0.01, 0.01, 0.5, 3.0, 25.0]))
    def time_passes(self, hours: float) -> None:
        self.clock.advance(hours=hours)

    @rule()
    def tick(self) -> None:
        self.clock.advance(seconds=5)
        self.world.tick()

    @rule(rounds=st.integers(1, 2), steps=st.integers(1, 4))
    def all_goes_on(self, rounds: int, steps: int) -> None:
        for _ in range(rounds):
            self.tick()
            self.runs_go_on(steps)

    @rule(steps=st.integers(1, 4))
    def runs_go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.clock.advance(seconds=1)
            for run in [run for run in self.world.runs.runs if run.under_way]:
                self.world.step(run)

    @rule(number=numbers, within=st.booleans())
    def a_run_dies(self, number: int, within: bool) -> None:
        run = self.a_run(number, [RunState.RUNNING])
        if run is None:
            return
        job = self.backfills.get(run.job.job_id)
        if within and job.status in ACTIVE and not run.piece.derive:
            todo = [c for c in self.world.chunks_of(run) if c.state is not ChunkState.COMPLETED]
            if todo:
                self.world.fetch(todo[0], run, dies=True)
        run.state = RunState.DIED

    @rule(number=numbers)
    def a_run_fails(self, number: int) -> None:
        run = self.a_run(number, [RunState.RUNNING])
        if run is not None:
            run.state, run.error = RunState.FAILED, "the disk is full"

    @rule(times=st.integers(1, 3))
    def requests_get_lost(self, times: int) -> None:
        self.world.runs.lose = times

    # What services do.

    @rule(
        windows=st.sets(st.tuples(st.sampled_from(TABLES), months), max_size=3) | st.just(set()),
    )
    def windows_are_bad(self, windows: set[tuple[str, int]]) -> None:
        self.world.bad = {
            (table, WHOLE if table == "contacts" else f"2026-{month:02}-01")
            for table, month in windows
        }

    @rule(tenant=tenants, down=st.sampled_from([None, None, RetriableError, CredentialsRefused]))
    def a_service_is(
        self, tenant: str, down: type[RetriableError] | type[CredentialsRefused] | None
    ) -> None:
        self.world.down.pop(tenant, None)
        if down is None:
            self.world.control.breakers.succeeded(tenant, SERVICE)
        else:
            self.world.down[tenant] = down

    # What has to be so.

    @invariant()
    def few_fetch_at_once(self) -> None:
        active = self.world.control.jobs.find(statuses=ACTIVE)
        fetching = [j for j in active if any(p.state.value == "launched" for p in j.pieces)]
        assert len(fetching) <= 2
        lanes = [(job.tenant, job.service) for job in fetching]
        assert len(set(lanes)) == len(lanes)

    def nothing_doubles(self) -> None:
        for job in self.world.control.jobs.find():
            for table in job.tables:
                rows = [c for c in self.world.rows(job) if c.table == table]
                spans = sorted((c.start, c.end) for c in rows)
                for (_, end), (start, _) in pairwise(spans):
                    assert end <= start, f"{job.job_id} {table}"

    def teardown(self) -> None:
        """From here, with all faults gone, every job ends, and ends complete."""
        try:
            self.everything_ends()
        finally:
            self.world.control.close()
            shutil.rmtree(self.folder)

    def everything_ends(self) -> None:
        world = self.world
        world.bad.clear()
        world.runs.lose = 0
        for tenant in TENANTS:
            self.a_service_is(tenant, None)
            self.connect(tenant, True)
        self.drive()  # what is under way ends, with the failures that it had
        for job in world.control.jobs.find():
            if job.status is not JobStatus.COMPLETED:
                self.steer("resume" if job.status is S.PAUSED else "retry", job.job_id)
        self.drive()
        for job in world.control.jobs.find():
            assert job.status is JobStatus.COMPLETED, f"{job.job_id} is {job.status}: {job.note}"
            assert all(run.state is not RunState.QUEUED for run in world.runs.of(job)), job.job_id
        self.nothing_doubles()

    def drive(self) -> None:
        """Time passes until nothing is left to do, and it does not take for ever."""
        for _ in range(300):
            self.tick()
            self.runs_go_on(4)
            if not self.world.control.jobs.find(statuses=ACTIVE):
                return
        unfinished = self.world.control.jobs.find(statuses=ACTIVE)
        pytest.fail(f"wedged: {[(job.job_id, job.note, job.pieces) for job in unfinished]}")


def test_jobs_lose_nothing_double_nothing_and_never_wedge(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("machine")

    class Machine(JobMachine):
        @staticmethod
        def home() -> Path:
            return home

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
