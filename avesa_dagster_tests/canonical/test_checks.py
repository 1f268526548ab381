"""The checks find what they are there to find."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avesa_dagster.canonical import checks
from avesa_dagster.lake.objects import LocalObjects

DAY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path)


def at(day: int | None) -> datetime | None:
    return None if day is None else DAY + timedelta(days=day)


def put(objects: LocalObjects, key: str, rows: list[tuple[str, int]]) -> str:
    with objects.create(key) as path:
        pq.write_table(
            pa.table(
                {
                    "record_id": pa.array([r for r, _ in rows], pa.string()),
                    "updated_at": pa.array([at(d) for _, d in rows], pa.timestamp("us", "UTC")),
                    "is_deleted": pa.array([False] * len(rows), pa.bool_()),
                }
            ),
            path,
        )
    return key


History = list[tuple[str, int, int | None, str | None, bool, int]]


def history(objects: LocalObjects, rows: History) -> str:
    times = pa.timestamp("us", "UTC")
    with objects.create("h.parquet") as path:
        pq.write_table(
            pa.table(
                {
                    "source_service": ["connectwise"] * len(rows),
                    "source_table": ["service/tickets"] * len(rows),
                    "record_id": [row[0] for row in rows],
                    "effective_start_date": pa.array([at(row[1]) for row in rows], times),
                    "effective_end_date": pa.array([at(row[2]) for row in rows], times),
                    "effective_end_origin": pa.array([row[3] for row in rows], pa.string()),
                    "is_current": [row[4] for row in rows],
                    "record_version": [row[5] for row in rows],
                }
            ),
            path,
        )
    return "h.parquet"


def test_a_version_that_stands_twice_is_found(objects: LocalObjects) -> None:
    assert checks.doubled_keys(objects, put(objects, "a", [("1", 1), ("1", 2)])).broken == 0
    found = checks.doubled_keys(objects, put(objects, "b", [("1", 1), ("2", 1), ("1", 1)]))
    assert found.broken == 1
    assert found.example and "1" in found.example


def test_a_version_that_canonical_lacks_is_found(objects: LocalObjects) -> None:
    raw = [put(objects, "r1", [("1", 1)]), put(objects, "r2", [("1", 1), ("2", 3)])]
    whole = put(objects, "v", [("1", 1), ("2", 3)])
    assert checks.lost_versions(objects, whole, raw).broken == 0
    found = checks.lost_versions(objects, put(objects, "w", [("1", 1)]), raw)
    assert found.broken == 1
    assert found.example and "2026-01-04" in found.example


GOOD: History = [
    ("1", 1, 2, "source", False, 1),
    ("1", 2, 5, "observed", False, 2),
    ("1", 7, None, None, True, 3),
    ("2", 1, None, None, True, 1),
]


def test_a_history_with_a_gap_only_over_a_deletion_is_whole(objects: LocalObjects) -> None:
    key = history(objects, GOOD)
    assert checks.broken_intervals(objects, key).broken == 0
    assert checks.doubled_current(objects, key).broken == 0


@pytest.mark.parametrize(
    "rows",
    [
        [("1", 1, 3, "source", False, 1), ("1", 2, None, None, True, 2)],  # overlaps
        [("1", 1, 2, "source", False, 1), ("1", 4, None, None, True, 2)],  # a gap
        [("1", 1, None, None, False, 1), ("1", 4, None, None, True, 2)],  # never ends
        [("1", 3, 2, "source", False, 1)],  # ends before it starts
        [("1", 1, 2, "source", True, 1)],  # current, and over
        [("1", 1, 2, "source", False, 1), ("1", 2, None, None, True, 3)],  # misnumbered
    ],
)
def test_broken_intervals_are_found(objects: LocalObjects, rows: History) -> None:
    assert checks.broken_intervals(objects, history(objects, rows)).broken >= 1


def test_two_current_rows_of_a_record_are_found(objects: LocalObjects) -> None:
    rows: History = [("1", 1, 2, "source", True, 1), ("1", 2, None, None, True, 2)]
    assert checks.doubled_current(objects, history(objects, rows)).broken == 1
