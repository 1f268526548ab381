"""The metrics in CloudWatch, for alarms and dashboards there.

What each is called, and in which namespace, is what the platform before called it where it means
the same. Dimensions: Environment; Environment, Tenant, Service; and if asked for, Table besides.
CloudWatch adds nothing up over dimensions by itself, so each level is published.

| namespace | metric | unit | levels | from |
| --- | --- | --- | --- | --- |
| AVESA/DataPipeline | RecordsProcessed | count | environment | records fetched |
| | ChunkRecordsProcessed | count | all | the same |
| | ChunkApiCalls | count | all | requests to the service, those outside of chunks too |
| | RequestRetries | count | all | requests that were repeated |
| | ChunkProcessed, ChunkErrors | count | all | attempts at chunks that succeeded, that failed |
| | ChunkProcessingTime | seconds | to service | length of an attempt; extremes are bounds |
| | JobsPending, JobsRunning, JobsPaused | count | to service | backfill jobs at present |
| | BudgetUsed | percent | to service | of the requests per minute in force |
| | RequestsWaiting | count | to service | requests that wait for their turn |
| …/Completion | JobCompleted, JobFailed | count | to service | jobs that ended; not whole: failed |
| …/Errors | ServiceSuspended | count | to service | services that are not asked |
| …/Notifications | StandingAlarms | count | to service | what is wrong, as `avesa alerts` says |
| DataQuality/Ingestion | IngestionErrors | count | environment | failed attempts at chunks |
| DataQuality/Completeness | DataFreshness | hours | all | age of what the newest sync asked for |
| | DataLoss | count | to service | tables that disagree with their source |
| | CompletenessScore | percent | to service | of the compared tables, those that agree |

A sum of nothing is published for the environment only.

**What was counted is published at least once.** Counters only grow; what was published of each is
remembered beside it in the table of counters, after CloudWatch took it. So nothing is lost while
CloudWatch is out of reach. If its answer is lost, or the process dies before it remembered, that
one call, at most 500 figures, is counted twice: CloudWatch cannot tell a repetition. Two publishers
at once publish twice too, but both remember, and so much less is published afterwards.

A custom metric costs about 0.30 dollars a month for as long as it is written: a connected service
has some ten, each of its tables five more.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from itertools import groupby
from typing import Any, Protocol

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.health import Sample
from avesa_dagster.control.jobs import Job, JobStatus, ProcessingJobs
from avesa_dagster.errors import ConfigurationError, TimedOut
from avesa_dagster.names import NAME
from avesa_dagster.watch.conversation import Patience, bounded
from avesa_dagster.watch.findings import Kind
from avesa_dagster.watch.metrics import BUCKETS, BudgetOf, StoresCollector
from avesa_dagster.watch.stores import Stores, connections

DETAIL = "AVESA_METRICS_DETAIL"
"""The variable that says which levels are published; see `detail`."""

_PIPELINE = "AVESA/DataPipeline"
_COMPLETION = f"{_PIPELINE}/Completion"
_ERRORS = f"{_PIPELINE}/Errors"
_NOTIFICATIONS = f"{_PIPELINE}/Notifications"
_INGESTION = "DataQuality/Ingestion"
_COMPLETENESS = "DataQuality/Completeness"

_MOST = 500
"""Figures in a call. CloudWatch takes 1000, or 1 MB; one has at most 1.2 KB."""
_TOGETHER = 10
"""Connections whose published counts are remembered at once: who counts meanwhile must not wait."""
_TRIES = 2
_RECENT = timedelta(days=7)
"""A job that ended earlier is not counted any more."""
_JOBS = 100
"""Ended jobs that are read at first; more if they all ended lately."""
_PREFIX = "cloudwatch/"
"""Names of counters that say what was published; no Prometheus metric can be called so."""
_JOB_ENDED = f"{_PREFIX}job_ended"
"""Has a label for each end of a job that was published."""
_DURATION = "avesa_chunk_duration_seconds"

Whose = tuple[str, str, str | None]
"""Tenant, service and table; None: of the whole service."""


class Detail(IntEnum):
    """The finest level that is published."""

    ENVIRONMENT = 1
    SERVICE = 2
    TABLE = 3


class Watched(Stores, Protocol):
    """What every profile's control tables offer."""

    @property
    def processing(self) -> ProcessingJobs: ...


