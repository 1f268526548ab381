"""The rows of backfill jobs made anew from Dagster's runs and the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from avesa_dagster.backfill.rebuild import rebuilt
from avesa_dagster.control.jobs import Job, Piece, PieceState
from avesa_dagster.defs import tags
from avesa_dagster.defs.fetch import raw_tables
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of the job ids that runs name and the job table lacks.

    Attributes:
        jobs: Made anew.
        left: Job id to why it was not.
    """

    jobs: tuple[Job, ...]
    left: dict[str, str]


def rebuild(instance: dg.DagsterInstance, installation: Installation) -> Rebuilt:
    """Makes a row for each job that runs name and that has none.

    Jobs whose newest run is older than finished jobs are kept are left out, as if their row had
    been removed for its age.
    """
    named = {value for key, values in instance.get_run_tags([tags.JOB]) for value in values if key}
    jobs, left = list[Job](), dict[str, str]()
    for job_id in sorted(named):
        if installation.control.jobs.get(job_id) is not None:
            continue
        records = instance.get_run_records(dg.RunsFilter(tags={tags.JOB: job_id}))
        if not records or _is_old(records, installation):
            continue
        try:
            jobs.append(_rebuilt(job_id, records, installation))
        except ConfigurationError as error:
            left[job_id] = error.what
    return Rebuilt(tuple(jobs), left)


def _is_old(records: Sequence[dg.RunRecord], installation: Installation) -> bool:
    days = timedelta(days=installation.catalog.backfill.scheduling.keep_finished_days)
    finished = all(record.dagster_run.is_finished for record in records)
    newest = max(record.update_timestamp.replace(tzinfo=UTC) for record in records)
    return finished and newest < installation.clock() - days


def _rebuilt(job_id: str, records: Sequence[dg.RunRecord], installation: Installation) -> Job:
    newest = records[0].dagster_run
    tenant, service = newest.tags[tags.TENANT], newest.tags[tags.SERVICE]
    launched: dict[int, Piece] = {}
    for record in reversed(records):  # a later launch of a piece replaces the one before
        piece = _piece(record, installation)
        if piece is not None:
            launched[piece.number] = piece
    if not launched:
        raise ConfigurationError("its runs do not say which part of it they fetched")
    asked = newest.tags.get(tags.ASKED)
    return rebuilt(installation.backfills, job_id, tenant, service, asked, list(launched.values()))


def _piece(record: dg.RunRecord, installation: Installation) -> Piece | None:
    run = record.dagster_run
    keys = tags.partition_keys(run)
    connection = installation.control.registry.get(
        run.tags.get(tags.TENANT, ""), run.tags.get(tags.SERVICE, "")
    )
    number, _, attempt = run.tags.get(tags.PIECE, "").partition(".")
    if keys is None or connection is None or not number.isdecimal() or not attempt.isdecimal():
        return None
    tables = raw_tables(run, connection)
    return Piece(
        number=int(number),
        tables=tuple(sorted(tables or connection.tables)),
        first=keys[0],
        last=keys[1],
        recent=True,
        derive=not tables,
        state=PieceState.LAUNCHED,
        attempt=int(attempt),
        launched_at=_began(record),
    )


def _began(record: dg.RunRecord) -> datetime:
    return record.create_timestamp.replace(tzinfo=UTC)
