"""Our plain windows are Dagster's: the same keys, starts and ends, whatever the start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.models import Grain
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs.partitions import partitions_def

FIRST = datetime(2015, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 12 * 365 * 86_400).map(lambda s: FIRST + timedelta(seconds=s))


def _connection(history_start: datetime) -> TenantService:
    return TenantService(
        tenant="acme",
        service="connectwise",
        number=1,
        generation=1,
        enabled=True,
        history_start=history_start,
        tables=("tickets",),
        requests_per_minute=None,
        connected_at=history_start,
        updated_at=history_start,
    )


@pytest.mark.parametrize("kind", Grain)
@settings(max_examples=60, deadline=None)
@given(start=MOMENTS, days=st.integers(0, 400), seconds=st.integers(0, 86_399))
def test_our_windows_are_those_of_dagster(
    kind: Grain, start: datetime, days: int, seconds: int
) -> None:
    now = start + timedelta(days=days, seconds=seconds)
    ours = list(grain.partitions(kind, start, now))
    theirs = partitions_def(_connection(start), kind)
    assert theirs.get_partition_keys(current_time=now) == [partition.key for partition in ours]
    for partition in (ours[0], ours[len(ours) // 2], ours[-1]):
        window = theirs.time_window_for_partition_key(partition.key)
        assert (window.start, window.end) == (partition.start, partition.end)


@pytest.mark.parametrize("kind", Grain)
def test_the_window_opens_at_its_first_second(kind: Grain) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    theirs = partitions_def(_connection(start), kind)
    for last in list(grain.partitions(kind, start, start + timedelta(days=70)))[1:]:
        assert theirs.get_partition_keys(current_time=last.start)[-1] == last.key
