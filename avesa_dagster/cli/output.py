"""How commands speak: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

_NARROW = 4
"""So few columns are a table however wide they are."""

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def print_json(value: object) -> None:
    """One JSON document on standard output; times are ISO 8601 in UTC."""
    click.echo(json.dumps(value, indent=1, default=_plain, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table that fits its contents; what is too wide goes on in the next line."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def print_records(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows of a query: as a table, or, if that is too wide, a line a field."""
    cells = [[_cell(record[name]) for name in columns] for record in records]
    widths = [max(map(len, column)) + 2 for column in zip(columns, *cells, strict=True)]
    if sum(widths) <= console.width or len(columns) <= _NARROW:
        print_table(columns, [[record[name] for name in columns] for record in records])
        return
    longest = max(map(len, columns))
    for number, row in enumerate(cells, 1):
        console.print(f"[dim]─── {number} ───[/dim]")
        for name, text in zip(columns, row, strict=True):
            console.print(f"{name:<{longest}}  {text}", overflow="fold")


def _cell(value: object) -> str:
    if value is None:
        return "·"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("\n", " ").replace("[", "\\[")


def _plain(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)
