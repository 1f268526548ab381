"""The sensor that looks after an installation: breakers, holes, alerts, and what is old."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from avesa_dagster.backfill.covered import connection_holes
from avesa_dagster.backfill.holes import fillable
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.health import Breaker, BreakerState
from avesa_dagster.control.jobs import Job
from avesa_dagster.control.serving import servable
from avesa_dagster.defs.keys import raw_key
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.shared import ANSWERS
from avesa_dagster.errors import AvesaError
from avesa_dagster.installation import Installation
from avesa_dagster.watch.alerts import settle
from avesa_dagster.watch.findings import Disagreement, findings
from avesa_dagster.watch.recipients import notifiers

_PROBES = 8
"""Suspended services that one tick probes, all at once: a probe takes one request's timeout."""
_PROBE_SECONDS = 10.0
"""So long a probe waits for its turn in the budget, which the service may have paused."""
_HOLES_SECONDS = 20.0
"""So long one tick looks for holes; the next one goes on behind the connection it came to."""
_ONBOARDING = timedelta(minutes=30)
"""A connection younger than this is the onboarding sensor's."""


def upkeep_sensor(rows: Sequence[TenantService]) -> dg.SensorDefinition:
    """The sensor of definitions that were built from these rows."""

    @dg.sensor(
        name="upkeep",
        asset_selection=dg.AssetSelection.all(),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Probes suspended services, starts jobs for holes in the coverage, tells of "
        "what is wrong, and removes jobs that ended long ago.",
    )
    def upkeep(
        context: dg.SensorEvaluationContext, avesa: AvesaResource
    ) -> dg.SensorResult | dg.SkipReason:
        installation = avesa.installation()
        now = installation.clock()
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        search = HoleSearch(installation, cursor.get("searched", ""))
        failures = []
        steps: tuple[Callable[[], None], ...] = (
            lambda: probe_suspended(installation, rows),
            lambda: search.fill(now),
            lambda: alert(installation, now),
            lambda: publish_metrics(installation, now),
            lambda: clean(installation, now),
        )
        for step in steps:
            try:
                step()
            except AvesaError as error:  # one tenant's mistake must not keep the alerts back
                context.log.error(str(error))
                failures.append(str(error))
        breakers = {(b.tenant, b.service): b for b in installation.control.breakers.all()}
        events = list(_breaker_events(rows, breakers, cursor.get("breakers", {})))
        states = {f"{b.tenant}/{b.service}": b.state.value for b in breakers.values()}
        jobs = ", ".join(job.job_id for job in search.started)
        said = f"started {jobs}" if jobs else "nothing is missing"
        said = "; ".join([said, *failures])
        return dg.SensorResult(
            asset_events=events,
            cursor=json.dumps({"breakers": states, "searched": search.reached}, sort_keys=True),
            skip_reason=None if events else dg.SkipReason(said),
        )

    return upkeep


def probe_suspended(installation: Installation, rows: Sequence[TenantService]) -> None:
    """Asks the services whose breaker is open and whose time has come, once each."""
    now = installation.clock()
    connected = {(row.tenant, row.service): row for row in rows if row.tables}
    breakers = sorted(installation.control.breakers.all(), key=lambda b: b.probe_at or now)
    due = [
        connected[breaker.tenant, breaker.service]
        for breaker in breakers
        if breaker.state is not BreakerState.CLOSED
        and (breaker.tenant, breaker.service) in connected
        and (breaker.probe_at is None or breaker.probe_at <= now)
    ]
    with ThreadPoolExecutor(_PROBES, thread_name_prefix="probe") as pool:
        list(pool.map(lambda row: _probe(installation, row), due[:_PROBES]))


def _probe(installation: Installation, loaded: TenantService) -> None:
    row = installation.control.registry.get(loaded.tenant, loaded.service)
    if row is None or not row.enabled or not row.tables:
        return
    deadline = time.monotonic() + _PROBE_SECONDS
    with suppress(AvesaError):  # what went wrong stands in the breaker
        open_source = installation.open_once(row, lambda: time.monotonic() > deadline)
        installation.extractor.guard(row.tenant, row.service, row.tables[0], open_source).admit()


