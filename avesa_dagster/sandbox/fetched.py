"""Which pages of records were given to whom, and how often.

A test reads here that nothing was fetched twice: two lines of a company and table with the same
`changed_from`, `changed_to`, `above_id` and `fields`, or one with `times` above 1, are a page that
was fetched again. A page counts when its sending begins; one without a row is not counted.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.listing import Ask
from avesa_dagster.sandbox.timestamps import stamp


@dataclass(frozen=True, slots=True)
class Fetch:
    """A request for a page of records.

    `conditions`, `order_by`, `page`, `page_id`, `page_size` and `fields` are as sent (None: not
    sent). `changed_from`, `changed_to` (half-open, ISO 8601; None: unbounded) and `above_id` say
    what that means: the change times, and the id that every row's id exceeds (0: all). Where ids
    are text, it is the id that the rows of the window's first instant exceed ("": all).
    """

    company_id: str
    table: str
    conditions: str | None
    order_by: str | None
    page: str | None
    page_id: str | None
    page_size: str | None
    fields: str | None
    changed_from: str | None
    changed_to: str | None
    above_id: int | str


@dataclass(slots=True)
class Tally:
    """How often a page was given: soundly, spoilt by a fault, or to a client that had gone."""

    times: int = 0
    spoilt: int = 0
    undelivered: int = 0
    rows: int = 0


def fetch(
    company_id: str, table: str, conditions: str | None, query: dict[str, str], ask: Ask
) -> Fetch:
    """Describe a list request that was read as `ask`."""
    start, end = _bounds(ask.filter.updated)
    low = ask.filter.ids.low
    return Fetch(
        company_id=company_id,
        table=table,
        conditions=conditions,
        order_by=query.get("orderBy"),
        page=query.get("page"),
        page_id=query.get("pageId"),
        page_size=query.get("pageSize"),
        fields=query.get("fields"),
        changed_from=start,
        changed_to=end,
        above_id=max(0, ask.after or 0, 0 if low == float("-inf") else int(low) - 1),
    )


def _bounds(changed: Interval) -> tuple[str | None, str | None]:
    infinite = (float("-inf"), float("inf"))
    low, high = (None if at in infinite else stamp(int(at)) for at in (changed.low, changed.high))
    return low, high


class Fetched:
    """The pages given since the statistics began. Safe to use from every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tallies: dict[Fetch, Tally] = {}

    def reset(self) -> None:
        with self._lock:
            self._tallies.clear()

    def note(self, page: Fetch, rows: int, *, spoilt: bool, delivered: bool) -> None:
        """Count one page of `rows` records."""
        with self._lock:
            tally = self._tallies.setdefault(page, Tally())
            tally.rows = rows
            if not delivered:
                tally.undelivered += 1
            elif spoilt:
                tally.spoilt += 1
            else:
                tally.times += 1

    def report(self, company_id: str | None, table: str | None) -> list[dict[str, Any]]:
        """A line for each page: the request, its tally, `rows` of the last time."""
        with self._lock:
            return [
                asdict(page) | asdict(tally)
                for page, tally in self._tallies.items()
                if company_id in (None, page.company_id) and table in (None, page.table)
            ]
