"""Chunks on threads: each tried a few times, then set aside, while the others go on."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from avesa_dagster.catalog.models import ChunkRetry
from avesa_dagster.control.base import Chunk
from avesa_dagster.errors import (
    AvesaError,
    CredentialsRefused,
    DataError,
    FatalError,
    MassDeletionSuspected,
    RecordsRejected,
    RetriableError,
    Stopped,
    StoreError,
    Suspended,
    TimedOut,
)
from avesa_dagster.extract.chunks import fetch
from avesa_dagster.extract.guard import Guard
from avesa_dagster.extract.planner import name_of
from avesa_dagster.extract.request import Progress, Report
from avesa_dagster.extract.sizing import halved
from avesa_dagster.extract.workshop import Swept, Workshop
from avesa_dagster.logs import place
from avesa_dagster.sources.base import Cancelled, Source, Window

SAY_EVERY = 2.0
"""Seconds between two reports while nothing ends."""
_DECISIVE = (CredentialsRefused, StoreError, Suspended)
"""What ends a run: the other chunks would meet the same."""


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt at a chunk, for whoever counts them.

    Attributes:
        records: That the chunk has when it is completed; 0 before.
        stopped: The run was told to stop: the chunk did not fail.
    """

    chunk: Chunk
    records: int
    seconds: float
    requests: int
    retries: int
    ok: bool
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Ended:
    """What became of a chunk: fetched, or replaced by its halves."""

    chunk: Chunk
    swept: Swept = field(default_factory=Swept)
    halves: tuple[Chunk, ...] = ()


