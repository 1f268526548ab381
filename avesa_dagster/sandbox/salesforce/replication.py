"""getDeleted and getUpdated: ids of an object that were deleted or changed in a window.

Both lag behind the clock and say so in `latestDateCovered`: that, not the `end` that was asked
for, is where the next window starts. `earliestDateAvailable` moves on when the log of deletions is
purged early: what was deleted before it is not to be had any more.
"""

from __future__ import annotations

import math
from typing import Any

from avesa_dagster.sandbox.salesforce.hostility import Conditions
from avesa_dagster.sandbox.salesforce.instants import read_datetime, rest_text
from avesa_dagster.sandbox.salesforce.org import RECYCLE_BIN_SECONDS, Org
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.table import Table
from avesa_dagster.sandbox.timestamps import DAY

_UPDATED_SECONDS = 30 * DAY
_LEAST_WINDOW = 60


def _window(
    table: Table, query: dict[str, str], now: float, reach: int, lag: float
) -> tuple[float, float, float]:
    """(start, end, covered until)."""
    if not table.info.replicateable:
        raise ApiError(
            "INVALID_TYPE_FOR_OPERATION",
            f"entity type {table.info.name} does not support replication",
        )
    start, end = (read_datetime(query.get(name, "")) for name in ("start", "end"))
    if start is None or end is None:
        raise ApiError("MALFORMED_QUERY", "start and end must be ISO 8601 instants with a zone")
    if end - start <= _LEAST_WINDOW:
        raise ApiError(
            "INVALID_REPLICATION_DATE", "endDate must be more than one minute after startDate"
        )
    if start < now - reach:
        raise ApiError(
            "INVALID_REPLICATION_DATE",
            f"startDate before the retention of {reach // DAY} days",
        )
    return start, end, math.floor(max(start, min(end, now - lag)))


def deleted(
    org: Org, table: Table, query: dict[str, str], conditions: Conditions, now: float
) -> dict[str, Any]:
    """Ids deleted in [start, end), as far as they are known.

    Raises:
        ApiError: the window cannot be answered, or holds too many.
    """
    name, lag = table.info.name, conditions.replication_lag_seconds
    start, _, covered = _window(table, query, now, RECYCLE_BIN_SECONDS, lag)
    earliest = max(org.log_from.get(name, 0.0), now - RECYCLE_BIN_SECONDS)
    found = [
        (at, number)
        for at, number in org.deletions.get(name, [])
        if max(start, earliest) <= at < covered
        and table.records[number].deleted_at == at
        and not org.restricted(conditions, name, number)
    ]
    if len(found) > conditions.id_limit:
        raise ApiError("EXCEEDED_ID_LIMIT", f"Too many ids: {len(found)}")
    return {
        "deletedRecords": [
            {"deletedDate": rest_text(at), "id": org.id(name, number)} for at, number in found
        ],
        "earliestDateAvailable": rest_text(math.ceil(earliest)),
        "latestDateCovered": rest_text(int(covered)),
    }


def updated(
    org: Org, table: Table, query: dict[str, str], conditions: Conditions, now: float
) -> dict[str, Any]:
    """Ids changed in [start, end).

    Raises:
        ApiError: the window cannot be answered, or holds too many.
    """
    lag = conditions.replication_lag_seconds
    start, _, covered = _window(table, query, now, _UPDATED_SECONDS, lag)
    found = table.spans([(math.ceil(start), 0, math.ceil(covered), 0)], False)
    numbers = org.permitted(conditions, table.info.name, found)
    if len(numbers) > conditions.id_limit:
        raise ApiError("EXCEEDED_ID_LIMIT", f"Too many ids: {len(numbers)}")
    return {
        "ids": [org.id(table.info.name, number) for number in numbers],
        "latestDateCovered": rest_text(int(covered)),
    }
