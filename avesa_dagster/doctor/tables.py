"""The tables in DynamoDB: which are there, and what is not as AVESA wants it.

Nothing here changes a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from avesa_dagster import aws
from avesa_dagster.control.dynamo_tables import TABLES, Index, Table, create_arguments
from avesa_dagster.doctor.account import REFUSED, client
from avesa_dagster.doctor.findings import Finding, Findings, problem, warning, well
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.settings import Aws

ENVIRONMENT_TAG, BUCKET_TAG = "avesa:environment", "avesa:bucket"
"""Tags of a table that `avesa bootstrap` made: whose it is."""

_ABSENT = "ResourceNotFoundException"
_PASSING = {"CREATING", "UPDATING"}
_SCHEMAS = ("LocalSecondaryIndexes", "GlobalSecondaryIndexes")


@dataclass(frozen=True, slots=True)
class Held:
    """A table as it is.

    Attributes:
        said: DynamoDB's description; None: there is no such table.
        recoverable: Whether it has point-in-time recovery; None: we may not look.
        tags: None: we may not look.
        refused: Names of the actions that we lack.
    """

    table: Table
    name: str
    said: Mapping[str, Any] | None
    recoverable: bool | None = None
    tags: Mapping[str, str] | None = None
    refused: tuple[str, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether it may be there, and we may not look."""
        return self.said is None and bool(self.refused)


def held(where: Aws, tables: Sequence[Table] = TABLES) -> list[Held]:
    """Every table as it is, in the order given.

    Raises:
        ConfigurationError, RetriableError, StoreError: AWS cannot be asked at all.
    """
    client("dynamodb")  # made once, before threads want it
    with ThreadPoolExecutor(len(tables)) as pool:
        return list(pool.map(lambda table: _held(table, where.table(table.name)), tables))


def environments() -> list[str]:
    """The environments of which tables are in this account and region, as far as we may look."""
    first = f"{TABLES[0].name}-"
    try:
        pages = client("dynamodb").get_paginator("list_tables").paginate()
        names = [name for page in pages for name in page["TableNames"]]
    except ClientError as error:
        if aws.code_of(error) in REFUSED:
            return []
        raise
    return sorted(name.removeprefix(first) for name in names if name.startswith(first))


def look(where: Aws) -> Findings:
    """Whether every table is there, ours, and as it should be."""
    every = held(where)
    missing = [one.name for one in every if one.said is None and not one.hidden]
    if missing:
        yield _missing(missing, where)
    denied = sorted({action for one in every for action in one.refused})
    if denied:
        yield warning(
            f"may not be looked at: {', '.join(denied)} is denied",
            ", ".join(one.name for one in every if one.refused),
            "run avesa doctor as an operator too (OperatorPolicy of deploy/aws)",
        )
    found = [finding for one in every for finding in differences(one, where)]
    found += [finding for one in every for finding in _unrecoverable(one)]
    yield from found
    good = len(every) - len({finding.where for finding in found}) - len(missing)
    if not missing and not denied and not found:
        yield well(f"all {good} tables of environment {where.environment} are as they should be")


def differences(one: Held, where: Aws) -> Findings:
    """What of a table that is there is not as AVESA wants it, and cannot just be added."""
    if one.said is None:
        return
    yield from _others(one, where)
    yield from _status(one)
    yield from _keys(one)
    yield from _indexes(one)
    if one.table.protected and not one.said.get("DeletionProtectionEnabled"):
        yield warning(
            "may be deleted by mistake: it has no deletion protection",
            one.name,
            f"aws dynamodb update-table --table-name {one.name} --deletion-protection-enabled",
        )
    mode = one.said.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    if mode != "PAY_PER_REQUEST":
        yield warning(
            "has a fixed capacity: a backfill is throttled at it",
            one.name,
            f"aws dynamodb update-table --table-name {one.name} --billing-mode PAY_PER_REQUEST",
        )


def _missing(names: list[str], where: Aws) -> Finding:
    others = [name for name in environments() if name != where.environment]
    todo = "avesa bootstrap makes what is missing"
    if others:
        todo += (
            f"; there are tables of {', '.join(others)} in this account and region: is "
            f"AVESA_ENVIRONMENT={where.environment} right?"
        )
    else:
        todo += "; check AWS_REGION and the account first"
    count = "the table is" if len(names) == 1 else f"{len(names)} tables are"
    return problem(f"{count} not there", ", ".join(names), todo, blocking=True)


def _others(one: Held, where: Aws) -> Iterator[Finding]:
    """Whether it says that it is another installation's."""
    tags = one.tags or {}
    for tag, ours, what in (
        (ENVIRONMENT_TAG, where.environment, "environment"),
        (BUCKET_TAG, where.bucket, "the bucket"),
    ):
        if tags.get(tag, ours) != ours:
            yield problem(
                f"belongs to another installation, of {what} {tags[tag]}, not {ours}",
                one.name,
                "choose another AVESA_ENVIRONMENT, or set AVESA_BUCKET to that bucket; if it was "
                f"taken over on purpose, change its tag {tag}",
                blocking=True,
            )


def _status(one: Held) -> Iterator[Finding]:
    assert one.said is not None
    status = one.said.get("TableStatus", "ACTIVE")
    if status in _PASSING:
        yield warning(f"is {status.lower()}", one.name, "wait a minute and look again")
    elif status != "ACTIVE":
        yield problem(
            f"is {status}",
            one.name,
            "its encryption key must be enabled, and nobody may be deleting it",
            blocking=True,
        )


