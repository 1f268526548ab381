"""A simulated business: eight tables of records, deterministic from a seed and a `now`.

The world holds the truth. It is made once, then changes only through `create`, `mutate`, `delete`,
`undelete` and `poison`, and remembers every version that it ever held.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from random import Random
from typing import Any

from avesa_dagster.sandbox import records
from avesa_dagster.sandbox.moments import created_moments, updated_moments
from avesa_dagster.sandbox.poison import POISONS
from avesa_dagster.sandbox.schema import TABLES
from avesa_dagster.sandbox.table import Record, Table, Version
from avesa_dagster.sandbox.timestamps import DAY

_FIRST_ID = {"tickets": 1001, "time_entries": 50_001, "companies": 2, "contacts": 19}
_OLDER_SHARE = 0.1
_OLDER_YEARS = 6


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """How large a world is and how far back it reaches.

    Tickets, time entries and the other transactions were entered in the last `years` (of 365 days,
    less one day, so that a look-back of as many days holds them all). A tenth of the companies,
    contacts and members is older, by up to six years.
    """

    tickets: int = 300
    time_entries: int = 100
    companies: int = 20
    contacts: int = 50
    products: int = 20
    agreements: int = 10
    projects: int = 10
    members: int = 10
    years: float = 2.0

    def sized(self, changes: dict[str, Any]) -> WorldSpec:
        """This specification with some sizes changed; unknown names are a ValueError."""
        names = {item.name for item in fields(self)}
        unknown = set(changes) - names
        if unknown:
            raise ValueError(f"a world has no {sorted(unknown)}; it has {sorted(names)}")
        return WorldSpec(**(asdict(self) | changes))


class World:
    """All records of one company's instance. Not thread-safe: its owner holds a lock."""

    def __init__(self, seed: int, spec: WorldSpec, now: float) -> None:
        self.seed = seed
        self.spec = spec
        self.tables = {name: Table(name) for name in TABLES}
        self._cast = records.Cast.of_setup_tables()
        self._rng = Random(f"{seed}:changes")
        self._revision = 0
        self.fields: dict[str, list[str]] = {name: [] for name in TABLES}
        """Table to the fields that records which are new or change have besides."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            for name in records.MAKERS:
                self.tables[name].load(self._generate(name, int(now)))
        finally:
            if collecting:
                gc.enable()

    def _generate(self, name: str, now: int) -> Iterable[Record]:
        rng = Random(f"{self.seed}:{name}")
        count = int(getattr(self.spec, name))
        start = now - int(self.spec.years * 365 * DAY) + DAY
        older = int(count * _OLDER_SHARE) if name in records.MASTERS else 0
        created = created_moments(rng, older, start - _OLDER_YEARS * 365 * DAY, start)
        created += created_moments(rng, count - older, start, now)
        updated = updated_moments(rng, created, now)
        make = records.MAKERS[name]
        id = _FIRST_ID.get(name, 1)
        for number in range(count):
            record = make(self._cast, rng, number, id, created[number], updated[number])
            self._cast.announce(name, record, created[number])
            yield Record(id, [Version(updated[number], records.to_bytes(record))])
            id += 1 if rng.random() < 0.9 else 2 + int(rng.random() * 9)

    def settle(self, now: float) -> None:
        """Show what has become visible by `now` (simulator seconds)."""
        for table in self.tables.values():
            table.settle(now)

    def create(self, name: str, count: int, at: int, visible_at: float | None = None) -> list[int]:
        """Enter `count` new records, with lastUpdated `at`."""
        table = self.tables[name]
        made = []
        for _ in range(count):
            id = table.next_id
            self._revision += 1
            record = records.MAKERS[name](self._cast, self._rng, self._revision, id, at, at)
            record |= dict.fromkeys(self.fields[name], "new")
            table.add(Record(id, [Version(at, records.to_bytes(record))]), visible_at)
            made.append(id)
        return made

    def mutate(
        self, name: str, ids: Iterable[int], at: int, visible_at: float | None = None
    ) -> list[int]:
        """Change records: each gets a new version with lastUpdated `at`."""
        table = self.tables[name]
        changed = []
        for id in ids:
            record = table.records[id]
            self._revision += 1
            before = json.loads(record.versions[-1].payload)
            after = records.revise(name, before, self._rng, self._revision, at, "zadmin")
            after |= dict.fromkeys(self.fields[name], "new")
            table.revise(id, Version(at, records.to_bytes(after)), visible_at)
            changed.append(id)
        return changed

    def delete(self, name: str, ids: Iterable[int], at: int) -> list[int]:
        """Delete records; already deleted ones are passed over."""
        table = self.tables[name]
        gone = [id for id in ids if table.records[id].deleted_at is None]
        for id in gone:
            table.delete(id, at)
        return gone

    def undelete(self, name: str, ids: Iterable[int]) -> list[int]:
        """Bring back deleted records exactly as they were, lastUpdated included."""
        table = self.tables[name]
        back = [id for id in ids if table.records[id].deleted_at is not None]
        for id in back:
            table.undelete(id)
        return back

    def poison(self, name: str, kinds: Iterable[str], at: int) -> dict[str, int]:
        """Enter one damaged record of each kind; returns kind to (database) id."""
        table = self.tables[name]
        made = {}
        for kind in kinds:
            id = table.next_id
            self._revision += 1
            record = records.MAKERS[name](self._cast, self._rng, self._revision, id, at, at)
            updated, payload = POISONS[kind](record, at)
            table.add(Record(id, [Version(updated, payload)], poison=kind))
            made[kind] = id
        return made

    def some(self, name: str, count: int, among: Sequence[int] | None = None) -> list[int]:
        """Ids of `count` visible records, at random, of a table or of the ids given."""
        known = self.tables[name].live_ids() if among is None else among
        return self._rng.sample(known, min(count, len(known)))
