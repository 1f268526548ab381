"""What an account lacks of an installation, and making it.

What is there is left as it is: where it cannot be used, nothing at all is made; where it is merely
set otherwise, that is said. So it may run again at any time, also beside the stack of deploy/aws.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import ClientError, WaiterError

from avesa_dagster import aws
from avesa_dagster.control.dynamo_tables import create_arguments, recovery_arguments
from avesa_dagster.doctor import bucket, tables
from avesa_dagster.doctor.account import Account, identity
from avesa_dagster.doctor.findings import Finding, Level, of_error, warning
from avesa_dagster.errors import ConfigurationError, RetriableError
from avesa_dagster.settings import Aws

_POLL_SECONDS = 2
_POLLS = 300
_UPLOAD_DAYS = 3
_TRIES = 30
_MADE = {"ResourceInUseException", "BucketAlreadyOwnedByYou"}
"""Somebody made it meanwhile, or an earlier try of ours did, of which the answer was lost."""
_TAKEN = "BucketAlreadyExists"
_BUSY = "OperationAborted"
"""S3 does something else with the bucket's name, for example removes it."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to make.

    Attributes:
        what: In words, as in `table TenantServices-dev`.
        make: Makes it; making it twice does no harm.
    """

    what: str
    make: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make, and what stands in the way.

    Attributes:
        steps: In this order.
        refused: What is there and cannot be used: nothing is to be made.
        differing: What is there and set otherwise: it stays so.
    """

    account: Account
    steps: tuple[Step, ...]
    refused: tuple[Finding, ...]
    differing: tuple[Finding, ...]


def planned(where: Aws, *, topic: bool = False) -> Plan:
    """Looks at what is there. Makes nothing.

    Args:
        topic: Alarms are to have an SNS topic too.

    Raises:
        ConfigurationError: Credentials, region; or we may not look.
        RetriableError, StoreError: AWS.
    """
    account = identity()
    try:
        place = bucket.placed(where.bucket, account)
    except ConfigurationError as error:
        return Plan(account, (), (of_error(error, where.bucket),), ())
    every = tables.held(where)
    tables.refuse_hidden(every)
    held = None if place is None else bucket.held(where.bucket)
    elsewhere = bucket.other_region(place, account) if place else None
    found = [finding for one in every for finding in tables.differences(one, where)]
    refused = [finding for finding in found if finding.level is Level.PROBLEM]
    refused += [elsewhere] if elsewhere else []
    differing = [finding for finding in found if finding.level is not Level.PROBLEM]
    if held is not None:
        differing += bucket.differences(held)
        differing += _unseen(held)
    steps = [
        *_bucket_steps(where.bucket, account, held),
        *_table_steps(where, every),
        *(_topic_steps(where, account) if topic else ()),
    ]
    return Plan(account, tuple(steps), tuple(refused), tuple(differing))


def _bucket_steps(name: str, account: Account, held: bucket.Held | None) -> Iterator[Step]:
    if held is None:
        yield Step(f"bucket {name} in {account.region}", partial(_make_bucket, name, account))
        held = bucket.Held(name)
    s3 = aws.client("s3")
    blocked = dict.fromkeys(bucket.BLOCKED, True)
    encrypted = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    policy = json.dumps(bucket.tls_policy(name, account))
    makes: dict[str, tuple[str, Callable[[], Any]]] = {
        "blocked": (
            "no public access",
            lambda: s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=blocked),
        ),
        "versioning": (
            "versions are kept",
            lambda: s3.put_bucket_versioning(
                Bucket=name, VersioningConfiguration={"Status": "Enabled"}
            ),
        ),
        "encryption": (
            "encryption (AES256)",
            lambda: s3.put_bucket_encryption(
                Bucket=name, ServerSideEncryptionConfiguration=encrypted
            ),
        ),
        "policy": (
            "nobody without TLS",
            lambda: s3.put_bucket_policy(Bucket=name, Policy=policy),
        ),
        "lifecycle": (
            f"parts of uploads that nobody ended go after {_UPLOAD_DAYS} days",
            lambda: s3.put_bucket_lifecycle_configuration(
                Bucket=name, LifecycleConfiguration={"Rules": [_ABORT]}
            ),
        ),
    }
    missing = set(bucket.lacks(held))
    for attribute, (what, make) in makes.items():
        if attribute in missing:
            yield Step(f"bucket {name}: {what}", _explained(f"bucket {name}: {what}", make))


