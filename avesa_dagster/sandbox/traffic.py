"""Counts what reaches the simulator, and refuses what exceeds the limit.

The limit is a sliding 60-second window of real (monotonic) time for each credential, over the
requests that were let through; a refused request does not push the window on. [INF] The largest
window is exact, because a sliding maximum is reached at some arrival. A company may have a limit of
its own; an announced one is told in headers, which ConnectWise itself does not do. [INF]
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

WINDOW_SECONDS = 60.0
_LOG_LENGTH = 5000


@dataclass(slots=True)
class Entry:
    """One line of the log. `at` is seconds since the statistics began; `rows` only for lists."""

    number: int
    at: float
    method: str
    kind: str
    table: str | None
    company_id: str | None
    path: str
    conditions: str | None
    query: dict[str, str]
    status: int = 0
    rows: int | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """Requests a minute for each credential (None: no limit); announced in headers or not."""

    per_minute: int | None = None
    announced: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request is let through (`wait` 0) or must wait so many seconds.

    `announce` is (limit, what remains of it now) where the limit is announced, else None.
    """

    wait: float
    announce: tuple[int, int] | None


class SlidingWindow:
    """Arrivals of the last 60 seconds, and the most that any 60 seconds held."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque()
        self.largest = 0

    def _expire(self, now: float) -> None:
        while self._arrivals and self._arrivals[0] <= now - WINDOW_SECONDS:
            self._arrivals.popleft()

    def record(self, now: float) -> None:
        self._expire(now)
        self._arrivals.append(now)
        self.largest = max(self.largest, len(self._arrivals))

    def __len__(self) -> int:
        """How many arrivals it held when it was last asked."""
        return len(self._arrivals)

    def wait(self, now: float, limit: int) -> float:
        """Seconds until one more arrival would keep within the limit; 0 if it does now."""
        self._expire(now)
        if len(self._arrivals) < limit:
            return 0.0
        if limit <= 0:
            return WINDOW_SECONDS
        return self._arrivals[len(self._arrivals) - limit] + WINDOW_SECONDS - now


class Traffic:
    """Statistics and limit of one simulator; safe to use from every thread."""

    def __init__(self, limit_per_minute: int | None) -> None:
        self._lock = threading.Lock()
        self._accepted: dict[str, SlidingWindow] = {}
        self._limit = Limit(limit_per_minute)
        self._own_limits: dict[str, Limit] = {}
        self.reset()

    @property
    def limit_per_minute(self) -> int | None:
        """The limit of every company that has none of its own."""
        return self._limit.per_minute

    def reset(self) -> None:
        """Forget the statistics, not the limit's window."""
        with self._lock:
            self._began = time.monotonic()
            self._attempts: dict[str, SlidingWindow] = {}
            self._kinds: Counter[str] = Counter()
            self._credentials: Counter[str] = Counter()
            self._statuses: Counter[str] = Counter()
            self._faults: Counter[str] = Counter()
            self._minutes: dict[int, Counter[str]] = {}
            self._own_minutes: dict[str, dict[int, Counter[str]]] = {}
            self._total = 0
            self._refused = 0
            self._log: deque[Entry] = deque(maxlen=_LOG_LENGTH)
            for window in self._accepted.values():
                window.largest = 0

    def set_limit(
        self, limit: Limit, company_id: str | None = None, *, forget: bool = True
    ) -> None:
        """Set one company's own limit, or the limit of all that have none of their own.

        Args:
            forget: start the windows concerned afresh, as if no request had been made.
        """
        with self._lock:
            if company_id is None:
                self._limit = limit
            else:
                self._own_limits[company_id] = limit
            for credential in list(self._accepted) if forget else ():
                owner = credential.partition("+")[0]
                if owner not in self._own_limits if company_id is None else owner == company_id:
                    del self._accepted[credential]

    def forget_own_limits(self) -> None:
        """Give every company the common limit again."""
        with self._lock:
            self._own_limits.clear()

    def arrive(self, entry: Entry) -> None:
        """Count a request and put it in the log."""
        now = time.monotonic()
        with self._lock:
            self._total += 1
            entry.number, entry.at = self._total, round(now - self._began, 4)
            self._kinds[entry.kind] += 1
            for minute in self._minutes_of(entry.company_id, now):
                minute["requests"] += 1
            if entry.company_id is not None:
                self._credentials[entry.company_id] += 1
                self._attempts.setdefault(entry.company_id, SlidingWindow()).record(now)
            self._log.append(entry)

    def admit(self, company_id: str | None, credential: str) -> Admission:
        """Let a credential's request through, or say how long it must wait."""
        now = time.monotonic()
        with self._lock:
            limit = self._limit
            if company_id is not None:
                limit = self._own_limits.get(company_id, limit)
            window = self._accepted.setdefault(credential, SlidingWindow())
            wait = 0.0 if limit.per_minute is None else window.wait(now, limit.per_minute)
            if wait > 0:
                self._refused += 1
                for minute in self._minutes_of(company_id, now):
                    minute["refused"] += 1
            else:
                window.record(now)
            if limit.per_minute is None or not limit.announced:
                return Admission(wait, None)
            return Admission(wait, (limit.per_minute, max(0, limit.per_minute - len(window))))

    def depart(self, entry: Entry, status: int, rows: int | None, fault: str | None) -> None:
        """Note how a request ended; `status` 0 is a connection that got no answer."""
        with self._lock:
            entry.status, entry.rows, entry.fault = status, rows, fault
            self._statuses[str(status)] += 1
            if fault is not None:
                self._faults[fault] += 1

    def report(self, log: int) -> dict[str, Any]:
        """The statistics as plain data, with the last `log` requests."""
        with self._lock:
            attempts = {name: window.largest for name, window in self._attempts.items()}
            accepted = {name: window.largest for name, window in self._accepted.items()}
            return {
                "seconds": round(time.monotonic() - self._began, 3),
                "limit_per_minute": self.limit_per_minute,
                "total": self._total,
                "by_kind": dict(self._kinds),
                "by_credential": dict(self._credentials),
                "by_status": dict(self._statuses),
                "refused": self._refused,
                "max_in_60s": max(attempts.values(), default=0),
                "max_in_60s_by_credential": attempts,
                "max_accepted_in_60s_by_credential": accepted,
                "per_minute": _by_minute(self._minutes),
                "per_minute_by_credential": {
                    name: _by_minute(minutes) for name, minutes in self._own_minutes.items()
                },
                "faults": dict(self._faults),
                "log": [asdict(entry) for entry in list(self._log)[-log:]] if log else [],
            }

    def _minutes_of(self, company_id: str | None, now: float) -> list[Counter[str]]:
        """The counters that a request of now belongs to: the minute of all, and the company's."""
        number = int((now - self._began) // 60)
        kept = [self._minutes]
        if company_id is not None:
            kept.append(self._own_minutes.setdefault(company_id, {}))
        return [minutes.setdefault(number, Counter()) for minutes in kept]


def _by_minute(minutes: dict[int, Counter[str]]) -> list[dict[str, int]]:
    return [{"minute": number} | dict(counts) for number, counts in sorted(minutes.items())]
