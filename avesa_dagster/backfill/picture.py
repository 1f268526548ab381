"""The calendar of coverage as a picture: a row a year, a cell a partition, tables stacked."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from avesa_dagster.backfill import calendar
from avesa_dagster.backfill.calendar import COLOURS, MEANINGS
from avesa_dagster.control.coverage import PartitionCoverage, State, holes
from avesa_dagster.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# Lengths are pixels of the picture at scale 1, from its upper left corner.
_MARGIN = 24
_TITLE = 64
_HEAD = 50
_PITCH = 27
_CELL = 17
_STRIP = 4
"""Under a cell: how old its fetches are."""
_LABEL = 46
_FIGURES = 262
_LEGEND = 78
_GAP = 2.0
"""Between two months."""
_TEXT, _DIM, _RULE = "#1F2328", "#6E7781", "#D0D7DE"
_MOST_ROWS = 600
_SHARP_UP_TO = 8_000
"""A picture that is not higher has two dots a pixel."""
_LEAST_SHOWN = 0.15
"""Of a cell's height: so much of a hole is seen, however small, and so much of what is covered."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_AGES = (
    (timedelta(days=1), "#1F2328", "a day"),
    (timedelta(days=7), "#57606A", "a week"),
    (timedelta(days=31), "#8C959F", "a month"),
    (timedelta(days=366), "#B6BEC6", "a year"),
    (timedelta.max, "#DDE2E7", "older"),
)


def write_picture(
    path: Path, title: str, panels: Mapping[str, Sequence[PartitionCoverage]], now: datetime
) -> None:
    """Writes `picture` to a file, whole or not at all; replaces what is there.

    Raises:
        ConfigurationError: It is no name for a PNG file, or there is no such folder.
        StoreError: It cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigurationError(
            f"{path} does not end in .png", hint="name the file to write, like coverage.png"
        )
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder", hint="name the file to write")
        if not path.parent.is_dir():
            raise ConfigurationError(f"there is no folder {path.parent}", hint="make it first")
        data = picture(title, panels, now)
        staged.write_bytes(data)
        staged.replace(path)
    except OSError as error:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {path}: {error.strerror}",
            hint="check the folder's permissions and the disk's free space",
        ) from error


def picture(title: str, panels: Mapping[str, Sequence[PartitionCoverage]], now: datetime) -> bytes:
    """A PNG that is as large as its contents, equal for equal arguments.

    Args:
        panels: Heading (a service) -> its coverage. One heading alone is not written.
        now: Ages count from here.

    Raises:
        ConfigurationError: It would be too high to look at.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = _sheet(title, panels)
    scale = 2 if sheet.height <= _SHARP_UP_TO else 1
    with style.context("default"):  # takes nothing from a matplotlibrc of the user's
        figure = Figure(figsize=(sheet.width / 100, sheet.height / 100), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, sheet.width)
        axes.set_ylim(sheet.height, 0)
        axes.axis("off")
        _Painter(axes, sheet, now).paint(title, panels)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100 * scale, metadata={"Software": None})
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class _Sheet:
    """What stands on the picture, and how large it is."""

    blocks: tuple[tuple[str, calendar.Rows], ...]
    month: int
    width: int
    height: int


def _sheet(title: str, panels: Mapping[str, Sequence[PartitionCoverage]]) -> _Sheet:
    blocks = [
        (f"{panel}  {table}" if len(panels) > 1 else table, rows)
        for panel, items in panels.items()
        for table, rows in calendar.tables(items).items()
    ]
    shortest = min(
        (calendar.days(i.partition) for items in panels.values() for i in items), default=31
    )
    month = 95 if shortest == 1 else 56 if shortest <= 7 else 46
    rows = sum(len(block) for _, block in blocks)
    if rows > _MOST_ROWS:
        raise ConfigurationError(
            f"the picture would have {rows} rows (a table's year each), more than {_MOST_ROWS}",
            hint="choose tables with --table",
        )
    names = max((len(name) for name, _ in blocks), default=0)
    return _Sheet(
        blocks=tuple(blocks),
        month=month,
        width=max(
            2 * _MARGIN + _LABEL + 12 * month + _FIGURES,
            2 * _MARGIN + 11 * max(len(title), names),
            860,
        ),
        height=_MARGIN + _TITLE + len(blocks) * _HEAD + rows * _PITCH + _LEGEND,
    )


