"""Chunks cover the requested windows exactly: no gap, no overlap, none across a partition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.models import Grain
from avesa_dagster.errors import RetriableError, Suspended
from avesa_dagster.extract.planner import WHOLE, plan
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.extract.sizing import Sizes
from avesa_dagster.sources.base import Window

SECONDS = st.integers(0, 4 * 365 * 86_400)
FIRST = datetime(2023, 1, 1, tzinfo=UTC)


def _moment(seconds: int) -> datetime:
    return FIRST + timedelta(seconds=seconds)


def _request(kind: Grain, start: datetime, until: datetime, mode: Mode) -> Request:
    parts = tuple(grain.partitions(kind, start, until))
    return Request("acme", "connectwise", "tickets", parts, mode, "token", "run")


@given(
    kind=st.sampled_from(Grain),
    start=SECONDS.map(_moment),
    length=st.integers(0, 120 * 86_400),
    upper=SECONDS.map(_moment),
    sync_from=st.none() | SECONDS.map(_moment),
    chunk_days=st.integers(1, 400),
    full=st.booleans(),
)
def test_chunks_partition_the_requested_windows_exactly(
    kind: Grain,
    start: datetime,
    length: int,
    upper: datetime,
    sync_from: datetime | None,
    chunk_days: int,
    full: bool,
) -> None:
    mode = Mode.FULL if full else Mode.SYNC if sync_from else Mode.BACKFILL
    request = _request(kind, start, start + timedelta(seconds=length), mode)
    sizes = Sizes(chunk_days, page_size=1000, max_records=50_000)
    chunks = plan(request, upper=upper, sync_from=sync_from, sizes=sizes, whole=False)
    windows = [chunk for chunk in chunks if chunk.kind == "window"]
    wanted = (max(request.start, sync_from or request.start), min(request.end, upper))
    if wanted[0] >= wanted[1]:
        assert not windows
    else:
        assert (windows[-1].start, windows[0].end) == wanted
    for newer, older in pairwise(windows):
        assert newer.start == older.end, "newest first, no gap, no overlap"
    parts = {partition.key: partition for partition in request.partitions}
    for chunk in windows:
        assert parts[chunk.partition].start <= chunk.start < chunk.end
        assert chunk.end <= parts[chunk.partition].end
        if kind is Grain.MONTHLY:
            assert (chunk.end - chunk.start).days <= max(1.5 * chunk_days, 1) + 1
    assert len({chunk.chunk_id for chunk in chunks}) == len(chunks)
    assert [chunk.kind for chunk in chunks].count("sweep") == int(full)


@given(start=SECONDS.map(_moment), length=st.integers(0, 10**7), upper=SECONDS.map(_moment))
def test_master_data_is_one_chunk_up_to_the_present(
    start: datetime, length: int, upper: datetime
) -> None:
    request = _request(Grain.MONTHLY, start, start + timedelta(seconds=length), Mode.BACKFILL)
    chunks = plan(request, upper=upper, sync_from=None, sizes=Sizes(30, 1000, 50_000), whole=True)
    if upper <= request.start:
        assert not chunks
    else:
        (only,) = chunks
        assert (only.kind, only.partition) == ("full", WHOLE)
        assert (only.start, only.end) == (request.start, min(request.end, upper))


@given(kind=st.sampled_from(Grain), at=SECONDS.map(_moment))
def test_every_moment_lies_in_the_one_partition_that_floor_names(kind: Grain, at: datetime) -> None:
    (only,) = grain.partitions(kind, at, at)
    assert only.start == grain.floor(kind, at) and only.start <= at < only.end
    assert only.end == grain.following(kind, only.start) == grain.floor(kind, only.end)


@given(
    start=SECONDS.map(_moment),
    length=st.integers(0, 120 * 86_400),
    upper=SECONDS.map(_moment),
    wanted=st.lists(st.tuples(SECONDS, st.integers(1, 60 * 86_400)), max_size=4),
)
def test_only_what_is_wanted_is_planned_and_all_of_it(
    start: datetime, length: int, upper: datetime, wanted: list[tuple[int, int]]
) -> None:
    request = _request(Grain.MONTHLY, start, start + timedelta(seconds=length), Mode.BACKFILL)
    windows = _disjoint(wanted)
    chunks = plan(
        request,
        upper=upper,
        sync_from=None,
        wanted=windows,
        sizes=Sizes(30, 1000, 50_000),
        whole=False,
    )
    seconds = sum((c.end - c.start).total_seconds() for c in chunks)
    asked = [(max(w.start, request.start), min(w.end, request.end, upper)) for w in windows]
    assert seconds == sum(max(0.0, (end - begin).total_seconds()) for begin, end in asked)
    for chunk in chunks:
        assert any(w.start <= chunk.start and chunk.end <= w.end for w in windows)


def _disjoint(wanted: list[tuple[int, int]]) -> list[Window]:
    windows: list[Window] = []
    for start, length in sorted(wanted):
        begin, end = _moment(start), _moment(start + length)
        if not windows or begin >= windows[-1].end:
            windows.append(Window(begin, end))
    return windows


def test_a_window_that_cannot_be_counted_keeps_no_other_back() -> None:
    request = _request(Grain.MONTHLY, FIRST, FIRST + timedelta(days=89), Mode.BACKFILL)
    sizes = Sizes(10, page_size=1000, max_records=50_000)

    def count(window: Window) -> int:
        if window.start <= FIRST + timedelta(days=40) < window.end < request.end:
            raise RetriableError("no answer to a count of February")
        return (window.end - window.start).days * 10_000

    by_calendar = plan(request, upper=request.end, sync_from=None, sizes=sizes, whole=False)
    chunks = plan(request, upper=request.end, sync_from=None, sizes=sizes, count=count, whole=False)
    assert chunks == by_calendar

    def suspended(window: Window) -> int:
        raise Suspended("the breaker is open")

    with pytest.raises(Suspended):
        plan(request, upper=request.end, sync_from=None, sizes=sizes, count=suspended, whole=False)
