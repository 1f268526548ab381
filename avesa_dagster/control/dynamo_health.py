"""The state of health in DynamoDB: breakers, counters, alarms and schema drift.

All of it lies in the table Health. What is read together lies in one partition; what changes
together lies in one item, so that it changes as one and counts once (see `dynamo_database`):

| scope | item | holds |
| --- | --- | --- |
| `breakers` | `{tenant}/{service}` | a breaker that is not closed, or has failures |
| `counters` | `{tenant}/{service}` | all counters with these labels |
| `alarms` | `all` | every alarm |
| `fields/{tenant}` | `{service}/{table}` | an endpoint's fields |
| `drift/{tenant}` | time and number | the lines of one note |
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control.dynamo_database import (
    MOST_IN_A_TRANSACTION,
    DynamoDatabase,
    Key,
    Put,
    Row,
    Write,
    optional_text,
    to_text,
)
from avesa_dagster.control.dynamo_document import DOCUMENT, packed, unpacked
from avesa_dagster.control.dynamo_tables import HEALTH
from avesa_dagster.control.health import (
    Alarm,
    Breaker,
    BreakerState,
    Drift,
    Fields,
    FieldSeen,
    Sample,
)
from avesa_dagster.control.health_rules import after_failure, counter_labels, probing, storable
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.names import checked

_BREAKERS = "breakers"
_COUNTERS = "counters"
_ALARMS = ("alarms", "all")
_LONGEST_NAME = 400
"""Characters of a label within a key; a longer one is told by its hash."""

_Labels = tuple[tuple[str, str], ...]
_samples = msgspec.json.Decoder(list[Sample])
_alarms = msgspec.json.Decoder(list[Alarm])
_drifts = msgspec.json.Decoder(list[tuple[int, Drift]])


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of an endpoint: its fields, and the number of its newest note."""

    fields: list[FieldSeen]
    number: int


_known = msgspec.json.Decoder(_Known)


class DynamoBreakers:
    """Implements `control.health.Breakers`.

    Args:
        settings: When one opens, and for how long.
    """

    def __init__(self, database: DynamoDatabase, settings: BreakerSettings) -> None:
        self._database = database
        self._settings = settings

    def get(self, tenant: str, service: str) -> Breaker:
        """See Breakers.get."""
        row = self._database.get(HEALTH, _breaker_key(tenant, service))
        return Breaker(tenant, service) if row is None else _to_breaker(row)

    def all(self) -> list[Breaker]:
        """See Breakers.all. Ordered by (tenant, service)."""
        found = [_to_breaker(row) for row in self._database.query(HEALTH, _BREAKERS)]
        return sorted(found, key=lambda breaker: (breaker.tenant, breaker.service))

    def failed(
        self,
        tenant: str,
        service: str,
        reason: str,
        *,
        credentials: bool,
        now: datetime,
        at_once: bool = False,
    ) -> Breaker:
        """See Breakers.failed. Characters of `reason` that are not valid Unicode become `?`.

        Raises:
            ConfigurationError: A name is invalid, or `now` has no zone.
        """
        checked("tenant", tenant)
        checked("service", service)
        to_text(now)

        def change(row: Row | None) -> Mapping[str, Any]:
            return _breaker_attributes(
                after_failure(
                    Breaker(tenant, service) if row is None else _to_breaker(row),
                    self._settings,
                    reason,
                    credentials=credentials,
                    now=now,
                    at_once=at_once,
                )
            )

        row = self._database.change(HEALTH, _breaker_key(tenant, service), change)
        assert row is not None, "it was changed"
        return _to_breaker(row)

    def succeeded(self, tenant: str, service: str) -> Breaker:
        """See Breakers.succeeded. Writes nothing if nothing was wrong."""
        key = _breaker_key(tenant, service)
        row = self._database.get(HEALTH, key)
        while row is not None and not self._database.delete(HEALTH, row):
            row = self._database.get(HEALTH, key)
        return Breaker(tenant, service)

    def probe(self, tenant: str, service: str, *, now: datetime) -> bool:
        """See Breakers.probe. `probe_at` is then when the prober counts as dead.

        Raises:
            ConfigurationError: `now` has no zone.
        """
        to_text(now)
        mine = False

        def change(row: Row | None) -> Mapping[str, Any] | None:
            nonlocal mine
            known = None if row is None else _to_breaker(row)
            mine = known is not None and known.probe_at is not None and now >= known.probe_at
            return _breaker_attributes(probing(known, now)) if known and mine else None

        self._database.change(HEALTH, _breaker_key(tenant, service), change)
        return mine

    def forget(self, tenant: str) -> int:
        """See Breakers.forget. Returns how many rows were removed."""
        return _remove(self._database, self._database.query(HEALTH, _BREAKERS, f"{tenant}/"))


