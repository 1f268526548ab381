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


def group(*parts: str) -> str:
    """A group's name. Dagster's allow no '-'; a group only orders the view."""
    return "__".join(parts).replace("-", "_")


def op_name(key: dg.AssetKey, number: int) -> str:
    """A name for the op. Dagster's own allow no '-', so the connection's number tells apart."""
    name = "__".join(key.path)
    return f"{name.replace('-', '_')}__n{number}" if "-" in name else name
