"""The queue of the request budget: who may go next, and when.

Functions over one open write transaction. Times are integer microseconds on the budget's clock; a
slot is taken while `free_at >= now`. What the rules mean stands in `sources.budget`.
"""

from __future__ import annotations

import math
import random
import sqlite3
from dataclasses import dataclass

_MICROS = 1_000_000
_LATE = 50_000
"""Microseconds after which a waiting request that did not come for its turn is passed over."""

SCHEMA = (
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
UPGRADES = (
    # 1 to 2: whose a request is.
    (
        "ALTER TABLE Slots ADD COLUMN owner INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE Tickets ADD COLUMN owner INTEGER NOT NULL DEFAULT 0",
    ),
)


@dataclass(frozen=True, slots=True)
class Window:
    """Durations in microseconds."""

    length: int
    margin: int
    """Added to the length: the service's clock may run 500 ppm faster, and rounds."""
    longest_request: int
    look_again: int


@dataclass(slots=True)
class Pace:
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
class Ticket:
    """One request in the queue, and later the slot that it takes.

    `id` is random, so that it stays unique when the file is replaced; `since` keeps the order
    within its `owner`, a process.
    """

    id: int
    key: str
    live: bool
    owner: int
    since: int | None = None
    stored: bool = False
    burst: bool = False


def attempt(
    connection: sqlite3.Connection,
    window: Window,
    reserve: float,
    ticket: Ticket,
    limit: int,
    now: int,
) -> float | None:
    """Grants the request now (None), or says after how many seconds to look again.

    Args:
        connection: In a write transaction, so that nobody else is granted meanwhile.
        window: The durations.
        reserve: Share of the limit that a backfill leaves while live requests are made.
        ticket: The request; keeps its place in the queue between attempts.
        limit: Requests a window, as configured.
        now: The time, read within the transaction.
    """
    key = ticket.key
    if ticket.since is None:
        ticket.since = now
    if ticket.live:
        connection.execute(
            "INSERT INTO Keys (key, live_at) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET live_at = excluded.live_at",
            (key, now),
        )
    limit, blocked_until, live_at = rules(connection, key, limit, now)
    connection.execute("DELETE FROM Slots WHERE key = ? AND free_at < ?", (key, now))
    connection.execute(
        "DELETE FROM Tickets WHERE key = ? AND wake_at < ?", (key, now - window.length)
    )
    used, live, bursts = slots_taken(connection, key, now)
    gap = window.length / max(1, limit - bursts)
    live_ahead, own_ahead = _ahead(connection, ticket, now)
    ahead = live_ahead + own_ahead
    pace = _pace(connection, key, ticket.live, now, limit)
    if not ticket.stored and ahead == 0:
        pace.rest(now, limit, window.length)

    due = max(blocked_until, pace.due(ahead, gap))
    if used + ahead >= limit:
        due = max(due, _freed(connection, window, key, used + ahead - limit, now))
    if not ticket.live and live_at is not None and live_at + window.length > now:
        kept = min(max(1, round(limit * reserve)), limit - 1) if reserve else 0
        over = used - live + own_ahead - (limit - kept)
        if over >= 0:
            freed = _freed(connection, window, key, over, now, backfill_only=True)
            due = max(due, min(freed, live_at + window.length))
    if ahead or due > now:
        _save_pace(connection, key, ticket.live, pace)
        return _queue(connection, window, ticket, ahead, due, now)

    ticket.burst = pace.step(now, gap, limit)
    _save_pace(connection, key, ticket.live, pace)
    if ticket.live:  # live requests go at a pace of their own, and slow the others'
        other = _pace(connection, key, False, now, limit)
        other.step(now, gap, limit)
        _save_pace(connection, key, False, other)
    connection.execute(
        "INSERT INTO Slots VALUES (?, ?, ?, ?, ?, ?)",
        (
            ticket.id,
            key,
            ticket.live,
            ticket.burst,
            now + window.longest_request + window.length + window.margin,
            ticket.owner,
        ),
    )
    if ticket.stored:
        connection.execute("DELETE FROM Tickets WHERE id = ?", (ticket.id,))
    return None


def _freed(
    connection: sqlite3.Connection,
    window: Window,
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
    return now + window.look_again if row is None else int(row[0]) + 1


def _queue(
    connection: sqlite3.Connection, window: Window, ticket: Ticket, ahead: int, due: int, now: int
) -> float:
    # A little later the further behind, so that the first in the queue comes first; later
    # still if only those ahead are missing, who are waking up at this moment.
    wake_at = min(due, now + window.look_again) + 200 * ahead
    wake_at = max(wake_at, now + 3_000 * ahead) + random.randrange(200)
    connection.execute(
        "INSERT INTO Tickets VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET wake_at = excluded.wake_at",
        (ticket.id, ticket.key, ticket.live, ticket.since, wake_at, ticket.owner),
    )
    ticket.stored = True
    return (wake_at - now) / _MICROS


def rules(
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


def slots_taken(connection: sqlite3.Connection, key: str, now: int) -> tuple[int, int, int]:
    """How many slots are taken: all, the live ones, those granted ahead of the pace."""
    used, live, burst = connection.execute(
        "SELECT count(*), sum(live), sum(burst) FROM Slots WHERE key = ? AND free_at >= ?",
        (key, now),
    ).fetchone()
    return used, live or 0, burst or 0


def waiting_now(connection: sqlite3.Connection, key: str, now: int) -> int:
    """How many requests wait, those of dead processes left out."""
    row = connection.execute(
        "SELECT count(*) FROM Tickets WHERE key = ? AND wake_at >= ?", (key, now - _LATE)
    ).fetchone()
    return int(row[0])


def _ahead(connection: sqlite3.Connection, ticket: Ticket, now: int) -> tuple[int, int]:
    """How many waiting requests go first: (live before a backfill, of its own class).

    Of one class, the process goes first that has the fewest slots: the n-th waiting request of a
    process counts as if the n - 1 before it were granted. So processes get equal shares, however
    many threads each has.
    """
    live, own = connection.execute(
        """
        WITH used AS (SELECT owner, count(*) AS slots FROM Slots
            WHERE key = :key AND live = :live AND free_at >= :now GROUP BY owner),
        waiting AS (SELECT id, live, since, owner FROM Tickets
            WHERE key = :key AND wake_at >= :on_time AND id != :id
            UNION ALL SELECT :id, :live, :since, :owner),
        turns AS (SELECT id, live, since, coalesce(slots, 0)
                + row_number() OVER (PARTITION BY live, owner ORDER BY since, id) AS turn
            FROM waiting LEFT JOIN used USING (owner)),
        mine AS (SELECT turn FROM turns WHERE id = :id)
        SELECT coalesce(sum(t.live > :live), 0), coalesce(sum(
            t.live = :live AND (t.turn, t.since, t.id) < (mine.turn, :since, :id)), 0)
        FROM turns t, mine WHERE t.id != :id
        """,
        {
            "live": ticket.live,
            "since": ticket.since,
            "id": ticket.id,
            "owner": ticket.owner,
            "key": ticket.key,
            "now": now,
            "on_time": now - _LATE,
        },
    ).fetchone()
    return live, own


def _pace(connection: sqlite3.Connection, key: str, live: bool, now: int, limit: int) -> Pace:
    row = connection.execute(
        "SELECT next_at, burst FROM Paces WHERE key = ? AND live = ?", (key, live)
    ).fetchone()
    pace = Pace(now, limit) if row is None else Pace(*row)  # never seen: it was idle for ever
    pace.cut(limit)
    return pace


def _save_pace(connection: sqlite3.Connection, key: str, live: bool, pace: Pace) -> None:
    connection.execute(
        "INSERT INTO Paces VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET next_at = excluded.next_at, burst = excluded.burst",
        (key, live, pace.next_at, pace.burst),
    )


def restart_clock(connection: sqlite3.Connection, latest: int, now: int, window: Window) -> None:
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
