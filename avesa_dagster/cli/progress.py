"""How jobs look in a terminal: a list, one job's progress, and a plan with its cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from avesa_dagster.backfill.estimate import Estimate
from avesa_dagster.backfill.progress import ends_at
from avesa_dagster.control.base import Chunk, ChunkState
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus, PieceState
from avesa_dagster.sources.base import Window

_MARKS = {
    ChunkState.COMPLETED: ("■", "green"),
    ChunkState.RUNNING: ("◧", "yellow"),
    ChunkState.FAILED: ("✗", "red"),
    ChunkState.PLANNED: ("·", "dim"),
}
_MOST = 5
"""Lines of chunks that are being fetched, and of errors."""
_FEWEST_SIGNS = 12


def print_jobs(console: Console, jobs: Sequence[Job]) -> None:
    """A line a job, and a line below it with what keeps it from going on or went wrong.

    Where a line is too long for the terminal, the range and the records stand in a second one.
    """
    wide = _listed(jobs, wide=True)
    if _width(wide) <= console.width:
        _print_listed(console, wide, [_about(job) for job in jobs])
    else:
        notes = [
            ", ".join(filter(None, (_range(job), _count(job.records, "record"), _about(job))))
            for job in jobs
        ]
        _print_listed(console, _listed(jobs, wide=False), notes)


def job_line(job: Job, chunks: Sequence[Chunk], now: datetime) -> str:
    """The job in one line, for a log."""
    ends = ends_at(job, chunks, now)
    told = f", ends about {_clock(ends, now)}" if ends and ends > now else ""
    note = f" ({job.note})" if job.note else ""
    return f"job {job.job_id}: {job.status.value}{note}, {_amounts(job)}{told}"


def drawn(job: Job, chunks: Sequence[Chunk], now: datetime, width: int) -> RenderableType:
    """The job as a picture: a bar, a row a table with a sign a chunk, and what is happening.

    Args:
        job: With what its chunks came to.
        width: Columns of the terminal.
    """
    first = Text.assemble(("job ", "dim"), (job.job_id, "bold"), f"  {job.tenant} {job.service}  ")
    first.append(job.status.value, "bold")
    if job.status is JobStatus.RUNNING and job.started_at:
        first.append(f" for {duration((now - job.started_at).total_seconds())}")
    parts: list[RenderableType] = [first]
    if job.note:
        parts.append(_indented(job.note))
    parts += [Text(_amounts(job)), _bar(job, chunks, now, width), _grid(job, chunks, width)]
    if job.status in UNFINISHED:
        parts += _happening(job, chunks, now)
    parts += [_error(job, place) for place in range(min(_MOST, len(job.errors)))]
    if len(job.errors) > _MOST:
        parts.append(_indented(f"… and {len(job.errors) - _MOST} more; --json shows them"))
    return Group(*parts)


def print_plan(console: Console, job: Job, estimate: Estimate, now: datetime) -> None:
    """What a job would do, a row a run, and what that costs."""
    shown = Table(
        title=f"{job.tenant} {job.service}: what a backfill would do",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    shown.add_column("run", justify="right")
    shown.add_column("tables")
    shown.add_column("partitions", no_wrap=True)
    for name in ("chunks", "records", "requests", "takes"):
        shown.add_column(name, justify="right", no_wrap=True)
    for planned in estimate.pieces:
        piece = planned.piece
        shown.add_row(
            str(piece.number + 1),
            ", ".join(piece.tables),
            piece.first if piece.first == piece.last else f"{piece.first} … {piece.last}",
            f"{len(planned.chunks):,}",
            f"{planned.records:,}",
            f"{planned.requests:,}",
            duration(planned.seconds),
        )
    console.print(shown)
    console.print()
    waits = f" after waiting {duration(estimate.wait)} for its turn" if estimate.wait else ""
    console.print(
        f"{_count(estimate.chunks, 'chunk')}, {_count(estimate.records, 'record')}, "
        f"{_count(estimate.requests, 'request')}: about {duration(estimate.seconds)}{waits}."
    )
    console.print(f"Started now, it would end about {_clock(estimate.ends_at(now), now)}.")
    spent = _count(estimate.asked, "request")
    console.print(Text(f"To find this out took {spent}. Nothing was started.", "dim"))


def duration(seconds: float) -> str:
    """Seconds in words, in two units at most: `14 s`, `2 min 20 s`, `3 h 5 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    for size, unit, part, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    if whole >= 120:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole} s"


def _listed(jobs: Sequence[Job], *, wide: bool) -> list[tuple[str, ...]]:
    """Header and rows."""
    header = ["job", "tenant", "service", "status", "chunks"]
    rows = [[j.job_id, j.tenant, j.service, j.status.value, _chunks(j)] for j in jobs]
    if wide:
        header += ["from", "to", "records"]
        for row, job in zip(rows, jobs, strict=True):
            row += [f"{job.start:%Y-%m-%d}", f"{job.end:%Y-%m-%d}", f"{job.records:,}"]
    return [tuple(header), *map(tuple, rows)]


def _width(lines: Sequence[tuple[str, ...]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) - 2


def _print_listed(console: Console, lines: Sequence[tuple[str, ...]], notes: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {"records"}
    for place, line in enumerate(lines):
        cells = [
            f"{cell:>{width}}" if name in right else f"{cell:<{width}}"
            for name, cell, width in zip(lines[0], line, widths, strict=True)
        ]
        # An id that is broken into two lines cannot be copied.
        console.print(Text("  ".join(cells).rstrip(), "bold" if place == 0 else ""), soft_wrap=True)
        if place and notes[place - 1]:
            console.print(_indented(notes[place - 1], "dim"))


def _about(job: Job) -> str:
    return job.note or (job.errors[0].text if job.errors else "")


def _range(job: Job) -> str:
    return f"{job.start:%Y-%m-%d} … {job.end:%Y-%m-%d}"


def _chunks(job: Job, unit: str = "") -> str:
    failed = f", {job.failed_chunks:,} failed" if job.failed_chunks else ""
    return f"{job.completed_chunks:,} of {job.total_chunks:,}{unit}{failed}"


def _amounts(job: Job) -> str:
    records, requests = _count(job.records, "record"), _count(job.requests, "request")
    return f"{_chunks(job, ' chunks')}, {records}, {requests}"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def _bar(job: Job, chunks: Sequence[Chunk], now: datetime, width: int) -> RenderableType:
    share = 100 * job.completed_chunks / max(1, job.total_chunks)
    told = f"{int(share)} %"
    ends = ends_at(job, chunks, now)
    if ends is not None and ends <= now:
        told += "  about to end"
    elif ends is not None:
        told += f"  ends about {_clock(ends, now)}, in {duration((ends - now).total_seconds())}"
    elif job.started_at and job.completed_at:
        told += f"  took {duration((job.completed_at - job.started_at).total_seconds())}"
    bar = Table.grid(padding=(0, 1))
    length = max(10, min(40, width - len(told) - 2))
    bar.add_row(ProgressBar(total=100, completed=share, width=length), Text(told))
    return bar


def _grid(job: Job, chunks: Sequence[Chunk], width: int) -> RenderableType:
    own = {table: [chunk for chunk in chunks if chunk.table == table] for table in job.tables}
    rows = []
    for held in own.values():
        done = sum(chunk.state is ChunkState.COMPLETED for chunk in held)
        rows.append(
            (
                f"{done:,} of {len(held):,}" if held else "not planned yet",
                f"{sum(chunk.rows for chunk in held):,}",
                f"{sum(chunk.requests for chunk in held):,}",
            )
        )
    columns = zip(("chunks", "records", "requests"), *rows, strict=True)
    taken = sum(max(map(len, column)) + 2 for column in columns) + max(map(len, own), default=0)
    room = max(_FEWEST_SIGNS, width - taken - 2)
    each = max(1, *(-(-len(held) // room) for held in own.values()), 1)
    grid = Table(box=None, header_style="bold", pad_edge=False)
    grid.add_column("table", no_wrap=True)
    grid.add_column("newest … oldest" if room >= 15 else "", no_wrap=True)
    for name in ("chunks", "records", "requests"):
        grid.add_column(name, justify="right", no_wrap=True)
    for (table, held), row in zip(own.items(), rows, strict=True):
        grid.add_row(table, _signs(held, each), *row)
    if each == 1:
        return grid
    return Group(grid, Text(f"a sign is {each} chunks, and shows the worst of them", "dim"))


def _signs(chunks: Sequence[Chunk], each: int) -> Text:
    """A sign for each so many chunks: that of the one that lacks most."""
    order = [ChunkState.FAILED, ChunkState.RUNNING, ChunkState.PLANNED, ChunkState.COMPLETED]
    signs = Text()
    for begin in range(0, len(chunks), each):
        signs.append(*_MARKS[min((c.state for c in chunks[begin : begin + each]), key=order.index)])
    return signs


def _happening(job: Job, chunks: Sequence[Chunk], now: datetime) -> Iterator[RenderableType]:
    running = [chunk for chunk in chunks if chunk.state is ChunkState.RUNNING]
    for chunk in running[:_MOST]:
        since = (now - chunk.started_at).total_seconds() if chunk.started_at else 0.0
        window = Window(chunk.start, chunk.end)
        yield _indented(f"{chunk.table} {window}: fetching for {duration(since)}")
    if len(running) > _MOST:
        yield _indented(f"… and {len(running) - _MOST} more")
    waiting = sum(piece.state is PieceState.WAITING for piece in job.pieces)
    if waiting:
        yield _indented(f"{waiting} of {_count(len(job.pieces), 'run')} still to come", "dim")


def _error(job: Job, place: int) -> RenderableType:
    error = job.errors[place]
    whose = " ".join(filter(None, (error.table, error.window)))
    text = Text.assemble(("✗ ", "red"), (f"{whose}: " if whose else "") + _line(error.text))
    return Padding(text, (0, 0, 0, 2))


def _indented(text: str, style: str = "") -> RenderableType:
    return Padding(Text(_line(text), style), (0, 0, 0, 2))


def _line(text: str) -> str:
    return " ".join(text.split())


def _clock(moment: datetime, now: datetime) -> str:
    """A time of the near future; with its day unless that is today."""
    return (
        f"{moment:%H:%M:%S} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M} UTC"
    )
