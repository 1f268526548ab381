"""A backfill against a slow service, and a careful loop over the same one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import requests

from avesa_dagster.control.base import TenantService
from avesa_dagster.defs.partitions import known_partitions
from avesa_dagster.errors import AvesaError, Stopped
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work.tickets import SERVICE, TABLE, TENANT


def backfill(
    credentials: dict[str, str], limit: int, seconds: float, home: str, page_rows: int
) -> Measured:
    """Backfills the tickets for so long, then stops; the service counts."""
    installation = Installation(Settings(Path(home), mappings(Path(home), {SERVICE: page_rows})))
    connection = installation.connect(
        TENANT, SERVICE, credentials, requests_per_minute=limit, tables=(TABLE,)
    )
    return backfilled(installation, connection, seconds)


def backfilled(installation: Installation, connection: TenantService, seconds: float) -> Measured:
    """Backfills a connection's one table for so long, then stops."""
    partitions = known_partitions(connection, installation.catalog, installation.clock())
    request = Request(
        tenant=connection.tenant,
        service=connection.service,
        table=connection.tables[0],
        partitions=tuple(partitions),
        mode=Mode.BACKFILL,
        token="bench",
        run_id="bench",
    )
    over = time.monotonic() + seconds
    meter = Meter()
    try:
        with meter:
            installation.extractor.extract(
                request, lambda progress: None, lambda: time.monotonic() > over
            )
    except Stopped:
        return meter.measured(1)
    except AvesaError:
        if time.monotonic() > over:
            return meter.measured(1)
        raise
    raise AssertionError("the world was too small: the backfill ended before the time was over")


def paced(url: str, credentials: dict[str, str], limit: int, seconds: float) -> Measured:
    """One request after the other, and the limit's share of a minute of sleep after each."""
    session = requests.Session()
    company, public = credentials["company_id"], credentials["public_key"]
    session.auth = (f"{company}+{public}", credentials["private_key"])
    session.headers["clientId"] = credentials["client_id"]
    info = session.get(f"{url}/login/companyinfo/{company}", timeout=60).json()
    address = f"{url}/{info['Codebase'].strip('/')}/apis/3.0/service/tickets"
    asked = 0
    meter = Meter()
    with meter:
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            query: dict[str, str | int] = {"pageSize": 50, "page": asked + 1, "orderBy": "id asc"}
            session.get(address, params=query, timeout=60).raise_for_status()
            asked += 1
            time.sleep(60 / limit)
    return meter.measured(asked)


def mappings(home: Path, pages: Mapping[str, int]) -> Path:
    """The mappings that the package ships, with smaller pages {service: rows}, none in bulk."""
    folder = home / "mappings"
    shutil.copytree(Settings.from_environment({}).mappings, folder)
    for service, rows in pages.items():
        file = folder / "services" / f"{service}.json"
        said = json.loads(file.read_text("utf-8"))
        said.pop("bulk_records", None)
        file.write_text(json.dumps({**said, "page_size": rows}), "utf-8")
    return folder
