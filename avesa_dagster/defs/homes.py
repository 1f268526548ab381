"""Dagster's own folder of an installation: `AVESA_HOME/dagster`."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.defs import aws_home
from avesa_dagster.defs.instance import COMMON
from avesa_dagster.errors import StoreError
from avesa_dagster.settings import Settings

_MARK = "# avesa wrote this for "
_EARLIER = {"37e2c77abb5d2693", "dea7dd3fe76ae5fb"}
"""Digests of what earlier versions wrote, without a mark."""
_INSTANCE = f"""\
# Dagster's instance of this installation, from mappings/backfill_config.json: change that file.
# What is changed here by hand stays, and is not brought up to date any more.
run_coordinator:
  module: avesa_dagster.defs.coordinator
  class: LaneCoordinator
  config:
    dequeue_interval_seconds: 1
concurrency:
  runs:
    max_concurrent_runs: {{max_concurrent_runs}}
    tag_concurrency_limits:
      # One backfill and one live sync at a time for each tenant's service.
      - key: avesa/lane
        value: {{{{applyLimitPerUniqueValue: true}}}}
        limit: 1
      # Room for the live sync, whatever is being backfilled.
      - key: avesa/mode
        value: backfill
        limit: {{max_jobs}}
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
{COMMON}"""

MODULE = "avesa_dagster.definitions"
LOCATION = "avesa_dagster"
"""Name of the code location. Dagster keeps sensor cursors under it: never rename it."""

_WORKSPACE = f"""\
load_from:
  - python_module:
      module_name: {MODULE}
      location_name: {LOCATION}
"""


def prepare(settings: Settings) -> Path:
    """Makes the folder with dagster.yaml and workspace.yaml, and brings them up to date.

    A file that somebody changed stays as it is.

    Raises:
        ConfigurationError: backfill_config.json is wrong.
        StoreError: The folder cannot be written.
    """
    home = settings.dagster_home
    scheduling = load_catalog(settings.mappings).backfill.scheduling
    instance = _INSTANCE.format(
        max_concurrent_runs=scheduling.max_concurrent_runs, max_jobs=scheduling.max_jobs
    )
    texts = {"dagster.yaml": instance, "workspace.yaml": _WORKSPACE}
    if settings.aws is not None:
        texts |= aws_home.files(scheduling, LOCATION, os.environ)
    settings.make_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(home / name, text)
    except OSError as error:
        raise StoreError(
            f"{home}: cannot be written: {error.strerror}",
            hint="set AVESA_HOME to a folder that you may write",
        ) from error
    return home


def _write(path: Path, text: str) -> None:
    """Writes the file, unless it has what somebody else wrote."""
    marked = f"{_MARK}{_digest(text)}\n{text}"
    if path.exists():
        held = path.read_text("utf-8")
        if held == marked:
            return
        first, _, rest = held.partition("\n")
        if first != f"{_MARK}{_digest(rest)}" and _digest(held) not in _EARLIER:
            return
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    staged.write_text(marked, "utf-8")
    staged.replace(path)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
