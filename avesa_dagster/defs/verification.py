"""Comparing tenants with their services on a schedule, slowly, and repairing what disagrees."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from avesa_dagster.backfill.beats import STALE, Stopping, beating
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import Processing
from avesa_dagster.defs import tags
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.shared import failing_clearly
from avesa_dagster.errors import DataError, PermissionRefused, Stopped
from avesa_dagster.extract.verifier import Verifier
from avesa_dagster.extract.verify import Verified
from avesa_dagster.installation import Installation
from avesa_dagster.sources.base import Window

_MOST_REQUESTS = 3
"""Runs that one tick asks for."""
_ASKS = 2
"""Times that one request asks whether it is cancelled."""


class Whose(dg.Config):
    """Which tenant service to compare."""

    tenant: str
    service: str


@dg.op(
    name="compare_with_source",
    description="Compares the newest days, and a stretch of the older ones, with the source; "
    "windows that disagree are fetched again by a job.",
)
def compare(context: dg.OpExecutionContext, config: Whose, avesa: AvesaResource) -> None:
    """Compares each table of a tenant's service."""
    installation = avesa.installation()
    with failing_clearly():
        verifier = Verifier(installation.extractor)
        connection = verifier.connection(config.tenant, config.service)
        failures = []
        for table in connection.tables:
            try:
                _compared(context, installation, verifier, connection, table)
            except (DataError, PermissionRefused) as error:  # of this table; the others go on
                context.log.error(f"{table} could not be compared: {error}")
                failures.append(error)
        if failures:
            raise failures[0]


def _compared(
    context: dg.OpExecutionContext,
    installation: Installation,
    verifier: Verifier,
    connection: TenantService,
    table: str,
) -> None:
    for verified in _table(context, installation, verifier, connection, table):
        word = "agrees" if verified.agrees else _disagreement(verified) or "was not settled"
        context.log.info(
            f"{connection.tenant} {connection.service} {table}: {word}, back to "
            f"{verified.reached:%Y-%m-%d}, {verified.requests} requests"
        )


@dg.job(
    name="verify",
    executor_def=dg.in_process_executor,
    description="Compares one tenant's service with what the lake holds of it.",
)
def verify_job() -> None:
    compare()


