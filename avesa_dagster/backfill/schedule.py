"""Which pieces may run now: few at once, fair between tenants, deep history off-peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import ACTIVE, Job, Piece, PieceState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATELY = timedelta(hours=1)
_STEP = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Turn:
    """A piece whose turn it is, or, with a note, a job that has to wait, and why.

    `rests`: it waits for the night, which is not held against it.
    """

    job: Job
    piece: Piece | None
    note: str = ""
    rests: bool = False


def turns(
    jobs: Sequence[Job],
    breakers: Mapping[tuple[str, str], Breaker],
    catalog: Catalog,
    now: datetime,
    held: Mapping[str, str] | None = None,
) -> list[Turn]:
    """What to launch now, and which jobs wait for what.

    At most `max_jobs` jobs and `max_tenants` tenants fetch at once, one piece a tenant's service.
    Among those that wait, recent months go first, then the tenant whose runs took the least time
    lately, then the one that was served longest ago: a large or slow tenant gives way after each
    piece, for as long as that took. Where nobody waits for a place, a job's next piece is launched
    while the one before is fetched.

    Args:
        jobs: All that are not finished; of those that ended lately, too, it matters when their
            tenants were served.
        breakers: Those that are not closed.
        held: job_id -> why it cannot be launched at present. It keeps no place from the others.
    """
    held = held or {}
    limits = catalog.backfill.scheduling
    active = sorted((job for job in jobs if job.status in ACTIVE), key=lambda job: job.created_at)
    served, taken = _served(jobs), _taken(jobs, now)
    busy = {(job.tenant, job.service) for job in active if _launched(job)}
    fetching = sum(_launched(job) for job in active)
    tenants = {job.tenant for job in active if _launched(job)}
    found, ready = [], list[tuple[Job, Piece]]()
    for job in active:
        piece = next((p for p in job.pieces if p.state is PieceState.WAITING), None)
        if piece is None or _launched(job):
            continue
        breaker = breakers.get((job.tenant, job.service))
        if job.job_id in held:
            found.append(Turn(job, None, held[job.job_id]))
        elif breaker is not None and breaker.state is not BreakerState.CLOSED:
            found.append(Turn(job, None, _suspended(breaker)))
        elif not off_peak_now(job, piece, catalog, now):
            found.append(Turn(job, None, _waits_for_night(job, catalog), rests=True))
        else:
            ready.append((job, piece))
    ready.sort(
        key=lambda item: (
            not item[1].recent,
            taken.get(item[0].tenant, 0),
            served.get(item[0].tenant, _EPOCH),
            item[0].created_at,
            item[0].job_id,
        )
    )
    for job, piece in ready:
        lane = (job.tenant, job.service)
        if lane in busy:
            found.append(Turn(job, None, "waits for another backfill of this tenant's service"))
        elif fetching >= limits.max_jobs:
            found.append(Turn(job, None, f"waits: {fetching} backfills are running"))
        elif job.tenant not in tenants and len(tenants) >= limits.max_tenants:
            found.append(Turn(job, None, f"waits: {len(tenants)} tenants are being backfilled"))
        else:
            busy.add(lane)
            tenants.add(job.tenant)
            fetching += 1
            found.append(Turn(job, piece))
    if sum(turn.piece is not None for turn in found) == len(ready):  # nobody waits for a place
        found += _ahead([j for j in active if j.job_id not in held], breakers, catalog, now)
    return found


def _ahead(
    active: Sequence[Job],
    breakers: Mapping[tuple[str, str], Breaker],
    catalog: Catalog,
    now: datetime,
) -> list[Turn]:
    """The next pieces of the jobs that fetch, where nobody else waits.

    They stand in Dagster's queue until their lane is free, and begin without a pause.
    """
    found = []
    for job in active:
        launched = sum(piece.state is PieceState.LAUNCHED for piece in job.pieces)
        piece = next((p for p in job.pieces if p.state is PieceState.WAITING), None)
        breaker = breakers.get((job.tenant, job.service))
        closed = breaker is None or breaker.state is BreakerState.CLOSED
        if launched == 1 and piece and closed and off_peak_now(job, piece, catalog, now):
            found.append(Turn(job, piece))
    return found


def off_peak_now(job: Job, piece: Piece, catalog: Catalog, now: datetime) -> bool:
    """Whether the piece may run at this time of the tenant's day."""
    hours = catalog.backfill.scheduling.off_peak
    if hours is None or piece.recent or job.at_once:
        return True
    zone = ZoneInfo(catalog.settings(job.tenant, job.service).timezone)
    return hours.holds(now.astimezone(zone).time().replace(tzinfo=None))


def _launched(job: Job) -> bool:
    return any(piece.state is PieceState.LAUNCHED for piece in job.pieces)


def _taken(jobs: Sequence[Job], now: datetime) -> dict[str, int]:
    """How long each tenant's runs took lately, in steps that tell a large tenant from a small one
    and leave equals to take turns."""
    taken: dict[str, timedelta] = {}
    for job in jobs:
        for piece in job.pieces:
            if piece.launched_at is None or piece.launched_at < now - _LATELY:
                continue
            under_way = piece.state is PieceState.LAUNCHED or piece.ended_at is None
            until = now if under_way else piece.ended_at
            spent = max(timedelta(), (until or now) - piece.launched_at)
            taken[job.tenant] = taken.get(job.tenant, timedelta()) + spent
    return {tenant: int(spent / _STEP).bit_length() for tenant, spent in taken.items()}


def _served(jobs: Sequence[Job]) -> dict[str, datetime]:
    """When each tenant was given a turn last."""
    served: dict[str, datetime] = {}
    for job in jobs:
        for piece in job.pieces:
            if piece.launched_at:
                served[job.tenant] = max(served.get(job.tenant, _EPOCH), piece.launched_at)
    return served


def _suspended(breaker: Breaker) -> str:
    again = f"; probed again at {breaker.probe_at:%H:%M:%S} UTC" if breaker.probe_at else ""
    return f"suspended: {breaker.reason}{again}"


def _waits_for_night(job: Job, catalog: Catalog) -> str:
    hours = catalog.backfill.scheduling.off_peak
    zone = catalog.settings(job.tenant, job.service).timezone
    start = f"{hours.start:%H:%M}" if hours else ""
    return f"waits for the off-peak hours, from {start} in {zone}"
