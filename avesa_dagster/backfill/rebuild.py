"""A job's row made anew from what its runs say, should the job table be lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import count

import msgspec

from avesa_dagster.backfill.jobs import Backfills, Wish
from avesa_dagster.control.jobs import Job, JobStatus, Piece, PieceState, Trigger


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run carries of the wish of its job.

    Attributes:
        start, end: Days, [start, end).
        created_at: When the job was made.
    """

    tables: tuple[str, ...]
    start: date
    end: date
    trigger: Trigger
    created_at: datetime
    chunk_size_days: int | None = None
    at_once: bool = False
    only_missing: bool = False


_asked = msgspec.json.Decoder(Asked)


def asked_of(job: Job) -> str | None:
    """The wish as one line of text; None for a job over holes or bad windows.

    Those are found again by whoever looks for them, and may be many.
    """
    if job.stretches:
        return None
    said = Asked(
        tables=job.tables,
        start=job.start.date(),
        end=job.end.date(),
        trigger=job.trigger,
        created_at=job.created_at,
        chunk_size_days=job.chunk_size_days,
        at_once=job.at_once,
        only_missing=job.only_missing,
    )
    return msgspec.json.encode(said).decode()


def rebuilt(
    backfills: Backfills,
    job_id: str,
    tenant: str,
    service: str,
    asked: str | None,
    launched: Sequence[Piece],
) -> Job:
    """Stores the row of a job that has none; a row that is there stays as it is.

    What was launched is followed, so that the job goes on, or ends, as its runs did; what was not
    yet launched waits for its turn. A chunk that the ledger shows as finished under this job is
    not fetched again, so a piece too many costs nothing.

    Args:
        asked: What `asked_of` made of it; None: only what was launched is known.
        launched: The pieces of which there are runs, each with its newest launch; at least one.

    Raises:
        ConfigurationError: The tenant service is not connected, or its history does not reach so
            far back any more.
    """
    wish = _asked.decode(asked) if asked else None
    first = min(piece.launched_at for piece in launched if piece.launched_at)
    plan = backfills.plan(
        Wish(
            tenant,
            service,
            tables=_tables(backfills, tenant, service, wish, launched),
            start=wish.start if wish else date.fromisoformat(min(p.first for p in launched)),
            end=wish.end if wish else None,
            chunk_size_days=wish.chunk_size_days if wish else None,
            at_once=wish.at_once if wish else True,
            trigger=wish.trigger if wish else Trigger.DAGSTER,
            only_missing=wish.only_missing if wish else False,
            job_id=job_id,
        )
    )
    pieces = _merged(launched, plan.pieces if wish else ())
    job = replace(
        plan,
        created_at=wish.created_at if wish else first,
        status=JobStatus.RUNNING,
        pieces=pieces,
    )
    return backfills.refresh(backfills.jobs.create(job))


def _merged(launched: Sequence[Piece], planned: Sequence[Piece]) -> tuple[Piece, ...]:
    """What was launched, under its number; the rest of the plan fills the numbers between and
    behind. A number that stays free belongs to a run that somebody deleted."""
    known = {(frozenset(p.tables), p.first, p.last) for p in launched}
    by_number = {piece.number: piece for piece in launched}
    free = (number for number in count() if number not in by_number)
    rest = [p for p in planned if (frozenset(p.tables), p.first, p.last) not in known]
    merged = by_number | {n: replace(p, number=n) for p, n in zip(rest, free, strict=False)}
    return tuple(
        merged.get(number, Piece(number, (), "", "", recent=False, state=PieceState.DONE))
        for number in range(max(merged) + 1)
    )


def _tables(
    backfills: Backfills,
    tenant: str,
    service: str,
    wish: Asked | None,
    launched: Sequence[Piece],
) -> list[str]:
    """The job's tables that are still on."""
    on = set(backfills.connection(tenant, service).tables)
    named = wish.tables if wish else {table for piece in launched for table in piece.tables}
    return sorted(on & set(named))
