"""Secrets Manager: what only it can do wrong, and the leases of its exclusive blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster import aws as shared
from avesa_dagster.control import secrets_manager
from avesa_dagster.control.dynamo_database import DynamoDatabase
from avesa_dagster.control.dynamo_locks import DynamoLocks
from avesa_dagster.control.secrets_manager import SecretsManagerSecrets
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster_tests.control.conftest import environment_of, open_secrets_manager
from avesa_dagster_tests.control.test_secrets import SECRET, everything

pytestmark = pytest.mark.usefixtures("aws")


@pytest.fixture
def secrets(tmp_path: Path) -> SecretsManagerSecrets:
    return open_secrets_manager(tmp_path)


@pytest.fixture
def name(tmp_path: Path) -> str:
    return f"acme/{environment_of(tmp_path).environment}"


def store(name: str, text: str) -> None:
    shared.client("secretsmanager").create_secret(Name=name, SecretString=text)


def current(name: str) -> dict[str, Any]:
    answer: dict[str, Any] = shared.client("secretsmanager").get_secret_value(
        SecretId=name, VersionStage="AWSCURRENT"
    )
    return answer


def test_a_tenants_secret_is_one_object_by_service(
    secrets: SecretsManagerSecrets, name: str
) -> None:
    secrets.put("acme", "connectwise", {"private_key": SECRET})
    secrets.put("acme", "salesforce", {"client_secret": "other"})
    answer = current(name)
    assert json.loads(answer["SecretString"]) == {
        "connectwise": {"private_key": SECRET},
        "salesforce": {"client_secret": "other"},
    }


def test_writers_at_once_lose_nobodys_service(secrets: SecretsManagerSecrets) -> None:
    names = [f"service{number}" for number in range(6)]

    def write(service: str) -> None:
        for turn in range(3):
            secrets.put("acme", service, {"turn": str(turn)})

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(write, service) for service in names]:
            done.result()
    assert [secrets.get("acme", service) for service in names] == [{"turn": "2"}] * 6


@pytest.mark.parametrize(
    "text",
    [f"{SECRET}", f'{{"connectwise": "{SECRET}"}}', f'{{"connectwise": {{"key": ["{SECRET}"]}}}}',
     f'["{SECRET}"]', '{"connectwise": {}}'],
)  # fmt: skip
def test_what_is_no_object_of_texts_is_named_and_not_shown(
    secrets: SecretsManagerSecrets, name: str, text: str
) -> None:
    store(name, text)
    with pytest.raises(ConfigurationError) as caught:
        secrets.get("acme", "connectwise")
    assert name in str(caught.value) and "tenant=acme service=connectwise" in str(caught.value)
    assert SECRET not in everything(caught.value)


def test_an_unreadable_secret_is_not_replaced(secrets: SecretsManagerSecrets, name: str) -> None:
    store(name, SECRET)
    with pytest.raises(ConfigurationError):
        secrets.put("acme", "connectwise", {"key": "new"})
    answer = current(name)
    assert answer["SecretString"] == SECRET


def test_bytes_are_no_credentials(secrets: SecretsManagerSecrets, name: str) -> None:
    shared.client("secretsmanager").create_secret(Name=name, SecretBinary=SECRET.encode())
    with pytest.raises(ConfigurationError, match="bytes"):
        secrets.get("acme", "connectwise")


def test_a_secret_that_is_being_deleted_is_named(
    secrets: SecretsManagerSecrets, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets_manager, "_DELETION_SECONDS", 0.2)
    monkeypatch.setattr(secrets_manager, "_LOOK_SECONDS", 0.05)
    store(name, "{}")
    shared.client("secretsmanager").delete_secret(SecretId=name)
    for call in (
        lambda: secrets.get("acme", "connectwise"),
        lambda: secrets.put("acme", "connectwise", {"key": SECRET}),
    ):
        with pytest.raises(ConfigurationError, match=f"{name} is being deleted"):
            call()


def test_who_connects_again_waits_until_the_removed_secret_is_gone(
    secrets: SecretsManagerSecrets, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, looks = shared.client("secretsmanager"), []
    store(name, '{"connectwise": {"key": "old"}}')
    client.delete_secret(SecretId=name)

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            client.restore_secret(SecretId=name)
            client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)

    monkeypatch.setattr(secrets_manager.time, "sleep", look)
    assert secrets.remains("acme") != []
    secrets.put("acme", "salesforce", {"key": SECRET})
    assert (secrets.remains("acme"), len(looks)) == ([], 3)
    assert json.loads(current(name)["SecretString"]) == {"salesforce": {"key": SECRET}}


def test_many_changes_leave_few_labels(secrets: SecretsManagerSecrets, name: str) -> None:
    for number in range(25):
        secrets.put("acme", "connectwise", {"key": str(number)})
    versions = shared.client("secretsmanager").describe_secret(SecretId=name)["VersionIdsToStages"]
    labels = {label for found in versions.values() for label in found}
    assert labels <= {"AWSCURRENT", "AWSPREVIOUS", "avesa-next"}
    assert secrets.get("acme", "connectwise") == {"key": "24"}


def test_the_last_service_takes_the_secret_with_it(
    secrets: SecretsManagerSecrets, name: str
) -> None:
    secrets.put("acme", "connectwise", {"key": SECRET})
    secrets.remove("acme", "connectwise")
    client = shared.client("secretsmanager")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_secret_value(SecretId=name)
    secrets.put("acme", "connectwise", {"key": "again"})
    assert secrets.get("acme", "connectwise") == {"key": "again"}


def test_forgotten_credentials_are_gone_whatever_they_were(
    secrets: SecretsManagerSecrets, name: str
) -> None:
    secrets.put("acme", "salesforce", {"key": SECRET})
    secrets.put("acme", "connectwise", {"key": SECRET})
    assert secrets.forget("acme") == ["connectwise", "salesforce"]
    assert secrets.forget("acme") == []
    store(name, "{}")
    shared.client("secretsmanager").delete_secret(SecretId=name)
    assert secrets.forget("acme") == [], "it is being deleted already"
    assert secrets.remains("acme") == []
    store(name, SECRET)
    assert secrets.forget("acme") == ["*"]


def test_others_changes_are_seen_at_once_if_that_is_asked_for(
    secrets: SecretsManagerSecrets, tmp_path: Path
) -> None:
    elsewhere = open_secrets_manager(tmp_path)
    secrets.put("acme", "connectwise", {"key": "1"})
    assert secrets.get("acme", "connectwise") == {"key": "1"}
    elsewhere.put("acme", "connectwise", {"key": "2"})
    assert secrets.get("acme", "connectwise") == {"key": "1"}, "it is cached, briefly"
    assert secrets.get("acme", "connectwise", fresh=True) == {"key": "2"}
    assert secrets.get("acme", "connectwise") == {"key": "2"}


def test_a_killed_holder_keeps_the_block_for_seconds_only(tmp_path: Path) -> None:
    open_secrets_manager(tmp_path)  # makes the tables
    where = environment_of(tmp_path)
    program = (
        "import sys, time\n"
        "from avesa_dagster.settings import Aws\n"
        "from avesa_dagster.errors import Where\n"
        "from avesa_dagster.control.dynamo_database import DynamoDatabase\n"
        "from avesa_dagster.control.dynamo_locks import DynamoLocks\n"
        f"locks = DynamoLocks(DynamoDatabase(Aws({where.environment!r}, 'none')), beat=0.1)\n"
        "with locks.exclusive('x', Where()):\n"
        "    print('in', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    database = DynamoDatabase(where)
    impatient = DynamoLocks(database, beat=0.1, dead=1.0, patience=1.5)
    with (
        pytest.raises(StoreError, match="another process held x"),
        impatient.exclusive("x", Where()),
    ):
        raise AssertionError("it lives: it beats")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    began = time.monotonic()
    with DynamoLocks(database, beat=0.1, dead=1.0).exclusive("x", Where()):
        assert time.monotonic() - began < 10


def test_one_at_a_time_is_in_the_block(tmp_path: Path) -> None:
    open_secrets_manager(tmp_path)
    locks = DynamoLocks(DynamoDatabase(environment_of(tmp_path)), beat=0.05, dead=5)
    inside, most, gate = [0], [0], threading.Lock()

    def enter() -> None:
        for _ in range(3):
            with locks.exclusive("x", Where()):
                with gate:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0.02)
                with gate:
                    inside[0] -= 1

    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(enter) for _ in range(5)]:
            done.result()
    assert most == [1]
