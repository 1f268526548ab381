"""The Salesforce site: its orgs, their apps and sessions, the clock, what is broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from avesa_dagster.sandbox.fetched import Fetched
from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.outages import Outages
from avesa_dagster.sandbox.salesforce import hostility as hostile
from avesa_dagster.sandbox.salesforce.bulk import Jobs
from avesa_dagster.sandbox.salesforce.describe import RecordCounts
from avesa_dagster.sandbox.salesforce.hostility import Conditions, conditions_of
from avesa_dagster.sandbox.salesforce.oauth import App, Sessions
from avesa_dagster.sandbox.salesforce.org import Org, OrgSpec
from avesa_dagster.sandbox.salesforce.query import Cursors
from avesa_dagster.sandbox.timestamps import Clock
from avesa_dagster.sandbox.traffic import Traffic

DEFAULT_COMPANY = "acme_org"
LONG_SECONDS = 20.0
CONCURRENT = 25


class Concurrency:
    """The requests of an org that are under way; those that take long are limited. [DOC]

    Attributes:
        most: long-running requests at once. `held` are those of the customer's other apps.
        long_seconds: from when on a request is long-running.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[object, float] = {}
        self.most, self.held, self.long_seconds = CONCURRENT, 0, LONG_SECONDS

    def enter(self, request: object) -> bool:
        """Begin a request; False if there are too many long ones."""
        now = time.monotonic()
        with self._lock:
            long = sum(now - at >= self.long_seconds for at in self._running.values())
            if long + self.held >= self.most:
                return False
            self._running[request] = now
            return True

    def leave(self, request: object) -> None:
        with self._lock:
            self._running.pop(request, None)


class Tenancy:
    """One org with all that is kept for it: `company` in the control protocol."""

    def __init__(self, org: Org) -> None:
        self.org = org
        self.app = App(org)
        self.jobs = Jobs()
        self.cursors = Cursors()
        self.concurrency = Concurrency()


class Site:
    """Everything that the HTTP service and the control endpoints share.

    `url` is My Domain; `instance_url` is where tokens send one for data, usually the same.
    """

    def __init__(self, seed: int, spec: OrgSpec, now: float | None, limit: int | None) -> None:
        self.url = self.instance_url = self.other_url = ""
        self.traffic = Traffic(limit)
        self.fetched = Fetched()
        self.outages = Outages()
        self.sessions = Sessions()
        self.latency_seconds = 0.0
        self.rebuild(seed, spec, now)

    def rebuild(self, seed: int, spec: OrgSpec, now: float | None) -> None:
        """Start afresh with one org, well behaved; all sessions are gone."""
        self.clock = Clock(now)
        self.hostility: Hostility = hostile.none()
        self.outages.heal(None, None, None)
        self.sessions.clear()
        self.record_counts = RecordCounts()
        self.mutations_frozen = False
        self.instance_url = self.url
        self.tenancies: dict[str, Tenancy] = {}
        self.add(DEFAULT_COMPANY, seed, spec)

    def add(self, company_id: str, seed: int, spec: OrgSpec) -> Tenancy:
        """Bring another org onto the site, with keys and records of its own."""
        tenancy = Tenancy(Org(company_id, seed, spec, self.clock.now()))
        self.tenancies[company_id] = tenancy
        return tenancy

    def tenancy_of_client(self, client_id: str) -> Tenancy | None:
        """The org whose connected app has this consumer key."""
        known = list(self.tenancies.values())
        return next((t for t in known if t.app.client_id == client_id), None)

    def tenancy_of_user(self, username: str) -> Tenancy | None:
        known = list(self.tenancies.values())
        return next((t for t in known if t.app.username == username), None)

    def hostility_to(self, tenancy: Tenancy | None) -> Hostility:
        """The script in force for an org's requests; None is a caller of no known org."""
        own = None if tenancy is None else tenancy.org.hostility
        return self.hostility if own is None else own

    def conditions_of(self, tenancy: Tenancy) -> Conditions:
        return conditions_of(self.hostility_to(tenancy))

    def latency_of(self, tenancy: Tenancy | None) -> float:
        """Seconds that every answer to an org takes."""
        own = None if tenancy is None else tenancy.org.latency_seconds
        return self.latency_seconds if own is None else own

    # ---- changes, with the late visibility in force

    def mutate(
        self, tenancy: Tenancy, table: str, numbers: Iterable[int], at: int | None = None
    ) -> list[int]:
        """Change records as of `at` (default: the simulator's now), some of them visible late."""
        now = self.clock.now()
        moment = int(now) if at is None else at
        late, prompt = self._split(tenancy, numbers)
        visible_at = now + self.conditions_of(tenancy).late_seconds
        changed = tenancy.org.mutate(table, prompt, moment)
        return changed + tenancy.org.mutate(table, late, moment, visible_at) if late else changed

    def create(self, tenancy: Tenancy, table: str, count: int, at: int | None = None) -> list[int]:
        """Enter records as of `at` (default: the simulator's now), some of them visible late."""
        now = self.clock.now()
        moment = int(now) if at is None else at
        late, prompt = self._split(tenancy, range(count))
        visible_at = now + self.conditions_of(tenancy).late_seconds
        made = tenancy.org.create(table, len(prompt), moment)
        return made + tenancy.org.create(table, len(late), moment, visible_at)

    def disturb(self, tenancy: Tenancy, table: str, matching: Sequence[int]) -> None:
        """What happens in the business between one batch and the next."""
        standing, org = self.conditions_of(tenancy), tenancy.org
        info = org.tables[table].info
        if self.mutations_frozen:
            return
        if standing.mutate_per_request and info.changes:
            chosen = org.some_live(table, standing.mutate_per_request, matching)
            self.mutate(tenancy, table, chosen)
        if standing.delete_per_request and info.deletable:
            chosen = org.some_live(table, standing.delete_per_request, matching)
            org.delete(table, chosen, int(self.clock.now()))
        if standing.create_per_request:
            self.create(tenancy, table, standing.create_per_request)

    def _split(self, tenancy: Tenancy, numbers: Iterable[int]) -> tuple[list[int], list[int]]:
        """(late, prompt): which of these changes the late visibility in force delays."""
        hostility = self.hostility_to(tenancy)
        standing = hostility.standing
        late: list[int] = []
        prompt: list[int] = []
        for number in numbers:
            delayed = standing.late_seconds > 0 and hostility.chance() < standing.late_share
            (late if delayed else prompt).append(number)
        return late, prompt
