"""The instances that the simulator runs, and what they share: clock, statistics, hostility."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from avesa_dagster.sandbox.fetched import Fetched
from avesa_dagster.sandbox.outages import Outages
from avesa_dagster.sandbox.rotation import Rotation
from avesa_dagster.sandbox.servicenow.auth import (
    CLIENT_CREDENTIALS,
    NO_PASSWORD_GRANT,
    Keys,
    Tokens,
)
from avesa_dagster.sandbox.servicenow.content import HELD
from avesa_dagster.sandbox.servicenow.rates import Rules
from avesa_dagster.sandbox.servicenow.schema import lineage
from avesa_dagster.sandbox.servicenow.script import Script
from avesa_dagster.sandbox.servicenow.stamps import Zone
from avesa_dagster.sandbox.servicenow.world import World, WorldSpec
from avesa_dagster.sandbox.site import DEFAULT_COMPANY
from avesa_dagster.sandbox.timestamps import Clock
from avesa_dagster.sandbox.traffic import Traffic

RETURNS_NO_ROWS = "glide.invalid_query.returns_no_rows"
DEFAULT_PROPERTIES = {
    RETURNS_NO_ROWS: "false",
    NO_PASSWORD_GRANT: "false",
    CLIENT_CREDENTIALS: "false",
}
DEFAULT_ZONE = "America/Los_Angeles"
GRANTS = ("basic", "password", "client_credentials")


@dataclass
class Instance:
    """One company's instance: its users, settings and records, behind one lock.

    Attributes:
        url: where it listens.
        script, latency_seconds: its own; None is as on the rest of the site.
        unreadable: tables that the user may not read: "denied" (403) or "empty" (every row is
            hidden by ACL, nothing is said).
        absent: tables whose plugin is not installed.
    """

    company_id: str
    world: World
    url: str = ""
    revoked: bool = False
    hibernating: bool = False
    script: Script | None = None
    latency_seconds: float | None = None
    rotation: Rotation = field(default_factory=Rotation)
    properties: dict[str, str] = field(default_factory=DEFAULT_PROPERTIES.copy)
    zone: Zone = field(default_factory=lambda: Zone(DEFAULT_ZONE))
    unreadable: dict[str, str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    rules: Rules = field(default_factory=Rules)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.tokens = Tokens(Keys.of(self.company_id))

    @property
    def keys(self) -> Keys:
        return self.good_keys[0]

    @property
    def good_keys(self) -> list[Keys]:
        """With each password that is good, the newest first; OAuth goes on with the first one."""
        seeds = self.rotation.seeds(f"password:{self.company_id}")
        return [Keys.of(self.company_id, seed) for seed in seeds]

    def credentials(self, grant: str = "basic") -> dict[str, str]:
        """What the owner of this instance would type into a connector, for one of `GRANTS`."""
        keys = self.keys
        user = {"username": keys.username, "password": keys.password}
        client = {"client_id": keys.client_id, "client_secret": keys.client_secret}
        chosen = {"basic": user, "password": client | user, "client_credentials": client}
        return {"instance_url": self.url} | chosen[grant]


class Site:
    """Everything that the HTTP service and the control endpoints share.

    `connect` makes an instance listen; it sets the instance's url.
    """

    def __init__(
        self,
        seed: int,
        spec: WorldSpec,
        now: float | None,
        limit_per_minute: int | None,
        grant: str,
        connect: Callable[[Instance], None],
    ) -> None:
        self.traffic = Traffic(limit_per_minute)
        self.fetched = Fetched()
        self.outages = Outages()
        self.grant = grant
        self.latency_seconds = 0.0
        self._connect = connect
        self.instances: dict[str, Instance] = {}
        self.rebuild(seed, spec, now)

    def rebuild(self, seed: int, spec: WorldSpec, now: float | None) -> None:
        """Start afresh with one company, well behaved."""
        self.clock = Clock(now)
        self.script = Script()
        self.outages.heal(None, None, None)
        self.mutations_frozen = False
        self.instances.clear()
        self.add(DEFAULT_COMPANY, seed, spec)

    def add(self, company_id: str, seed: int, spec: WorldSpec) -> Instance:
        """Bring in another company, with an instance, users and records of its own."""
        instance = Instance(company_id, World(seed, spec, self.clock.now()))
        if self.grant == "client_credentials":
            instance.properties[CLIENT_CREDENTIALS] = "true"
        self.instances[company_id] = instance
        self._connect(instance)
        return instance

    def script_of(self, instance: Instance | None) -> Script:
        """The script in force for a company's requests."""
        own = None if instance is None else instance.script
        return self.script if own is None else own

    def latency_of(self, instance: Instance | None) -> float:
        """Seconds that every answer to a company takes."""
        own = None if instance is None else instance.latency_seconds
        return self.latency_seconds if own is None else own

    def denied(self, instance: Instance, table: str, number: int) -> bool:
        """Whether an ACL keeps this row from the user, once it has been selected."""
        if instance.unreadable.get(table) == "empty":
            return True
        script, store = self.script_of(instance), instance.world.store_of(table)
        standing, quirks = script.hostility.standing, script.quirks
        shown = store.visible(number)
        if not _concerned(standing.restricted_tables, shown.kind):
            return False
        if _chance(instance, table, number, "acl") < standing.restricted_share:
            return True
        if quirks.restricted_ids is not None:
            low, high = quirks.restricted_ids
            if low <= store.sys_id(number) < high:
                return True
        window, updated = quirks.restricted_window, shown.updated
        return window is not None and updated is not None and window[0] <= updated < window[1]

    def denies(self, instance: Instance, table: str) -> bool:
        """Whether `denied` could be true of any row of the table."""
        script = self.script_of(instance)
        quirks = script.quirks
        some = (
            script.hostility.standing.restricted_share > 0
            or quirks.restricted_ids is not None
            or quirks.restricted_window is not None
        )
        return some or instance.unreadable.get(table) == "empty"

    def unseen(self, instance: Instance, table: str, number: int) -> bool:
        """Whether a before-query rule or another domain hides the row from every query."""
        script = self.script_of(instance)
        kind = instance.world.store_of(table).visible(number).kind
        if not _concerned(script.hostility.standing.restricted_tables, kind):
            return False
        return _chance(instance, table, number, "rule") < script.quirks.hidden_share

    def restricted(self, instance: Instance, table: str, number: int) -> bool:
        """Whether the user cannot get this row, for one reason or the other."""
        hidden = self.unseen(instance, table, number) or self.denied(instance, table, number)
        return hidden or table in instance.unreadable

    def hidden_fields(self, instance: Instance, table: str, number: int) -> frozenset[str]:
        """The columns whose keys are missing from this row."""
        quirks = self.script_of(instance).quirks
        if not quirks.hidden_fields:
            return frozenset()
        if _chance(instance, table, number, "field") >= quirks.hidden_fields_share:
            return frozenset()
        tables = [t for t in quirks.hidden_fields if t in lineage(table)]
        return frozenset(name for t in tables for name in quirks.hidden_fields[t])

    def mutate(
        self,
        instance: Instance,
        table: str,
        numbers: Iterable[int],
        at: int | None = None,
        *,
        silent: bool | None = None,
        to: str | None = None,
    ) -> list[int]:
        """Change records as of `at` (default: now), some of them visible late.

        Args:
            silent: leave sys_updated_on as it was; None leaves that to the script.
        """
        now = self.clock.now()
        moment = int(now) if at is None else at
        script, changed = self.script_of(instance), list[int]()
        visible_at = now + script.hostility.standing.late_seconds
        late, prompt = self._split(instance, numbers)
        for chosen, when in ((prompt, None), (late, visible_at)):
            loud: list[int] = []
            quiet: list[int] = []
            for number in chosen:
                drawn = script.quirks.silent_share > script.hostility.chance()
                (quiet if (drawn if silent is None else silent) else loud).append(number)
            mutate = instance.world.mutate
            changed += mutate(table, loud, moment, when, to=to)
            changed += mutate(table, quiet, moment, when, silent=True, to=to)
        return changed

    def create(
        self, instance: Instance, table: str, count: int, at: int | None = None
    ) -> list[int]:
        """Enter records as of `at` (default: now), some of them visible late."""
        now = self.clock.now()
        moment = int(now) if at is None else at
        late, prompt = self._split(instance, range(count))
        visible_at = now + self.script_of(instance).hostility.standing.late_seconds
        made = instance.world.create(table, len(prompt), moment)
        return made + instance.world.create(table, len(late), moment, visible_at)

    def disturb(self, instance: Instance, table: str, matching: Sequence[int]) -> None:
        """What happens in the business between one page and the next."""
        script, world = self.script_of(instance), instance.world
        standing, quirks = script.hostility.standing, script.quirks
        asked = (
            standing.mutate_per_request,
            standing.delete_per_request,
            standing.create_per_request,
            quirks.silent_per_request,
        )
        if self.mutations_frozen or not any(asked) or table in HELD:
            return
        mutate, delete, create, silent = asked
        store = world.store_of(table)
        chosen = world.some(mutate + delete + silent, matching)
        chosen = [number for number in chosen if store.live(number)]
        changed, rest = chosen[:mutate], chosen[mutate:]
        if changed:
            self.mutate(instance, table, changed)
        if rest[:silent]:
            self.mutate(instance, table, rest[:silent], silent=True)
        if rest[silent:]:
            world.delete(table, rest[silent:], int(self.clock.now()))
        if create:
            self.create(instance, table, create)

    def _split(self, instance: Instance, numbers: Iterable[int]) -> tuple[list[int], list[int]]:
        """(late, prompt): which of these changes the late-visibility in force delays."""
        hostility = self.script_of(instance).hostility
        standing = hostility.standing
        late: list[int] = []
        prompt: list[int] = []
        for number in numbers:
            delayed = standing.late_seconds > 0 and hostility.chance() < standing.late_share
            (late if delayed else prompt).append(number)
        return late, prompt


def _concerned(tables: list[str] | None, kind: str) -> bool:
    """Whether a rule for some tables (None: all) holds for rows of a class."""
    return tables is None or any(one in tables for one in lineage(kind))


def _chance(instance: Instance, table: str, number: int, what: str) -> float:
    """A number in [0, 1) that is always the same for a row, whatever table it is seen through."""
    root = lineage(table)[-1]
    return zlib.crc32(f"{instance.world.seed}:{root}:{number}:{what}".encode()) / 2**32
