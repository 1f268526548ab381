"""Dagster runs that find nothing to do: the live sync's, and a bare one."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from avesa_dagster.defs.execute import execute
from avesa_dagster.defs.homes import prepare as prepare_home
from avesa_dagster.defs.launches import sync_launches
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.bench.measure import Measured, Meter
from avesa_dagster_tests.bench.work.tickets import SERVICE, TENANT


def prepare(home: str, credentials: dict[str, str]) -> Measured:
    """Connects the tenant and syncs it once, so that the next sync finds nothing new."""
    os.environ["AVESA_HOME"] = home
    installation = Installation.from_environment()
    installation.connect(TENANT, SERVICE, credentials, lookback_days=31)
    return _sync(installation.settings)


def sync(home: str) -> Measured:
    """The run of `avesa sync`: four tables, raw and canonical, and four histories, with checks."""
    os.environ["AVESA_HOME"] = home
    return _sync(Settings.from_environment())


def bare(home: str, steps: int) -> Measured:
    """A run of so many assets that do nothing, on the same Dagster instance."""
    os.environ["DAGSTER_HOME"] = str(prepare_home(Path(home, "dagster")))
    assets = [_nothing(number) for number in range(steps)]
    meter = Meter()
    with meter, dg.DagsterInstance.get() as instance:
        dg.materialize(assets, instance=instance)
    return meter.measured(1)


def _sync(settings: Settings) -> Measured:
    home = prepare_home(settings.dagster_home)
    meter = Meter()
    with meter:
        installation = Installation(settings)
        connection = installation.control.registry.get(TENANT, SERVICE)
        if connection is None:
            raise AssertionError("prepare connects it")
        now = installation.clock()
        launches = sync_launches(
            installation.extractor, connection, now, full=False, name=f"bench-{now.timestamp()}"
        )
        outcomes = [execute(launch, home) for launch in launches]
    for outcome in outcomes:
        if not outcome.success:
            raise AssertionError("; ".join(outcome.failures))
    return meter.measured(len(outcomes), steps=sum(len(launch.keys) for launch in launches))


def _nothing(number: int) -> dg.AssetsDefinition:
    @dg.asset(name=f"nothing_{number}")
    def nothing() -> None:
        return None

    return nothing
