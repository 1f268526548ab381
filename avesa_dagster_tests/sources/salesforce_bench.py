"""An installation beside a simulated Salesforce, on one clock, compared with the truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import BreakerSettings, Catalog, ChunkRetry, SweepGuard
from avesa_dagster.control.base import Chunk
from avesa_dagster.extract.request import Extracted, Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import Source
from avesa_dagster.sources.http import Retrying
from avesa_dagster_tests.extract.support import SharedClock

TENANT, SERVICE = "acme", "salesforce"
NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
MAPPINGS = Path(__file__).resolve().parents[2] / "mappings"
SIZES = {"cases": 160, "accounts": 20, "contacts": 30, "users": 6}
HASTY = Retrying(attempts=8, initial=0.005, longest=0.02)
OBJECTS = {"case": "Case", "account": "Account", "contact": "Contact", "user": "User"}
_catalog: Catalog | None = None


def catalog(
    *,
    bulk_records: int | None = None,
    daily_share: float | None = None,
    page_size: int = 200,
    max_chunk_records: int = 50_000,
    threshold: int = 5,
) -> Catalog:
    """The real catalog with these settings."""
    global _catalog
    _catalog = _catalog or load_catalog(MAPPINGS)
    known = _catalog.backfill
    settings = known.services[SERVICE].model_copy(
        update={"chunk_size_days": 60, "max_chunk_records": max_chunk_records}
    )
    backfill = known.model_copy(
        update={
            "services": {**known.services, SERVICE: settings},
            "sweep": SweepGuard(max_deleted_share=1.0, min_deleted_records=10),
            "retry": ChunkRetry(attempts=2, first_wait_seconds=0),
            "breaker": BreakerSettings(
                failures=threshold, wait_seconds=0.01, longest_wait_seconds=0.01
            ),
        }
    )
    service = _catalog.services[SERVICE].model_copy(
        update={"page_size": page_size, "bulk_records": bulk_records, "daily_share": daily_share}
    )
    services = {**_catalog.services, SERVICE: service}
    return _catalog.model_copy(update={"backfill": backfill, "services": services})


@dataclass
class SalesforceBench:
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
        now = self.clock() + timedelta(seconds=seconds)
        self.clock.set(now)
        self.control("clock", now=now.isoformat())

    def credentials(self, grant: str) -> dict[str, str]:
        found: dict[str, str] = self.control("credentials", grant=grant)["credentials"]
        return found

    def open(self, values: dict[str, str] | None = None) -> Source:
        """A source of its own; with the stored credentials, unless others are given."""
        connection = self.installation.control.registry.get(TENANT, SERVICE)
        assert connection is not None
        if values is None:
            return self.installation.open_source(connection, False, lambda: False)()
        return self.installation.open_with(
            connection, values, live=False, cancelled=lambda: False
        )()

    def request(self, table: str, mode: Mode, token: str | None = None) -> Request:
        if token is None:
            self.tokens += 1
            token = f"token-{self.tokens}"
        connection = self.installation.control.registry.get(TENANT, SERVICE)
        assert connection is not None
        settings = self.installation.catalog.settings(TENANT, SERVICE)
        partitions = tuple(
            grain.partitions(settings.partitions, connection.history_start, self.clock())
        )
        master = self.installation.catalog.services[SERVICE].tables[table].master_data
        if mode is Mode.SYNC or (mode is Mode.FULL and not master):
            start = self.installation.extractor.sync_start(connection, table, self.clock())
            partitions = tuple(p for p in partitions if p.end > start)
        return Request(TENANT, SERVICE, table, partitions, mode, token, f"run-{self.tokens}")

    def extract(
        self, table: str, mode: Mode = Mode.BACKFILL, token: str | None = None
    ) -> Extracted:
        request = self.request(table, mode, token)
        return self.installation.extractor.extract(request, lambda progress: None, lambda: False)

    def chunks(self, token: str, table: str) -> list[Chunk]:
        return self.installation.control.ledger.rows(token, TENANT, SERVICE, table)

    def raw(self, table: str) -> list[dict[str, Any]]:
        folder = self.home / "lake" / TENANT / "raw" / SERVICE / table
        rows: list[dict[str, Any]] = []
        for path in sorted(folder.glob("dt=*/*.parquet")):
            rows += pq.ParquetFile(path).read().to_pylist()
        return rows

    def log(self, kind: str | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.control("stats", log=5000)["log"]
        return [entry for entry in found if kind in (None, entry["kind"])]

    def truth(self, table: str) -> dict[str, dict[str, Any]]:
        answer = self.control("truth_current", table=OBJECTS[table])
        assert answer["pending"] == 0, "the world is not settled"
        records: dict[str, dict[str, Any]] = answer["records"]
        return records


def open_bench(
    simulator: Simulator,
    home: Path,
    *,
    tables: tuple[str, ...] = ("case", "account"),
    values: dict[str, str] | None = None,
    grant: str = "client_credentials",
    connect: bool = True,
    script: dict[str, Any] | None = None,
    cases: int = SIZES["cases"],
    years: float = 0.3,
    lookback_days: int = 110,
    **settings: Any,
) -> SalesforceBench:
    """A new world and a new installation, `acme` connected, nothing fetched."""
    simulator.control(
        "reset",
        seed=7,
        now=NOW.isoformat(),
        sizes=SIZES | {"cases": cases},
        years=years,
    )
    for method, arguments in _AS_IT_WAS:
        simulator.control(method, **arguments)
    clock = SharedClock(NOW)
    installation = Installation(Settings(home=home, mappings=MAPPINGS), clock, HASTY)
    installation.__dict__["catalog"] = catalog(**settings)
    bench = SalesforceBench(simulator, home, clock, installation)
    if connect:
        installation.connect(
            TENANT,
            SERVICE,
            bench.credentials(grant) if values is None else values,
            lookback_days=lookback_days,
            requests_per_minute=10_000_000,
            tables=tables,
        )
    simulator.control("hostility", **(script or {}))
    simulator.control("stats_reset")
    return bench


_AS_IT_WAS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hibernate", {"on": False}),
    ("instance", {"to": "same"}),
    ("heal", {}),
)


def assert_equals_truth(bench: SalesforceBench, table: str) -> None:
    """The lake's newest observation of each record is the service's record, and none is foreign."""
    newest: dict[str, dict[str, Any]] = {}
    for row in bench.raw(table):
        held = newest.get(row["record_id"])
        order = (row["updated_at"], row["observed_at"])
        if held is None or order > (held["updated_at"], held["observed_at"]):
            newest[row["record_id"]] = row
    truth = bench.truth(table)
    assert newest.keys() <= truth.keys()
    for record_id, record in truth.items():
        what = f"{table} {record_id} ({record['updated_at']})"
        held = newest.get(record_id)
        if record["deleted"]:
            assert held is None or held["is_deleted"], f"{what} is deleted, and not closed"
            continue
        assert held is not None, f"{what} is missing"
        assert not held["is_deleted"], f"{what} is closed, and is there"
        assert digest(held["payload"]) == record["sha256"], f"{what} differs: {held['payload']}"


def digest(payload: str) -> str:
    """As the simulator takes it."""
    fields = {name: value for name, value in json.loads(payload).items() if name != "attributes"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
