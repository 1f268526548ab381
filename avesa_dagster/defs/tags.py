"""Run tags: what a run is for. Names only; a tag is stored for ever."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PRIORITY_TAG,
    ROOT_RUN_ID_TAG,
)

from avesa_dagster.extract.request import Mode

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
        ASSET_PARTITION_RANGE_START_TAG: partitions[0],
        ASSET_PARTITION_RANGE_END_TAG: partitions[-1],
        PRIORITY_TAG: str(priority),
    }


def mode_of(run: dg.DagsterRun) -> Mode:
    """What the run asks for; a launch from the UI or the CLI is a backfill."""
    return Mode(run.tags.get(MODE, Mode.BACKFILL.value))


def token_of(run: dg.DagsterRun) -> str:
    """Equal for a run and its retries."""
    return run.tags.get(ROOT_RUN_ID_TAG, run.run_id)
