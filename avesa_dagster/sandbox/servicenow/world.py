"""A simulated business: the tables of one instance, deterministic from a seed and a `now`.

The world holds the truth. It is made once, then changes only through its methods, and remembers
every version that it ever held.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from random import Random
from typing import Any
from xml.sax.saxutils import escape

from avesa_dagster.sandbox.moments import created_moments, updated_moments
from avesa_dagster.sandbox.servicenow import content
from avesa_dagster.sandbox.servicenow.content import Cast, Row
from avesa_dagster.sandbox.servicenow.poison import POISONS
from avesa_dagster.sandbox.servicenow.projection import Projection, Style
from avesa_dagster.sandbox.servicenow.query import Value
from avesa_dagster.sandbox.servicenow.schema import (
    NOT_AUDITED,
    PARENTS,
    TABLES,
    Column,
    Schema,
    descendants,
    lineage,
    root_of,
)
from avesa_dagster.sandbox.servicenow.selection import Selector
from avesa_dagster.sandbox.servicenow.stamps import Zone
from avesa_dagster.sandbox.servicenow.store import Store, Version
from avesa_dagster.sandbox.timestamps import DAY

_OLDER_SHARE = 0.1
_OLDER_YEARS = 6
_SMALL = 10_000
"""Tables of no more records are remembered, for those who start afresh before every test."""
_CAST_SIZE = 2000
"""So many users, companies and items are referred to; a larger world has more of them."""
_ITEM_KINDS = (
    *["cmdb_ci_server"] * 4,
    *["cmdb_ci_computer"] * 4,
    "cmdb_ci_service",
    "cmdb_ci",
)
_REMEMBERED_PROJECTIONS = 200
_MASTERS = ("sys_user", "core_company", "cmdb_ci")
_SIZES = {
    "incidents": "incident",
    "changes": "change_request",
    "problems": "problem",
    "tasks": "task",
    "users": "sys_user",
    "companies": "core_company",
    "time_cards": "time_card",
    "cis": "cmdb_ci",
    "roles": "sys_user_has_role",
    "logs": "syslog",
}
SAMPLE = {"integer": "7", "decimal": "1.5", "boolean": "true", "reference": ""}
"""Values of columns that were added later, by kind; date-times are the record's creation."""


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """How large a world is and how far back it reaches.

    Transactions were entered in the last `years` (of 365 days, less one day, so that a look-back of
    as many days holds them all). A tenth of the users, companies and configuration items is older,
    by up to six years. `tasks` are those that are only tasks.
    """

    incidents: int = 300
    changes: int = 30
    problems: int = 20
    tasks: int = 10
    users: int = 50
    companies: int = 20
    time_cards: int = 100
    cis: int = 40
    roles: int = 40
    logs: int = 60
    years: float = 2.0

    def sized(self, changes: dict[str, Any]) -> WorldSpec:
        """This specification with some sizes changed, named as here or by their tables.

        Raises:
            ValueError: a name is unknown.
        """
        by_table = {table: name for name, table in _SIZES.items()}
        named = {by_table.get(name, name): value for name, value in changes.items()}
        names = {item.name for item in fields(self)}
        unknown = set(named) - names
        if unknown:
            raise ValueError(f"a world has no {sorted(unknown)}; it has {sorted(names)}")
        return WorldSpec(**(asdict(self) | named))