_ABORT = {
    "ID": "uploads-that-nobody-ended",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _UPLOAD_DAYS},
}


def _unseen(held: bucket.Held) -> Iterator[Finding]:
    if held.refused:
        yield warning(
            f"how it is set may not be looked at: {', '.join(held.refused)} is denied",
            held.name,
            "it stays as it is; look as an operator (OperatorPolicy of deploy/aws)",
        )


def _make_bucket(name: str, account: Account) -> None:
    asked: dict[str, Any] = {"Bucket": name}
    if account.region != "us-east-1":  # S3 takes its oldest region only if it is not named
        asked["CreateBucketConfiguration"] = {"LocationConstraint": account.region}
    with aws.explained(f"making bucket {name}"):
        for left in reversed(range(_TRIES)):
            try:
                aws.client("s3").create_bucket(**asked)
            except ClientError as error:
                code = aws.code_of(error)
                if code == _TAKEN:
                    raise ConfigurationError(
                        f"bucket {name} belongs to somebody else: {code}",
                        hint="names of buckets are the world's: choose another AVESA_BUCKET",
                    ) from error
                if code == _BUSY and left:
                    time.sleep(_POLL_SECONDS)
                    continue
                if code not in _MADE:
                    raise
            return


def _table_steps(where: Aws, every: list[tables.Held]) -> Iterator[Step]:
    """First all tables, which AWS makes side by side, then what wants a table that is ready."""
    for one in every:
        if one.said is None:
            yield Step(f"table {one.name}", partial(_make_table, where, one))
    for one in every:
        if one.table.recoverable and (one.said is None or one.recoverable is False):
            yield Step(
                f"table {one.name}: point-in-time recovery", partial(_make_recoverable, one.name)
            )


def _make_table(where: Aws, one: tables.Held) -> None:
    arguments = create_arguments(one.table, one.name)
    with aws.explained(f"making DynamoDB table {one.name}"):
        try:
            aws.client("dynamodb").create_table(**arguments, Tags=tables.owner_tags(where))
        except ClientError as error:
            if aws.code_of(error) not in _MADE:
                raise
    if not one.table.recoverable:
        _wait(one.name)


def _make_recoverable(name: str) -> None:
    _wait(name)
    dynamodb = aws.client("dynamodb")
    with aws.explained(f"making DynamoDB table {name} recoverable"):
        for left in reversed(range(_TRIES)):
            try:
                dynamodb.update_continuous_backups(**recovery_arguments(name))
            except ClientError as error:
                # A new table's backups are being set up for a moment.
                if aws.code_of(error) != "ContinuousBackupsUnavailableException" or not left:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return


def _wait(name: str) -> None:
    """Until the table is active."""
    waiter = aws.client("dynamodb").get_waiter("table_exists")
    with aws.explained(f"waiting for DynamoDB table {name}"):
        try:
            waiter.wait(
                TableName=name, WaiterConfig={"Delay": _POLL_SECONDS, "MaxAttempts": _POLLS}
            )
        except WaiterError as error:
            raise RetriableError(
                f"table {name} is not active after {_POLL_SECONDS * _POLLS // 60} minutes",
                hint="what was made stays; run avesa bootstrap again, it goes on there",
            ) from error


def topic_arn(where: Aws, account: Account) -> str:
    """The topic of the alarms, by the name that the stack of deploy/aws gives it."""
    place = f"{account.region}:{account.number}"
    return f"arn:{account.partition}:sns:{place}:avesa-alarms-{where.environment}"


def _topic_steps(where: Aws, account: Account) -> Iterator[Step]:
    arn = topic_arn(where, account)
    sns = aws.client("sns")
    with aws.explained(f"looking for topic {arn}"):
        try:
            sns.get_topic_attributes(TopicArn=arn)
        except ClientError as error:
            if aws.code_of(error) not in ("NotFound", "NotFoundException"):
                raise
        else:
            return
    name = arn.rpartition(":")[2]
    yield Step(f"topic {arn}", _explained(f"topic {name}", lambda: sns.create_topic(Name=name)))


def _explained(what: str, make: Callable[[], object]) -> Callable[[], None]:
    def made() -> None:
        with aws.explained(f"making {what}"):
            make()

    return made
