"""`python -m avesa_dagster_tests.soak [names…] [--quick]`"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avesa_dagster.errors import AvesaError
from avesa_dagster.sandbox.process import SimulatorError
from avesa_dagster_tests.soak import estimates, holes, kills, steer, tenants
from avesa_dagster_tests.soak.cloud import cloud
from avesa_dagster_tests.soak.verdicts import Failed, Outcome, Scene

_ALL: dict[str, Callable[[Scene], Outcome]] = {
    "kills": kills.prove,
    "tenants": tenants.prove,
    "holes": holes.prove,
    "steer": steer.prove,
    "estimate": estimates.prove,
}
_WIDTH = 130
_WORDS = {None: "", True: "[green]holds[/green]", False: "[red]FAILS[/red]"}


def main(argv: Sequence[str] | None = None) -> int:
    """Plays the scenarios one after another; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m avesa_dagster_tests.soak", description="Proofs on real processes."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_ALL)}")
    parser.add_argument("--quick", action="store_true", help="small: shows that it works")
    parser.add_argument("--keep", metavar="FOLDER", help="leave what they made in this folder")
    parser.add_argument(
        "--aws", action="store_true", help="on moto's server and Postgres, not in folders"
    )
    options = parser.parse_args(argv)
    unknown = sorted(set(options.names) - set(_ALL))
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(_ALL)}")
    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    began = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="avesa-soak-") as scratch,
        cloud() if options.aws else nullcontext(),
    ):
        for name in options.names or _ALL:
            folder = Path(options.keep or scratch, name)
            folder.mkdir(parents=True)
            say = partial(_say, console, began, name)
            try:
                outcomes[name] = _ALL[name](Scene(folder, options.quick, say))
            except (Failed, SimulatorError, AvesaError) as error:
                failed.append(f"{name}: {error}")
                say(f"failed: {error}")
    _print(console, outcomes)
    for text in failed:
        console.print(f"[red]failed:[/red] {escape(text)}")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"\n{time.monotonic() - began:.0f} s on {os.cpu_count()} cores; load average {load}"
    )
    holds = all(v.holds is not False for outcome in outcomes.values() for v in outcome.verdicts)
    return 0 if holds and not failed else 1


def _say(console: Console, began: float, name: str, text: str) -> None:
    now = f"{datetime.now():%H:%M:%S} {time.monotonic() - began:5.0f} s"
    console.print(f"[dim]{now}[/dim] {name}: {escape(text)}")


def _print(console: Console, outcomes: Mapping[str, Outcome]) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("", "found", "target", ""):
        table.add_column(column, overflow="fold")
    for outcome in outcomes.values():
        table.add_row(f"[bold]{escape(outcome.title)}[/bold]")
        for verdict in outcome.verdicts:
            table.add_row(
                f"  {escape(verdict.what)}",
                escape(verdict.figure),
                escape(verdict.target),
                _WORDS[verdict.holds],
            )
    console.print()
    console.print(table)
    for name, outcome in outcomes.items():
        for note in outcome.notes:
            console.print(f"[dim]{name}: {escape(note)}[/dim]")


if __name__ == "__main__":
    sys.exit(main())
