"""Run tags: what a run is for. Names only; a tag is stored for ever."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
from dagster._core.storage import tags as dagster_tags

from avesa_dagster.extract.request import Mode

RANGE_START = dagster_tags.ASSET_PARTITION_RANGE_START_TAG
RANGE_END = dagster_tags.ASSET_PARTITION_RANGE_END_TAG
MODE = "avesa/mode"
TENANT = "avesa/tenant"
SERVICE = "avesa/service"
JOB = "avesa/job"
PIECE = "avesa/piece"
"""Which piece of its job a run fetches, and which launch of it this is: `2.1`."""
ASKED = "avesa/asked"
"""What the job of a run was asked for, so that the job's row can be made anew."""
PROGRESS = "avesa/progress"
"""How far the run is, in words; written anew every few seconds."""
HOST = "avesa/host"
"""Where a run's process is, if there are several hosts: `{host}/{run id}`, as retries copy tags."""
BACKFILL = dagster_tags.BACKFILL_ID_TAG
MAX_RETRIES = dagster_tags.MAX_RETRIES_TAG
LANE = "avesa/lane"
"""Runs of one lane go one after another: a tenant's backfill, and apart from it its live sync."""


def range_tags(
    tenant: str, service: str, mode: Mode, partitions: Sequence[str], *, priority: int
) -> dict[str, str]:
    """Tags of a run over a stretch of partitions of one tenant's service."""
    return {
        TENANT: tenant,
        SERVICE: service,
        MODE: mode.value,
        RANGE_START: partitions[0],
        RANGE_END: partitions[-1],
        dagster_tags.PRIORITY_TAG: str(priority),
    }


def lane(mode: Mode, tenant: str, service: str) -> str:
    """Runs of one lane go one after another."""
    return f"{'backfill' if mode is Mode.BACKFILL else 'live'}/{tenant}/{service}"


def mode_of(run: dg.DagsterRun) -> Mode:
    """What the run asks for; a launch from the UI or the CLI is a backfill."""
    return Mode(run.tags.get(MODE, Mode.BACKFILL.value))


def token_of(run: dg.DagsterRun) -> str:
    """Whose finished chunks are not fetched again: those of the job, or of the run that is resumed.

    A run that somebody executes again from its beginning fetches anew.
    """
    job = job_of(run)
    if job is not None:
        return job
    return run.tags[dagster_tags.ROOT_RUN_ID_TAG] if _resumes(run) else run.run_id


def job_of(run: dg.DagsterRun) -> str | None:
    """The backfill job that the run belongs to; none yet if it was launched in Dagster itself."""
    return None if _executed_again(run) else run.tags.get(JOB)


def new_job_id(run: dg.DagsterRun) -> str:
    """What the job of a run is to be called that was launched in Dagster itself."""
    if not _executed_again(run) and BACKFILL in run.tags:
        return run.tags[BACKFILL]
    return f"r{run.run_id.split('-')[0]}"


def partition_keys(run: dg.DagsterRun) -> tuple[str, str] | None:
    """First and last partition that the run is over; None for a run without partitions."""
    one = run.tags.get(dagster_tags.PARTITION_NAME_TAG)
    if one is not None:
        return one, one
    if RANGE_START in run.tags and RANGE_END in run.tags:
        return run.tags[RANGE_START], run.tags[RANGE_END]
    return None


def _resumes(run: dg.DagsterRun) -> bool:
    return bool({dagster_tags.RESUME_RETRY_TAG, dagster_tags.RETRY_NUMBER_TAG} & set(run.tags))


def _executed_again(run: dg.DagsterRun) -> bool:
    return dagster_tags.PARENT_RUN_ID_TAG in run.tags and not _resumes(run)
