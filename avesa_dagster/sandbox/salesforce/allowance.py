"""What an org may ask for in 24 hours, shared with the customer's other apps.

The windows roll by the simulator's clock: what was spent returns 24 hours later. A refused request
spends nothing. [INF]
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from avesa_dagster.sandbox.timestamps import DAY

REQUESTS = 100_000
JOBS = 10_000
STORAGE_MB = 1_000_000.0
_GRAIN = 60


class Rolling:
    """What was spent in the last 24 hours, by the minute."""

    def __init__(self) -> None:
        self._spent: deque[list[float]] = deque()
        self._total = 0.0

    def used(self, now: float) -> float:
        while self._spent and self._spent[0][0] <= now - DAY:
            self._total -= self._spent.popleft()[1]
        return self._total

    def spend(self, now: float, amount: float) -> None:
        self.used(now)
        minute = now // _GRAIN * _GRAIN
        if self._spent and self._spent[-1][0] == minute:
            self._spent[-1][1] += amount
        else:
            self._spent.append([minute, amount])
        self._total += amount

    def clear(self) -> None:
        self._spent.clear()
        self._total = 0.0


class Allowance:
    """The allowance of one org. Safe to use from every thread.

    Attributes:
        per_app: (most, name) of the caller's own share, told in the header; None: not told.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own, self._others = Rolling(), Rolling()
        self._jobs, self._storage = Rolling(), Rolling()
        self.most = REQUESTS
        self.jobs_most = JOBS
        self.storage_most_mb = STORAGE_MB
        self.per_app: tuple[int, str] | None = None

    def admit(self, now: float) -> bool:
        """Spend one request if there is one left."""
        with self._lock:
            if self._own.used(now) + self._others.used(now) >= self.most:
                return False
            self._own.spend(now, 1)
            return True

    def admit_job(self, now: float) -> bool:
        """Spend one bulk query job if there is one left, and room for its results."""
        with self._lock:
            full = self._storage.used(now) >= self.storage_most_mb
            if full or self._jobs.used(now) >= self.jobs_most:
                return False
            self._jobs.spend(now, 1)
            return True

    def store(self, now: float, size: int) -> None:
        """Count the bytes of bulk results."""
        with self._lock:
            self._storage.spend(now, size / 2**20)

    def spend_by_others(self, now: float, amount: float) -> None:
        """The customer's other apps make so many requests (negative: theirs return)."""
        with self._lock:
            self._others.spend(now, amount)

    def restore(self) -> None:
        """All that was spent returns."""
        with self._lock:
            for kept in (self._own, self._others, self._jobs, self._storage):
                kept.clear()

    def header(self, now: float) -> str:
        """The value of Sforce-Limit-Info."""
        with self._lock:
            own = int(self._own.used(now))
            text = f"api-usage={own + int(self._others.used(now))}/{self.most}"
            if self.per_app is not None:
                text += f"; per-app-api-usage={own}/{self.per_app[0]}(appName={self.per_app[1]})"
            return text

    def report(self, now: float) -> dict[str, Any]:
        """Plain data: the requests used and left, jobs and megabytes too."""
        with self._lock:
            own, others = int(self._own.used(now)), int(self._others.used(now))
            return {
                "max": self.most,
                "own": own,
                "others": others,
                "remaining": max(0, self.most - own - others),
                "jobs": int(self._jobs.used(now)),
                "jobs_max": self.jobs_most,
                "storage_mb": self._storage.used(now),
                "storage_max_mb": self.storage_most_mb,
            }
