"""What a history must be, told once more in plain Python, over hours and microsecond ticks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from .lakes import START, TICKS, Seen


class Row(NamedTuple):
    """A row of history; times are microseconds after START."""

    record: str
    name: str
    ingested: int
    first_seen: int
    start: int
    end: int | None
    current: bool
    number: int
    start_origin: str
    end_origin: str | None


def history(observations: Iterable[Seen]) -> set[Row]:
    """All rows of type 2."""
    records: dict[str, list[Seen]] = {}
    for seen in observations:
        records.setdefault(seen.record, []).append(seen)
    return {row for seen in records.values() for row in _of_one(seen)}


def last_rows(rows: Iterable[Row]) -> set[Row]:
    """The rows of type 1: each record's last."""
    last: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.start):
        last[row.record] = row
    return {row._replace(number=1) for row in last.values()}


def _of_one(seen: list[Seen]) -> list[Row]:
    alive: dict[int, list[Seen]] = {}
    deaths: dict[int, int] = {}
    for one in seen:
        changed, moment = round(one.changed * TICKS), round(one.seen * TICKS)
        if one.dead:
            deaths[changed] = min(moment, deaths.get(changed, moment))
        else:
            alive.setdefault(changed, []).append(one)
    looks = [(changed, round(one.seen * TICKS)) for changed, many in alive.items() for one in many]

    gaps = []
    for stated, moment in deaths.items():
        shown = [changed for changed, look in looks if look <= moment]
        closes = max([stated, *(changed + 1 for changed in shown)])
        signs = [changed if changed > closes else look for changed, look in looks if look > moment]
        opens = min(signs, default=None)
        gaps.append((closes, opens, closes == stated and stated < moment))

    def closed(moment: int) -> bool:
        return any(c <= moment and (o is None or moment < o) for c, o, _ in gaps)

    edges = {*alive, *(c for c, _, _ in gaps), *(o for _, o, _ in gaps if o is not None)}
    times = sorted(edge for edge in edges if alive and edge >= min(alive))
    rows: list[Row] = []
    holding: int | None = None  # the version of the row that is open
    for moment in times:
        version = max(changed for changed in alive if changed <= moment)
        lives = not closed(moment)
        if holding is not None and (not lives or version != holding):
            if version != holding:
                origin = "source"
            else:
                said = any(s for c, o, s in gaps if c == moment and (o is None or o > c))
                origin = "source" if said else "observed"
            rows[-1] = rows[-1]._replace(end=moment, current=False, end_origin=origin)
            holding = None
        if lives and holding is None:
            winner = max(alive[version], key=lambda one: (one.seen, one.content_hash))
            rows.append(
                Row(
                    winner.record,
                    winner.name or "",
                    round(winner.seen * TICKS),
                    min(round(one.seen * TICKS) for one in alive[version]),
                    moment,
                    None,
                    True,
                    len(rows) + 1,
                    "source" if moment == version else "observed",
                    None,
                )
            )
            holding = version
    return rows


def micros(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - START) // (datetime.resolution)


def rows_of(table: Any) -> set[Row]:
    rows = [
        Row(
            row["id"],
            row["name"],
            micros(row["ingested_at"]) or 0,
            micros(row["first_observed_at"]) or 0,
            micros(row["effective_start_date"]) or 0,
            micros(row["effective_end_date"]),
            row["is_current"],
            row["record_version"],
            row["effective_start_origin"],
            row["effective_end_origin"],
        )
        for row in table.to_arrow_table().to_pylist()
    ]
    assert len(set(rows)) == len(rows)
    return set(rows)
