"""An extraction in a process of its own: to be killed, or to see how much memory it takes.

    python -m avesa_dagster.conformance.child HOME MAPPINGS SERVICE TABLE TOKEN NOW OPTIONS

Says `ready` when it begins, and in the end `done` and its largest resident memory in bytes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from avesa_dagster.catalog import grain
from avesa_dagster.conformance.bench import HASTY, TENANT, Bench, SharedClock, segments_of, tailored
from avesa_dagster.conformance.ground import settings_at
from avesa_dagster.extract.request import Mode, Request
from avesa_dagster.installation import Installation


def start(
    bench: Bench, token: str, *, segment_rows: int | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Backfills the bench's table in another process, which has just begun with it.

    Args:
        segment_rows: Rows of a segment; None: as always.
        options: Of `tailored`.
    """
    place = [str(bench.home), str(bench.enrolment.folder), bench.service, bench.table]
    how = json.dumps({"segment_rows": segment_rows, **options})
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *place, token, bench.clock().isoformat(), how],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], 60)
    said = process.stdout.readline() if readable else ""
    if said != "ready\n":
        process.kill()
        raise AssertionError(f"the process that extracts did not begin; it said {said!r}")
    return process


def ended(process: subprocess.Popen[str], within: float = 60) -> int | None:
    """Its largest memory in bytes; None: it was killed."""
    out, _ = process.communicate(timeout=within)
    if process.returncode < 0:
        return None
    assert process.returncode == 0, f"it ended with {process.returncode}; it said {out!r}"
    return int(out.split()[-1])


def main(
    home: str, mappings: str, service: str, table: str, token: str, now: str, how: str
) -> None:
    """Backfills a table of the tenant that is connected there."""
    clock = SharedClock(datetime.fromisoformat(now))
    installation = Installation(settings_at(Path(home), Path(mappings)), clock, HASTY)
    options = json.loads(how)
    rows = options.pop("segment_rows")
    installation.__dict__["catalog"] = tailored(installation.catalog, service, **options)
    connection = installation.control.registry.get(TENANT, service)
    assert connection is not None
    settings = installation.catalog.settings(TENANT, service)
    partitions = tuple(grain.partitions(settings.partitions, connection.history_start, clock()))
    request = Request(TENANT, service, table, partitions, Mode.BACKFILL, token, "conformance")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with nullcontext() if rows is None else segments_of(rows):
        installation.extractor.extract(request, lambda progress: None, lambda: False)
    sys.stdout.write(f"done {_peak_memory()}\n")


def _peak_memory() -> int:
    """This program's, in bytes; `getrusage` would tell of the process that started it, too."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
