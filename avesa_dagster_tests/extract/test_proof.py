"""The proof: a read span holds every record that was there to its end, or the reading fails."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avesa_dagster.errors import DataError
from avesa_dagster.extract.proof import Segment, segments
from avesa_dagster.sources.base import Page, Record, Rejected, Span

AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Shrinking:
    """A source of which rows leave, and whose pages may leave out rows, be empty or be short.

    Attributes:
        leaving: Request number to the ids that are gone from then on.
        spoiled: Request number to what happens to its page's ids.
        arriving: Request number to the ids that show up late.
    """

    ids: set[int]
    page_size: int = 5
    leaving: dict[int, set[int]] = field(default_factory=dict)
    spoiled: dict[int, Callable[[list[int]], list[int]]] = field(default_factory=dict)
    arriving: dict[int, set[int]] = field(default_factory=dict)
    unusable: frozenset[int] = frozenset()
    requests: int = 0

    def now(self) -> datetime:
        return AT

    def count(self, table: str, span: Span) -> int:
        self._next()
        return len(self._in(span))

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        self._next()
        ids = self._in(span)[: self.page_size]
        spoil = self.spoiled.get(self.requests)
        ids = spoil(ids) if spoil else ids
        records = [Record(str(n), AT, b'{"id":%d}' % n) for n in ids if n not in self.unusable]
        rejected = [Rejected("unusable", b"{%d}" % n) for n in ids if n in self.unusable]
        last = records[-1].record_id if records else None
        return Page(records, rejected, last, AT, full=len(ids) >= self.page_size)

    def newest_id(self, table: str) -> str | None:
        return str(max(self.ids)) if self.ids else None

    def exists(self, table: str, record_id: str) -> bool:
        return int(record_id) in self.ids

    def close(self) -> None:
        pass

    def _next(self) -> None:
        self.requests += 1
        assert self.requests < 20_000, "it reads on and on"
        self.ids |= self.arriving.get(self.requests, set())
        self.ids -= self.leaving.get(self.requests, set())

    def _in(self, span: Span) -> list[int]:
        ids = sorted(self.ids)
        low = bisect_right(ids, int(span.after)) if span.after is not None else 0
        high = bisect_right(ids, int(span.upto)) if span.upto is not None else len(ids)
        return ids[low:high]


def read(source: Shrinking, *, rows: int = 20_000, span: Span | None = None) -> list[Segment]:
    return list(segments(source, "tickets", span or Span(), rows=rows))


def ids_in(found: list[Segment]) -> set[int]:
    return {int(r.record_id) for s in found for page in s.pages for r in page.records}


@st.composite
def shrinking(draw: st.DrawFn) -> Shrinking:
    ids = draw(st.sets(st.integers(1, 60), max_size=40))
    some = st.sets(st.sampled_from(sorted(ids)), max_size=3) if ids else st.just(set[int]())
    dropped = st.builds(
        lambda gone: lambda page: [n for k, n in enumerate(page) if k not in gone],
        st.sets(st.integers(0, 8), min_size=1, max_size=4),
    )
    short = st.builds(lambda rows: lambda page: page[:rows], st.integers(0, 3))
    spoil = st.one_of(dropped, short, st.just(lambda page: []))
    return Shrinking(
        ids,
        page_size=draw(st.integers(1, 8)),
        leaving=draw(st.dictionaries(st.integers(1, 40), some, max_size=10)),
        spoiled=draw(st.dictionaries(st.integers(1, 60), spoil, max_size=20)),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=shrinking(), rows=st.sampled_from([1, 3, 7, 20_000]), spoiled_for_ever=st.booleans())
def test_nothing_that_stays_is_ever_left_out(
    source: Shrinking, rows: int, spoiled_for_ever: bool
) -> None:
    if spoiled_for_ever:
        source.spoiled = {n: source.spoiled.get(n % 60, lambda ids: ids) for n in range(20_000)}
    try:
        found = read(source, rows=rows)
    except DataError:
        return
    assert source.ids <= ids_in(found)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=shrinking(), rows=st.sampled_from([2, 5, 20_000]), data=st.data())
def test_going_on_after_any_segment_leaves_nothing_out(
    source: Shrinking, rows: int, data: st.DataObject
) -> None:
    try:
        found = read(source, rows=rows)
        kept = data.draw(st.integers(0, len(found)))
        cursor = found[kept - 1].last_id if kept else None
        rest = read(source, rows=rows, span=Span(after=cursor))
    except DataError:
        return
    assert source.ids <= ids_in(found[:kept]) | ids_in(rest)
    if kept == len(found) and not any(source.spoiled.get(n) for n in range(source.requests)):
        assert not ids_in(rest) & source.ids, "what is proven is not read again"


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ids=st.sets(st.integers(1, 60), min_size=1, max_size=40),
    late=st.dictionaries(st.integers(2, 12), st.sets(st.integers(1, 60), max_size=1), max_size=1),
    page_size=st.integers(1, 6),
)
def test_a_record_that_shows_up_late_pushes_no_other_one_out(
    ids: set[int], late: dict[int, set[int]], page_size: int
) -> None:
    always = set(ids)
    source = Shrinking(ids, page_size=page_size, arriving=late)
    found = read(source)
    if any(len(s.pages) > 1 for s in found):  # a single page tells not whether it was cut
        assert always <= ids_in(found)


def test_a_calm_span_costs_one_count_beside_its_pages() -> None:
    source = Shrinking(set(range(1, 13)), page_size=5)
    assert ids_in(read(source)) == set(range(1, 13))
    assert source.requests == 1 + 3


def test_an_empty_span_is_asked_twice() -> None:
    source = Shrinking(set())
    (only,) = read(source)
    assert (only.count, only.last_id, source.requests) == (0, None, 2)


def test_an_empty_page_at_first_ends_with_the_cursor_behind_the_last_record() -> None:
    source = Shrinking(set(range(1, 8)), page_size=10, spoiled={2: lambda ids: []})
    (only,) = read(source)
    assert (ids_in([only]), only.count, only.last_id) == (set(range(1, 8)), 7, "7")


def test_a_service_that_always_hides_a_row_from_lists_is_refused() -> None:
    hides = {n: lambda ids: [i for i in ids if i != 3] for n in range(20_000)}
    with pytest.raises(DataError, match=r"ids after 2 up to"):
        read(Shrinking(set(range(1, 8)), spoiled=hides))


@pytest.mark.parametrize("page_size", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("unusable", [3, 4, 5, 6, 10])
def test_a_record_without_a_usable_id_keeps_no_other_one_from_being_read(
    page_size: int, unusable: int
) -> None:
    source = Shrinking(set(range(1, 11)), page_size=page_size, unusable=frozenset([unusable]))
    found = read(source)
    assert ids_in(found) == set(range(1, 11)) - {unusable}
    assert {i.payload for s in found for p in s.pages for i in p.rejected} == {b"{%d}" % unusable}


def test_a_record_that_ends_a_page_and_begins_the_next_counts_once() -> None:
    source = Shrinking(set(range(1, 11)), page_size=5, unusable=frozenset([5]))
    (only,) = read(source)
    assert only.count == 10
    assert source.requests == 1 + 3 + 3 + 1, "such a page is asked for three times"


def test_a_page_of_records_without_usable_ids_is_refused() -> None:
    source = Shrinking(set(range(1, 20)), page_size=5, unusable=frozenset(range(6, 14)))
    with pytest.raises(DataError, match="none with a usable id"):
        read(source)


def test_segments_end_at_their_size_and_go_on_after_it() -> None:
    source = Shrinking(set(range(1, 31)), page_size=4)
    found = read(source, rows=10)
    assert [s.last_id for s in found] == ["12", "24", "30"]
    assert [s.count for s in found] == [12, 12, 6]
    assert timedelta(0) <= found[0].pages[0].received_at - AT


@given(st.integers(2, 40), st.integers(1, 12))
def test_what_was_read_before_a_failure_is_handed_over_all_the_same(rows: int, size: int) -> None:
    hidden = rows // 2
    source = Shrinking(set(range(rows)), page_size=size)
    listed: set[int] = set()

    def hide(ids: list[int]) -> list[int]:
        kept = [n for n in ids if n != hidden]
        listed.update(kept)
        return kept

    source.spoiled = dict.fromkeys(range(20_000), hide)
    found: list[Segment] = []
    with pytest.raises(DataError, match=r"counts \d+ records"):
        for segment in segments(source, "tickets", Span()):
            found.append(segment)
    assert ids_in(found) == listed
    assert found[-1].count == 0 and found[-1].last_id is None, "nothing of it is called proven"


def test_a_stretch_that_was_read_again_ends_at_its_last_record() -> None:
    source = Shrinking(set(range(10)), page_size=3)
    source.spoiled = {2: lambda ids: ids[:-1]}
    (segment,) = read(source)
    assert segment.last_id == "9"
    assert segment.count == 10


def test_a_record_that_shows_up_late_pushes_none_out_of_a_single_full_page() -> None:
    source = Shrinking({1, 2, 4, 5, 6}, page_size=5, arriving={2: {3}})
    assert ids_in(read(source)) == {1, 2, 3, 4, 5, 6}
