"""One tenant's services, backfilled and synced by processes of one installation."""

from __future__ import annotations

import time
from pathlib import Path

from avesa_dagster.catalog import grain
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work.budget import backfilled, mappings
from avesa_dagster_tests.bench.work.tickets import TENANT


def connect(home: str, services: dict[str, tuple[str, dict[str, str], int]]) -> Measured:
    """Connects the tenant's services {name: (table, credentials, rows of a page)}."""
    folder = Path(home)
    mappings(folder, {name: rows for name, (_, _, rows) in services.items()})
    installation, meter = _installation(home), Meter()
    with meter:
        for name, (table, credentials, _) in services.items():
            installation.connect(TENANT, name, credentials, tables=(table,))
    return meter.measured(len(services))


def backfill(home: str, service: str, seconds: float) -> Measured:
    """Backfills the service's table for so long, then stops; the service counts."""
    installation = _installation(home)
    connection = installation.control.registry.get(TENANT, service)
    assert connection is not None
    return backfilled(installation, connection, seconds)


def live(home: str, after: float, every: float, seconds: float) -> Measured:
    """Syncs every service, again and again.

    Args:
        after: Seconds to wait before.
        every: Seconds from the begin of one round to the next.

    Returns:
        How many syncs; in `extra` how long each took, in seconds.
    """
    installation, meter = _installation(home), Meter()
    took: dict[str, float] = {}
    time.sleep(after)
    over = time.monotonic() + seconds
    with meter:
        while time.monotonic() < over:
            began = time.monotonic()
            for connection in installation.control.registry.all():
                asked = time.monotonic()
                now = installation.clock()
                settings = installation.catalog.settings(TENANT, connection.service)
                table = connection.tables[0]
                start = installation.extractor.sync_start(connection, table, now)
                partitions = grain.partitions(settings.partitions, start, now)
                name = f"{connection.service}-{len(took)}"
                installation.extractor.extract(
                    Request(
                        tenant=TENANT,
                        service=connection.service,
                        table=table,
                        partitions=tuple(partitions),
                        mode=Mode.SYNC,
                        token=name,
                        run_id="live",
                    ),
                    lambda progress: None,
                    lambda: False,
                )
                took[name] = time.monotonic() - asked
            time.sleep(max(0.0, began + every - time.monotonic()))
    return meter.measured(len(took), **took)


def _installation(home: str) -> Installation:
    return Installation(Settings(Path(home), Path(home, "mappings")))
