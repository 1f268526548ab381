"""Assets of one tenant: raw and canonical by time window, histories whole.

Everything that is done is done by plain functions of the other folders; this is its Dagster face.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import dagster as dg

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs.canonical_assets import canonical_asset
from avesa_dagster.defs.history_assets import history_asset
from avesa_dagster.defs.keys import canonical_key
from avesa_dagster.defs.partitions import partitions_def
from avesa_dagster.defs.raw_assets import raw_asset


def tenant_assets(
    connections: Sequence[TenantService], catalog: Catalog
) -> list[dg.AssetsDefinition]:
    """Every asset of one tenant."""
    assets = []
    feeding: defaultdict[str, list[dg.AssetKey]] = defaultdict(list)
    for connection in connections:
        grain = catalog.settings(connection.tenant, connection.service).partitions
        windows = partitions_def(connection, grain)
        for table in connection.tables:
            assets.append(raw_asset(connection, table, windows, catalog))
            mapping = catalog.mapping(connection.service, table)
            if mapping is not None:
                canonical, _ = mapping
                assets.append(canonical_asset(connection, table, canonical, windows))
                key = canonical_key(connection.tenant, connection.service, table)
                feeding[canonical.table].append(key)
    for table, feeders in feeding.items():
        assets.append(history_asset(connections[0], catalog.canonical[table], feeders))
    return assets
