"""What the org says of itself: versions, resources, objects, fields, limits."""

from __future__ import annotations

import re
from typing import Any

from avesa_dagster.sandbox.salesforce.hostility import Conditions
from avesa_dagster.sandbox.salesforce.org import Org
from avesa_dagster.sandbox.salesforce.table import Table

OLDEST, NEWEST = 31, 67
"""Versions of the API that are served."""
_SEASONS = ("Winter", "Spring", "Summer")


def version_of(text: str) -> float | None:
    """The number of `v60.0`, None if that is no version that is served."""
    found = re.fullmatch(r"v(\d+)\.0", text)
    if found is None or not OLDEST <= int(found[1]) <= NEWEST:
        return None
    return float(found[1])


def versions() -> list[dict[str, str]]:
    return [
        {
            "label": f"{_SEASONS[(n - OLDEST) % 3]} '{14 + (n - OLDEST) // 3}",
            "url": f"/services/data/v{n}.0",
            "version": f"{n}.0",
        }
        for n in range(OLDEST, NEWEST + 1)
    ]


def resources(version: str) -> dict[str, str]:
    names = ("sobjects", "query", "queryAll", "limits", "jobs", "composite")
    return {name: f"/services/data/{version}/{name}" for name in names}


def _summary(table: Table, version: str) -> dict[str, Any]:
    info = table.info
    root = f"/services/data/{version}/sobjects/{info.name}"
    return {
        "activateable": False,
        "createable": info.deletable,
        "custom": info.name.endswith("__c"),
        "customSetting": False,
        "deletable": info.deletable,
        "deprecatedAndHidden": False,
        "feedEnabled": False,
        "keyPrefix": info.prefix,
        "label": info.name.removesuffix("__c"),
        "labelPlural": info.name.removesuffix("__c") + "s",
        "layoutable": info.deletable,
        "mergeable": "MasterRecordId" in table.fields,
        "name": info.name,
        "queryable": info.queryable,
        "replicateable": info.replicateable,
        "retrieveable": info.queryable,
        "searchable": info.deletable,
        "triggerable": info.deletable,
        "undeletable": info.deletable,
        "updateable": info.changes,
        "urls": {
            "sobject": root,
            "describe": f"{root}/describe",
            "rowTemplate": f"{root}/{{ID}}",
        },
    }


def sobjects(org: Org, version: str) -> dict[str, Any]:
    """The global describe."""
    shown = [_summary(table, version) for table in org.tables.values() if table.accessible]
    return {"encoding": "UTF-8", "maxBatchSize": 200, "sobjects": shown}


def basic(table: Table, version: str) -> dict[str, Any]:
    return {"objectDescribe": _summary(table, version), "recentItems": []}


def describe(table: Table, version: str) -> dict[str, Any]:
    """An object with those of its fields that the caller may see."""
    children = [
        {"childSObject": child, "field": reference, "relationshipName": name}
        for name, (child, reference) in table.info.children.items()
    ]
    return _summary(table, version) | {
        "childRelationships": children,
        "fields": [about.describe() for about in table.visible_fields.values()],
        "recordTypeInfos": [],
    }


def limits(org: Org, now: float) -> dict[str, Any]:
    """What `/limits` tells; [DOC] has many more lines."""
    known = org.allowance.report(now)
    jobs, storage = known["jobs_max"], int(known["storage_max_mb"])
    return {
        "DailyApiRequests": {"Max": known["max"], "Remaining": known["remaining"]},
        "DailyBulkV2QueryJobs": {"Max": jobs, "Remaining": max(0, jobs - known["jobs"])},
        "DailyBulkV2QueryFileStorageMB": {
            "Max": storage,
            "Remaining": max(0, storage - int(known["storage_mb"])),
        },
        "DataStorageMB": {"Max": 1024, "Remaining": 512},
    }


class RecordCounts:
    """`/limits/recordCount`: cached for an hour, wrong by some share, without what is deleted."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, int]] = {}

    def count(self, org: Org, table: Table, conditions: Conditions, now: float) -> int:
        key, live = (org.company_id, table.info.name), table.number_count(0, len(table), False)
        known = self._known.get(key)
        if known is None or now - known[0] >= 3600:
            off = 1 + conditions.count_error * (-1 if len(table.info.name) % 2 else 1)
            known = self._known[key] = (now, max(0, round(live * off)))
        return known[1]
