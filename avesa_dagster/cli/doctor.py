"""`avesa doctor`: is this installation as it should be, and if not, what is to be done?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from avesa_dagster.cli.output import as_json_option, console, print_json
from avesa_dagster.doctor.findings import Check, Finding, Level, Looked, counts, look_through
from avesa_dagster.installation import Installation

_MARKS = {
    Level.WELL: ("✓", "green"),
    Level.WARNING: ("!", "yellow"),
    Level.PROBLEM: ("✗", "red"),
    Level.SKIPPED: ("–", "dim"),
}


@click.command(
    epilog="""\b
Examples:
  avesa doctor
  avesa doctor --probe
  avesa doctor --json | jq '.checks[] | select(.level == "problem")'
"""
)
@click.option("--probe", is_flag=True, help="Ask each connected service once, within its budget.")
@as_json_option
def doctor(probe: bool, as_json: bool) -> None:
    """Check this installation end to end, and say of each finding what to do.

    It changes nothing that lasts. Without --probe the connected services are not asked: only
    whether their hosts take a connection.

    Exit code 0: no problem; warnings do not count. 1: at least one problem.
    """
    began = time.monotonic()
    looked = list(_looked(probe, Console(stderr=True, quiet=as_json), as_json))
    seconds = time.monotonic() - began
    number = counts(looked)
    if as_json:
        print_json(_described(looked, seconds))
    else:
        _say_sum(number, len(looked), seconds)
    if number[Level.PROBLEM]:
        raise click.exceptions.Exit(1)


def _looked(probe: bool, talk: Console, as_json: bool) -> list[Looked]:
    """Looks at everything, and prints each check as it is done."""
    from avesa_dagster.doctor.checkup import Checkup  # asks AWS: not loaded before

    checkup = Checkup(Installation.from_environment, probe=probe)
    looked: list[Looked] = []
    with talk.status("looking …") as status:

        def begin(check: Check) -> None:
            status.update(f"looking at: {check.title}")

        def all_of(checks: Sequence[Check]) -> None:
            for one in look_through(checks, begin, looked):
                looked.append(one)
                if not as_json:
                    _say(one)

        all_of(checkup.first())
        if checkup.opened is None:
            return looked
        all_of(checkup.then())
        # Dagster takes a second to import; what needs none of it is told before.
        status.update("looking at: Dagster")
        from avesa_dagster.definitions import build
        from avesa_dagster.defs.health import DagsterHealth

        def enabled() -> int:
            return len(checkup.tenants.enabled)

        with DagsterHealth(checkup.settings, build, enabled) as dagster:
            all_of(dagster.checks())
    return looked


def _say(one: Looked) -> None:
    mark, style = _MARKS[one.level]
    line = Text.assemble((f"{mark} ", style), (one.check.title, "bold"))
    if one.lacking:
        line.append(f"  not looked at: it needs {', '.join(one.lacking)}", "dim")
    good = [finding for finding in one.findings if finding.level is Level.WELL]
    if good:
        line.append(f"  {'; '.join(_told(finding) for finding in good)}", "dim")
    console.print(line)
    for finding in one.findings:
        if finding.level is not Level.WELL:
            _say_finding(finding)


def _say_finding(finding: Finding) -> None:
    mark, style = _MARKS[finding.level]
    console.print(Text.assemble((f"    {mark} ", style), _told(finding)), soft_wrap=True)
    if finding.todo:
        console.print(Text.assemble(("      → ", style), _line(finding.todo)), soft_wrap=True)


def _told(finding: Finding) -> str:
    what = _line(finding.what)
    return f"{finding.where}: {what}" if finding.where else what


def _say_sum(number: Any, checks: int, seconds: float) -> None:
    problems, warnings, skipped = (
        number[Level.PROBLEM],
        number[Level.WARNING],
        number[Level.SKIPPED],
    )
    parts = [
        _count(problems, "problem") if problems else "no problem",
        *([_count(warnings, "warning")] if warnings else []),
        *([f"{_count(skipped, 'check')} not done"] if skipped else []),
    ]
    style = "red" if problems else "yellow" if warnings else "green"
    console.print()
    console.print(
        Text.assemble(
            (", ".join(parts).capitalize(), f"bold {style}"),
            (f"  ({checks} checks in {seconds:.1f} s)", "dim"),
        )
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _line(text: str) -> str:
    return " ".join(text.split())


def _described(looked: Sequence[Looked], seconds: float) -> dict[str, Any]:
    """For scripts."""
    number = counts(looked)
    return {
        "well": not number[Level.PROBLEM],
        "problems": number[Level.PROBLEM],
        "warnings": number[Level.WARNING],
        "seconds": round(seconds, 2),
        "checks": [
            {
                "name": one.check.name,
                "title": one.check.title,
                "level": one.level.value,
                "seconds": round(one.seconds, 2),
                "not_looked_at_for": list(one.lacking),
                "findings": [
                    {
                        "level": finding.level.value,
                        "what": finding.what,
                        "where": finding.where,
                        "todo": finding.todo,
                    }
                    for finding in one.findings
                ],
            }
            for one in looked
        ],
    }
