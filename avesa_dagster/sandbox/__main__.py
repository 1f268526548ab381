"""`python -m avesa_dagster.sandbox connectwise --port 0 --seed 7 --tickets 20000 …`

Prints one line of JSON, `{"url", "credentials", "control_token"}`, once it is listening, then runs
until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from avesa_dagster.sandbox.command import declare
from avesa_dagster.sandbox.connectwise import serve
from avesa_dagster.sandbox.world import WorldSpec

_PARENT_CHECK_SECONDS = 0.5
_SERVICES = ("connectwise", "servicenow", "salesforce")
_OTHERS = _SERVICES[1:]
"""Those in a package of their own, with a `command` that has `add_to`."""


def _parser(asked: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="avesa simulate", description=__doc__)
    services = parser.add_subparsers(dest="service", required=True)
    declare(
        services,
        "connectwise",
        "a ConnectWise PSA service",
        serve,
        WorldSpec,
        limit="per credential",
    )
    for name in _OTHERS:
        if asked in (None, name):  # the others need not be loaded
            importlib.import_module(f"avesa_dagster.sandbox.{name}.command").add_to(services)
    return parser


def _stop(signal_number: int, frame: FrameType | None) -> None:
    os._exit(0)  # nothing to save, and connection threads may be asleep in a slow answer


def _announce(line: str) -> None:
    gc.collect()
    gc.freeze()
    print(line, flush=True)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulated service; returns only by way of a signal."""
    parent = os.getppid()
    arguments = sys.argv[1:] if argv is None else list(argv)
    asked = arguments[0] if arguments and arguments[0] in _SERVICES else None
    options = _parser(asked).parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if options.exit_with_parent:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    options.run(options, _announce)
    return 0


if __name__ == "__main__":
    sys.exit(main())
