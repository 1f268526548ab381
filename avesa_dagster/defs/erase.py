"""What Dagster keeps of a tenant, and removing it.

Dagster keeps records in the metadata of events (previews, examples of checks), and names of assets
in many more places. This is what every table was seen to hold (1.13.27, after two tenants had been
onboarded, synced and backfilled together), and what becomes of it:

- of one tenant: runs, their tags, their events, compute logs, backfills: removed;
- by asset: event_logs, asset_keys, asset_event_tags, asset_check_executions, evaluations: removed;
- of several tenants: ticks, cursors of sensors, backfills, runs: the tenant's events are removed,
  and where its name stood, another stands;
- snapshots of jobs and plans, which name assets: removed, or changed likewise if a run needs them;
- logs: the lines that name the tenant are removed.

It is SQL where Dagster offers nothing: it cannot remove backfills, snapshots or a tenant's part of
a run; `wipe_assets` keeps the key and writes an event that names it; `delete_run` takes 0.1 s and
leaves compute logs and, in SQLite, the file of the run's events.

The tables are the same in SQLite and in Postgres (`erase_rows`). What differs is where they lie
(`run_files`, `erase_postgres`), and where logs do (`run_files`, `erase_s3`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

from avesa_dagster.defs import erase_rows as rows
from avesa_dagster.defs.erase_rows import Database, Events, Logs, Text
from avesa_dagster.defs.processes import fail_dead_runs
from avesa_dagster.defs.run_files import LocalLogs, SqliteEvents, SqliteFile
from avesa_dagster.defs.traces import Traces
from avesa_dagster.erasure.erasing import Say
from avesa_dagster.errors import ConfigurationError

_NEVER_STARTED = timedelta(seconds=60)
"""A run that was made and did not start for so long never will: its process died before."""
_HEARTBEAT = timedelta(seconds=90)
_SETTLE_SECONDS = 15.0
"""A daemon looks every 5 s whether its definitions are out of date, and loads them in a few."""
_SETTLE_ELSEWHERE_SECONDS = 90.0
"""Dagster's daemon takes a code server's definitions anew each 60 s, and a tick, which may have
begun with the old ones, ends after 60 s at the latest; the rest is for loading them."""
_UNFINISHED = [s for s in BulkActionStatus if s not in BULK_ACTION_TERMINAL_STATUSES]
_ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
_AT_ONCE = 500
_AT_WORK = 8
"""Threads that remove what runs wrote: in S3 each run costs a question."""
_RUN_TEXTS = (
    Text("runs", "run_body"),
    Text("run_tags", "value"),
    Text("bulk_actions", "body"),
    Text("backfill_tags", "value"),
    Text("daemon_heartbeats", "body"),
    Text("kvs", "value"),
)
_EVENT_TEXTS = (
    Text("concurrency_slots", "step_key"),
    Text("pending_steps", "step_key"),
)
_SCHEDULE_TEXTS = (
    Text("job_ticks", "tick_body"),
    Text("jobs", "job_body"),
    Text("instigators", "instigator_body"),
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where Dagster's records lie.

    Attributes:
        shared: By several machines: the processes of runs are not to be looked for on this one.
        settle_seconds: How long a running daemon gets to load the definitions anew.
    """

    runs: Database
    schedules: Database
    events: Events
    shared: bool
    settle_seconds: float


