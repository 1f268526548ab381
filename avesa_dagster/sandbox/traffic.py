"""Counts what reaches the simulator, and refuses what exceeds the limit.

The limit is a sliding 60-second window of real (monotonic) time for each credential, over the
requests that were let through; a refused request does not push the window on. [INF] The largest
window is exact, because a sliding maximum is reached at some arrival.
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
        self.limit_per_minute = limit_per_minute
        self.reset()

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
            self._total = 0
            self._refused = 0
            self._log: deque[Entry] = deque(maxlen=_LOG_LENGTH)
            for window in self._accepted.values():
                window.largest = 0

    def forget_limit(self) -> None:
        """Start every credential's window afresh."""
        with self._lock:
            self._accepted.clear()

    def arrive(self, entry: Entry) -> None:
        """Count a request and put it in the log."""
        now = time.monotonic()
        with self._lock:
            self._total += 1
            entry.number, entry.at = self._total, round(now - self._began, 4)
            self._kinds[entry.kind] += 1
            self._minute(now)["requests"] += 1
            if entry.company_id is not None:
                self._credentials[entry.company_id] += 1
                self._attempts.setdefault(entry.company_id, SlidingWindow()).record(now)
            self._log.append(entry)

    def admit(self, credential: str) -> float:
        """0.0 if the credential may make this request now, else the seconds that it must wait."""
        now = time.monotonic()
        with self._lock:
            window = self._accepted.setdefault(credential, SlidingWindow())
            if self.limit_per_minute is not None:
                wait = window.wait(now, self.limit_per_minute)
                if wait > 0:
                    self._refused += 1
                    self._minute(now)["refused"] += 1
                    return wait
            window.record(now)
            return 0.0

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
                "per_minute": [{"minute": n} | dict(c) for n, c in sorted(self._minutes.items())],
                "faults": dict(self._faults),
                "log": [asdict(entry) for entry in list(self._log)[-log:]] if log else [],
            }

    def _minute(self, now: float) -> Counter[str]:
        return self._minutes.setdefault(int((now - self._began) // 60), Counter())
