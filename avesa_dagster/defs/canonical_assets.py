"""Canonical assets: raw partitions become typed versions."""

import dagster as dg

from avesa_dagster.canonical import checks
from avesa_dagster.canonical.versions import PartitionBuild, build_partition
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import CanonicalTable
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import keys, metadata
from avesa_dagster.defs.partitions import backfill_policy, chosen_partitions
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.shared import FRESH, PREVIEWED, checked, failing_clearly, name_run
from avesa_dagster.lake.objects import Objects

KEYS_UNIQUE = "keys_unique"
HOLDS_RAW = "holds_every_raw_version"


def canonical_asset(
    connection: TenantService,
    table: str,
    canonical: CanonicalTable,
    windows: dg.PartitionsDefinition[str],
) -> dg.AssetsDefinition:
    """Versions of one table of one connection, by time window."""
    tenant, service = connection.tenant, connection.service
    key = keys.canonical_key(tenant, service, table)

    @dg.multi_asset(
        name=keys.op_name(key, connection.number),
        specs=[
            dg.AssetSpec(
                key,
                deps=[keys.raw_key(tenant, service, table)],
                description=(
                    f"Every version of {tenant}'s {table} in canonical, typed columns: one row "
                    "a version. A pure function of the raw partition."
                ),
                group_name=keys.group(connection.number, tenant, service),
                kinds={"silver", "parquet"},
                tags={"layer": "canonical", "service": service},
                metadata={"dagster/column_schema": metadata.versions_columns(canonical)},
                freshness_policy=FRESH,
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(
                KEYS_UNIQUE, asset=key, description="A version stands once in its partition."
            ),
            dg.AssetCheckSpec(
                HOLDS_RAW, asset=key, description="No version that raw holds is missing."
            ),
        ],
        partitions_def=windows,
        backfill_policy=backfill_policy(connection),
        can_subset=False,
    )
    def compute(context: dg.AssetExecutionContext, avesa: AvesaResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        installation = avesa.installation()
        objects, catalog = installation.objects, installation.catalog
        name_run(context, connection)
        with failing_clearly():
            partitions = chosen_partitions(context.partition_keys, connection, catalog)
        builds, doubled, lost = [], [], []
        for partition in partitions:
            with failing_clearly():
                place = (tenant, service, table, partition.key)
                raw = checks.raw_objects(objects, *place)
                build = build_partition(objects, catalog, *place)
                doubled.append(checks.doubled_keys(objects, build.key))
                lost.append(checks.lost_versions(objects, build.key, raw))
            builds.append(build)
            context.add_asset_metadata(
                _canonical_metadata(objects, build, canonical, partition),
                asset_key=key,
                partition_key=partition.key,
            )
        total = sum(build.versions for build in builds)
        context.log.info(
            f"{tenant} {service} {table}: {total} versions in {len(builds)} partition(s)"
        )
        return dg.MaterializeResult(
            asset_key=key,
            metadata={"dagster/column_schema": metadata.versions_columns(canonical)},
            check_results=[
                checked(KEYS_UNIQUE, checks.together(doubled)),
                checked(HOLDS_RAW, checks.together(lost)),
            ],
        )

    return compute


def _canonical_metadata(
    objects: Objects, build: PartitionBuild, canonical: CanonicalTable, partition: Partition
) -> dict[str, dg.MetadataValue | int | str]:
    unfit = ", ".join(f"{field}: {count}" for field, count in build.cast_failures.items())
    return {
        "dagster/partition_row_count": build.versions,
        "window": f"[{partition.start:%Y-%m-%d}, {partition.end:%Y-%m-%d})",
        "records": build.records,
        "deletions": build.deletions,
        "observations": build.observations,
        "raw objects": build.raw_objects,
        "values that did not fit their type": unfit or "none",
        "changed by this run": build.changed,
        "file": metadata.link(objects, build.key),
        "preview": metadata.preview(objects, build.key, list(canonical.fields)[:PREVIEWED]),
    }