class _Over(Enum):
    """How one figure is made of several."""

    SUM = "sum"
    MEAN = "mean"
    SPREAD = "spread"
    """All of them, as CloudWatch's statistics know: number, sum, least and most."""


@dataclass(frozen=True, slots=True)
class _Metric:
    """A metric in CloudWatch; `finest` is its finest level."""

    namespace: str
    name: str
    unit: str = "Count"
    over: _Over = _Over.SUM
    finest: Detail = Detail.SERVICE


@dataclass(frozen=True, slots=True)
class _Values:
    """Some values: how many, their sum, the least and the most of them."""

    number: float
    total: float
    least: float
    most: float

    @classmethod
    def one(cls, value: float) -> _Values:
        return cls(1, value, value, value)

    def __add__(self, other: _Values) -> _Values:
        return _Values(
            self.number + other.number,
            self.total + other.total,
            min(self.least, other.least),
            max(self.most, other.most),
        )


@dataclass(frozen=True, slots=True)
class _Item:
    """What is published together, or not at all.

    Attributes:
        figures: Of one namespace.
        counted: What is to be remembered once it was published.
    """

    whose: Whose
    figures: tuple[tuple[_Metric, _Values], ...]
    counted: tuple[Sample, ...] = ()


_COUNTED = {
    "avesa_records_total": (
        _Metric(_PIPELINE, "RecordsProcessed", finest=Detail.ENVIRONMENT),
        _Metric(_PIPELINE, "ChunkRecordsProcessed", finest=Detail.TABLE),
    ),
    "avesa_requests_total": (_Metric(_PIPELINE, "ChunkApiCalls", finest=Detail.TABLE),),
    "avesa_retries_total": (_Metric(_PIPELINE, "RequestRetries", finest=Detail.TABLE),),
}
_CHUNKS = {
    "completed": (_Metric(_PIPELINE, "ChunkProcessed", finest=Detail.TABLE),),
    "failed": (
        _Metric(_PIPELINE, "ChunkErrors", finest=Detail.TABLE),
        _Metric(_INGESTION, "IngestionErrors", finest=Detail.ENVIRONMENT),
    ),
}
_TIME = _Metric(_PIPELINE, "ChunkProcessingTime", "Seconds", _Over.SPREAD)
_ENDED = {
    JobStatus.COMPLETED: _Metric(_COMPLETION, "JobCompleted"),
    JobStatus.COMPLETED_WITH_ERRORS: _Metric(_COMPLETION, "JobFailed"),
    JobStatus.FAILED: _Metric(_COMPLETION, "JobFailed"),
}
_JOBS_NOW = {
    JobStatus.PENDING.value: _Metric(_PIPELINE, "JobsPending"),
    JobStatus.RUNNING.value: _Metric(_PIPELINE, "JobsRunning"),
    JobStatus.PAUSED.value: _Metric(_PIPELINE, "JobsPaused"),
}
_BUDGET = _Metric(_PIPELINE, "BudgetUsed", "Percent", _Over.SPREAD)
_WAITING = _Metric(_PIPELINE, "RequestsWaiting")
_SUSPENDED = _Metric(_ERRORS, "ServiceSuspended")
_ALARMS = _Metric(_NOTIFICATIONS, "StandingAlarms")
_LOSS = _Metric(_COMPLETENESS, "DataLoss")
_SCORE = _Metric(_COMPLETENESS, "CompletenessScore", "Percent", _Over.MEAN)
# CloudWatch has no unit for hours.
_FRESHNESS = _Metric(_COMPLETENESS, "DataFreshness", "None", _Over.SPREAD, Detail.TABLE)
_ALWAYS = (*_JOBS_NOW.values(), _SUSPENDED, _ALARMS, _LOSS)
"""Published for the environment, even if there is none."""


def detail(environ: Mapping[str, str]) -> Detail:
    """What AVESA_METRICS_DETAIL says: `environment`, `service` (the default) or `table`.

    Raises:
        ConfigurationError: It says something else.
    """
    wanted = environ.get(DETAIL) or "service"
    known = {level.name.lower(): level for level in Detail}
    if wanted not in known:
        raise ConfigurationError(f"{DETAIL} is {wanted!r}", hint=f"known: {', '.join(known)}")
    return known[wanted]


