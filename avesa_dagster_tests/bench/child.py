"""One measurement in a fresh process: `python -m avesa_dagster_tests.bench.child`.

Arguments: a function below `work/` as `module:function`, its keyword arguments as JSON, and the
file that its answer is written to, as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from avesa_dagster_tests.bench.measure import Measured


def main(target: str, arguments: str, answer: str) -> None:
    """Calls the function and writes what it measured."""
    module, _, name = target.partition(":")
    work = importlib.import_module(f"{__package__}.work.{module}")
    measured: Measured = getattr(work, name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(asdict(measured)), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
