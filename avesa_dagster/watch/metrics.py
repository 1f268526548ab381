"""Metrics for Prometheus, read from the control tables when they are asked for.

So they are right across processes and restarts, and no process has to be reachable while it
works. What only grows lies in `Counters`, where `Meter` adds; everything else is looked up. The
ledger is never asked: its size must not matter.

Every metric has the labels `tenant` and `service`; those about records have `table` too. The
histogram of chunk durations has not: with hundreds of tenants its buckets alone would be more
lines than all others together.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import BudgetUse, ChunkState, TenantService
from avesa_dagster.control.health import BreakerState, Counters, Sample
from avesa_dagster.sources.base import Clock
from avesa_dagster.watch.alerts import standing
from avesa_dagster.watch.stores import Stores, connections

BudgetOf = Callable[[TenantService], BudgetUse]
"""What a connection's budget used; see `Budget.use`."""

BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds of the chunk durations, in seconds; one without bound follows."""
_BOUNDS = (*BUCKETS, math.inf)

_DURATION = "avesa_chunk_duration_seconds"
_COUNTED = {
    "avesa_requests_total": "Requests made to the service.",
    "avesa_retries_total": "Requests that were repeated, because the one before failed.",
    "avesa_records_total": "Records that completed chunks fetched.",
    "avesa_chunks_total": "Attempts at chunks that ended, by state: completed or failed.",
}
_NAME = re.compile(
    r"(?!avesa_(?:lag|jobs|alarms|budget|breaker|chunk)_)avesa_[a-z0-9_]{1,80}_total"
)
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,40}")
_BREAKER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Meter:
    """Counts what is done. Each method is one transaction, durable when it returns."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def chunk(
        self,
        tenant: str,
        service: str,
        table: str,
        *,
        seconds: float,
        records: int,
        requests: int,
        retries: int,
        state: ChunkState,
    ) -> None:
        """An attempt at a chunk ended.

        Args:
            seconds: How long it took.
            records, requests, retries: Of this attempt alone.
            state: COMPLETED or FAILED.
        """
        whose = (("service", service), ("tenant", tenant))
        own = (("service", service), ("table", table), ("tenant", tenant))
        bound = _BOUNDS[bisect_left(_BOUNDS, seconds)]
        self._counters.add(
            [
                Sample("avesa_requests_total", own, requests),
                Sample("avesa_retries_total", own, retries),
                Sample("avesa_records_total", own, records),
                Sample("avesa_chunks_total", (own[0], ("state", state.value), *own[1:]), 1),
                Sample(f"{_DURATION}_bucket", (("le", _written(bound)), *whose), 1),
                Sample(f"{_DURATION}_sum", whose, seconds),
            ]
        )

    def requests(
        self, tenant: str, service: str, table: str, *, requests: int, retries: int = 0
    ) -> None:
        """Requests were made outside of any chunk: to plan, to probe, to compare."""
        own = (("service", service), ("table", table), ("tenant", tenant))
        self._counters.add(
            [
                Sample("avesa_requests_total", own, requests),
                Sample("avesa_retries_total", own, retries),
            ]
        )