@dataclass(slots=True)
class _Painter:
    """Draws a sheet; collects the rectangles of a colour, and lays them down at once."""

    axes: Axes
    sheet: _Sheet
    now: datetime
    _boxes: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)

    def paint(self, title: str, panels: Mapping[str, Sequence[PartitionCoverage]]) -> None:
        self._text(_MARGIN, _MARGIN + 10, title, size=17, weight="bold")
        self._text(_MARGIN, _MARGIN + 36, self._said(panels), colour=_DIM)
        top = float(_MARGIN + _TITLE)
        for name, rows in self.sheet.blocks:
            self._head(name, top)
            tops = {year: top + _HEAD + place * _PITCH for place, year in enumerate(rows)}
            for year, items in rows.items():
                self._figures(year, items, tops[year])
                for item in items:
                    for in_year, start, end in calendar.spans(item.partition):
                        if in_year in tops:
                            self._cell(item, start, end, tops[in_year])
            top += _HEAD + len(rows) * _PITCH
        self._legend(top + 24)
        self._lay_down()

    def _said(self, panels: Mapping[str, Sequence[PartitionCoverage]]) -> str:
        everything = [item for items in panels.values() for item in items]
        count = sum(len(own) for items in panels.values() for own in holes(items).values())
        share = calendar.percent(calendar.share_of(everything), count == 0)
        word = "no hole" if count == 0 else "1 hole" if count == 1 else f"{count:,} holes"
        return f"as of {self.now:%Y-%m-%d %H:%M} UTC  ·  {share} covered  ·  {word}"

    def _head(self, name: str, top: float) -> None:
        self._text(_MARGIN, top + 17, name, size=13, weight="bold")
        for month, word in enumerate(_MONTHS):
            self._text(self._x(month + 0.5), top + 39, word, size=10, colour=_DIM, align="center")
        right = self._x(12)
        self._text(right + 62, top + 39, "covered", size=10, colour=_DIM, align="right")
        self._text(right + 80, top + 39, "fetched, oldest to newest", size=10, colour=_DIM)

    def _figures(self, year: int, items: Sequence[PartitionCoverage], top: float) -> None:
        middle = top + _CELL / 2 + 1
        self._text(_MARGIN, middle, str(year), size=12)
        complete = all(not item.holes for item in items)
        share = calendar.percent(calendar.share_of(items), complete)
        right = self._x(12)
        self._text(right + 62, middle, share, size=12, align="right")
        seen = calendar.seen(items)
        days = sorted({f"{moment:%Y-%m-%d}" for moment in seen}) if seen else ["never"]
        self._text(right + 80, middle, " – ".join(days), size=12, colour=_DIM)

    def _cell(self, item: PartitionCoverage, start: float, end: float, top: float) -> None:
        left, right = self._x(start), self._x(end, closing=True)
        if calendar.days(item.partition) > 1:  # days join to months
            left, right = left + _GAP / 4, right - _GAP / 4
        if item.state is State.NOT_DUE:
            self._box(_RULE, left, top + _CELL - 1, right, top + _CELL)
            return
        self._box(COLOURS[item.state], left, top, right, top + _CELL)
        if item.state is State.PARTIAL:
            open_ = min(max(1 - item.share, _LEAST_SHOWN), 1 - _LEAST_SHOWN) * _CELL
            self._box(COLOURS[State.NONE], left, top, right, top + open_)
        if item.as_of is not None:
            bottom = top + _CELL + 1 + _STRIP
            self._box(_age_colour(self.now - item.as_of), left, bottom - _STRIP, right, bottom)

    def _legend(self, top: float) -> None:
        left = float(_MARGIN)
        for state in COLOURS:
            self._box(COLOURS[state], left, top, left + 22, top + 14)
            if state is State.PARTIAL:
                self._box(COLOURS[State.NONE], left, top, left + 22, top + 5)
            left = self._beside(left + 28, top + 8, MEANINGS[state])
        self._box(_RULE, left, top + 13, left + 22, top + 14)
        self._beside(left + 28, top + 8, MEANINGS[State.NOT_DUE])
        left = self._beside(_MARGIN, top + 32, "oldest fetch of a cell, within:")
        for _, colour, word in _AGES:
            self._box(colour, left, top + 30, left + 22, top + 30 + _STRIP)
            left = self._beside(left + 28, top + 32, word)

    def _beside(self, left: float, middle: float, word: str) -> float:
        """Writes a word of the legend; returns where the next sign may begin."""
        drawn = self._text(left, middle, word, size=11, colour=_DIM)
        return left + drawn.get_window_extent().width + 20

    def _x(self, months: float, *, closing: bool = False) -> float:
        """Within its month: between two months lies a gap."""
        month = min(int(months), 11) - (closing and 0 < months == int(months) < 12)
        inner = self.sheet.month - _GAP
        return _MARGIN + _LABEL + month * self.sheet.month + _GAP / 2 + (months - month) * inner

    def _text(
        self,
        x: float,
        middle: float,
        text: str,
        *,
        size: int = 12,
        colour: str = _TEXT,
        weight: str = "normal",
        align: str = "left",
    ) -> Text:
        return self.axes.text(
            x,
            middle,
            text,
            fontsize=size * 0.72,  # pixels at 100 dots an inch to points
            color=colour,
            fontweight=weight,
            ha=align,
            va="center_baseline",
            parse_math=False,
        )

    def _box(self, colour: str, left: float, top: float, right: float, bottom: float) -> None:
        self._boxes.setdefault(colour, []).append((left, top, right, bottom))

    def _lay_down(self) -> None:
        from matplotlib.collections import PolyCollection

        for order, (colour, boxes) in enumerate(
            sorted(self._boxes.items(), key=lambda pair: pair[0] == COLOURS[State.NONE])
        ):
            corners = [
                ((left, top), (right, top), (right, bottom), (left, bottom))
                for left, top, right, bottom in boxes
            ]
            self.axes.add_collection(
                PolyCollection(
                    corners, facecolors=colour, edgecolors="none", antialiaseds=False, zorder=order
                ),
                autolim=False,
            )


def _age_colour(age: timedelta) -> str:
    return next(colour for upto, colour, _ in _AGES if age <= upto)
