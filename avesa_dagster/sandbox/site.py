"""One ConnectWise site: the companies that live on it, their keys, its clock and its codebase."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from avesa_dagster.sandbox.fetched import Fetched
from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.outages import Outages
from avesa_dagster.sandbox.rotation import Rotation
from avesa_dagster.sandbox.table import Table
from avesa_dagster.sandbox.timestamps import Clock
from avesa_dagster.sandbox.traffic import Traffic
from avesa_dagster.sandbox.world import World, WorldSpec

FIRST_CODEBASE = "v2025_1/"
DEFAULT_COMPANY = "acme_msp"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass
class Instance:
    """One company's instance of the service: its keys and its records, behind one lock.

    `hostility` and `latency_seconds` are its own; None is as on the rest of the site.
    """

    company_id: str
    world: World
    revoked: bool = False
    hostility: Hostility | None = None
    latency_seconds: float | None = None
    rotation: Rotation = field(default_factory=Rotation)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def public_key(self) -> str:
        return _digest(f"public:{self.company_id}", 16)

    @property
    def private_key(self) -> str:
        return self.private_keys[0]

    @property
    def private_keys(self) -> list[str]:
        """Those that are good, the newest first."""
        seeds = self.rotation.seeds(f"private:{self.company_id}")
        return [_digest(seed, 16) for seed in seeds]

    @property
    def client_id(self) -> str:
        text = _digest(f"client:{self.company_id}", 32)
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def credentials(self, base_url: str) -> dict[str, str]:
        """What the owner of this company would type into a connector."""
        return {
            "api_base_url": base_url,
            "company_id": self.company_id,
            "public_key": self.public_key,
            "private_key": self.private_key,
            "client_id": self.client_id,
        }


class Site:
    """Everything that the HTTP service and the control endpoints share."""

    def __init__(
        self, seed: int, spec: WorldSpec, now: float | None, limit_per_minute: int | None
    ) -> None:
        self.url = ""
        self.traffic = Traffic(limit_per_minute)
        self.fetched = Fetched()
        self.outages = Outages()
        self.latency_seconds = 0.0
        self.rebuild(seed, spec, now)

    def rebuild(self, seed: int, spec: WorldSpec, now: float | None) -> None:
        """Start afresh with one company, well behaved."""
        self.clock = Clock(now)
        self.hostility = Hostility()
        self.outages.heal(None, None, None)
        self.codebase = FIRST_CODEBASE
        self.mutations_frozen = False
        self.instances: dict[str, Instance] = {}
        self.add(DEFAULT_COMPANY, seed, spec)

    def add(self, company_id: str, seed: int, spec: WorldSpec) -> Instance:
        """Bring another company onto the site, with keys and records of its own."""
        instance = Instance(company_id, World(seed, spec, self.clock.now()))
        self.instances[company_id] = instance
        return instance

    def hostility_to(self, instance: Instance | None) -> Hostility:
        """The script in force for a company's requests; None is a caller of no known company."""
        own = None if instance is None else instance.hostility
        return self.hostility if own is None else own

    def latency_of(self, instance: Instance | None) -> float:
        """Seconds that every answer to a company takes."""
        own = None if instance is None else instance.latency_seconds
        return self.latency_seconds if own is None else own

    def upgrade(self, to: str | None = None) -> None:
        """Move to another codebase: the old path is gone at once."""
        if to is None:
            year, _, part = self.codebase.strip("v/").partition("_")
            to = f"v{year}_{int(part) + 1}/" if part.isdigit() else "v2026_1/"
        self.codebase = to

    def restricted(self, instance: Instance, table: str, id: int) -> bool:
        """Whether the permission loss in force hides this row."""
        standing = self.hostility_to(instance).standing
        if standing.restricted_share <= 0:
            return False
        if standing.restricted_tables is not None and table not in standing.restricted_tables:
            return False
        mixed = zlib.crc32(f"{instance.world.seed}:{table}:{id}".encode())
        return mixed / 2**32 < standing.restricted_share

    def permitted(self, instance: Instance, table: str, ids: Sequence[int]) -> Sequence[int]:
        """The ids that lists and counts may show."""
        if self.hostility_to(instance).standing.restricted_share <= 0:
            return ids
        return [id for id in ids if not self.restricted(instance, table, id)]

    def mutate(
        self, instance: Instance, table: str, ids: Iterable[int], at: int | None = None
    ) -> list[int]:
        """Change records as of `at` (default: the simulator's now), some of them visible late."""
        now = self.clock.now()
        moment = int(now) if at is None else at
        late, prompt = self._split(instance, ids)
        visible_at = now + self.hostility_to(instance).standing.late_seconds
        changed = instance.world.mutate(table, prompt, moment)
        return changed + instance.world.mutate(table, late, moment, visible_at)

    def create(
        self, instance: Instance, table: str, count: int, at: int | None = None
    ) -> list[int]:
        """Enter records as of `at` (default: the simulator's now), some of them visible late."""
        now = self.clock.now()
        moment = int(now) if at is None else at
        late, prompt = self._split(instance, range(count))
        visible_at = now + self.hostility_to(instance).standing.late_seconds
        made = instance.world.create(table, len(prompt), moment)
        return made + instance.world.create(table, len(late), moment, visible_at)

    def disturb(self, instance: Instance, table: Table, matching: Sequence[int]) -> None:
        """What happens in the business between one page and the next."""
        standing, world = self.hostility_to(instance).standing, instance.world
        if self.mutations_frozen:
            return
        if standing.mutate_per_request:
            chosen = world.some(table.name, standing.mutate_per_request, matching)
            self.mutate(instance, table.name, chosen)
        if standing.delete_per_request:
            alive = [id for id in matching if table.records[id].live]
            chosen = world.some(table.name, standing.delete_per_request, alive)
            world.delete(table.name, chosen, int(self.clock.now()))
        if standing.create_per_request:
            self.create(instance, table.name, standing.create_per_request)

    def _split(self, instance: Instance, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """(late, prompt): which of these changes the late-visibility in force delays."""
        hostility = self.hostility_to(instance)
        standing = hostility.standing
        late: list[int] = []
        prompt: list[int] = []
        for id in ids:
            delayed = standing.late_seconds > 0 and hostility.chance() < standing.late_share
            (late if delayed else prompt).append(id)
        return late, prompt
