"""The rules of the request budget over one document a key: who may go when.

Pure functions, for a store that is a round trip away: a process visits it, says what its requests
did and how many more wait, and takes the slots that fall to it within a short horizon, each with
the time from which it holds. What the rules mean stands in `sources.budget`.

Times are integer microseconds of the store's clock.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from avesa_dagster.sources.budget_queue import Pace, Window

BUCKETS = 128
"""In a window: slots of requests that ended together are counted together, and none is free
earlier than it would be alone."""


class Ended(NamedTuple):
    """Slots of requests that ended, free after `bucket` of 1/BUCKETS of a window."""

    bucket: int
    live: bool
    burst: bool
    owner: str
    number: int


class Granted(NamedTuple):
    """The slot of a request that is to be made, or is under way. It is given up at `free_at`."""

    id: str
    free_at: int
    live: bool
    burst: bool
    owner: str


class Waiting(NamedTuple):
    """A process's requests of one class that wait, the first since `since`; forgotten at `until`
    if the process does not come again."""

    owner: str
    live: bool
    number: int
    since: int
    until: int


@dataclass(slots=True)
class Schedule:
    """What is known of one key."""

    paused_until: int = 0
    announced: int | None = None
    announced_until: int = 0
    live_at: int | None = None
    pace: tuple[int, float] | None = None
    live_pace: tuple[int, float] | None = None
    ended: list[Ended] = field(default_factory=list)
    granted: list[Granted] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that waits.

    Attributes:
        since: When it was first asked for.
        known: The store has heard of it.
        limit: Requests a window, as configured.
        reserve: Share of the limit that a backfill leaves while live requests are made.
        spare: Nobody asks yet, but likely will in a moment: granted only if nobody waits.
    """

    id: str
    live: bool
    since: int
    known: bool
    limit: int
    reserve: float
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """What a process says when it comes.

    Attributes:
        ended: Its requests that ended since it came last: (id, live, burst, when).
        returned: Ids of its slots that were not used.
        wishes: All of its requests that wait now.
    """

    owner: str
    ended: Sequence[tuple[str, bool, bool, int]] = ()
    returned: frozenset[str] = frozenset()
    wishes: Sequence[Wish] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Granted: the request may be made from `at` on. Else: look again at `at`."""

    granted: bool
    burst: bool
    at: int


@dataclass(frozen=True, slots=True)
class Terms:
    """Durations in microseconds.

    Attributes:
        horizon: How far ahead slots are granted.
        late: A waiting process that is later than this is passed over.
    """

    window: Window
    horizon: int
    late: int

    @property
    def keeps(self) -> int:
        """For so long a slot may be begun to be used after it is due."""
        return 2 * self.horizon

    @property
    def bucket(self) -> int:
        return max(1, self.window.length // BUCKETS)


def visit(schedule: Schedule, terms: Terms, said: Visit, now: int) -> dict[str, Answer]:
    """Changes the schedule by what a process said; answers each of its wishes by its id, but for
    spare ones that are not granted."""
    forget_old(schedule, terms, now)
    _take_back(schedule, terms, said)
    schedule.waiting = [w for w in schedule.waiting if w.owner != said.owner]
    if any(wish.live and not wish.spare for wish in said.wishes):
        schedule.live_at = now
    ordered = sorted(said.wishes, key=lambda wish: (wish.spare, not wish.live, wish.since))
    answers: dict[str, Answer] = {}
    refused: list[Wish] = []
    for wish in ordered:
        if wish.spare and (refused or schedule.waiting):
            break
        answer = _answer(schedule, terms, said.owner, wish, refused, now)
        if wish.spare and not answer.granted:
            break
        answers[wish.id] = answer
        if not answer.granted:
            refused.append(wish)
    for live in (True, False):
        own = [wish for wish in refused if wish.live is live]
        if own:
            until = max(answers[wish.id].at for wish in own) + terms.late
            schedule.waiting.append(Waiting(said.owner, live, len(own), own[0].since, until))
    return answers


def pause(schedule: Schedule, until: int) -> None:
    """Nothing is granted before `until`; then evenly: all at once would bring the next 429."""
    schedule.paused_until = max(schedule.paused_until, until)
    for live in (True, False):
        next_at, _ = _saved(schedule, live) or (until, 0.0)
        _save(schedule, live, Pace(max(next_at, until), 0.0))


def forget_old(schedule: Schedule, terms: Terms, now: int) -> None:
    """Removes what no longer matters: free slots, and processes that did not come again."""
    schedule.ended = [e for e in schedule.ended if e.bucket * terms.bucket >= now]
    schedule.granted = [g for g in schedule.granted if g.free_at >= now]
    schedule.waiting = [w for w in schedule.waiting if w.until >= now]


def in_force(schedule: Schedule, limit: int, now: int) -> int:
    """The limit: the announced one if it is lower and still holds."""
    if schedule.announced is not None and schedule.announced_until > now:
        return min(limit, schedule.announced)
    return limit


class Taken(NamedTuple):
    """How many slots are taken."""

    all: int
    live: int
    burst: int


def taken(schedule: Schedule) -> Taken:
    """Of a schedule from which what is old was removed."""
    used = live = burst = 0
    for ended in schedule.ended:
        used += ended.number
        live += ended.number * ended.live
        burst += ended.number * ended.burst
    for granted in schedule.granted:
        used, live, burst = used + 1, live + granted.live, burst + granted.burst
    return Taken(used, live, burst)


def _take_back(schedule: Schedule, terms: Terms, said: Visit) -> None:
    over = said.returned | {ended[0] for ended in said.ended}
    schedule.granted = [granted for granted in schedule.granted if granted.id not in over]
    counts = {slot[:-1]: slot.number for slot in schedule.ended}
    for _, live, burst, at in said.ended:
        free_at = at + terms.window.length + terms.window.margin
        slot = (-(-free_at // terms.bucket), live, burst, said.owner)
        counts[slot] = counts.get(slot, 0) + 1
    schedule.ended = [Ended(*slot, counts[slot]) for slot in sorted(counts)]


def _answer(
    schedule: Schedule, terms: Terms, owner: str, wish: Wish, before: Sequence[Wish], now: int
) -> Answer:
    """Grants one wish, or says when to look again.

    Args:
        before: The process's own wishes that go before it and were not granted.
    """
    window, limit = terms.window, in_force(schedule, wish.limit, now)
    used = taken(schedule)
    gap = window.length / max(1, limit - used.burst)
    live_ahead, own_ahead = _ahead(schedule, owner, wish, before)
    ahead = live_ahead + own_ahead
    pace = _pace(schedule, wish.live, now, limit)
    if not wish.known and ahead == 0:
        pace.rest(now, limit, window.length)
    due = max(now, schedule.paused_until, pace.due(ahead, gap))
    if used.all + ahead >= limit:
        due = max(due, _freed(schedule, terms, used.all + ahead - limit, now))
    live_at = schedule.live_at
    if not wish.live and live_at is not None and live_at + window.length > now:
        kept = min(max(1, round(limit * wish.reserve)), limit - 1) if wish.reserve else 0
        over = used.all - used.live + own_ahead - (limit - kept)
        if over >= 0:
            freed = _freed(schedule, terms, over, now, backfill_only=True)
            due = max(due, min(freed, live_at + window.length))
    burst = False
    if granted := due <= now + terms.horizon:
        burst = pace.step(due, gap, limit)
        free_at = due + terms.keeps + window.longest_request + window.length + window.margin
        schedule.granted.append(Granted(wish.id, free_at, wish.live, burst, owner))
        if wish.live:  # live requests go at a pace of their own, and slow the others'
            other = _pace(schedule, False, now, limit)
            other.step(due, gap, limit)
            _save(schedule, False, other)
    _save(schedule, wish.live, pace)
    if granted:
        return Answer(True, burst, due)
    # In time to take the slot before it is due, so that the round trip costs nothing.
    return Answer(False, False, min(due - terms.horizon // 2, now + window.look_again))


def _ahead(schedule: Schedule, owner: str, wish: Wish, before: Sequence[Wish]) -> tuple[int, int]:
    """How many waiting requests go first: (live before a backfill, of its own class).

    Of one class, the process goes first that has the fewest slots: the n-th waiting request of a
    process counts as if the n - 1 before it were granted. So processes get equal shares, however
    many threads each has.
    """
    slots: dict[str, int] = {}
    for ended in schedule.ended:
        if ended.live == wish.live:
            slots[ended.owner] = slots.get(ended.owner, 0) + ended.number
    for granted in schedule.granted:
        if granted.live == wish.live:
            slots[granted.owner] = slots.get(granted.owner, 0) + 1
    own = sum(other.live == wish.live for other in before)
    live_ahead = sum(other.live > wish.live for other in before)
    turn = slots.get(owner, 0) + own + 1
    for other in schedule.waiting:
        if other.live > wish.live:
            live_ahead += other.number
        elif other.live == wish.live:
            first = (other.since, other.owner) < (wish.since, owner)
            turns = turn - slots.get(other.owner, 0) - (0 if first else 1)
            own += min(other.number, max(0, turns))
    return live_ahead, own


def _freed(
    schedule: Schedule, terms: Terms, count: int, now: int, *, backfill_only: bool = False
) -> int:
    """When one slot more than `count` of those taken now will be free."""
    times = [
        (ended.bucket * terms.bucket, ended.number)
        for ended in schedule.ended
        if not (backfill_only and ended.live)
    ]
    times += [(g.free_at, 1) for g in schedule.granted if not (backfill_only and g.live)]
    times.sort()
    total, totals = 0, []
    for _, more in times:
        total += more
        totals.append(total)
    place = bisect_right(totals, count)
    if place == len(times):
        return now + max(terms.window.look_again, terms.horizon + 1)
    return times[place][0] + 1


def _saved(schedule: Schedule, live: bool) -> tuple[int, float] | None:
    return schedule.live_pace if live else schedule.pace


def _pace(schedule: Schedule, live: bool, now: int, limit: int) -> Pace:
    saved = _saved(schedule, live)
    pace = Pace(now, math.inf) if saved is None else Pace(*saved)  # never seen: idle for ever
    pace.cut(limit)
    return pace


def _save(schedule: Schedule, live: bool, pace: Pace) -> None:
    if live:
        schedule.live_pace = (pace.next_at, pace.burst)
    else:
        schedule.pace = (pace.next_at, pace.burst)
