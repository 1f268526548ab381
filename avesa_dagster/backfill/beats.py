"""A run that says every few seconds that it lives, and notices soon that it has to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from avesa_dagster.control.jobs import Processing, ProcessingJobs
from avesa_dagster.errors import AvesaError, Stopped, Where
from avesa_dagster.extract.request import Progress
from avesa_dagster.sources.base import Cancelled, Clock

BEAT_SECONDS = 3.0
STALE = timedelta(seconds=30)
"""A run that said nothing for so long is dead."""
_LOOK_SECONDS = 0.5


class Stopping:
    """Asks why the run has to stop, at most twice a second however often it is called itself."""

    def __init__(self, ask: Callable[[], str | None]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._next = 0.0
        self.reason: str | None = None

    def __call__(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if self.reason is None and now >= self._next:
                self.reason = self._ask()
                self._next = time.monotonic() + _LOOK_SECONDS
        return self.reason is not None


class Beating:
    """One row of ProcessingJobs while its run works."""

    def __init__(self, table: ProcessingJobs, row: Processing, clock: Clock) -> None:
        self._table = table
        self._clock = clock
        self._lock = threading.Lock()
        self.row = row

    def told(self, progress: Progress) -> None:
        """Keeps what the extraction says; the next beat stores it."""
        with self._lock:
            self.row = replace(
                self.row,
                window=progress.ended or self.row.window,
                total_chunks=progress.total,
                completed_chunks=progress.done,
                records=progress.rows,
                requests=progress.requests,
            )

    def say(self, extra: dict[str, str]) -> None:
        """Keeps what else the run says; the next beat stores it."""
        with self._lock:
            self.row = replace(self.row, extra=extra)

    def beat(self) -> None:
        """Stores the row."""
        with self._lock:
            self.row = replace(self.row, beat_at=self._clock())
            self._table.beat(self.row)

    def end(self, status: str, error: str | None = None) -> None:
        """Stores the end."""
        with self._lock:
            now = self._clock()
            self.row = replace(self.row, status=status, error=error, beat_at=now, ended_at=now)
            self._table.beat(self.row)


@contextmanager
def beating(
    table: ProcessingJobs,
    row: Processing,
    clock: Clock,
    cancelled: Cancelled,
    waiting: Callable[[Processing], None],
    ended: Callable[[Processing], bool],
    tenants: int | None = None,
) -> Iterator[Beating]:
    """Holds the row's lane while the block runs, and beats; in the end the row says how it ended.

    Args:
        cancelled: Ends the wait for the lane.
        waiting: Told of the run that holds the lane, once each.
        ended: Whether a run that seems to hold the lane is known to have ended.
        tenants: Runs of at most so many tenants work at once in the row's mode.

    Raises:
        Stopped: It was cancelled while it waited; nothing was stored.
    """
    told = ""

    def holds() -> Processing | None:
        now = clock()
        return table.claim(replace(row, beat_at=now), stale_before=now - STALE, tenants=tenants)

    while holder := holds():
        if ended(holder):
            table.beat(replace(holder, status="failed", error="its process died"))
            continue
        if holder.run_id != told:
            waiting(holder)
            told = holder.run_id
        if cancelled():
            where = Where(row.tenant, row.service, row.table)
            raise Stopped(f"stopped while it waited for run {holder.run_id}", where=where)
        time.sleep(_LOOK_SECONDS)
    alive = Beating(table, row, clock)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            try:
                alive.beat()
            except AvesaError:
                continue  # the run itself meets it too, and says so

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield alive
    except BaseException as error:
        done.set()
        thread.join()
        failed = isinstance(error, Exception) and not isinstance(error, Stopped)
        alive.end("failed" if failed else "stopped", str(error) or None)
        raise
    else:
        done.set()
        thread.join()
        alive.end("completed")
