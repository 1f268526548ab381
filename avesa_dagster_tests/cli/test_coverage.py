"""`avesa coverage`: a calendar, a picture and JSON of what the ledger says."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from avesa_dagster.catalog.grain import partitions
from avesa_dagster.catalog.models import Grain
from avesa_dagster.cli import calendar as cli_calendar
from avesa_dagster.cli.calendar import print_calendar, print_holes
from avesa_dagster.cli.main import main
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.coverage import State, holes
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.backfill.calendars import calendar

MAPPINGS = Path(__file__).parents[2] / "mappings"
TABLES = ["companies", "tickets"]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """Tenant acme has connected two tables for the last hundred days; nothing is fetched."""
    made = Installation(Settings(home=tmp_path / "home", mappings=MAPPINGS))
    now = made.clock()
    made.control.registry.connect(
        "acme", "connectwise", history_start=now - timedelta(days=100), tables=TABLES,
        requests_per_minute=None, now=now - timedelta(days=1),
    )  # fmt: skip
    return made


@pytest.fixture
def avesa(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `avesa coverage …` in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("AVESA_HOME", str(installation.settings.home))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avesa", "coverage", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def fetch(
    installation: Installation, table: str, *, leave: tuple[int, ...] = (), count: int | None = 3
) -> list[str]:
    """Completes a chunk a month, but those left out; returns the keys of the months."""
    ledger, now = installation.control.ledger, installation.clock()
    start = now - timedelta(days=100)
    months = list(partitions(Grain.MONTHLY, start, now))
    for place, month in enumerate(months):
        if place in leave:
            continue
        chunk = Chunk(
            f"run-{count}", "acme", "connectwise", table, month.key, month.key, "window",
            month.start, month.end,
        )  # fmt: skip
        ledger.plan([chunk], now=now)
        ledger.begin(chunk, now=now)
        ledger.progress(chunk, cursor="9", rows=3, stored=3, requests=1, objects=[], now=now)
        ledger.complete(chunk, source_count=count, requests=0, now=now)
    return [month.key for month in months]


def test_json_says_state_age_and_proof_of_each_partition(
    installation: Installation, avesa: Command
) -> None:
    before = installation.clock()
    keys = fetch(installation, "tickets", leave=(1,))
    fetch(installation, "companies", count=None)
    code, out, _ = avesa("acme", "--json")
    items: list[dict[str, Any]] = json.loads(out)
    assert code == 0
    assert [(item["table"], item["partition"]) for item in items] == [
        (table, key) for table in TABLES for key in keys
    ]
    unproven, tickets = items[: len(keys)], items[len(keys) :]
    assert {item["state"] for item in unproven} == {"covered"}
    assert not any(item["reconciled"] for item in unproven)
    assert [item["state"] for item in tickets[:3]] == ["reconciled", "none", "reconciled"]
    assert [item["share"] for item in tickets[:3]] == [1.0, 0.0, 1.0]
    assert tickets[1]["holes"][0]["start"][:10] == keys[1]
    assert tickets[1]["as_of"] is None
    assert before.isoformat() <= tickets[0]["as_of"] <= tickets[0]["newest"]
    assert tickets[0]["rows"] == 3


def test_tables_and_a_service_are_chosen(installation: Installation, avesa: Command) -> None:
    def shown(*arguments: str) -> list[tuple[str, str]]:
        items = json.loads(avesa("acme", *arguments, "--json")[1])
        return [(item["table"], item["partition"]) for item in items]

    every = shown()
    assert {table for table, _ in every} == set(TABLES)
    assert shown("connectwise") == every
    tickets = [pair for pair in every if pair[0] == "tickets"]
    assert shown("--table", "tickets", "--table", "tickets") == tickets
    assert sorted(shown("--table", "tickets", "--table", "companies")) == sorted(every)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("globex",), r"there is no tenant 'globex' in "),
        (("globex",), "connected: acme"),
        (("acme", "salesforce"), "this tenant has not connected 'salesforce' [tenant=acme]"),
        (("acme", "salesforce"), "connected: connectwise"),
        (("acme", "--table", "tikets"), "this tenant has no table 'tikets'"),
        (("acme", "--table", "tickets", "--table", "members"), "connected: companies, tickets"),
        (("acme", "--png", "calendar.jpg"), "calendar.jpg does not end in .png"),
        (("acme", "--png", "/no/such/folder/a.png"), "there is no folder /no/such/folder"),
    ],
)
def test_what_is_unknown_is_an_error_that_says_what_is_known(
    avesa: Command, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = avesa(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("avesa: ")
    assert said in err


def test_people_see_signs_and_holes(installation: Installation, avesa: Command) -> None:
    keys = fetch(installation, "tickets", leave=(1,))
    fetch(installation, "companies", count=None)
    code, out, _ = avesa("acme")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("acme connectwise")
    shown = out[: out.index("covered, counts proven")]
    assert shown.count("▣") == len(keys)
    assert shown.count("■") - 1 == len(keys) - 1 - shown.count("–")  # one in the legend
    hole = next(line for line in lines if line.startswith("tickets ") and keys[1] in line)
    assert hole.split() == ["tickets", keys[1], "00:00", keys[2], "00:00"]


def test_a_disconnected_service_is_shown_and_said(
    installation: Installation, avesa: Command
) -> None:
    since = installation.clock() - timedelta(days=2)
    installation.control.registry.disconnect("acme", "connectwise", now=since)
    code, out, _ = avesa("acme")
    assert code == 0
    assert f"acme connectwise, disconnected since {since:%Y-%m-%d %H:%M} UTC" in out


def test_a_picture_is_written(installation: Installation, avesa: Command, tmp_path: Path) -> None:
    fetch(installation, "tickets")
    path = tmp_path / "coverage.png"
    assert avesa("acme", "--png", str(path)) == (0, f"drawn: {path}\n", "")
    with Image.open(path) as image:
        assert image.format == "PNG"
    path.unlink()
    code, out, _ = avesa("acme", "--json", "--png", str(path))
    assert code == 0
    assert json.loads(out)
    assert path.exists()


@pytest.mark.parametrize("grain", list(Grain))
def test_every_grain_has_a_calendar(
    installation: Installation,
    avesa: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    grain: Grain,
) -> None:
    mappings = tmp_path / "mappings"
    shutil.copytree(MAPPINGS, mappings)
    config = json.loads((mappings / "backfill_config.json").read_text())
    config["services"]["connectwise"]["partitions"] = grain.value
    (mappings / "backfill_config.json").write_text(json.dumps(config))
    monkeypatch.setenv("AVESA_MAPPINGS", str(mappings))
    fetch(installation, "companies")
    code, out, _ = avesa("acme")
    assert code == 0
    assert "100%" in out
    assert "0%" in out


class Screen:
    """What print_calendar writes on a terminal of some width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int = 120) -> None:
        self._file = io.StringIO()
        monkeypatch.setattr(cli_calendar, "console", Console(width=width, file=self._file))

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._file.getvalue().splitlines()]


