"""What is wrong at present, by what the control tables say.

Nothing here asks a service or Dagster. A text says since when, not for how long, so it stays the
same while nothing changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from avesa_dagster.catalog.models import AlertSettings, Catalog
from avesa_dagster.control.base import Chunk, ChunkState, Ledger, TenantService, Watermarks
from avesa_dagster.control.health import Alarm, Breakers, BreakerState
from avesa_dagster.control.jobs import ACTIVE, UNFINISHED, Job, Jobs, JobStatus
from avesa_dagster.watch.notify import Severity
from avesa_dagster.watch.stores import Stores, connections

_RECENT = timedelta(days=7)
"""A job that ended before is not found any more; the ledger's holes are another's concern."""
_ENDED = frozenset({JobStatus.COMPLETED, JobStatus.COMPLETED_WITH_ERRORS, JobStatus.FAILED})
"""Ends that somebody may want to hear about; who cancels a job knows."""
_QUOTE = 300
"""Characters of another text that one quotes."""
_FAR_PAST = datetime.min.replace(tzinfo=UTC)


class Kind(StrEnum):
    """What can be wrong; the first part of a finding's key."""

    BREAKER_OPEN = "breaker_open"
    LATE = "late"
    STALE = "stale"
    CHUNKS_FAILING = "chunks_failing"
    JOB_LONG = "job_long"
    JOB_INCOMPLETE = "job_incomplete"
    DISAGREES = "disagrees"


