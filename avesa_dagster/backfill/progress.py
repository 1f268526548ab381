"""How far a job is, by the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from avesa_dagster.backfill.span import job_partitions
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import Chunk, ChunkState, Ledger
from avesa_dagster.control.jobs import ACTIVE, Job, JobError, JobStatus, Piece, PieceState
from avesa_dagster.extract.sizing import by_calendar
from avesa_dagster.sources.base import Window

MOST_ERRORS = 100


def job_chunks(job: Job, ledger: Ledger) -> list[Chunk]:
    """Every chunk of the job that is planned, table by table, newest window first."""
    return [
        chunk
        for table in job.tables
        for chunk in ledger.rows(job.job_id, job.tenant, job.service, table)
    ]


def counted(job: Job, chunks: Sequence[Chunk], catalog: Catalog) -> Job:
    """The job with what its chunks came to; pieces without chunks yet count by the calendar."""
    planned = sum(_unplanned(job, piece, chunks, catalog) for piece in job.pieces)
    failed = [chunk for chunk in chunks if chunk.state is ChunkState.FAILED]
    errors = [JobError(job.note)] if job.status is JobStatus.FAILED and job.note else []
    errors += [
        JobError(chunk.error or "failed", chunk.table, str(Window(chunk.start, chunk.end)))
        for chunk in failed
    ]
    errors += [JobError(piece.error) for piece in job.pieces if piece.error and not failed]
    return replace(
        job,
        total_chunks=len(chunks) + planned,
        completed_chunks=sum(chunk.state is ChunkState.COMPLETED for chunk in chunks),
        failed_chunks=len(failed),
        records=sum(chunk.rows for chunk in chunks),
        requests=sum(chunk.requests for chunk in chunks),
        errors=tuple(errors[:MOST_ERRORS]),
    )


def ends_at(job: Job, chunks: Sequence[Chunk], now: datetime) -> datetime | None:
    """When the job will end at the speed that it had since it was started; None: not known yet."""
    if job.started_at is None or job.status not in ACTIVE:
        return None
    done = sum(
        chunk.state is ChunkState.COMPLETED
        and chunk.finished_at is not None
        and chunk.finished_at >= job.started_at
        for chunk in chunks
    )
    left = job.total_chunks - job.completed_chunks - job.failed_chunks
    return now + (now - job.started_at) / done * left if done else None


def _unplanned(job: Job, piece: Piece, chunks: Sequence[Chunk], catalog: Catalog) -> int:
    """About how many chunks a piece will have whose tables are not planned yet."""
    if piece.derive or piece.state in (PieceState.DONE, PieceState.FAILED):
        return 0
    parts = [p for p in job_partitions(job, catalog) if piece.first <= p.key <= piece.last]
    if not parts:
        return 0
    span = Window(parts[0].start, parts[-1].end)
    known = {c.table for c in chunks if c.start < span.end and c.end > span.start}
    service = catalog.services[job.service]
    days = job.chunk_size_days or catalog.settings(job.tenant, job.service).chunk_size_days
    calendar = sum(
        len(list(by_calendar(p, Window(p.start, min(p.end, job.end)), days))) for p in parts
    )
    return sum(
        1 if service.tables[table].master_data else calendar
        for table in piece.tables
        if table not in known
    )
