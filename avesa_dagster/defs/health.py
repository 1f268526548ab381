"""Checks of Dagster: its instance, its daemon, its sensors and schedules, the code location."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import dagster as dg
from dagster._api.list_repositories import sync_list_repositories_grpc
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, TickStatus
from dagster._daemon.types import DaemonHeartbeat
from dagster._grpc.client import DagsterGrpcClient
from sqlalchemy.exc import SQLAlchemyError

from avesa_dagster.defs.aws_home import CODE_PORT
from avesa_dagster.defs.homes import LOCATION
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.doctor.findings import Check, Finding, Findings, Level, problem, warning, well
from avesa_dagster.settings import Settings

_LATE = 120.0
"""Seconds: each daemon says every 30 that it lives."""
_SLOW = 900.0
"""One of several daemons may be busy for longer."""
_DATABASE = ("AVESA_DATABASE_HOST", "AVESA_DATABASE_PORT", "AVESA_DATABASE_PASSWORD")
_PATIENCE = 4.0
_STORAGE = ("history", "schedules", "storage")
_IN_TASK = "run avesa doctor in the operator's task, which reaches it (docs/aws.md)"

Build = Callable[[Settings], dg.Definitions]


class DagsterHealth:
    """The checks of one installation's Dagster. A context manager: it holds the instance open.

    Args:
        build: Makes the definitions of the code location.
        enabled: How many tenant services are enabled: without any, nobody misses a daemon.
    """

    def __init__(
        self,
        settings: Settings,
        build: Build,
        enabled: Callable[[], int],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._build = build
        self._enabled = enabled
        self._environ = environ
        self._instance: dg.DagsterInstance | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def checks(self) -> list[Check]:
        code = ("mappings",) if self._settings.aws is None else ("mappings", "bucket")
        return [
            Check("code", "code location", self.code, code),
            Check("dagster", "Dagster's instance", self.instance, ("mappings",)),
            Check("daemon", "Dagster's daemon", self.daemon, ("dagster",)),
            Check("sensors", "sensors and schedules", self.sensors, ("dagster",)),
        ]

    def code(self) -> Findings:
        """Whether the definitions load: in their server, or, where there is none, here."""
        host = self._environ.get("AVESA_CODE_HOST")
        if self._settings.aws is not None and host:
            yield from _served(host)
            return
        try:
            definitions = self._build(self._settings)
            dg.Definitions.validate_loadable(definitions)
        except dg.DagsterError as error:
            yield problem(
                f"the definitions do not load: {type(error).__name__}",
                LOCATION,
                "dagster definitions validate -m avesa_dagster.definitions says why",
            )
            return
        assets = definitions.resolve_asset_graph().get_all_asset_keys()
        yield well(f"loads, with {len(assets)} assets")

    def instance(self) -> Findings:
        """Whether Dagster's instance loads and its storage answers."""
        home = self._settings.dagster_home
        if not (home / "dagster.yaml").exists():
            todo = "avesa dev makes it" if self._settings.aws is None else _IN_TASK
            yield Finding(
                Level.WARNING, "Dagster has no folder here yet", str(home), todo, blocking=True
            )
            return
        reason = self._unready()
        if reason is not None:
            yield reason
            return
        try:
            instance = self._stack.enter_context(instance_in(home))
            runs = instance.get_runs_count()
        except (dg.DagsterError, SQLAlchemyError) as error:
            yield problem(
                f"Dagster's instance does not load: {type(error).__name__}",
                str(home),
                "dagster instance info says why; check dagster.yaml and the database",
                blocking=True,
            )
            return
        self._instance = instance
        yield well(f"{runs} runs are known", str(home))

    def daemon(self) -> Findings:
        """Whether the daemon said lately that it lives, and without an error."""
        instance = self._opened()
        beats = instance.get_daemon_heartbeats()
        needed = sorted(instance.get_required_daemon_types())
        now = time.time()
        ages = {kind: now - beats[kind].timestamp for kind in needed if kind in beats}
        if not ages or min(ages.values()) > _LATE:
            yield self._no_daemon(ages)
            return
        found = list(_late(needed, ages)) + list(_failing(beats, needed))
        yield from found
        if not found:
            yield well(f"{len(needed)} daemons live")

    def sensors(self) -> Findings:
        """Whether somebody has stopped a sensor or schedule, or its last tick failed."""
        instance = self._opened()
        states = [
            state
            for state in instance.all_instigator_state()
            if state.repository_selector.location_name == LOCATION
        ]
        workspace = self._settings.dagster_home / "workspace.yaml"
        found = [finding for state in states for finding in _of(instance, state, workspace)]
        yield from found
        if not found:
            yield well("all are on")

    def _opened(self) -> dg.DagsterInstance:
        assert self._instance is not None, "the check of the instance comes first"
        return self._instance

    def _unready(self) -> Finding | None:
        """Why the instance must not even be tried: to open it would make it, or wait for long."""
        home = self._settings.dagster_home
        if self._settings.aws is None:
            if any((home / name).exists() for name in _STORAGE):
                return None
            return Finding(
                Level.WARNING, "Dagster never ran here", str(home), "start it: avesa dev", True
            )
        unset = [name for name in _DATABASE if not self._environ.get(name)]
        if unset:
            return Finding(
                Level.WARNING,
                f"Dagster's database cannot be asked: {', '.join(unset)} is not set",
                str(home),
                _IN_TASK,
                True,
            )
        host, port = self._environ[_DATABASE[0]], self._environ[_DATABASE[1]]
        try:
            with socket.create_connection((host, int(port)), timeout=_PATIENCE):
                return None
        except (OSError, ValueError) as error:
            return problem(
                f"Dagster's database cannot be reached: {type(error).__name__}",
                f"{host}:{port}",
                f"check that it runs and its security group; from elsewhere, {_IN_TASK}",
                blocking=True,
            )

    def _no_daemon(self, ages: Mapping[str, float]) -> Finding:
        last = f"the last sign is {_span(min(ages.values()))} old" if ages else "none ever ran"
        home = str(self._settings.dagster_home)
        if self._settings.aws is None:
            todo = "start it: avesa dev; without it only avesa sync fetches anything"
        else:
            todo = (
                f"look at the service daemon of cluster avesa-{self._settings.aws.environment} and "
                "its log group"
            )
        if not self._enabled():
            return warning(f"no daemon runs: {last}", home, todo)
        return problem(f"no daemon runs: {last}", home, todo)


