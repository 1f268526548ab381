"""Keys and names of assets: they say the same as the paths in the lake."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService


def raw_key(tenant: str, service: str, table: str) -> dg.AssetKey:
    return dg.AssetKey([tenant, "raw", service, table])


def canonical_key(tenant: str, service: str, table: str) -> dg.AssetKey:
    return dg.AssetKey([tenant, "canonical", service, table])


def history_key(tenant: str, table: str) -> dg.AssetKey:
    return dg.AssetKey([tenant, "history", table])


def table_keys(
    connection: TenantService, catalog: Catalog, tables: Iterable[str]
) -> list[dg.AssetKey]:
    """The partitioned assets of these tables of a connection."""
    names = [table for table in tables if table in connection.tables]
    mapped = [table for table in names if catalog.mapping(connection.service, table)]
    return [raw_key(connection.tenant, connection.service, table) for table in names] + [
        canonical_key(connection.tenant, connection.service, table) for table in mapped
    ]


def group(connection_number: int, *parts: str) -> str:
    """A group's name; injective, as `op_name` is."""
    return _without_dashes("__".join(parts), connection_number)


def op_name(key: dg.AssetKey, connection_number: int) -> str:
    """A name for the op."""
    return _without_dashes("__".join(key.path), connection_number)


def _without_dashes(name: str, connection_number: int) -> str:
    """Dagster's names allow no '-'; the connection's number then tells two tenants apart."""
    return f"{name.replace('-', '_')}__n{connection_number}" if "-" in name else name
