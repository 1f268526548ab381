"""What a job will cost: chunks, records and requests by the service's own counts, and the time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from avesa_dagster.backfill.overhead import LOOK_SECONDS, run_seconds
from avesa_dagster.backfill.span import job_partitions
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import BackfillSettings, Catalog
from avesa_dagster.control.jobs import Job, Piece
from avesa_dagster.extract.proof import SEGMENT_ROWS
from avesa_dagster.extract.sizing import Sized, Sizes, by_volume
from avesa_dagster.sources.base import Source, Span, Window

RUN_SECONDS = 12.0
"""About what a run takes beside fetching, for whoever needs no better figure."""
_RECORDS_PER_SECOND = 20_000
"""How fast records become raw and canonical tables, beside the waiting for the service."""
_TABLE_SECONDS = 0.5
"""Opening a source and asking the ledger, a run and table."""
_BURST = 0.25
"""Share of the budget that an idle one grants at once (sources/budget.py)."""


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """One chunk of the plan. `records` is what the service counted."""

    table: str
    window: Window
    records: int
    requests: int


@dataclass(frozen=True, slots=True)
class PlannedPiece:
    """One run of the plan.

    Attributes:
        requests: Those of its chunks, and those that size them.
        seconds: That it takes by itself within the budget.
    """

    piece: Piece
    chunks: tuple[PlannedChunk, ...]
    requests: int
    seconds: float

    @property
    def records(self) -> int:
        return sum(chunk.records for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job will cost.

    Attributes:
        asked: Requests that the estimate itself spent.
        latency: Seconds that one took, in the middle.
        wait: Seconds before its turn, by what else is under way.
        looks: Seconds until the sensor notices the job, and in the end that its runs have ended.
    """

    pieces: tuple[PlannedPiece, ...]
    asked: int
    latency: float
    wait: float
    looks: float = 0.0

    @property
    def chunks(self) -> int:
        return sum(len(piece.chunks) for piece in self.pieces)

    @property
    def records(self) -> int:
        return sum(piece.records for piece in self.pieces)

    @property
    def requests(self) -> int:
        return sum(piece.requests for piece in self.pieces)

    @property
    def seconds(self) -> float:
        """From its turn to its end."""
        return self.looks + sum(piece.seconds for piece in self.pieces)

    def ends_at(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self.wait + self.seconds)


