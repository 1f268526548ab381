"""The code location: built from the snapshot, and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
import pytest

from avesa_dagster.catalog.models import Grain
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.snapshot import write_snapshot
from avesa_dagster.definitions import build
from avesa_dagster.defs.launches import sync_launches
from avesa_dagster.defs.partitions import backfill_policy, partitions_def
from avesa_dagster_tests.defs.conftest import House


def row(tenant: str, number: int, enabled: bool = True, **changes: object) -> TenantService:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    values = {
        "tenant": tenant, "service": "connectwise", "number": number, "generation": 1,
        "enabled": enabled, "history_start": moment, "tables": ("companies", "tickets"),
        "requests_per_minute": None, "connected_at": moment, "updated_at": moment,
    }  # fmt: skip
    return TenantService(**{**values, **changes})  # type: ignore[arg-type]


def test_an_installation_without_tenants_loads(house: House) -> None:
    assert not list(build(house.settings).resolve_asset_graph().get_all_asset_keys())


def test_each_tenant_has_raw_canonical_and_history_assets_in_its_groups(house: House) -> None:
    write_snapshot(house.settings.snapshot, [row("acme", 1), row("globex-eu", 2)])
    graph = build(house.settings).resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert keys == {
        f"{tenant}/{rest}"
        for tenant in ("acme", "globex-eu")
        for rest in (
            "raw/connectwise/companies", "canonical/connectwise/companies", "history/companies",
            "raw/connectwise/tickets", "canonical/connectwise/tickets", "history/tickets",
        )
    }  # fmt: skip
    raw = graph.get(dg.AssetKey(["acme", "raw", "connectwise", "tickets"]))
    assert raw.group_name == "acme__connectwise"
    assert raw.partitions_def and raw.partitions_def.get_first_partition_key() == "2026-01-01"
    assert graph.get(dg.AssetKey(["acme", "history", "tickets"])).partitions_def is None


def test_names_that_differ_in_a_dash_do_not_collide(house: House) -> None:
    write_snapshot(house.settings.snapshot, [row("a-b", 1), row("a_b", 2)])
    dg.Definitions.validate_loadable(build(house.settings))


def test_a_disconnected_tenant_keeps_its_assets(house: House) -> None:
    write_snapshot(house.settings.snapshot, [row("acme", 1, enabled=False)])
    assert list(build(house.settings).resolve_asset_graph().get_all_asset_keys())


def test_a_shard_holds_only_its_tenants(house: House) -> None:
    write_snapshot(house.settings.snapshot, [row(f"t{n}", n) for n in range(20)])
    held = []
    for part in (1, 2):
        settings = house.settings.__class__(house.home, house.settings.mappings, (part, 2))
        keys = build(settings).resolve_asset_graph().get_all_asset_keys()
        held.append({key.path[0] for key in keys})
    assert held[0] | held[1] == {f"t{n}" for n in range(20)}
    assert held[0] and held[1] and not held[0] & held[1]


def test_a_table_that_feeds_no_canonical_one_has_a_raw_asset_alone(house: House) -> None:
    mappings = shutil.copytree(house.settings.mappings, house.home / "mappings")
    file = mappings / "services/connectwise.json"
    document = json.loads(file.read_text())
    del document["tables"]["members"]["canonical"]
    file.write_text(json.dumps(document))
    settings = replace(house.settings, mappings=mappings)
    write_snapshot(settings.snapshot, [row("acme", 1, tables=("members",))])
    keys = build(settings).resolve_asset_graph().get_all_asset_keys()
    assert [key.to_user_string() for key in keys] == ["acme/raw/connectwise/members"]


def test_a_tenant_with_three_services_has_one_history_over_them(house: House) -> None:
    feeding = {
        "connectwise": ("tickets", "companies"),
        "salesforce": ("case", "account"),
        "servicenow": ("incident", "core_company"),
    }
    rows = [
        row("acme", month, service=service, tables=tables, history_start=datetime(2025, month, 1))
        for month, (service, tables) in enumerate(feeding.items(), start=1)
    ]
    rows = [replace(r, history_start=r.history_start.replace(tzinfo=UTC)) for r in rows]
    write_snapshot(house.settings.snapshot, rows)
    definitions = build(house.settings)
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    assert len(graph.get_all_asset_keys()) == 2 * 6 + 2
    for place, history in enumerate(("tickets", "companies")):
        parents = graph.get(dg.AssetKey(["acme", "history", history])).parent_keys
        assert parents == {
            dg.AssetKey(["acme", "canonical", service, tables[place]])
            for service, tables in feeding.items()
        }
    extractor = house.installation.extractor
    now = datetime(2026, 1, 2, tzinfo=UTC)
    for connection in rows:
        (launch,) = sync_launches(extractor, connection, now, full=False, name="x")
        own = {(layer, connection.service, table) for layer in ("raw", "canonical")
               for table in connection.tables}  # fmt: skip
        histories = {("history", "tickets"), ("history", "companies")}
        assert {tuple(key.path[1:]) for key in launch.keys} == own | histories


@pytest.mark.parametrize("grain", list(Grain))
def test_two_tenants_share_windows_but_never_a_run(
    grain: Grain, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme, globex = row("acme", 1), row("globex", 2)
    assert partitions_def(acme, grain) == partitions_def(globex, grain)
    monkeypatch.setattr(sys, "argv", ["dagster", "code-server", "start"])
    assert backfill_policy(acme) != backfill_policy(globex)
    assert backfill_policy(acme) == backfill_policy(acme)
