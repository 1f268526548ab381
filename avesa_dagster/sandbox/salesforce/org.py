"""One org: its records, what happens to them, who may see what of them.

The first lines of the control protocol call it a company. Made from a seed and a `now`, always the
same; afterwards it changes only through the methods here, and remembers every version.
"""

from __future__ import annotations

import gc
import heapq
import threading
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from random import Random
from typing import Any

from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.moments import created_moments, updated_moments
from avesa_dagster.sandbox.rotation import Rotation
from avesa_dagster.sandbox.salesforce.allowance import Allowance
from avesa_dagster.sandbox.salesforce.fields import Field, parse_fields
from avesa_dagster.sandbox.salesforce.hostility import Conditions
from avesa_dagster.sandbox.salesforce.ids import IdMaker
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.schema import OBJECTS
from avesa_dagster.sandbox.salesforce.table import GONE, UNSEEN, Table, Version
from avesa_dagster.sandbox.salesforce.values import ABSENT, elsewhere
from avesa_dagster.sandbox.timestamps import DAY

RECYCLE_BIN_SECONDS = 15 * DAY
_REFERRED = 50_000
_OLDER = {"Account", "Contact", "User", "UserRole"}
_OLDER_SHARE, _OLDER_YEARS = 0.1, 6
_MANY = 100
_ARCHIVED_AFTER = 365 * DAY
_MERGED = ("Account", "Contact", "Lead", "Case")


@dataclass(frozen=True, slots=True)
class OrgSpec:
    """How many records an org has, and over how many years (of 365 days) they were entered."""

    cases: int = 300
    accounts: int = 20
    contacts: int = 50
    opportunities: int = 40
    leads: int = 40
    tasks: int = 60
    events: int = 40
    users: int = 10
    projects: int = 20
    products: int = 15
    line_items: int = 20
    orders: int = 10
    roles: int = 5
    case_histories: int = 60
    case_shares: int = 20
    logins: int = 30
    topics: int = 20
    statuses: int = 6
    attachments: int = 10
    years: float = 2.0

    def sized(self, changes: dict[str, Any]) -> OrgSpec:
        """This specification with some sizes changed, named `cases` or `Case`.

        Raises:
            ValueError: an unknown name.
        """
        own = {table: size for size, table in TABLE_OF_SIZE.items()}
        named = {own.get(name, name): value for name, value in changes.items()}
        names = {item.name for item in fields(self)}
        if set(named) - names:
            raise ValueError(f"an org has no {sorted(set(named) - names)}; it has {sorted(names)}")
        return OrgSpec(**(asdict(self) | named))


TABLE_OF_SIZE = {
    "users": "User", "roles": "UserRole", "accounts": "Account", "contacts": "Contact",
    "products": "Product2", "opportunities": "Opportunity", "leads": "Lead", "cases": "Case",
    "tasks": "Task", "events": "Event", "projects": "Project__c", "orders": "Order",
    "line_items": "OpportunityLineItem", "case_histories": "CaseHistory",
    "case_shares": "CaseShare", "logins": "LoginHistory", "topics": "TopicAssignment",
    "statuses": "CaseStatus", "attachments": "Attachment",
}  # fmt: skip

POISONS: dict[str, dict[str, Any]] = {
    "no_id": {"Id": ABSENT},
    "null_id": {"Id": None},
    "no_stamp": {"SystemModstamp": ABSENT},
    "stamp_garbage": {"SystemModstamp": "yesterday"},
    "year_1700": {"CreatedDate": "1700-01-01T00:00:00.000+0000"},
    "year_4000": {"CreatedDate": "4000-12-31T23:59:59.000+0000"},
    "huge_text": {"Description": "x" * 131_072},
    "nuls": {"Description": "\x00" * 50, "Subject": "a\x00b"},
    "wide_integer": {"AnnualRevenue": 10**30, "Sla_Hours_Left__c": 10**30},
    "lone_surrogate": {"Description": "\ud800"},
}
"""Kind of damage to what the record says instead; the index has the true instants."""


