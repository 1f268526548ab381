"""Queries over REST: batches of at most 2,000 rows, and the locators that lead to the next.

A locator keeps the rows of its query and the moment of it; it lives for two days. The one of a
queryAll looks like any other (`/query/01g…-2000`) and keeps the deleted rows.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.salesforce import finding
from avesa_dagster.sandbox.salesforce import plan as plans
from avesa_dagster.sandbox.salesforce.aggregates import aggregates
from avesa_dagster.sandbox.salesforce.hostility import conditions_of
from avesa_dagster.sandbox.salesforce.ids import IdMaker
from avesa_dagster.sandbox.salesforce.org import Org
from avesa_dagster.sandbox.salesforce.plan import Plan
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.rows import as_json, to_bytes
from avesa_dagster.sandbox.salesforce.soql import Query, malformed
from avesa_dagster.sandbox.salesforce.table import GONE, UNSEEN
from avesa_dagster.sandbox.timestamps import DAY

LARGEST_BATCH, SMALLEST_BATCH = 2000, 200
_LARGEST_OFFSET = 2000
_CURSOR_SECONDS = 2 * DAY
_locators = IdMaker("01g")


@dataclass(slots=True)
class Cursor:
    """The rows of a query that was begun.

    Attributes:
        total: rows in all; `numbers` may be the first of them only, when nobody can ask for more.
        sequence: of the table, at the query.
        began: by the simulator's clock.
    """

    plan: Plan
    numbers: Sequence[int]
    total: int
    sequence: int
    everything: bool
    began: float


@dataclass(slots=True)
class Page:
    """A batch as it is about to be sent: JSON of each row, and what says where it stands."""

    rows: list[bytes]
    numbers: Sequence[int]
    cursor: Cursor
    offset: int
    total: int
    next_url: str | None


class Cursors:
    """The open locators of an org; used under the org's lock."""

    def __init__(self) -> None:
        self._made = 0
        self._open: OrderedDict[str, Cursor] = OrderedDict()

    def keep(self, cursor: Cursor, most: int | None) -> str:
        self._made += 1
        name = _locators.make(self._made)
        self._open[name] = cursor
        while most is not None and len(self._open) > most:
            self._open.popitem(last=False)
        return name

    def find(self, locator: str, now: float) -> tuple[str, Cursor, int]:
        """(name, cursor, offset) of a locator such as `01g…-2000`.

        Raises:
            ApiError: it is unknown or has died.
        """
        name, _, offset = locator.partition("-")
        cursor = self._open.get(name)
        if cursor is None or not offset.isdigit() or int(offset) > cursor.total:
            raise ApiError("INVALID_QUERY_LOCATOR", "invalid query locator")
        if cursor.began <= now - _CURSOR_SECONDS:
            del self._open[name]
            raise ApiError("INVALID_QUERY_LOCATOR", "invalid query locator")
        return name, cursor, int(offset)

    def end_all(self) -> int:
        ended = len(self._open)
        self._open.clear()
        return ended


def batch_size(header: str | None, clamp: int) -> int:
    """Rows of a batch by the header `Sforce-Query-Options: batchSize=500`, a hint. [DOC]"""
    size = LARGEST_BATCH
    for part in (header or "").split(","):
        name, _, value = part.partition("=")
        if name.strip().lower() == "batchsize" and value.strip().isdigit():
            size = max(SMALLEST_BATCH, min(LARGEST_BATCH, int(value)))
    return max(1, min(size, clamp))


def begin(org: Org, plan: Plan, everything: bool, hostility: Hostility, now: float) -> Cursor:
    """Find the rows of a query.

    Raises:
        ApiError: it takes too long, or its OFFSET is too large.
    """
    conditions, query = conditions_of(hostility), plan.query
    if query.offset > _LARGEST_OFFSET:
        raise ApiError("NUMBER_OUTSIDE_VALID_RANGE", f"Maximum SOQL offset is {_LARGEST_OFFSET}")
    ties = hostility.below(2**31) if conditions.shuffle_ties else None
    quick = plan.natural and plan.residual is None and ties is None
    end = None if query.limit is None else query.offset + query.limit
    if quick and conditions.restricted_share <= 0:
        _check_size(conditions.timeout_rows, finding.count(org, plan, everything))
        found = finding.first_rows(plan, everything, end)
    else:
        numbers = finding.matching(org, plan, everything)
        _check_size(conditions.timeout_rows, len(numbers))
        numbers = org.permitted(conditions, plan.table.info.name, numbers)
        found = finding.ordered(org, plan, numbers, ties)
    if end is not None or query.offset:
        found = found[query.offset : end]
    return Cursor(plan, found, len(found), plan.table.sequence, everything, now)


