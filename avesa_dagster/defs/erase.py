"""What Dagster keeps of a tenant, and removing it.

Dagster keeps records in the metadata of events (previews, examples of checks), and names of assets
in many more places. This is what every table of its SQLite files was seen to hold (1.13.27, after
two tenants had been onboarded, synced and backfilled together), and what becomes of it:

- of one tenant: runs, their tags, the file of their events, compute logs, backfills: removed;
- by asset: event_logs, asset_keys, asset_event_tags, asset_check_executions, evaluations: removed;
- of several tenants: ticks, cursors of sensors, backfills, runs: the tenant's events are removed,
  and where its name stood, another stands;
- snapshots of jobs and plans, which name assets: removed, or changed likewise if a run needs them;
- logs: the lines that name the tenant are removed.

It is SQL where Dagster offers nothing: it cannot remove backfills, snapshots or a tenant's part of
a run; `wipe_assets` keeps the key and writes an event that names it; `delete_run` takes 0.1 s and
leaves compute logs and the file of the run's events.
"""

from __future__ import annotations

import shutil
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage

from avesa_dagster.control.compaction import compact
from avesa_dagster.defs import tags
from avesa_dagster.defs.processes import fail_dead_runs, sole_daemon
from avesa_dagster.defs.run_files import (
    RUN_ID,
    Text,
    clean_events,
    count_by_asset,
    disk,
    drop_lines,
    events_name,
    mentions,
    naming,
    reading,
    remove_by_asset,
    replace_names,
    writing,
)
from avesa_dagster.defs.traces import Traces, owners
from avesa_dagster.erasure import Say
from avesa_dagster.errors import ConfigurationError

_NEVER_STARTED = timedelta(seconds=60)
"""A run that was made and did not start for so long never will: its process died before."""
_HEARTBEAT = timedelta(seconds=90)
_SETTLE_SECONDS = 15.0
"""A daemon looks every 5 s whether its definitions are out of date, and loads them in a few."""
_UNFINISHED = [s for s in BulkActionStatus if s not in BULK_ACTION_TERMINAL_STATUSES]
_ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
_AT_ONCE = 500
_BY_ASSET = ("event_logs", "asset_keys", "asset_event_tags", "asset_check_executions")
_RUN_TEXTS = (
    Text("runs", "run_body"),
    Text("run_tags", "value"),
    Text("bulk_actions", "body"),
    Text("backfill_tags", "value"),
    Text("daemon_heartbeats", "body"),
    Text("kvs", "value"),
)
_SCHEDULE_TEXTS = (
    Text("job_ticks", "tick_body"),
    Text("jobs", "job_body"),
    Text("instigators", "instigator_body"),
)


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: str
    status: str
    age: timedelta
    own: bool
    """Of this tenant alone."""


