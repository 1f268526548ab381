"""The DynamoDB tables of the platform before: who was connected, and what its jobs said.

TenantServices become connections, with the credentials of its secrets. BackfillJobs become ended
jobs: it called jobs completed before any record had come, so none counts as more than asked for.
LastUpdated becomes nothing: a mark would say that everything before it was fetched, and it was not.
All rows are kept as they were, as JSON beside the tenant's data.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError

from avesa_dagster import aws
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import Job, JobStatus, Trigger
from avesa_dagster.control.secrets import as_fields, as_object
from avesa_dagster.errors import ConfigurationError, Where
from avesa_dagster.installation import Installation
from avesa_dagster.migration.avesa1.connecting import connected
from avesa_dagster.migration.avesa1.places import Unplaced, table_of
from avesa_dagster.migration.telling import Progress, quiet
from avesa_dagster.names import NAME

TABLES = ("TenantServices", "LastUpdated", "BackfillJobs")
_ALL = "all"
_LEFT_OUT = "config"
"""An attribute of TenantServices that anybody could put anything into, credentials too."""
_plain = TypeDeserializer().deserialize
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Before:
    """Where the tables lie.

    Attributes:
        environment: Ends their names.
        dynamodb, secrets: boto3's clients.
    """

    environment: str
    dynamodb: Any
    secrets: Any


@dataclass(slots=True)
class TablesReport:
    """What became of the rows.

    Attributes:
        rows: Table to rows that there are; None: there is no such table.
        connections: Connection to what became of it, in words.
        jobs: BackfillJobs that are there now.
        unplaced: Rows that belong nowhere.
    """

    rows: dict[str, int | None] = field(default_factory=dict)
    connections: dict[str, str] = field(default_factory=dict)
    jobs: int = 0
    unplaced: list[Unplaced] = field(default_factory=list)


def read_tables(before: Before, tenants: Sequence[str] = ()) -> dict[str, list[Item] | None]:
    """All rows, of these tenants or of all; None: there is no such table.

    Raises:
        AvesaError: AWS.
    """
    found: dict[str, list[Item] | None] = {}
    for name in TABLES:
        rows = _scan(before.dynamodb, f"{name}-{before.environment}")
        if rows is not None and tenants:
            rows = [row for row in rows if row.get("tenant_id") in tenants]
        found[name] = rows
    return found


def import_tables(
    installation: Installation,
    before: Before,
    tables: Mapping[str, list[Item] | None],
    progress: Progress = quiet,
) -> TablesReport:
    """Imports the rows; may be done again.

    Raises:
        AvesaError: Something cannot be read or written; what was imported stays.
    """
    report = TablesReport({n: None if rows is None else len(rows) for n, rows in tables.items()})
    for name, rows in tables.items():
        progress(f"keeping {name}", 0, 0)
        _keep(installation, name, rows or ())
    connections = tables["TenantServices"] or []
    for number, row in enumerate(connections):
        progress("importing connections", number, len(connections))
        _import_connection(installation, before, row, report)
    for row in tables["BackfillJobs"] or ():
        job = _job(installation, row, report)
        if job is not None:
            installation.control.jobs.create(job)
            report.jobs += 1
    return report


def _scan(client: Any, table: str) -> list[Item] | None:
    asked: dict[str, Any] = {"TableName": table, "ConsistentRead": True}
    found: list[Item] = []
    with aws.explained(f"reading DynamoDB table {table}"):
        while True:
            try:
                page = client.scan(**asked)
            except ClientError as error:
                if aws.code_of(error) == "ResourceNotFoundException":
                    return None
                raise
            for item in page["Items"]:
                found.append({name: _plain(value) for name, value in item.items()})
            if not page.get("LastEvaluatedKey"):
                return found
            asked["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _keep(installation: Installation, name: str, rows: Sequence[Item]) -> None:
    """Keeps rows as they were, an object a tenant; equal ones make one object."""
    of_tenant: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        tenant = str(row.get("tenant_id", ""))
        if NAME.fullmatch(tenant):
            of_tenant[tenant].append({k: v for k, v in row.items() if k != _LEFT_OUT})
    for tenant, own in of_tenant.items():
        own.sort(key=lambda row: json.dumps(row, default=_written, sort_keys=True))
        text = json.dumps(own, default=_written, sort_keys=True, indent=1).encode()
        key = f"{tenant}/imported/avesa1/tables/{name}-{hashlib.sha256(text).hexdigest()[:16]}.json"
        if installation.objects.stat(key) is None:
            installation.objects.put(key, text)


def _import_connection(
    installation: Installation, before: Before, row: Item, report: TablesReport
) -> None:
    tenant, service = str(row.get("tenant_id", "")), str(row.get("service", ""))
    name = f"TenantServices {tenant}/{service}"
    if not NAME.fullmatch(tenant):
        report.unplaced.append(Unplaced(name, f"{tenant!r} is no valid tenant name"))
        return
    if service not in installation.catalog.services:
        report.unplaced.append(Unplaced(name, f"there is no service {service!r}"))
        return
    held, made = connected(installation, tenant, service, ())
    said = _credentials(installation, before, row, held)
    # What an import made nobody has touched since; what a person disabled stays so.
    untouched = not held.enabled and held.connected_at == held.updated_at
    if said == "" and row.get("enabled") is True and untouched:
        installation.enable(tenant, service)
        said = "connected"
    elif said == "":
        said = "connected" if held.enabled else "disabled, as it was"
    report.connections[f"{tenant}/{service}"] = f"new: {said}" if made else said


def _credentials(installation: Installation, before: Before, row: Item, held: TenantService) -> str:
    """Takes the credentials over if there are none; says why there are none, else nothing."""
    where = Where(held.tenant, held.service)
    try:
        installation.secrets.get(held.tenant, held.service)
        return ""
    except ConfigurationError:
        pass
    names = [
        str(row.get("secret_name") or ""),
        f"{held.tenant}/{before.environment}",
        f"{held.tenant}-{held.service}-credentials",
    ]
    for name in dict.fromkeys(filter(None, names)):
        try:
            fields = _fields_of(before, name, held.service, where)
            if fields is None:
                continue
            installation.speaker(held.service).check(fields, where)
            installation.secrets.put(held.tenant, held.service, fields)
            return ""
        except ConfigurationError as error:
            return f"disabled: {error.what}; avesa connect"
    return "disabled: it has no credentials; avesa connect"


def _fields_of(before: Before, name: str, service: str, where: Where) -> dict[str, str] | None:
    """Credentials in a secret, keyed by service or not; None: there is no such secret."""
    with aws.explained(f"secret {name}", where):
        try:
            answer = before.secrets.get_secret_value(SecretId=name)
        except ClientError as error:
            if aws.code_of(error) == "ResourceNotFoundException":
                return None
            raise
    held = as_object(answer.get("SecretString", ""), f"secret {name}", where)
    own = held.get(service, held)
    return as_fields(own, f"secret {name}", where)


def _job(installation: Installation, row: Item, report: TablesReport) -> Job | None:
    old_id = str(row.get("job_id", ""))
    tenant = str(row.get("tenant_id", ""))
    service = str(row.get("service_name") or row.get("service") or "")
    known = installation.catalog.services.get(service)
    name = f"BackfillJobs {old_id}"
    if not NAME.fullmatch(tenant) or known is None:
        report.unplaced.append(Unplaced(name, f"it is of {tenant!r} and {service!r}"))
        return None
    named = str(row.get("table_name") or _ALL)
    table = table_of(known, named)
    if table is None and named != _ALL:
        report.unplaced.append(Unplaced(name, f"{service} has no table {named!r}"))
        return None
    held = installation.control.registry.get(tenant, service)
    on = held.tables if held else tuple(known.tables)
    created = _moment(row.get("created_at")) or _moment(row.get("start_date"))
    start, end = _moment(row.get("start_date")), _moment(row.get("end_date"))
    if created is None:
        report.unplaced.append(Unplaced(name, "it does not say when it was made"))
        return None
    ended = _moment(row.get("completed_at")) or _moment(row.get("updated_at")) or created
    status = str(row.get("job_status") or row.get("status") or "unknown")
    return Job(
        job_id=f"avesa1-{hashlib.sha256(old_id.encode()).hexdigest()[:20]}",
        tenant=tenant,
        service=service,
        tables=(table,) if table else on,
        start=start or created,
        end=end or created,
        trigger=Trigger.PERSON,
        created_at=created,
        updated_at=ended,
        status=JobStatus.CANCELLED,
        note=f"of the platform before, which called it {status[:40]!r}; counts as fetched nothing",
        records=_count(row.get("total_records")),
        started_at=created,
        completed_at=ended,
    )


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _count(value: object) -> int:
    return int(value) if isinstance(value, Decimal) and value.is_finite() and value >= 0 else 0


def _written(value: object) -> Any:
    """What JSON lacks of DynamoDB's values."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else str(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)
