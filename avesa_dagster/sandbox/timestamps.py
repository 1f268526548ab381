"""Instants, as whole or fractional seconds since 1970 UTC, and the text that ConnectWise uses.

ConnectWise writes `YYYY-MM-DDThh:mm:ssZ` (fact page, Types). Years 0001 and 9999 are legal here,
because poisoned records carry them.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400
"""Seconds in a day."""


def stamp(epoch: int) -> str:
    """The text of a whole second: `2024-01-01T00:00:00Z`."""
    if 0 <= epoch < 253_402_300_800:
        year, month, day, hour, minute, second, *_ = time.gmtime(epoch)
    else:
        moment = EPOCH + timedelta(seconds=epoch)
        year, month, day = moment.year, moment.month, moment.day
        hour, minute, second = moment.hour, moment.minute, moment.second
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}Z"


def seconds(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 date or instant; one without an offset is read as UTC.

    Raises:
        ValueError: the text is not such a date.
    """
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH).total_seconds()


class Clock:
    """The simulator's clock: real time plus an offset, or standing still."""

    def __init__(self, now: float | None = None) -> None:
        self._offset = 0.0
        self._frozen_at: float | None = None
        if now is not None:
            self.set(now)

    def now(self) -> float:
        """Seconds since 1970 by this clock."""
        return time.time() + self._offset if self._frozen_at is None else self._frozen_at

    def set(self, now: float) -> None:
        """Make it `now`; a running clock runs on from there."""
        self._offset = now - time.time()
        if self._frozen_at is not None:
            self._frozen_at = now

    def follow_real_time(self, offset: float) -> None:
        """Run `offset` seconds ahead of the real time (negative: behind)."""
        self.set(time.time() + offset)

    def advance(self, by: float) -> None:
        """Move on by so many seconds (negative: back)."""
        self.set(self.now() + by)

    def freeze(self, frozen: bool) -> None:
        """Stop the clock where it is, or let it run on from there."""
        now = self.now()
        self._frozen_at = now if frozen else None
        self.set(now)
