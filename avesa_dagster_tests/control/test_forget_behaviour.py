"""What `forget` does in every control table and secret store: one tenant goes, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avesa_dagster.control.base import Chunk, Secrets
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.errors import ConfigurationError

from .conftest import Control, day


def connect(control: Control, tenant: str, service: str = "connectwise") -> int:
    return control.registry.connect(
        tenant,
        service,
        history_start=day(0),
        tables=["tickets"],
        requests_per_minute=None,
        now=day(1),
    ).number


def test_the_registry_forgets_disabled_connections_of_one_tenant(control: Control) -> None:
    for tenant, service in (("acme", "a"), ("acme", "b"), ("acme2", "a")):
        connect(control, tenant, service)
    for service in ("a", "b"):
        control.registry.disconnect("acme", service, now=day(2))
    kept = control.registry.get("acme2", "a")
    assert control.registry.forget("acme") == 2
    assert control.registry.all() == [kept]
    assert control.registry.forget("acme") == 0


def test_the_registry_keeps_what_is_enabled(control: Control) -> None:
    connect(control, "acme", "a")
    connect(control, "acme", "b")
    control.registry.disconnect("acme", "a", now=day(2))
    assert control.registry.forget("acme") == 1
    assert [row.service for row in control.registry.all()] == ["b"]


def test_a_number_is_not_given_again_after_its_connection_was_forgotten(control: Control) -> None:
    numbers = [connect(control, tenant) for tenant in ("acme", "globex")]
    for tenant in ("acme", "globex"):
        control.registry.disconnect(tenant, "connectwise", now=day(2))
        control.registry.forget(tenant)
    assert control.registry.all() == []
    assert connect(control, "acme") > max(numbers)


def test_watermarks_forget_one_tenant(control: Control) -> None:
    for tenant, table in (("acme", "t"), ("acme", "u"), ("acme2", "t")):
        control.watermarks.advance(
            tenant, "connectwise", table, lower=day(0), upper=day(1), now=day(1)
        )
    assert control.watermarks.forget("acme") == 2
    assert control.watermarks.get("acme", "connectwise", "t") is None
    assert control.watermarks.get("acme2", "connectwise", "t") is not None
    assert control.watermarks.forget("acme") == 0


def test_the_ledger_forgets_one_tenant(control: Control) -> None:
    def chunk(tenant: str, number: int) -> Chunk:
        window = day(number), day(number + 1)
        return Chunk("run", tenant, "s", "t", f"c{number}", "2026-01-01", "window", *window)

    chunks = [chunk("acme", 0), chunk("acme", 1), chunk("acme2", 0)]
    control.ledger.plan(chunks, now=day(9))
    for one in chunks:
        control.ledger.complete(one, source_count=0, requests=1, now=day(9))
    kept = control.ledger.rows("run", "acme2", "s", "t")
    assert control.ledger.forget("acme") == 2
    assert control.ledger.rows("run", "acme", "s", "t") == []
    assert control.ledger.covered("acme") == []
    assert control.ledger.rows("run", "acme2", "s", "t") == kept


def test_secrets_forget_one_tenant_and_say_whose_they_were(secrets: Secrets) -> None:
    for tenant, service in (("acme", "b"), ("acme", "a"), ("acme2", "a")):
        secrets.put(tenant, service, {"key": "very-secret"})
    assert secrets.forget("acme") == ["a", "b"]
    assert secrets.forget("acme") == []
    assert secrets.get("acme2", "a") == {"key": "very-secret"}
    with pytest.raises(ConfigurationError):
        secrets.get("acme", "a")
    with pytest.raises(ConfigurationError):
        secrets.forget("../acme2")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"very secret": {}}'])
def test_credentials_that_cannot_be_read_are_forgotten_unquoted(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "acme.json").write_bytes(content)
    (tmp_path / ".acme.json.new").write_bytes(content)
    assert FileSecrets(tmp_path, {}).forget("acme") == ["*"]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_overrides_names_the_variables_of_one_tenant() -> None:
    environment = {
        f"AVESA_SECRET_{name}": json.dumps({"key": "very-secret"})
        for name in ("ACME_A", "ACME_B__DC", "ACME__DEU_A", "ACME__U_A", "ACME2_A")
    }
    secrets = FileSecrets(Path("nowhere"), environment)
    assert secrets.overrides("acme") == ["AVESA_SECRET_ACME_A", "AVESA_SECRET_ACME_B__DC"]
    assert secrets.overrides("acme-eu") == ["AVESA_SECRET_ACME__DEU_A"]
    assert secrets.overrides("globex") == []
