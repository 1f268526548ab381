"""The control tables in DynamoDB: the aws profile, shared by any number of hosts."""

from __future__ import annotations

from avesa_dagster import settings
from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control.dynamo_database import DynamoDatabase
from avesa_dagster.control.dynamo_health import (
    DynamoAlarms,
    DynamoBreakers,
    DynamoCounters,
    DynamoDriftLog,
)
from avesa_dagster.control.dynamo_jobs import DynamoJobs, DynamoProcessingJobs
from avesa_dagster.control.dynamo_ledger import DynamoLedger
from avesa_dagster.control.dynamo_registry import DynamoRegistry, DynamoWatermarks


class DynamoControl:
    """The control tables `{name}-{environment}` of `dynamo_tables`. Safe for many threads,
    processes and hosts; makes no call before it is used.

    Attributes:
        registry: TenantServices.
        watermarks: LastUpdated.
        ledger: ChunkProgress.
        jobs: BackfillJobs.
        processing: ProcessingJobs.
        breakers, counters, alarms, drift: Health; see `control.health`.

    Args:
        breaker: When breakers open, and for how long.
    """

    def __init__(
        self,
        aws: settings.Aws,
        *,
        breaker: BreakerSettings = BreakerSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.database = DynamoDatabase(aws)
        self.registry = DynamoRegistry(self.database)
        self.watermarks = DynamoWatermarks(self.database)
        self.ledger = DynamoLedger(self.database)
        self.jobs = DynamoJobs(self.database)
        self.processing = DynamoProcessingJobs(self.database)
        self.breakers = DynamoBreakers(self.database, breaker)
        self.counters = DynamoCounters(self.database)
        self.alarms = DynamoAlarms(self.database)
        self.drift = DynamoDriftLog(self.database)

    def close(self) -> None:
        """Nothing is held open: the connections are the process's."""
