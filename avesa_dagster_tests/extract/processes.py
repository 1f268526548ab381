"""Real processes that extract, forked from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
from datetime import datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from avesa_dagster.conformance.ground import settings_at
from avesa_dagster.errors import AvesaError
from avesa_dagster.extract.request import Request
from avesa_dagster.installation import Installation

from .support import HASTY, MAPPINGS, SharedClock, catalog, small_segments

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])


def start(
    home: Path, now: datetime, requests: list[Request], *, segment_rows: int = 20
) -> tuple[BaseProcess, Connection]:
    """Starts a process that runs the requests one after another.

    Returns the process, and what it sends: "ready", then "done" or what the error said.
    """
    ours, theirs = _server.Pipe(duplex=False)
    process = _server.Process(target=_extract, args=(theirs, home, now, requests, segment_rows))
    process.start()
    theirs.close()
    assert ours.poll(60), "no process"
    assert ours.recv() == "ready"
    return process, ours


def ended(process: BaseProcess, said: Connection) -> str:
    """Waits for the end and returns what the process said last; "killed" if it said nothing."""
    process.join(60)
    try:
        return str(said.recv()) if said.poll() else "killed"
    except EOFError:
        return "killed"


def _extract(
    said: Connection, home: Path, now: datetime, requests: list[Request], segment_rows: int
) -> None:
    import stamina.instrumentation

    stamina.instrumentation.set_on_retry_hooks([])
    small_segments(segment_rows)
    installation = Installation(settings_at(home, MAPPINGS), SharedClock(now), HASTY)
    installation.__dict__["catalog"] = catalog(chunk_days=10, max_deleted_share=1.0, parallel=2)
    extractor = installation.extractor
    said.send("ready")
    try:
        for request in requests:
            extractor.extract(request, lambda progress: None, lambda: False)
    except AvesaError as error:
        said.send(f"{type(error).__name__}: {error}")
    else:
        said.send("done")