def verification_sensor(rows: Sequence[TenantService]) -> dg.SensorDefinition:
    """The sensor of definitions that were built from these rows."""

    @dg.sensor(
        name="verification",
        job=verify_job,
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Compares each connected service with its source every verify_hours "
        "(backfill_config.json), at most at verify_budget_share of its budget.",
    )
    def verification(
        context: dg.SensorEvaluationContext, avesa: AvesaResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        installation = avesa.installation()
        due = due_for_verification(installation, rows, installation.clock())
        unfinished = dg.RunsFilter(job_name=verify_job.name, statuses=NOT_FINISHED_STATUSES)
        asked = {
            (run.tags.get(tags.TENANT), run.tags.get(tags.SERVICE))
            for run in context.instance.get_runs(unfinished)
        }
        due = [(row, name) for row, name in due if (row.tenant, row.service) not in asked]
        if not due:
            yield dg.SkipReason("no comparison is due")
        for row, name in due[: max(0, _MOST_REQUESTS - len(asked))]:
            yield dg.RunRequest(
                run_key=name,
                run_config={
                    "ops": {
                        compare.name: {"config": {"tenant": row.tenant, "service": row.service}}
                    }
                },
                tags={
                    tags.TENANT: row.tenant,
                    tags.SERVICE: row.service,
                    tags.LANE: "verify",  # one at a time: the live sync needs the places
                },
            )

    return verification


def due_for_verification(
    installation: Installation, rows: Sequence[TenantService], now: datetime
) -> list[tuple[TenantService, str]]:
    """The connections whose turn it is, those waiting longest first, each with a run key.

    One that died before it said anything is asked for again under another key an hour later.
    """
    control = installation.control
    hours = installation.catalog.backfill.upkeep.verify_hours
    if not hours:
        return []
    last: dict[tuple[str, str], datetime] = {}
    for seen in control.processing.latest("verify"):
        place = (seen.tenant, seen.service)
        last[place] = max(seen.started_at, last.get(place, seen.started_at))
    suspended = {(b.tenant, b.service) for b in control.breakers.all() if b.opened_at}
    due = []
    for row in rows:
        place = (row.tenant, row.service)
        before = last.get(place)
        if place in suspended or (before is not None and now - before < timedelta(hours=hours)):
            continue
        current = control.registry.get(*place)
        synced = not control.watermarks.of(*place).keys().isdisjoint(row.tables)
        if current is not None and current.enabled and synced:
            since = before or current.connected_at
            due.append((since, row, f"verify-{row.tenant}-{row.service}-{now:%Y%m%dT%H}"))
    return [(row, name) for _, row, name in sorted(due, key=lambda item: (item[0], item[2]))]


def _table(
    context: dg.OpExecutionContext,
    installation: Installation,
    verifier: Verifier,
    connection: TenantService,
    table: str,
) -> Iterator[Verified]:
    """The newest days, then the next stretch of the older ones; keeps what was found."""
    settings = installation.catalog.backfill.upkeep
    now = installation.clock()
    place = (connection.tenant, connection.service, table)
    lane = f"verify/{'/'.join(place)}"
    rows = {row.lane: row for row in installation.control.processing.latest("verify")}
    before = rows[lane].extra if lane in rows else {}
    row = Processing(context.run_id, *place, lane, "verify", now, now, extra=before)
    stopping = Stopping(
        lambda: installation.backfills.stop_reason(None, connection.tenant, connection.service)
    )
    limit = connection.requests_per_minute or (
        installation.catalog.settings(*place[:2]).requests_per_minute
    )
    paced = _Paced(stopping, settings.verify_budget_share * limit / 60)
    days = timedelta(days=settings.verify_days)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    newest = max(connection.history_start, today - days)
    table_ = installation.control.processing
    with beating(
        table_,
        row,
        installation.clock,
        stopping,
        lambda holder: None,
        lambda holder: holder.beat_at < installation.clock() - STALE,
    ) as alive:
        older_end = _older_end(before, newest, connection)
        older_start = max(connection.history_start, older_end - days)
        older = Window(older_start, older_end)
        comparisons: list[tuple[datetime | None, datetime | None, list[Window] | None]]
        comparisons = [(newest, None, None)]
        if older_start < older_end:
            comparisons.append((older_start, older_end, None))
        if again := _again(before, newest, older):
            comparisons.append((None, None, again))
        disagrees: list[str] = []
        bad: list[Window] = []
        suspect: list[Window] = []
        for start, end, only in comparisons:
            verified = verifier.verify(
                connection, table, start=start, end=end, only=only, cancelled=paced
            )
            if stopping.reason:
                raise Stopped(stopping.reason)
            yield verified
            if text := _disagreement(verified):
                disagrees.append(text)
                suspect += only or ([] if end is None else [older])
            bad += verifier.to_fetch(connection, verified)
        if bad:
            job = installation.backfills.repair(*place[:2], {table: bad})
            context.log.warning(f"job {job.job_id} fetches {len(bad)} window(s) again")
        extra = {"reached": older_start.isoformat()}
        if disagrees:
            extra["disagrees"] = "; ".join(disagrees)
            extra["again"] = _written(suspect)
        alive.say(extra)


def _older_end(before: Mapping[str, str], newest: datetime, connection: TenantService) -> datetime:
    """Where the stretch of older days ends this time: where it began last time, or at the top."""
    if "reached" not in before:
        return newest
    reached = datetime.fromisoformat(before["reached"])
    return newest if reached <= connection.history_start else min(newest, reached)


def _again(before: Mapping[str, str], newest: datetime, older: Window) -> list[Window]:
    """What disagreed last time and is not compared anyway: an alarm is over when this agrees."""
    pairs = (part.split("/") for part in before.get("again", "").split() if "/" in part)
    held = [Window(datetime.fromisoformat(a), datetime.fromisoformat(b)) for a, b in pairs]
    return [
        window
        for window in held
        if window.start < newest and not (older.start <= window.start and window.end <= older.end)
    ]


def _written(windows: Sequence[Window]) -> str:
    return " ".join(f"{window.start.isoformat()}/{window.end.isoformat()}" for window in windows)


def _disagreement(verified: Verified) -> str:
    if verified.bad:
        windows = ", ".join(str(bad.window) for bad in verified.bad[:5])
        return f"{len(verified.bad)} window(s) lack records: {windows}"
    if verified.hidden:
        return f"{verified.hidden} records are hidden from the API member"
    return ""


class _Paced:
    """Lets a request go on only so often: the share of the budget that comparing may take."""

    def __init__(self, stopping: Stopping, a_second: float) -> None:
        self._stopping = stopping
        self._gap = 1 / a_second / _ASKS
        self._next = 0.0

    def __call__(self) -> bool:
        while (left := self._next - time.monotonic()) > 0:
            if self._stopping():
                return True
            time.sleep(min(left, 0.5))
        self._next = time.monotonic() + self._gap
        return self._stopping()
