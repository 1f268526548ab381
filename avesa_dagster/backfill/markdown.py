"""Coverage as Markdown for the metadata of an asset: a small picture, and what it says in words.

Dagster's UI (1.13) draws images with data URIs, shows Markdown of less than 1,000 characters where
it stands, and what is longer behind a link. So the picture is drawn to be small: a monthly calendar
of four years takes some 700 characters, and every materialization may keep one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime

from avesa_dagster.backfill import calendar
from avesa_dagster.backfill.calendar import COLOURS
from avesa_dagster.backfill.pixels import GLYPH_HEIGHT, GLYPH_WIDTH, Drawing
from avesa_dagster.control.coverage import PartitionCoverage, State, holes
from avesa_dagster.sources.base import Window

_MOST_CHARACTERS = 30_000
_MOST_HOLES = 2
_KEY = {
    State.RECONCILED: "green: proven",
    State.COVERED: "blue: not proven",
    State.PARTIAL: "yellow: in part",
    State.NONE: "red: not fetched",
}
_INK, _RULE = "#8A8F98", "#B4B9C1"  # seen on white and on black
_LABEL = 4 * GLYPH_WIDTH + 4
_INNER, _MONTH = 21, 23
_CELL, _PITCH = 15, 18
_DAY = 3
"""A month of days is a block of five rows of seven."""


def picture_markdown(items: Sequence[PartitionCoverage]) -> str:
    """A line, a picture and the holes of each table; equal for equal items.

    The picture is left out where all would exceed 30,000 characters.
    """
    blocks = [
        (_words(table, rows), _image(rows), _rest(rows))
        for table, rows in calendar.tables(items).items()
    ]
    if not blocks:
        return "nothing to cover yet"
    whole = "\n\n".join("\n\n".join(block) for block in blocks)
    if len(whole) <= _MOST_CHARACTERS:
        return whole
    return "\n\n".join(f"{words}; {rest}" for words, _, rest in blocks)


def _words(table: str, rows: calendar.Rows) -> str:
    items = [item for own in rows.values() for item in own]
    complete = all(not item.holes for item in items)
    share = calendar.percent(calendar.share_of(items), complete)
    seen = calendar.seen(items)
    fetched = " to ".join(sorted({f"{at:%Y-%m-%d}" for at in seen})) if seen else "never"
    return f"`{table}` {share} covered, fetched {fetched}"


def _rest(rows: calendar.Rows) -> str:
    items = [item for own in rows.values() for item in own]
    states = {item.state for item in items}
    key = ", ".join(word for state, word in _KEY.items() if state in states)
    found = [hole for own in holes(items).values() for hole in own]
    if not found:
        return key or "nothing due yet"
    shown = ", ".join(_from_to(hole) for hole in found[-_MOST_HOLES:])
    more = f", {len(found) - _MOST_HOLES:,} older" if len(found) > _MOST_HOLES else ""
    return f"{key}. Not fetched: {shown}{more}"


def _from_to(hole: Window) -> str:
    return f"{_short(hole.start)} to {_short(hole.end)}"


def _short(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}".removesuffix(" 00:00")


def _image(rows: calendar.Rows) -> str:
    data = base64.b64encode(_drawn(rows)).decode()
    return f"![calendar](data:image/png;base64,{data})"


def _drawn(rows: calendar.Rows) -> bytes:
    head = GLYPH_HEIGHT + 3
    colours = [_INK, _RULE, *COLOURS.values()]
    drawing = Drawing(_LABEL + 12 * _MONTH, head + len(rows) * _PITCH, colours)
    for month, letter in enumerate("JFMAMJJASOND"):
        drawing.text(_INK, _LABEL + month * _MONTH + (_INNER - GLYPH_WIDTH) // 2 + 1, 0, letter)
    tops = {year: head + place * _PITCH for place, year in enumerate(rows)}
    for year, items in rows.items():
        drawing.text(_INK, 0, tops[year] + (_CELL - GLYPH_HEIGHT) // 2, f"{year:04}")
        for item in items:
            for box in _boxes(item, tops):
                _draw(drawing, item, *box)
    return drawing.png()


def _boxes(item: PartitionCoverage, tops: dict[int, int]) -> Iterable[tuple[int, int, int, int]]:
    """Left, top, right and bottom of where a partition is drawn."""
    start = item.partition.start
    if calendar.days(item.partition) == 1:
        down, along = divmod(start.day - 1, 7)
        left = _LABEL + (start.month - 1) * _MONTH + along * _DAY
        top = tops[start.year] + down * _DAY
        yield left, top, left + _DAY, top + _DAY
        return
    for year, begin, end in calendar.spans(item.partition):
        if year in tops:
            left, right = _x(begin), _x(end) - (_MONTH - _INNER if end == int(end) else 1)
            yield min(left, right - 1), tops[year], right, tops[year] + _CELL


def _x(months: float) -> int:
    return _LABEL + round(months * _MONTH)


def _draw(
    drawing: Drawing, item: PartitionCoverage, left: int, top: int, right: int, bottom: int
) -> None:
    if item.state is State.NOT_DUE:
        drawing.box(_RULE, left, bottom - 1, right, bottom)
        return
    drawing.box(COLOURS[item.state], left, top, right, bottom)
    if item.state is State.PARTIAL:
        high = bottom - top
        open_ = min(max(round((1 - item.share) * high), 1), high - 1)
        drawing.box(COLOURS[State.NONE], left, top, right, top + open_)
