"""The simulator's back door: `POST /__sim__/{method}`, JSON in and out, header `X-Sim-Token`.

The methods and arguments are those of `avesa_dagster.sandbox.control`, with `ids` that are sys_ids,
and without `codebase`; they are not repeated here. `company_id` names an instance. What they have
in addition, and what there is beyond them:

    mutate         … silent: sys_updated_on, sys_updated_by and sys_mod_count stay as they were
    limit          limit_per_minute is a sliding minute as elsewhere; `announced` tells sixty times
                   as much in X-RateLimit-Limit, since ServiceNow speaks of hours
    hostility      … conditions of ServiceNow's own, see `script`
    truth_current  … brief: without sha256, which takes time in a large table. `table` may be a
                   parent class; a record that moved out of it counts as deleted, `kind` says
                   what it is now
    rates          rules [{scope: user | role | all, per_hour, table, window, lag}], company_id?
                   [] removes them; see `rates`
    token          lifetime, refresh_lifetime, company_id?     seconds, of tokens given from now on
    expire_tokens  refresh, company_id?                        all access tokens end now
    property       name, value, company_id?                    see `site.DEFAULT_PROPERTIES`
    user           time_zone, date_format, time_format, company_id?     of the integration user
    hibernate      on (true), company_id?
    table          table, readable: true | "denied" | "empty", installed, audited, company_id
    column         table, add | drop, kind, target, company_id          see `schema.Column`
    reparent       table, ids | count, to, at, silent, company_id       → ids
    purge_audit    before, company_id                          → purged
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from avesa_dagster.sandbox.backdoor import Arguments, BackDoor, instant, stamped
from avesa_dagster.sandbox.servicenow.poison import POISONS
from avesa_dagster.sandbox.servicenow.projection import Style
from avesa_dagster.sandbox.servicenow.schema import TABLES, Column, descendants, root_of
from avesa_dagster.sandbox.servicenow.script import Script
from avesa_dagster.sandbox.servicenow.site import DEFAULT_PROPERTIES, Instance, Site
from avesa_dagster.sandbox.servicenow.stamps import Zone
from avesa_dagster.sandbox.servicenow.store import Store, Version
from avesa_dagster.sandbox.site import DEFAULT_COMPANY
from avesa_dagster.sandbox.timestamps import stamp

_TRUTH_STYLE = Style("false", exclude_link=True)


class Control(BackDoor[Site, Instance]):
    """The control methods of one site."""

    def __init__(self, site: Site, token: str) -> None:
        first = site.instances[DEFAULT_COMPANY].world
        super().__init__(
            site,
            token,
            tables=TABLES,
            first=DEFAULT_COMPANY,
            seed=first.seed,
            spec=first.spec,
        )
        self._methods |= {
            "rates": self._rates,
            "mutate": self._mutate,
            "reparent": self._reparent,
            "delete": self._delete,
            "undelete": self._undelete,
            "create": self._create,
            "poison": self._poison,
            "purge_audit": self._purge_audit,
            "companies": self._companies,
            "token": self._token_lifetime,
            "expire_tokens": self._expire_tokens,
            "property": self._property,
            "user": self._user,
            "hibernate": self._hibernate,
            "table": self._table_settings,
            "column": self._column,
            "truth": self._truth,
            "truth_current": self._truth_current,
        }

    def _companies_by_id(self) -> Mapping[str, Instance]:
        return self._site.instances

    def _account(self, company: Instance) -> Instance:
        return company

    def _read(self, script: Arguments) -> Script:
        return Script.parse(script)

    def _obey(self, script: Any, company: Instance | None) -> None:
        if company is None:
            self._site.script = script
        else:
            company.script = script

    def _joined(self, company: Instance, given: Arguments) -> Any:
        return {"credentials": company.credentials(self._site.grant)}

    def _table(self, instance: Instance, given: Arguments) -> tuple[str, Store]:
        name = self._named_table(given)
        instance.world.settle(self._site.clock.now())
        return name, instance.world.store_of(name)

    def _rates(self, given: Arguments) -> Any:
        for instance in self._meant(given):
            instance.rules.set(given["rules"])
        return {}

    def _chosen(self, instance: Instance, given: Arguments, *, deleted: bool = False) -> list[int]:
        """The records given, or `count` of those that can be meant."""
        world = instance.world
        table, store = self._table(instance, given)
        if "ids" in given:
            numbers = {sys_id: store.number(sys_id) for sys_id in given["ids"]}
            unknown = [sys_id for sys_id, number in numbers.items() if number is None]
            if unknown:
                raise ValueError(f"no {table} {unknown}")
            return [number for number in numbers.values() if number is not None]
        if deleted:
            kinds = descendants(table)
            gone = [r for r in store.records.values() if r.deleted_at is not None]
            mine = [r.number for r in gone if r.versions[-1].kind in kinds]
            return world.some(int(given.get("count", len(mine))), mine)
        index = store.index(table, "id")
        places = world.some(int(given["count"]), range(len(index)))
        return sorted(store.number_of_key(index[place]) for place in places)

    def _ids(self, instance: Instance, given: Arguments, numbers: list[int]) -> Any:
        store = instance.world.store_of(given["table"])
        return {"ids": [store.sys_id(number) for number in numbers]}

    def _mutate(self, given: Arguments, to: str | None = None) -> Any:
        instance, at = self._company(given), instant(given.get("at"))
        with instance.lock:
            numbers = self._chosen(instance, given)
            changed = self._site.mutate(
                instance,
                given["table"],
                numbers,
                None if at is None else int(at),
                silent=given.get("silent"),
                to=to,
            )
            return self._ids(instance, given, changed)

    def _reparent(self, given: Arguments) -> Any:
        to = given["to"]
        if to not in TABLES or root_of(to) != root_of(given["table"]):
            raise ValueError(f"{given['table']} and {to!r} have no common parent")
        return self._mutate(given, str(to))

    def _delete(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            numbers = self._chosen(instance, given)
            moment = self._moment(given)
            return self._ids(
                instance, given, instance.world.delete(given["table"], numbers, moment)
            )

    def _undelete(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            numbers = self._chosen(instance, given, deleted=True)
            return self._ids(instance, given, instance.world.undelete(given["table"], numbers))

    def _create(self, given: Arguments) -> Any:
        instance, at = self._company(given), instant(given.get("at"))
        with instance.lock:
            table, _ = self._table(instance, given)
            count = int(given.get("count", 1))
            moment = None if at is None else int(at)
            made = self._site.create(instance, table, count, moment)
            return self._ids(instance, given, made)

    def _poison(self, given: Arguments) -> Any:
        instance = self._company(given)
        kinds = given.get("kinds", list(POISONS))
        unknown = set(kinds) - set(POISONS)
        if unknown:
            raise ValueError(f"no poison {sorted(unknown)}; there are {list(POISONS)}")
        with instance.lock:
            table, _ = self._table(instance, given)
            moment = self._moment(given)
            return {"ids": instance.world.poison(table, kinds, moment)}

    def _purge_audit(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            before = instant(given.get("before"))
            moment = self._site.clock.now() + 1 if before is None else before
            return {"purged": instance.world.purge_audit(int(moment))}

    def _companies(self, given: Arguments) -> Any:
        return {
            "companies": {
                instance.company_id: {
                    "credentials": instance.credentials(self._site.grant),
                    "basic": instance.credentials("basic"),
                    "password": instance.credentials("password"),
                    "client_credentials": instance.credentials("client_credentials"),
                    "sizes": asdict(instance.world.spec),
                }
                for instance in list(self._site.instances.values())
            }
        }

    def _token_lifetime(self, given: Arguments) -> Any:
        for instance in self._meant(given):
            tokens = instance.tokens
            tokens.lifetime = float(given.get("lifetime", tokens.lifetime))
            tokens.refresh_lifetime = float(given.get("refresh_lifetime", tokens.refresh_lifetime))
        return {}

    def _expire_tokens(self, given: Arguments) -> Any:
        for instance in self._meant(given):
            with instance.lock:
                instance.tokens.expire(refresh=bool(given.get("refresh", False)))
        return {}

    def _property(self, given: Arguments) -> Any:
        if given["name"] not in DEFAULT_PROPERTIES:
            raise ValueError(f"no property {given['name']!r}; there are {list(DEFAULT_PROPERTIES)}")
        for instance in self._meant(given):
            instance.properties[given["name"]] = str(given["value"]).lower()
        return {}

    def _user(self, given: Arguments) -> Any:
        formats = {name: given[name] for name in ("date_format", "time_format") if name in given}
        zone = Zone(given["time_zone"], **formats)
        for instance in self._meant(given):
            instance.zone = zone
        return {}

    def _hibernate(self, given: Arguments) -> Any:
        for instance in self._meant(given):
            instance.hibernating = bool(given.get("on", True))
        return {}

    def _table_settings(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table, _ = self._table(instance, given)
            if "readable" in given:
                readable = given["readable"]
                if readable not in (True, "denied", "empty"):
                    raise ValueError('readable is true, "denied" or "empty"')
                instance.unreadable.pop(table, None)
                if readable is not True:
                    instance.unreadable[table] = readable
            if "installed" in given:
                (instance.absent.discard if given["installed"] else instance.absent.add)(table)
            if "audited" in given:
                unaudited = instance.world.unaudited
                (unaudited.discard if given["audited"] else unaudited.add)(table)
        return {}

    def _column(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table, _ = self._table(instance, given)
            if "drop" in given:
                instance.world.drop_column(table, given["drop"])
            if "add" in given:
                kind, target = given.get("kind", "string"), given.get("target", "")
                instance.world.add_column(table, Column(given["add"], kind, target))
        return {}

    def _numbers(self, instance: Instance, given: Arguments) -> list[int]:
        if "ids" in given:
            return self._chosen(instance, given)
        return instance.world.numbers(given["table"])

    def _truth(self, given: Arguments) -> bytes:
        """Every version of every record, or of `ids`, as the table's columns show it."""
        instance = self._company(given)
        with instance.lock:
            table, store = self._table(instance, given)
            numbers = self._numbers(instance, given)
            lines = (_history(instance, table, store, number) for number in numbers)
            return b'{"records":{' + ",".join(lines).encode() + b"}}"

    def _truth_current(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table, store = self._table(instance, given)
            records = {}
            for number in self._numbers(instance, given):
                about = self._now(instance, table, store, number)
                if not given.get("brief"):
                    payload = _payload(instance, table, number, store.latest(number))
                    about["sha256"] = hashlib.sha256(payload.encode()).hexdigest()
                records[store.sys_id(number)] = about
            return {"records": records, "pending": store.pending}

    def _now(self, instance: Instance, table: str, store: Store, number: int) -> dict[str, Any]:
        record, latest = store.records.get(number), store.latest(number)
        gone = record is not None and record.deleted_at is not None
        shown = record is None or record.shown == len(record.versions) - 1
        return {
            "updated_at": stamped(latest.updated),
            "created_at": stamp(store.created(number)),
            "versions": 1 if record is None else len(record.versions),
            "deleted": gone or latest.kind not in descendants(table),
            "visible": shown,
            "restricted": self._site.restricted(instance, table, number),
            "poison": None if record is None else record.poison,
            "kind": latest.kind,
        }


def _payload(instance: Instance, table: str, number: int, version: Version) -> str:
    """A version as a list with `sysparm_exclude_reference_link=true` serves it, unhidden."""
    world = instance.world
    return world.render(table, number, version, _TRUTH_STYLE, instance.zone)


def _history(instance: Instance, table: str, store: Store, number: int) -> str:
    record = store.records.get(number)
    versions = [store.latest(number)] if record is None else record.versions
    shown = 0 if record is None else record.shown

    def written() -> Iterator[str]:
        for n, version in enumerate(versions):
            about = {"updated_at": stamped(version.updated), "visible": n <= shown}
            about["kind"] = version.kind
            payload = _payload(instance, table, number, version)
            yield json.dumps(about)[:-1] + f',"payload":{payload}}}'

    about = {
        "deleted_at": None if record is None else stamped(record.deleted_at),
        "poison": None if record is None else record.poison,
    }
    head = f'"{store.sys_id(number)}":' + json.dumps(about)[:-1]
    return head + ',"versions":[' + ",".join(written()) + "]}"