class DynamoCounters:
    """Implements `control.health.Counters`: a document for each tenant and service."""

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def add(self, amounts: Sequence[Sample]) -> None:
        """See Counters.add. A counter that is named twice gets both amounts. One of several
        documents at once, up to 100, is all or nothing.

        Raises:
            ConfigurationError: An amount is negative or no number, or a label is named twice;
                nothing is added.
            StoreError: A text is not valid Unicode, or the counters are of more than 100
                tenants' services; nothing is added.
        """
        added: dict[Key, dict[tuple[str, _Labels], float]] = defaultdict(lambda: defaultdict(float))
        for amount in amounts:
            labels = counter_labels(amount)
            added[_counters_key(labels)][amount.name, tuple(labels.items())] += amount.value
        if len(added) > MOST_IN_A_TRANSACTION:
            raise StoreError(
                f"counters of {len(added)} tenants' services cannot be added to at once",
                hint=f"at most {MOST_IN_A_TRANSACTION}; nothing was added",
            )

        def prepare() -> tuple[Sequence[Write], None]:
            held = self._database.get_many(HEALTH, added)
            writes = [
                _put(key, held.get(key), "the counters", _summed(held.get(key), plus))
                for key, plus in added.items()
            ]
            return writes, None

        self._database.settle("the counters", prepare)

    def all(self) -> list[Sample]:
        """See Counters.all. Ordered by (name, labels)."""
        found = [
            sample
            for row in self._database.query(HEALTH, _COUNTERS)
            for sample in unpacked(_samples, row)
        ]
        return sorted(found, key=lambda sample: (sample.name, sample.labels))

    def forget(self, tenant: str) -> int:
        """See Counters.forget."""
        rows = list(self._database.query(HEALTH, _COUNTERS, f"{_label(tenant)}/"))
        count = sum(len(unpacked(_samples, row)) for row in rows)
        _remove(self._database, rows)
        return count


class DynamoAlarms:
    """Implements `control.health.Alarms`: one document, so that all change or none."""

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def all(self) -> list[Alarm]:
        """See Alarms.all. Ordered by (since, key)."""
        held = _all_alarms(self._database.get(HEALTH, _ALARMS))
        return sorted(held.values(), key=lambda alarm: (alarm.since, alarm.key))

    def put(self, *alarms: Alarm) -> None:
        """See Alarms.put.

        Raises:
            ConfigurationError: A time has no zone.
            StoreError: A key is not valid Unicode, or they are too many for an item.
        """
        new = {}
        for alarm in alarms:
            to_text(alarm.since)
            optional_text(alarm.said_at)
            new[alarm.key] = replace(alarm, text=storable(alarm.text))
        if new:
            self._change(lambda held: {**held, **new})

    def remove(self, *keys: str) -> None:
        """See Alarms.remove."""
        if keys:
            self._change(lambda held: {k: alarm for k, alarm in held.items() if k not in keys})

    def forget(self, tenant: str) -> int:
        """See Alarms.forget. Returns how many rows were removed."""
        gone = 0

        def left(held: dict[str, Alarm]) -> dict[str, Alarm]:
            nonlocal gone
            others = {key: alarm for key, alarm in held.items() if alarm.tenant != tenant}
            gone = len(held) - len(others)
            return others

        self._change(left)
        return gone

    def _change(self, change: Callable[[dict[str, Alarm]], dict[str, Alarm]]) -> None:
        def document(row: Row | None) -> Mapping[str, Any] | None:
            held = _all_alarms(row)
            after = change(held)
            return None if after == held else {DOCUMENT: packed("the alarms", [*after.values()])}

        self._database.change(HEALTH, _ALARMS, document)


class DynamoDriftLog:
    """Implements `control.health.DriftLog`."""

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def fields(self, tenant: str, service: str, table: str) -> dict[str, FieldSeen]:
        """See DriftLog.fields."""
        row = self._database.get(HEALTH, _fields_key(tenant, service, table))
        return _by_path(row)

    def note(
        self,
        tenant: str,
        service: str,
        table: str,
        judge: Callable[[Fields], tuple[Fields, Sequence[Drift]]],
    ) -> list[Drift]:
        """See DriftLog.note.

        Raises:
            ConfigurationError: A name is invalid, or a time has no zone; nothing is written.
            StoreError: A text is not valid Unicode, or the fields are too many for an item.
        """
        checked("tenant", tenant)
        checked("service", service)
        checked("table", table)
        key, what = _fields_key(tenant, service, table), f"the fields of {service}/{table}"

        def prepare() -> tuple[Sequence[Write], list[Drift]]:
            row = self._database.get(HEALTH, key)
            fields, drifts = judge(_by_path(row))
            for field in fields.values():
                to_text(field.first_seen)
                to_text(field.last_seen)
            number = 0 if row is None else unpacked(_known, row).number
            number = max(number + 1, time.time_ns())  # of another endpoint's notes, roughly, too
            known = _Known([fields[path] for path in sorted(fields)], number + len(drifts))
            return (_put(key, row, what, known), *_log_writes(drifts, number, key)), list(drifts)

        return self._database.settle(what, prepare)

    def log(
        self, tenant: str, service: str | None = None, table: str | None = None, *, limit: int = 100
    ) -> list[Drift]:
        """See DriftLog.log.

        Raises:
            ConfigurationError: `limit` is below 1.
        """
        if limit < 1:
            raise ConfigurationError(f"limit is {limit}", where=Where(tenant), hint="at least 1")
        found: list[tuple[datetime, int, Drift]] = []
        rows = self._database.query(HEALTH, f"drift/{tenant}", backwards=True, page=limit + 1)
        for row in rows:
            newest = row.moment("newest")  # no line of this note or of those after it is newer
            if len(found) >= limit and found[limit - 1][0] > newest:
                break
            found += [
                (drift.seen_at, number, drift)
                for number, drift in unpacked(_drifts, row)
                if service in (None, drift.service) and table in (None, drift.table)
            ]
            found.sort(key=lambda line: line[:2], reverse=True)
        return [drift for _, _, drift in found[:limit]]

    def forget(self, tenant: str) -> int:
        """See DriftLog.forget."""
        fields = list(self._database.query(HEALTH, f"fields/{tenant}"))
        lines = list(self._database.query(HEALTH, f"drift/{tenant}"))
        count = len(fields) + sum(len(unpacked(_drifts, row)) for row in lines)
        _remove(self._database, [*fields, *lines])
        return count


