"""The code location: the registry snapshot and the catalog become Dagster definitions.

Nothing here asks a service, a registry or a secret: an import must not fail because of them.
"""

from __future__ import annotations

import os
import warnings
from itertools import groupby

import dagster as dg

# Behaviour that these rest on is pinned (pyproject.toml) and tested.
warnings.filterwarnings("ignore", category=dg.BetaWarning, module=r"avesa_dagster\..*")
warnings.filterwarnings("ignore", category=dg.BetaWarning, message="Parameter `owners`")
warnings.filterwarnings("ignore", category=dg.BetaWarning, message="Handling yaml-defined logging")
warnings.filterwarnings("ignore", category=dg.PreviewWarning, module=r"avesa_dagster\..*")

from avesa_dagster import logs  # noqa: E402
from avesa_dagster.control.serving import servable  # noqa: E402
from avesa_dagster.defs.assets import tenant_assets  # noqa: E402
from avesa_dagster.defs.backfills import backfills_sensor  # noqa: E402
from avesa_dagster.defs.dead_runs import dead_runs  # noqa: E402
from avesa_dagster.defs.live_sync import live_sync_schedules  # noqa: E402
from avesa_dagster.defs.onboarding import onboarding_sensor  # noqa: E402
from avesa_dagster.defs.resources import AvesaResource  # noqa: E402
from avesa_dagster.defs.upkeep import upkeep_sensor  # noqa: E402
from avesa_dagster.defs.verification import verification_sensor, verify_job  # noqa: E402
from avesa_dagster.installation import Installation  # noqa: E402
from avesa_dagster.settings import Settings  # noqa: E402


def build(settings: Settings) -> dg.Definitions:
    """Definitions of every tenant in the snapshot that this shard holds."""
    installation = Installation(settings)
    catalog = installation.catalog
    rows = servable(
        (row for row in installation.snapshot.read() if settings.holds(row.tenant)), catalog
    )
    assets: list[dg.AssetsDefinition] = []
    for _, connections in groupby(rows, key=lambda row: row.tenant):
        assets += tenant_assets(list(connections), catalog)
    sensors = [onboarding_sensor(rows)]
    if assets:
        sensors += [backfills_sensor(rows), dead_runs, upkeep_sensor(rows)]
        sensors.append(verification_sensor(rows))
    return dg.Definitions(
        assets=assets,
        jobs=[verify_job] if assets else [],
        sensors=sensors,
        schedules=live_sync_schedules(rows) if assets else [],
        resources={"avesa": AvesaResource()},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    logs.configure(os.environ)
    return build(Settings.from_environment())
