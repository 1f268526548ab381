"""Running an extraction: plan, fetch in parallel, newest first, and say how it went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import (
    COVERING,
    Chunk,
    ChunkState,
    Ledger,
    Registry,
    TenantService,
    Watermarks,
)
from avesa_dagster.control.coverage import coverage
from avesa_dagster.control.health import Breakers, Drift, DriftLog
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    StoreError,
    Suspended,
    Where,
)
from avesa_dagster.extract import planner
from avesa_dagster.extract.drift import Scope
from avesa_dagster.extract.drift import note as note_drift
from avesa_dagster.extract.fetching import Attempted, Fetching
from avesa_dagster.extract.guard import Guard
from avesa_dagster.extract.held import Held
from avesa_dagster.extract.raw import Origin
from avesa_dagster.extract.request import Extracted, Fetched, Mode, Report, Request
from avesa_dagster.extract.sizing import Sizes
from avesa_dagster.extract.workshop import Workshop
from avesa_dagster.lake.layout import partition_of
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sources.base import Cancelled, Clock, Source, Span, Window

OpenSource = Callable[[TenantService, bool, Cancelled], Callable[[], Source]]
"""(connection, live, cancelled) -> opens a source for one thread."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """Everything an extraction works with; see `Installation` for how it is put together."""

    catalog: Catalog
    registry: Registry
    watermarks: Watermarks
    ledger: Ledger
    breakers: Breakers
    drift: DriftLog
    objects: Objects
    open_source: OpenSource
    clock: Clock
    note: Callable[[Attempted], None] = lambda attempted: None

    def sync_start(self, connection: TenantService, table: str, now: datetime) -> datetime:
        """Where the next sync of a table begins: the watermark less the overlap.

        Without a watermark: the start of the partition in which the tenant connected last; older
        ones are a backfill's. Not of the open one: a first backfill that was planned before a
        month's end and a first sync after it would leave a gap between them.
        """
        service = self.catalog.services[connection.service]
        mark = self.watermarks.get(connection.tenant, connection.service, table)
        if mark is None:
            settings = self.catalog.settings(connection.tenant, connection.service)
            begun = min(connection.updated_at, now)
            return max(connection.history_start, grain.floor(settings.partitions, begun))
        start = mark.upper - timedelta(seconds=service.overlap_seconds)
        return max(connection.history_start, start)

    def extract(self, request: Request, report: Report, cancelled: Cancelled) -> Extracted:
        """Fetches what the request asks for and is not finished under its token.

        A chunk that fails is tried again a few times, then set aside; the others go on.

        Args:
            report: Called after each chunk and every few seconds, from the calling thread.
            cancelled: Asked before each request.

        Raises:
            ConfigurationError: Unknown or disconnected tenant, service or table.
            CredentialsRefused, Suspended: At once; the chunks under way end.
            AvesaError: After the other chunks: names the windows that failed; what was fetched
                is stored, and a retry fetches just the rest.
        """
        began = time.monotonic()
        connection = self._connection(request)
        stop = threading.Event()

        def stopping() -> bool:
            return stop.is_set() or cancelled()

        open_source = self.open_source(connection, request.mode is not Mode.BACKFILL, stopping)
        guard = self.guard(request.tenant, request.service, request.table, open_source)
        guard.admit()
        source = open_source()
        try:
            chunks = self._plan(request, connection, source)
        except AvesaError as error:
            guard.failed(error)
            raise error.at(
                tenant=request.tenant, service=request.service, table=request.table
            ) from None
        finally:
            spent = source.requests
            source.close()
        todo = [chunk for chunk in chunks if chunk.state is not ChunkState.COMPLETED]
        held = self._held(request)
        shop = self._workshop(request, connection, held)
        fetching = Fetching(
            todo,
            [chunk for chunk in chunks if chunk.state is ChunkState.COMPLETED],
            open_source,
            shop,
            guard,
            self.catalog.backfill.retry,
            stop=stop,
            cancelled=cancelled,
            report=report,
            note=self.note,
        )
        try:
            settings = self.catalog.settings(request.tenant, request.service)
            swept = fetching.all(settings.parallel_chunks)
        finally:
            stop.set()
            held.close()
        drifts = self._drifts(request, shop, chunks)
        if fetching.failures:
            raise _together(fetching.failures, len(chunks))
        finished = self._ledger_rows(request)
        self._advance(request, connection, finished)
        return Extracted(
            partitions=self._fetched(request, finished),
            chunks=tuple(finished),
            deleted=swept.deleted,
            hidden=swept.hidden,
            drifts=tuple(drifts),
            requests=spent + fetching.requests,
            seconds=time.monotonic() - began,
        )

    def arrived(self, request: Request) -> tuple[Fetched, ...]:
        """The requested partitions of which nothing is missing under the request's token."""
        rows = self._ledger_rows(request)
        open_ones = [chunk for chunk in rows if chunk.state is not ChunkState.COMPLETED]
        return tuple(
            fetched
            for fetched in self._fetched(request, rows)
            if fetched.windows
            and not any(
                chunk.start < fetched.partition.end and chunk.end > fetched.partition.start
                for chunk in open_ones
            )
        )

    def guard(
        self, tenant: str, service: str, table: str, open_source: Callable[[], Source]
    ) -> Guard:
        """The breaker of a tenant's service; its probe asks for the newest id of a table."""

        def probe() -> None:
            source = open_source()
            try:
                source.newest_id(table)
            finally:
                source.close()

        threshold = self.catalog.backfill.breaker.failures
        where = Where(tenant, service, table)
        return Guard(self.breakers, where, threshold, probe, self.clock)

    def _connection(self, request: Request) -> TenantService:
        where = Where(request.tenant, request.service, request.table)
        connection = self.registry.get(request.tenant, request.service)
        if connection is None:
            raise ConfigurationError(
                "this tenant has not connected this service",
                where=where,
                hint="avesa tenants lists what is connected",
            )
        if not connection.enabled:
            raise ConfigurationError(
                "this tenant service is disconnected",
                where=where,
                hint="connect it again to fetch; what was fetched stays queryable",
            )
        if request.table not in self.catalog.services[request.service].tables:
            raise ConfigurationError("there is no such table", where=where)
        return connection

    def _plan(self, request: Request, connection: TenantService, source: Source) -> list[Chunk]:
        """The chunks under the request's token; those of an earlier attempt stay as they were."""
        planned = self._ledger_rows(request)
        missing = tuple(
            part
            for part in request.partitions
            if not any(chunk.start < part.end and chunk.end > part.start for chunk in planned)
        )
        if not missing:
            return planned
        # What was the present when the others were planned ends within its partition.
        reached = max((chunk.end for chunk in planned), default=None)
        if reached is not None and missing[-1].end > reached:
            open_then = (p for p in request.partitions if p.start < reached < p.end)
            missing = (*open_then, *missing)
        request = replace(request, partitions=missing)
        service = self.catalog.services[request.service]
        settings = self.catalog.settings(request.tenant, request.service)
        now = source.now()
        upper = (now - timedelta(seconds=service.lag_seconds)).replace(microsecond=0)
        master = service.tables[request.table].master_data
        sync_from = None
        if request.mode is not Mode.BACKFILL:
            sync_from = self.sync_start(connection, request.table, now)
        chunks = planner.plan(
            request,
            upper=upper,
            sync_from=sync_from,
            reached=reached,
            wanted=self._wanted(request, upper),
            sizes=Sizes(
                days=request.chunk_days or settings.chunk_size_days,
                page_size=service.page_size,
                max_records=settings.max_chunk_records,
            ),
            count=(lambda window: source.count(request.table, Span(window)))
            if request.mode is Mode.BACKFILL
            else None,
            whole=master and request.mode is not Mode.SYNC,
            lists_deletions=source.lists_deletions,
        )
        return planned + (self.ledger.plan(chunks, now=self.clock()) if chunks else [])

    def _wanted(self, request: Request, upper: datetime) -> list[Window] | None:
        """What of the request is to be fetched; None: all of it."""
        if request.stretches:
            return list(request.stretches)
        if not request.only_missing:
            return None
        covered = self.ledger.covered(request.tenant, request.service, request.table)
        partitions = coverage(request.table, covered, request.partitions, upper)
        return [hole for partition in partitions for hole in partition.holes]

    def _drifts(self, request: Request, shop: Workshop, chunks: Sequence[Chunk]) -> list[Drift]:
        """What is new about the records' fields."""
        whole = any(chunk.kind == "full" for chunk in chunks)
        scope = Scope.HISTORY if request.mode is Mode.BACKFILL else Scope.CHANGES
        return note_drift(
            self.drift,
            request.tenant,
            request.service,
            request.table,
            shop.profile,
            self.clock(),
            scope=Scope.WHOLE if whole else scope,
        )

    def _held(self, request: Request) -> Held:
        table = self.catalog.services[request.service].tables[request.table]
        whole = table.master_data or request.mode is Mode.FULL
        partitions = None if whole else [partition.key for partition in request.partitions]
        return Held(self.objects, request.tenant, request.service, request.table, partitions)

    def _workshop(self, request: Request, connection: TenantService, held: Held) -> Workshop:
        settings = self.catalog.settings(request.tenant, request.service)
        first = grain.floor(settings.partitions, connection.history_start)
        open_start = grain.floor(settings.partitions, self.clock())
        return Workshop(
            objects=self.objects,
            ledger=self.ledger,
            clock=self.clock,
            origin=Origin(request.run_id, request.mode.value, request.job_id),
            partitions=request.partitions,
            first=first,
            last=grain.following(settings.partitions, open_start),
            guard=self.catalog.backfill.sweep,
            held=held,
            sweeping=request.mode is Mode.FULL,
        )

    def _advance(
        self, request: Request, connection: TenantService, chunks: Sequence[Chunk]
    ) -> None:
        """Moves the watermark if these windows reach the present: the frontier of the lag."""
        reached = [chunk for chunk in chunks if chunk.kind in COVERING]
        if not reached:
            return
        upper = lower = max(chunk.end for chunk in reached)
        for chunk in sorted(reached, key=lambda chunk: chunk.end, reverse=True):
            if chunk.end < lower:
                break  # what lies before this gap does not lead up to the present
            lower = min(lower, chunk.start)
        if self.watermarks.get(request.tenant, request.service, request.table) is None:
            # A first mark says that nothing before it is missing since the connection.
            if lower > self.sync_start(connection, request.table, self.clock()):
                return
            if request.end <= self.clock():
                return
        self.watermarks.advance(
            request.tenant,
            request.service,
            request.table,
            lower=lower,
            upper=upper,
            now=self.clock(),
        )

    def _fetched(self, request: Request, chunks: Sequence[Chunk]) -> tuple[Fetched, ...]:
        return tuple(_fetched(partition, chunks) for partition in request.partitions)

    def _ledger_rows(self, request: Request) -> list[Chunk]:
        rows = self.ledger.rows(request.token, request.tenant, request.service, request.table)
        return [chunk for chunk in rows if chunk.start < request.end and chunk.end > request.start]