def _breaker_key(tenant: str, service: str) -> Key:
    return _BREAKERS, f"{tenant}/{service}"


def _breaker_attributes(breaker: Breaker) -> dict[str, Any]:
    return {
        "tenant_id": breaker.tenant,
        "service_name": breaker.service,
        "state": breaker.state.value,
        "failures": breaker.failures,
        "reason": breaker.reason,
        "credentials": breaker.credentials,
        "opened_at": optional_text(breaker.opened_at),
        "probe_at": optional_text(breaker.probe_at),
        "openings": breaker.openings,
    }


def _to_breaker(row: Row) -> Breaker:
    try:
        state = BreakerState(row.text("state"))
    except ValueError:
        raise StoreError(
            f"table {row.table}, item {'/'.join(row.key)}: attribute state is"
            f" {row.text('state')!r}",
            hint=f"it should be one of {', '.join(BreakerState)}; delete the item to close it",
        ) from None
    return Breaker(
        tenant=row.text("tenant_id"),
        service=row.text("service_name"),
        state=state,
        failures=row.number("failures", 0),
        reason=row.text("reason", ""),
        credentials=row.flag("credentials", False),
        opened_at=row.maybe_moment("opened_at"),
        probe_at=row.maybe_moment("probe_at"),
        openings=row.number("openings", 0),
    )


def _counters_key(labels: Mapping[str, str]) -> Key:
    return _COUNTERS, f"{_label(labels.get('tenant'))}/{_label(labels.get('service'))}"


def _label(value: str | None) -> str:
    """A label's value within a key: a name as it is; others so that they stand for nothing else."""
    if value is None:
        return "-"
    try:
        text = "=" + quote(value, safe="")
    except UnicodeEncodeError as error:
        raise StoreError(
            "a counter's label is not valid Unicode (a lone surrogate)", hint="nothing was added"
        ) from error
    if len(text) > _LONGEST_NAME:
        return "#" + hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
    return text


def _summed(row: Row | None, plus: Mapping[tuple[str, _Labels], float]) -> list[Sample]:
    held = [] if row is None else unpacked(_samples, row)
    values = {(sample.name, sample.labels): sample.value for sample in held}
    for whose, amount in plus.items():
        values[whose] = values.get(whose, 0.0) + amount
    return [Sample(*whose, values[whose]) for whose in sorted(values)]


def _all_alarms(row: Row | None) -> dict[str, Alarm]:
    return {} if row is None else {alarm.key: alarm for alarm in unpacked(_alarms, row)}


def _fields_key(tenant: str, service: str, table: str) -> Key:
    return f"fields/{tenant}", f"{service}/{table}"


def _by_path(row: Row | None) -> dict[str, FieldSeen]:
    return {} if row is None else {field.path: field for field in unpacked(_known, row).fields}


def _log_writes(drifts: Sequence[Drift], number: int, key: Key) -> list[Write]:
    """The lines, numbered in their order: an item for each tenant, and that is one.

    It sorts by its newest line. Its key ends with the endpoint and its number, so nothing else
    has it.
    """
    of_tenant: dict[str, list[tuple[int, Drift]]] = defaultdict(list)
    for place, drift in enumerate(drifts):
        of_tenant[drift.tenant].append((number + place, drift))
    return [
        Put(
            HEALTH,
            {
                "scope": f"drift/{tenant}",
                "item": f"{newest}#{number}#{'/'.join(key)}",
                "newest": newest,
                DOCUMENT: packed("the drift log's lines", lines),
            },
        )
        for tenant, lines in of_tenant.items()
        if (newest := max(to_text(drift.seen_at) for _, drift in lines))
    ]


def _put(key: Key, held: Row | None, what: str, content: Any) -> Put:
    item = dict(held.item) if held is not None else {}
    return Put(
        HEALTH, {**item, "scope": key[0], "item": key[1], DOCUMENT: packed(what, content)}, held
    )


def _remove(database: DynamoDatabase, rows: Iterable[Row]) -> int:
    return database.remove(HEALTH, [row.key for row in rows])
