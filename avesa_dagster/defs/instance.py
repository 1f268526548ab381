"""What every installation's dagster.yaml says."""

from __future__ import annotations

COMMON = """\
telemetry:
  enabled: false
nux:
  enabled: false
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
      skipped: 1
      success: 30
      failure: 30
      started: 2
"""
