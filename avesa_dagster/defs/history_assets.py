"""History assets: what analysts read, derived from every canonical partition."""

from collections.abc import Sequence

import dagster as dg

from avesa_dagster.canonical import checks
from avesa_dagster.canonical.history import rebuild
from avesa_dagster.catalog.models import CanonicalTable
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import keys, metadata
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.shared import FRESH, PREVIEWED, checked, failing_clearly

CONTIGUOUS = "intervals_contiguous"
ONE_CURRENT = "one_current_at_most"


def history_asset(
    connection: TenantService, canonical: CanonicalTable, feeding: Sequence[dg.AssetKey]
) -> dg.AssetsDefinition:
    """The history of one canonical table of a tenant, over the services that feed it."""
    tenant = connection.tenant
    key = keys.history_key(tenant, canonical.table)
    kind = (
        "every version with its effective dates"
        if canonical.scd_type == "type_2"
        else "the newest version only"
    )

    @dg.multi_asset(
        name=keys.op_name(key, connection.number),
        specs=[
            dg.AssetSpec(
                key,
                deps=list(feeding),
                description=f"{tenant}'s {canonical.table} over all services: {kind} "
                f"(SCD {canonical.scd_type.value.replace('_', ' ')}). What analysts read.",
                group_name=keys.group(connection.number, tenant, "history"),
                metadata={"dagster/column_schema": metadata.history_columns(canonical)},
                freshness_policy=FRESH,
                kinds={"gold", "parquet"},
                tags={"layer": "history", "scd": canonical.scd_type.value},
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(
                CONTIGUOUS,
                asset=key,
                description="Each version ends where the next begins, except over deletions.",
            ),
            dg.AssetCheckSpec(
                ONE_CURRENT, asset=key, description="No record has two current rows."
            ),
        ],
        can_subset=False,
    )
    def compute(context: dg.AssetExecutionContext, avesa: AvesaResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        installation = avesa.installation()
        objects = installation.objects
        with failing_clearly():
            build = rebuild(
                objects,
                installation.catalog,
                tenant,
                canonical.table,
                built_at=installation.clock(),
            )
        context.log.info(
            f"{tenant} {canonical.table}: {build.rows} rows of {build.records} records"
        )
        return dg.MaterializeResult(
            asset_key=key,
            metadata={
                "dagster/row_count": build.rows,
                "records": build.records,
                "canonical partitions": build.inputs,
                "changed": build.changed,
                "dagster/uri": objects.location(build.generation),
                "file": metadata.link(objects, build.generation),
                "preview": metadata.preview(
                    objects,
                    build.generation,
                    [
                        *list(canonical.fields)[:PREVIEWED],
                        "effective_start_date",
                        "effective_end_date",
                        "is_current",
                        "record_version",
                    ],
                ),
            },
            check_results=[
                checked(CONTIGUOUS, checks.broken_intervals(objects, build.generation)),
                checked(ONE_CURRENT, checks.doubled_current(objects, build.generation)),
            ],
        )

    return compute
