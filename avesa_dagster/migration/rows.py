"""What is moved of a tenant besides its objects: rows, and credentials.

Moved: LastUpdated, ChunkProgress, BackfillJobs, the fields and the log of schema drift, and the
credentials. TenantServices comes last and by itself (`moving`): it makes the rest count.

Left behind, since they tell of one installation's own doings: ProcessingJobs and budgets (of runs
and minutes that are over), breakers and alarms (whether a service can be reached from the new
place is found out there), and counters (they begin at nought, as after any restart of a scrape).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from avesa_dagster import aws, settings
from avesa_dagster.control.base import Chunk, TenantService, Watermark
from avesa_dagster.control.dynamo import DynamoControl
from avesa_dagster.control.dynamo_database import to_text
from avesa_dagster.control.dynamo_tables import (
    CHUNK_PROGRESS,
    HEALTH,
    LAST_UPDATED,
    TENANT_SERVICES,
)
from avesa_dagster.control.health import Drift, DriftLog, Fields
from avesa_dagster.control.jobs import Job
from avesa_dagster.control.secrets import names_of
from avesa_dagster.control.secrets_manager import SecretsManagerSecrets
from avesa_dagster.errors import ConfigurationError, StoreError, Where

EVERY_LINE = 2_000_000_000
THREADS = 12
_LINES_AT_ONCE = 2_000
_CHUNKS_AT_ONCE = 40
_LARGEST = 2_000_000
"""Bytes of a transaction, of which DynamoDB takes four million."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one tenant by table; keys name a row within its table and tenant.

    Attributes:
        secrets: service -> fields. Never to be shown.
        drift: `service/table` -> what is known of its fields, and the lines of its log, newest
            first.
    """

    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    watermarks: dict[str, Watermark] = field(default_factory=dict)
    chunks: dict[str, Chunk] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> dict[str, Mapping[str, Any]]:
        """In the order in which they are moved."""
        return {
            "secrets": self.secrets,
            "LastUpdated": self.watermarks,
            "ChunkProgress": self.chunks,
            "BackfillJobs": self.jobs,
            "drift": self.drift,
        }


def drift_of(
    log: DriftLog, tenant: str, endpoints: Iterable[tuple[str, ...]], lines: Iterable[Drift]
) -> dict[str, Any]:
    """`Rows.drift`, of endpoints that are known and of those that lines are about."""
    of_endpoint: dict[tuple[str, ...], list[Drift]] = defaultdict(list)
    for endpoint in endpoints:
        of_endpoint[endpoint] = []
    for line in lines:
        of_endpoint[line.service, line.table].append(line)
    return {
        f"{service}/{table}": (log.fields(tenant, service, table), tuple(own))
        for (service, table), own in of_endpoint.items()
    }


@dataclass(frozen=True, slots=True)
class TargetRows:
    """The same in AWS, written as they are, so that a row that is there stays."""

    where: settings.Aws
    control: DynamoControl
    secrets: SecretsManagerSecrets

    def read(self, tenant: str, asked: Rows) -> Rows:
        """All rows of a tenant.

        Args:
            asked: Rows that are looked for by their keys too: an index may not know them yet.
        """
        return Rows(
            secrets=self._secrets(tenant),
            watermarks=self._watermarks(tenant),
            chunks=self._chunks(tenant),
            jobs=self._jobs(tenant, asked.jobs),
            drift=self._drift(tenant),
        )

    def forget(self, tenant: str, table: str, foreign: Iterable[str]) -> None:
        """Removes the rows of a tenant in one table; of its credentials only the foreign ones."""
        if table == "secrets":
            for service in foreign:
                self.secrets.remove(tenant, service)
            return
        forgets: dict[str, Callable[[str], int]] = {
            "LastUpdated": self.control.watermarks.forget,
            "ChunkProgress": self.control.ledger.forget,
            "BackfillJobs": self.control.jobs.forget,
            "drift": self.control.drift.forget,
        }
        forgets[table](tenant)

    def add(
        self, tenant: str, table: str, rows: Mapping[str, Any], done: Callable[[int], None]
    ) -> None:
        """Writes rows of one table; `done` is told how many more there are by now."""
        writers: dict[str, Callable[[Any], None]] = {
            "LastUpdated": self._add_watermark,
            "BackfillJobs": self._add_job,
        }
        if table == "secrets":
            for service, fields in rows.items():
                self.secrets.put(tenant, service, fields)
                done(1)
        elif table == "drift":
            for name, (known, lines) in rows.items():
                self._add_drift(tenant, name, known, lines)
                done(1)
        elif table == "ChunkProgress":
            _at_once(self._add_chunks, _planned_together(rows.values()), lambda g: done(len(g)))
        else:
            _at_once(writers[table], rows.values(), lambda row: done(1))

    def keep_numbers_above(self, number: int) -> None:
        """No new connection gets this number or a smaller one."""
        self.control.database.change(
            HEALTH,
            ("numbers", TENANT_SERVICES.name),
            lambda row: (
                None if row is not None and row.number("number") >= number else {"number": number}
            ),
        )

    def connect(self, row: TenantService) -> None:
        """Writes a connection as it is, unless there is one."""
        item = {
            "tenant_id": row.tenant,
            "service": row.service,
            "number": row.number,
            "generation": row.generation,
            "enabled": row.enabled,
            "history_start": to_text(row.history_start),
            "tables": list(row.tables),
            "requests_per_minute": row.requests_per_minute,
            "created_at": to_text(row.connected_at),
            "updated_at": to_text(row.updated_at),
        }
        self.control.database.insert(TENANT_SERVICES, item, Where(row.tenant, row.service))

    def _secrets(self, tenant: str) -> dict[str, dict[str, str]]:
        name, where = f"{tenant}/{self.where.environment}", Where(tenant)
        with aws.explained(f"secret {name}", where):
            try:
                answer = aws.client("secretsmanager").get_secret_value(SecretId=name)
            except ClientError as error:
                if aws.code_of(error) == "ResourceNotFoundException":
                    return {}
                raise
        named = names_of(answer.get("SecretString", "").encode())
        if named == ["*"]:
            raise ConfigurationError(
                f"secret {name} is there, and is no document of credentials by service",
                where=where,
                hint="move it away; it is left as it is",
            )
        return {service: self.secrets.get(tenant, service, fresh=True) for service in named}

    def _watermarks(self, tenant: str) -> dict[str, Watermark]:
        found = {}
        for row in self.control.database.query(LAST_UPDATED, tenant, where=Where(tenant)):
            service, _, table = row.key[1].partition("#")
            mark = self.control.watermarks.get(tenant, service, table)
            if mark is not None:
                found[f"{service}/{table}"] = mark
        return found

    def _chunks(self, tenant: str) -> dict[str, Chunk]:
        sort = CHUNK_PROGRESS.keys[1]
        rows = self.control.database.query(
            CHUNK_PROGRESS, tenant, attributes=(sort,), where=Where(tenant)
        )
        groups = list(dict.fromkeys(tuple(row.key[1].split("#")[:3]) for row in rows))
        found: dict[str, Chunk] = {}

        def read(group: tuple[str, ...]) -> list[Chunk]:
            service, table, token = group
            return self.control.ledger.rows(token, tenant, service, table)

        with ThreadPoolExecutor(THREADS) as pool:
            for group, chunks in zip(groups, pool.map(read, groups), strict=True):
                found |= {"/".join((*group, chunk.chunk_id)): chunk for chunk in chunks}
        return found

    def _jobs(self, tenant: str, asked: Iterable[str]) -> dict[str, Job]:
        found = {job.job_id: job for job in self.control.jobs.find(tenant)}
        for job_id in asked:
            held = None if job_id in found else self.control.jobs.get(job_id)
            if held is not None:
                found[job_id] = held
        return found

    def _drift(self, tenant: str) -> dict[str, Any]:
        known = self.control.database.query(HEALTH, f"fields/{tenant}", attributes=("item",))
        endpoints = [tuple(row.key[1].split("/")) for row in known]
        lines = self.control.drift.log(tenant, limit=EVERY_LINE)
        return drift_of(self.control.drift, tenant, endpoints, lines)

    def _add_watermark(self, mark: Watermark) -> None:
        self.control.watermarks.advance(
            mark.tenant,
            mark.service,
            mark.table,
            lower=mark.upper,
            upper=mark.upper,
            now=mark.updated_at,
        )

    def _add_job(self, job: Job) -> None:
        self.control.jobs.create(job)

    def _add_chunks(self, chunks: Sequence[Chunk]) -> None:
        planned_at = chunks[0].planned_at
        if planned_at is None:
            raise StoreError(
                f"chunk {chunks[0].chunk_id} was never planned",
                where=Where(chunks[0].tenant, chunks[0].service, chunks[0].table),
                hint="remove its row in the source",
            )
        self.control.ledger.plan(chunks, now=planned_at)

    def _add_drift(self, tenant: str, name: str, known: Fields, lines: Sequence[Drift]) -> None:
        service, _, table = name.partition("/")
        oldest_first = list(reversed(lines))
        for start in range(0, len(oldest_first), _LINES_AT_ONCE):
            some = oldest_first[start : start + _LINES_AT_ONCE]
            self.control.drift.note(tenant, service, table, _noted({}, some))
        self.control.drift.note(tenant, service, table, _noted(known, []))


def _noted(
    known: Fields, lines: Sequence[Drift]
) -> Callable[[Fields], tuple[Fields, Sequence[Drift]]]:
    return lambda held: (known, lines)


def _planned_together(chunks: Iterable[Chunk]) -> list[list[Chunk]]:
    """Chunks of one table, token and moment of planning, no more than DynamoDB takes at once."""
    groups: dict[tuple[str, str, str, datetime | None], list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        groups[chunk.service, chunk.table, chunk.token, chunk.planned_at].append(chunk)
    parts: list[list[Chunk]] = []
    for own in groups.values():
        size = _LARGEST
        for chunk in own:
            weight = 2_000 + len(chunk.error or "") + sum(len(key) + 8 for key in chunk.objects)
            if size + weight > _LARGEST or len(parts[-1]) >= _CHUNKS_AT_ONCE:
                parts.append([])
                size = 0
            parts[-1].append(chunk)
            size += weight
    return parts


def _at_once(
    write: Callable[[Any], None], items: Iterable[Any], done: Callable[[Any], None]
) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        futures = {pool.submit(write, item): item for item in items}
        try:
            for future, item in futures.items():
                future.result()
                done(item)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
