"""The calendar as a picture: what is drawn is what is so, and it is read by everyone."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avesa_dagster.backfill.calendar import COLOURS
from avesa_dagster.backfill.markdown import picture_markdown
from avesa_dagster.backfill.picture import picture, write_picture
from avesa_dagster.backfill.pixels import Drawing
from avesa_dagster.catalog.models import Grain
from avesa_dagster.control.coverage import PartitionCoverage, State, coverage
from avesa_dagster.errors import ConfigurationError, StoreError

from .calendars import NOW, calendar

DAILY = {"grain": Grain.DAILY, "start": NOW - timedelta(days=3 * 365)}
STATES = [state for state in State if state is not State.NOT_DUE]


def pixels(png: bytes) -> np.ndarray:
    """Height × width × RGBA."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def area(png: bytes, state: State) -> int:
    """Pixels of a state's colour."""
    rgb = [int(COLOURS[state][at : at + 2], 16) for at in (1, 3, 5)]
    return int((pixels(png)[:, :, :3] == rgb).all(axis=2).sum())


def drawn(*tables: list[PartitionCoverage]) -> bytes:
    return picture("acme", {"connectwise": list(itertools.chain(*tables))}, NOW)


def small(items: list[PartitionCoverage]) -> bytes:
    found = re.search(r"!\[calendar\]\(data:image/png;base64,([^)]+)\)", picture_markdown(items))
    assert found
    return base64.b64decode(found[1])


Draw = Callable[[list[PartitionCoverage]], bytes]
SHORT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("draw", [drawn, small])
@pytest.mark.parametrize("grain", list(Grain))
def test_a_partition_has_the_colour_of_its_state(draw: Draw, grain: Grain) -> None:
    plain = draw(calendar(grain=grain, start=SHORT))
    for state in (State.COVERED, State.NONE):
        one = draw(calendar({2: state}, grain=grain, start=SHORT))
        three = draw(calendar({2: state, 3: state, 5: state}, grain=grain, start=SHORT))
        cell = area(one, state) - area(plain, state)
        assert cell > 0
        assert area(three, state) - area(plain, state) == pytest.approx(3 * cell, rel=0.35)
        assert area(plain, State.RECONCILED) > area(one, State.RECONCILED)


@pytest.mark.parametrize("draw", [drawn, small])
@pytest.mark.parametrize("grain", list(Grain))
@pytest.mark.parametrize("missing", [1e-6, 1 - 1e-6])
def test_a_hole_is_seen_however_small_and_so_is_what_is_covered(
    draw: Draw, grain: Grain, missing: float
) -> None:
    plain = draw(calendar(grain=grain, start=SHORT))
    part = draw(calendar({5: State.PARTIAL}, grain=grain, start=SHORT, missing=missing))
    assert area(part, State.NONE) > area(plain, State.NONE)
    assert area(part, State.PARTIAL) > area(plain, State.PARTIAL)


def test_a_cell_is_filled_by_its_share() -> None:
    legend = area(drawn(calendar()), State.PARTIAL)
    areas = [
        area(drawn(calendar({5: State.PARTIAL}, missing=missing)), State.PARTIAL) - legend
        for missing in (0.75, 0.5, 0.25)
    ]
    assert areas[1] == pytest.approx(2 * areas[0], rel=0.1)
    assert areas[2] == pytest.approx(3 * areas[0], rel=0.1)


GREYS = [(31, 35, 40), (87, 96, 106), (140, 149, 159), (182, 190, 198), (221, 226, 231)]


def test_the_age_of_the_fetches_is_drawn() -> None:
    ages = [timedelta(days=days) for days in (0.1, 3, 20, 300, 900)]
    pictures = [pixels(drawn(calendar(age=age, start=SHORT)))[:, :, :3] for age in ages]
    for place, grey in enumerate(GREYS):
        counts = [int((picture == grey).all(axis=2).sum()) for picture in pictures]
        own = counts.pop(place)
        assert own - max(counts) > 7 * 40 * 4 * 4  # the strip under seven months, at scale 2