def publish(
    stores: Watched,
    catalog: Catalog,
    environment: str,
    now: datetime,
    *,
    budget: BudgetOf | None = None,
    finest: Detail = Detail.SERVICE,
    patience: Patience = Patience(step=5, whole=20),  # noqa: B008 - frozen
) -> int:
    """Publishes what holds now, and what was counted since the last time. Once a minute, from one
    place.

    Args:
        environment: `dev`, `staging` or `prod`.
        budget: As for StoresCollector.
        finest: The finest level.
        patience: How long CloudWatch is waited for.

    Returns:
        How many figures were published.

    Raises:
        AvesaError: CloudWatch or a control table failed, or took too long. What was counted and
            not published is published next time.
    """
    caller = _Caller(time.monotonic() + patience.whole, patience)
    samples = stores.counters.all()
    known = {(row.tenant, row.service) for row in stores.registry.all()}
    _forget_erased(stores, samples, {tenant for tenant, _ in known})
    sheets = _Sheets(environment, now, finest)
    for metric in _ALWAYS:
        sheets.add(_Item(("", "", None), ((metric, _Values.one(0)),)))
    for item in _present(stores, catalog, now, budget):
        sheets.add(item)
    for sheet in sheets.all():
        caller.put(sheet)
    items = [*_counts(samples), *_ended_jobs(stores, samples, now)]
    items = [item for item in items if item.whose[:2] in known]
    for sheet in _counted_sheets(items, environment, now, finest):
        caller.put(sheet)
        for added in _parted(sheet.counted):
            stores.counters.add(added)
    return caller.published


@dataclass(slots=True)
class _Sheet:
    """Figures of one namespace, for one call, and what to remember once they are published."""

    namespace: str
    environment: str
    now: datetime
    finest: Detail
    figures: dict[tuple[_Metric, Whose | None], _Values] = field(default_factory=dict)
    counted: list[Sample] = field(default_factory=list)

    def add(self, item: _Item) -> None:
        """Adds to each level."""
        self.counted += item.counted
        for metric, values in item.figures:
            for place in self._places(metric, item.whose, values):
                held = self.figures.get((metric, place))
                self.figures[metric, place] = held + values if held else values

    def room(self, item: _Item) -> bool:
        """Whether the item certainly fits."""
        return len(self.figures) + len(Detail) * len(item.figures) <= _MOST

    def data(self) -> list[dict[str, Any]]:
        """As PutMetricData wants it."""
        return [
            {
                "MetricName": metric.name,
                "Dimensions": self._dimensions(place),
                "Timestamp": self.now,
                "Unit": metric.unit,
                **_written(metric, values),
            }
            for (metric, place), values in self.figures.items()
        ]

    def _places(self, metric: _Metric, whose: Whose, values: _Values) -> Iterator[Whose | None]:
        yield None
        tenant, service, table = whose
        if not tenant or not service or (metric.over is _Over.SUM and not values.total):
            return
        finest = min(metric.finest, self.finest)
        if finest >= Detail.SERVICE:
            yield tenant, service, None
        if finest >= Detail.TABLE and table is not None:
            yield whose

    def _dimensions(self, place: Whose | None) -> list[dict[str, str]]:
        names = ("Environment", "Tenant", "Service", "Table")
        values = (self.environment, *(place or ()))
        return [{"Name": n, "Value": v} for n, v in zip(names, values, strict=False) if v]


class _Sheets:
    """Figures of several namespaces, as few calls as may be."""

    def __init__(self, environment: str, now: datetime, finest: Detail) -> None:
        self._given = (environment, now, finest)
        self._whole: dict[str, _Sheet] = {}

    def add(self, item: _Item) -> None:
        """Adds to the sheets of its figures' namespaces."""
        for metric, values in item.figures:
            sheet = self._whole.setdefault(metric.namespace, _Sheet(metric.namespace, *self._given))
            sheet.add(_Item(item.whose, ((metric, values),)))

    def all(self) -> Iterator[_Sheet]:
        """Sheets that fit into a call."""
        for sheet in self._whole.values():
            figures = list(sheet.figures.items())
            for at in range(0, len(figures), _MOST):
                part = dict(figures[at : at + _MOST])
                yield _Sheet(sheet.namespace, *self._given, figures=part)