class Estimator:
    """Asks the service how much there is, and says what fetching it will take.

    Args:
        wanted: table -> what of it is to be fetched; None: all.
        limit: Requests a minute.
        free: Requests that the budget grants at once at present.
        wait: Seconds before the job's turn.
        slowness: Of this machine, see `overhead`.
    """

    def __init__(
        self,
        catalog: Catalog,
        source: Source,
        *,
        wanted: Callable[[str], Sequence[Window] | None],
        limit: int,
        free: int,
        wait: float,
        slowness: float = 1.0,
    ) -> None:
        self._catalog = catalog
        self._source = source
        self._wanted = wanted
        self._limit = limit
        self._free = min(free, math.ceil(limit * _BURST))
        self._wait = wait
        self._slowness = slowness
        self._took: list[float] = []

    def estimate(self, job: Job, report: Callable[[str], None]) -> Estimate:
        """Asks about every chunk of the job; spends about one request a chunk.

        Args:
            report: Told which table is being counted.

        Raises:
            AvesaError: As the source.
        """
        service = self._catalog.services[job.service]
        lag = timedelta(seconds=service.lag_seconds)
        upper = (self._source.now() - lag).replace(microsecond=0)
        known: dict[str, list[Sized]] = {}
        whole: dict[str, int] = {}
        for table in job.tables:
            report(table)
            stretches = self._stretches(job, table, job_partitions(job, self._catalog), upper)
            if not service.tables[table].master_data:
                count = partial(self._count, table)
                known[table] = by_volume(stretches, self._sizes(job), count, each=True)
            elif stretches:
                whole[table] = self._count(table, None)
        asked = self._source.requests
        latency = statistics.median(self._took) if self._took else 0.2
        pieces = []
        free = float(self._free)
        for piece in job.pieces:
            planned = self._piece(job, piece, known, whole, upper)
            seconds, free = self._seconds(job, piece, planned, latency, free)
            pieces.append(PlannedPiece(piece, planned[0], planned[1], seconds))
        looks = LOOK_SECONDS * self._slowness
        return Estimate(tuple(pieces), asked, latency, self._wait, looks)

    def _count(self, table: str, window: Window | None) -> int:
        began = time.monotonic()
        found = self._source.count(table, Span(window))
        self._took.append(time.monotonic() - began)
        return found

    def _piece(
        self,
        job: Job,
        piece: Piece,
        known: dict[str, list[Sized]],
        whole: dict[str, int],
        upper: datetime,
    ) -> tuple[tuple[PlannedChunk, ...], int]:
        """The chunks of a piece, and its requests."""
        page_size = self._catalog.services[job.service].page_size
        parts = [p for p in job_partitions(job, self._catalog) if _within(p, piece)]
        chunks: list[PlannedChunk] = []
        asked = 0
        for table in piece.tables:
            asked += 1  # the address of the API
            if table in whole:
                window = Window(parts[0].start, min(parts[-1].end, upper))
                cost = 2 + _requests(whole[table], page_size)
                chunks.append(PlannedChunk(table, window, whole[table], cost))
                continue
            counted = known.get(table, [])
            questions = _Questions(counted)
            stretches = self._stretches(job, table, parts, upper)
            for sized in by_volume(stretches, self._sizes(job), questions):
                records = questions.held(sized.window)
                cost = _requests(records, page_size)
                chunks.append(PlannedChunk(table, sized.window, records, cost))
            asked += questions.asked
        return tuple(chunks), asked + sum(chunk.requests for chunk in chunks)

    def _seconds(
        self,
        job: Job,
        piece: Piece,
        planned: tuple[tuple[PlannedChunk, ...], int],
        latency: float,
        free: float,
    ) -> tuple[float, float]:
        """Seconds that a piece takes, and what the budget grants at once after it."""
        chunks, requests = planned
        threads = self._settings(job).parallel_chunks
        waiting = 0.0
        for table in {chunk.table for chunk in chunks}:
            own = [chunk.requests for chunk in chunks if chunk.table == table]
            waiting += max(max(own), math.ceil(sum(own) / threads)) * latency
        waiting += (requests - sum(chunk.requests for chunk in chunks)) * latency
        a_second = self._limit / 60
        paced = max(0.0, requests - free) / a_second
        fetching = max(waiting, paced)
        fetching += sum(chunk.records for chunk in chunks) / _RECORDS_PER_SECOND
        partitions = sum(_within(p, piece) for p in job_partitions(job, self._catalog))
        beside = self._slowness * (
            run_seconds(len(piece.tables), partitions) + _TABLE_SECONDS * len(piece.tables)
        )
        free = min(
            math.ceil(self._limit * _BURST),
            max(0.0, free - requests) + (fetching - paced + beside) * a_second,
        )
        return beside + fetching, free

    def _stretches(
        self, job: Job, table: str, parts: Sequence[Partition], upper: datetime
    ) -> list[tuple[Partition, Window]]:
        wanted = self._wanted(table)
        found = []
        for part in parts:
            for asked in [Window(part.start, part.end)] if wanted is None else wanted:
                start, end = max(part.start, asked.start), min(part.end, asked.end, upper)
                if start < end:
                    found.append((part, Window(start, end)))
        return found

    def _sizes(self, job: Job) -> Sizes:
        settings = self._settings(job)
        return Sizes(
            job.chunk_size_days or settings.chunk_size_days,
            self._catalog.services[job.service].page_size,
            settings.max_chunk_records,
        )

    def _settings(self, job: Job) -> BackfillSettings:
        return self._catalog.settings(job.tenant, job.service)


class _Questions:
    """Answers what the service would, from what it said, and counts how often it is asked."""

    def __init__(self, known: Sequence[Sized]) -> None:
        self._known = known
        self.asked = 0

    def __call__(self, window: Window) -> int:
        self.asked += 1
        return self.held(window)

    def held(self, window: Window) -> int:
        """Records in the window; of a chunk that lies in it in part, that part."""
        total = 0.0
        for sized in self._known:
            start, end = max(sized.window.start, window.start), min(sized.window.end, window.end)
            if start < end:
                length = sized.window.end - sized.window.start
                total += sized.records * ((end - start) / length)
        return round(total)


def _requests(records: int, page_size: int) -> int:
    """A count, the pages, and a count for each full segment (extract/proof)."""
    pages = max(1, math.ceil(records / page_size))
    if pages > 1 and records % page_size == 0:
        pages += 1
    return 1 + pages + records // SEGMENT_ROWS


def _within(partition: Partition, piece: Piece) -> bool:
    return piece.first <= partition.key <= piece.last