class DagsterHistory:
    """Implements `erasing.RunHistory` over Dagster's SQLite files, or its database in Postgres.

    Args:
        instance: Dagster's instance in `dagster_home`.
        services: Names of all services, for finding names of assets in texts.
        settle_seconds: How long a running daemon gets to load the definitions anew; None: as long
            as it may need.
        say: Told in words what is waited for.

    Raises:
        ConfigurationError: Dagster keeps its runs elsewhere.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        dagster_home: Path,
        services: Collection[str],
        *,
        settle_seconds: float | None = None,
        say: Say = lambda text: None,
    ) -> None:
        self._place = _place_of(instance, dagster_home)
        self._instance = instance
        self._services = services
        self._say = say
        self._settle_seconds = (
            self._place.settle_seconds if settle_seconds is None else settle_seconds
        )
        self._logs = _logs_of(instance, dagster_home)

    def under_way(self, tenant: str) -> list[str]:
        """See RunHistory.under_way. Fails runs whose process is gone, first, if all runs are of
        this machine; elsewhere the daemon does that (`run_monitoring`)."""
        traces = Traces(tenant, self._services)
        if not self._place.shared:
            fail_dead_runs(self._instance)
        busy = self._backfills_under_way(tenant)
        for run in rows.runs_of(self._place.runs, traces):
            if run.status in _ENDED or (run.status == "NOT_STARTED" and run.age > _NEVER_STARTED):
                continue
            if run.own and run.status == "QUEUED":
                self._instance.run_coordinator.cancel_run(run.run_id)
            busy.append(f"run {run.run_id} ({run.status.lower()})")
        return busy

    def erase(self, tenant: str, numbers: Collection[int], say: Say) -> Mapping[str, int]:
        """See RunHistory.erase. What is also of others names `erased.{number}` then; no tenant is
        called so."""
        traces = Traces(tenant, self._services, numbers)
        stand_in = f"erased.{min(numbers, default=0)}"
        runs, events = self._place.runs, self._place.events
        counts: Counter[str] = Counter()
        found = rows.runs_of(runs, traces)
        own = [run.run_id for run in found if run.own]
        say("removing lines of logs")
        counts["log files"] += sum(logs.clean(traces, own) for logs in self._logs)
        for run_ids in _batches(own):
            say(f"removing {len(run_ids)} runs")
            events.remove(run_ids)
            with ThreadPoolExecutor(_AT_WORK) as pool:
                list(pool.map(self._remove_logs, run_ids))
            rows.remove_runs(runs, run_ids)
            counts["runs"] += len(run_ids)
        say("removing events of assets")
        counts["assets"] += self._remove_assets(traces)
        for run in found:
            if not run.own:
                say(f"cleaning run {run.run_id} of several tenants")
                # Its row, by which it is found, is changed after that.
                events.clean(run.run_id, traces, stand_in)
                self._remove_logs(run.run_id)
                counts["shared runs"] += 1
        say("removing backfills")
        counts["backfills"] += rows.remove_backfills(runs, traces)
        say("cleaning what is of several tenants")
        rows.replace_tags(runs, traces, stand_in)
        for database, texts in self._texts():
            counts["shared rows"] += rows.replace_names(database, texts, traces, stand_in)
        say("removing snapshots")
        counts["snapshots"] += rows.clean_snapshots(runs, traces, stand_in)
        say("looking for what deleted runs left")
        counts["left by deleted runs"] += self._remove_orphans(traces, stand_in)
        return {kind: count for kind, count in counts.items() if count}

    def settle(self) -> None:
        """See RunHistory.settle. Nothing is waited for if no daemon has given a sign of life.

        After that, what a daemon or its code server began with the old definitions has ended or is
        a run that `under_way` finds.
        """
        newest = max(
            (beat.timestamp for beat in self._instance.get_daemon_heartbeats().values()), default=0
        )
        if datetime.now(UTC).timestamp() - newest < _HEARTBEAT.total_seconds():
            self._say(f"giving the daemon {self._settle_seconds:.0f} s to load the definitions")
            time.sleep(self._settle_seconds)

    def compact(self) -> None:
        """See RunHistory.compact. The files of other runs' events are left as they are; what it
        means for Postgres, `erase_postgres` says."""
        place = self._place
        left = place.events.left(rows.known_runs(place.runs))
        for database in dict.fromkeys(
            (place.runs, place.schedules, *place.events.databases, *left)
        ):
            database.compact()

    def named(self, tenant: str, numbers: Collection[int]) -> list[str]:
        """See RunHistory.named. The files of other runs' events and compute logs are not read:
        nothing of a tenant comes there but by a run of several, which is cleaned."""
        traces = Traces(tenant, self._services, numbers)
        place = self._place
        said = [f"{run.run_id}: a run" for run in rows.runs_of(place.runs, traces)]
        for database, metadata in (
            (place.runs, RunStorageSqlMetadata),
            (place.schedules, ScheduleStorageSqlMetadata),
            *((each, SqlEventLogStorageMetadata) for each in place.events.databases),
        ):
            for table, count in rows.rows_naming(database, metadata, traces).items():
                said.append(f"{database.name} {table}: {count} rows")
        count = sum(1 for _ in rows.snapshots_naming(place.runs, traces))
        if count:
            said.append(f"{place.runs.name} snapshots: {count} rows")
        return said + [log for logs in self._logs for log in logs.named(traces)]

    def _texts(self) -> Iterator[tuple[Database, Sequence[Text]]]:
        yield self._place.runs, _RUN_TEXTS
        yield self._place.schedules, _SCHEDULE_TEXTS
        yield self._place.events.databases[0], _EVENT_TEXTS

    def _backfills_under_way(self, tenant: str) -> list[str]:
        """Those of this tenant alone are cancelled; those of several are named."""
        busy = []
        for backfill in self._instance.get_backfills(BulkActionsFilter(statuses=_UNFINISHED)):
            concerned = {key.path[0] for key in backfill.asset_selection or ()}
            if concerned == {tenant}:
                cancelled = backfill.with_status(BulkActionStatus.CANCELED)  # type: ignore[no-untyped-call]
                now = datetime.now(UTC).timestamp()
                self._instance.update_backfill(cancelled.with_end_timestamp(now))
            elif tenant in concerned:
                said = backfill.status.value.lower()
                busy.append(f"backfill {backfill.backfill_id} of {len(concerned)} tenants ({said})")
        return busy

    def _remove_logs(self, run_id: str) -> None:
        for logs in self._logs:
            logs.remove(run_id)

    def _remove_assets(self, traces: Traces) -> int:
        removed = self._place.events.remove_by_asset(traces)
        with self._place.schedules.writing() as connection:
            rows.remove_by_asset(connection, "asset_daemon_asset_evaluations", traces)
        return removed

    def _remove_orphans(self, traces: Traces, stand_in: str) -> int:
        """Events and logs of runs that somebody deleted in Dagster, or began to."""
        events = self._place.events
        found = events.holding(traces).union(*(logs.holding() for logs in self._logs))
        orphans = [
            run_id
            for run_id in sorted(found - rows.known_runs(self._place.runs))
            if events.names(run_id, traces)
            or any(logs.names(run_id, traces) for logs in self._logs)
        ]
        for run_id in orphans:
            events.forget(run_id, traces, stand_in)
            self._remove_logs(run_id)
        return len(orphans)


def _place_of(instance: dg.DagsterInstance, dagster_home: Path) -> _Place:
    """Raises ConfigurationError if Dagster keeps its runs where they cannot be erased."""
    storages = (instance.run_storage, instance.schedule_storage, instance.event_log_storage)
    events = instance.event_log_storage
    if (
        isinstance(instance.run_storage, SqliteRunStorage)
        and isinstance(events, SqliteEventLogStorage)
        and isinstance(instance.schedule_storage, SqliteScheduleStorage)
    ):
        folder = Path(events.path_for_shard("index")).parent
        return _Place(
            runs=SqliteFile(folder.parent / "runs.db"),
            schedules=SqliteFile(folder.parent.parent / "schedules" / "schedules.db"),
            events=SqliteEvents(folder),
            shared=False,
            settle_seconds=_SETTLE_SECONDS,
        )
    if all(type(storage).__module__.startswith("dagster_postgres.") for storage in storages):
        from avesa_dagster.defs.erase_postgres import Postgres, PostgresEvents

        of_runs, of_schedules, of_events = map(Postgres.of, storages)
        return _Place(
            runs=of_runs,
            schedules=of_schedules,
            events=PostgresEvents(of_events),
            shared=True,
            settle_seconds=_SETTLE_ELSEWHERE_SECONDS,
        )
    raise ConfigurationError(
        f"{dagster_home}: Dagster does not keep its runs in SQLite or Postgres",
        hint="this version erases from these only; nothing was erased",
    )


def _logs_of(instance: dg.DagsterInstance, dagster_home: Path) -> list[Logs]:
    """Where logs lie: on this machine, and also in S3 if Dagster is configured so."""
    manager = instance.compute_log_manager
    found: list[Logs] = []
    if type(manager).__module__.startswith("dagster_aws."):
        from avesa_dagster.defs.erase_s3 import S3Logs

        found.append(S3Logs(manager))
        manager = manager.local_manager  # type: ignore[attr-defined]
    return [*found, LocalLogs(manager, dagster_home, Path(instance.storage_directory()))]


def _batches(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(run_ids), _AT_ONCE):
        yield run_ids[at : at + _AT_ONCE]
