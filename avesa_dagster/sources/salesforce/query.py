"""The questions that are put to Salesforce, in SOQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from avesa_dagster.catalog.models import ServiceTable
from avesa_dagster.errors import FatalError
from avesa_dagster.sources.base import SECOND_FORMAT, Span
from avesa_dagster.sources.salesforce.content import full_id
from avesa_dagster.sources.salesforce.objects import IS_DELETED, Described


def listing(
    table: ServiceTable, described: Described, fields: Sequence[str], span: Span, limit: int
) -> str:
    """The first records of a span, in the order of their ids."""
    return f"{every(table, described, fields, span)} ORDER BY {table.id} LIMIT {limit}"


def every(table: ServiceTable, described: Described, fields: Sequence[str], span: Span) -> str:
    """All records of a span, in any order."""
    return f"SELECT {','.join(fields)} FROM {table.endpoint}{_where(table, described, span)}"


def counting(table: ServiceTable, described: Described, span: Span) -> str:
    return f"SELECT COUNT() FROM {table.endpoint}{_where(table, described, span)}"


def newest(table: ServiceTable) -> str:
    return f"SELECT {table.id} FROM {table.endpoint} ORDER BY {table.id} DESC LIMIT 1"


def kept_deletions(table: ServiceTable, since: datetime, after: str | None, limit: int) -> str:
    """Ids of records that were deleted since, and are still listed."""
    beyond = f" AND {table.id} > {_id(after)}" if after else ""
    return (
        f"SELECT {table.id} FROM {table.endpoint} WHERE {IS_DELETED} = true"
        f" AND {table.change_field} >= {moment(since)}{beyond} ORDER BY {table.id} LIMIT {limit}"
    )


def moment(when: datetime) -> str:
    """A literal, which stands in a query without quotes."""
    if when.microsecond:
        raise FatalError(f"{when.isoformat()}: windows end at whole seconds")
    return when.astimezone(UTC).strftime(SECOND_FORMAT)


def _where(table: ServiceTable, described: Described, span: Span) -> str:
    parts = []
    if span.window is not None:
        parts.append(f"{table.change_field} >= {moment(span.window.start)}")
        parts.append(f"{table.change_field} < {moment(span.window.end)}")
    for sign, bound in ((">", span.after), ("<=", span.upto), ("=", span.only)):
        if bound is not None:
            parts.append(f"{table.id} {sign} {_id(bound)}")
    if span.alive and described.deletable:
        parts.append(f"{IS_DELETED} = false")
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _id(text: str) -> str:
    if full_id(text) is None:
        raise FatalError(f"{text[:40]!r} is no id of Salesforce")
    return f"'{text}'"
