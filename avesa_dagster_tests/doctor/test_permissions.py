"""What is denied is named, and told apart from what is not there; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from avesa_dagster import aws as boto
from avesa_dagster.control.dynamo_tables import TABLES
from avesa_dagster.doctor import permissions
from avesa_dagster.doctor.findings import Level
from avesa_dagster.names import NAME
from avesa_dagster_tests.doctor.support import (
    Answers,
    Twisted,
    everything,
    own,
    refusal,
    said,
    shared,
)
from avesa_dagster_tests.lossy import Answer, Call
from avesa_dagster_tests.moto import Moto


@contextmanager
def refusing(moto: Moto, monkeypatch: pytest.MonkeyPatch, twist: Answers) -> Iterator[Twisted]:
    with Twisted(moto.url, twist=twist) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        boto.client.cache_clear()
        yield proxy
    boto.client.cache_clear()


def test_all_is_allowed_and_nothing_is_written(aws: Moto) -> None:
    where = shared()
    before = everything(where)
    (found,) = permissions.on_tables(where)
    assert found.level is Level.WELL and found.what.startswith(f"{len(TABLES)} tables")
    assert everything(where) == before


ACTIONS = {
    "TenantServices": "Scan",
    "LastUpdated": "PutItem",
    "BackfillJobs": "Query",
    "ChunkProgress": "BatchGetItem",
    "ProcessingJobs": "BatchWriteItem",
    "Health": "TransactWriteItems",
    "Budgets": "UpdateItem",
}
OTHERS = {"TenantServices": "GetItem", "LastUpdated": "DeleteItem"}


@pytest.mark.parametrize("denied", [ACTIONS, OTHERS], ids=["a call of each", "two more"])
def test_what_is_denied_is_named_with_its_table(
    aws: Moto, monkeypatch: pytest.MonkeyPatch, denied: dict[str, str]
) -> None:
    where = shared()

    def deny(call: Call) -> Answer | None:
        for table, action in denied.items():
            if call.operation == action and where.table(table).encode() in call.body:
                return refusal(call)
        return None

    with refusing(aws, monkeypatch, deny):
        texts = said(permissions.on_tables(where))
    assert len(texts) == len(denied)
    for text, (table, operation) in zip(texts, denied.items(), strict=True):
        action = operation.replace("TransactWriteItems", "ConditionCheckItem")
        assert text.startswith(f"{where.table(table)}: dynamodb:{action}") and "is denied" in text
        assert text.count("dynamodb:") == (3 if action == "Query" else 1), text
        assert "DataPolicy" in text


def test_what_is_not_there_is_not_denied(aws: Moto) -> None:
    found = list(permissions.on_tables(own()))
    assert not said(found)
    assert found[0].what.startswith(f"0 tables can be read and written, {len(TABLES)} are not")


def test_secrets_that_are_denied_are_not_called_absent(
    aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = own()
    (found,) = permissions.on_secrets(where)
    assert found.level is Level.WELL
    with refusing(aws, monkeypatch, lambda call: refusal(call)):
        (text,) = said(permissions.on_secrets(where), Level.WARNING)
    assert "secretsmanager:GetSecretValue" in text and where.environment in text


def test_no_tenant_is_called_as_the_probe() -> None:
    assert NAME.fullmatch(permissions.NOBODY) is None
