"""Measuring: a stopwatch for CPU, wall and memory, fresh processes, medians, and rows of a table.

The process that starts the measured ones must stay small, so nothing heavy is imported here: Linux
counts the memory of the one that starts a process as that process's first peak.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MEGABYTE = 1_000_000


class Failed(Exception):
    """A measurement did not come to its end."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement came to.

    Attributes:
        count: How many records, rows or runs were worked on.
        wall: Seconds.
        cpu: CPU seconds of the process, all of its threads and the kernel for it.
        base: Peak memory in bytes before the measured part: imports and generated input.
        peak: Peak memory in bytes after it.
        extra: What else is worth a row.
    """

    count: int
    wall: float
    cpu: float
    base: int
    peak: int
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def per_core(self) -> float:
        """Count a CPU second."""
        return self.count / self.cpu

    @property
    def per_second(self) -> float:
        """Count a second of wall time."""
        return self.count / self.wall


class Meter:
    """Adds up what its blocks take; what runs outside of them is not counted.

    Example:
        meter = Meter()
        for page in generated():
            with meter:
                decode(page)
        return meter.measured(count)
    """

    def __init__(self) -> None:
        gc.collect()
        self._base = _peak()
        self._wall = self._cpu = 0.0
        self._began = (0.0, 0.0)

    def __enter__(self) -> Self:
        self._began = (time.perf_counter(), _cpu())
        return self

    def __exit__(self, *error: object) -> None:
        wall, cpu = self._began
        self._wall += time.perf_counter() - wall
        self._cpu += _cpu() - cpu

    def measured(self, count: int, **extra: float) -> Measured:
        """What the blocks took so far, for so many records."""
        return Measured(count, self._wall, self._cpu, self._base, _peak(), extra)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        what: What was measured.
        avesa: Our figure.
        plain: The same work done the plain way, where there is one.
        ratio: How much better ours is, or the ratio that is the figure itself.
        target: What it must hold; empty if it need hold nothing.
        holds: Whether it does; None without a target.
    """

    what: str
    avesa: str
    plain: str = ""
    ratio: str = ""
    target: str = ""
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark's part of the table, and what has to be known to read it."""

    title: str
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a benchmark gets: where to write, how large to be, and how to say where it is."""

    scratch: Path
    quick: bool
    say: Callable[[str], None]

    def size(self, full: int, quick: int) -> int:
        """One of both sizes."""
        return quick if self.quick else full

    def run(self, target: str, **arguments: object) -> Measured:
        """Measures `work/{module}:{function}` in a fresh process.

        Raises:
            Failed: With the end of what it said.
        """
        with tempfile.NamedTemporaryFile(dir=self.scratch, suffix=".json") as answer:
            child = f"{__package__}.child"
            self.command(target, child, target, json.dumps(arguments), answer.name)
            return Measured(**json.loads(Path(answer.name).read_text("utf-8")))

    def command(self, name: str, module: str, *arguments: str, **variables: str) -> float:
        """Runs a Python module as a command; returns its wall seconds, its start among them.

        Args:
            name: Says what is being done.
            module: The module.
            arguments: Its arguments.
            variables: Of its environment, besides ours.

        Raises:
            Failed: With the end of what it said.
        """
        self.say(name)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**_environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
        )
        if done.returncode:
            raise Failed(f"{name}: exit code {done.returncode}\n{done.stdout[-2_000:]}")
        return time.perf_counter() - began

    def interleaved(
        self, rounds: int, cases: dict[str, tuple[str, dict[str, object]]]
    ) -> dict[str, list[Measured]]:
        """Measures every case once a round, side by side, so that noise meets all alike."""
        found: dict[str, list[Measured]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (target, arguments) in cases.items():
                found[name].append(self.run(target, **arguments))
        return found


def _environment() -> dict[str, str]:
    """The environment of a measured process: no installation of this machine is met."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AVESA_")}
    return {**kept, "PYTHONWARNINGS": "ignore"}


def median(values: Iterable[float]) -> float:
    """The middle of the values."""
    return statistics.median(values)


def per_core(found: Iterable[Measured]) -> float:
    """Median of the counts a CPU second."""
    return median(item.per_core for item in found)


def per_second(found: Iterable[Measured]) -> float:
    """Median of the counts a second."""
    return median(item.per_second for item in found)


def memory(found: Iterable[Measured]) -> str:
    """Median peak, and how much of it came on top of the base: `312 MB (+190)`."""
    listed = list(found)
    peak = median(item.peak for item in listed)
    above = median(item.peak - item.base for item in listed)
    return f"{peak / MEGABYTE:,.0f} MB (+{above / MEGABYTE:,.0f})"


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
