"""Assets of one tenant: raw and canonical by time window, histories whole.

Everything that is done is done by plain functions of the other folders; this is its Dagster face.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg

from avesa_dagster.canonical import checks
from avesa_dagster.canonical.history import rebuild
from avesa_dagster.canonical.versions import PartitionBuild, build_partition
from avesa_dagster.catalog.models import CanonicalTable, Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import metadata, tags
from avesa_dagster.defs.partitions import backfill_policy, chosen_partitions, partitions_def
from avesa_dagster.defs.resources import AvesaResource
from avesa_dagster.errors import AvesaError, FatalError
from avesa_dagster.extract.reconcile import reconcile
from avesa_dagster.extract.request import Extracted, Fetched, Mode, Progress, Request
from avesa_dagster.lake import layout
from avesa_dagster.lake.objects import Objects

RECONCILES = "reconciles_with_source"
KEYS_UNIQUE = "keys_unique"
HOLDS_RAW = "holds_every_raw_version"
CONTIGUOUS = "intervals_contiguous"
ONE_CURRENT = "one_current_at_most"

_FRESH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(hours=26), warn_window=timedelta(hours=3)
)
_PREVIEWED = 8


def raw_key(tenant: str, service: str, table: str) -> dg.AssetKey:
    return dg.AssetKey([tenant, "raw", service, table])


def canonical_key(tenant: str, service: str, table: str) -> dg.AssetKey:
    return dg.AssetKey([tenant, "canonical", service, table])


def history_key(tenant: str, table: str) -> dg.AssetKey:
    return dg.AssetKey([tenant, "history", table])


def table_keys(
    connection: TenantService, catalog: Catalog, tables: Iterable[str]
) -> list[dg.AssetKey]:
    """The partitioned assets of these tables of a connection."""
    names = [table for table in tables if table in connection.tables]
    mapped = [table for table in names if catalog.mapping(connection.service, table)]
    return [raw_key(connection.tenant, connection.service, table) for table in names] + [
        canonical_key(connection.tenant, connection.service, table) for table in mapped
    ]


def tenant_assets(
    connections: Sequence[TenantService], catalog: Catalog
) -> list[dg.AssetsDefinition]:
    """Every asset of one tenant."""
    assets = []
    feeding: defaultdict[str, list[dg.AssetKey]] = defaultdict(list)
    for connection in connections:
        grain = catalog.settings(connection.tenant, connection.service).partitions
        windows = partitions_def(connection, grain)
        for table in connection.tables:
            assets.append(_raw(connection, table, windows, catalog))
            mapping = catalog.mapping(connection.service, table)
            if mapping is not None:
                canonical, _ = mapping
                assets.append(_canonical(connection, table, canonical, windows))
                key = canonical_key(connection.tenant, connection.service, table)
                feeding[canonical.table].append(key)
    for table, keys in feeding.items():
        assets.append(_history(connections[0].tenant, catalog.canonical[table], keys))
    return assets


def _group(connection: TenantService) -> str:
    return f"{connection.tenant}__{connection.service}".replace("-", "_")


def _op_name(key: dg.AssetKey, number: int) -> str:
    """A name for the op. Dagster's own allow no '-', so the connection's number tells apart."""
    name = "__".join(key.path)
    return f"{name.replace('-', '_')}__n{number}" if "-" in name else name


def _raw(
    connection: TenantService,
    table: str,
    windows: dg.PartitionsDefinition[str],
    catalog: Catalog,
) -> dg.AssetsDefinition:
    tenant, service = connection.tenant, connection.service
    known = catalog.services[service].tables[table]
    key = raw_key(tenant, service, table)

    @dg.multi_asset(
        name=_op_name(key, connection.number),
        specs=[
            dg.AssetSpec(
                key,
                description=(
                    f"Every version of {tenant}'s {known.endpoint} that was ever seen, as "
                    f"{catalog.services[service].title} sent it. Append-only."
                ),
                group_name=_group(connection),
                kinds={"parquet"},
                tags={"layer": "raw", "service": service},
                metadata={"endpoint": known.endpoint, "change field": known.change_field},
                freshness_policy=_FRESH,
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(
                RECONCILES,
                asset=key,
                description="The lake holds at least what the service counted, window by window.",
            )
        ],
        partitions_def=windows,
        backfill_policy=backfill_policy(connection),
        can_subset=False,
    )
    def compute(context: dg.AssetExecutionContext, avesa: AvesaResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        installation = avesa.installation()
        with failing_clearly():
            partitions = chosen_partitions(context.partition_keys, connection, installation.catalog)
        request = Request(
            tenant=tenant,
            service=service,
            table=table,
            partitions=partitions,
            mode=tags.mode_of(context.run),
            token=tags.token_of(context.run),
            run_id=context.run.run_id,
        )
        title = f"{tenant} {service} {table}"
        context.log.info(
            f"{title}: {request.mode.value} of {len(request.partitions)} partition(s), "
            f"{request.partitions[0].key} to {request.partitions[-1].key}"
        )

        def report(progress: Progress) -> None:
            context.log.info(_progress_line(title, progress))

        with failing_clearly():
            extracted = installation.extractor.extract(request, report, lambda: False)
        objects = installation.objects
        for fetched in extracted.partitions:
            context.add_asset_metadata(
                _raw_metadata(objects, fetched, connection, table),
                asset_key=key,
                partition_key=fetched.partition.key,
            )
        missing = reconcile(objects, extracted.chunks)
        return dg.MaterializeResult(
            asset_key=key,
            metadata=_run_metadata(extracted, request),
            check_results=[
                dg.AssetCheckResult(
                    check_name=RECONCILES,
                    passed=not missing,
                    severity=dg.AssetCheckSeverity.ERROR,
                    metadata={
                        "windows compared": len(extracted.chunks),
                        "windows that disagree": ", ".join(
                            f"{item.window}: counted {item.counted}, held {item.held}"
                            for item in missing
                        )
                        or "none",
                    },
                )
            ],
        )

    return compute


def _canonical(
    connection: TenantService,
    table: str,
    canonical: CanonicalTable,
    windows: dg.PartitionsDefinition[str],
) -> dg.AssetsDefinition:
    tenant, service = connection.tenant, connection.service
    key = canonical_key(tenant, service, table)

    @dg.multi_asset(
        name=_op_name(key, connection.number),
        specs=[
            dg.AssetSpec(
                key,
                deps=[raw_key(tenant, service, table)],
                description=(
                    f"Every version of {tenant}'s {table} in canonical, typed columns: one row "
                    "a version. A pure function of the raw partition."
                ),
                group_name=_group(connection),
                kinds={"parquet", "duckdb"},
                tags={"layer": "canonical", "service": service},
                metadata={"dagster/column_schema": metadata.column_schema(canonical)},
                freshness_policy=_FRESH,
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
        with failing_clearly():
            partitions = [
                partition.key
                for partition in chosen_partitions(context.partition_keys, connection, catalog)
            ]
        builds, doubled, lost = [], [], []
        for partition in partitions:
            with failing_clearly():
                raw = checks.raw_objects(objects, tenant, service, table, partition)
                build = build_partition(objects, catalog, tenant, service, table, partition)
                doubled.append(checks.doubled_keys(objects, build.key))
                lost.append(checks.lost_versions(objects, build.key, raw))
            builds.append(build)
            context.add_asset_metadata(
                _canonical_metadata(objects, build, canonical),
                asset_key=key,
                partition_key=partition,
            )
        total = sum(build.versions for build in builds)
        context.log.info(
            f"{tenant} {service} {table}: {total} versions in {len(builds)} partition(s)"
        )
        return dg.MaterializeResult(
            asset_key=key,
            metadata={
                "partitions changed": sum(build.changed for build in builds),
                "dagster/column_schema": metadata.column_schema(canonical),
            },
            check_results=[
                _checked(KEYS_UNIQUE, checks.together(doubled)),
                _checked(HOLDS_RAW, checks.together(lost)),
            ],
        )

    return compute


def _history(
    tenant: str, canonical: CanonicalTable, feeding: Sequence[dg.AssetKey]
) -> dg.AssetsDefinition:
    key = history_key(tenant, canonical.table)
    kind = (
        "every version with its effective dates"
        if canonical.scd_type == "type_2"
        else ("the newest version only")
    )

    @dg.multi_asset(
        name=_op_name(key, 0),
        specs=[
            dg.AssetSpec(
                key,
                deps=list(feeding),
                description=f"{tenant}'s {canonical.table} over all services: {kind} "
                f"(SCD {canonical.scd_type.value.replace('_', ' ')}). What analysts read.",
                group_name=f"{tenant}__history".replace("-", "_"),
                kinds={"parquet", "duckdb"},
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
                        *list(canonical.fields)[:_PREVIEWED],
                        "effective_start_date",
                        "effective_end_date",
                        "is_current",
                        "record_version",
                    ],
                ),
            },
            check_results=[
                _checked(CONTIGUOUS, checks.broken_intervals(objects, build.generation)),
                _checked(ONE_CURRENT, checks.doubled_current(objects, build.generation)),
            ],
        )

    return compute


def _progress_line(title: str, progress: Progress) -> str:
    share = round(100 * progress.done / progress.total)
    seconds = progress.seconds_left if progress.done < progress.total else None
    left = "" if seconds is None else f", about {seconds:.0f} s left"
    return (
        f"{title}: chunk {progress.done}/{progress.total} ({share} %) {progress.window} done, "
        f"{progress.rows} rows, {progress.requests} requests{left}"
    )


@contextmanager
def failing_clearly() -> Iterator[None]:
    """What a person reads in the run: what, where, and what to do; no stack of ours."""
    try:
        yield
    except AvesaError as error:
        raise dg.Failure(
            description=str(error), allow_retries=not isinstance(error, FatalError)
        ) from None


def _checked(name: str, finding: checks.Finding) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        passed=finding.broken == 0,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"broken": finding.broken, "example": finding.example or "none"},
    )


def _run_metadata(extracted: Extracted, request: Request) -> dict[str, dg.MetadataValue]:
    window = f"{request.start:%Y-%m-%d} to {request.end:%Y-%m-%d}"
    said: dict[str, dg.MetadataValue] = {
        "run window": dg.MetadataValue.text(window),
        "run mode": dg.MetadataValue.text(request.mode.value),
        "run requests": dg.MetadataValue.int(extracted.requests),
        "run seconds": dg.MetadataValue.float(round(extracted.seconds, 1)),
    }
    if request.mode is Mode.FULL:
        said["deletions found"] = dg.MetadataValue.int(extracted.deleted)
        said["hidden but alive"] = dg.MetadataValue.int(extracted.hidden)
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


def _canonical_metadata(
    objects: Objects, build: PartitionBuild, canonical: CanonicalTable
) -> dict[str, dg.MetadataValue | int]:
    return {
        "dagster/partition_row_count": build.versions,
        "records": build.records,
        "deletions": build.deletions,
        "observations": build.observations,
        "raw objects": build.raw_objects,
        "values that did not fit": dg.MetadataValue.json(dict(build.cast_failures)),
        "file": metadata.link(objects, build.key),
        "preview": metadata.preview(objects, build.key, list(canonical.fields)[:_PREVIEWED]),
    }
