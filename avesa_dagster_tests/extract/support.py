"""An installation beside a simulated service, on one clock, and the comparison with the truth."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import BreakerSettings, Catalog, ChunkRetry, SweepGuard
from avesa_dagster.conformance.bench import HASTY, UNPACED, SharedClock
from avesa_dagster.conformance.ground import settings_at
from avesa_dagster.conformance.judge import distinct as distinct_versions
from avesa_dagster.control.base import Chunk
from avesa_dagster.extract import proof
from avesa_dagster.extract.request import Extracted, Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.lake.layout import partition_of, table_prefix
from avesa_dagster.lake.objects import Objects
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sources.http import Retrying

__all__ = ["HASTY", "UNPACED", "SharedClock", "distinct_versions"]
TENANT, SERVICE = "acme", "connectwise"
NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
MAPPINGS = Path(__file__).resolve().parents[2] / "mappings"
SIZES = {"tickets": 160, "time_entries": 40, "companies": 20, "contacts": 30}
YEARS = 0.3
LOOKBACK_DAYS = 110

_catalog: Catalog | None = None


def catalog(*, chunk_days: int = 30, max_deleted_share: float = 0.1, parallel: int = 4) -> Catalog:
    """The real catalog with these settings."""
    global _catalog
    _catalog = _catalog or load_catalog(MAPPINGS)
    known = _catalog.backfill
    settings = known.services[SERVICE].model_copy(
        update={"chunk_size_days": chunk_days, "parallel_chunks": parallel}
    )
    backfill = known.model_copy(
        update={
            "services": {SERVICE: settings},
            "sweep": SweepGuard(max_deleted_share=max_deleted_share, min_deleted_records=10),
            "retry": ChunkRetry(attempts=2, first_wait_seconds=0),
            "breaker": BreakerSettings(wait_seconds=0.01, longest_wait_seconds=0.01),
        }
    )
    small_pages = _catalog.services[SERVICE].model_copy(update={"page_size": 25})
    return _catalog.model_copy(update={"backfill": backfill, "services": {SERVICE: small_pages}})


class _Version(msgspec.Struct):
    payload: msgspec.Raw
    updated_at: str | None = None


class _History(msgspec.Struct):
    versions: list[_Version]


class _Truth(msgspec.Struct):
    records: dict[str, _History]


_truth = msgspec.json.Decoder(_Truth)


@dataclass
class Bench:
    """A simulator and an installation with tenant `acme` connected to it."""

    simulator: Simulator
    home: Path
    clock: SharedClock
    installation: Installation
    tokens: int = 0
    said: list[str] = field(default_factory=list)

    def control(self, method: str, **arguments: Any) -> Any:
        return self.simulator.control(method, **arguments)

    def advance(self, seconds: float) -> None:
        """Time passes for the service and for us."""
        self.set_time(self.clock() + timedelta(seconds=seconds))

    def set_time(self, now: datetime) -> None:
        self.clock.set(now)
        self.control("clock", now=now.isoformat())

    def partitions(self) -> tuple[Partition, ...]:
        """From the first to the open one."""
        connection = self.installation.control.registry.get(TENANT, SERVICE)
        assert connection is not None
        settings = self.installation.catalog.settings(TENANT, SERVICE)
        return tuple(grain.partitions(settings.partitions, connection.history_start, self.clock()))

    def sync_partitions(self, table: str) -> tuple[Partition, ...]:
        """Those that the live sync would request: since the watermark."""
        connection = self.installation.control.registry.get(TENANT, SERVICE)
        assert connection is not None
        start = self.installation.extractor.sync_start(connection, table, self.clock())
        return tuple(p for p in self.partitions() if p.end > start)

    def request(
        self,
        table: str,
        mode: Mode = Mode.BACKFILL,
        token: str | None = None,
        partitions: tuple[Partition, ...] | None = None,
    ) -> Request:
        if token is None:
            self.tokens += 1
            token = f"token-{self.tokens}"
        master = self.installation.catalog.services[SERVICE].tables[table].master_data
        if partitions is None and (mode is Mode.SYNC or (mode is Mode.FULL and not master)):
            partitions = self.sync_partitions(table)
        partitions = self.partitions() if partitions is None else partitions
        return Request(TENANT, SERVICE, table, partitions, mode, token, f"run-{self.tokens}")

    def extract(
        self,
        table: str,
        mode: Mode = Mode.BACKFILL,
        token: str | None = None,
        partitions: tuple[Partition, ...] | None = None,
    ) -> Extracted:
        return self.run(self.request(table, mode, token, partitions))

    def run(self, request: Request) -> Extracted:
        return self.installation.extractor.extract(request, lambda progress: None, lambda: False)

    def chunks(self, token: str, table: str) -> list[Chunk]:
        return self.installation.control.ledger.rows(token, TENANT, SERVICE, table)

    def watermark(self, table: str) -> datetime | None:
        held = self.installation.control.watermarks.get(TENANT, SERVICE, table)
        return None if held is None else held.upper

    def raw(self, table: str) -> list[dict[str, Any]]:
        return raw_rows(self.installation.objects, TENANT, SERVICE, table)

    def log(self) -> list[dict[str, Any]]:
        """The simulator's log of requests since `stats_reset`."""
        found: list[dict[str, Any]] = self.control("stats", log=5000)["log"]
        return found

    def current(self, table: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.control("truth_current", table=table)["records"]
        return found

    def versions(self, table: str) -> dict[str, set[bytes]]:
        """Record id to the payloads that the service ever held, byte for byte."""
        asked = urllib.request.Request(
            f"{self.simulator.url}/__sim__/truth",
            data=msgspec.json.encode({"table": table}),
            headers={"X-Sim-Token": self.simulator._token},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            truth = _truth.decode(answer.read())
        return {
            record_id: {bytes(version.payload) for version in record.versions}
            for record_id, record in truth.records.items()
        }


def raw_rows(objects: Objects, tenant: str, service: str, table: str) -> list[dict[str, Any]]:
    """Every observation of a table, over all of its raw objects."""
    rows: list[dict[str, Any]] = []
    prefix = table_prefix(tenant, "raw", service, table)
    for info in objects.list(prefix):
        if info.key.startswith(f"{prefix}dt="):
            with objects.open(info.key) as file:
                part: pa.Table = pq.ParquetFile(file).read()
            rows += [row | {"dt": partition_of(info.key)} for row in part.to_pylist()]
    return rows


def open_bench(
    simulator: Simulator,
    home: Path,
    *,
    seed: int = 7,
    now: datetime = NOW,
    page_clamp: int = 20,
    chunk_days: int = 30,
    max_deleted_share: float = 1.0,
    parallel: int = 4,
    retrying: Retrying = HASTY,
    lookback_days: int = LOOKBACK_DAYS,
    years: float = YEARS,
    **sizes: int,
) -> Bench:
    """A new world and a new installation, `acme` connected, nothing fetched."""
    simulator.control(
        "reset",
        seed=seed,
        now=now.isoformat(),
        sizes=SIZES | sizes,
        years=years,
        page_clamp=page_clamp,
    )
    clock = SharedClock(now)
    installation = Installation(settings_at(home, MAPPINGS), clock, retrying)
    installation.__dict__["catalog"] = catalog(
        chunk_days=chunk_days, max_deleted_share=max_deleted_share, parallel=parallel
    )
    installation.connect(
        TENANT,
        SERVICE,
        simulator.credentials,
        lookback_days=lookback_days,
        requests_per_minute=UNPACED,
    )
    simulator.control("stats_reset")
    return Bench(simulator, home, clock, installation)


def assert_equals_truth(bench: Bench, table: str, note: object = "") -> None:
    """The lake's newest observation of each record is the service's record, and none is foreign."""
    answer = bench.control("truth_current", table=table)
    assert answer["pending"] == 0, f"{note}: the world is not settled"
    truth: dict[str, dict[str, Any]] = answer["records"]
    rows = bench.raw(table)
    assert_no_foreign_payload(bench, table, rows, note)
    newest: dict[str, dict[str, Any]] = {}
    for row in rows:
        held = newest.get(row["record_id"])
        order = (row["updated_at"], row["observed_at"])
        if held is None or order > (held["updated_at"], held["observed_at"]):
            newest[row["record_id"]] = row
    for record_id, record in truth.items():
        held = newest.get(record_id)
        what = f"{note}: {table} {record_id} ({record['updated_at']})"
        if record["deleted"]:
            assert held is None or held["is_deleted"], f"{what} is deleted, and not closed"
            continue
        assert held is not None, f"{what} is missing"
        assert not held["is_deleted"], f"{what} is closed, and is there"
        digest = hashlib.sha256(held["payload"].encode()).hexdigest()
        assert digest == record["sha256"], f"{what} is held as of {held['updated_at']}"


def assert_no_foreign_payload(
    bench: Bench, table: str, rows: Iterable[dict[str, Any]], note: object = ""
) -> None:
    known = bench.versions(table)
    for row in rows:
        if not row["is_deleted"]:
            payload = row["payload"].encode()
            assert payload in known[row["record_id"]], f"{note}: {table} {row['record_id']}"


def small_segments(rows: int) -> int:
    """Segments end after so many rows in this process from now on; returns what it was."""
    defaults = segment_defaults()
    before = int(defaults["rows"])
    defaults["rows"] = rows
    return before


def segment_defaults() -> dict[str, Any]:
    """The limits of a segment that hold where none are given; changing them changes them."""
    defaults = proof.segments.__kwdefaults__
    assert defaults is not None
    return defaults
