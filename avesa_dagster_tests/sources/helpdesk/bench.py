"""An installation beside a simulated Helpdesk, on one clock, compared with the truth."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import (
    BreakerSettings,
    Catalog,
    ChunkRetry,
    Service,
    SweepGuard,
)
from avesa_dagster.extract.request import Extracted, Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import Source
from avesa_dagster.sources.http import Retrying
from avesa_dagster_tests.extract.support import MAPPINGS, SharedClock
from avesa_dagster_tests.sources.helpdesk.simulator import Helpdesk

TENANT, SERVICE = "acme", "helpdesk"
HERE = Path(__file__).parent
NOW = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
DAYS = 80.0
HASTY = Retrying(attempts=8, initial=0.002, longest=0.01)
UNPACED = 10_000_000
_catalog: Catalog | None = None


def catalog(http: dict[str, Any] | None = None, **service: Any) -> Catalog:
    """What ships, with Helpdesk's files beside it.

    Args:
        http: Replaces parts of the `http` block.
        service: Replaces parts of the service file.
    """
    global _catalog
    _catalog = _catalog or load_catalog(MAPPINGS, [HERE])
    described = _catalog.services[SERVICE].model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    described |= service
    described["http"] |= http or {}
    backfill = _catalog.backfill.model_copy(
        update={
            "services": {SERVICE: _catalog.backfill.services[SERVICE]},
            "sweep": SweepGuard(max_deleted_share=1.0, min_deleted_records=10),
            "retry": ChunkRetry(attempts=3, first_wait_seconds=0),
            "breaker": BreakerSettings(wait_seconds=0.01, longest_wait_seconds=0.01),
        }
    )
    services = {SERVICE: Service.model_validate(described)}
    return _catalog.model_copy(update={"backfill": backfill, "services": services})


def listing(**changed: Any) -> dict[str, Any]:
    """Helpdesk's listing with some of its parts replaced, as `http` for `catalog`."""
    known = catalog().services[SERVICE].http
    assert known is not None
    described = known.listing.model_dump(mode="json", exclude_unset=True) | changed
    return {"listing": {name: value for name, value in described.items() if value is not None}}


@dataclass
class Bench:
    """A Helpdesk and an installation with tenant `acme` connected to it."""

    service: Helpdesk
    home: Path
    clock: SharedClock
    installation: Installation
    tokens: int = 0

    def open(self) -> Source:
        connection = self.installation.control.registry.get(TENANT, SERVICE)
        assert connection is not None
        return self.installation.open_source(connection, False, lambda: False)()

    def advance(self, seconds: float) -> None:
        self.clock.set(self.clock() + timedelta(seconds=seconds))

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

    def raw(self, table: str) -> list[dict[str, Any]]:
        folder = self.home / "lake" / TENANT / "raw" / SERVICE / table
        files = sorted(folder.glob("dt=*/*.parquet"))
        return [
            row | {"dt": path.parent.name[3:]}
            for path in files
            for row in pq.ParquetFile(path).read().to_pylist()
        ]


def open_bench(
    service: Helpdesk, home: Path, http: dict[str, Any] | None = None, **file: Any
) -> Bench:
    """A new installation that has connected the service, and fetched nothing."""
    clock = service.clock
    assert isinstance(clock, SharedClock)
    installation = Installation(Settings(home=home, mappings=MAPPINGS), clock, HASTY)
    installation.__dict__["catalog"] = catalog(http, **file)
    installation.connect(
        TENANT, SERVICE, service.credentials, requests_per_minute=UNPACED, probe=not service.faults
    )
    return Bench(service, home, clock, installation)


def assert_equals_truth(bench: Bench, table: str, note: object = "") -> None:
    """The newest observation of each record is the service's, and no payload is foreign."""
    newest: dict[str, dict[str, Any]] = {}
    known = bench.service.tables[table]
    for row in bench.raw(table):
        record_id = row["record_id"]
        if not row["is_deleted"]:
            assert row["payload"].encode() in known[record_id].payloads, f"{note}: {record_id}"
        held = newest.get(record_id)
        order = (row["updated_at"], row["observed_at"])
        if held is None or order > (held["updated_at"], held["observed_at"]):
            newest[record_id] = row
    for record_id, record in known.items():
        row = newest.get(record_id)
        what = f"{note}: {table} {record_id} of {record.changed}"
        if record.deleted:
            assert row is None or row["is_deleted"], f"{what} is deleted, and not closed"
            continue
        assert row is not None, f"{what} is missing"
        assert not row["is_deleted"], f"{what} is closed, and is there"
        assert row["payload"].encode() == record.payloads[-1], f"{what} is held as of before"


def mappings_with_helpdesk(folder: Path) -> Path:
    """What ships, with Helpdesk written into it as a person would: no code, no package."""
    shutil.copytree(MAPPINGS, folder)
    shutil.copy(HERE / "services" / "helpdesk.json", folder / "services" / "helpdesk.json")
    for path in (HERE / "canonical").glob("*.json"):
        document = json.loads((folder / "canonical" / path.name).read_text())
        document["sources"] |= json.loads(path.read_text())["sources"]
        (folder / "canonical" / path.name).write_text(json.dumps(document))
    config = json.loads((folder / "backfill_config.json").read_text())
    config["services"] |= json.loads((HERE / "backfill_config.json").read_text())["services"]
    (folder / "backfill_config.json").write_text(json.dumps(config))
    return folder
