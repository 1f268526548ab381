"""An installation beside a simulated service, on one clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from avesa_dagster.canonical.history import rebuild
from avesa_dagster.canonical.versions import build_partition
from avesa_dagster.catalog import grain
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import (
    BreakerSettings,
    Catalog,
    ChunkRetry,
    ServiceTable,
    SweepGuard,
)
from avesa_dagster.conformance.enrolment import Enrolment, Rig
from avesa_dagster.conformance.ground import settings_at
from avesa_dagster.control.base import Chunk, TenantService
from avesa_dagster.extract import proof
from avesa_dagster.extract.request import Extracted, Mode, Progress, Request
from avesa_dagster.installation import Installation
from avesa_dagster.lake.layout import partition_of, table_prefix
from avesa_dagster.sources.http import Retrying

TENANT = "acme"
NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
LOOKBACK_DAYS = 50
YEARS = 0.13
"""Of history that a world has: a little less than the look-back."""
HASTY = Retrying(attempts=8, initial=0.005, longest=0.02)
UNPACED = 10_000_000
"""Requests a minute: so many that the budget never makes anyone wait."""
FEW = 5
"""Records of the tables that a test is not about."""


class SharedClock:
    """Runs with the real time from `now` on, as the simulated service's does."""

    def __init__(self, now: datetime) -> None:
        self.set(now)

    def __call__(self) -> datetime:
        return self._start + timedelta(seconds=time.monotonic() - self._began)

    def set(self, now: datetime) -> None:
        self._start, self._began = now, time.monotonic()


@dataclass(frozen=True, slots=True)
class Known:
    """What the service itself knows of a record.

    Attributes:
        updated_at: Its change time; None: it has none.
        deleted: It is gone, by whatever way the service has.
        visible: Lists show its latest version.
        contents: Every version that it had, oldest first, as comparable texts.
    """

    updated_at: datetime | None
    deleted: bool
    visible: bool
    contents: tuple[str, ...]


