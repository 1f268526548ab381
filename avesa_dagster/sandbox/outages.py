"""What is broken until somebody heals it: a company, a table of it, or a window of change times.

`hostility` is for faults that come and go; an outage holds for every request that it concerns. Of
several outages that concern one request, the one declared first happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.hostility import Traits


@dataclass(slots=True)
class Outage:
    """One outage.

    Attributes:
        company_id, table: whom it concerns; None is all of them.
        changed: change times, seconds since 1970 UTC. It then concerns only requests whose own
            conditions bound the change time (joined by AND) and overlap it. None: every request.
        on: the kinds of request (list, count, get, info, companyinfo); None is all.
        status: what to answer; None answers as usual.
        seconds: how long a request hangs first. Healing lets go of those that hang.
        met: how many requests it has concerned.
    """

    name: str
    company_id: str | None = None
    table: str | None = None
    changed: Interval | None = None
    on: frozenset[str] | None = None
    status: int | None = None
    seconds: float = 0.0
    met: int = 0
    healed: threading.Event = field(default_factory=threading.Event)

    @property
    def kind(self) -> str:
        """Its name among the faults of the statistics."""
        return "hang" if self.status is None else "fail"

    def concerns(self, traits: Traits, changed: Callable[[], Interval]) -> bool:
        """Whether a request meets it; `changed` reads the change times that the request is for."""
        if self.company_id not in (None, traits.company_id):
            return False
        if self.table not in (None, traits.table):
            return False
        if self.on is not None and traits.kind not in self.on:
            return False
        if self.changed is None:
            return True
        asked = changed()
        return not asked.everything and asked.overlaps(self.changed)


class Outages:
    """The outages in force. Safe to use from every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = 0
        self._outages: dict[str, Outage] = {}

    def declare(self, outage: Outage) -> str:
        """Put an outage in force; an empty name is replaced by a new one. Returns the name.

        Raises:
            ValueError: one of that name is in force.
        """
        with self._lock:
            self._made += 1
            outage.name = outage.name or f"outage-{self._made}"
            if outage.name in self._outages:
                raise ValueError(f"an outage {outage.name!r} is in force")
            self._outages[outage.name] = outage
            return outage.name

    def heal(
        self, names: list[str] | None, company_id: str | None, table: str | None
    ) -> dict[str, int]:
        """End the outages named, or those declared for a company and table (None: whichever).

        Returns:
            Name to the number of requests that met it, of those ended.

        Raises:
            ValueError: a name is not in force.
        """
        with self._lock:
            unknown = set(names or ()) - set(self._outages)
            if unknown:
                raise ValueError(f"no outage {sorted(unknown)}; in force: {list(self._outages)}")
            ended = [
                outage
                for outage in self._outages.values()
                if (names is None or outage.name in names)
                and company_id in (None, outage.company_id)
                and table in (None, outage.table)
            ]
            for outage in ended:
                del self._outages[outage.name]
                outage.healed.set()
            return {outage.name: outage.met for outage in ended}

    def met_by(self, traits: Traits, changed: Callable[[], Interval]) -> Outage | None:
        """The outage that a request meets, counted at once, or None."""
        with self._lock:
            for outage in self._outages.values():
                if outage.concerns(traits, changed):
                    outage.met += 1
                    return outage
        return None

    def report(self) -> list[dict[str, Any]]:
        """The outages in force as plain data, with how many requests met each."""
        with self._lock:
            return [
                {
                    "name": outage.name,
                    "company_id": outage.company_id,
                    "table": outage.table,
                    "status": outage.status,
                    "seconds": outage.seconds,
                    "met": outage.met,
                }
                for outage in self._outages.values()
            ]
