"""The request budget: how many requests a minute, shared by every process of the installation.

Why not pyrate-limiter: its SQLite bucket stamps a request when it is acquired and knows nothing of
its end (`put` in 4.5.1), so one that travels counts too early; with a limit of 40 in 2 s and up to
300 ms from acquisition to arrival, the fullest window held 40, 41, 45 and 47 arrivals in four runs.
It also has no classes, no pause and no queue: waiting callers sleep and try again, in any order.

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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from avesa_dagster.control.base import BudgetUse
from avesa_dagster.control.sqlite_database import CorruptDatabase, Database
from avesa_dagster.errors import ConfigurationError, Stopped, StoreError
from avesa_dagster.sources.budget_queue import (
    SCHEMA,
    UPGRADES,
    Ticket,
    Window,
    attempt,
    restart_clock,
    rules,
    slots_taken,
    waiting_now,
)

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_MICROS = 1_000_000
_DAY = 86_400.0


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
        reserve: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[None]:
        """Waits for a grant; the request is made inside the block, which ends with its response.

        Args:
            key: What the service counts by.
            limit: Requests per minute, at least 1. A lower announced limit is obeyed instead.
            live: True for the live sync. Waiting live requests go before all others, and while
                there were any in the last minute, a share of the limit is kept for them.
            reserve: That share, 0 to 1; None: the budget's own.
            cancelled: Asked about ten times a second while waiting.

        Raises:
            Stopped: If `cancelled` said so; the turn goes to the next.
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

    def forget(self, key: str) -> int:
        """Removes all that is known of a key; returns how many rows."""
        ...

    def close(self) -> None:
        """Lets go of what is held open; a later call opens it again."""
        ...


class SqliteBudget:
    """Implements Budget over one SQLite file that all processes open.

    The file holds nothing worth keeping: it survives SIGKILL but not power loss. A corrupt or
    deleted one is replaced, and then nothing is granted for one window.

    Args:
        path: The file, on a local disk. `{path}.lock` is made beside it when it must be replaced.
        window: Seconds over which the service counts.
        reserve: Share of the limit kept for live requests, at least 1 request unless it is 0; at a
            limit of 1 there is nothing to keep.
        longest_request: Seconds after which a request that has not ended is given up: its process
            died. Must exceed the timeout of a request, or the limit may be broken.
        announced_for: Seconds for which an announced limit holds.
        owner: Who asks, for equal shares; None: this process.
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
        owner: int | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._window = Window(
            length=round(window * _MICROS),
            margin=round(window * _MICROS / 2000) + 1,
            longest_request=round(longest_request * _MICROS),
            look_again=round(min(1.0, window / 20) * _MICROS),
        )
        self._reserve = reserve
        self._announced_for = round(announced_for * _MICROS)
        self._owner = owner
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
        reserve: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[None]:
        """See Budget.request."""
        check_limit(key, limit)
        kept = self._reserve if reserve is None else reserve
        return self._request(key, limit, live, kept, cancelled or _never)

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
        check_limit(key, limit)
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
        check_limit(key, limit)

        def look(connection: sqlite3.Connection, now: int) -> BudgetUse:
            in_force, blocked_until, _ = rules(connection, key, limit, now)
            used, live, _ = slots_taken(connection, key, now)
            waiting = waiting_now(connection, key, now)
            until = None
            if blocked_until > now:
                until = datetime.now(UTC) + timedelta(microseconds=blocked_until - now)
            extra = {"live": str(live), "backfill": str(used - live), "waiting": str(waiting)}
            return BudgetUse(in_force, used, until, extra)

        return self._transact(look)

    def forget(self, key: str) -> int:
        """Removes all that is known of a key; returns how many rows. A request under way still
        leaves its slot when it ends."""

        def remove(connection: sqlite3.Connection, now: int) -> int:
            return sum(
                connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,)).rowcount
                for table in ("Keys", "Paces", "Slots", "Tickets")
            )

        return self._transact(remove)

    def close(self) -> None:
        """Closes the file; a later call opens it again."""
        with self._turn:
            if self._database is not None:
                self._database.close()

    @contextmanager
    def _request(
        self, key: str, limit: int, live: bool, reserve: float, cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        owner = os.getpid() if self._owner is None else self._owner
        ticket = Ticket(random.getrandbits(62), key, live, owner)
        self._wait(ticket, limit, reserve, cancelled)
        try:
            yield
        finally:
            self._end(ticket)

    def _wait(
        self, ticket: Ticket, limit: int, reserve: float, cancelled: Callable[[], bool]
    ) -> None:
        granted = False
        try:
            while not granted:
                if cancelled():
                    raise Stopped(f"cancelled while waiting for the request budget of {ticket.key}")
                rest = self._transact(
                    lambda connection, now: attempt(
                        connection, self._window, reserve, ticket, limit, now
                    )
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

    def _end(self, ticket: Ticket) -> None:
        def change(connection: sqlite3.Connection, now: int) -> None:
            # The row is gone if the request outlived `longest_request`, or the file was replaced.
            connection.execute(
                "INSERT INTO Slots VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET free_at = excluded.free_at",
                (
                    ticket.id,
                    ticket.key,
                    ticket.live,
                    ticket.burst,
                    now + self._window.length + self._window.margin,
                    ticket.owner,
                ),
            )

        try:
            self._transact(change)
        except StoreError as error:
            # Safe: the slot stays taken for longer. Raising would lose the response that came.
            _log.warning("a request of %s ended unrecorded: %s", ticket.key, error)

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
            restart_clock(connection, latest, now, self._window)
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
        database = Database(self._path, schema=SCHEMA, upgrades=UPGRADES, durable=False)
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
                fresh.replace(self._path)
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
        database = Database(path, schema=SCHEMA, upgrades=UPGRADES, durable=False)
        with closing(database), database.write() as connection:
            connection.execute("INSERT INTO Clock VALUES (?, ?, ?)", (now, now, quiet))


def _boottime() -> float:
    # Linux only; elsewhere the monotonic clock is the machine's too, but stops while it sleeps.
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _never() -> bool:
    return False


def check_limit(key: str, limit: int) -> None:
    """Raises a ConfigurationError if the limit is below 1."""
    if limit < 1:
        raise ConfigurationError(
            f"a budget of {limit} requests per minute for {key}", hint="set at least 1"
        )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:  # opening it will say why
        return None
    return found.st_dev, found.st_ino
