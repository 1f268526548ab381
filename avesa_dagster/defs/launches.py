"""Which runs are to be launched, and launching one from a command.

A launch is a stretch of partitions of some assets of one tenant's service, with the tags that say
what for. Schedules and sensors turn it into a RunRequest, the command line runs it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import dagster as dg

from avesa_dagster.backfill.rebuild import asked_of
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import Job, Piece
from avesa_dagster.defs import keys, tags
from avesa_dagster.defs.partitions import known_partitions
from avesa_dagster.extract.request import Mode
from avesa_dagster.extract.runner import Extractor

_LIVE_PRIORITY = 10
_RECENT_PRIORITY = 1


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

    @property
    def stretch(self) -> tuple[str, str]:
        """Keys of its first and last partition."""
        return self.tags[tags.RANGE_START], self.tags[tags.RANGE_END]

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
    plan = _Plan(connection, extractor.catalog, name)
    known = known_partitions(connection, extractor.catalog, now)

    def recent(tables: Sequence[str]) -> list[Partition]:
        start = min(extractor.sync_start(connection, table, now) for table in tables)
        return [partition for partition in known if partition.end > start]

    if not connection.tables:
        return []
    if not full:
        return [plan.launch(connection.tables, _ends(recent(connection.tables)), Mode.SYNC)]
    launches = []
    if plan.master:
        launches.append(plan.launch(plan.master, _ends(known), Mode.FULL))
    if plan.others:
        launches.append(plan.launch(plan.others, _ends(recent(plan.others)), Mode.FULL))
    return launches


def piece_launch(job: Job, piece: Piece, connection: TenantService, catalog: Catalog) -> Launch:
    """The run that fetches a piece of a job."""
    plan = _Plan(connection, catalog, f"{job.job_id}-{piece.number}.{piece.attempt}")
    priority = _RECENT_PRIORITY if piece.recent else -piece.number
    tables = [table for table in piece.tables if table in connection.tables]
    launch = plan.launch(tables, (piece.first, piece.last), Mode.BACKFILL, priority=priority)
    if piece.derive:
        fetched = {keys.raw_key(job.tenant, job.service, table) for table in tables}
        launch = replace(launch, keys=tuple(key for key in launch.keys if key not in fetched))
    own = {
        tags.JOB: job.job_id,
        tags.PIECE: f"{piece.number}.{piece.attempt}",
        tags.BACKFILL: backfill_id(job, piece),
        tags.MAX_RETRIES: "0",  # a piece whose run died is launched again by its job
    }
    asked = asked_of(job)
    if asked is not None:
        own[tags.ASKED] = asked
    return replace(launch, name=plan.name, tags={**launch.tags, **own})


def backfill_id(job: Job, piece: Piece) -> str:
    """What Dagster calls the backfill that shows this launch of a piece: at most 32 characters."""
    return f"{job.job_id[:24]}-{piece.number}.{piece.attempt}"


def _ends(partitions: Sequence[Partition]) -> tuple[str, str]:
    return partitions[0].key, partitions[-1].key


class _Plan:
    """Launches of one connection under one name."""

    def __init__(self, connection: TenantService, catalog: Catalog, name: str) -> None:
        self._connection = connection
        self._catalog = catalog
        self.name = name
        known = catalog.services[connection.service].tables
        self.master = [t for t in connection.tables if known[t].master_data]
        self.others = [t for t in connection.tables if not known[t].master_data]

    def launch(
        self,
        tables: Sequence[str],
        stretch: tuple[str, str],
        mode: Mode,
        *,
        priority: int = _LIVE_PRIORITY,
    ) -> Launch:
        """Raw, canonical and the histories of these tables, from one partition to another."""
        tenant, service = self._connection.tenant, self._connection.service
        mappings = (self._catalog.mapping(service, table) for table in tables)
        fed = sorted({mapping[0].table for mapping in mappings if mapping})
        return Launch(
            name="-".join((self.name, mode.value, *sorted(tables), *stretch)),
            keys=(
                *keys.table_keys(self._connection, self._catalog, tables),
                *(keys.history_key(tenant, table) for table in fed),
            ),
            tags={
                **tags.range_tags(tenant, service, mode, stretch, priority=priority),
                tags.LANE: tags.lane(mode, tenant, service),
            },
        )
