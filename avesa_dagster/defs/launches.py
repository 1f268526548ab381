"""Which runs are to be launched, and launching one from a command.

A launch is a stretch of partitions of some assets of one tenant's service, with the tags that say
what for. Schedules and sensors turn it into a RunRequest, the command line runs it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from avesa_dagster.catalog import grain
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import assets, tags
from avesa_dagster.defs.partitions import known_partitions
from avesa_dagster.extract.request import Mode
from avesa_dagster.extract.runner import Extractor

RECENT = 2
"""Partitions that a new tenant gets first: the open one and the one before."""
PIECE = 12
"""Partitions of deep history in one run."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One run.

    Attributes:
        name: Unique for what it does; Dagster launches a name once.
        keys: Its assets: raw, canonical, and the histories that they feed.
        tags: The partition range, the mode, the tenant and the service.
    """

    name: str
    keys: tuple[dg.AssetKey, ...]
    tags: dict[str, str]

    def request(self) -> dg.RunRequest:
        return dg.RunRequest(run_key=self.name, asset_selection=list(self.keys), tags=self.tags)


def sync_launches(
    extractor: Extractor, connection: TenantService, now: datetime, *, full: bool, name: str
) -> list[Launch]:
    """The live sync of one connection: from the watermarks to the present.

    After the end of a month the closed partition is in it as long as the watermark is.

    Args:
        full: Master data whole, and the search for deletions.
        name: Tells this sync from the one before.
    """
    catalog = extractor.catalog
    known = known_partitions(connection, catalog, now)
    if not full:
        return [_launch(connection, catalog, connection.tables, known, Mode.SYNC, name, extractor)]
    service = catalog.services[connection.service]
    master = [t for t in connection.tables if service.tables[t].master_data]
    others = [t for t in connection.tables if t not in master]
    launches = []
    if master:
        launches.append(_launch(connection, catalog, master, known, Mode.FULL, name, None))
    if others:
        launches.append(_launch(connection, catalog, others, known, Mode.FULL, name, extractor))
    return launches


def onboarding_launches(connection: TenantService, catalog: Catalog, now: datetime) -> list[Launch]:
    """The first backfill: master data, then the recent months, then what lies behind them.

    Named after the credentials' generation: each generation is backfilled once.
    """
    known = known_partitions(connection, catalog, now)
    service = catalog.services[connection.service]
    master = [t for t in connection.tables if service.tables[t].master_data]
    others = [t for t in connection.tables if t not in master]
    name = f"onboard-{connection.tenant}-{connection.service}-g{connection.generation}"
    launches = []
    if master:
        launches.append(
            _launch(connection, catalog, master, known, Mode.BACKFILL, f"{name}-master", None, 1)
        )
    if others:
        pieces = [known[-RECENT:]]
        older = known[:-RECENT]
        pieces += [older[max(0, end - PIECE) : end] for end in range(len(older), 0, -PIECE)]
        for number, piece in enumerate(pieces):
            launches.append(
                _launch(connection, catalog, others, piece, Mode.BACKFILL, name, None, -number)
            )
    return launches


def _launch(
    connection: TenantService,
    catalog: Catalog,
    tables: Sequence[str],
    known: Sequence[grain.Partition],
    mode: Mode,
    name: str,
    extractor: Extractor | None,
    priority: int = 0,
) -> Launch:
    """A launch over these partitions, or, with an extractor, over those since the watermarks."""
    if extractor is not None:
        now = extractor.clock()
        start = min(extractor.sync_start(connection, table, now) for table in tables)
        known = [partition for partition in known if partition.end > start]
    keys = assets.table_keys(connection, catalog, tables)
    fed = {
        mapping[0].table
        for table in tables
        if (mapping := catalog.mapping(connection.service, table))
    }
    histories = [assets.history_key(connection.tenant, table) for table in sorted(fed)]
    stretch = [known[0].key, known[-1].key]
    lane = "backfill" if mode is Mode.BACKFILL else "live"
    return Launch(
        name=f"{name}-{mode.value}-{'-'.join(sorted(tables))}-{stretch[0]}-{stretch[1]}",
        keys=(*keys, *histories),
        tags={
            **tags.range_tags(
                connection.tenant,
                connection.service,
                mode,
                stretch,
                priority=priority if mode is Mode.BACKFILL else 10,
            ),
            tags.LANE: f"{lane}/{connection.tenant}/{connection.service}",
        },
    )