@dataclass
class Bench:
    """A rig and an installation with tenant `acme` connected to it.

    Attributes:
        table: The one that a test is about.
    """

    rig: Rig
    enrolment: Enrolment
    home: Path
    clock: SharedClock
    installation: Installation
    table: str
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0

    @property
    def service(self) -> str:
        return self.enrolment.service

    @property
    def known(self) -> ServiceTable:
        return self.installation.catalog.services[self.service].tables[self.table]

    @property
    def called(self) -> str:
        """What the rig calls the table."""
        return self.enrolment.called(self.table, self.known)

    @property
    def lag(self) -> float:
        """Seconds after which a change lies in a window of the present."""
        return self.installation.catalog.services[self.service].lag_seconds + 5

    @property
    def connection(self) -> TenantService:
        connection = self.installation.control.registry.get(TENANT, self.service)
        assert connection is not None
        return connection

    def control(self, method: str, /, **arguments: Any) -> Any:
        return self.rig.control(method, **arguments)

    def change(self, verb: str, **arguments: Any) -> list[Any]:
        """mutate, create, delete or undelete records of the table; returns their ids."""
        ids: list[Any] = self.control(verb, table=self.called, **arguments)["ids"]
        return ids

    def advance(self, seconds: float) -> None:
        """Time passes for the service and for us."""
        now = self.clock() + timedelta(seconds=seconds)
        self.clock.set(now)
        self.control("clock", now=now.isoformat())

    def settle(self) -> None:
        """Everything that happened so far lies in windows that may be asked for."""
        self.advance(self.lag)

    def hostile(self, *faults: Any, **rest: Any) -> None:
        """Sets a script; without arguments, none."""
        self.control("hostility", faults=list(faults), **rest)

    def again(self, home: Path) -> Bench:
        """Another installation beside the same world, with nothing fetched."""
        return _connected(self.rig, self.enrolment, home, self.clock, self.table, self.options)

    # Extracting

    def partitions(self) -> tuple[Partition, ...]:
        """From the first to the open one."""
        settings = self.installation.catalog.settings(TENANT, self.service)
        start = self.connection.history_start
        return tuple(grain.partitions(settings.partitions, start, self.clock()))

    def request(self, mode: Mode = Mode.BACKFILL, token: str | None = None) -> Request:
        """As Dagster would ask: a sync for the partitions since the watermark."""
        if token is None:
            self.tokens += 1
            token = f"token-{self.tokens}"
        partitions = self.partitions()
        if mode is Mode.SYNC or (mode is Mode.FULL and not self.known.master_data):
            extractor = self.installation.extractor
            start = extractor.sync_start(self.connection, self.table, self.clock())
            partitions = tuple(p for p in partitions if p.end > start)
        return Request(TENANT, self.service, self.table, partitions, mode, token, "conformance")

    def extract(self, mode: Mode = Mode.BACKFILL, token: str | None = None) -> Extracted:
        return self.run(self.request(mode, token))

    def run(
        self,
        request: Request,
        report: Callable[[Progress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Extracted:
        return self.installation.extractor.extract(request, report, cancelled)

    def chunks(self, token: str) -> list[Chunk]:
        return self.installation.control.ledger.rows(token, TENANT, self.service, self.table)

    # What there is

    def raw(self) -> list[dict[str, Any]]:
        """Every observation of the table, over all of its raw objects."""
        rows: list[dict[str, Any]] = []
        for key in self.raw_keys():
            with self.installation.objects.open(key) as file:
                rows += pq.ParquetFile(file).read().to_pylist()
        return rows

    def raw_keys(self) -> list[str]:
        """Keys of the table's raw objects."""
        prefix = table_prefix(TENANT, "raw", self.service, self.table)
        keys = (info.key for info in self.installation.objects.list(prefix))
        return [key for key in keys if key.startswith(f"{prefix}dt=")]

    def truth(self) -> dict[str, Known]:
        """What the service knows, by the text of the id.

        Raises:
            AssertionError: Changes of it are not visible yet.
        """
        now = self.control("truth_current", table=self.called)
        assert now["pending"] == 0, f"{self.service} {self.table}: the world is not settled"
        ever = self.control("truth", table=self.called)["records"]
        return {
            record_id: Known(
                updated_at=_moment(about["updated_at"]),
                deleted=bool(about["deleted"]),
                visible=bool(about["visible"]),
                contents=tuple(
                    self._comparable(version["payload"]) for version in ever[record_id]["versions"]
                ),
            )
            for record_id, about in now["records"].items()
        }

    def content(self, payload: str) -> str:
        """A stored payload, comparable with `Known.contents`."""
        return self._comparable(self.enrolment.content(payload.encode()))

    def _comparable(self, content: object) -> str:
        """One text for one content, without the fields that are never stored."""
        content = self.enrolment.counts(content)
        if isinstance(content, dict):
            content = {k: v for k, v in content.items() if k not in self.known.never_stored}
        return json.dumps(content, sort_keys=True)

    def requests_seen(self) -> int:
        """Requests that the service got since `stats_reset`."""
        return int(self.control("stats")["total"])

    def asked(self) -> int:
        """Requests for the table since `stats_reset`."""
        log = self.control("stats", log=5000)["log"]
        return sum(entry["table"] == self.called for entry in log)

    def canonical(self) -> set[str] | None:
        """Ids that analysts read as the table's present; None: it feeds no canonical table.

        Builds canonical partitions and history from raw, as the assets do.
        """
        catalog, objects = self.installation.catalog, self.installation.objects
        if self.known.canonical is None:
            return None
        prefix = table_prefix(TENANT, "raw", self.service, self.table)
        keys = (info.key for info in objects.list(prefix) if "/rejected/" not in info.key)
        for partition in sorted({partition_of(key) for key in keys}):
            build_partition(objects, catalog, TENANT, self.service, self.table, partition)
        rebuild(objects, catalog, TENANT, self.known.canonical)
        present = self.installation.reader().current(TENANT, self.known.canonical)
        mine = present.filter(
            f"source_service = '{self.service}' and source_table = '{self.known.endpoint}'"
        )
        return {row[0] for row in mine.project("id").fetchall()}


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))


def open_bench(
    rig: Rig,
    enrolment: Enrolment,
    home: Path,
    table: str,
    *,
    seed: int = 7,
    records: int = 60,
    page_clamp: int = 20,
    now: datetime = NOW,
    **options: Any,
) -> Bench:
    """A new world and a new installation, `acme` connected, nothing fetched.

    Args:
        records: Of the table; the others have a few.
        page_clamp: The rig's largest page.
        options: Of `tailored`, and `requests_per_minute`.
    """
    catalog = enrolment.catalog
    tables = catalog.services[enrolment.service].tables
    sizes = {enrolment.called(name, tables[name]): FEW for name in enrolment.proven()}
    sizes[enrolment.called(table, tables[table])] = records
    rig.control("restore")
    rig.control(
        "reset", seed=seed, now=now.isoformat(), sizes=sizes, years=YEARS, page_clamp=page_clamp
    )
    rig.control("latency", latency_ms=0)
    bench = _connected(rig, enrolment, home, SharedClock(now), table, options)
    bench.settle()
    rig.control("stats_reset")
    return bench


def _connected(
    rig: Rig,
    enrolment: Enrolment,
    home: Path,
    clock: SharedClock,
    table: str,
    options: dict[str, Any],
) -> Bench:
    settings = {name: value for name, value in options.items() if name != "requests_per_minute"}
    installation = Installation(settings_at(home, enrolment.folder), clock, HASTY)
    installation.__dict__["catalog"] = tailored(enrolment.catalog, enrolment.service, **settings)
    installation.connect(
        TENANT,
        enrolment.service,
        rig.credentials,
        lookback_days=LOOKBACK_DAYS,
        requests_per_minute=options.get("requests_per_minute", UNPACED),
        tables=(table,),
    )
    return Bench(rig, enrolment, home, clock, installation, table, options)


def tailored(
    catalog: Catalog,
    service: str,
    *,
    chunk_days: int = 30,
    page_size: int | None = 25,
    parallel: int = 4,
    bulk: bool | None = False,
    max_chunk_records: int = 50_000,
) -> Catalog:
    """The catalog with settings for small worlds: small pages, no waits, no guard that sweeps of a
    few records would trip over.

    Args:
        page_size: None: as in the catalog.
        bulk: Every window is large enough for a bulk job, or none is; None: as in the catalog.
    """
    known, backfill = catalog.services[service], catalog.backfill
    settings = backfill.services[service].model_copy(
        update={
            "chunk_size_days": chunk_days,
            "parallel_chunks": parallel,
            "max_chunk_records": max_chunk_records,
        }
    )
    small: dict[str, Any] = {"daily_share": None}
    if page_size is not None:
        small["page_size"] = page_size
    if bulk is not None:
        small["bulk_records"] = 1 if bulk else None
    return catalog.model_copy(
        update={
            "services": {**catalog.services, service: known.model_copy(update=small)},
            "backfill": backfill.model_copy(
                update={
                    "services": {**backfill.services, service: settings},
                    "sweep": SweepGuard(max_deleted_share=1.0, min_deleted_records=10),
                    "retry": ChunkRetry(attempts=2, first_wait_seconds=0),
                    "breaker": BreakerSettings(wait_seconds=0.01, longest_wait_seconds=0.01),
                }
            ),
        }
    )


@contextmanager
def segments_of(rows: int) -> Iterator[None]:
    """Segments end after so many rows, in this process, while the block runs."""
    defaults = proof.segments.__kwdefaults__
    assert defaults is not None
    before = defaults["rows"]
    defaults["rows"] = rows
    try:
        yield
    finally:
        defaults["rows"] = before
