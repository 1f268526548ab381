"""Dagster's own backfill record over a run of ours, so that its backfill page shows and cancels it.

The record says that everything was requested already: the backfill daemon then launches nothing,
follows the run, and ends the record with it. It is added when the run exists; before, the daemon
would take it for stalled. (dagster 1.13.27: `_execution/asset_backfill.py`.)
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.partitions.subset import PartitionsSubset
from dagster._core.definitions.timestamp import TimestampWithTimezone
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from avesa_dagster.control.jobs import Job, Piece
from avesa_dagster.defs import tags

_CANCELLED = (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)


def ensure_shown(
    instance: dg.DagsterInstance,
    graph: BaseAssetGraph,  # type: ignore[type-arg]
    job: Job,
    piece: Piece,
    run: dg.DagsterRun,
) -> bool:
    """Adds the record of a run, if there is none.

    Returns:
        Whether a person has cancelled it on Dagster's backfill page.
    """
    name = run.tags.get(tags.BACKFILL)
    if name is None:
        return False
    known = instance.get_backfill(name)
    if known is not None:
        return known.status in _CANCELLED
    instance.add_backfill(_record(instance, graph, job, piece, run, name))
    return False


def cancel(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Says on Dagster's backfill page that the record is being cancelled."""
    name = run.tags.get(tags.BACKFILL)
    known = instance.get_backfill(name) if name else None
    if known is not None and known.status is BulkActionStatus.REQUESTED:
        instance.update_backfill(known._replace(status=BulkActionStatus.CANCELING))


def _record(
    instance: dg.DagsterInstance,
    graph: BaseAssetGraph,  # type: ignore[type-arg]
    job: Job,
    piece: Piece,
    run: dg.DagsterRun,
    name: str,
) -> PartitionBackfill:
    first = instance.get_run_record_by_id(run.run_id)
    began = first.create_timestamp.timestamp() if first else 0.0
    target = _target(graph, run, piece)
    events = instance.get_records_for_run(run.run_id, limit=1).records
    return PartitionBackfill(
        backfill_id=name,
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={k: v for k, v in run.tags.items() if k in (tags.JOB, tags.TENANT, tags.SERVICE)},
        backfill_timestamp=began,
        asset_selection=sorted(key for key in run.asset_selection or () if graph.has(key)),
        title=f"{job.tenant} {job.service}: {piece.first} to {piece.last} (job {job.job_id})",
        asset_backfill_data=AssetBackfillData(
            target_subset=target,
            requested_runs_for_target_roots=True,
            latest_storage_id=events[0].storage_id if events else None,
            materialized_subset=AssetGraphSubset.create_empty_subset(),
            requested_subset=target,
            failed_and_downstream_subset=AssetGraphSubset.create_empty_subset(),
            backfill_start_time=TimestampWithTimezone(began, "UTC"),
        ),
    )


def _target(
    graph: BaseAssetGraph,  # type: ignore[type-arg]
    run: dg.DagsterRun,
    piece: Piece,
) -> AssetGraphSubset:
    whole: set[dg.AssetKey] = set()
    parts: dict[dg.AssetKey, PartitionsSubset] = {}
    stretch = dg.PartitionKeyRange(piece.first, piece.last)
    for key in run.asset_selection or ():
        if not graph.has(key):
            continue  # switched off since
        windows = graph.get(key).partitions_def
        if windows is None:
            whole.add(key)
        else:
            parts[key] = windows.subset_with_partition_keys(
                windows.get_partition_keys_in_range(stretch)
            )
    return AssetGraphSubset.create_empty_subset()._replace(
        partitions_subsets_by_asset_key=parts, non_partitioned_asset_keys=whole
    )
