"""Partitions as plain windows: what Dagster's definitions say, without Dagster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from avesa_dagster.catalog.models import Grain


@dataclass(frozen=True, slots=True)
class Partition:
    """A half-open stretch of time, [start, end), in UTC. `key` is its first day, YYYY-MM-DD."""

    key: str
    start: datetime
    end: datetime


def floor(grain: Grain, moment: datetime) -> datetime:
    """Start of the partition that holds the moment. Weeks begin on Sunday, as Dagster's do."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match grain:
        case Grain.DAILY:
            return day
        case Grain.WEEKLY:
            return day - timedelta(days=(day.weekday() + 1) % 7)
        case Grain.SEMI_MONTHLY:
            return day.replace(day=1 if day.day < 16 else 16)
        case Grain.MONTHLY:
            return day.replace(day=1)


def following(grain: Grain, start: datetime) -> datetime:
    """Start of the partition after the one that starts at `start`."""
    match grain:
        case Grain.DAILY:
            return start + timedelta(days=1)
        case Grain.WEEKLY:
            return start + timedelta(days=7)
        case Grain.SEMI_MONTHLY if start.day == 1:
            return start.replace(day=16)
        case Grain.SEMI_MONTHLY | Grain.MONTHLY:
            return (start.replace(day=1) + timedelta(days=32)).replace(day=1)


def partitions(grain: Grain, start: datetime, until: datetime) -> Iterator[Partition]:
    """The partitions from the one that holds `start` to the one that holds `until`, both in."""
    here = floor(grain, start)
    while here <= until:
        end = following(grain, here)
        yield Partition(here.strftime("%Y-%m-%d"), here, end)
        here = end
