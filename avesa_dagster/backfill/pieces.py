"""A job in pieces: what one run fetches, so that no run is long and each year shows when done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import Scheduling, Service
from avesa_dagster.control.jobs import Piece, Stretch


def pieces(
    tables: Sequence[str],
    partitions: Sequence[Partition],
    service: Service,
    scheduling: Scheduling,
    *,
    recent: frozenset[str],
    stretches: Sequence[Stretch] = (),
) -> tuple[Piece, ...]:
    """Master data first, whole; then the recent partitions, then what lies behind, newest first.

    Args:
        partitions: Those that are asked for, contiguous, oldest first.
        recent: Keys of the tenant's newest partitions.
        stretches: If any, only tables and partitions that they touch.
    """
    ordered = sorted(tables, key=lambda name: (service.tables[name].priority, name))
    master = tuple(name for name in ordered if service.tables[name].master_data)
    others = tuple(name for name in ordered if not service.tables[name].master_data)
    found: list[Piece] = []

    def add(names: tuple[str, ...], part: Sequence[Partition], is_recent: bool) -> None:
        if not part:
            return
        touched = tuple(name for name in names if _touches(stretches, [name], part))
        if touched:
            found.append(Piece(len(found), touched, part[0].key, part[-1].key, is_recent))

    if master and _touches(stretches, master, partitions):
        add(master, partitions, True)
    wanted = [p for p in partitions if _touches(stretches, others, [p])]
    for run in _contiguous(wanted, partitions):
        newest = [p for p in run if p.key in recent]
        older = [p for p in run if p.key not in recent]
        add(others, newest, True)
        size = scheduling.piece_partitions
        for end in range(len(older), 0, -size):
            add(others, older[max(0, end - size) : end], False)
    return tuple(found)


def _touches(
    stretches: Sequence[Stretch], tables: Sequence[str], part: Sequence[Partition]
) -> bool:
    return not stretches or any(
        s.table in tables and s.start < part[-1].end and s.end > part[0].start for s in stretches
    )


def _contiguous(
    wanted: Sequence[Partition], partitions: Sequence[Partition]
) -> Iterator[list[Partition]]:
    """The wanted ones in stretches without a gap, newest stretch first, each oldest first."""
    place = {partition.key: index for index, partition in enumerate(partitions)}
    stretches = [
        [partition for _, partition in group]
        for _, group in groupby(enumerate(wanted), lambda item: place[item[1].key] - item[0])
    ]
    yield from reversed(stretches)
