"""What we may do, found out by doing it: what is denied is told apart from what is absent.

Nothing is ever written: each write has a condition that cannot hold, for an item that cannot be
there. AWS looks at the permission before it looks at the condition.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import ClientError

from avesa_dagster import aws
from avesa_dagster.control.dynamo_tables import TABLES, TENANT_SERVICES, Table
from avesa_dagster.doctor.account import REFUSED, client
from avesa_dagster.doctor.findings import Findings, problem, warning, well
from avesa_dagster.settings import Aws

NOBODY = "_avesa-doctor"
"""No tenant can be called so."""

_ABSENT = "ResourceNotFoundException"
_ELSEWHERE = {_ABSENT, "ValidationException"}
"""The table or index is not there, or has other keys: the check of the tables tells it."""
_UNMET = {"ConditionalCheckFailedException", "TransactionCanceledException"}
_AT_ONCE = 16

Call = Callable[[], object]


def on_tables(where: Aws) -> Findings:
    """Reading and writing every table, by an item that cannot be there."""
    dynamodb = client("dynamodb")
    asked = [
        (action, where.table(table.name), call)
        for table in TABLES
        for action, call in _calls(dynamodb, table, where.table(table.name))
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        outcomes = list(pool.map(lambda one: _tried(*one), asked))
    denied: dict[str, list[str]] = {}
    absent = set()
    for (action, name, _), code in zip(asked, outcomes, strict=True):
        if code in REFUSED:
            denied.setdefault(name, []).append(f"dynamodb:{action}")
        elif code == _ABSENT:
            absent.add(name)
    for name, actions in denied.items():
        yield problem(
            f"{', '.join(actions)} is denied",
            name,
            "allow it as deploy/aws/avesa.yaml does (DataPolicy)",
        )
    if not denied:
        there = len(TABLES) - len(absent)
        left = f", {len(absent)} are not there or lack an index" if absent else ""
        yield well(f"{there} tables can be read and written{left}")


def on_secrets(where: Aws) -> Findings:
    """Reading secrets by their names."""
    name = f"{NOBODY}/{where.environment}"
    with aws.explained(f"looking for secret {name}"):
        try:
            client("secretsmanager").get_secret_value(SecretId=name)
        except ClientError as error:
            if aws.code_of(error) in REFUSED:
                yield warning(
                    "a secret that is not there is refused, which AWS does too where a policy "
                    "names secrets by their endings",
                    name,
                    f"allow secretsmanager:GetSecretValue on */{where.environment}-?????? as "
                    "deploy/aws/avesa.yaml does; those of tenants are read one by one below",
                )
                return
            if aws.code_of(error) != _ABSENT:
                raise
    yield well("secrets can be read by name")


def _calls(dynamodb: Any, table: Table, name: str) -> Iterator[tuple[str, Call]]:
    """Every action that a run makes on a table: its name, and a call without an effect."""
    sort = secrets.token_hex(8)
    key = {
        attribute: {"S": value}
        for attribute, value in zip(table.keys, (NOBODY, sort), strict=False)
    }
    impossible = {
        "ConditionExpression": "attribute_exists(#k)",
        "ExpressionAttributeNames": {"#k": table.partition},
    }
    check = {"ConditionCheck": {"TableName": name, "Key": key, **impossible}}
    query = {
        "KeyConditionExpression": "#k = :k",
        "ExpressionAttributeNames": {"#k": table.partition},
        "ExpressionAttributeValues": {":k": {"S": NOBODY}},
    }
    batch = {name: [{"DeleteRequest": {"Key": key}}]}
    yield "GetItem", lambda: dynamodb.get_item(TableName=name, Key=key)
    yield "BatchGetItem", lambda: dynamodb.batch_get_item(RequestItems={name: {"Keys": [key]}})
    yield "Query", lambda: dynamodb.query(TableName=name, **query)
    yield "PutItem", lambda: dynamodb.put_item(TableName=name, Item=key, **impossible)
    yield "UpdateItem", lambda: dynamodb.update_item(TableName=name, Key=key, **impossible)
    yield "DeleteItem", lambda: dynamodb.delete_item(TableName=name, Key=key, **impossible)
    yield "BatchWriteItem", lambda: dynamodb.batch_write_item(RequestItems=batch)
    yield "ConditionCheckItem", lambda: dynamodb.transact_write_items(TransactItems=[check])
    for index in table.indexes:
        asked = {
            **query, "IndexName": index.name,
            "ExpressionAttributeNames": {"#k": index.partition},
        }  # fmt: skip
        yield f"Query of {index.name}", _query(dynamodb, name, asked)
    if table is TENANT_SERVICES:
        yield "Scan", lambda: dynamodb.scan(TableName=name, Limit=1)


def _query(dynamodb: Any, name: str, asked: dict[str, Any]) -> Call:
    return lambda: dynamodb.query(TableName=name, **asked)


def _tried(action: str, name: str, call: Call) -> str:
    """What AWS says against it; empty: nothing, or what was to be expected."""
    with aws.explained(f"trying dynamodb:{action} on {name}"):
        try:
            call()
        except ClientError as error:
            code = aws.code_of(error)
            if code in REFUSED:
                return code
            if code in _ELSEWHERE:
                return _ABSENT
            if code not in _UNMET:
                raise
    return ""