class World:
    """All records of one instance. Not thread-safe: its owner holds a lock."""

    def __init__(self, seed: int, spec: WorldSpec, now: float) -> None:
        self.seed, self.spec = seed, spec
        self.schema = Schema()
        self.unaudited = set(NOT_AUDITED)
        roots = [table for table in TABLES if table not in PARENTS]
        self.stores = {root: Store(root, seed) for root in roots}
        self._selectors = {
            root: Selector(store, self.value_of) for root, store in self.stores.items()
        }
        self._rng = Random(f"{seed}:changes")
        self._names: dict[str, str] = {}
        self._projections: dict[Any, Projection] = {}
        self._began = int(now)
        self._cast = self._gather()
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._generate(int(now))
        finally:
            if collecting:
                gc.enable()

    def _gather(self) -> Cast:
        """The cast, known before any record is made, because sys_ids are computed."""
        spec = self.spec
        first = 0
        spans = {}
        for kind, count in self._task_sizes():
            spans[kind] = (first, count)
            first += count

        def ids(root: str, count: int) -> list[str]:
            return [self.stores[root].sys_id(n) for n in range(min(count, _CAST_SIZE))]

        return Cast(
            seed=self.seed,
            users=ids("sys_user", spec.users),
            companies=ids("core_company", spec.companies),
            groups=ids("sys_user_group", len(content.SETUP["sys_user_group"])),
            locations=ids("cmn_location", len(content.SETUP["cmn_location"])),
            departments=ids("cmn_department", len(content.SETUP["cmn_department"])),
            items=ids("cmdb_ci", spec.cis),
            spans=spans,
            task_id=self.stores["task"].sys_id,
        )

    def _task_sizes(self) -> list[tuple[str, int]]:
        return [(_SIZES[size], getattr(self.spec, size)) for size in list(_SIZES)[:4]]

    def _generate(self, now: int) -> None:
        start = now - int(self.spec.years * 365 * DAY) + DAY
        for kind, count in self._task_sizes():
            self._load("task", kind, [kind] * count, start, now)
        for size in list(_SIZES)[4:]:
            table, count = _SIZES[size], int(getattr(self.spec, size))
            kinds = [table] * count
            if table == "cmdb_ci":
                kinds = [_ITEM_KINDS[n * 7 % len(_ITEM_KINDS)] for n in range(count)]
            self._load(table, table, kinds, start, now)
        for table, names in content.SETUP.items():
            moments = [start] * len(names)
            self.stores[table].load([table] * len(names), moments, moments)
        self._write_dictionary()

    def _load(self, root: str, name: str, kinds: Sequence[str], start: int, now: int) -> None:
        count = len(kinds)
        older = int(count * _OLDER_SHARE) if name in _MASTERS else 0
        make = _moments if count <= _SMALL else _moments.__wrapped__
        created, updated = make(f"{self.seed}:{name}", count, older, start, now)
        if "sys_updated_on" not in self.schema.columns(name):
            updated = created
        self.stores[root].load(kinds, created, updated)

    def _write_dictionary(self) -> None:
        """Make sys_db_object and sys_dictionary say what the schema says."""
        for name in ("sys_db_object", "sys_dictionary"):
            self.stores[name] = Store(name, self.seed)
            self._selectors[name] = Selector(self.stores[name], self.value_of)
        objects, at = self.stores["sys_db_object"], self._began - 1000 * DAY
        place = {table: n for n, table in enumerate(TABLES)}
        for table in TABLES:
            parent = PARENTS.get(table)
            above = "" if parent is None else objects.sys_id(place[parent])
            label = table.replace("_", " ").title()
            extends = "true" if len(descendants(table)) > 1 else "false"
            row = {"name": table, "label": label, "super_class": above, "is_extendable": extends}
            self._hold("sys_db_object", row, at)
            for column in self.schema.own[table].values():
                self._hold("sys_dictionary", _entry(table, column), at)

    def _hold(self, table: str, row: Row, at: int) -> int:
        """Enter a record whose columns are given."""
        system = {"sys_created_by": "system", "sys_created_on": at, "sys_updated_on": at}
        system |= {"sys_updated_by": "system", "sys_mod_count": "0"}
        columns = self.schema.columns(table)
        held = {name: value for name, value in (system | row).items() if name in columns}
        return self.stores[table].add(Version(at, 0, table, held), at)

    def store_of(self, table: str) -> Store:
        return self.stores[root_of(table)]

    def selector_of(self, table: str) -> Selector:
        return self._selectors[root_of(table)]

    def settle(self, now: float) -> None:
        """Show what has become visible by `now` (simulator seconds)."""
        for store in self.stores.values():
            store.settle(now)

    def row(self, store: Store, number: int, version: Version) -> Row:
        """The stored values of a version of a record."""
        created = store.created(number)
        known = created if version.updated is None else version.updated
        row = content.MAKERS[version.kind](self._cast, number, version.revision, created, known)
        row["sys_id"] = store.sys_id(number)
        if version.updated is None:
            row["sys_updated_on"] = ""
        for name, column in self.schema.added.items():
            row[name] = created if column.kind == "glide_date_time" else SAMPLE.get(column.kind)
            row[name] = f"{name} {number}" if row[name] is None else row[name]
        if version.held:
            row |= version.held
        return row

    def value_of(self, table: str, number: int) -> Value:
        """Reads the stored values of a record that shows."""
        store = self.store_of(table)
        version = store.visible(number)
        row: Row | None = None

        def value(name: str) -> Any:
            nonlocal row
            if name == "sys_id":
                return store.sys_id(number)
            if name == "sys_updated_on":
                return version.updated
            if name == "sys_created_on":
                return store.created(number)
            if name == "sys_class_name":
                return version.kind
            if row is None:
                row = content.CONSTANTS.get(version.kind, {}) | self.row(store, number, version)
            return row.get(name, "")

        return value

    def display(self, table: str, sys_id: str) -> str:
        """The display value of a record that a reference names."""
        known = self._names.get(sys_id)
        if known is None:
            known = self._names[sys_id] = self._display(table, sys_id)
        return known

    def _display(self, table: str, sys_id: str) -> str:
        root = root_of(table)
        number = self.stores[root].number(sys_id) if root in self.stores else None
        if number is None:
            return sys_id
        if root == "task":
            return content.task_number(self.stores[root].latest(number).kind, number)
        if root in content.NAMES:
            return content.NAMES[root](number)
        return content.SETUP[root][number] if root in content.SETUP else sys_id

    def render(self, table: str, number: int, version: Version, style: Style, zone: Zone) -> str:
        """The JSON of a version of a record, all columns, seen through a table."""
        projection = self.projection(table, version.kind, style, zone, "")
        row = self.row(self.store_of(table), number, version)
        return projection.render(row, version.splice, held=version.held is not None)

    def projection(
        self,
        table: str,
        kind: str,
        style: Style,
        zone: Zone,
        base: str,
        names: tuple[str, ...] | None = None,
        hidden: frozenset[str] = frozenset(),
    ) -> Projection:
        """What renders the records of a class, seen through a table.

        Args:
            base: what links begin with.
            names: the columns wanted; unknown ones are passed over; None is all.
            hidden: columns that are left out.
        """
        known = (table, kind, style, zone.key, base, names, hidden, self.schema.version)
        projection = self._projections.get(known)
        if projection is None:
            if len(self._projections) > _REMEMBERED_PROJECTIONS:
                self._projections.clear()
            projection = self._compile(table, kind, style, zone, base, names, hidden)
            self._projections[known] = projection
        return projection

    def _compile(
        self,
        table: str,
        kind: str,
        style: Style,
        zone: Zone,
        base: str,
        names: tuple[str, ...] | None,
        hidden: frozenset[str],
    ) -> Projection:
        columns = self.schema.columns(table)
        wanted = columns if names is None else dict.fromkeys(n for n in names if n in columns)
        shown = [columns[name] for name in wanted if name not in hidden]
        labels = {c.name: found for c in shown if (found := self.schema.label(table, c.name))}
        sample = content.MAKERS[kind](self._cast, 0, 0, self._began, self._began)
        varying = frozenset(sample) | {"sys_id"} | set(self.schema.added)
        constants = content.CONSTANTS.get(kind, {})
        return Projection(shown, constants, varying, labels, style, zone, base, self.display)

    def create(self, table: str, count: int, at: int, visible_at: float | None = None) -> list[int]:
        """Enter `count` new records of a class, created and updated `at`."""
        self._must_be_computed(table)
        store = self.store_of(table)
        version = (Version(at, 0, table) for _ in range(count))
        return [store.add(one, at, visible_at=visible_at) for one in version]

    def mutate(
        self,
        table: str,
        numbers: Iterable[int],
        at: int,
        visible_at: float | None = None,
        *,
        silent: bool = False,
        to: str | None = None,
    ) -> list[int]:
        """Change records: each gets a new version with sys_updated_on `at`.

        Args:
            silent: sys_updated_on, sys_updated_by and sys_mod_count stay as they were.
            to: the class that the records move to.
        """
        self._must_be_computed(table)
        store, changed = self.store_of(table), []
        for number in numbers:
            latest = store.latest(number)
            held = None
            if silent:
                before = self.row(store, number, latest)
                kept = ("sys_mod_count", "sys_updated_by")
                held = {name: before[name] for name in kept if name in before}
            updated = latest.updated if silent else at
            version = Version(updated, latest.revision + 1, to or latest.kind, held)
            store.revise(number, version, visible_at)
            self._names.pop(store.sys_id(number), None)
            changed.append(number)
        return changed

    def delete(self, table: str, numbers: Iterable[int], at: int) -> list[int]:
        """Delete records; already deleted ones are passed over. Writes sys_audit_delete."""
        store = self.store_of(table)
        gone = [n for n in numbers if (r := store.records.get(n)) is None or r.deleted_at is None]
        for number in gone:
            version = store.latest(number)
            store.delete(number, at)
            if not self.unaudited.intersection(lineage(version.kind)):
                self._audit(store, number, version, at)
        return gone

    def _audit(self, store: Store, number: int, version: Version, at: int) -> None:
        row, kind, sys_id = self.row(store, number, version), version.kind, store.sys_id(number)
        shown = str(row.get("number") or row.get("name") or sys_id)
        payload = (
            f'<?xml version="1.0" encoding="UTF-8"?><record_update table="{kind}">'
            f'<{kind} action="DELETE"><sys_id>{sys_id}</sys_id>'
            f"<display>{escape(shown)}</display></{kind}></record_update>"
        )
        audit = {"tablename": kind, "documentkey": sys_id, "display_value": shown}
        self._hold("sys_audit_delete", audit | {"payload": payload, "sys_created_by": "admin"}, at)

    def undelete(self, table: str, numbers: Iterable[int]) -> list[int]:
        """Bring back deleted records exactly as they were, with the same sys_id."""
        store = self.store_of(table)
        back = [n for n in numbers if (r := store.records.get(n)) and r.deleted_at is not None]
        for number in back:
            store.undelete(number)
        return back

    def purge_audit(self, before: int) -> int:
        """Remove the lines of sys_audit_delete written before an instant; returns how many."""
        store = self.stores["sys_audit_delete"]
        gone = [n for n in range(len(store)) if store.created(n) < before and store.live(n)]
        for number in gone:
            store.delete(number, before)
        return len(gone)

    def poison(self, table: str, kinds: Iterable[str], at: int) -> dict[str, str]:
        """Enter one damaged record of each kind; returns kind to (database) sys_id."""
        self._must_be_computed(table)
        store, columns, made = self.store_of(table), self.schema.columns(table), {}
        for kind in kinds:
            bad = POISONS[kind](columns, at)
            odd = f"x{len(store):07d}-no-guid" if bad.odd_id else None
            version = Version(bad.updated, 0, table, None, bad.splice)
            number = store.add(version, at, odd_id=odd, poison=kind)
            made[kind] = store.sys_id(number)
        return made

    def add_column(self, table: str, column: Column) -> None:
        """A column appears in a table and in the dictionary."""
        self.schema.add(table, column)
        self._write_dictionary()

    def drop_column(self, table: str, name: str) -> None:
        """A column disappears from a table and from the dictionary."""
        self.schema.drop(table, name)
        self._write_dictionary()

    def some(self, count: int, among: Sequence[int]) -> list[int]:
        """`count` of some numbers, at random."""
        return self._rng.sample(among, min(count, len(among)))

    def numbers(self, table: str) -> list[int]:
        """Every record that is or ever was in a table, gone ones too."""
        store, kinds = self.store_of(table), set(descendants(table))

        def belongs(number: int) -> bool:
            record = store.records.get(number)
            if record is None:
                return store.latest(number).kind in kinds
            return any(version.kind in kinds for version in record.versions)

        return [number for number in range(len(store)) if belongs(number)]

    def _must_be_computed(self, table: str) -> None:
        if table in content.HELD:
            raise ValueError(f"the records of {table} cannot be changed from outside")


@lru_cache(maxsize=64)
def _moments(seed: str, count: int, older: int, start: int, now: int) -> tuple[array[int], ...]:
    """When records were created and updated; the first `older` of them before `start`."""
    rng = Random(seed)
    created = created_moments(rng, older, start - _OLDER_YEARS * 365 * DAY, start) if older else []
    created += created_moments(rng, count - older, start, now)
    return array("q", created), array("q", updated_moments(rng, created, now))


def _entry(table: str, column: Column) -> Row:
    """A column's line of sys_dictionary."""
    length = {"string": "255", "reference": "32"}.get(column.kind, "40")
    return {
        "name": table,
        "element": column.name,
        "internal_type": column.kind,
        "reference": column.target,
        "max_length": length,
        "active": "true",
        "column_label": column.name.replace("_", " ").capitalize(),
    }
