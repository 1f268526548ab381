"""Which of a connection's tables the mappings still know."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from avesa_dagster.catalog.models import Catalog
from avesa_dagster.control.base import TenantService

_log = logging.getLogger(__name__)


def servable(rows: Iterable[TenantService], catalog: Catalog) -> list[TenantService]:
    """The connections with the tables that the mappings describe.

    A table or service that left the mappings leaves the definitions with a warning that names it;
    it must not take the other tenants' assets with it. Its data stays.
    """
    known = []
    for row in rows:
        service = catalog.services.get(row.service)
        if service is None:
            _log.warning("%s has connected %s, which has no mappings", row.tenant, row.service)
            continue
        gone = [table for table in row.tables if table not in service.tables]
        if gone:
            _log.warning(
                "%s %s: the mappings no longer describe %s; known: %s",
                row.tenant, row.service, ", ".join(gone), ", ".join(service.tables),
            )  # fmt: skip
        known.append(replace(row, tables=tuple(t for t in row.tables if t in service.tables)))
    return known