def _fetched(partition: Partition, chunks: Sequence[Chunk]) -> Fetched:
    """What the chunks say of one partition; of a full pull, what it stored there."""
    own = [chunk for chunk in chunks if chunk.partition == partition.key]
    whole = [chunk for chunk in chunks if chunk.partition == planner.WHOLE]
    return Fetched(
        partition=partition,
        rows=sum(chunk.rows for chunk in own),
        source_count=sum(chunk.source_count or 0 for chunk in own),
        requests=sum(chunk.requests for chunk in own),
        objects=tuple(
            key
            for chunk in (*own, *whole)
            for key in chunk.objects
            if partition_of(key) == partition.key
        ),
        windows=tuple(str(Window(c.start, c.end)) for c in (*own, *whole)),
        as_of=min((c.as_of for c in (*own, *whole) if c.as_of), default=None),
    )


def _together(failures: Sequence[AvesaError], total: int) -> AvesaError:
    """The first failure, or one error that names every window that failed."""
    decisive = (e for e in failures if isinstance(e, CredentialsRefused | StoreError | Suspended))
    first = next(decisive, failures[0])
    if len(failures) == 1 or isinstance(first, CredentialsRefused | StoreError | Suspended):
        return first
    windows = ", ".join(str(error.where.window) for error in failures)
    where = Where(first.where.tenant, first.where.service, first.where.table)
    kind = DataError if isinstance(first, DataError) else type(first)
    return kind(
        f"{len(failures)} of {total} windows failed: {windows}; the first: {first.what}",
        where=where,
        hint="what was fetched is stored; a retry fetches just these",
    )
