"""The request budget shared by processes on different hosts: a DynamoDB item for each key.

It keeps the promises of `sources.budget` with the same rules (`budget_schedule`): a slot is free
one window after the response ended, so whatever the service counts by, no window of its own holds
more than the limit.

**One visit serves many requests.** The threads of a process wait in one queue a key. Whoever wakes
first visits the item for all of them: reports what ended, and takes the slots that fall to the
process within the next moments (`horizon`), each with the time from which it holds. So a slot is
there before it is due, and the round trip costs no throughput. While nobody waits, a busy process
takes slots in advance, as many as it used lately within such a moment, so that its next requests
need no visit; what it did not use, it returns. What ended is told with the next visit, or after a
second.

**The clock** is the store's own, as bounds (`store_clock`): a slot's end is noted by the upper one,
what is free is judged by the lower one. Hosts' clocks may be wrong by any amount; the uncertainty
costs throughput, never the limit. It is as wide as a round trip and 1/500 of the window.

**A process that was killed** leaves slots that are given up after `longest_request` and a window.
A response of DynamoDB that was lost does no harm: the visit is recognised as done. If an item
cannot be read, it is replaced, and nothing is granted for one window.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import msgspec

from avesa_dagster.control.base import BudgetUse
from avesa_dagster.control.dynamo_database import Key, Row, dynamo_client
from avesa_dagster.control.dynamo_document import DOCUMENT, packed, unpacked
from avesa_dagster.control.dynamo_tables import BUDGETS, Table
from avesa_dagster.errors import ConfigurationError, RetriableError, Stopped, StoreError
from avesa_dagster.sources.budget import check_limit
from avesa_dagster.sources.budget_queue import Window
from avesa_dagster.sources.budget_schedule import (
    Answer,
    Schedule,
    Terms,
    Visit,
    Wish,
    forget_old,
    in_force,
    pause,
    taken,
    visit,
)
from avesa_dagster.sources.store_clock import MICROS, Clock, StoreClock

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_schedule = msgspec.json.Decoder(Schedule)
_DAY = 86_400.0
_SHORTEST_NAP = 1e-4
"""Seconds: a clock of floats does not move by less than it can tell."""


class Items(Protocol):
    """What a budget needs of `DynamoDatabase`."""

    def get(self, table: Table, key: Key) -> Row | None: ...

    def change(
        self, table: Table, key: Key, change: Callable[[Row | None], Mapping[str, Any] | None]
    ) -> Row | None: ...

    def remove(self, table: Table, keys: list[Key]) -> int: ...


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request of this process; moments by the budget's clock.

    Attributes:
        at: If granted, when it may be made; else when to look again.
        known: The store has heard of it.
    """

    id: str
    live: bool
    limit: int
    reserve: float
    asked: float
    at: float
    granted: bool = False
    burst: bool = False
    known: bool = False
    woken: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False, slots=True)
class _Queue:
    """What this process does with one key. `visiting` is held during a visit; without it, one may
    only append to `ended`.

    Attributes:
        tickets: Of requests that wait.
        returned: Ids of slots that are not used.
        spares: Slots taken in advance.
    """

    key: str
    visiting: threading.Lock = field(default_factory=threading.Lock)
    tickets: list[_Ticket] = field(default_factory=list)
    ended: list[tuple[_Ticket, float]] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    spares: list[_Ticket] = field(default_factory=list)
    visited_at: float = -math.inf
    begun: int = 0
    """Requests since then."""

    def untold(self) -> bool:
        """Whether the store does not know yet what happened."""
        return bool(self.ended or self.returned)


