"""The implementations that the behaviour suites run over. A new one is one line in OPENERS."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from avesa_dagster import settings
from avesa_dagster.conformance.ground import make_tables
from avesa_dagster.control.base import Secrets
from avesa_dagster.control.dynamo import DynamoControl
from avesa_dagster.control.dynamo_database import DynamoDatabase
from avesa_dagster.control.dynamo_locks import DynamoLocks
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.control.secrets_manager import SecretsManagerSecrets
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.profiles import Control

Opener = Callable[[Path], Control]
"""Opens the control tables that belong to a folder; called again, the same ones."""


def open_sqlite(folder: Path) -> Control:
    return SqliteControl(folder / "control.db")


def open_dynamodb(folder: Path) -> Control:
    """The tables lie where the environment's AWS_ENDPOINT_URL says: moto (fixture `aws`)."""
    where = environment_of(folder)
    _made(where)
    return DynamoControl(where)


def environment_of(folder: Path) -> settings.Aws:
    """An environment of the folder's own, so that tests may share a server."""
    name = hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
    return settings.Aws(f"t{name}", "no-bucket")


_made = cache(make_tables)

OPENERS: dict[str, Opener] = {"sqlite": open_sqlite, "dynamodb": open_dynamodb}


def open_secrets_manager(folder: Path) -> SecretsManagerSecrets:
    where = environment_of(folder)
    _made(where)
    return SecretsManagerSecrets(where, DynamoLocks(DynamoDatabase(where)))


SECRETS: dict[str, Callable[[Path], Secrets]] = {
    "file": lambda folder: FileSecrets(folder, {}),
    "secretsmanager": open_secrets_manager,
}


@pytest.fixture(params=OPENERS)
def opener_name(request: pytest.FixtureRequest) -> str:
    """Of `OPENERS`: for tests that open in another process, too."""
    name: str = request.param
    if name == "dynamodb":
        request.getfixturevalue("aws")
    return name


@pytest.fixture
def opener(opener_name: str) -> Opener:
    return OPENERS[opener_name]


@pytest.fixture
def control(opener: Opener, tmp_path: Path) -> Control:
    return opener(tmp_path)


@pytest.fixture(params=SECRETS)
def secrets(request: pytest.FixtureRequest, tmp_path: Path) -> Secrets:
    if request.param == "secretsmanager":
        request.getfixturevalue("aws")
    return SECRETS[request.param](tmp_path / "secrets")


def day(number: float) -> datetime:
    """Noon of so many days after 2026-01-01, fractions allowed."""
    return datetime.fromtimestamp(1_767_268_800 + number * 86_400, UTC)
