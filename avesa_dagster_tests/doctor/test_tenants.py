"""What is connected: broken items, credentials that lack something, hosts that nobody reaches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avesa_dagster import aws as boto
from avesa_dagster.control.health import Alarm
from avesa_dagster.doctor.findings import Check, Finding, Level, look_through
from avesa_dagster.doctor.tenants import Tenants
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Aws, Settings
from avesa_dagster_tests.doctor.support import made, said
from avesa_dagster_tests.moto import Moto
from avesa_dagster_tests.watch.servers import listening

MAPPINGS = Path(__file__).parents[2] / "mappings"
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
SECRET = "S3CR3T-of-a-tenant"
CREDENTIALS = {
    "api_base_url": "http://127.0.0.1:9", "company_id": "c", "public_key": SECRET,
    "private_key": SECRET, "client_id": SECRET,
}  # fmt: skip


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    opened = Installation(Settings(home=tmp_path / "home", mappings=MAPPINGS), clock=lambda: NOW)
    yield opened
    if (tmp_path / "home").exists():
        opened.control.close()


@pytest.fixture
def on_aws(aws: Moto, tmp_path: Path) -> Installation:
    settings = Settings(home=tmp_path / "none", mappings=MAPPINGS, aws=made())
    return Installation(settings, clock=lambda: NOW)


def where(installation: Installation) -> Aws:
    assert installation.settings.aws is not None
    return installation.settings.aws


def connect(installation: Installation, tenant: str, **changed: str) -> None:
    values = {**CREDENTIALS, **changed}
    installation.connect(tenant, "connectwise", values, probe=False)


def begun(installation: Installation) -> Tenants:
    tenants = Tenants(installation)
    assert not said(tenants.registry())
    return tenants


def test_nothing_is_made_by_looking_at_nothing(installation: Installation) -> None:
    tenants = Tenants(installation)
    (look,) = look_through([Check("r", "R", tenants.registry)])
    assert look.blocks and look.level is Level.WARNING
    assert "avesa connect" in look.findings[0].todo
    assert not installation.settings.home.exists()


@pytest.mark.parametrize("profile", ["installation", "on_aws"])
def test_what_is_connected_well_is_well(profile: str, request: pytest.FixtureRequest) -> None:
    installation: Installation = request.getfixturevalue(profile)
    connect(installation, "acme")
    tenants = begun(installation)
    for look in (tenants.snapshot, tenants.credentials, tenants.items, tenants.health):
        found = list(look())
        assert [one.level for one in found] == [Level.WELL], found
    (text,) = said(tenants.reach())
    assert text.startswith("acme connectwise: 127.0.0.1:9 takes no connection")


def test_an_item_that_lacks_an_attribute_is_named_and_the_others_are_looked_at(
    on_aws: Installation,
) -> None:
    for tenant in ("acme", "beta"):
        connect(on_aws, tenant)
    name = where(on_aws).table("TenantServices")
    key = {"tenant_id": {"S": "acme"}, "service": {"S": "connectwise"}}
    dynamodb = boto.client("dynamodb")
    dynamodb.update_item(TableName=name, Key=key, UpdateExpression="REMOVE history_start")
    tenants = Tenants(on_aws)
    (text,) = said(tenants.registry())
    assert f"table {name}, item acme/connectwise: attribute history_start" in text
    assert "restore the item" in text
    assert [row.tenant for row in tenants.rows] == ["beta"]
    assert not said(tenants.snapshot())
    assert not said(tenants.credentials())


def test_a_broken_item_of_another_table_is_named(on_aws: Installation) -> None:
    connect(on_aws, "acme")
    table = where(on_aws).table("LastUpdated")
    item = {"tenant_id": {"S": "acme"}, "service#table": {"S": "connectwise#tickets"}}
    boto.client("dynamodb").put_item(TableName=table, Item=item)
    (text,) = said(begun(on_aws).items())
    assert f"table {table}, item acme/connectwise#tickets: attribute last_updated" in text


BROKEN = {
    f"{{{SECRET}": "is no valid JSON",
    json.dumps([SECRET]): "is no JSON object",
    json.dumps({"connectwise": SECRET}): "no JSON object of texts",
    json.dumps({"servicenow": {"username": SECRET}}): "there are no credentials",
    json.dumps({"connectwise": {**CREDENTIALS, "private_key": ""}}): "not usable: private_key",
    json.dumps({"connectwise": {"api_base_url": SECRET, "public_key": SECRET}}): (
        "company_id: is missing; private_key: is missing; client_id: is missing"
    ),
}


def test_a_secret_that_is_broken_is_named_and_not_shown(on_aws: Installation) -> None:
    connect(on_aws, "acme")
    name = f"acme/{where(on_aws).environment}"
    for document, told in BROKEN.items():
        boto.client("secretsmanager").put_secret_value(SecretId=name, SecretString=document)
        tenants = begun(Installation(on_aws.settings, clock=lambda: NOW))
        found = list(tenants.credentials())
        (text,) = said(found)
        assert told in text and text.startswith("tenant=acme service=connectwise: ")
        assert SECRET not in repr([*found, *tenants.reach()])


def test_a_secret_file_that_others_can_read_is_found(installation: Installation) -> None:
    connect(installation, "acme")
    (installation.settings.secrets / "acme.json").chmod(0o644)
    (text,) = said(begun(installation).credentials())
    assert "acme.json" in text and "chmod" in text


def test_a_snapshot_that_differs_is_found(installation: Installation) -> None:
    connect(installation, "acme")
    installation.control.registry.disconnect("acme", "connectwise", now=NOW + timedelta(days=1))
    (text,) = said(begun(installation).snapshot())
    assert text.startswith("acme connectwise: the snapshot") and "avesa tenants --refresh" in text
    installation.refresh_snapshot()
    assert not said(begun(installation).snapshot())


def test_what_the_mappings_do_not_know_is_found(installation: Installation) -> None:
    connect(installation, "acme")
    registry = installation.control.registry
    for tenant, service, tables in (
        ("acme", "connectwise", ["tickets", "gone"]),
        ("beta", "unheard_of", ["x"]),
    ):
        registry.connect(
            tenant, service, history_start=NOW, tables=tables, requests_per_minute=None, now=NOW
        )
    found = list(Tenants(installation).registry())
    assert "beta unheard_of: the mappings do not describe this service" in said(found)[0]
    assert "acme connectwise: the mappings do not describe gone" in said(found, Level.WARNING)[0]


def test_hosts_are_looked_for_once_each(installation: Installation) -> None:
    asked: list[object] = []
    with listening(asked.append) as port:
        for tenant in ("acme", "beta"):
            connect(installation, tenant, api_base_url=f"http://127.0.0.1:{port}")
        connect(installation, "gamma", api_base_url="https://no-such-host.invalid")
        (text,) = said(begun(installation).reach())
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "gamma connectwise: no-such-host.invalid:443 is not found" in text
    assert len(asked) == 1


def test_a_proxy_of_the_environment_is_what_must_be_reached(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(installation, "acme", api_base_url="https://no-such-host.invalid")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with listening(lambda connection: None) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert not said(begun(installation).reach())


def test_breakers_and_alarms_are_told(installation: Installation) -> None:
    for tenant in ("acme", "beta"):
        connect(installation, tenant)
    control = installation.control
    for tenant, refused in (("acme", True), ("beta", False)):
        control.breakers.failed(
            tenant, "connectwise", "it said no", credentials=refused, now=NOW, at_once=True
        )
    control.alarms.put(
        Alarm("late/acme/connectwise/tickets", "acme", "synced up to: never", NOW),
        Alarm("breaker_open/acme/connectwise", "acme", "twice the same", NOW),
    )
    found = list(begun(installation).health())
    (refused_text,) = said(found)
    assert refused_text.startswith("acme connectwise: is not asked since 2026-03-10 12:00 UTC")
    assert "avesa connect" in refused_text
    other, late = said(found, Level.WARNING)
    assert other.startswith("beta connectwise") and "goes on by itself" in other
    assert late.startswith("acme connectwise tickets: sync is late") and "avesa alerts" in late


def test_a_probe_asks_each_service_once_and_looks_at_its_clock(
    tmp_path: Path, installation: Installation
) -> None:
    sizes = {"tickets": 5, "time_entries": 0, "companies": 1, "contacts": 1, "years": 1}
    with Simulator(seed=3, **sizes) as simulator:
        now = datetime.now(UTC)
        opened = Installation(installation.settings, clock=lambda: now + timedelta(minutes=10))
        for tenant in ("acme", "beta"):
            opened.connect(tenant, "connectwise", simulator.credentials, probe=False)
        opened.secrets.put(
            "beta", "connectwise", {**simulator.credentials, "private_key": f"not-{SECRET}"}
        )
        simulator.control("stats_reset")
        found: list[Finding] = list(begun(opened).probe())
        # Each asks where its API is, and then once for something.
        assert simulator.control("stats")["total"] <= 4
    clock, refused = said(found)
    assert "10 min ahead of that of acme connectwise" in clock
    assert "beta" in refused and "refused" in refused.lower()
    assert SECRET not in repr(found)


def test_what_ends_a_look_names_what_to_do(on_aws: Installation) -> None:
    for table in ("TenantServices",):
        name = where(on_aws).table(table)
        dynamodb = boto.client("dynamodb")
        dynamodb.update_table(TableName=name, DeletionProtectionEnabled=False)
        dynamodb.delete_table(TableName=name)
    with pytest.raises(ConfigurationError, match="avesa bootstrap"):
        list(Tenants(on_aws).registry())
