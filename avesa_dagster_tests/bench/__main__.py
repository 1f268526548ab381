"""`python -m avesa_dagster_tests.bench [names…] [--quick]`"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from avesa_dagster.sandbox.process import SimulatorError
from avesa_dagster_tests.bench import (
    budget,
    empty_run,
    first_row,
    history,
    pages,
    services,
    state,
    versions,
)
from avesa_dagster_tests.bench.measure import Bench, Failed, Part

_ALL: dict[str, Callable[[Bench], Part]] = {
    "pages": pages.measure,
    "versions": versions.measure,
    "history": history.measure,
    "budget": budget.measure,
    "services": services.measure,
    "state": state.measure,
    "empty-run": empty_run.measure,
    "first-row": first_row.measure,
}
_WIDTH = 106
_COLUMNS = ("", "AVESA", "beside it", "ratio", "target", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; a missed target is said, and is no failure of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m avesa_dagster_tests.bench", description="AVESA's benchmarks."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_ALL)}")
    parser.add_argument("--quick", action="store_true", help="small, once: shows that it works")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.names) - set(_ALL))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(_ALL)}")
    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    console.print(_machine())
    began = time.monotonic()
    parts: dict[str, Part] = {}
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="avesa-bench-") as scratch,
        console.status("") as status,
    ):
        for name in options.names or _ALL:
            folder = Path(scratch, name)
            folder.mkdir()
            say = partial(_say, status, name)
            try:
                parts[name] = _ALL[name](Bench(folder, options.quick, say))
            except (Failed, SimulatorError) as error:
                failed.append(f"{name}: {error}")
    _print(console, parts, options.quick)
    for text in failed:
        console.print(f"[red]failed:[/red] {escape(text)}")
    console.print(f"\n{time.monotonic() - began:.0f} s; load average now {_load()}")
    return 1 if failed else 0


def _say(status: Status, name: str, text: str) -> None:
    status.update(f"{name}: {text}")


def _print(console: Console, parts: Mapping[str, Part], quick: bool) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for part in parts.values():
        table.add_row(f"[bold]{part.title}[/bold]")
        for row in part.rows:
            word = {None: "", True: "[green]pass[/green]", False: "[red]MISS[/red]"}[row.holds]
            word = "-" if quick and word else word
            table.add_row(
                f"  {row.what}",
                row.avesa,
                row.plain,
                row.ratio,
                row.target,
                word,
            )
    console.print(table)
    console.print()
    for name, part in parts.items():
        for note in part.notes:
            console.print(f"[dim]{name}: {note}[/dim]")
    console.print(
        "[dim]Medians; each measurement in a process of its own, cases of a comparison in turn. A "
        "rate per core is per CPU second. Memory is the process's peak, (+) of it above imports "
        "and generated input.[/dim]"
    )
    if quick:
        console.print("[dim]--quick: too small and too short to judge; no verdicts.[/dim]")


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, load average at start "
        f"{_load()}"
    )


def _load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
