"""Does the lake hold what the service knows?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from avesa_dagster.conformance.bench import Bench, Known


def assert_truth(
    bench: Bench, note: object = "", *, deletions: bool = True, read: bool = False
) -> None:
    """Each record's newest observation is the service's record, with its change time, and none of
    another content was ever stored. Of a table that is fetched by windows, records that changed
    last before history begins need not be there.

    Args:
        note: Begins the message of a failure.
        deletions: Whether those of the service must be known by now.
        read: Whether what analysts read has the same records, too; takes half a second.

    Raises:
        AssertionError: Names the record.
    """
    place = f"{note}: {bench.service} {bench.table}".lstrip(": ")
    truth, rows = bench.truth(), bench.raw()
    contents = {id: set(known.contents) for id, known in truth.items()}
    for row in rows:
        if row["payload"] is not None and not row["is_deleted"]:
            foreign = bench.content(row["payload"]) not in contents.get(row["record_id"], ())
            assert not foreign, f"{place} {row['record_id']}: no such content was there ever"
    held, closed = newest(rows), _closed(rows)
    due = {id: known for id, known in truth.items() if id in held or is_due(bench, known)}
    for record_id, known in due.items():
        here, what = held.get(record_id), f"{place} {record_id} ({known.updated_at})"
        if known.deleted:
            gone = here is None or record_id in closed
            assert gone or not deletions, f"{what} is deleted, and not closed"
            continue
        assert here is not None, f"{what} is missing"
        assert record_id not in closed, f"{what} is closed, and is there"
        assert here["updated_at"] == known.updated_at, f"{what} is held as of {here['updated_at']}"
        same = bench.content(here["payload"]) == known.contents[-1]
        assert same, f"{what} is not as it is held: {here['payload'][:500]}"
    if read:
        _assert_read(bench, place, {id for id, known in due.items() if not known.deleted})


def is_due(bench: Bench, known: Known) -> bool:
    """Whether a backfill has to fetch the record; those before history only where they are pulled
    whole."""
    begin = bench.partitions()[0].start
    dated = known.updated_at is not None and known.updated_at >= begin
    return bench.known.master_data or dated


def newest(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each record its latest version, as it was observed last."""
    alive = (row for row in rows if not row["is_deleted"])
    return _last(alive, lambda row: (row["updated_at"], row["observed_at"]))


def _closed(rows: Iterable[dict[str, Any]]) -> set[str]:
    """The records of which the last that was seen is a deletion."""
    last = _last(rows, lambda row: (row["observed_at"], row["updated_at"]))
    return {record_id for record_id, row in last.items() if row["is_deleted"]}


def _last(
    rows: Iterable[dict[str, Any]], order: Callable[[dict[str, Any]], tuple[datetime, datetime]]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        held = found.get(row["record_id"])
        if held is None or order(row) > order(held):
            found[row["record_id"]] = row
    return found


def _assert_read(bench: Bench, place: str, alive: set[str]) -> None:
    present = bench.canonical()
    if present is not None:
        lacking, too_many = sorted(alive - present)[:5], sorted(present - alive)[:5]
        assert present == alive, f"{place}: analysts lack {lacking} and see {too_many}"


def distinct(rows: Iterable[dict[str, Any]]) -> set[tuple[str, datetime, str]]:
    """The versions among observations."""
    return {(row["record_id"], row["updated_at"], row["content_hash"]) for row in rows}
