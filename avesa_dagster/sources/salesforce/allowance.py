"""The requests that Salesforce allows a customer in 24 hours, which all its programs share.

Each answer says how many are used. AVESA stops at a set share of them, so that it never takes the
last ones from the customer's other programs.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping

from avesa_dagster.errors import Suspended, Where

_USED = re.compile(r"(?<![\w-])api-usage=([0-9]{1,12})/([0-9]{1,12})")
_LOOK_AGAIN = 60.0
"""Seconds after which one request may find out whether the allowance has returned."""


class DailyAllowance:
    """What is known of a customer's allowance; shared by the threads of one connection.

    Args:
        share: Where to stop, 0 to 1; None: nowhere.
    """

    def __init__(self, share: float | None, where: Where) -> None:
        self._share = share
        self._where = where
        self._lock = threading.Lock()
        self._enough = False
        self._spent: tuple[str, float] | None = None

    def admit(self) -> None:
        """Lets a request go, unless an answer said lately that the share is used up.

        Raises:
            Suspended: It is.
        """
        with self._lock:
            if self._spent is None:
                return
            said, at = self._spent
            if time.monotonic() < at + _LOOK_AGAIN:
                raise self._suspended(said)

    def noted(self, headers: Mapping[str, str]) -> Suspended | None:
        """Takes in what an answer says of the allowance.

        Returns:
            The error to raise in place of the answer. The answer that uses up the share is still
            good; the first one of a connection is not, or every probe would find all well.
        """
        if self._share is None:
            return None
        said = _USED.search(headers.get("Sforce-Limit-Info", ""))
        if said is None or int(said[2]) == 0:
            return None
        used, allowed = int(said[1]), int(said[2])
        with self._lock:
            if used < self._share * allowed:
                self._enough, self._spent = True, None
                return None
            text = (
                f"{used} of {allowed} daily requests are used, and AVESA stops at {self._share:.0%}"
            )
            self._spent = text, time.monotonic()
            kept, self._enough = self._enough, False
        return None if kept else self._suspended(text)

    def exhausted(self, said: str) -> Suspended:
        """The error for a refusal: nothing is left."""
        with self._lock:
            self._spent, self._enough = (said, time.monotonic()), False
        return self._suspended(said)

    def _suspended(self, said: str) -> Suspended:
        return Suspended(
            f"the customer's Salesforce allowance is used up: {said}",
            where=self._where,
            hint="nothing is lost; it is looked at again and goes on by itself when requests come "
            "free (the allowance counts the last 24 hours, and the customer's other programs use "
            "it too)",
            retry_after=_LOOK_AGAIN,
        )