def _late(needed: list[str], ages: Mapping[str, float]) -> Iterator[Finding]:
    for kind in needed:
        if kind not in ages:
            yield warning("has not begun yet", kind, "look again in a minute")
        elif ages[kind] > _SLOW:
            yield problem(
                f"said nothing for {_span(ages[kind])}, while others live",
                kind,
                "restart the daemon (avesa dev, or the service daemon)",
            )


def _failing(beats: Mapping[str, DaemonHeartbeat], needed: list[str]) -> Iterator[Finding]:
    for kind in needed:
        errors = beats[kind].errors if kind in beats else None
        if errors:
            yield problem(
                f"reports an error: {errors[0].cls_name or 'unknown'}",
                kind,
                "the Dagster UI shows it: Deployment, Daemons",
            )


def _of(instance: dg.DagsterInstance, state: InstigatorState, workspace: Path) -> Iterator[Finding]:
    kind = "schedule" if state.instigator_type is InstigatorType.SCHEDULE else "sensor"
    if state.status is InstigatorStatus.STOPPED:
        yield problem(
            f"the {kind} is stopped",
            state.name,
            f"start it in the UI, or: dagster {kind} start {state.name} -w {workspace}; to stop "
            "one tenant only: avesa disable",
        )
        return
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    if ticks and ticks[0].status is TickStatus.FAILURE:
        error = ticks[0].error
        yield warning(
            f"the last tick of the {kind} failed: {error.cls_name if error else 'unknown'}",
            state.name,
            "the Dagster UI shows why: Automation; it is tried again",
        )


def _served(host: str) -> Findings:
    where = f"{host}:{CODE_PORT}"
    try:
        with socket.create_connection((host, CODE_PORT), timeout=_PATIENCE):
            client = DagsterGrpcClient(host=host, port=CODE_PORT)
        said = sync_list_repositories_grpc(client)
    except OSError as error:
        yield problem(
            f"the code server cannot be reached: {type(error).__name__}",
            where,
            f"check that it runs and its security group; from elsewhere, {_IN_TASK}",
        )
    except dg.DagsterError as error:
        yield problem(
            f"the code server has no definitions: {type(error).__name__}",
            where,
            "its log says why; mend the mappings, then reload the location in the UI",
        )
    else:
        yield well(f"{len(said.repository_symbols)} repository is served", where)


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
