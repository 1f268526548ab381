"""The sensor that fails runs whose process is gone: they are retried, and their lane is free."""

import dagster as dg

from avesa_dagster.defs.processes import fail_dead_runs


@dg.sensor(
    name="dead_runs",
    asset_selection=dg.AssetSelection.all(),
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Fails runs that Dagster still calls started though their process is gone; "
    "Dagster then retries them, and they resume.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Looks at the runs under way."""
    dead = fail_dead_runs(context.instance)
    return dg.SkipReason(f"failed {', '.join(dead)}" if dead else "every run has its process")