class Org:
    """An org. Everything but the flags is used under its lock."""

    def __init__(self, company_id: str, seed: int, spec: OrgSpec, now: float) -> None:
        self.company_id, self.seed, self.spec = company_id, seed, spec
        self.lock = threading.RLock()
        self.revoked = False
        self.sandbox = False
        self.hibernating: int | None = None
        self.api_enabled = True
        self.rest_allowed = True
        self.hostility: Hostility | None = None
        self.latency_seconds: float | None = None
        self.rotation = Rotation()
        self.allowance = Allowance()
        self.log_from: dict[str, float] = {}
        self.deletions: dict[str, list[tuple[int, int]]] = {}
        self._revision = 0
        self._rng = Random(f"{seed}:changes")
        self._bin: list[tuple[int, str, int]] = []
        self._known: dict[str, list[str]] = {}
        self.tables: Mapping[str, Table] = {
            name: Table(info, self, zlib.crc32(f"{seed}:{name}".encode()) << 8)
            for name, info in OBJECTS.items()
        }
        self._lower = {name.lower(): table for name, table in self.tables.items()}
        self._load(int(now))

    def _load(self, now: int) -> None:
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = now - int(self.spec.years * 365 * DAY) + DAY
            for size, name in TABLE_OF_SIZE.items():
                rng, count = Random(f"{self.seed}:{name}"), int(getattr(self.spec, size))
                older = int(count * _OLDER_SHARE) if name in _OLDER else 0
                created = _entered(rng, older, start - _OLDER_YEARS * 365 * DAY, start)
                created += _entered(rng, count - older, start, now)
                self.tables[name].load(created, updated_moments(rng, created, now))
            for name in ("Task", "Event"):
                self.tables[name].archive(now - _ARCHIVED_AFTER)
        finally:
            if collecting:
                gc.enable()

    # ---- what its records refer to, and what SOQL may name

    def known_ids(self, name: str) -> Sequence[str]:
        """Ids of the records of an object that others refer to: of its first 50,000."""
        if name not in self._known:
            table = self.tables.get(name)
            if table is None:
                self._known[name] = elsewhere(name)
            else:
                make, count = IdMaker(table.info.prefix).make, len(table)
                self._known[name] = [make(n) for n in range(min(count, _REFERRED))]
        return self._known[name]

    def table(self, name: str) -> Table:
        found = self._lower.get(name.lower())
        if found is None or not found.accessible:
            raise ApiError(
                "INVALID_TYPE",
                f"sObject type '{name}' is not supported. If you are attempting to use a custom "
                "object, be sure to append the '__c' after the entity name. Please reference your "
                "WSDL or the describe call for the appropriate names.",
            )
        return found

    def id(self, table: str, number: int) -> str:
        return IdMaker(self.tables[table].info.prefix).make(number)

    def restricted(self, conditions: Conditions, table: str, number: int) -> bool:
        """Whether the loss of sharing in force hides this record."""
        if conditions.restricted_share <= 0:
            return False
        tables = conditions.restricted_tables
        if tables is not None and table not in tables:
            return False
        mixed = zlib.crc32(f"{self.seed}:{table}:{number}".encode())
        return mixed / 2**32 < conditions.restricted_share

    def permitted(self, conditions: Conditions, table: str, numbers: array[int]) -> array[int]:
        """The records that queries and counts may show."""
        if conditions.restricted_share <= 0:
            return numbers
        return array("q", [n for n in numbers if not self.restricted(conditions, table, n)])

    # ---- what happens

    def settle(self, now: float) -> None:
        """Show what has become visible by `now`, and empty what is 15 days in the recycle bin."""
        for table in self.tables.values():
            table.settle(now)
        while self._bin and self._bin[0][0] <= now - RECYCLE_BIN_SECONDS:
            at, name, number = heapq.heappop(self._bin)
            record = self.tables[name].records[number]
            if record.deleted_at == at and record.gone_at is None:
                self.tables[name].vanish([number], int(now))

    def create(self, name: str, count: int, at: int, visible_at: float | None = None) -> list[int]:
        """Enter `count` records, as of `at`."""
        return self.tables[name].add(count, at, visible_at)

    def mutate(
        self, name: str, numbers: Iterable[int], at: int, visible_at: float | None = None
    ) -> list[int]:
        """Change records: both stamps become `at`."""
        table = self._changing(name)
        changes = []
        for number in numbers:
            before = table.latest(number)
            self._revision += 1
            changes.append(
                (number, Version(self._revision, at, at, before.deleted, before.changed))
            )
        table.revise(changes, visible_at)
        return [number for number, _ in changes]

    def bump(self, name: str, numbers: Iterable[int], at: int) -> list[int]:
        """Move SystemModstamp to `at` and nothing else, as system work does."""
        table = self._changing(name)
        changes = []
        for number in numbers:
            was = table.latest(number)
            version = Version(was.revision, at, was.modified, was.deleted, was.changed)
            changes.append((number, version))
        table.revise(changes)
        return [number for number, _ in changes]

    def delete(self, name: str, numbers: Iterable[int], at: int) -> list[int]:
        """Put records into the recycle bin: SystemModstamp moves, LastModifiedDate does not. [INF]

        Those that are deleted already are passed over.
        """
        table = self._deletable(name)
        gone = [n for n in dict.fromkeys(numbers) if not table.latest(n).deleted]
        self._put_in_bin(table, [(number, {}) for number in gone], at)
        return gone

    def merge(self, name: str, master: int, losers: Sequence[int], at: int) -> list[int]:
        """Merge records into one: the losers are deleted and say whom they went into. [GK]"""
        if name not in _MERGED:
            raise ValueError(f"only {_MERGED} can be merged, not {name}")
        if master in losers:
            raise ValueError("the master cannot lose")
        table, into = self._deletable(name), self.id(name, master)
        gone = [n for n in dict.fromkeys(losers) if not table.latest(n).deleted]
        self._put_in_bin(table, [(n, {"MasterRecordId": into}) for n in gone], at)
        self.mutate(name, [master], at)
        return gone

    def _put_in_bin(
        self, table: Table, gone: Sequence[tuple[int, dict[str, Any]]], at: int
    ) -> None:
        changes, name = [], table.info.name
        for number, changed in gone:
            was = table.latest(number)
            version = Version(was.revision, at, was.modified, True, was.changed | changed)
            changes.append((number, version))
        table.revise(changes)
        for number, _ in gone:
            table.records[number].deleted_at = at
            heapq.heappush(self._bin, (at, name, number))
            self.deletions.setdefault(name, []).append((at, number))

    def undelete(self, name: str, numbers: Iterable[int], at: int | None) -> list[int]:
        """Take records out of the recycle bin; with `at` None no stamp tells it."""
        table, back = self._deletable(name), []
        for number in numbers:
            was = table.latest(number)
            if was.deleted and not table.flags[number] & GONE:
                stamp, changed = was.stamp if at is None else at, dict(was.changed)
                changed.pop("MasterRecordId", None)
                back.append((number, Version(was.revision, stamp, was.modified, False, changed)))
        table.revise(back)
        for number, _ in back:
            table.records[number].deleted_at = None
        return [number for number, _ in back]

    def hard_delete(self, name: str, numbers: Iterable[int], at: int) -> list[int]:
        """Take records away with no trace: neither queryAll nor getDeleted knows them."""
        return self.tables[name].vanish(numbers, at)

    def purge(self, name: str, before: float, now: int, *, log: bool) -> list[int]:
        """Empty the recycle bin of what was deleted before an instant.

        Args:
            log: also forget the deletions themselves, as when there are too many of them:
                getDeleted then knows nothing earlier than `before`.
        """
        table, known = self.tables[name], self.deletions.get(name, [])
        held = [n for at, n in known if at < before and table.records[n].deleted_at == at]
        gone = table.vanish(held, now)
        if log:
            self.deletions[name] = [one for one in known if one[0] >= before]
            self.log_from[name] = max(self.log_from.get(name, 0.0), before)
        return gone

    def poison(self, name: str, kinds: Iterable[str], at: int) -> dict[str, int]:
        """Enter one damaged record of each kind that the object's fields allow."""
        table, made = self.tables[name], {}
        for kind in kinds:
            values = {f: v for f, v in POISONS[kind].items() if f in table.fields}
            if not values:
                continue
            [number] = table.add(1, at)
            record = table.records[number]
            record.versions[0].changed, record.poison = values, kind
            made[kind] = number
        return made

    def add_field(self, name: str, field: str) -> Field:
        """Give an object a new custom field, written as in `parse_fields`."""
        [(made, about)] = parse_fields(field).items()
        if not about.custom or made in self.tables[name].fields:
            raise ValueError(f"{made} is no new custom field")
        self.tables[name].fields[made] = about
        return about

    def some(self, name: str, count: int, among: Sequence[int] | None = None) -> list[int]:
        """`count` visible records, at random, of a table or of those given."""
        table = self.tables[name]
        known = table.by_number(0, len(table), False) if among is None else among
        return self._rng.sample(known, min(count, len(known)))

    def some_live(self, name: str, count: int, among: Sequence[int]) -> list[int]:
        """As `some`, but of those given only such as are neither deleted nor archived."""
        flags = self.tables[name].flags
        drawn = self._rng.sample(among, min(4 * count, len(among)))
        live = [number for number in drawn if not flags[number]]
        if len(live) < count:
            live = [number for number in among if not flags[number]]
        return live[:count]

    def deleted_numbers(self, name: str) -> list[int]:
        """The records in the recycle bin."""
        table = self.tables[name]
        return [
            number
            for number, record in table.records.items()
            if record.versions[-1].deleted and not table.flags[number] & (GONE | UNSEEN)
        ]

    def _changing(self, name: str) -> Table:
        if not OBJECTS[name].changes:
            raise ValueError(f"records of {name} never change")
        return self.tables[name]

    def _deletable(self, name: str) -> Table:
        if not OBJECTS[name].deletable:
            raise ValueError(f"records of {name} cannot be deleted, it has no recycle bin")
        return self.tables[name]


def _entered(rng: Random, count: int, start: int, end: int) -> list[int]:
    """When records were entered, ascending; busy days and quiet ones where there are many."""
    if count >= _MANY:
        return created_moments(rng, count, start, end)
    return sorted(start + int(rng.random() * (end - start)) for _ in range(count))