def test_nothing_is_drawn_as_covered_that_is_not_due() -> None:
    august = datetime(2026, 8, 1, 0, 0, 30, tzinfo=UTC)
    items = calendar({25: State.NOT_DUE})
    later = coverage("tickets", [], [items[-1].partition], items[-1].partition.start)
    assert later[0].state is State.NOT_DUE
    without, with_it = items[:-1], [*items[:-1], *later]
    for draw in (lambda own: picture("acme", {"s": own}, august), small):
        for state in COLOURS:
            assert area(draw(without), state) == area(draw(with_it), state)


def test_the_same_picture_wherever_it_is_drawn() -> None:
    with mpl.rc_context({"text.color": "red", "font.size": 30, "savefig.facecolor": "black"}):
        elsewhere = drawn(calendar())
    assert drawn(calendar()) == elsewhere
    corner = pixels(elsewhere)[0, 0]
    assert corner.tolist() == [255, 255, 255, 255]


def test_three_years_of_days_of_eight_tables_fit_on_one_picture() -> None:
    tables = [calendar({400: State.NONE}, table=f"table_{n}", **DAILY) for n in range(8)]
    height, width, _ = pixels(drawn(*tables)).shape
    assert 1_000 < width < 3_500
    assert 1_000 < height < 3_500


def test_more_than_a_person_can_look_at_is_refused() -> None:
    start = datetime(1926, 1, 1, tzinfo=UTC)
    century = list(itertools.chain(*(calendar(start=start, table=f"t{n}") for n in range(6))))
    with pytest.raises(ConfigurationError, match=r"606 rows.*--table"):
        picture("acme", {"connectwise": century}, NOW)


@pytest.mark.parametrize("title", ["t" * 130, "$x_{1}$ <b>"])
def test_any_title_fits(title: str) -> None:
    shape = pixels(picture(title, {"a": calendar(table="n" * 63), "b": []}, NOW))
    assert (shape[:, -20:, :3] == 255).all()


def test_nothing_connected_is_a_picture_too() -> None:
    assert pixels(picture("acme", {"connectwise": []}, NOW)).shape[0] > 100
    assert picture_markdown([]) == "nothing to cover yet"


class TestFile:
    """Where it is written."""

    def test_it_replaces_what_is_there_and_leaves_nothing_beside(self, tmp_path: Path) -> None:
        path = tmp_path / "coverage.png"
        path.write_text("old")
        write_picture(path, "acme", {"connectwise": calendar()}, NOW)
        assert path.read_bytes() == picture("acme", {"connectwise": calendar()}, NOW)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_is_not_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "folder.png"
        path.mkdir()
        with pytest.raises(ConfigurationError, match="is a folder"):
            write_picture(path, "acme", {}, NOW)

    def test_another_ending_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"does not end in \.png"):
            write_picture(tmp_path / "tickets", "acme", {}, NOW)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for folder in ("none", "file"):
            with pytest.raises(ConfigurationError, match=f"there is no folder .*{folder}"):
                write_picture(tmp_path / folder / "a.png", "acme", {}, NOW)

    def test_what_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"cannot write .*name too long"):
            write_picture(tmp_path / f"{'a' * 300}.png", "acme", {}, NOW)
        with pytest.raises(StoreError, match="cannot write"):
            write_picture(Path("/proc/coverage.png"), "acme", {}, NOW)
        assert list(tmp_path.iterdir()) == []


def test_the_colour_blind_tell_the_states_apart() -> None:
    """Machado, Oliveira and Fernandes (2009), at full severity; distances in CIE Lab."""
    simulated = {
        "protan": [(0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)],
        "deutan": [(0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)],
        "tritan": [(1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)],
    }
    to_xyz = np.array([(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.95)])
    for name, matrix in simulated.items():
        seen = {}
        for state, colour in {**COLOURS, "paper": "#FFFFFF"}.items():
            rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            xyz = to_xyz @ np.clip(np.array(matrix) @ linear, 0, 1) / (0.9505, 1, 1.0888)
            f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
            seen[state] = np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
        for one, other in itertools.combinations(seen, 2):
            assert np.linalg.norm(seen[one] - seen[other]) > 18, (name, one, other)