def _check_size(most: int | None, rows: int) -> None:
    if most is not None and rows > most:
        raise ApiError("QUERY_TIMEOUT")


def page(
    org: Org,
    cursors: Cursors,
    cursor: Cursor,
    name: str | None,
    offset: int,
    size: int,
    version: str,
    hostility: Hostility,
) -> Page:
    """The batch of a cursor that begins at an offset; it is kept if more follow."""
    conditions = conditions_of(hostility)
    if conditions.fewer_rows and size > 1:
        size = max(1, size - hostility.below(max(1, size // 2)))
    numbers = cursor.numbers[offset : offset + size]
    live = conditions.cursor_live and name is not None
    shown = [n for n in numbers if not live or _still_there(cursor, n)]
    rows = render(org, cursor.plan, shown, None if live else cursor.sequence, version)
    following = offset + len(numbers)
    next_url = None
    if following < cursor.total:
        name = name or cursors.keep(cursor, conditions.max_cursors)
        next_url = f"/services/data/{version}/query/{name}-{following}"
    return Page(rows, numbers, cursor, offset, cursor.total, next_url)


def _still_there(cursor: Cursor, number: int) -> bool:
    flags = cursor.plan.table.flags[number]
    return not flags & (GONE | UNSEEN) if cursor.everything else flags == 0


def render(
    org: Org, plan: Plan, numbers: Sequence[int], sequence: int | None, version: str
) -> list[bytes]:
    """JSON of records, with the results of child subqueries in them."""
    batch = plan.table.batch(numbers, sequence)
    nested = {
        key: _children(org, child, reference, plan.table.info.prefix, numbers, version)
        for key, (child, reference) in plan.children.items()
    }
    return list(map(to_bytes, as_json(org, plan.table, batch, plan.fields, version, nested)))


def _children(
    org: Org, child: Plan, reference: str, prefix: str, parents: Sequence[int], version: str
) -> list[str]:
    """For each parent the result of a subquery, `null` if it has no child."""
    found = finding.ordered(org, child, finding.matching(org, child, False), None)
    maker, wanted = IdMaker(prefix), set(parents)
    rows: dict[int, list[str]] = {}
    for at in range(0, len(found), LARGEST_BATCH):
        batch = child.table.batch(found[at : at + LARGEST_BATCH])
        owners = [None if id is None else maker.number(id) for id in batch.raw(reference)]
        kept = [n for n, owner in zip(batch.numbers, owners, strict=True) if owner in wanted]
        texts = as_json(org, child.table, child.table.batch(kept), child.fields, version)
        owned = [owner for owner in owners if owner in wanted]
        for owner, text in zip(owned, texts, strict=True):
            assert owner is not None
            rows.setdefault(owner, []).append(text)
    return [_result(rows.get(parent), child.query) for parent in parents]


def _result(rows: list[str] | None, query: Query) -> str:
    if rows is None:
        return "null"
    rows = rows[: query.limit]
    return f'{{"totalSize":{len(rows)},"done":true,"records":[{",".join(rows)}]}}'


def body(page: Page) -> bytes:
    """The answer of a batch."""
    head: dict[str, Any] = {"totalSize": page.total, "done": page.next_url is None}
    if page.next_url is not None:
        head["nextRecordsUrl"] = page.next_url
    text = json.dumps(head, separators=(",", ":"))[:-1].encode()
    return text + b',"records":[' + b",".join(page.rows) + b"]}"


def aggregate_body(org: Org, plan: Plan, everything: bool, hostility: Hostility) -> bytes:
    """The answer of COUNT() or of other aggregates; these have no further batches.

    Raises:
        ApiError: it takes too long, or has more than 2,000 groups.
    """
    conditions, name = conditions_of(hostility), plan.table.info.name
    if conditions.restricted_share > 0:
        numbers = finding.matching(org, plan, everything)
        plan = plans.only(plan, org.permitted(conditions, name, numbers))
    if plan.query.counts_only:
        total = finding.count(org, plan, everything)
        _check_size(conditions.timeout_rows, total)
        if plan.query.limit is not None:
            total = min(total, plan.query.limit)
        return json.dumps({"totalSize": total, "done": True, "records": []}).encode()
    rows = aggregates(org, plan, everything)[: plan.query.limit]
    if len(rows) > LARGEST_BATCH:
        raise malformed("Aggregate query does not support queryMore(), use LIMIT to restrict it")
    return json.dumps({"totalSize": len(rows), "done": True, "records": rows}).encode()
