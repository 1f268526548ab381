"""What Dagster's runs say of a job's pieces, and what a job's end means for its runs."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from avesa_dagster.backfill.settle import RunState, Seen
from avesa_dagster.control.jobs import ACTIVE, Job, Piece, PieceState
from avesa_dagster.defs import tags, umbrella
from avesa_dagster.defs.fetch import STOPPED_ITSELF
from avesa_dagster.defs.processes import failed_with, failure_of
from avesa_dagster.errors import Suspended

_WAITING = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
)


def runs_of(instance: dg.DagsterInstance, job: Job) -> list[dg.DagsterRun]:
    """The job's runs, newest first."""
    return list(instance.get_runs(dg.RunsFilter(tags={tags.JOB: job.job_id})))


def launched(job: Job, runs: Sequence[dg.DagsterRun]) -> list[tuple[Piece, dg.DagsterRun | None]]:
    """The pieces that are launched, each with the newest run of its newest launch."""
    return [
        (piece, next((run for run in runs if _is_of(run, piece)), None))
        for piece in job.pieces
        if piece.state is PieceState.LAUNCHED
    ]


def seen(instance: dg.DagsterInstance, run: dg.DagsterRun | None) -> Seen:
    """What became of a run."""
    if run is None:
        return Seen(RunState.NONE)
    if run.status in _WAITING:
        return Seen(RunState.QUEUED, run.run_id)
    if run.status is dg.DagsterRunStatus.SUCCESS:
        return Seen(RunState.SUCCEEDED, run.run_id)
    if run.status is dg.DagsterRunStatus.CANCELED:
        state = RunState.TERMINATED if _was_ended(instance, run) else RunState.DIED
        return Seen(state, run.run_id, "it was cancelled")
    if run.status is dg.DagsterRunStatus.FAILURE and not run.is_complete_and_waiting_to_retry:
        reason = failure_of(instance, run)
        if failed_with(instance, run, Suspended):
            return Seen(RunState.SUSPENDED, run.run_id, reason)
        return Seen(RunState.FAILED if reason else RunState.DIED, run.run_id, reason)
    return Seen(RunState.RUNNING, run.run_id)


def hold_back(instance: dg.DagsterInstance, job: Job) -> None:
    """Takes the queued runs of a job that may not fetch out of the queue.

    Those under way look at the job themselves, and stop within a second.
    """
    if job.status in ACTIVE:
        return
    for run in runs_of(instance, job):
        if run.status is dg.DagsterRunStatus.QUEUED and instance.run_coordinator:
            instance.run_coordinator.cancel_run(run.run_id)
        if not run.is_finished:
            umbrella.cancel(instance, run)


def _was_ended(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether somebody ended the run in Dagster: it did not just notice that it has to stop."""
    asked = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.PIPELINE_CANCELING)
    said = (entry.dagster_event.message or "" for entry in asked if entry.dagster_event)
    return any(not message.startswith(STOPPED_ITSELF) for message in said)


def _is_of(run: dg.DagsterRun, piece: Piece) -> bool:
    return run.tags.get(tags.PIECE) == f"{piece.number}.{piece.attempt}"