@given(
    st.dictionaries(st.integers(0, 60), st.sampled_from(STATES), max_size=20),
    st.sampled_from(list(Grain)),
)
@settings(max_examples=60, deadline=None)
def test_the_small_picture_has_the_colours_of_the_states_that_there_are(
    states: dict[int, State], grain: Grain
) -> None:
    items = calendar(states, grain=grain, start=datetime(2025, 2, 10, tzinfo=UTC))
    png = small(items)
    there = {item.state for item in items}
    for state in COLOURS:
        expected = state in there or (state is State.NONE and State.PARTIAL in there)
        assert (area(png, state) > 0) == expected
    said = picture_markdown(items)
    assert ("Not fetched:" in said) == any(item.holes for item in items)


def test_dagster_shows_four_years_of_months_in_place() -> None:
    """Its UI shows Markdown of less than 1,000 characters where it stands."""
    start = datetime(2022, 8, 1, tzinfo=UTC)
    assert len(picture_markdown(calendar({3: State.COVERED}, start=start))) < 800
    assert len(picture_markdown(calendar({9: State.NONE, 20: State.PARTIAL}, start=start))) < 1_000


def test_the_markdown_says_what_the_picture_shows() -> None:
    said = picture_markdown(calendar({2: State.NONE, 9: State.NONE, 23: State.PARTIAL}))
    assert said.startswith("`tickets` 90.1% covered, fetched 2026-07-14\n\n![calendar](data:")
    assert said.endswith(
        "green: proven, yellow: in part, red: not fetched. Not fetched: 2025-04-01 to 2025-05-01, "
        "2026-06-01 to 2026-06-16, 1 older"
    )


def test_the_markdown_is_never_long() -> None:
    start = datetime(1926, 7, 1, tzinfo=UTC)
    wild = {n: STATES[n * n % 7 % 4] for n in range(40_000)}
    tables = [calendar(wild, table=f"t{n}", grain=Grain.DAILY, start=start) for n in range(2)]
    assert len(picture_markdown(tables[0])) < 30_000
    both = picture_markdown([*tables[0], *tables[1]])
    assert len(both) < 30_000
    assert "`t0` " in both and "`t1` " in both


boxes = st.lists(
    st.tuples(
        st.sampled_from(["#112233", "#FFEEDD"]), st.integers(0, 20), st.integers(0, 9),
        st.integers(0, 20), st.integers(0, 9),
    ),
    max_size=5,
)  # fmt: skip


@given(boxes)
def test_a_drawing_is_a_png_of_its_boxes(
    drawn_boxes: list[tuple[str, int, int, int, int]],
) -> None:
    drawing = Drawing(21, 10, ["#112233", "#FFEEDD"])
    expected = np.zeros((10, 22, 4), dtype=np.uint8)
    for colour, left, top, wide, high in drawn_boxes:
        right, bottom = min(left + wide, 22), min(top + high, 10)
        drawing.box(colour, left, top, right, bottom)
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        expected[top:bottom, left:right] = [*rgb, 255]
    assert (pixels(drawing.png()) == expected).all()


def test_a_drawing_writes_years() -> None:
    drawing = Drawing(12, 7, ["#000000"])
    drawing.text("#000000", 0, 0, "71")
    rows = ["".join("#" if pixel[3] else "." for pixel in row) for row in pixels(drawing.png())]
    assert rows == [
        "#####...#...",
        "....#..##...",
        "...#....#...",
        "..#.....#...",
        ".#......#...",
        ".#......#...",
        ".#.....###..",
    ]
