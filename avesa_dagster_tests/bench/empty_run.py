"""What a sync costs that finds nothing new."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.bench.measure import Bench, Part, Row, median


def measure(bench: Bench) -> Part:
    """Runs the benchmark."""
    home = str(bench.scratch / "empty_run")
    bare = str(bench.scratch / "bare_run")
    # Nothing changed in the last two hours: the overlap of two syncs is empty.
    past = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with Simulator(now=past) as simulator:
        simulator.control("clock", offset_seconds=0)
        first = bench.run("runs:prepare", home=home, credentials=simulator.credentials)
        bench.run("runs:bare", home=bare, steps=1)
        commands = []
        found = []
        steps = int(first.extra["steps"])
        for _ in range(bench.size(3, 1)):
            sync = bench.run("runs:sync", home=home)
            one = bench.run("runs:bare", home=bare, steps=1)
            many = bench.run("runs:bare", home=bare, steps=steps)
            found.append((sync, one, many))
            commands.append(
                bench.command(
                    "avesa sync", "avesa_dagster.cli.main", "sync", "acme", AVESA_HOME=home
                )
            )
    ours, alone, same = (median(item.wall for item in row) for row in zip(*found, strict=True))
    core = median(sync.cpu for sync, _, _ in found)
    return Part(
        "An empty run",
        [
            Row("avesa sync, the command", f"{median(commands):.2f} s"),
            Row(
                f"its run, {steps} assets",
                f"{ours:.2f} s",
                f"{same:.2f} s",
                f"{ours / same:.1f}x",
            ),
            Row("CPU of its run", f"{core:.2f} s"),
            Row("a bare Dagster run, 1 asset", "", f"{alone:.2f} s"),
        ],
        [
            "A sync of four tables that finds nothing new, on loopback: 4 raw, 4 canonical and 4 "
            "histories with their checks. The plain way: a Dagster run of as many assets that do "
            "nothing. Wall seconds; the command also starts Python and imports Dagster.",
        ],
    )
