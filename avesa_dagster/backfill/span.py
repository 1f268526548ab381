"""From what a person asks for to whole partitions of a connection."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import Job
from avesa_dagster.errors import ConfigurationError, Where


def requested(
    connection: TenantService,
    catalog: Catalog,
    start: date | None,
    end: date | None,
    now: datetime,
) -> tuple[Partition, ...]:
    """The partitions of [start, end), oldest first; what is left out follows from the lookback.

    Without both, all of the connection's history; without `end`, up to the present; without
    `start`, the service's lookback before `end`.

    Raises:
        ConfigurationError: The range is empty, begins before history or lies in the future.
    """
    where = Where(connection.tenant, connection.service)
    settings = catalog.settings(connection.tenant, connection.service)
    first = grain.floor(settings.partitions, connection.history_start)
    if start is not None and end is not None and start >= end:
        raise ConfigurationError(
            f"the range is empty: it starts {start} and ends before {end}",
            where=where,
            hint="--end is the first day that is not asked for any more",
        )
    grows = "history grows to the left by connecting again with a larger --lookback-days"
    if end is not None and _midnight(end) <= first:
        raise ConfigurationError(
            f"the range ends before {end}, and this history begins {first:%Y-%m-%d}",
            where=where,
            hint=grows,
        )
    until = now if end is None else min(now, _midnight(end) - timedelta(seconds=1))
    if start is not None:
        begin = _midnight(start)
    elif end is not None:
        back = min(now, _midnight(end)) - timedelta(days=settings.lookback_days)
        begin = max(connection.history_start, back)
    else:
        begin = connection.history_start
    if begin < first:
        raise ConfigurationError(
            f"the range begins {begin.date()}, and this history begins {first:%Y-%m-%d}",
            where=where,
            hint=grows,
        )
    if begin > now:
        raise ConfigurationError(
            f"the range begins {begin.date()}, which is in the future",
            where=where,
            hint=f"it is {now:%Y-%m-%d %H:%M} UTC",
        )
    return tuple(grain.partitions(settings.partitions, begin, until))


def job_partitions(job: Job, catalog: Catalog) -> tuple[Partition, ...]:
    """The partitions of a job, oldest first."""
    kind = catalog.settings(job.tenant, job.service).partitions
    last = job.end - timedelta(seconds=1)
    return tuple(grain.partitions(kind, job.start, last))


def recent_keys(connection: TenantService, catalog: Catalog, now: datetime) -> frozenset[str]:
    """Keys of the connection's newest partitions."""
    settings = catalog.settings(connection.tenant, connection.service)
    known = list(grain.partitions(settings.partitions, connection.history_start, now))
    count = catalog.backfill.scheduling.recent_partitions
    return frozenset(partition.key for partition in known[-count:])


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