def _keys(one: Held) -> Iterator[Finding]:
    assert one.said is not None
    found, wanted = _schema(one.said.get("KeySchema", ())), one.table.keys
    if found != wanted:
        yield problem(
            f"has other keys: ({', '.join(found)}), not ({', '.join(wanted)})",
            one.name,
            "it is another program's, perhaps the platform's that AVESA replaces: choose another "
            "AVESA_ENVIRONMENT and leave it as it is; avesa migrate imports from it",
            blocking=True,
        )
        return
    types = {
        said["AttributeName"]: said["AttributeType"] for said in one.said["AttributeDefinitions"]
    }
    wrong = [name for name in wanted if types.get(name) != "S"]
    if wrong:
        yield problem(
            f"has keys that are no texts: {', '.join(wrong)}",
            one.name,
            "it is another program's: choose another AVESA_ENVIRONMENT and leave it as it is",
            blocking=True,
        )


def _indexes(one: Held) -> Iterator[Finding]:
    assert one.said is not None
    there = {
        (said["IndexName"], kind == _SCHEMAS[0]): said
        for kind in _SCHEMAS
        for said in one.said.get(kind, ())
    }
    for index in one.table.indexes:
        said = there.get((index.name, index.local))
        if said is None:
            yield problem(f"lacks the index {index.name}", one.name, _mended(one, index))
        elif _schema(said["KeySchema"]) != (index.partition, index.sort) or not _carries(
            said["Projection"], index
        ):
            yield problem(
                f"has another index {index.name}: other keys, or fewer attributes",
                one.name,
                _mended(one, index),
            )
        elif said.get("IndexStatus", "ACTIVE") != "ACTIVE":
            status = said["IndexStatus"].lower()
            yield warning(f"its index {index.name} is {status}", one.name, "wait, and look again")


def _carries(projection: Mapping[str, Any], index: Index) -> bool:
    """Whether an index carries what is read from it; more does no harm."""
    if projection["ProjectionType"] == "ALL":
        return True
    if index.attributes is None:
        return False
    return set(index.attributes) <= set(projection.get("NonKeyAttributes", ()))


def _mended(one: Held, index: Index) -> str:
    if index.local:
        return (
            "a local index is made with its table only: choose another AVESA_ENVIRONMENT, or "
            "export the table, delete it, let avesa bootstrap make it, and import"
        )
    kind = _SCHEMAS[1]
    wanted = next(
        said
        for said in create_arguments(one.table, one.name)[kind]
        if said["IndexName"] == index.name
    )
    keys = " ".join(f"{key['KeyType']}={key['AttributeName']}" for key in wanted["KeySchema"])
    carried = wanted["Projection"].get("NonKeyAttributes", ["keys only"])
    return (
        f"aws dynamodb update-table --table-name {one.name} --global-secondary-index-updates …: "
        f"{index.name} with {keys}, carrying {', '.join(carried)} (as in deploy/aws/avesa.yaml)"
    )


def _unrecoverable(one: Held) -> Iterator[Finding]:
    if one.table.recoverable and one.recoverable is False:
        yield problem(
            "cannot be recovered: point-in-time recovery is off",
            one.name,
            "avesa bootstrap turns it on",
        )


def _schema(said: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    ordered = sorted(said, key=lambda key: key["KeyType"] != "HASH")
    return tuple(key["AttributeName"] for key in ordered)


@dataclass
class _Asker:
    """Asks of one table what may be denied."""

    name: str
    refused: list[str] = field(default_factory=list)

    def ask(self, action: str, **asked: str) -> dict[str, Any] | None:
        """The answer; None: denied, or there is none."""
        operations = {
            "DescribeTable": client("dynamodb").describe_table,
            "DescribeContinuousBackups": client("dynamodb").describe_continuous_backups,
            "ListTagsOfResource": client("dynamodb").list_tags_of_resource,
        }
        with aws.explained(f"looking at DynamoDB table {self.name}"):
            try:
                answer: dict[str, Any] = operations[action](**asked)
            except ClientError as error:
                if aws.code_of(error) == _ABSENT:
                    return None
                if aws.code_of(error) not in REFUSED:
                    raise
                self.refused.append(f"dynamodb:{action}")
                return None
        return answer


def _held(table: Table, name: str) -> Held:
    asker = _Asker(name)
    described = asker.ask("DescribeTable", TableName=name)
    if described is None:
        return Held(table, name, None, refused=tuple(asker.refused))
    said = described["Table"]
    backups = asker.ask("DescribeContinuousBackups", TableName=name)
    tags = asker.ask("ListTagsOfResource", ResourceArn=said["TableArn"])
    return Held(
        table,
        name,
        said,
        recoverable=None if backups is None else _recoverable(backups),
        tags=None if tags is None else {tag["Key"]: tag["Value"] for tag in tags.get("Tags", ())},
        refused=tuple(asker.refused),
    )


def _recoverable(answer: Mapping[str, Any]) -> bool:
    said = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    return bool(said.get("PointInTimeRecoveryStatus") == "ENABLED")


def owner_tags(where: Aws) -> list[dict[str, str]]:
    """The tags that say whose a table is."""
    return [
        {"Key": ENVIRONMENT_TAG, "Value": where.environment},
        {"Key": BUCKET_TAG, "Value": where.bucket},
    ]


def refuse_hidden(every: Sequence[Held]) -> None:
    """Raises ConfigurationError if there are tables that we may not look at."""
    hidden = [one.name for one in every if one.hidden]
    if hidden:
        raise ConfigurationError(
            f"tables may not be looked at: dynamodb:DescribeTable is denied for {hidden[0]}",
            hint="run it as an operator (OperatorPolicy of deploy/aws), or as an administrator",
        )
