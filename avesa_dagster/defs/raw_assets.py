"""Raw assets: what a service sent, fetched over a range of partitions in one run."""

import dagster as dg

from avesa_dagster.backfill.covered import connection_coverage
from avesa_dagster.backfill.markdown import picture_markdown
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import keys, metadata, raw_checks
from avesa_dagster.defs.fetch import fetch, request_of
from avesa_dagster.defs.partitions import backfill_policy, chosen_partitions
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.defs.shared import FRESH, failing_clearly, name_run
from avesa_dagster.errors import AvesaError
from avesa_dagster.extract.request import Extracted, Fetched, Mode, Request
from avesa_dagster.lake import layout
from avesa_dagster.lake.objects import Objects


def raw_asset(
    connection: TenantService,
    table: str,
    windows: dg.PartitionsDefinition[str],
    catalog: Catalog,
) -> dg.AssetsDefinition:
    """Observations of one table of one connection, by time window."""
    tenant, service = connection.tenant, connection.service
    known = catalog.services[service].tables[table]
    key = keys.raw_key(tenant, service, table)

    @dg.multi_asset(
        name=keys.op_name(key, connection.number),
        specs=[
            dg.AssetSpec(
                key,
                description=(
                    f"Every version of {tenant}'s {known.endpoint} that was ever seen, as "
                    f"{catalog.services[service].title} sent it. Append-only."
                ),
                group_name=keys.group(connection.number, tenant, service),
                kinds={"bronze", "parquet"},
                tags={"layer": "raw", "service": service},
                metadata={"endpoint": known.endpoint, "change field": known.change_field},
                freshness_policy=FRESH,
            )
        ],
        check_specs=raw_checks.specs(key),
        partitions_def=windows,
        backfill_policy=backfill_policy(connection),
        can_subset=False,
    )
    def compute(context: dg.AssetExecutionContext, avesa: AvesaResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        installation = avesa.installation()
        name_run(context, connection)
        with failing_clearly():
            partitions = chosen_partitions(context.partition_keys, connection, installation.catalog)
            request = request_of(context, installation, connection, table, partitions)
        objects = installation.objects
        with failing_clearly():
            try:
                extracted = fetch(context, installation, request)
            except AvesaError:
                for fetched in installation.extractor.arrived(request):
                    said = _raw_metadata(objects, fetched, connection, table)
                    context.log_event(
                        dg.AssetMaterialization(key, partition=fetched.partition.key, metadata=said)
                    )
                raise
        for fetched in extracted.partitions:
            context.add_asset_metadata(
                _raw_metadata(objects, fetched, connection, table),
                asset_key=key,
                partition_key=fetched.partition.key,
            )
        covered = connection_coverage(
            installation.backfills.connection(tenant, service),
            installation.catalog,
            installation.control.ledger,
            installation.control.watermarks,
            installation.clock(),
            [table],
        )
        if request.mode is not Mode.SYNC:  # a picture an hour would fill Dagster's storage
            context.add_asset_metadata(
                {"coverage": dg.MetadataValue.md(picture_markdown(covered))},
                asset_key=key,
                partition_key=partitions[-1].key,
            )
        return dg.MaterializeResult(
            asset_key=key,
            metadata={"run": _run_line(extracted, request)},
            check_results=raw_checks.results(installation, request, extracted, covered),
        )

    return compute


def _run_line(extracted: Extracted, request: Request) -> str:
    said = (
        f"{request.mode.value} of {request.start:%Y-%m-%d} to {request.end:%Y-%m-%d}: "
        f"{extracted.requests} requests in {extracted.seconds:.1f} s"
    )
    if request.mode is Mode.FULL:
        said += f"; {extracted.deleted} deletions found, {extracted.hidden} hidden but alive"
    return said


def _raw_metadata(
    objects: Objects, fetched: Fetched, connection: TenantService, table: str
) -> dict[str, dg.MetadataValue | int]:
    prefix = layout.partition_prefix(
        connection.tenant, "raw", connection.service, table, fetched.partition.key
    )
    held = [info.key for info in objects.list(prefix) if info.key.endswith(".parquet")]
    said: dict[str, dg.MetadataValue | int] = {
        "dagster/partition_row_count": metadata.parquet_rows(objects, held),
        "new rows": metadata.parquet_rows(objects, fetched.objects),
        "source count": fetched.source_count,
        "requests": fetched.requests,
        "windows": dg.MetadataValue.text(", ".join(fetched.windows) or "none: in the future"),
        "objects": len(held),
        "files": metadata.link(objects, prefix),
    }
    if fetched.as_of:
        said["as of"] = dg.MetadataValue.timestamp(fetched.as_of)
    if held:
        columns = ["record_id", "updated_at", "observed_at", "payload"]
        shown = fetched.objects[-1] if fetched.objects else held[-1]
        said["preview"] = metadata.preview(objects, shown, columns)
    return said