class DagsterHistory:
    """Implements `erasure.RunHistory` over Dagster's SQLite files.

    Args:
        instance: Dagster's instance in `dagster_home`.
        services: Names of all services, for finding names of assets in texts.
        settle_seconds: How long a running daemon gets to load the definitions anew.

    Raises:
        ConfigurationError: Dagster keeps its runs elsewhere.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        dagster_home: Path,
        services: Collection[str],
        *,
        settle_seconds: float = _SETTLE_SECONDS,
    ) -> None:
        if not (
            isinstance(instance.run_storage, SqliteRunStorage)
            and isinstance(instance.event_log_storage, SqliteEventLogStorage)
            and isinstance(instance.schedule_storage, SqliteScheduleStorage)
        ):
            raise ConfigurationError(
                f"{dagster_home}: Dagster does not keep its runs in SQLite",
                hint="this version erases from SQLite only; nothing was erased",
            )
        self._instance = instance
        self._events = instance.event_log_storage
        self._home = dagster_home
        self._services = services
        self._settle_seconds = settle_seconds
        self._shards = Path(self._events.path_for_shard("index")).parent
        self._index = self._shards / "index.db"
        self._runless = self._shards / f"{RUNLESS_RUN_ID}.db"
        self._runs = self._shards.parent / "runs.db"
        self._schedules = self._shards.parent.parent / "schedules" / "schedules.db"
        self._storage = Path(instance.storage_directory())

    def under_way(self, tenant: str) -> list[str]:
        """See RunHistory.under_way. Fails runs whose process is gone, first."""
        traces = Traces(tenant, self._services)
        fail_dead_runs(self._instance)
        busy = self._backfills_under_way(tenant)
        for run in self._runs_of(traces):
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
        counts: Counter[str] = Counter()
        found = self._runs_of(traces)
        own = [run.run_id for run in found if run.own]
        say("removing lines of logs")
        counts["log files"] += self._clean_logs(traces, own)
        for run_ids in _batches(own):
            say(f"removing {len(run_ids)} runs")
            self._remove_events(run_ids)
            for run_id in run_ids:
                self._remove_files(run_id)
                self._instance.run_storage.delete_run(run_id)
            counts["runs"] += len(run_ids)
        say("removing events of assets")
        counts["assets"] += self._remove_assets(traces)
        for run in found:
            if not run.own:
                say(f"cleaning run {run.run_id} of several tenants")
                self._clean_events(run.run_id, traces, stand_in)
                counts["shared runs"] += 1
        say("removing backfills")
        counts["backfills"] += self._remove_backfills(traces)
        say("cleaning what is of several tenants")
        self._replace_tags(traces, stand_in)
        for path, texts in ((self._runs, _RUN_TEXTS), (self._schedules, _SCHEDULE_TEXTS)):
            counts["shared rows"] += replace_names(path, texts, traces, stand_in)
        say("removing snapshots")
        counts["snapshots"] += self._clean_snapshots(traces, stand_in)
        say("looking for what deleted runs left")
        counts["left by deleted runs"] += self._remove_orphans(traces)
        return {kind: count for kind, count in counts.items() if count}

    def settle(self) -> None:
        """See RunHistory.settle."""
        newest = max(
            (beat.timestamp for beat in self._instance.get_daemon_heartbeats().values()), default=0
        )
        if datetime.now(UTC).timestamp() - newest < _HEARTBEAT.total_seconds():
            time.sleep(self._settle_seconds)

    def compact(self) -> None:
        """See RunHistory.compact. The files of other runs' events are left as they are."""
        known = self._known_runs()
        left = [path for path in self._shards.glob("*.db") if path.stem not in known]
        for path in sorted({self._runs, self._schedules, self._index, self._runless, *left}):
            compact(path)

    def named(self, tenant: str, numbers: Collection[int]) -> list[str]:
        """See RunHistory.named. Bodies of other runs' events are not read: nothing of a tenant
        comes there but by a run of several, which is cleaned."""
        traces = Traces(tenant, self._services, numbers)
        said = [f"{run.run_id}: a run" for run in self._runs_of(traces)]
        for path, texts in ((self._runs, _RUN_TEXTS), (self._schedules, _SCHEDULE_TEXTS)):
            for text in texts:
                count = sum(1 for _ in naming(path, text, traces))
                if count:
                    said.append(f"{self._shown(path)} {text.table}: {count} rows")
        count = sum(1 for _ in self._snapshots_naming(traces))
        if count:
            said.append(f"{self._shown(self._runs)} snapshots: {count} rows")
        for path in (self._index, self._runless):
            for table in _BY_ASSET:
                if count_by_asset(path, table, traces):
                    said.append(f"{self._shown(path)} {table}")
        for log in self._logs():
            if mentions(log, traces):
                said.append(
                    f"lines of {self._shown(log)}: stop `avesa dev`, which writes it, and run the "
                    "erasure again"
                )
        return said

    def _shown(self, path: Path) -> Path:
        return path.relative_to(self._home) if path.is_relative_to(self._home) else path

    def _runs_of(self, traces: Traces) -> list[_Run]:
        """Runs that concern the tenant, by their assets or, if they have none, by their tag."""
        with reading(self._runs) as connection:
            rows = connection.execute(
                "SELECT run_id, status, run_body,"
                " strftime('%s') - strftime('%s', create_timestamp),"
                " EXISTS (SELECT 1 FROM run_tags t WHERE t.run_id = runs.run_id"
                " AND t.key = :tag AND t.value = :tenant) AS tagged"
                " FROM runs WHERE instr(run_body, :prefix) OR instr(run_body, :configured)"
                " OR tagged ORDER BY id",
                {
                    "tag": tags.TENANT,
                    "tenant": traces.tenant,
                    "prefix": traces.asset_prefix,
                    "configured": traces.configured,
                },
            ).fetchall()
        return [
            _Run(
                run_id,
                status,
                timedelta(seconds=age),
                own=owners(body) == {traces.tenant} or (bool(tagged) and not owners(body)),
            )
            for run_id, status, body, age, tagged in rows
        ]

    def _known_runs(self) -> set[str]:
        with reading(self._runs) as connection:
            return {row[0] for row in connection.execute("SELECT run_id FROM runs")}

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

    def _remove_events(self, run_ids: Sequence[str]) -> None:
        """What the index holds of runs; the rest is in files of their own."""
        with self._events.index_connection() as connection:
            for run_id in run_ids:
                self._events.delete_events_for_run(connection, run_id)

    def _remove_files(self, run_id: str) -> None:
        """The file of the run's events, and its compute logs and other artifacts."""
        with disk(self._shards):
            for suffix in (".db", ".db-wal", ".db-shm", ".db-journal"):
                (self._shards / f"{run_id}{suffix}").unlink(missing_ok=True)
        self._remove_logs(run_id)

    def _remove_logs(self, run_id: str) -> None:
        self._instance.compute_log_manager.delete_logs(prefix=[run_id])
        with disk(self._storage):
            if (self._storage / run_id).exists():
                shutil.rmtree(self._storage / run_id)

    def _remove_assets(self, traces: Traces) -> int:
        removed = 0
        with writing(self._index) as connection:
            for table in _BY_ASSET:
                count = remove_by_asset(connection, table, traces)
                removed += count if table == "asset_keys" else 0
        if self._runless.exists():
            with writing(self._runless) as connection:
                remove_by_asset(connection, "event_logs", traces)
        with writing(self._schedules) as connection:
            remove_by_asset(connection, "asset_daemon_asset_evaluations", traces)
        return removed

    def _clean_events(self, run_id: str, traces: Traces, stand_in: str) -> None:
        """Removes the tenant's events and the logs of a run of several. Its row, by which it is
        found, is changed after that."""
        shard = self._shards / f"{run_id}.db"
        for path, limited in ((shard, ""), (self._index, run_id)):
            if path.exists():
                clean_events(path, limited, traces, stand_in)
        compact(shard)
        self._remove_logs(run_id)

    def _remove_backfills(self, traces: Traces) -> int:
        """Removes those of this tenant alone."""
        with writing(self._runs) as connection:
            rows = connection.execute(
                "SELECT key, body FROM bulk_actions WHERE instr(body, ?)", (traces.asset_prefix,)
            ).fetchall()
            own = [(key,) for key, body in rows if owners(body) == {traces.tenant}]
            connection.executemany("DELETE FROM backfill_tags WHERE backfill_id = ?", own)
            connection.executemany("DELETE FROM bulk_actions WHERE key = ?", own)
        return len(own)

    def _replace_tags(self, traces: Traces, stand_in: str) -> None:
        """The tags whose value is the bare name."""
        with writing(self._runs) as connection:
            for table in ("run_tags", "backfill_tags"):
                connection.execute(
                    f"UPDATE {table} SET value = ? WHERE key = ? AND value = ?",
                    (stand_in, tags.TENANT, traces.tenant),
                )

    def _snapshots_naming(self, traces: Traces) -> Iterator[tuple[int, str, str]]:
        """Number, id and text of the snapshots that name the tenant."""
        with reading(self._runs) as connection:
            for number, name, body in connection.execute(
                "SELECT id, snapshot_id, snapshot_body FROM snapshots"
            ):
                text = zlib.decompress(body).decode()
                if traces.found(text):
                    yield number, name, text

    def _clean_snapshots(self, traces: Traces, stand_in: str) -> int:
        """Removes the snapshots that name the tenant; one that a run needs is changed."""
        removed = 0
        for number, name, text in list(self._snapshots_naming(traces)):
            with writing(self._runs) as connection:
                needed = connection.execute(
                    "SELECT 1 FROM runs WHERE snapshot_id = :name OR instr(run_body, :name)",
                    {"name": name},
                ).fetchone()
                if needed:
                    body = zlib.compress(traces.replaced(text, stand_in).encode())
                    connection.execute(
                        "UPDATE snapshots SET snapshot_body = ? WHERE id = ?", (body, number)
                    )
                else:
                    connection.execute("DELETE FROM snapshots WHERE id = ?", (number,))
                    removed += 1
        return removed

    def _remove_orphans(self, traces: Traces) -> int:
        """Events and logs of runs that somebody deleted in Dagster, or began to."""
        known = self._known_runs()
        found = {path.stem for path in self._shards.glob("*.db")}
        found |= {folder.name for folder in self._storage.glob("*")}
        orphans = [
            name
            for name in sorted(found - known)
            if RUN_ID.fullmatch(name) and self._orphan_names(name, traces)
        ]
        for run_id in orphans:
            self._remove_events([run_id])
            self._remove_files(run_id)
        return len(orphans)

    def _orphan_names(self, run_id: str, traces: Traces) -> bool:
        shard = self._shards / f"{run_id}.db"
        if shard.exists() and events_name(shard, traces):
            return True
        return any(mentions(path, traces) for path in (self._storage / run_id).rglob("*"))

    def _logs(self) -> list[Path]:
        """Logs of processes, and of ticks."""
        ticks = [
            path
            for folder in self._storage.glob("*")
            if not RUN_ID.fullmatch(folder.name)
            for path in folder.rglob("*")
            if path.is_file()
        ]
        return sorted([*self._home.glob("*.log"), *ticks])

    def _clean_logs(self, traces: Traces, run_ids: Collection[str]) -> int:
        """Removes the lines about the tenant from logs that nobody writes to; returns how many
        files were changed."""
        try:
            with sole_daemon(self._home), disk(self._home):
                return sum(drop_lines(path, traces, run_ids) for path in self._logs())
        except ConfigurationError:
            return 0  # a daemon appends to them; what stays is said by `named`


def _batches(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(run_ids), _AT_ONCE):
        yield run_ids[at : at + _AT_ONCE]
