"""What the tests of the budgets share: virtual time, and budgets on it."""

from __future__ import annotations

import heapq
import itertools
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avesa_dagster.conformance.ground import make_tables
from avesa_dagster.control.dynamo_database import DynamoDatabase, Key, Row
from avesa_dagster.control.dynamo_tables import BUDGETS, Table
from avesa_dagster.sources.budget import Budget, SqliteBudget
from avesa_dagster.sources.dynamo_budget import DynamoBudget
from avesa_dagster.sources.store_clock import Clock
from avesa_dagster_tests.control.conftest import environment_of

KEY = "connectwise/acme"
KINDS = ("sqlite", "dynamodb")


class VirtualTime:
    """Threads that sleep in virtual time and run one at a time, in order of their waking."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self._order = itertools.count()
        self._sleeping: list[tuple[float, int, threading.Event]] = []
        self._parked = threading.Semaphore(0)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        event = threading.Event()
        heapq.heappush(self._sleeping, (self.now + seconds, next(self._order), event))
        self._parked.release()
        event.wait()

    def run(self, bodies: list[Callable[[], None]]) -> None:
        """Runs the bodies to their end, each as a thread."""
        failures: list[BaseException] = []

        def thread(body: Callable[[], None]) -> None:
            try:
                self.sleep(0)
                body()
            except BaseException as error:  # noqa: BLE001 - handed to the test below
                failures.append(error)
            self._parked.release()

        threads = [threading.Thread(target=thread, args=(b,), daemon=True) for b in bodies]
        for one in threads:
            one.start()
            self._parked.acquire()
        while self._sleeping:
            at, _, event = heapq.heappop(self._sleeping)
            self.now = max(self.now, at)
            event.set()
            self._parked.acquire()
        for one in threads:
            one.join()
        if failures:
            raise failures[0]


@dataclass
class HostClock:
    """A store's clock as one host knows it: within `bounds` seconds of the truth. The host's own
    clock is wrong by `ahead`."""

    time: VirtualTime
    ahead: float = 0.0
    bounds: tuple[float, float] = (0.0, 0.0)

    def moment(self) -> float:
        return self.time.now + self.ahead

    def at(self, moment: float) -> tuple[int, int]:
        truth = moment - self.ahead
        return round((truth - self.bounds[0]) * 1e6), round((truth + self.bounds[1]) * 1e6)


class MemoryItems:
    """The items of a `DynamoBudget` in memory: no round trip takes virtual time."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.visits = 0

    def get(self, table: Table, key: Key) -> Row | None:
        return self.rows.get(key)

    def change(
        self, table: Table, key: Key, change: Callable[[Row | None], Mapping[str, Any] | None]
    ) -> Row | None:
        self.visits += 1
        attributes = change(self.rows.get(key))
        if attributes is not None:
            self.rows[key] = Row(table.name, key, attributes)
        return self.rows.get(key)

    def remove(self, table: Table, keys: list[Key]) -> int:
        for key in keys:
            self.rows.pop(key, None)
        return len(keys)


@dataclass
class World:
    """Workers of several budgets, as of so many processes, on one file or item."""

    kind: str
    path: Path
    time: VirtualTime = field(default_factory=VirtualTime)
    done: list[tuple[float, float, bool]] = field(default_factory=list)
    items: MemoryItems = field(default_factory=MemoryItems)

    def budget(self, *, owner: int | None = None, **options: Any) -> Budget:
        if self.kind == "sqlite":
            return self.sqlite(owner=owner, **options)
        return self.dynamo(owner=None if owner is None else str(owner), **options)

    def dynamo(self, *, clock: Clock | None = None, **options: Any) -> DynamoBudget:
        clock = clock or HostClock(self.time)
        return DynamoBudget(self.items, linger=0, clock=clock, sleep=self.time.sleep, **options)

    def sqlite(self, **options: Any) -> SqliteBudget:
        return SqliteBudget(self.path, clock=self.time.clock, sleep=self.time.sleep, **options)

    def requests(
        self,
        budget: Budget,
        limit: int,
        latencies: list[float],
        *,
        live: bool = False,
        between: float = 0.0,
    ) -> None:
        for latency in latencies:
            with budget.request(KEY, limit, live=live):
                start = self.time.now
                self.time.sleep(latency)
                self.done.append((start, self.time.now, live))
            if between:
                self.time.sleep(between)


def worst_window(intervals: list[tuple[float, float, bool]], window: float) -> int:
    """Most arrivals that any window could hold, whenever within its interval each one arrived.

    An interval can put its arrival into [t, t + window] if it meets it; the most are met when the
    window ends at some request's start.
    """
    starts = sorted(start for start, _, _ in intervals)
    ends = sorted(end for _, end, _ in intervals)
    return max(
        index + 1 - bisect_left(ends, starts[index] - window) for index in range(len(starts))
    )


def open_budget(kind: str, folder: Path, **options: Any) -> Budget:
    """The budget that belongs to a folder, from any process; that in DynamoDB lies in moto."""
    if kind == "sqlite":
        return SqliteBudget(folder / "budget.db", **options)
    where = environment_of(folder)
    make_tables(where, BUDGETS)
    return DynamoBudget(DynamoDatabase(where), **options)