class DynamoBudget:
    """Implements Budget over the table Budgets. Makes no call before it is used.

    Args:
        database: The installation's tables.
        window: Seconds over which the service counts.
        reserve: Share of the limit kept for live requests, at least 1 request unless it is 0; at a
            limit of 1 there is nothing to keep.
        longest_request: Seconds after which a request that has not ended is given up: its process
            died. Must exceed the timeout of a request, or the limit may be broken.
        announced_for: Seconds for which an announced limit holds.
        owner: Who asks, for equal shares; None: this process.
        linger: Seconds for which the end of a request may stay untold; 0: it is told at once, and
            no slot is taken in advance.
        clock: The store's clock; None: learnt from its answers.
        sleep: Waits so many seconds; None: until woken.
    """

    _reporter: threading.Thread | None

    def __init__(
        self,
        database: Items,
        *,
        window: float = 60.0,
        reserve: float = 0.1,
        longest_request: float = 300.0,
        announced_for: float = 600.0,
        owner: str | None = None,
        linger: float = 1.0,
        clock: Clock | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._database = database
        self._terms = Terms(
            Window(
                length=round(window * MICROS),
                margin=round(window * MICROS / 2000) + 1,
                longest_request=round(longest_request * MICROS),
                look_again=round(min(1.0, window / 20) * MICROS),
            ),
            horizon=round(min(0.3, window / 30) * MICROS),
            late=MICROS // 4,
        )
        self._keeps = self._terms.keeps / MICROS
        self._reserve = reserve
        self._announced_for = round(announced_for * MICROS)
        self._owner = owner
        self._linger = linger
        self._clock = StoreClock(window / 1000) if clock is None else clock
        self._now = self._clock.moment
        self._sleep = sleep
        self._begin_process()
        if linger:
            atexit.register(_close, weakref.ref(self))

    def request(
        self,
        key: str,
        limit: int,
        *,
        live: bool = False,
        reserve: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[None]:
        """See Budget.request."""
        check_limit(key, limit)
        kept = self._reserve if reserve is None else reserve
        return self._request(key, limit, live, kept, cancelled)

    def pause(self, key: str, seconds: float) -> None:
        """See Budget.pause."""
        if math.isnan(seconds):
            raise ConfigurationError(f"a pause of {seconds} seconds for {key}")
        length = round(min(max(seconds, 0.0), _DAY) * MICROS)
        self._change(key, lambda schedule, now, latest: pause(schedule, latest + length))

    def announce(self, key: str, limit: int) -> None:
        """See Budget.announce."""
        check_limit(key, limit)

        def change(schedule: Schedule, now: int, latest: int) -> None:
            schedule.announced = limit
            schedule.announced_until = latest + self._announced_for

        self._change(key, change)

    def use(self, key: str, limit: int) -> BudgetUse:
        """See Budget.use. Of other processes, as they last said."""
        check_limit(key, limit)
        self._report(self._queue(key))
        with self._told(key):
            row = self._database.get(BUDGETS, (key,))
        now, _ = self._clock.at(self._now())
        schedule = self._read(row, now)
        forget_old(schedule, self._terms, now)
        used = taken(schedule)
        waiting = sum(one.number for one in schedule.waiting)
        until = None
        if schedule.paused_until > now:
            until = datetime.now(UTC) + timedelta(microseconds=schedule.paused_until - now)
        extra = {
            "live": str(used.live),
            "backfill": str(used.all - used.live),
            "waiting": str(waiting),
        }
        return BudgetUse(in_force(schedule, limit, now), used.all, until, extra)

    def forget(self, key: str) -> int:
        """Removes all that is known of a key; returns how many rows. A request under way still
        leaves its slot when it ends."""
        with self._told(key):
            if self._database.get(BUDGETS, (key,)) is None:
                return 0
            return self._database.remove(BUDGETS, [(key,)])

    def close(self) -> None:
        """Tells the store what it does not know yet; a later call goes on."""
        for queue in self._all_queues():
            with queue.visiting:
                self._return_spares(queue, math.inf)
            self._report(queue)

    @contextmanager
    def _request(
        self,
        key: str,
        limit: int,
        live: bool,
        reserve: float,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[None]:
        queue, now = self._queue(key), self._now()
        ticket = _Ticket(secrets.token_hex(4), live, limit, reserve, now, now)
        try:
            self._wait(queue, ticket, cancelled)
        except BaseException:
            self._leave(queue, ticket)
            raise
        try:
            yield
        finally:
            queue.ended.append((ticket, self._now()))
            self._report_in_time(queue)

    def _wait(self, queue: _Queue, ticket: _Ticket, cancelled: Callable[[], bool] | None) -> None:
        with queue.visiting:
            queue.begun += 1
            if not self._take_spare(queue, ticket):
                # Whoever waits already, and goes first, will ask for this one too.
                first = [one.at for one in queue.tickets if one.live >= ticket.live]
                ticket.at = max([ticket.at, *first])
                queue.tickets.append(ticket)
        while True:
            if cancelled is not None and cancelled():
                raise Stopped(f"cancelled while waiting for the request budget of {queue.key}")
            if not ticket.granted and self._now() >= ticket.at:
                with queue.visiting:
                    if not ticket.granted and self._now() >= ticket.at:
                        self._visit(queue)
            rest = ticket.at - self._now()
            if rest > 0:
                self._nap(ticket, rest if cancelled is None else min(rest, 0.1))
            elif ticket.granted:
                return

    def _take_spare(self, queue: _Queue, ticket: _Ticket) -> bool:
        """Gives a slot that was taken in advance to a request. The caller holds `visiting`."""
        self._return_spares(queue, self._now() - self._keeps)
        for spare in queue.spares:
            asked = (spare.live, spare.limit, spare.reserve)
            if asked == (ticket.live, ticket.limit, ticket.reserve):
                queue.spares.remove(spare)
                ticket.id, ticket.at, ticket.burst = spare.id, spare.at, spare.burst
                ticket.granted = ticket.known = True
                return True
        return False

    def _return_spares(self, queue: _Queue, due_before: float) -> None:
        over = [spare for spare in queue.spares if spare.at < due_before]
        queue.spares = [spare for spare in queue.spares if spare.at >= due_before]
        queue.returned += [spare.id for spare in over]

    def _spares(self, queue: _Queue, now: float) -> list[_Ticket]:
        """What to ask for in advance: as much as was used lately within the horizon."""
        if not self._linger or not queue.tickets:
            return []
        last, horizon = queue.tickets[-1], self._terms.horizon / MICROS
        number = queue.begun * horizon / max(now - queue.visited_at, horizon)
        return [
            _Ticket(secrets.token_hex(4), last.live, last.limit, last.reserve, now, now)
            for _ in range(math.floor(number) - len(queue.spares))
        ]

    def _nap(self, ticket: _Ticket, seconds: float) -> None:
        seconds = max(seconds, _SHORTEST_NAP)
        if self._sleep is not None:
            self._sleep(seconds)
        elif ticket.granted:
            time.sleep(seconds)
        else:
            ticket.woken.wait(seconds)

    def _leave(self, queue: _Queue, ticket: _Ticket) -> None:
        """A request that is not made after all."""
        with queue.visiting:
            if ticket in queue.tickets:
                queue.tickets.remove(ticket)
            if ticket.granted:
                queue.returned.append(ticket.id)
            told = not (ticket.granted or ticket.known)
        if not told:
            self._report(queue, whole=True)

    def _visit(self, queue: _Queue) -> None:
        """Tells the store all, and takes what it grants. The caller holds `visiting`."""
        now = self._now()
        self._return_spares(queue, now - self._keeps)
        ended, returned, spares = queue.ended[:], queue.returned[:], self._spares(queue, now)

        def wish(ticket: _Ticket, spare: bool) -> Wish:
            since, _ = self._clock.at(ticket.asked)
            t = ticket
            return Wish(t.id, t.live, since, t.known, t.limit, t.reserve, spare)

        def change(schedule: Schedule, now: int, latest: int) -> dict[str, Answer]:
            said = Visit(
                self._own,
                [(t.id, t.live, t.burst, self._clock.at(when)[1]) for t, when in ended],
                frozenset(returned),
                [*(wish(t, False) for t in queue.tickets), *(wish(t, True) for t in spares)],
            )
            return visit(schedule, self._terms, said, now)

        answers = self._change(queue.key, change)
        del queue.ended[: len(ended)], queue.returned[: len(returned)]
        now = queue.visited_at = self._now()
        queue.begun = 0
        earliest, _ = self._clock.at(now)
        for ticket in (*queue.tickets, *spares):
            answer = answers.get(ticket.id)
            if answer is None:
                continue
            ticket.known, ticket.granted, ticket.burst = True, answer.granted, answer.burst
            # By the lower bound of the store's clock: the slot is surely free then.
            ticket.at = now + (answer.at - earliest) / MICROS
            if ticket.granted:
                ticket.woken.set()
        queue.tickets = [ticket for ticket in queue.tickets if not ticket.granted]
        queue.spares += [spare for spare in spares if spare.granted]

    def _report(self, queue: _Queue, *, whole: bool = False) -> None:
        """Tells the store what ended. If it cannot be told, slots stay taken for longer.

        Args:
            whole: Also that nobody of this process waits any more.
        """
        if not (whole or queue.untold()):
            return
        try:
            with queue.visiting:
                if whole or queue.untold():
                    self._visit(queue)
        except (StoreError, ConfigurationError) as error:
            # Safe: the slots stay taken. Raising would lose the response that came.
            _log.warning("requests of %s ended unrecorded: %s", queue.key, error)

    def _report_in_time(self, queue: _Queue) -> None:
        if self._linger == 0:
            if not queue.tickets:  # who waits will tell it
                self._report(queue)
            return
        with self._lock:
            if self._reporter is None or not self._reporter.is_alive():
                self._reporter = threading.Thread(
                    target=_report_for, args=(weakref.ref(self), self._linger), daemon=True
                )
                self._reporter.start()

    def _report_all(self) -> bool:
        """Whether the reporter is needed further."""
        for queue in self._all_queues():
            with queue.visiting:
                self._return_spares(queue, self._now() - self._keeps)
            if not queue.tickets:
                self._report(queue)
        with self._lock:
            if any(queue.untold() or queue.spares for queue in self._queues.values()):
                return True
            self._reporter = None
            return False

    def _change(self, key: str, change: Callable[[Schedule, int, int], _Result]) -> _Result:
        """Changes the key's schedule; atomic between processes. `change` is given the bounds of
        the present and may be called several times."""
        results: list[_Result] = []

        def attributes(row: Row | None) -> Mapping[str, Any]:
            now, latest = self._clock.at(self._now())
            schedule = self._read(row, now)
            results.append(change(schedule, now, latest))
            return {DOCUMENT: packed(f"the budget of {key}", schedule)}

        with self._told(key):
            self._database.change(BUDGETS, (key,), attributes)
        return results[-1]

    def _read(self, row: Row | None, now: int) -> Schedule:
        if row is None:
            return Schedule()
        try:
            return unpacked(_schedule, row)
        except StoreError as error:
            _log.warning("%s; replaced it, requests wait for one window", error.what)
            schedule = Schedule()
            pause(schedule, now + self._terms.window.length + self._terms.window.margin)
            return schedule

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Around calls of the store: learns its clock, and says that no request may be made."""
        if isinstance(self._clock, StoreClock):
            self._clock.watch(dynamo_client())
        try:
            yield
        except RetriableError as error:
            raise StoreError(
                f"the budget of {key} cannot be read or written: {error.what}",
                hint="no request was made; run it again",
            ) from error

    def _queue(self, key: str) -> _Queue:
        if self._pid != os.getpid():  # forked, perhaps while another thread had a lock
            self._begin_process()
        with self._lock:
            return self._queues.setdefault(key, _Queue(key))

    def _all_queues(self) -> list[_Queue]:
        if self._pid != os.getpid():
            self._begin_process()
        with self._lock:
            return list(self._queues.values())

    def _begin_process(self) -> None:
        self._pid = os.getpid()
        self._own = secrets.token_hex(4) if self._owner is None else self._owner
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._reporter = None


def _close(budget: weakref.ref[DynamoBudget]) -> None:
    itself = budget()
    if itself is not None:
        itself.close()


def _report_for(budget: weakref.ref[DynamoBudget], linger: float) -> None:
    """The reporter's thread: tells what nobody else told, until all is told."""
    needed = True
    while needed:
        time.sleep(linger)
        itself = budget()
        needed = itself is not None and itself._report_all()
        del itself