@dataclass(slots=True)
class HoleSearch:
    """Starts a job for each connection that has holes which nobody fills.

    Attributes:
        reached: `tenant/service` of the connection that was looked at last; the next tick's search
            begins behind it. Empty: begins with the first, or ended with the last.
        started: The jobs of this search.
    """

    installation: Installation
    reached: str = ""
    started: list[Job] = field(default_factory=list)

    def fill(self, now: datetime, seconds: float = _HOLES_SECONDS) -> None:
        """Looks at each connection behind `reached`, for so long; at one at least."""
        deadline = time.monotonic() + seconds
        for name, row in self._behind():
            self.reached = name
            self._fill(row, now)
            if time.monotonic() > deadline:
                return
        self.reached = ""

    def _behind(self) -> list[tuple[str, TenantService]]:
        """In order; all of them, if there is none behind."""
        installation = self.installation
        named = sorted(
            (f"{row.tenant}/{row.service}", row)
            for row in servable(installation.control.registry.all(), installation.catalog)
            if row.enabled and row.tables and installation.settings.holds(row.tenant)
        )
        return [(name, row) for name, row in named if name > self.reached] or named

    def _fill(self, row: TenantService, now: datetime) -> None:
        control, catalog = self.installation.control, self.installation.catalog
        jobs = control.jobs.find(row.tenant, row.service)
        if not jobs and now - row.updated_at < _ONBOARDING:
            return  # the onboarding sensor starts the first
        holes = connection_holes(row, catalog, control.ledger, control.watermarks, now)
        stretches = fillable(holes, jobs, catalog.backfill.upkeep, now)
        if stretches:
            self.started.append(self.installation.backfills.fill_holes(row, stretches))


def alert(installation: Installation, now: datetime) -> None:
    """Tells of what is wrong, once each, and of what is over.

    Of several code locations the first does so for all of them.
    """
    if not _first(installation):
        return
    disagreements = [
        Disagreement(row.tenant, row.service, row.table, row.extra["disagrees"])
        for row in installation.control.processing.latest("verify")
        if row.extra.get("disagrees")
    ]
    found = findings(installation.control, installation.catalog, now, disagreements)
    told = notifiers(installation.settings.home, os.environ)
    settle(found, installation.control.alarms, told, now)


def publish_metrics(installation: Installation, now: datetime) -> None:
    """Tells CloudWatch what was counted, in the aws profile; the first code location for all."""
    if installation.settings.aws is None or not _first(installation):
        return
    from avesa_dagster.watch.cloudwatch import detail, publish

    publish(
        installation.control,
        installation.catalog,
        installation.settings.aws.environment,
        now,
        budget=installation.use,
        finest=detail(os.environ),
    )


def _first(installation: Installation) -> bool:
    """Whether this code location speaks for all."""
    shard = installation.settings.shard
    return shard is None or shard[0] == 1


def clean(installation: Installation, now: datetime) -> None:
    """Removes jobs and runs' rows that ended long ago."""
    days = timedelta(days=installation.catalog.backfill.scheduling.keep_finished_days)
    installation.control.jobs.remove(finished_before=now - days)
    installation.control.processing.remove(ended_before=now - days)


def _breaker_events(
    rows: Sequence[TenantService],
    breakers: dict[tuple[str, str], Breaker],
    known: dict[str, str],
) -> Iterator[dg.AssetCheckEvaluation]:
    """The state of a breaker, on the raw assets behind it, when it changed."""
    for row in rows:
        breaker = breakers.get((row.tenant, row.service), Breaker(row.tenant, row.service))
        before = known.get(f"{row.tenant}/{row.service}", BreakerState.CLOSED.value)
        if (breaker.state is BreakerState.CLOSED) == (before == BreakerState.CLOSED.value):
            continue
        for table in row.tables:
            yield dg.AssetCheckEvaluation(
                asset_key=raw_key(row.tenant, row.service, table),
                check_name=ANSWERS,
                passed=breaker.state is BreakerState.CLOSED,
                severity=dg.AssetCheckSeverity.ERROR,
                metadata=answers_metadata(breaker),
            )


def answers_metadata(breaker: Breaker) -> dict[str, str]:
    """What a breaker says, for an asset check."""
    said = {"breaker": breaker.state.value, "failures in a row": str(breaker.failures)}
    if breaker.reason:
        said["reason"] = breaker.reason
    if breaker.probe_at:
        said["probed again at"] = f"{breaker.probe_at:%Y-%m-%d %H:%M:%S} UTC"
    return said
