"""One window of a table: what the source lists of it against what the lake believes.

By counts first. Where they disagree, or on demand, by keys: versions that the source lists and the
lake does not hold are *missing*, and their window is bad; records that the lake believes to be
there and the source does not list are asked for, one by one, for what became of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

from avesa_dagster.errors import DataError, TimedOut
from avesa_dagster.extract.believed import Believed, Missing
from avesa_dagster.extract.proof import segments
from avesa_dagster.sources.base import Rejected, Source, Span, Window

SAMPLE = 10
"""Ids that a finding names at most."""
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_LIST_TRIES = 3
_LOOK_TRIES = 2
_LATE = timedelta(minutes=5)
"""The list of what moved on reaches back so far again: changes show up late."""
_STALE = timedelta(seconds=30)
FEW_DAYS = 4
"""If more days of a window lack something, their whole stretch is named: it is fetched in fewer
requests than each of them."""
_WORTH_A_LIST = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the windows are that are compared at once, and how much is looked into.

    Attributes:
        count_rows: Windows are begun about so large, by what the lake believes.
        list_rows: A window that the source counts more in is halved before its keys are listed.
        looked_up: Records that one verification asks for by their ids, at most.
        moved_pages: Pages read, at most, of the records that changed since.
    """

    count_rows: int = 20_000
    list_rows: int = 5_000
    looked_up: int = 200
    moved_pages: int = 40


@dataclass(frozen=True, slots=True)
class Bad:
    """A window in which the lake lacks what the source shows.

    Attributes:
        window: From the first to the last version that is missing, in whole seconds; a day at
            most, unless much is missing on many days.
        source_count: Records that the source listed in it.
        lake_count: Records that the lake believes to lie in it.
        missing: Versions that the source lists and the lake does not hold.
        ids: Ids of some of them, at most ten.
        reason: In words.
    """

    window: Window
    source_count: int
    lake_count: int
    missing: int
    ids: tuple[str, ...]
    reason: str


@dataclass(slots=True)
class Findings:
    """See `Verified`."""

    bad: list[Bad] = field(default_factory=list)
    moved_on: int = 0
    deleted: int = 0
    deleted_ids: list[str] = field(default_factory=list)
    hidden: int = 0
    undecided: int = 0

    def add(self, other: Findings) -> None:
        self.bad += other.bad
        self.moved_on += other.moved_on
        self.deleted += other.deleted
        self.deleted_ids = [*self.deleted_ids, *other.deleted_ids][:SAMPLE]
        self.hidden += other.hidden
        self.undecided += other.undecided

    def named(self) -> list[Bad]:
        """The bad windows, newest first, without those that lie within another one."""
        kept: list[Bad] = []
        for bad in sorted(self.bad, key=lambda b: b.window.start - b.window.end):
            if not any(_encloses(other.window, bad.window) for other in kept):
                kept.append(bad)
        return sorted(kept, key=lambda b: b.window.start, reverse=True)


