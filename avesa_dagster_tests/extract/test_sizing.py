"""Chunks by volume: none too large, none across a partition, nothing left out, few questions."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.models import Grain
from avesa_dagster.extract.sizing import Sizes, by_volume
from avesa_dagster.sources.base import Window

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
LAST = datetime(2025, 12, 20, tzinfo=UTC)
SPAN = int((LAST - FIRST).total_seconds())


class Counted:
    """A service that says how many of these moments a window holds."""

    def __init__(self, seconds: list[int]) -> None:
        self.moments = sorted(seconds)
        self.asked = 0

    def __call__(self, window: Window) -> int:
        self.asked += 1
        return self.held(window)

    def held(self, window: Window) -> int:
        edges = [int((m - FIRST).total_seconds()) for m in (window.start, window.end)]
        left, right = (bisect_left(self.moments, edge) for edge in edges)
        return right - left


def stretches(kind: Grain) -> list[tuple[grain.Partition, Window]]:
    parts = grain.partitions(kind, FIRST, LAST)
    return [(part, Window(max(part.start, FIRST), min(part.end, LAST))) for part in parts]


@given(
    kind=st.sampled_from([Grain.MONTHLY, Grain.WEEKLY, Grain.SEMI_MONTHLY]),
    seconds=st.lists(st.integers(0, SPAN - 1), max_size=300)
    | st.lists(st.integers(SPAN // 2, SPAN // 2 + 30 * 86_400), max_size=300),
    days=st.integers(1, 60),
    page_size=st.integers(1, 50),
    factor=st.integers(1, 10),
    each=st.booleans(),
)
def test_chunks_cover_everything_and_none_is_larger_than_it_may_be(
    kind: Grain, seconds: list[int], days: int, page_size: int, factor: int, each: bool
) -> None:
    service = Counted(seconds)
    sizes = Sizes(days, page_size, page_size * factor)
    chunks = by_volume(stretches(kind), sizes, service, each=each)
    assert (chunks[0].window.start, chunks[-1].window.end) == (FIRST, LAST)
    for older, newer in pairwise(chunks):
        assert older.window.end == newer.window.start
    for chunk in chunks:
        held = service.held(chunk.window)
        assert chunk.partition.start <= chunk.window.start < chunk.window.end
        assert chunk.window.end <= chunk.partition.end
        assert chunk.window.start.microsecond == 0
        length = chunk.window.end - chunk.window.start
        assert held <= sizes.max_records or length < timedelta(hours=2)
        assert held <= chunk.records
        if chunk.exact:
            assert held == chunk.records
    if each:
        assert all(chunk.exact for chunk in chunks)


def test_a_quiet_table_costs_one_question() -> None:
    service = Counted([i * 7_000 for i in range(800)])
    chunks = by_volume(stretches(Grain.MONTHLY), Sizes(30, 1000, 50_000), service)
    assert (len(chunks), service.asked) == (24, 1)


def test_an_empty_stretch_is_one_chunk_however_small_chunks_are_to_be() -> None:
    service = Counted([SPAN - 5] * 2000)
    chunks = by_volume(stretches(Grain.MONTHLY), Sizes(1, 1000, 50_000), service)
    months = {chunk.partition.key for chunk in chunks[:23]}
    assert len(months) == 23, "the empty months are whole"
    assert len(chunks) == 23 + 19, "the busy one is by the day"
    assert service.asked <= 8


def test_a_burst_is_halved_until_it_fits() -> None:
    burst = int((datetime(2024, 7, 4, 12, tzinfo=UTC) - FIRST).total_seconds())
    service = Counted([burst + i for i in range(20_000)])
    chunks = by_volume(stretches(Grain.MONTHLY), Sizes(30, 1000, 8_000), service)
    assert max(service.held(chunk.window) for chunk in chunks) <= 8_000
    assert service.asked < 30