class _Caller:
    """Calls CloudWatch, until the time is up."""

    def __init__(self, deadline: float, patience: Patience) -> None:
        self._deadline = deadline
        self._patience = patience
        self.published = 0

    def put(self, sheet: _Sheet) -> None:
        """Publishes a sheet.

        Raises:
            AvesaError: It was not, or nobody knows.
        """
        # Here, because whoever watches an installation without AWS need not load its client.
        from avesa_dagster.aws import client, explained

        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(
                f"CloudWatch took {self.published} figures in {self._patience.whole:g} s",
                hint="the rest is published next time",
            )
        data = sheet.data()

        def talk(late: Callable[[], bool]) -> None:
            cloudwatch = client("cloudwatch", attempts=_TRIES, seconds=self._patience.step)
            if not late():
                cloudwatch.put_metric_data(Namespace=sheet.namespace, MetricData=data)

        with explained(f"cannot publish metrics to CloudWatch, {sheet.namespace}"):
            bounded(talk, lambda: None, who="CloudWatch", seconds=left)
        self.published += len(data)


def _counted_sheets(
    items: Iterable[_Item], environment: str, now: datetime, finest: Detail
) -> Iterator[_Sheet]:
    """Sheets that each hold all levels of their items, so that each can be repeated by itself."""

    def order(item: _Item) -> tuple[str, str, str]:
        tenant, service, _ = item.whose
        return item.figures[0][0].namespace, tenant, service

    for namespace, own in groupby(sorted(items, key=order), key=lambda item: order(item)[0]):
        sheet = _Sheet(namespace, environment, now, finest)
        for item in own:
            if not sheet.room(item):
                yield sheet
                sheet = _Sheet(namespace, environment, now, finest)
            sheet.add(item)
        yield sheet


def _counts(samples: Iterable[Sample]) -> Iterator[_Item]:
    """What was counted and not published yet."""
    values = {(sample.name, sample.labels): sample.value for sample in samples}
    durations: dict[tuple[str, str], list[Sample]] = {}
    for (name, labels), value in values.items():
        known = dict(labels)
        tenant, service, table = (known.get(n, "") for n in ("tenant", "service", "table"))
        if not (NAME.fullmatch(tenant) and NAME.fullmatch(service)):
            continue
        if name in (f"{_DURATION}_bucket", f"{_DURATION}_sum"):
            durations.setdefault((tenant, service), []).append(Sample(name, labels, value))
            continue
        metrics = _COUNTED.get(name, ())
        if name == "avesa_chunks_total":
            metrics = _CHUNKS.get(known.get("state", ""), ())
        for namespace, own in groupby(metrics, key=lambda metric: metric.namespace):
            more = _unpublished(namespace, Sample(name, labels, value), values)
            if more.value > 0 and NAME.fullmatch(table):
                figures = tuple((metric, _Values.one(more.value)) for metric in own)
                yield _Item((tenant, service, table), figures, (more,))
    for whose, own_samples in durations.items():
        counted = tuple(_unpublished(_PIPELINE, sample, values) for sample in own_samples)
        if lengths := _lengths(counted):
            yield _Item((*whose, None), ((_TIME, lengths),), counted)


def _unpublished(
    namespace: str, sample: Sample, values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
) -> Sample:
    """What a counter grew by since it was published there, as what is to be remembered."""
    name = f"{_PREFIX}{namespace}/{sample.name}"
    more = sample.value - values.get((name, sample.labels), 0.0)
    return Sample(name, sample.labels, max(more, 0.0))


def _lengths(counted: Sequence[Sample]) -> _Values | None:
    """How long attempts took, as far as buckets tell; None if there was none."""
    buckets = {float(dict(s.labels)["le"]): s.value for s in counted if s.name.endswith("_bucket")}
    reached = sorted(bound for bound, number in buckets.items() if number > 0)
    number = sum(buckets.values())
    total = sum(sample.value for sample in counted if sample.name.endswith("_sum"))
    if not reached:
        return None
    before = bisect_left(BUCKETS, reached[0])
    least = BUCKETS[before - 1] if before else 0.0
    most = max(reached[-1], least) if math.isfinite(reached[-1]) else max(BUCKETS[-1], total)
    mean = total / number
    return _Values(number, total, min(least, mean), max(most, mean))


