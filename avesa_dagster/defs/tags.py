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


def mode_of(run: dg.DagsterRun) -> Mode:
    """What the run asks for; a launch from the UI or the CLI is a backfill."""
    return Mode(run.tags.get(MODE, Mode.BACKFILL.value))


def token_of(run: dg.DagsterRun) -> str:
    """Equal for a run and the retries that resume it. Re-executing all of a run fetches anew."""
    resumes = {dagster_tags.RESUME_RETRY_TAG, dagster_tags.RETRY_NUMBER_TAG} & set(run.tags)
    return run.tags[dagster_tags.ROOT_RUN_ID_TAG] if resumes else run.run_id
