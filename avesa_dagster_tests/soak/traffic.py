"""Every request that the simulated service saw, with its time by the clock of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sources.base import SECOND_FORMAT

_EVERY = 1.0
_NEWEST = 600
"""Requests that one look takes; more than come in a second."""
CLOCKS_AGREE = 0.25
"""Seconds by which the time of a request, as it is computed here, may be wrong."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `at` is seconds since 1970."""

    at: float
    kind: str
    table: str | None
    company_id: str | None
    conditions: str | None
    fields: str | None
    status: int

    @property
    def is_page(self) -> bool:
        """Whether it asks for records, and not for a count, ids or the newest id."""
        return self.kind == "list" and self.fields is None

    def is_of(self, chunk: Chunk) -> bool:
        """Whether it asks for a page of just this chunk's window."""
        if not self.is_page or self.table != chunk.table:
            return False
        asked = self.conditions or ""
        if chunk.kind != "window":
            return "lastUpdated" not in asked
        start, end = (moment.strftime(SECOND_FORMAT) for moment in (chunk.start, chunk.end))
        return f">= [{start}]" in asked and f"< [{end}]" in asked


class Traffic:
    """Follows the simulator's log on a thread, since the block began.

    Example:
        with Traffic(simulator) as traffic:
            ...
            traffic.since(moment)
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._lock = threading.Lock()
        self._entries: dict[int, dict[str, Any]] = {}
        self._offset, self._doubt = 0.0, float("inf")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="traffic", daemon=True)
        self.lost = 0

    def __enter__(self) -> Traffic:
        self._simulator.control("stats_reset")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def all(self) -> list[Asked]:
        """Every request up to now, oldest first."""
        self._look()
        with self._lock:
            entries = [self._entries[number] for number in sorted(self._entries)]
            return [self._asked(entry) for entry in entries]

    def since(self, moment: float, company_id: str | None = None) -> list[Asked]:
        """Requests after a moment, of one company or of all."""
        return [
            asked
            for asked in self.all()
            if asked.at > moment and company_id in (None, asked.company_id)
        ]

    def last(self, company_id: str | None = None) -> float:
        """When the newest request came; 0 if none did."""
        return max((a.at for a in self.all() if company_id in (None, a.company_id)), default=0.0)

    def _follow(self) -> None:
        while not self._done.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        with self._lock:
            before = time.time()
            said = self._simulator.control("stats", log=_NEWEST)
            after = time.time()
            if after - before < self._doubt:
                self._doubt = after - before
                self._offset = (before + after) / 2 - said["seconds"]
            newest = max(self._entries, default=0)
            for entry in said["log"]:
                self._entries[entry["number"]] = entry
            if said["log"] and said["log"][0]["number"] > newest + 1:
                self.lost += said["log"][0]["number"] - newest - 1

    def _asked(self, entry: dict[str, Any]) -> Asked:
        return Asked(
            at=self._offset + entry["at"],
            kind=entry["kind"],
            table=entry["table"],
            company_id=entry["company_id"],
            conditions=entry["conditions"],
            fields=entry["query"].get("fields"),
            status=entry["status"],
        )


def asked_after_completion(chunks: Iterable[Chunk], traffic: Iterable[Asked]) -> list[str]:
    """Pages that were asked for after the ledger had called their chunk completed, in words."""
    pages = [asked for asked in traffic if asked.is_page]
    found = []
    for chunk in chunks:
        if chunk.state is not ChunkState.COMPLETED or chunk.finished_at is None:
            continue
        ended = chunk.finished_at.timestamp() + CLOCKS_AGREE
        late = [asked for asked in pages if asked.at > ended and asked.is_of(chunk)]
        if late:
            seconds = late[-1].at - chunk.finished_at.timestamp()
            found.append(f"{chunk.table} {chunk.chunk_id}: {len(late)}, {seconds:.1f} s after")
    return found


def given_too_often(chunks: Iterable[Chunk], pages: Iterable[dict[str, Any]]) -> list[str]:
    """Pages that went out more often than their chunk was begun, in words.

    Args:
        pages: What the simulator's `fetched` says of the company.
    """
    begun: dict[tuple[str, str | None, str | None], int] = {}
    for chunk in chunks:
        begun[_window_of(chunk)] = begun.get(_window_of(chunk), 0) + max(1, chunk.attempts)
    found = []
    for page in pages:
        if page["fields"] is not None:
            continue
        window = (page["table"], page["changed_from"], page["changed_to"])
        times = page["times"] + page["spoilt"] + page["undelivered"]
        if times > begun.get(window, 0):
            found.append(f"{window} above {page['above_id']}: {times} of {begun.get(window, 0)}")
    return found


def _window_of(chunk: Chunk) -> tuple[str, str | None, str | None]:
    if chunk.kind != "window":
        return chunk.table, None, None
    start, end = (moment.strftime(SECOND_FORMAT) for moment in (chunk.start, chunk.end))
    return chunk.table, start, end
