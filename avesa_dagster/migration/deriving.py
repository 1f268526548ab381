"""Canonical partitions and histories made from raw that came otherwise than by a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from avesa_dagster.canonical.history import rebuild
from avesa_dagster.canonical.versions import build_partition
from avesa_dagster.catalog.models import Catalog
from avesa_dagster.lake.objects import Objects
from avesa_dagster.migration.telling import Progress, quiet

Touched = Mapping[tuple[str, str, str], Collection[str]]
"""(tenant, service, table) -> keys of partitions of which raw has grown."""


@dataclass(frozen=True, slots=True)
class Built:
    """What was built.

    Attributes:
        partitions: Canonical partitions.
        versions: Rows in them.
        histories: `tenant/table` -> rows of the history.
    """

    partitions: int
    versions: int
    histories: dict[str, int]


def build(
    objects: Objects, catalog: Catalog, touched: Touched, progress: Progress = quiet
) -> Built:
    """Builds the partitions, and then the histories that they feed.

    May be done again, and beside runs that do the same.

    Raises:
        AvesaError: Of `build_partition` and `rebuild`.
    """
    mapped = [(place, keys) for place, keys in touched.items() if catalog.mapping(*place[1:])]
    total = sum(len(keys) for _, keys in mapped)
    done = versions = 0
    fed = set()
    for (tenant, service, table), keys in mapped:
        for key in sorted(keys):
            progress("building canonical partitions", done, total)
            versions += build_partition(objects, catalog, tenant, service, table, key).versions
            done += 1
        canonical = catalog.services[service].tables[table].canonical
        if canonical is not None:
            fed.add((tenant, canonical))
    histories = {}
    for number, (tenant, canonical) in enumerate(sorted(fed)):
        progress("building histories", number, len(fed))
        histories[f"{tenant}/{canonical}"] = rebuild(objects, catalog, tenant, canonical).rows
    return Built(done, versions, histories)