_TITLES: dict[str, str] = {
    Kind.BREAKER_OPEN: "service suspended",
    Kind.LATE: "sync is late",
    Kind.STALE: "sync has stopped",
    Kind.CHUNKS_FAILING: "backfill keeps failing",
    Kind.JOB_LONG: "backfill takes long",
    Kind.JOB_INCOMPLETE: "backfill ended incomplete",
    Kind.DISAGREES: "lake and source disagree",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        about: A table's name or a job's id; empty if it is about the whole service.
        text: What, since when, and what to do. Holds no secret: it is built from names, numbers
            and the texts of AVESA's errors.
    """

    kind: Kind
    tenant: str
    service: str
    about: str
    severity: Severity
    text: str

    @property
    def key(self) -> str:
        """What and whose; the same for as long as it is wrong."""
        parts = (self.kind.value, self.tenant, self.service, self.about)
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A comparison found that the lake does not hold what the source has."""

    tenant: str
    service: str
    table: str
    text: str


def title(key: str) -> str:
    """The subject line of a finding, by its key."""
    kind, _, whose = key.partition("/")
    return f"{whose.replace('/', ' ')}: {_TITLES.get(kind, kind)}"


def findings(
    stores: Stores,
    catalog: Catalog,
    now: datetime,
    disagreements: Iterable[Disagreement] = (),
) -> list[Finding]:
    """Everything that is wrong now, each once, ordered by tenant, service and kind.

    Args:
        catalog: Says which tables there are, and from when on something is wrong (`alerts`).
        disagreements: Comparisons with a source that failed and were not repeated well.

    Raises:
        StoreError: A control table cannot be read.
    """
    limits = catalog.backfill.alerts
    enabled = connections(stores, catalog)
    alarms = {alarm.key: alarm for alarm in stores.alarms.all()}
    unfinished = stores.jobs.find(statuses=UNFINISHED)
    found = [
        *_suspended(stores.breakers, enabled),
        *_unsynced(stores.watermarks, enabled, limits, now),
        *_failing(stores.ledger, unfinished, limits.failed_chunks, alarms),
        *_long(unfinished, timedelta(hours=limits.job_hours), now),
        *_incomplete(stores.jobs, limits.completion_share, now),
        *_disagreeing(disagreements),
    ]
    unique = {finding.key: finding for finding in found}
    return sorted(unique.values(), key=lambda f: (f.tenant, f.service, f.kind, f.about))


def _suspended(breakers: Breakers, enabled: Collection[TenantService]) -> Iterator[Finding]:
    connected = {(row.tenant, row.service) for row in enabled}
    for breaker in breakers.all():
        # Half open is still wrong: a probe is under way.
        if breaker.state is BreakerState.CLOSED or (
            (breaker.tenant, breaker.service) not in connected
        ):
            continue
        todo = (
            "connect it again with valid credentials"
            if breaker.credentials
            else "it is probed, and goes on by itself once it answers"
        )
        yield Finding(
            Kind.BREAKER_OPEN,
            breaker.tenant,
            breaker.service,
            "",
            Severity.ERROR,
            f"not asked since {_said(breaker.opened_at)}: {_quoted(breaker.reason)} — {todo}",
        )


def _unsynced(
    watermarks: Watermarks,
    enabled: Iterable[TenantService],
    limits: AlertSettings,
    now: datetime,
) -> Iterator[Finding]:
    for row in enabled:
        marks = watermarks.of(row.tenant, row.service)
        for table in row.tables:
            mark = marks.get(table)
            # A service that was connected (again) just now has its first sync before it.
            age = now - max(mark.upper if mark else _FAR_PAST, row.updated_at)
            reached = _said(mark.upper) if mark else f"never, connected {_said(row.updated_at)}"
            text = f"synced up to: {reached} — look at the runs of its live sync"
            whose = (row.tenant, row.service, table)
            if age > timedelta(minutes=limits.fresh_minutes):
                yield Finding(Kind.LATE, *whose, Severity.WARNING, text)
            if age > timedelta(hours=limits.stale_hours):
                yield Finding(Kind.STALE, *whose, Severity.ERROR, text)


def _failing(
    ledger: Ledger, jobs: Iterable[Job], in_a_row: int, alarms: Mapping[str, Alarm]
) -> Iterator[Finding]:
    """Jobs whose newest chunks failed.

    A chunk that is tried again counts as neither until it ends. So that this does not look like
    an end, what was found stays until a chunk is completed.
    """
    for job in jobs:
        newest = _newest(ledger, job)
        failed = 0
        while failed < len(newest) and newest[failed].state is ChunkState.FAILED:
            failed += 1
        text = f"the newest {in_a_row} chunks of backfill {job.job_id} failed in a row"
        finding = Finding(
            Kind.CHUNKS_FAILING, job.tenant, job.service, job.job_id, Severity.ERROR, text
        )
        if failed >= in_a_row and job.status in ACTIVE:
            yield _with_reason(finding, newest[0])
        elif alarm := alarms.get(finding.key):
            completed = (c for c in newest if c.state is ChunkState.COMPLETED)
            last = next(completed, None)
            if last is None or last.finished_at is None or last.finished_at <= alarm.since:
                yield replace(finding, text=alarm.text)


def _newest(ledger: Ledger, job: Job) -> list[Chunk]:
    """The job's chunks that ended, the last one first."""
    ended = [
        (chunk.finished_at, chunk)
        for table in job.tables
        for chunk in ledger.rows(job.job_id, job.tenant, job.service, table)
        if chunk.finished_at and chunk.state in (ChunkState.COMPLETED, ChunkState.FAILED)
    ]
    ended.sort(key=lambda pair: (pair[0], pair[1].table, pair[1].chunk_id), reverse=True)
    return [chunk for _, chunk in ended]


def _with_reason(finding: Finding, chunk: Chunk) -> Finding:
    window = f"{chunk.start:%Y-%m-%d} to {chunk.end:%Y-%m-%d}"
    reason = f"{finding.text}; the last, {chunk.table} {window}: {_quoted(chunk.error or '')}"
    return replace(finding, text=reason)


def _long(jobs: Iterable[Job], longest: timedelta, now: datetime) -> Iterator[Finding]:
    for job in jobs:
        if job.started_at is None or now - job.started_at <= longest:
            continue
        note = f" ({_quoted(job.note)})" if job.note else ""
        yield Finding(
            Kind.JOB_LONG,
            job.tenant,
            job.service,
            job.job_id,
            Severity.WARNING,
            f"backfill {job.job_id} runs since {_said(job.started_at)}, which is over "
            f"{longest / timedelta(hours=1):g} h{note}",
        )


def _incomplete(jobs: Jobs, wanted: float, now: datetime) -> Iterator[Finding]:
    ended = jobs.find(statuses=_ENDED)
    better = [job for job in ended if job.status is JobStatus.COMPLETED]
    for job in ended:
        if (
            job.completed_at is None
            or now - job.completed_at > _RECENT
            or _share(job) >= wanted
            or _superseded(job, better)
        ):
            continue
        first = f": {_quoted(job.errors[0].text)}" if job.errors else ""
        yield Finding(
            Kind.JOB_INCOMPLETE,
            job.tenant,
            job.service,
            job.job_id,
            Severity.ERROR,
            f"backfill {job.job_id} ended {_said(job.completed_at)} with {job.completed_chunks} of "
            f"{job.total_chunks} chunks{first} — run it again; it fetches what is missing",
        )


def _share(job: Job) -> float:
    if job.total_chunks:
        return job.completed_chunks / job.total_chunks
    return 1.0 if job.status is JobStatus.COMPLETED else 0.0


def _superseded(job: Job, completed: Sequence[Job]) -> bool:
    """Whether later jobs fetched all that this one was to fetch."""
    later = [
        other
        for other in completed
        if (other.tenant, other.service) == (job.tenant, job.service)
        and other.created_at > job.created_at
        and other.start <= job.start
        and other.end >= job.end
        and (not other.stretches or set(job.stretches or [None]) <= set(other.stretches))
    ]
    return set(job.tables) <= {table for other in later for table in other.tables}


def _disagreeing(disagreements: Iterable[Disagreement]) -> Iterator[Finding]:
    texts: dict[tuple[str, str, str], list[str]] = {}
    for one in disagreements:
        texts.setdefault((one.tenant, one.service, one.table), []).append(one.text)
    for whose, said in texts.items():
        more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
        yield Finding(Kind.DISAGREES, *whose, Severity.ERROR, f"{_quoted(said[0])}{more}")


def _said(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "an unknown time"


def _quoted(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _QUOTE else f"{words[: _QUOTE - 1]}…"
