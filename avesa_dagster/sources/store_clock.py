"""The clock of the service that keeps the shared state: the one clock that all hosts have.

Hosts' own clocks may disagree by minutes. Each answer of AWS carries the time at which it was made
(the header Date, whole seconds), and that moment lies between sending and receiving. Every answer
so bounds the difference between that clock and this machine's monotonic one, and the bounds of many
answers together are as narrow as a round trip.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from avesa_dagster.errors import StoreError

MICROS = 1_000_000
_DRIFT = 500e-6
"""Seconds a second by which a machine's monotonic clock may run wrong."""


class Clock(Protocol):
    """What of the store's clock this machine knows."""

    def moment(self) -> float:
        """The present on the machine's own clock, in seconds since no matter when."""
        ...

    def at(self, moment: float) -> tuple[int, int]:
        """Where the store's clock stands at a moment: not before the first, not after the second,
        in microseconds since 1970.

        Raises:
            StoreError: That is not known yet.
        """
        ...


class StoreClock:
    """Says between which two moments the store's clock stands. Safe for many threads.

    Args:
        slack: Seconds by which two servers of the store may disagree.
    """

    def __init__(self, slack: float) -> None:
        self._slack = slack
        self._lock = threading.Lock()
        self._sent = threading.local()
        self._watched: Any = None
        self._bounds: tuple[float, float, float] | None = None  # lowest, highest, when learnt

    def watch(self, client: Any) -> None:
        """Learns from each answer that a boto3 client gets."""
        with self._lock:
            if client is self._watched:
                return
            self._watched = client
        events, service = client.meta.events, client.meta.service_model.service_name
        events.register(f"before-send.{service}", self._sends, unique_id=f"sent-{id(self)}")
        events.register(
            f"response-received.{service}", self._received, unique_id=f"received-{id(self)}"
        )

    def learn(self, date: float, sent: float, received: float) -> None:
        """An answer says that it was made at `date`, whole seconds since 1970.

        Args:
            sent, received: When, by `moment`.
        """
        low, high = date - received - self._slack, date + 1 - sent + self._slack
        with self._lock:
            if self._bounds is not None:
                aged = _DRIFT * (received - self._bounds[2])
                before = self._bounds[0] - aged, self._bounds[1] + aged
                if max(low, before[0]) <= min(high, before[1]):
                    low, high = max(low, before[0]), min(high, before[1])
                else:  # servers disagree, or a clock was set: as careful as either
                    low, high = min(low, before[0]), max(high, before[1])
            self._bounds = low, high, received

    def moment(self) -> float:
        """See Clock.moment. Never set, and runs on while the machine sleeps."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    def at(self, moment: float) -> tuple[int, int]:
        """See Clock.at."""
        with self._lock:
            bounds = self._bounds
        if bounds is None:
            raise StoreError(
                "the answers of DynamoDB carry no Date",
                hint="no proxy between may remove the header; no request was made",
            )
        aged = _DRIFT * abs(moment - bounds[2])
        return (
            int((moment + bounds[0] - aged) * MICROS),
            int((moment + bounds[1] + aged) * MICROS) + 1,
        )

    def _sends(self, **_: Any) -> None:
        self._sent.at = self.moment()

    def _received(self, response_dict: Mapping[str, Any] | None = None, **_: Any) -> None:
        received, sent = self.moment(), getattr(self._sent, "at", None)
        date = None if response_dict is None else response_dict["headers"].get("date")
        if date is None or sent is None:
            return
        try:
            moment = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        self.learn(moment, sent, received)
