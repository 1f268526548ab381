"""Dagster's own files in the aws profile: `dagster.yaml` and `workspace.yaml`.

They name variables of the environment, not values, so one image serves every installation. The
stack sets them: AVESA_DATABASE_HOST, _PORT and _PASSWORD, AVESA_BUCKET, AVESA_RUN_TASK (what a run
is started from), AVESA_CODE_HOST (where the code server listens). libpq takes PGSSLMODE itself.
On hosts of one's own each may be left out: then Dagster keeps its records in SQLite, starts runs as
processes, and loads the code location by itself.

`python -m avesa_dagster.defs.aws_home FOLDER` writes them when an image is built.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Scheduling
from avesa_dagster.defs import tags
from avesa_dagster.defs.instance import COMMON
from avesa_dagster.extract.request import Mode
from avesa_dagster.settings import Settings

DATABASE = "dagster"
"""Name of the database, in the server that AVESA_DATABASE_HOST names."""
USER = "avesa"
"""Who owns everything in it; `aws_database` makes that user."""
OUTPUT = "_dagster"
"""Where in the bucket the output of runs lies. No tenant can be called so."""
RUN_CONTAINER = "run"
CODE_PORT = 4000

PYTHON_LOGS = """\
python_logs:
  dagster_handler_config:
    handlers:
      json:
        class: logging.StreamHandler
        formatter: json
    formatters:
      json:
        class: avesa_dagster.logs.JsonFormatter
"""

_STORAGE = f"""\
storage:
  postgres:
    postgres_db:
      hostname:
        env: AVESA_DATABASE_HOST
      port:
        env: AVESA_DATABASE_PORT
      username: {USER}
      password:
        env: AVESA_DATABASE_PASSWORD
      db_name: {DATABASE}
"""

_LAUNCHER = f"""\
run_launcher:
  module: dagster_aws.ecs
  class: EcsRunLauncher
  config:
    task_definition:
      env: AVESA_RUN_TASK
    container_name: {RUN_CONTAINER}
    secrets_tag: null
    propagate_tags:
      allow_list: [{tags.TENANT}, {tags.SERVICE}, {tags.MODE}]
"""

# No comment stands in the text, and no more than is needed: Dagster hands all of it to each run on
# its command line, and ECS takes 8192 characters.
_INSTANCE = f"""\
compute_logs:
  module: dagster_aws.s3.compute_log_manager
  class: S3ComputeLogManager
  config:
    bucket:
      env: AVESA_BUCKET
    prefix: {OUTPUT}
    skip_empty_files: true
    upload_interval: 30
run_coordinator:
  module: avesa_dagster.defs.coordinator
  class: LaneCoordinator
  config:
    dequeue_interval_seconds: 5
    dequeue_use_threads: true
    dequeue_num_workers: 4
concurrency:
  runs:
    max_concurrent_runs: {{max_concurrent_runs}}
    tag_concurrency_limits:
      - key: {tags.LANE}
        value: {{{{applyLimitPerUniqueValue: true}}}}
        limit: 1
      - key: {tags.MODE}
        value: {Mode.BACKFILL.value}
        limit: {{max_jobs}}
{PYTHON_LOGS}run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false
run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  start_timeout_seconds: 600
  cancel_timeout_seconds: 240
{COMMON}"""

_WORKSPACE = """\
load_from:
  - grpc_server:
      host:
        env: AVESA_CODE_HOST
      port: {port}
      location_name: {location}
"""


_ALL = ("AVESA_DATABASE_HOST", "AVESA_RUN_TASK", "AVESA_CODE_HOST")


def files(scheduling: Scheduling, location: str, environ: Collection[str] = _ALL) -> dict[str, str]:
    """The files' texts by their names; of the workspace only with a code server.

    Args:
        scheduling: How much may run at once.
        location: Name of the code location.
        environ: Names of the variables that are set where the files are used.
    """
    instance = _INSTANCE.format(
        max_concurrent_runs=scheduling.max_concurrent_runs, max_jobs=scheduling.max_jobs
    )
    if "AVESA_DATABASE_HOST" in environ:
        instance += _STORAGE
    if "AVESA_RUN_TASK" in environ:
        instance += _LAUNCHER
    found = {"dagster.yaml": instance}
    if "AVESA_CODE_HOST" in environ:
        found["workspace.yaml"] = _WORKSPACE.format(port=CODE_PORT, location=location)
    return found


def main(folder: Path) -> None:
    """Writes the files of the mappings that AVESA_MAPPINGS names.

    Raises:
        ConfigurationError: backfill_config.json is wrong.
    """
    from avesa_dagster.defs.homes import LOCATION

    scheduling = load_catalog(Settings.from_environment().mappings).backfill.scheduling
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(scheduling, LOCATION).items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
