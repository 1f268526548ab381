"""The request budget: how many requests a minute, shared by every process of the installation.

Why not pyrate-limiter: its SQLite bucket stamps a request when it is acquired and knows nothing of
its end (`put` in 4.5.1), so a request that travels counts too early; with a limit of 40 in 2 s and
up to 300 ms between acquisition and arrival, 47 arrivals fell into one window. It also has neither
classes nor pauses nor a queue between processes: whoever happens to poll first goes first.

**The window.** A slot is taken when a request is granted, and free one window after its response
ended. The service counted it somewhere in between, so whatever it counts by, no window of its own
holds more than the limit. The price: requests that take L seconds use at most window / (window + L)
of the limit, 99.5 % at 300 ms and a minute, 95 % at 3 s.

**The pace.** After a burst of a quarter of the limit, which idleness earns back, grants are spread
evenly. Slots then free up evenly too, and a live request that meets a full window waits about
window / limit for the next one, not for the far end of the window.

**The clock** is CLOCK_BOOTTIME: one for all processes of a machine, never set, running on while the
machine sleeps. It restarts at a reboot; a time before the newest one stored shows that, and then
every slot counts as taken just now. All processes must run on one machine, as SQLite asks anyway.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from avesa_dagster.control.base import BudgetUse
from avesa_dagster.control.sqlite_database import CorruptDatabase, Database
from avesa_dagster.errors import AvesaError, ConfigurationError, StoreError

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_MICROS = 1_000_000
_DAY = 86_400.0
_LATE = 50_000
"""Microseconds after which a waiting request that did not come for its turn is passed over."""


class RequestCancelled(AvesaError):
    """The caller gave up while the request waited for its turn. Nothing was sent."""


class Budget(Protocol):
    """Grants requests so that no service ever counts more than its limit a minute.

    A key names what the service counts by, for example `connectwise/acme`.
    """

    def request(
        self,
        key: str,
        limit: int,
        *,
        live: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[None]:
        """Waits for a grant; the request is made inside the block, which ends with its response.

        Args:
            key: What the service counts by.
            limit: Requests per minute, at least 1. A lower announced limit is obeyed instead.
            live: True for the live sync. Waiting live requests go before all others, and while
                there were any in the last minute, a share of the limit is kept for them.
            cancelled: Asked about ten times a second while waiting.

        Raises:
            RequestCancelled: If `cancelled` said so; the turn goes to the next.
            ConfigurationError: If the limit is below 1.
            StoreError: If the shared state cannot be read or written; no request may be made.
        """
        ...

    def pause(self, key: str, seconds: float) -> None:
        """The service asked (429, Retry-After) for no request for so long. A longer pause that
        holds already stays; one of over a day counts as a day, so that a wrong header cannot
        silence a tenant for ever: the next answer says it again."""
        ...

    def announce(self, key: str, limit: int) -> None:
        """The service said what its limit is. Obeyed for ten minutes where it is the lower one."""
        ...

    def use(self, key: str, limit: int) -> BudgetUse:
        """What is in force and in use now. `extra` has `live`, `backfill` and `waiting`."""
        ...


_SCHEMA = (
    # quiet_until: no grant before, because what was granted earlier is not known.
    """
    CREATE TABLE Clock (
        latest INTEGER NOT NULL, created_at INTEGER NOT NULL, quiet_until INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE Keys (
        key TEXT PRIMARY KEY,
        paused_until INTEGER NOT NULL DEFAULT 0,
        announced INTEGER,
        announced_until INTEGER NOT NULL DEFAULT 0,
        live_at INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE Paces (
        key TEXT NOT NULL,
        live INTEGER NOT NULL,
        next_at INTEGER NOT NULL,
        burst REAL NOT NULL,
        PRIMARY KEY (key, live)
    ) STRICT, WITHOUT ROWID
    """,
    # A slot is taken while free_at >= now. burst: granted ahead of the pace.
    """
    CREATE TABLE Slots (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        live INTEGER NOT NULL,
        burst INTEGER NOT NULL,
        free_at INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX Slots_key ON Slots (key, free_at, live, burst)",
    # wake_at: when the waiting thread looks again.
    """
    CREATE TABLE Tickets (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        live INTEGER NOT NULL,
        since INTEGER NOT NULL,
        wake_at INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX Tickets_key ON Tickets (key, live, since)",
)


@dataclass(frozen=True, slots=True)
class _Window:
    """Durations in microseconds."""

    length: int
    margin: int
    """Added to the length: the service's clock may run 500 ppm faster, and rounds."""
    longest_request: int
    look_again: int


@dataclass(slots=True)
class _Pace:
    """When the next grant of one class is due. Between grants there is one gap."""

    next_at: int
    burst: float
    """Grants that may go ahead of the pace; earned by idleness, never while anyone waits."""

    def rest(self, now: int, limit: int, length: int) -> None:
        """Counts the idle time until `now` towards the burst; nobody waited during it."""
        if self.next_at < now:
            self.burst += (now - self.next_at) * limit / length
            self.next_at = now
        self.cut(limit)

    def cut(self, limit: int) -> None:
        """Holds the burst to a quarter of the limit, with the one grant that the pace allows."""
        self.burst = min(self.burst, math.ceil(limit / 4) - 1)

    def due(self, ahead: int, gap: float) -> int:
        """When the pace allows the grant that has `ahead` others before it."""
        behind = ahead - math.floor(self.burst)
        return 0 if behind < 0 else self.next_at + round(behind * gap)

    def step(self, now: int, gap: float, limit: int) -> bool:
        """Moves on by one grant at `now`; returns whether it came out of the burst.

        A thread that wakes late may not slow the pace for good, so a few gaps can be made up for.
        """
        if self.next_at > now and self.burst >= 1:
            self.burst -= 1
            return True
        made_up = round(max(2, limit / 50) * gap)
        self.next_at = max(self.next_at, now - made_up) + round(gap)
        return False


@dataclass(slots=True)
class _Ticket:
    """One request in the queue, and later the slot that it takes.

    `id` is random, so that it stays unique when the file is replaced; `since` keeps the order.
    """

    id: int
    key: str
    live: bool
    since: int | None = None
    stored: bool = False
    burst: bool = False


class SqliteBudget:
    """Implements Budget over one SQLite file that all processes open.

    The file holds nothing worth keeping: it survives SIGKILL but not power loss. A corrupt or
    deleted one is replaced, and then nothing is granted for one window.

    Args:
        path: The file, on a local disk. `{path}.lock` is made beside it when it must be replaced.
        window: Seconds over which the service counts.
        reserve: Share of the limit kept for live requests, at least 1 request; at a limit of 1
            there is nothing to keep.
        longest_request: Seconds after which a request that has not ended is given up: its process
            died. Must exceed the timeout of a request, or the limit may be broken.
        announced_for: Seconds for which an announced limit holds.
        clock: Seconds on a clock shared by all processes; see the module's text.
        sleep: Waits so many seconds.

    Raises:
        StoreError: If the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        window: float = 60.0,
        reserve: float = 0.1,
        longest_request: float = 300.0,
        announced_for: float = 600.0,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._window = _Window(
            length=round(window * _MICROS),
            margin=round(window * _MICROS / 2000) + 1,
            longest_request=round(longest_request * _MICROS),
            look_again=round(min(1.0, window / 20) * _MICROS),
        )
        self._reserve = reserve
        self._announced_for = round(announced_for * _MICROS)
        self._clock = _boottime if clock is None else clock
        self._sleep = sleep
        self._pid = os.getpid()
        self._turn = threading.Lock()  # threads of one process take turns here, not by polling
        self._database: Database | None = None
        self._inode: tuple[int, int] | None = None
        self._transact(lambda connection, now: None)

    def request(
        self,
        key: str,
        limit: int,
        *,
        live: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[None]:
        """See Budget.request."""
        _check_limit(key, limit)
        return self._request(key, limit, live, cancelled or _never)

    def pause(self, key: str, seconds: float) -> None:
        """See Budget.pause."""
        if math.isnan(seconds):
            raise ConfigurationError(f"a pause of {seconds} seconds for {key}")
        length = round(min(max(seconds, 0.0), _DAY) * _MICROS)

        def change(connection: sqlite3.Connection, now: int) -> None:
            connection.execute(
                "INSERT INTO Keys (key, paused_until) VALUES (?, ?) ON CONFLICT DO UPDATE"
                " SET paused_until = max(paused_until, excluded.paused_until)",
                (key, now + length),
            )
            # After the pause all at once would bring the next 429: no burst.
            for live in (0, 1):
                connection.execute(
                    "INSERT INTO Paces VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE"
                    " SET next_at = max(next_at, excluded.next_at), burst = 0",
                    (key, live, now + length),
                )

        self._transact(change)

    def announce(self, key: str, limit: int) -> None:
        """See Budget.announce."""
        _check_limit(key, limit)
        self._transact(
            lambda connection, now: connection.execute(
                "INSERT INTO Keys (key, announced, announced_until) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET announced = excluded.announced,"
                " announced_until = excluded.announced_until",
                (key, limit, now + self._announced_for),
            )
        )

    def use(self, key: str, limit: int) -> BudgetUse:
        """See Budget.use."""
        _check_limit(key, limit)

        def look(connection: sqlite3.Connection, now: int) -> BudgetUse:
            in_force, blocked_until, _ = _rules(connection, key, limit, now)
            used, live, _ = _slots(connection, key, now)
            waiting = connection.execute(
                "SELECT count(*) FROM Tickets WHERE key = ? AND wake_at >= ?", (key, now - _LATE)
            ).fetchone()[0]
            until = None
            if blocked_until > now:
                until = datetime.now(UTC) + timedelta(microseconds=blocked_until - now)
            extra = {"live": str(live), "backfill": str(used - live), "waiting": str(waiting)}
            return BudgetUse(in_force, used, until, extra)

        return self._transact(look)

    def close(self) -> None:
        """Closes the file; a later call opens it again."""
        with self._turn:
            if self._database is not None:
                self._database.close()

    @contextmanager
    def _request(
        self, key: str, limit: int, live: bool, cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        ticket = _Ticket(random.getrandbits(62), key, live)
        self._wait(ticket, limit, cancelled)
        try:
            yield
        finally:
            self._end(ticket)

    def _wait(self, ticket: _Ticket, limit: int, cancelled: Callable[[], bool]) -> None:
        granted = False
        try:
            while not granted:
                if cancelled():
                    raise RequestCancelled(
                        f"cancelled while waiting for the request budget of {ticket.key}"
                    )
                rest = self._transact(
                    lambda connection, now: self._attempt(connection, ticket, limit, now)
                )
                granted = rest is None
                while rest is not None and rest > 0 and not cancelled():
                    part = rest if cancelled is _never else min(rest, 0.1)
                    self._sleep(part)
                    rest -= part
        finally:
            if ticket.stored and not granted:
                self._transact(
                    lambda connection, now: connection.execute(
                        "DELETE FROM Tickets WHERE id = ?", (ticket.id,)
                    )
                )

    def _end(self, ticket: _Ticket) -> None:
        def change(connection: sqlite3.Connection, now: int) -> None:
            # The row is gone if the request outlived `longest_request`, or the file was replaced.
            connection.execute(
                "INSERT INTO Slots VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET free_at = excluded.free_at",
                (
                    ticket.id,
                    ticket.key,
                    ticket.live,
                    ticket.burst,
                    now + self._window.length + self._window.margin,
                ),
            )

        try:
            self._transact(change)
        except StoreError as error:
            # Safe: the slot stays taken for longer. Raising would lose the response that came.
            _log.warning("a request of %s ended unrecorded: %s", ticket.key, error)

    def _attempt(
        self, connection: sqlite3.Connection, ticket: _Ticket, limit: int, now: int
    ) -> float | None:
        """Grants the request now (None), or says after how many seconds to look again."""
        key, window = ticket.key, self._window
        if ticket.since is None:
            ticket.since = now
        if ticket.live:
            connection.execute(
                "INSERT INTO Keys (key, live_at) VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET live_at = excluded.live_at",
                (key, now),
            )
        limit, blocked_until, live_at = _rules(connection, key, limit, now)
        connection.execute("DELETE FROM Slots WHERE key = ? AND free_at < ?", (key, now))
        connection.execute(
            "DELETE FROM Tickets WHERE key = ? AND wake_at < ?", (key, now - window.length)
        )
        used, live, bursts = _slots(connection, key, now)
        gap = window.length / max(1, limit - bursts)
        live_ahead, own_ahead = _ahead(connection, ticket, now)
        ahead = live_ahead + own_ahead
        pace = _pace(connection, key, ticket.live, now, limit)
        if not ticket.stored and ahead == 0:
            pace.rest(now, limit, window.length)

        due = max(blocked_until, pace.due(ahead, gap))
        if used + ahead >= limit:
            due = max(due, self._freed(connection, key, used + ahead - limit, now))
        if not ticket.live and live_at is not None and live_at + window.length > now:
            kept = min(max(1, round(limit * self._reserve)), limit - 1)
            over = used - live + own_ahead - (limit - kept)
            if over >= 0:
                freed = self._freed(connection, key, over, now, backfill_only=True)
                due = max(due, min(freed, live_at + window.length))
        if ahead or due > now:
            _save_pace(connection, key, ticket.live, pace)
            return self._queue(connection, ticket, ahead, due, now)

        ticket.burst = pace.step(now, gap, limit)
        _save_pace(connection, key, ticket.live, pace)
        if ticket.live:  # live requests go at a pace of their own, and slow the others'
            other = _pace(connection, key, False, now, limit)
            other.step(now, gap, limit)
            _save_pace(connection, key, False, other)
        connection.execute(
            "INSERT INTO Slots VALUES (?, ?, ?, ?, ?)",
            (
                ticket.id,
                key,
                ticket.live,
                ticket.burst,
                now + window.longest_request + window.length + window.margin,
            ),
        )
        if ticket.stored:
            connection.execute("DELETE FROM Tickets WHERE id = ?", (ticket.id,))
        return None

    def _freed(
        self,
        connection: sqlite3.Connection,
        key: str,
        count: int,
        now: int,
        *,
        backfill_only: bool = False,
    ) -> int:
        """When one slot more than `count` of those taken now will be free."""
        condition = "AND live = 0" if backfill_only else ""
        row = connection.execute(
            f"SELECT free_at FROM Slots WHERE key = ? AND free_at >= ? {condition}"
            " ORDER BY free_at LIMIT 1 OFFSET ?",
            (key, now, count),
        ).fetchone()
        return now + self._window.look_again if row is None else int(row[0]) + 1

    def _queue(
        self, connection: sqlite3.Connection, ticket: _Ticket, ahead: int, due: int, now: int
    ) -> float:
        # A little later the further behind, so that the first in the queue comes first; later
        # still if only those ahead are missing, who are waking up at this moment.
        wake_at = min(due, now + self._window.look_again) + 200 * ahead
        wake_at = max(wake_at, now + 3_000 * ahead) + random.randrange(200)
        connection.execute(
            "INSERT INTO Tickets VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET wake_at = excluded.wake_at",
            (ticket.id, ticket.key, ticket.live, ticket.since, wake_at),
        )
        ticket.stored = True
        return (wake_at - now) / _MICROS

    def _transact(self, body: Callable[[sqlite3.Connection, int], _Result]) -> _Result:
        if self._pid != os.getpid():  # forked, perhaps while another thread had the lock
            self._pid, self._turn = os.getpid(), threading.Lock()
        with self._turn:
            try:
                return self._once(body)
            except CorruptDatabase as error:
                self._replace(error)
                return self._once(body)

    def _once(self, body: Callable[[sqlite3.Connection, int], _Result]) -> _Result:
        database = self._opened()
        with database.write() as connection:
            now = self._now(connection)
            return body(connection, now)

    def _now(self, connection: sqlite3.Connection) -> int:
        # Read under the write lock, so the stored times only ever grow.
        now = round(self._clock() * _MICROS)
        row = connection.execute("SELECT latest FROM Clock").fetchone()
        if row is None:
            connection.execute("INSERT INTO Clock VALUES (?, ?, 0)", (now, now))
            return now
        latest = int(row[0])
        if now < latest - _MICROS:
            _log.warning("the clock restarted; requests made before count as made now")
            _restart_clock(connection, latest, now, self._window)
        else:
            now = max(now, latest)
        connection.execute("UPDATE Clock SET latest = ?", (now,))
        return now

    def _opened(self) -> Database:
        """The database; another process may have replaced the file since the last call."""
        inode = _inode(self._path)
        if self._database is not None and inode == self._inode and inode is not None:
            return self._database
        replaced = self._database is not None
        if self._database is not None:
            self._database.close()
        self._database = None
        database = Database(self._path, schema=_SCHEMA, durable=False)
        if replaced:
            _log.warning("%s was replaced; requests wait for one window", self._path)
            with database.write() as connection:
                self._now(connection)
                connection.execute(
                    "UPDATE Clock SET quiet_until = max(quiet_until, created_at + ?)",
                    (self._window.length + self._window.margin,),
                )
        self._inode = _inode(self._path)
        self._database = database
        return database

    def _replace(self, error: CorruptDatabase) -> None:
        """Puts an empty file in place of the corrupt one, which is kept as `{path}.corrupt`."""
        if self._database is not None:
            self._database.close()
        self._database = None
        seen = _inode(self._path)
        fresh = self._path.with_name(self._path.name + ".fresh")
        kept = self._path.with_name(self._path.name + ".corrupt")
        try:
            lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if _inode(self._path) != seen:
                    return  # another process did it meanwhile
                fresh.unlink(missing_ok=True)
                self._create(fresh)
                kept.unlink(missing_ok=True)
                os.link(self._path, kept)
                for suffix in ("-wal", "-shm"):  # they belong to the corrupt file
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                os.replace(fresh, self._path)
            finally:
                os.close(lock)
        except OSError as failure:
            raise StoreError(
                f"cannot replace {self._path}, which is corrupt: {failure.strerror}",
                hint="delete it, then wait a minute",
            ) from failure
        _log.warning("%s; replaced it, requests wait for one window", error.what)

    def _create(self, path: Path) -> None:
        now = round(self._clock() * _MICROS)
        quiet = now + self._window.length + self._window.margin
        database = Database(path, schema=_SCHEMA, durable=False)
        with closing(database), database.write() as connection:
            connection.execute("INSERT INTO Clock VALUES (?, ?, ?)", (now, now, quiet))


def _boottime() -> float:
    # Linux only; elsewhere the monotonic clock is the machine's too, but stops while it sleeps.
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _never() -> bool:
    return False


def _check_limit(key: str, limit: int) -> None:
    if limit < 1:
        raise ConfigurationError(
            f"a budget of {limit} requests per minute for {key}", hint="set at least 1"
        )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # opening it will say why
        return None
    return found.st_dev, found.st_ino


def _rules(
    connection: sqlite3.Connection, key: str, limit: int, now: int
) -> tuple[int, int, int | None]:
    """The limit in force, the time before which nothing is granted, the newest live request."""
    quiet_until = connection.execute("SELECT quiet_until FROM Clock").fetchone()[0]
    row = connection.execute(
        "SELECT paused_until, announced, announced_until, live_at FROM Keys WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        return limit, quiet_until, None
    paused_until, announced, announced_until, live_at = row
    if announced is not None and announced_until > now:
        limit = min(limit, announced)
    return limit, max(quiet_until, paused_until), live_at


def _slots(connection: sqlite3.Connection, key: str, now: int) -> tuple[int, int, int]:
    """How many slots are taken: all, the live ones, those granted ahead of the pace."""
    used, live, burst = connection.execute(
        "SELECT count(*), sum(live), sum(burst) FROM Slots WHERE key = ? AND free_at >= ?",
        (key, now),
    ).fetchone()
    return used, live or 0, burst or 0


def _ahead(connection: sqlite3.Connection, ticket: _Ticket, now: int) -> tuple[int, int]:
    """How many waiting requests go first: (live before a backfill, of its own class)."""
    live, own = connection.execute(
        "SELECT coalesce(sum(live > :live), 0),"
        " coalesce(sum(live = :live AND (since, id) < (:since, :id)), 0)"
        " FROM Tickets WHERE key = :key AND wake_at >= :on_time AND id != :id",
        {
            "live": ticket.live,
            "since": ticket.since,
            "id": ticket.id,
            "key": ticket.key,
            "on_time": now - _LATE,
        },
    ).fetchone()
    return live, own


def _pace(connection: sqlite3.Connection, key: str, live: bool, now: int, limit: int) -> _Pace:
    row = connection.execute(
        "SELECT next_at, burst FROM Paces WHERE key = ? AND live = ?", (key, live)
    ).fetchone()
    pace = _Pace(now, limit) if row is None else _Pace(*row)  # never seen: it was idle for ever
    pace.cut(limit)
    return pace


def _save_pace(connection: sqlite3.Connection, key: str, live: bool, pace: _Pace) -> None:
    connection.execute(
        "INSERT INTO Paces VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET next_at = excluded.next_at, burst = excluded.burst",
        (key, live, pace.next_at, pace.burst),
    )


def _restart_clock(connection: sqlite3.Connection, latest: int, now: int, window: _Window) -> None:
    # Every process of before the reboot is gone, and its requests with it.
    full = now + window.length + window.margin
    connection.execute("UPDATE Slots SET free_at = ?", (full,))
    connection.execute("DELETE FROM Tickets")
    connection.execute("DELETE FROM Paces")
    connection.execute(
        "UPDATE Keys SET live_at = NULL, paused_until = max(0, paused_until - :back),"
        " announced_until = max(0, announced_until - :back)",
        {"back": latest - now},
    )
    connection.execute(
        "UPDATE Clock SET created_at = :now,"
        " quiet_until = CASE WHEN quiet_until > :latest THEN :full ELSE 0 END",
        {"now": now, "latest": latest, "full": full},
    )
