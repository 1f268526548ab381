"""What every test leaves behind it, and the AWS that tests share."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from dagster._core.storage.defs_state import base

from avesa_dagster.aws import client
from avesa_dagster.conformance.ground import PROFILE, make_bucket
from avesa_dagster_tests.lossy import Faults, Lossy
from avesa_dagster_tests.moto import Moto

THOROUGH = re.compile(
    r"canonical/test_(history|versions).*\[s3"
    r"|lake/test_reader.*\[s3-(?!things-True)"
    r"|control/.*(process|follows_the_rule|sequence|whatever_happens).*\[dynamodb"
    r"|sources/test_budget.*killed.*\[dynamodb"
    r"|conformance/test_declared.*(fault|script|every_page|zone|drift|segments)"
    r"|conformance/.*every_page.*is-stopped"
    r"|migration/test_moving.*went_on_after_a_kill"
    r"|sandbox/.*test_size"
    r"|defs/test_erase_postgres.*killed_at_any"
    r"|outside/.*(connected_backfilled|broken_does_not_conform.*(hidden|local|unpaid))"
    r"|defs/test_command_line.*does_not_exist.*(2019|2999)"
    r"|sources/test_budget.*real_processes"
)
"""What takes long and says little that the rest does not say: `make soak` runs it."""


_TOGETHER = re.compile(r"defs/(test_erase(?:_postgres)?)\.py")
"""Modules whose homes take long to build: one worker builds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if module := _TOGETHER.search(item.nodeid):
            item.add_marker(pytest.mark.xdist_group(module[1]))
        if THOROUGH.search(item.nodeid):
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(autouse=True)
def no_instance_left() -> Iterator[None]:
    """Whoever opens an instance closes it (a context may open one): one that is left, or closed
    whenever it is collected, is what definitions stumble over that a later test builds."""
    yield
    assert base._current_storage.get() is None, "an instance is still open"


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    """moto's server, started when a test first asks for it; a test makes what it needs in it."""
    with Moto() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def everything_on_aws(request: pytest.FixtureRequest) -> Iterator[None]:
    """With AVESA_CONFORMANCE_PROFILE=aws: benches lie in moto's server, in child processes too.

    With AVESA_CONFORMANCE_LOSSY besides, what goes wrong between is what goes wrong with AWS.
    """
    if os.environ.get(PROFILE) != "aws":
        yield
        return
    moto: Moto = request.getfixturevalue("moto")
    os.environ.update(moto.environment)
    if not os.environ.get("AVESA_CONFORMANCE_LOSSY"):
        yield
        return
    faults = Faults(drop=40, refuse=30, refusal="throttled", stale=True, halves=True)
    with Lossy(moto.url, faults) as lossy:
        os.environ["AWS_ENDPOINT_URL"] = lossy.url
        yield
    assert lossy.lost > 0, "nothing was lost"


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    """moto's server, and an environment in which boto3 finds it; no client outlives the test."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    client.cache_clear()
    yield moto
    client.cache_clear()


@pytest.fixture
def lossy(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lossy]:
    """A proxy that every call goes through; boto3 tries again without waiting."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
    with Lossy(aws.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        client.cache_clear()
        yield proxy


@pytest.fixture
def bucket(aws: Moto) -> str:
    """A new bucket that keeps versions."""
    return new_bucket()


def new_bucket() -> str:
    """Makes a bucket that keeps versions; returns its name."""
    name = f"lake-{uuid.uuid4().hex[:16]}"
    make_bucket(name)
    return name
