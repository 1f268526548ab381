"""Does the lake hold what the source shows? Names the windows that are to be fetched again.

A source shows only its present: a window of change times holds the records whose *latest* change
lies in it. The lake's counterpart is what it believes to be present (`believed`). Both are compared
only as far as the live sync has promised; what changed later is the next sync's. So a record that
moves on, is deleted or shows up while all of this goes on raises no alarm, and what the lake lacks
is found.

Equal counts do not prove equal sets: a loss and a deletion in one window hide each other until its
keys are compared. And what changed at the source without a new change time is never seen here:
that takes the payloads, and so a fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from avesa_dagster.errors import AvesaError, DataError, RetriableError, Stopped, TimedOut
from avesa_dagster.extract.believed import Believed
from avesa_dagster.extract.comparison import Bad, Comparison, Findings, Limits, Todo
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Cancelled, Source, Window

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Unsure:
    """A window that could not be compared, and why."""

    window: Window
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a comparison of one table found.

    Attributes:
        asked: The range that was asked for, up to what is promised.
        compared: What was compared, newest first; holes in the coverage are not.
        bad: Newest first.
        unsure: Windows of which the source says now this, now that; newest first.
        moved_on: Records that were looked into and changed since: no loss.
        deleted_unseen: Records that the source does not have any more: the next sweep's.
        deleted_ids: Ids of some of them, at most ten.
        hidden: Records that the source has and does not list: a permission, most likely.
        undecided: Records that the source does not list where the lake believes them, and of which
            it was not asked what became of them: too many; or they state no change time now.
        requests: Requests spent.
        reached: From here to the end of the range everything was compared; `end=reached` goes on.
        complete: The whole range was.
        error: What ended it early, if that can pass; None too if a limit did.
    """

    tenant: str
    service: str
    table: str
    asked: Window
    compared: tuple[Window, ...]
    bad: tuple[Bad, ...]
    unsure: tuple[Unsure, ...]
    moved_on: int
    deleted_unseen: int
    deleted_ids: tuple[str, ...]
    hidden: int
    undecided: int
    requests: int
    reached: datetime
    complete: bool
    error: AvesaError | None = None

    @property
    def agrees(self) -> bool:
        """Something was compared, all that was asked for, and the lake lacks nothing of it."""
        return self.complete and bool(self.compared) and not (self.bad or self.unsure)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a comparison is, said after each window.

    Attributes:
        left: Windows that are still to be compared; halving makes more.
    """

    table: str
    window: Window
    done: int
    left: int
    bad: int
    requests: int


def verify(
    source: Source,
    objects: Objects,
    *,
    tenant: str,
    service: str,
    table: str,
    start: datetime,
    end: datetime,
    covered: Sequence[Window],
    promised: datetime,
    keys: bool = False,
    max_requests: int | None = None,
    cancelled: Cancelled = lambda: False,
    report: Callable[[Step], None] = lambda step: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Verified:
    """Compares a table in [start, end), newest window first.

    Args:
        covered: What was fetched, as the ledger said before this is called. Only this is compared:
            what was never fetched is a hole, not a loss.
        promised: Everything that changed before it has been asked for, however late it showed up:
            the watermark less the overlap. Nothing from there on is compared.
        keys: Compare the keys of every window, not only of those whose counts disagree.
        max_requests: No window is begun once so many are spent; the one under way is finished. One
            is compared in any case, so that whoever goes on where it ended comes to an end.
        cancelled: Ends it in the same way.

    Raises:
        FatalError: The service refuses, and will go on to.
        StoreError: Raw cannot be read.
    """
    asked = Window(start, max(start, min(end, _floor(promised))))
    known = joined(covered)
    believed = Believed(objects, tenant, service, table)
    before = source.requests

    def left() -> int | None:
        return None if max_requests is None else max(0, max_requests - source.requests + before)

    try:
        comparison = Comparison(
            source, believed, table, covered=known, promised=promised, limits=limits, left=left
        )
        rows = limits.list_rows if keys else limits.count_rows
        todo = [Todo(window, keys) for window in _begun(believed, known, asked, rows)]
        walk = _Walk(comparison, todo, lambda: left() == 0 or cancelled())
        for window in walk:
            bad, requests = len(walk.findings.bad), source.requests - before
            report(Step(table, window, walk.done, len(walk.todo), bad, requests))
    finally:
        believed.close()
    found = walk.findings
    return Verified(
        tenant=tenant,
        service=service,
        table=table,
        asked=asked,
        compared=tuple(reversed(joined(walk.compared))),
        bad=tuple(found.named()),
        unsure=tuple(walk.unsure),
        moved_on=found.moved_on,
        deleted_unseen=found.deleted,
        deleted_ids=tuple(found.deleted_ids),
        hidden=found.hidden,
        undecided=found.undecided,
        requests=source.requests - before,
        reached=walk.todo[-1].window.end if walk.todo else asked.start,
        complete=not walk.todo,
        error=walk.error,
    )


def joined(windows: Sequence[Window]) -> list[Window]:
    """The windows' union, oldest first: those that touch or overlap are one."""
    union: list[Window] = []
    for window in sorted(windows, key=lambda w: w.start):
        if union and window.start <= union[-1].end:
            union[-1] = Window(union[-1].start, max(union[-1].end, window.end))
        else:
            union.append(window)
    return union


class _Walk:
    """From the newest window to the oldest; iterating yields each that was dealt with.

    Attributes:
        todo: What is left, the newest last.
    """

    def __init__(
        self, comparison: Comparison, todo: list[Todo], enough: Callable[[], bool]
    ) -> None:
        self.findings = Findings()
        self.compared: list[Window] = []
        self.unsure: list[Unsure] = []
        self.error: AvesaError | None = None
        self.todo = todo
        self._comparison = comparison
        self._enough = enough

    @property
    def done(self) -> int:
        return len(self.compared) + len(self.unsure)

    def __iter__(self) -> Iterator[Window]:
        try:
            if self.todo:
                self._comparison.note_moved()
            while self.todo and not (self.done and self._enough()):
                todo = self.todo[-1]
                halves = self._one(todo)
                self.todo[-1:] = halves
                if not halves:
                    yield todo.window
        except RetriableError as error:
            self.error = error
        except Stopped:
            return

    def _one(self, todo: Todo) -> list[Todo]:
        """Deals with a window; or, if that is to be done in parts, returns them."""
        try:
            findings, halves = self._comparison.compare(todo)
        except TimedOut:
            halves = todo.halves()
            if not halves:
                raise
            return halves
        except DataError as error:
            self.unsure.append(Unsure(todo.window, error.what))
            return []
        if not halves:
            self.findings.add(findings)
            self.compared.append(todo.window)
        return halves


def _begun(
    believed: Believed, covered: Sequence[Window], asked: Window, rows: int
) -> Iterator[Window]:
    """What is covered of the range, oldest first, in windows of about so many rows each."""
    for window in covered:
        start, end = max(window.start, asked.start), min(window.end, asked.end)
        if start < end:
            yield from reversed(_cut(Window(start, end), believed.days(Window(start, end)), rows))


def _cut(window: Window, days: Sequence[tuple[datetime, int]], rows: int) -> list[Window]:
    """The window, cut at midnights before a part would hold more rows; newest first."""
    parts = []
    end, held = window.end, 0
    for day, count in days:
        edge = day.astimezone(UTC) + _DAY
        if held and held + count > rows and edge < end:
            parts.append(Window(edge, end))
            end, held = edge, 0
        held += count
    return [*parts, Window(window.start, end)]


def _floor(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
