"""The onboarding sensor: a newly connected tenant service gets its assets and its history."""

import json
from collections.abc import Sequence

import dagster as dg
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._grpc.client import DagsterGrpcClient

from avesa_dagster.control.base import TenantService
from avesa_dagster.control.serving import servable
from avesa_dagster.defs.resources import AvesaResource

_RELOAD_SECONDS = 120
_MOST_JOBS = 50
Loaded = frozenset[tuple[object, ...]]


def shape(rows: Sequence[TenantService]) -> Loaded:
    """What of the registry the definitions depend on."""
    return frozenset(
        (row.tenant, row.service, row.number, row.history_start, row.tables) for row in rows
    )


def onboarding_sensor(rows: Sequence[TenantService]) -> dg.SensorDefinition:
    """The sensor of definitions that were built from these rows."""
    loaded = shape(rows)

    @dg.sensor(
        name="onboarding",
        asset_selection=dg.AssetSelection.all(),
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Finds newly connected tenant services: brings their assets into the code "
        "location and starts a backfill of what is missing. Once for each generation of "
        "credentials.",
    )
    def onboarding(
        context: dg.SensorEvaluationContext, avesa: AvesaResource
    ) -> dg.SensorResult | dg.SkipReason:
        installation = avesa.installation()
        rows_now = installation.control.registry.all()
        registry = servable(
            (row for row in rows_now if installation.settings.holds(row.tenant)),
            installation.catalog,
        )
        if shape(registry) != loaded:
            installation.refresh_snapshot()
            return dg.SkipReason(_reload(context))
        known: dict[str, str] = json.loads(context.cursor or "{}")
        started: list[str] = []
        for row in registry:
            name = f"{row.tenant}/{row.service}"
            if not row.enabled or known.get(name) == credentials_of(row):
                continue
            if len(started) >= _MOST_JOBS:
                break  # the next tick goes on
            job = installation.backfills.onboard(row, credentials_of(row))
            started.append(f"{name}: {f'job {job.job_id}' if job else 'nothing is missing'}")
            known[name] = credentials_of(row)
        said = "; ".join(started) or "every connected tenant service is known"
        return dg.SensorResult(
            skip_reason=dg.SkipReason(said), cursor=json.dumps(known, sort_keys=True)
        )

    return onboarding


def credentials_of(connection: TenantService) -> str:
    """Names a generation of credentials, also beyond a registry that was lost and begun anew."""
    return f"g{connection.generation}-{connection.connected_at:%Y%m%dT%H%M%S}"


def _reload(context: dg.SensorEvaluationContext) -> str:
    """Has the code location loaded again, so that the next tick knows the new assets.

    A reload that fails ends the code server, so the definitions are built here first: a mistake
    in the mappings fails this tick and nothing else.
    """
    from avesa_dagster.definitions import build
    from avesa_dagster.settings import Settings

    build(Settings.from_environment())
    origin = context.code_location_origin
    if not isinstance(origin, GrpcServerCodeLocationOrigin):
        return "the registry has changed; this daemon loads its definitions again each minute"
    client = DagsterGrpcClient(
        host=origin.host, port=origin.port, socket=origin.socket, use_ssl=bool(origin.use_ssl)
    )
    client.reload_code(timeout=_RELOAD_SECONDS)
    return "the registry has changed; the code location is loaded again"