@dataclass(frozen=True, slots=True)
class Todo:
    """A window to compare; `by_keys`: whatever the counts say."""

    window: Window
    by_keys: bool

    def halves(self) -> list[Todo]:
        """In two at a whole second, the older one first; none if it is one second."""
        whole = self.window.end - self.window.start
        middle = self.window.start + timedelta(seconds=int(whole.total_seconds() // 2))
        if middle == self.window.start:
            return []
        parts = Window(self.window.start, middle), Window(middle, self.window.end)
        return [Todo(part, self.by_keys) for part in parts]

    @property
    def is_long(self) -> bool:
        return self.window.end - self.window.start > _DAY


class _Fate(Enum):
    """What became of a record that is not listed where the lake believes it to be."""

    THERE = auto()
    GONE = auto()
    HIDDEN = auto()
    UNUSABLE = auto()


class Comparison:
    """Compares windows of one table, one after another.

    Args:
        covered: What was fetched; elsewhere nothing can be lost.
        promised: What changed from here on is the next sync's.
        left: How many requests may still be spent; None: any number.
    """

    def __init__(
        self,
        source: Source,
        believed: Believed,
        table: str,
        *,
        covered: Sequence[Window],
        promised: datetime,
        limits: Limits,
        left: Callable[[], int | None],
    ) -> None:
        self._source = source
        self._believed = believed
        self._table = table
        self._covered = covered
        self._promised = promised
        self._limits = limits
        self._left = left
        self._looked_up = 0
        self._moved_until: datetime | None = None

    def note_moved(self) -> None:
        """Lists the records that changed since the promise, which spares asking for each.

        It only explains, so it may end early, and a list that lacks some does no harm: these are
        asked for.
        """
        now = self._source.now().replace(microsecond=0) + _SECOND
        start = _second(self._promised)
        if self._moved_until is not None:
            start = max(start, self._moved_until - _LATE)
        if start >= now:
            return
        self._moved_until = now
        span = Span(Window(start, now))
        left = self._left()
        pages = self._limits.moved_pages
        try:
            for _ in range(pages if left is None else min(pages, max(1, left // 4))):
                page = self._source.page(self._table, span, ids_only=True)
                self._believed.note_moved(record.record_id for record in page.records)
                if page.last_id is None:
                    break
                span = Span(span.window, after=page.last_id)
        except (DataError, TimedOut):
            return

    def compare(self, todo: Todo) -> tuple[Findings, list[Todo]]:
        """What the window came to; or, if it is to be compared in parts, these, older ones first.

        Raises:
            DataError: The source lists other than it counts, again and again.
        """
        counted, believed = self._counts(todo.window)
        if counted != believed and not todo.by_keys:
            self._catch_up(_STALE)
            counted, believed = self._counts(todo.window)
        if counted == believed and (not todo.by_keys or not counted):
            return Findings(), []
        if counted > self._limits.list_rows and (halves := todo.halves()):
            return Findings(), halves
        return self._by_keys(todo)

    def _counts(self, window: Window) -> tuple[int, int]:
        alive = Span(window, alive=True)
        return self._source.count(self._table, alive), self._believed.count(window)

    def _catch_up(self, age: timedelta) -> None:
        if self._moved_until is None or self._source.now() >= self._moved_until + age:
            self.note_moved()

    def _by_keys(self, todo: Todo) -> tuple[Findings, list[Todo]]:
        findings = Findings()
        rejected = self._list(todo.window)
        missing = self._missing(todo.window)
        if (rejected or missing.undated) and todo.is_long:
            return findings, [Todo(half.window, by_keys=True) for half in todo.halves()]
        unlisted = self._unlisted(todo.window, findings)
        if missing.versions:
            self._name(self._hull(missing, todo.window), findings)
        if rejected:
            findings.bad.append(self._unusable(todo.window, rejected))
        for record_id in unlisted:
            self._look_up(record_id, findings)
        return findings, []

    def _list(self, window: Window) -> list[Rejected]:
        """Lists the window's keys. Returns what in the list is no usable key, again and again."""
        rejected: list[Rejected] = []
        for _ in range(_LIST_TRIES):
            self._believed.begin_list()
            rejected = []
            alive = Span(window, alive=True)
            for segment in segments(self._source, self._table, alive, ids_only=True):
                self._believed.note_listed(r for page in segment.pages for r in page.records)
                rejected += [item for page in segment.pages for item in page.rejected]
            if not rejected:
                break
        return rejected

    def _missing(self, window: Window) -> Missing:
        missing = self._believed.missing(window)
        if missing.versions and self._believed.refresh():  # somebody stores meanwhile
            missing = self._believed.missing(window)
        return missing

    def _hull(self, missing: Missing, window: Window) -> Window:
        """The part of the window that all of what is missing lies in."""
        if missing.undated:
            return window
        days = self._believed.missing_by_day()
        return _around(days[-1][0], days[0][1])

    def _name(self, window: Window, findings: Findings) -> None:
        """Lists the window once more, and names where the lake still lacks something: what moved
        on in between is no loss."""
        self._list(window)
        missing = self._missing(window)
        if not missing.versions:
            return
        parts = [self._hull(missing, window)]
        days = self._believed.missing_by_day()
        if not missing.undated and len(days) <= FEW_DAYS:
            parts = [_around(first, last) for first, last in days]
        for part in parts:
            here = self._believed.missing(part)
            findings.bad.append(
                Bad(
                    window=part,
                    source_count=self._believed.listed(part),
                    lake_count=self._believed.count(part),
                    missing=here.versions,
                    ids=here.ids,
                    reason=_reason(here),
                )
            )

    def _unusable(self, window: Window, rejected: Sequence[Rejected]) -> Bad:
        unique = {item.payload: item.reason for item in rejected}
        return Bad(
            window=window,
            source_count=self._source.count(self._table, Span(window, alive=True)),
            lake_count=self._believed.count(window),
            missing=len(unique),
            ids=(),
            reason=f"{len(unique)} record(s) cannot be taken; the first: {rejected[0].reason}",
        )

    def _unlisted(self, window: Window, findings: Findings) -> list[str]:
        """Counts what is not listed, and returns the ids that are to be asked for."""
        total, _ = self._believed.unlisted(window, 0)
        if total >= _WORTH_A_LIST:
            self._catch_up(timedelta(0))
        most = self._limits.looked_up - self._looked_up
        left = self._left()
        if left is not None:
            most = min(most, left // _LOOK_TRIES)
        total, ids = self._believed.unlisted(window, most)
        findings.moved_on += self._believed.moved(window)
        findings.undecided += total - len(ids)
        return ids

    def _look_up(self, record_id: str, findings: Findings) -> None:
        """Asks what became of a record, and names the window where the lake should have it."""
        self._looked_up += 1
        fate, moment = self._fate(record_id)
        if fate is _Fate.GONE:
            findings.deleted += 1
            findings.deleted_ids.append(record_id)
        elif fate is _Fate.HIDDEN:
            findings.hidden += 1
        elif moment is None:
            findings.undecided += 1
        elif self._is_promised(moment) and not self._believed.holds(record_id, moment):
            self._name(_around(moment, moment), findings)
        else:
            findings.moved_on += 1

    def _fate(self, record_id: str) -> tuple[_Fate, datetime | None]:
        alone = Span(only=record_id, alive=True)
        for _ in range(_LOOK_TRIES):
            page = self._source.page(self._table, alone)
            if page.records:
                return _Fate.THERE, page.records[0].updated_at
            if page.rejected:
                return _Fate.UNUSABLE, None
            if not self._source.exists(self._table, record_id):
                return _Fate.GONE, None
        return _Fate.HIDDEN, None

    def _is_promised(self, moment: datetime) -> bool:
        return moment < self._promised and any(moment in window for window in self._covered)


def _reason(missing: Missing) -> str:
    if missing.closed == missing.versions:
        return "the lake holds these records as deleted"
    if missing.closed:
        return f"the lake lacks these versions, and holds {missing.closed} of them as deleted"
    return "the lake lacks these versions"


def _around(first: datetime, last: datetime) -> Window:
    """The whole seconds from the one of `first` to the one of `last`."""
    return Window(_second(first), _second(last) + _SECOND)


def _second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _encloses(outer: Window, inner: Window) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end
