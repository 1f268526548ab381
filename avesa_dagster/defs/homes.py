"""Dagster's own folder of an installation: `AVESA_HOME/dagster`."""

from __future__ import annotations

from pathlib import Path

from avesa_dagster.errors import StoreError

_INSTANCE = """\
# Dagster's instance of this installation. Written once by avesa; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
concurrency:
  runs:
    max_concurrent_runs: 6
    tag_concurrency_limits:
      # One backfill and one live sync at a time for each tenant's service.
      - key: avesa/lane
        value: {applyLimitPerUniqueValue: true}
        limit: 1
      # Room for the live sync, whatever is being backfilled.
      - key: avesa/mode
        value: backfill
        limit: 4
run_retries:
  enabled: true
  max_retries: 2
  # A run that died is retried and resumes; a step that failed says what to do.
  retry_on_asset_or_op_failure: false
run_monitoring:
  enabled: true
  poll_interval_seconds: 10
  start_timeout_seconds: 180
  cancel_timeout_seconds: 60
sensors:
  use_threads: true
  num_workers: 4
schedules:
  use_threads: true
  num_workers: 2
retention:
  schedule:
    purge_after_days: 30
  sensor:
    purge_after_days:
      skipped: 2
      success: 30
      failure: 30
      started: 2
"""

MODULE = "avesa_dagster.definitions"
LOCATION = "avesa_dagster"
"""Name of the code location. Dagster keeps sensor cursors under it: never rename it."""

_WORKSPACE = f"""\
load_from:
  - python_module:
      module_name: {MODULE}
      location_name: {LOCATION}
"""


def prepare(dagster_home: Path) -> Path:
    """Makes the folder with dagster.yaml and workspace.yaml; leaves files that are there.

    Raises:
        StoreError: The folder cannot be written.
    """
    try:
        dagster_home.mkdir(parents=True, exist_ok=True)
        for name, text in (("dagster.yaml", _INSTANCE), ("workspace.yaml", _WORKSPACE)):
            if not (dagster_home / name).exists():
                (dagster_home / name).write_text(text, "utf-8")
    except OSError as error:
        raise StoreError(
            f"{dagster_home}: cannot be written: {error.strerror}",
            hint="set AVESA_HOME to a folder that you may write",
        ) from error
    return dagster_home
