"""The simulated services that `avesa demo` connects, and that `avesa dev` runs along with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from avesa_dagster.defs import processes
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster.sources.base import SECOND_FORMAT

TENANT = "acme"
_SEED = 7


@dataclass(frozen=True, slots=True)
class Staged:
    """One service of the demo.

    Attributes:
        port: Where it listens if nobody else does.
        limit: Requests a minute that it takes.
        sizes: Options of the simulator.
        changes: The service's own name of the table of which records change in the end.
    """

    service: str
    title: str
    port: int
    limit: int
    sizes: Mapping[str, float]
    changes: str


STAGED = {
    one.service: one
    for one in (
        Staged(
            "connectwise",
            "ConnectWise",
            8750,
            200,
            {"tickets": 20_000, "time_entries": 30_000, "companies": 500, "contacts": 2_000},
            "tickets",
        ),
        Staged(
            "servicenow",
            "ServiceNow",
            8751,
            200,
            {"incidents": 8_000, "time_cards": 6_000, "companies": 300, "users": 1_500, "years": 1},
            "incident",
        ),
        Staged(
            "salesforce",
            "Salesforce",
            8752,
            1_000,
            {"cases": 20_000, "accounts": 800, "contacts": 2_500, "years": 3},
            "Case",
        ),
    )
}
SERVICES = tuple(STAGED)


def notes(settings: Settings) -> Path:
    """What the demo remembers of itself: which world each service had."""
    return settings.home / "demo.json"


def keep_off_real_tenants(installation: Installation, services: Sequence[str]) -> None:
    """Raises ConfigurationError if the demo would connect a real tenant to a simulated service."""
    if notes(installation.settings).exists():
        return
    registry = installation.control.registry
    if any(registry.get(TENANT, service) is not None for service in services):
        raise ConfigurationError(
            f"{installation.settings.home} has a tenant {TENANT} of its own, which the demo would "
            "connect to a simulated service",
            hint="give the demo another folder: AVESA_HOME=… avesa demo (a demo's own folder "
            f"holds {notes(installation.settings).name})",
        )


@contextmanager
def simulators(
    settings: Settings, services: Sequence[str], sizes: Mapping[str, Mapping[str, float]]
) -> Iterator[dict[str, Simulator]]:
    """The services, each with the same world as the last time; at another address if its port is
    taken.

    Args:
        sizes: service -> what replaces its sizes, the first time.
    """
    held = _held(settings)
    worlds: dict[str, dict[str, float]] = held["worlds"]
    for service in services:
        worlds.setdefault(service, {**STAGED[service].sizes, **sizes.get(service, {})})
    settings.make_home()
    notes(settings).write_text(json.dumps(held, indent=1), "utf-8")
    with ExitStack() as stack:
        running = {}
        for service in services:
            one = STAGED[service]
            port = one.port if processes.is_free(one.port) else 0
            options = {**worlds[service], "now": held["now"], "seed": _SEED, "port": port}
            simulator = Simulator(service, requests_per_minute=one.limit, **options)
            running[service] = stack.enter_context(simulator)
            simulator.control("clock", offset_seconds=0)
        yield running


@contextmanager
def along(installation: Installation) -> Iterator[list[str]]:
    """Runs the services of a demo installation while it is open; yields their addresses."""
    if not notes(installation.settings).exists():
        yield []
        return
    services = [s for s in _held(installation.settings)["worlds"] if s in STAGED]
    with simulators(installation.settings, services, {}) as running:
        for service, simulator in running.items():
            connection = installation.control.registry.get(TENANT, service)
            if connection is not None and connection.enabled:  # its port may differ
                installation.secrets.put(TENANT, service, simulator.credentials)
        yield [simulator.url for simulator in running.values()]


def _held(settings: Settings) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(notes(settings).read_text("utf-8"))
    except FileNotFoundError:
        return {"now": datetime.now(UTC).strftime(SECOND_FORMAT), "worlds": {}}
    if "sizes" in held:  # a demo of an earlier version knew one service
        return {"now": held["now"], "worlds": {"connectwise": held["sizes"]}}
    return held