class Fetching:
    """Fetches chunks; each thread has a source of its own.

    Args:
        chunks: Those that are not finished, newest first.
        finished: Those that an earlier attempt finished.
        stop: Set to end it: no request is made after.
        note: Called after each attempt, from its thread.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        finished: Sequence[Chunk],
        open_source: Callable[[], Source],
        shop: Workshop,
        guard: Guard,
        retry: ChunkRetry,
        *,
        stop: threading.Event,
        cancelled: Cancelled,
        report: Report,
        note: Callable[[Attempted], None],
    ) -> None:
        self.failures: list[AvesaError] = []
        self._chunks = chunks
        self._open_source = open_source
        self._shop = shop
        self._guard = guard
        self._retry = retry
        self._stop = stop
        self._cancelled = cancelled
        self._report = report
        self._note = note
        self._own = threading.local()
        self._sources: list[Source] = []
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._before = len(finished)
        self._rows_before = sum(chunk.rows for chunk in finished)
        self._done = 0
        self._total = len(chunks)

    @property
    def requests(self) -> int:
        with self._lock:
            return sum(source.requests for source in self._sources)

    def all(self, threads: int) -> Swept:
        """Fetches every chunk; what looks for deletions last, when the windows are stored."""
        swept = Swept()
        last = ("deletions", "sweep")  # of what the windows brought, some may be gone since
        groups = [[chunk for chunk in self._chunks if chunk.kind not in last]]
        groups += [[chunk for chunk in self._chunks if chunk.kind == kind] for kind in last]
        pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="chunk")
        self._say(None)
        try:
            for group in groups:
                for found in self._group(pool, threads, group):
                    swept = Swept(swept.deleted + found.deleted, swept.hidden + found.hidden)
        except BaseException:
            self._stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for source in self._sources:
                source.close()
        return swept

    def _group(
        self, pool: ThreadPoolExecutor, threads: int, chunks: Sequence[Chunk]
    ) -> list[Swept]:
        swept = []
        waiting: set[Future[_Ended]] = set()
        queue = deque(chunks)
        while queue or waiting:
            while queue and len(waiting) < threads and not self._stop.is_set():
                waiting.add(pool.submit(self._placed, queue.popleft()))
            if not waiting:
                break
            done, waiting = wait(waiting, timeout=SAY_EVERY, return_when=FIRST_COMPLETED)
            if not done:
                self._say(None)
            for future in done:
                ended = self._taken(future)
                if ended is None:
                    continue
                if ended.halves:
                    queue.extendleft(reversed(ended.halves))
                    self._total += len(ended.halves) - 1
                    continue
                swept.append(ended.swept)
                self._done += 1
                self._say(str(Window(ended.chunk.start, ended.chunk.end)))
        return swept

    def _taken(self, future: Future[_Ended]) -> _Ended | None:
        try:
            return future.result()
        except Stopped:
            # What ends a run stops the other chunks. Else somebody stops it, and what was set aside
            # before is not all that is missing.
            if not any(isinstance(error, _DECISIVE) for error in self.failures):
                raise
        except AvesaError as error:
            self.failures.append(error)
            if isinstance(error, _DECISIVE):
                self._stop.set()
        return None

    def _placed(self, chunk: Chunk) -> _Ended:
        """As `_one`; what is logged meanwhile says which chunk it is about."""
        origin = self._shop.origin
        with place(
            tenant=chunk.tenant,
            service=chunk.service,
            table=chunk.table,
            window=str(Window(chunk.start, chunk.end)),
            run=origin.run_id,
            job=origin.job_id,
        ):
            return self._one(chunk)

    def _one(self, chunk: Chunk) -> _Ended:
        """Tries a chunk as often as it may be."""
        for attempt in range(1, self._retry.attempts + 1):
            try:
                return self._attempt(chunk)
            except AvesaError as error:
                self._guard.failed(error)
                halves = self._halved(chunk) if isinstance(error, TimedOut) else ()
                if halves:
                    return _Ended(chunk, halves=halves)
                if attempt == self._retry.attempts or not _worth_another(error):
                    raise
                self._pause(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, chunk: Chunk) -> _Ended:
        source = self._source()
        began, requests, retries = time.monotonic(), source.requests, source.retries
        fetched, swept = chunk, Swept()
        ok = stopped = False
        try:
            fetched, swept = fetch(chunk, source, self._shop)
            ok = True
        except Stopped:
            stopped = True
            raise
        finally:
            self._note(
                Attempted(
                    chunk=fetched,
                    records=fetched.rows if ok else 0,
                    seconds=time.monotonic() - began,
                    requests=source.requests - requests,
                    retries=source.retries - retries,
                    ok=ok,
                    stopped=stopped,
                )
            )
        self._guard.worked()
        return _Ended(fetched, swept)

    def _halved(self, chunk: Chunk) -> tuple[Chunk, ...]:
        """The halves that stand in the ledger in place of the chunk; none if it cannot be."""
        windows = halved(Window(chunk.start, chunk.end))
        if chunk.kind != "window" or len(windows) == 1:
            return ()
        parts = [
            Chunk(
                token=chunk.token,
                tenant=chunk.tenant,
                service=chunk.service,
                table=chunk.table,
                chunk_id=name_of(window),
                partition=chunk.partition,
                kind=chunk.kind,
                start=window.start,
                end=window.end,
            )
            for window in reversed(windows)
        ]
        return tuple(self._shop.ledger.split(chunk, parts, now=self._shop.clock()))

    def _pause(self, attempt: int, error: AvesaError) -> None:
        """Waits before the next attempt: longer each time, and never two chunks at once."""
        asked = error.retry_after if isinstance(error, RetriableError) else None
        wait_for = self._retry.first_wait_seconds * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
        wait_for = min(max(wait_for, asked or 0.0), self._retry.longest_wait_seconds)
        deadline = time.monotonic() + wait_for
        while (left := deadline - time.monotonic()) > 0:
            if self._stop.wait(min(left, 0.2)) or self._cancelled():
                raise Stopped("stopped before the next attempt", where=error.where)

    def _source(self) -> Source:
        if not hasattr(self._own, "source"):
            self._own.source = self._open_source()
            with self._lock:
                self._sources.append(self._own.source)
        source: Source = self._own.source
        return source

    def _say(self, ended: str | None) -> None:
        now = time.monotonic()
        left = (now - self._began) / self._done * (self._total - self._done) if self._done else None
        self._report(
            Progress(
                ended=ended,
                done=self._before + self._done,
                total=self._before + self._total,
                rows=self._rows_before + self._shop.tally.rows,
                requests=self.requests,
                seconds_left=left,
            )
        )


def _worth_another(error: AvesaError) -> bool:
    if isinstance(error, Suspended | RecordsRejected | MassDeletionSuspected | FatalError):
        return False
    return isinstance(error, RetriableError | DataError)