def _ended_jobs(stores: Stores, samples: Iterable[Sample], now: datetime) -> Iterator[_Item]:
    """Jobs that ended and were not counted yet. One that is retried and ends again counts again."""
    counted = {sample.labels for sample in samples if sample.name == _JOB_ENDED}
    for job in _ended_since(stores, now - _RECENT):
        metric = _ENDED.get(job.status)  # who cancels a job knows
        if metric is None or job.completed_at is None or job.completed_at < now - _RECENT:
            continue
        labels = (
            ("ended", job.completed_at.isoformat()),
            ("job", job.job_id),
            ("service", job.service),
            ("tenant", job.tenant),
        )
        if labels not in counted:
            once = Sample(_JOB_ENDED, labels, 1)
            yield _Item((job.tenant, job.service, None), ((metric, _Values.one(1)),), (once,))


def _ended_since(stores: Stores, since: datetime) -> list[Job]:
    """Every job that ended since; older ones may be among them."""
    limit = _JOBS
    while True:
        jobs = stores.jobs.ended(limit=limit)
        oldest = jobs[-1].completed_at if len(jobs) == limit else None
        if oldest is None or oldest < since:
            return jobs
        limit *= 4


def _present(
    stores: Watched, catalog: Catalog, now: datetime, budget: BudgetOf | None
) -> Iterator[_Item]:
    """What holds now."""
    for family in StoresCollector(stores, catalog, lambda: now, budget).gauges():
        for sample in family.samples:
            labels = sample.labels
            if found := _gauge(sample.name, labels, sample.value):
                whose = (labels["tenant"], labels["service"], labels.get("table"))
                yield _Item(whose, tuple((m, _Values.one(v)) for m, v in found))
    yield from _compared(stores, connections(stores, catalog))


def _gauge(name: str, labels: Mapping[str, str], value: float) -> Sequence[tuple[_Metric, float]]:
    """What one of StoresCollector's gauges is here."""
    match name:
        case "avesa_lag_seconds":
            return [(_FRESHNESS, max(value, 0.0) / 3600)]
        case "avesa_breaker_state":  # while one is probed nobody else asks
            return [(_SUSPENDED, float(value > 0))]
        case "avesa_alarms":
            lost = [(_LOSS, value)] if labels["kind"] == Kind.DISAGREES else []
            return [(_ALARMS, value), *lost]
        case "avesa_jobs" if labels["status"] in _JOBS_NOW:
            return [(_JOBS_NOW[labels["status"]], value)]
        case "avesa_budget_used_ratio":
            return [(_BUDGET, 100 * value)]
        case "avesa_budget_waiting":
            return [(_WAITING, value)]
        case _:
            return []


def _compared(stores: Watched, connected: Iterable[TenantService]) -> Iterator[_Item]:
    """Of each table that was compared with its source whether they agree."""
    tables = {(row.tenant, row.service, table) for row in connected for table in row.tables}
    for row in stores.processing.latest("verify"):
        if (row.tenant, row.service, row.table) in tables and "reached" in row.extra:
            agrees = 0.0 if row.extra.get("disagrees") else 100.0
            yield _Item((row.tenant, row.service, None), ((_SCORE, _Values.one(agrees)),))


def _forget_erased(stores: Stores, samples: Iterable[Sample], tenants: set[str]) -> None:
    """Removes what was remembered of a tenant while it was erased: no trace is to remain."""
    remembered = {
        tenant
        for sample in samples
        if sample.name.startswith(_PREFIX) and (tenant := dict(sample.labels).get("tenant"))
    }
    for tenant in remembered - tenants:
        stores.counters.forget(tenant)


def _parted(counted: Sequence[Sample]) -> Iterator[list[Sample]]:
    """What is remembered at once: that of a few connections."""

    def whose(sample: Sample) -> tuple[str, str]:
        labels = dict(sample.labels)
        return labels["tenant"], labels["service"]

    groups = [list(own) for _, own in groupby(sorted(counted, key=whose), key=whose)]
    for at in range(0, len(groups), _TOGETHER):
        yield [sample for own in groups[at : at + _TOGETHER] for sample in own]


def _written(metric: _Metric, values: _Values) -> dict[str, Any]:
    if metric.over is _Over.SUM or values.number == 1:
        return {"Value": float(values.total)}
    if metric.over is _Over.MEAN:
        return {"Value": values.total / values.number}
    return {
        "StatisticValues": {
            "SampleCount": float(values.number),
            "Sum": values.total,
            "Minimum": values.least,
            "Maximum": values.most,
        }
    }