def test_a_month_has_its_sign_under_its_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    states = {8: State.NONE, 9: State.PARTIAL, 10: State.COVERED}
    print_calendar("acme", calendar(states), Grain.MONTHLY)
    assert screen.lines()[1:5] == [
        "table    year  J F M A M J J A S O N D  covered  fetched",
        "tickets  2024              ■ ■ ■ ■ ■ ■     100%  2026-07-14 09:05",
        "         2025  ■ ■ · ◧ ▣ ■ ■ ■ ■ ■ ■ ■    87.4%  2026-07-14 09:05",
        "         2026  ■ ■ ■ ■ ■ ■ ■               100%  2026-07-14 09:05",
    ]


def test_half_months_and_weeks_have_a_row_a_year(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    start = datetime(2025, 11, 16, tzinfo=UTC)
    print_calendar("acme", calendar({1: State.NONE}, grain=Grain.SEMI_MONTHLY, start=start),
                   Grain.SEMI_MONTHLY)  # fmt: skip
    print_calendar("acme", calendar({1: State.NONE}, grain=Grain.WEEKLY, start=start),
                   Grain.WEEKLY)  # fmt: skip
    lines = screen.lines()
    assert lines[1:4] == [
        "table    year  J  F  M  A  M  J  J  A  S  O  N  D   covered  fetched",
        "tickets  2025                                 ■ ·■    67.4%  2026-07-14 09:05",
        "         2026  ■■ ■■ ■■ ■■ ■■ ■■ ■                     100%  2026-07-14 09:05",
    ]
    weeks = lines[lines.index("acme", 1) + 1 :]
    assert weeks[:3] == [
        "table    year  J   F   M   A    M   J   J    A   S    O   N   D      covered  fetched",
        f"tickets  2025{' ' * 47}■·■■■■■    85.7%  2026-07-14 09:05",
        f"         2026  {'■' * 28}                             100%  2026-07-14 09:05",
    ]


def test_days_have_a_row_a_month_and_like_months_are_one_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen(monkeypatch)
    start = datetime(2025, 9, 3, tzinfo=UTC)
    items = calendar({0: State.NONE, 160: State.PARTIAL}, grain=Grain.DAILY, start=start)
    print_calendar("acme", items, Grain.DAILY)
    assert screen.lines()[1:6] == [
        "table    month              1   5    10   15   20   25   30  covered  fetched",
        "tickets  2025-09              ·■■■■■■■■■■■■■■■■■■■■■■■■■■■     96.4%  2026-07-14 09:05",
        "         2025-10 – 2026-01  ■ on all 123 days                   100%  2026-07-14 09:05",
        "         2026-02            ■■■■■■■■■◧■■■■■■■■■■■■■■■■■■       98.2%  2026-07-14 09:05",
        "         2026-03 – 2026-07  ■ on all 136 days                   100%  2026-07-14 09:05",
    ]


@pytest.mark.parametrize("grain", list(Grain))
def test_no_sign_is_cut_off_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, grain: Grain
) -> None:
    screen = Screen(monkeypatch, width=30)
    start = datetime(2026, 6, 1, tzinfo=UTC)
    last = len(calendar(grain=grain, start=start)) - 1
    print_calendar("acme", calendar({last: State.NONE, 0: State.COVERED}, grain=grain, start=start),
                   grain)  # fmt: skip
    said = "\n".join(screen.lines())
    table = said[: said.index("covered, counts proven") - 2]
    assert table.count("■") == last - 1
    assert table.count("·") == 1
    assert table.count("▣") == 1
    assert "…" not in said


def test_ten_holes_are_listed_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    every_other = dict.fromkeys(range(0, 24, 2), State.NONE)
    items = [
        *calendar(every_other, table="companies"),
        *calendar({4: State.NONE, 6: State.NONE}),
    ]
    print_holes(holes(items))
    lines = screen.lines()
    assert lines[0].split() == ["hole", "in", "from", "to"]
    assert len(lines) == 12
    assert lines[1].split() == ["companies", "2024-07-01", "00:00", "2024-08-01", "00:00"]
    assert lines[-1] == "… 4 more (companies 2, tickets 2); --json shows all"


def test_without_a_hole_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    print_holes(holes(calendar()))
    assert screen.lines() == ["no hole"]
