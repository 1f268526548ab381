"""The subcommand `salesforce` of `python -m avesa_dagster.sandbox`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields

from avesa_dagster.sandbox.salesforce.oauth import GRANTS
from avesa_dagster.sandbox.salesforce.org import OrgSpec
from avesa_dagster.sandbox.salesforce.service import serve
from avesa_dagster.sandbox.timestamps import seconds


def add_to(services: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its options."""
    parser = services.add_parser("salesforce", help="a Salesforce org")
    parser.set_defaults(run=run)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=1)
    for size in fields(OrgSpec):
        kind = float if size.name == "years" else int
        parser.add_argument("--" + size.name.replace("_", "-"), type=kind, default=size.default)
    parser.add_argument("--now", type=seconds, help="the clock at the start, ISO 8601")
    parser.add_argument("--requests-per-minute", type=int, help="per app; none: no limit")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--grant", choices=GRANTS, default=GRANTS[0], help="the credentials given")
    parser.add_argument("--exit-with-parent", action="store_true")


def run(options: argparse.Namespace, ready: Callable[[str], None]) -> None:
    """Serve until the process ends."""
    serve(
        options.port,
        host=options.host,
        seed=options.seed,
        spec=OrgSpec(**{size.name: getattr(options, size.name) for size in fields(OrgSpec)}),
        now=options.now,
        limit_per_minute=options.requests_per_minute,
        latency_ms=options.latency_ms,
        grant=options.grant,
        ready=ready,
    )
