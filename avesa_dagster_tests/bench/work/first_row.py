"""From `avesa connect` to the first row that a query returns, with Dagster running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from avesa_dagster.cli.demonstration import dagster
from avesa_dagster.defs.processes import free_port
from avesa_dagster.errors import AvesaError
from avesa_dagster.installation import Installation
from avesa_dagster.lake.reader import Reader
from avesa_dagster.settings import Settings
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work.tickets import SERVICE

_PATIENCE = 300


def connect(home: str, tenants: dict[str, dict[str, str]]) -> Measured:
    """Connects one tenant after the other, each once the one before it can be queried.

    Args:
        tenants: Each one's credentials.

    Returns:
        `extra` holds the seconds of each tenant.
    """
    os.environ["AVESA_HOME"] = home
    settings = Settings.from_environment()
    seconds: dict[str, float] = {}
    meter = Meter()
    with dagster(settings, port=free_port(), quiet=True):
        for tenant, credentials in tenants.items():
            with meter:
                began = time.monotonic()
                _connect(tenant, credentials)
                _first_row(settings, tenant)
                seconds[tenant] = time.monotonic() - began
    return meter.measured(len(tenants), **seconds)


def _connect(tenant: str, credentials: dict[str, str]) -> None:
    subprocess.run(
        [
            sys.executable, "-m", "avesa_dagster.cli.main", "connect", tenant, SERVICE,
            "--credentials", "-",
        ],
        input=json.dumps(credentials).encode(),
        stdout=subprocess.DEVNULL,
        check=True,
    )  # fmt: skip


def _first_row(settings: Settings, tenant: str) -> None:
    installation = Installation(settings)
    reader = Reader(installation.objects, installation.catalog, tenants=[tenant])
    over = time.monotonic() + _PATIENCE
    while time.monotonic() < over:
        try:
            if reader.query(tenant, "select id from tickets limit 1").num_rows:
                return
        except AvesaError:
            pass  # its first partition is being written
        time.sleep(0.2)
    log = Path(settings.dagster_home, "dagster.log").read_text("utf-8")[-2_000:]
    raise AssertionError(f"no row of {tenant} after {_PATIENCE} s; Dagster said: {log}")
