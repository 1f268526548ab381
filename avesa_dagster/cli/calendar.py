"""A calendar of coverage in the terminal: a sign a partition, and the holes under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from avesa_dagster.backfill import calendar
from avesa_dagster.catalog.grain import Partition
from avesa_dagster.catalog.models import Grain
from avesa_dagster.cli.output import console
from avesa_dagster.control.coverage import PartitionCoverage, State
from avesa_dagster.sources.base import Window

_SIGNS = {
    State.RECONCILED: ("■", "green"),
    State.COVERED: ("▣", "cyan"),
    State.PARTIAL: ("◧", "yellow"),
    State.NONE: ("·", "bold red"),
    State.NOT_DUE: ("–", "dim"),
}
_MOST_HOLES = 10
_ALIKE = 3
"""So many months of days in a row that look alike are one row."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the partitions of a grain stand in rows.

    Attributes:
        header: Over the signs.
        row: Names the row of a partition.
        place: Its column in the row.
    """

    header: str
    row: Callable[[Partition], str]
    place: Callable[[Partition], int]


def _header(words: Mapping[int, str]) -> str:
    line = ""
    for place, word in words.items():
        line = f"{line:<{place}}{word}"
    return line


_LETTERS = dict(enumerate("JFMAMJJASOND"))
_MONTH_STARTS = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
_LAYOUTS = {
    Grain.MONTHLY: _Layout(
        _header({2 * month: letter for month, letter in _LETTERS.items()}),
        lambda partition: partition.key[:4],
        lambda partition: 2 * (partition.start.month - 1),
    ),
    Grain.SEMI_MONTHLY: _Layout(
        _header({3 * month: letter for month, letter in _LETTERS.items()}),
        lambda partition: partition.key[:4],
        lambda partition: 3 * (partition.start.month - 1) + (partition.start.day > 1),
    ),
    Grain.WEEKLY: _Layout(
        _header({_MONTH_STARTS[month] // 7: letter for month, letter in _LETTERS.items()}),
        lambda partition: partition.key[:4],
        lambda partition: (partition.start.timetuple().tm_yday - 1) // 7,
    ),
    Grain.DAILY: _Layout(
        _header({day - 1: str(day) for day in (1, 5, 10, 15, 20, 25, 30)}),
        lambda partition: partition.key[:7],
        lambda partition: partition.start.day - 1,
    ),
}


def print_calendar(title: str, items: Sequence[PartitionCoverage], grain: Grain) -> None:
    """A row a table and year (of days: and month), a sign a partition; and what the signs mean."""
    layout = _LAYOUTS[grain]
    shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    shown.add_column("table")
    shown.add_column("month" if grain is Grain.DAILY else "year", no_wrap=True)
    shown.add_column(layout.header, no_wrap=True)
    shown.add_column("covered", justify="right", no_wrap=True)
    shown.add_column("fetched", no_wrap=True)
    for table, own in _by_table(items).items():
        name = table
        for row in _rows(own, layout, grain):
            complete = not any(part.holes for part in row.parts)
            shown.add_row(
                name,
                row.name,
                _alike(row.parts) if row.joined else _signs(row.parts, layout),
                calendar.percent(calendar.share_of(row.parts), complete),
                _fetched(row.parts),
            )
            name = ""
    needed = Measurement.get(console, console.options.update(width=10_000), shown).maximum
    if needed > console.width:  # goes on in the next line: a sign cut off would hide a hole
        shown.width = needed
    console.print(shown, soft_wrap=True)
    for line in _legend(console.width):
        console.print(line)


def _legend(width: int) -> list[Text]:
    """What the signs mean, in lines that end between two of them."""
    lines = [Text()]
    for state, (sign, style) in _SIGNS.items():
        meaning = Text(sign, style).append(f" {calendar.MEANINGS[state]}", "dim")
        if lines[-1] and len(lines[-1]) + 2 + len(meaning) > width:
            lines.append(Text())
        lines[-1].append("  " if lines[-1] else "").append_text(meaning)
    return lines


def print_holes(found: Mapping[str, Sequence[Window]]) -> None:
    """table -> holes: the first ten as a table, and how many more each table has."""
    listed = [(table, hole) for table, own in found.items() for hole in own]
    if not listed:
        console.print("no hole", style="dim")
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("hole in", "from", "to"):
        shown.add_column(column)
    for table, hole in listed[:_MOST_HOLES]:
        shown.add_row(table, _minute(hole.start), _minute(hole.end))
    console.print(shown)
    rest = [table for table, _ in listed[_MOST_HOLES:]]
    if rest:
        counts = ", ".join(f"{table} {rest.count(table)}" for table in dict.fromkeys(rest))
        console.print(f"… {len(rest)} more ({counts}); --json shows all")


def _by_table(items: Sequence[PartitionCoverage]) -> dict[str, list[PartitionCoverage]]:
    found: dict[str, list[PartitionCoverage]] = {}
    for item in items:
        found.setdefault(item.table, []).append(item)
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    """A year, a month of days, or several such months that look alike (`joined`)."""

    name: str
    parts: list[PartitionCoverage]
    joined: bool = False


def _rows(items: Sequence[PartitionCoverage], layout: _Layout, grain: Grain) -> list[_Row]:
    named: dict[str, list[PartitionCoverage]] = {}
    for item in items:
        named.setdefault(layout.row(item.partition), []).append(item)
    rows = [_Row(name, parts) for name, parts in named.items()]
    if grain is not Grain.DAILY:
        return rows
    runs = groupby(rows, key=lambda row: frozenset(part.state for part in row.parts))
    return [row for states, run in runs for row in _joined(list(run), alike=len(states) == 1)]


def _joined(run: list[_Row], *, alike: bool) -> list[_Row]:
    if len(run) < _ALIKE or not alike:
        return run
    parts = [part for row in run for part in row.parts]
    return [_Row(f"{run[0].name} – {run[-1].name}", parts, joined=True)]


def _signs(parts: Sequence[PartitionCoverage], layout: _Layout) -> Text:
    signs = Text()
    for part in parts:
        signs.append(" " * (layout.place(part.partition) - len(signs)))
        signs.append(*_SIGNS[part.state])
    return signs


def _alike(parts: Sequence[PartitionCoverage]) -> Text:
    return Text().append(*_SIGNS[parts[0].state]).append(f" on all {len(parts)} days")


def _fetched(parts: Sequence[PartitionCoverage]) -> str:
    seen = calendar.seen(parts)
    if seen is None:
        return "never"
    oldest, newest = seen
    if oldest.date() == newest.date():
        return f"{oldest:%Y-%m-%d %H:%M}"
    return f"{oldest:%Y-%m-%d} – {newest:%Y-%m-%d}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
