"""What the subcommands of `python -m avesa_dagster.sandbox` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from avesa_dagster.sandbox.timestamps import seconds

Services: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def declare(
    services: Services,
    name: str,
    about: str,
    serve: Callable[..., None],
    world: Any,
    *,
    limit: str,
    grants: Sequence[str] = (),
    grant: str | None = None,
) -> None:
    """Declares a subcommand: parsed options have `run(ready)`, which serves until the process ends.

    Args:
        about: One line of help.
        serve: Takes the port, and the options by their names.
        world: The dataclass of its sizes, each an option.
        limit: Whom the limit of requests counts.
        grants: Kinds of credentials that can be announced; `grant` is the usual one.
    """
    parser = services.add_parser(name, help=about)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=1)
    for size in fields(world):
        kind = float if size.name == "years" else int
        parser.add_argument("--" + size.name.replace("_", "-"), type=kind, default=size.default)
    parser.add_argument("--now", type=seconds, help="the clock at the start, ISO 8601")
    parser.add_argument("--requests-per-minute", type=int, help=f"{limit}; none: no limit")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    if grants:
        parser.add_argument("--grant", choices=grants, default=grant, help="the credentials given")
    parser.add_argument("--exit-with-parent", action="store_true")

    def run(options: argparse.Namespace, ready: Callable[[str], None]) -> None:
        own = {"grant": options.grant} if grants else {}
        serve(
            options.port,
            host=options.host,
            seed=options.seed,
            world=world(**{size.name: getattr(options, size.name) for size in fields(world)}),
            now=options.now,
            limit_per_minute=options.requests_per_minute,
            latency_ms=options.latency_ms,
            ready=ready,
            **own,
        )

    parser.set_defaults(run=run)