class StoresCollector(Collector):
    """Reads the control tables at each scrape. Safe for several at once.

    Args:
        catalog: Says which tables there are.
        clock: The present, for the lag.
        budget: Asked for each connected service; None: without the budget's metrics.
    """

    def __init__(
        self, stores: Stores, catalog: Catalog, clock: Clock, budget: BudgetOf | None = None
    ) -> None:
        self._stores = stores
        self._catalog = catalog
        self._clock = clock
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        """Every metric, those without a sample too.

        Raises:
            StoreError: A control table cannot be read: the scrape fails, and is seen to.
        """
        connected = connections(self._stores, self._catalog)
        samples = self._stores.counters.all()
        # One family after the other: each is written and let go before the next is read.
        yield from _counters(samples)
        yield _durations(samples)
        del samples
        yield from self._gauges(connected)

    def gauges(self) -> Iterator[Metric]:
        """What holds at present, without what was counted.

        Raises:
            StoreError: A control table cannot be read.
        """
        yield from self._gauges(connections(self._stores, self._catalog))

    def _gauges(self, connected: Sequence[TenantService]) -> Iterator[Metric]:
        yield from self._budgets(connected)
        yield self._lag(connected)
        yield self._jobs()
        yield self._breakers(connected)
        yield self._alarms()

    def _budgets(self, connected: Iterable[TenantService]) -> list[Metric]:
        if self._budget is None:
            return []
        used = _gauge("avesa_budget_used_ratio", "Share of the requests per minute in use now.")
        limit = _gauge("avesa_budget_limit", "Requests per minute in force.")
        waiting = _gauge("avesa_budget_waiting", "Requests that wait for their turn.")
        for row in connected:
            use, labels = self._budget(row), (row.tenant, row.service)
            used.add_metric(labels, use.used / use.limit)
            limit.add_metric(labels, use.limit)
            waiting.add_metric(labels, float(use.extra.get("waiting", 0)))
        return [used, limit, waiting]

    def _lag(self, connected: Iterable[TenantService]) -> Metric:
        lag = _gauge(
            "avesa_lag_seconds",
            "Age of what the newest sync asked for; of the connection, if there was no sync yet.",
            "table",
        )
        now = self._clock()
        for row in connected:
            marks = self._stores.watermarks.of(row.tenant, row.service)
            for table in row.tables:
                mark = marks.get(table)
                since = mark.upper if mark else row.connected_at
                lag.add_metric((row.tenant, row.service, table), (now - since).total_seconds())
        return lag

    def _jobs(self) -> Metric:
        jobs = _gauge("avesa_jobs", "Backfill jobs that are known, by status.", "status")
        found = self._stores.jobs.find()
        counted = Counter((job.tenant, job.service, job.status.value) for job in found)
        for labels, number in sorted(counted.items()):
            jobs.add_metric(labels, number)
        return jobs

    def _breakers(self, connected: Iterable[TenantService]) -> Metric:
        known = {(b.tenant, b.service): b.state for b in self._stores.breakers.all()}
        states = _gauge(
            "avesa_breaker_state", "Whether the service is asked: 0 yes, 1 a probe is, 2 no."
        )
        for row in connected:
            labels = (row.tenant, row.service)
            states.add_metric(labels, _BREAKER[known.get(labels, BreakerState.CLOSED)])
        return states

    def _alarms(self) -> Metric:
        alarms = _gauge("avesa_alarms", "What is wrong at present, by kind.", "kind")
        counted: Counter[tuple[str, str, str]] = Counter()
        for alarm in standing(self._stores.alarms):
            kind, tenant, service, *_ = *alarm.key.split("/"), "", ""
            counted[tenant, service, kind] += 1
        for labels, number in sorted(counted.items()):
            alarms.add_metric(labels, number)
        return alarms


def _gauge(name: str, text: str, *more: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=("tenant", "service", *more))


def _counters(samples: Iterable[Sample]) -> Iterator[Metric]:
    """A family for each counter, those that nobody counted yet too.

    Counters of others are shown as well, if their names can stand in a metric.
    """
    named = {name: CounterMetricFamily(name, text) for name, text in _COUNTED.items()}
    for name, own in itertools.groupby(samples, key=lambda sample: sample.name):
        if not _NAME.fullmatch(name):
            continue
        if name not in named:
            named[name] = CounterMetricFamily(name, "Counted since the installation.")
        for sample in own:
            if all(map(_can_stand, (label for label, _ in sample.labels))):
                named[name].add_sample(name, dict(sample.labels), sample.value)
    while named:
        yield named.pop(next(iter(named)))


def _durations(samples: Iterable[Sample]) -> Metric:
    """The histogram, from buckets that were each counted by themselves."""
    counts: dict[tuple[str, str], list[float]] = {}
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for sample in samples:
        labels = dict(sample.labels)
        whose = (labels.get("tenant", ""), labels.get("service", ""))
        if sample.name == f"{_DURATION}_sum":
            sums[whose] += sample.value
        elif sample.name == f"{_DURATION}_bucket":
            own = counts.setdefault(whose, [0.0] * len(_BOUNDS))
            # The bounds of an earlier version fall into the next one that is still there.
            own[bisect_left(_BOUNDS, float(labels["le"]))] += sample.value
    family = HistogramMetricFamily(
        _DURATION, "How long an attempt at a chunk took.", labels=("tenant", "service")
    )
    for whose, own in sorted(counts.items()):
        summed = zip(map(_written, _BOUNDS), itertools.accumulate(own), strict=True)
        family.add_metric(whose, list(summed), sums[whose])
    return family


@functools.lru_cache(maxsize=1000)
def _can_stand(label: str) -> bool:
    return _LABEL.fullmatch(label) is not None


def _written(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else str(bound)
