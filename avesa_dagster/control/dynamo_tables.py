"""The DynamoDB tables of the aws profile: the one place that says which there are, and their keys.

The template of the stack, `avesa bootstrap`, `avesa doctor` and the tests are checked against it.
Every key attribute is a string. Names of tables and attributes are those that the users' scripts
know; a table is called `{name}-{environment}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Index:
    """A secondary index.

    Attributes:
        local: Shares the table's partition key, so that reads of it can be consistent. A global one
            lags behind: lists for people only.
        attributes: Besides all keys, what an entry carries; None: the whole item.
    """

    name: str
    partition: str
    sort: str
    local: bool = False
    attributes: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table, billed by request.

    Attributes:
        name: Without the environment.
        partition, sort: Its key attributes.
        recoverable: Wants point-in-time recovery.
        protected: Wants deletion protection.
    """

    name: str
    partition: str
    sort: str | None = None
    indexes: tuple[Index, ...] = ()
    recoverable: bool = True
    protected: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the key attributes."""
        return (self.partition,) if self.sort is None else (self.partition, self.sort)

    def index(self, name: str) -> Index:
        """Its index of this name."""
        return next(index for index in self.indexes if index.name == name)


TENANT_SERVICES = Table("TenantServices", "tenant_id", "service")

LAST_UPDATED = Table("LastUpdated", "tenant_id", "service#table")

# `ended` is there once a job has ended, always `yes`; `ended_at` sorts one without an end first.
BACKFILL_JOBS = Table(
    "BackfillJobs",
    "job_id",
    indexes=(
        Index("TenantServiceIndex", "tenant_id", "service_name", attributes=("created_at",)),
        Index("EndedIndex", "ended", "ended_at", attributes=("created_at",)),
    ),
)

# The tenant leads, not the job: all questions that decide something (what is covered, what rests,
# which objects) are then consistent reads of one tenant, which a global index could not answer.
# `place` orders what these questions ask for, see dynamo_ledger.
CHUNK_PROGRESS = Table(
    "ChunkProgress",
    "tenant_id",
    "service#table#job_id#chunk_id",
    indexes=(
        Index(
            "TenantTableIndex",
            "tenant_id",
            "place",
            local=True,
            attributes=(
                "window_start", "window_end", "kind", "partition", "records_processed",
                "source_count", "as_of", "planned_at", "objects",
            ),
        ),
        Index("JobIndex", "job_id", "chunk_id"),
    ),
)  # fmt: skip

# `kept` is always `yes`. `aged_at` is the last beat of a row that ended, and of one that runs its
# hour, so that few beats move it in the index.
PROCESSING_JOBS = Table(
    "ProcessingJobs",
    "run_id",
    "tenant_id#service#table",
    indexes=(
        Index("JobIndex", "job_id", "started_at"),
        Index("TenantIndex", "tenant_id", "started_at"),
        Index("AgeIndex", "kept", "aged_at"),
    ),
)

# Many small kinds of items: breakers, counters, alarms, drift, open jobs, lanes, numbers given.
# `scope` is what is read together, `item` which of it.
HEALTH = Table("Health", "scope", "item")

# What each service's limit was used for in the last minute; worth nothing after it.
BUDGETS = Table("Budgets", "key", recoverable=False, protected=False)

TABLES: tuple[Table, ...] = (
    TENANT_SERVICES,
    LAST_UPDATED,
    BACKFILL_JOBS,
    CHUNK_PROGRESS,
    PROCESSING_JOBS,
    HEALTH,
    BUDGETS,
)


def create_arguments(table: Table, name: str) -> dict[str, Any]:
    """Arguments of boto3's `create_table`.

    Args:
        name: The full name, with the environment: `settings.Aws.table(table.name)`.
    """
    used = {*table.keys, *(key for index in table.indexes for key in (index.partition, index.sort))}
    arguments: dict[str, Any] = {
        "TableName": name,
        "AttributeDefinitions": [
            {"AttributeName": attribute, "AttributeType": "S"} for attribute in sorted(used)
        ],
        "KeySchema": _key_schema(*table.keys),
        "BillingMode": "PAY_PER_REQUEST",
        "DeletionProtectionEnabled": table.protected,
    }
    for kind, local in (("LocalSecondaryIndexes", True), ("GlobalSecondaryIndexes", False)):
        indexes = [_index_arguments(index) for index in table.indexes if index.local is local]
        if indexes:
            arguments[kind] = indexes
    return arguments


def recovery_arguments(name: str) -> dict[str, Any]:
    """Arguments of boto3's `update_continuous_backups` for a table that wants recovery."""
    return {
        "TableName": name,
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
    }


def _index_arguments(index: Index) -> dict[str, Any]:
    projection: dict[str, Any] = {"ProjectionType": "ALL"}
    if index.attributes is not None:
        projection = {"ProjectionType": "KEYS_ONLY"}
    if index.attributes:
        projection = {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(index.attributes)}
    return {
        "IndexName": index.name,
        "KeySchema": _key_schema(index.partition, index.sort),
        "Projection": projection,
    }


def _key_schema(*attributes: str) -> list[dict[str, str]]:
    return [
        {"AttributeName": attribute, "KeyType": kind}
        for attribute, kind in zip(attributes, ("HASH", "RANGE"), strict=False)
    ]
