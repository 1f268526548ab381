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
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.outages import Outage
from avesa_dagster.sandbox.servicenow.poison import POISONS
from avesa_dagster.sandbox.servicenow.projection import Style
from avesa_dagster.sandbox.servicenow.schema import TABLES, Column, descendants, root_of
from avesa_dagster.sandbox.servicenow.script import Script
from avesa_dagster.sandbox.servicenow.site import DEFAULT_PROPERTIES, Instance, Site
from avesa_dagster.sandbox.servicenow.stamps import Zone
from avesa_dagster.sandbox.servicenow.store import Store, Version
from avesa_dagster.sandbox.site import DEFAULT_COMPANY
from avesa_dagster.sandbox.timestamps import seconds, stamp
from avesa_dagster.sandbox.traffic import Limit
from avesa_dagster.sandbox.wire import Request, Response

PREFIX = "/__sim__/"
Arguments = dict[str, Any]
_TRUTH_STYLE = Style("false", exclude_link=True)


def _instant(value: Any) -> float | None:
    if value is None or isinstance(value, (int, float)):
        return value
    return seconds(str(value))


def _second(value: Any, default: float) -> int:
    instant = _instant(value)
    return int(default if instant is None else instant)


def _changed(given: Arguments) -> Interval | None:
    """The change times that an outage is for; None if neither end is given."""
    start, end = _instant(given.get("start")), _instant(given.get("end"))
    if start is None and end is None:
        return None
    low = Interval().low if start is None else start
    high = Interval().high if end is None else end
    if low >= high:
        raise ValueError(f"start {given['start']!r} is not before end {given['end']!r}")
    return Interval(low, high)


class Control:
    """The control methods of one site."""

    def __init__(self, site: Site, token: str) -> None:
        self._site = site
        self._token = token
        first = site.instances[DEFAULT_COMPANY].world
        self._first_seed, self._first_spec = first.seed, first.spec
        self._first_limit = Limit(site.traffic.limit_per_minute)
        self._first_latency = site.latency_seconds
        self._methods: dict[str, Callable[[Arguments], Any]] = {
            "reset": self._reset,
            "hostility": self._hostility,
            "limit": self._limit,
            "rates": self._rates,
            "latency": self._latency,
            "fail": lambda given: self._outage({"status": 500} | given),
            "hang": lambda given: self._outage({"seconds": given["seconds"]} | given),
            "heal": self._heal,
            "outages": lambda given: {"outages": self._site.outages.report()},
            "mutate": self._mutate,
            "reparent": self._reparent,
            "delete": self._delete,
            "undelete": self._undelete,
            "create": self._create,
            "poison": self._poison,
            "purge_audit": self._purge_audit,
            "freeze": lambda given: self._freeze(True),
            "thaw": lambda given: self._freeze(False),
            "clock": self._clock,
            "advance": self._advance,
            "add_company": self._add_company,
            "companies": self._companies,
            "revoke": lambda given: self._revoke(given, True),
            "restore": lambda given: self._revoke(given, False),
            "token": self._token_lifetime,
            "expire_tokens": self._expire_tokens,
            "property": self._property,
            "user": self._user,
            "hibernate": self._hibernate,
            "table": self._table_settings,
            "column": self._column,
            "truth": self._truth,
            "truth_current": self._truth_current,
            "stats": lambda given: self._site.traffic.report(int(given.get("log", 0))),
            "fetched": self._fetched,
            "stats_reset": self._stats_reset,
        }

    def handle(self, request: Request) -> Response:
        """Run one method; a mistake in the arguments is a 400 that says what it was."""
        given_token = request.headers.get("x-sim-token", "")
        if not secrets.compare_digest(given_token.encode(), self._token.encode()):
            return json_response(403, {"error": "X-Sim-Token is missing or wrong"})
        name = request.path[len(PREFIX) :]
        if name not in self._methods:
            return json_response(404, {"error": f"no method {name!r}", "is": list(self._methods)})
        try:
            given = json.loads(request.body or b"{}")
            return json_response(200, self._methods[name](given))
        except (ValueError, KeyError, TypeError) as problem:
            return json_response(400, {"error": f"{type(problem).__name__}: {problem}"})

    def _instance(self, given: Arguments) -> Instance:
        company_id = given.get("company_id", DEFAULT_COMPANY)
        if company_id not in self._site.instances:
            raise ValueError(f"no company {company_id!r}")
        return self._site.instances[company_id]

    def _one(self, given: Arguments) -> Instance | None:
        """The company that is named, None for the whole site."""
        return self._instance(given) if given.get("company_id") is not None else None

    def _meant(self, given: Arguments) -> list[Instance]:
        """The company that is named, or all."""
        one = self._one(given)
        return list(self._site.instances.values()) if one is None else [one]

    def _table_name(self, given: Arguments) -> str | None:
        """The table that is named, None for all."""
        name = given.get("table")
        if name is not None and name not in TABLES:
            raise ValueError(f"table must be one of {list(TABLES)}")
        return None if name is None else str(name)

    def _table(self, instance: Instance, given: Arguments) -> tuple[str, Store]:
        name = self._table_name(given)
        if name is None:
            raise ValueError(f"table must be one of {list(TABLES)}")
        instance.world.settle(self._site.clock.now())
        return name, instance.world.store_of(name)

    def _reset(self, given: Arguments) -> Any:
        sizes = dict(given.get("sizes", {}))
        if "years" in given:
            sizes["years"] = given["years"]
        self._site.rebuild(
            int(given.get("seed", self._first_seed)),
            self._first_spec.sized(sizes),
            _instant(given.get("now")),
        )
        traffic = self._site.traffic
        traffic.forget_own_limits()
        limited = "limit_per_minute" in given
        traffic.set_limit(Limit(given["limit_per_minute"]) if limited else self._first_limit)
        self._stats_reset({})
        self._site.latency_seconds = given.get("latency_ms", self._first_latency * 1000) / 1000
        script = dict(given.get("hostility", {}))
        if "page_clamp" in given:
            script["page_clamp"] = given["page_clamp"]
        self._hostility(script)
        return {"now": stamp(int(self._site.clock.now()))}

    def _hostility(self, given: Arguments) -> Any:
        instance = self._one(given)
        script = {name: value for name, value in given.items() if name != "company_id"}
        if instance is None:
            self._site.script = Script.parse(script)
        else:
            instance.script = Script.parse(script) if script else None
        return {}

    def _limit(self, given: Arguments) -> Any:
        instance = self._one(given)
        company_id = None if instance is None else instance.company_id
        limit = Limit(given["limit_per_minute"], bool(given.get("announced", False)))
        forget = bool(given.get("forget", True))
        self._site.traffic.set_limit(limit, company_id, forget=forget)
        return {}

    def _rates(self, given: Arguments) -> Any:
        for instance in self._meant(given):
            instance.rules.set(given["rules"])
        return {}

    def _latency(self, given: Arguments) -> Any:
        instance, seconds_each = self._one(given), float(given["latency_ms"]) / 1000
        if instance is None:
            self._site.latency_seconds = seconds_each
        else:
            instance.latency_seconds = seconds_each
        return {}

    def _outage(self, given: Arguments) -> Any:
        known = {"company_id", "table", "start", "end", "on", "status", "name", "seconds"}
        if set(given) - known:
            raise ValueError(f"an outage has no {sorted(set(given) - known)}")
        instance = self._one(given)
        on = given.get("on")
        outage = Outage(
            name=str(given.get("name", "")),
            company_id=None if instance is None else instance.company_id,
            table=self._table_name(given),
            changed=_changed(given),
            on=None if on is None else frozenset([on] if isinstance(on, str) else on),
            status=given.get("status"),
            seconds=float(given.get("seconds", 0.0)),
        )
        return {"name": self._site.outages.declare(outage)}

    def _heal(self, given: Arguments) -> Any:
        names = [given["name"]] if "name" in given else given.get("names")
        instance = self._one(given)
        company_id = None if instance is None else instance.company_id
        return {"met": self._site.outages.heal(names, company_id, self._table_name(given))}

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
        instance, at = self._instance(given), _instant(given.get("at"))
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
        instance = self._instance(given)
        with instance.lock:
            numbers = self._chosen(instance, given)
            moment = _second(given.get("at"), self._site.clock.now())
            return self._ids(
                instance, given, instance.world.delete(given["table"], numbers, moment)
            )

    def _undelete(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            numbers = self._chosen(instance, given, deleted=True)
            return self._ids(instance, given, instance.world.undelete(given["table"], numbers))

    def _create(self, given: Arguments) -> Any:
        instance, at = self._instance(given), _instant(given.get("at"))
        with instance.lock:
            table, _ = self._table(instance, given)
            count = int(given.get("count", 1))
            moment = None if at is None else int(at)
            made = self._site.create(instance, table, count, moment)
            return self._ids(instance, given, made)

    def _poison(self, given: Arguments) -> Any:
        instance = self._instance(given)
        kinds = given.get("kinds", list(POISONS))
        unknown = set(kinds) - set(POISONS)
        if unknown:
            raise ValueError(f"no poison {sorted(unknown)}; there are {list(POISONS)}")
        with instance.lock:
            table, _ = self._table(instance, given)
            moment = _second(given.get("at"), self._site.clock.now())
            return {"ids": instance.world.poison(table, kinds, moment)}

    def _purge_audit(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            before = _second(given.get("before"), self._site.clock.now() + 1)
            return {"purged": instance.world.purge_audit(before)}

    def _freeze(self, frozen: bool) -> Any:
        self._site.mutations_frozen = frozen
        return {}

    def _clock(self, given: Arguments) -> Any:
        clock = self._site.clock
        if "now" in given:
            now = _instant(given["now"])
            assert now is not None
            clock.set(now)
        if "offset_seconds" in given:
            clock.follow_real_time(float(given["offset_seconds"]))
        if "stopped" in given:
            clock.freeze(bool(given["stopped"]))
        return {"now": stamp(int(clock.now())), "epoch": clock.now()}

    def _advance(self, given: Arguments) -> Any:
        self._site.clock.advance(float(given["seconds"]))
        return self._clock({})

    def _add_company(self, given: Arguments) -> Any:
        site = self._site
        company_id = given.get("company_id") or f"company_{len(site.instances) + 1}"
        if company_id in site.instances:
            raise ValueError(f"{company_id!r} is there already")
        sizes = dict(given.get("sizes", {}))
        if "years" in given:
            sizes["years"] = given["years"]
        seed = int(given.get("seed", len(site.instances) + 1))
        script = Script.parse(given["hostility"]) if given.get("hostility") else None
        instance = site.add(company_id, seed, self._first_spec.sized(sizes))
        instance.script = script
        about = given | {"company_id": company_id}
        if "limit_per_minute" in given:
            self._limit(about)
        if "latency_ms" in given:
            self._latency(about)
        return {"credentials": instance.credentials(site.grant)}

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

    def _revoke(self, given: Arguments, revoked: bool) -> Any:
        self._instance(given).revoked = revoked
        return {}

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
        instance = self._instance(given)
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
        instance = self._instance(given)
        with instance.lock:
            table, _ = self._table(instance, given)
            if "drop" in given:
                instance.world.drop_column(table, given["drop"])
            if "add" in given:
                kind, target = given.get("kind", "string"), given.get("target", "")
                instance.world.add_column(table, Column(given["add"], kind, target))
        return {}

    def _fetched(self, given: Arguments) -> Any:
        instance = self._one(given)
        company_id = None if instance is None else instance.company_id
        return {"pages": self._site.fetched.report(company_id, self._table_name(given))}

    def _stats_reset(self, given: Arguments) -> Any:
        self._site.traffic.reset()
        self._site.fetched.reset()
        return {}

    def _numbers(self, instance: Instance, given: Arguments) -> list[int]:
        if "ids" in given:
            return self._chosen(instance, given)
        return instance.world.numbers(given["table"])

    def _truth(self, given: Arguments) -> bytes:
        """Every version of every record, or of `ids`, as the table's columns show it."""
        instance = self._instance(given)
        with instance.lock:
            table, store = self._table(instance, given)
            numbers = self._numbers(instance, given)
            lines = (_history(instance, table, store, number) for number in numbers)
            return b'{"records":{' + ",".join(lines).encode() + b"}}"

    def _truth_current(self, given: Arguments) -> Any:
        instance = self._instance(given)
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
            "updated_at": _stamp(latest.updated),
            "created_at": stamp(store.created(number)),
            "versions": 1 if record is None else len(record.versions),
            "deleted": gone or latest.kind not in descendants(table),
            "visible": shown,
            "restricted": self._site.restricted(instance, table, number),
            "poison": None if record is None else record.poison,
            "kind": latest.kind,
        }


def _stamp(epoch: int | None) -> str | None:
    return None if epoch is None else stamp(epoch)


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
            about = {"updated_at": _stamp(version.updated), "visible": n <= shown}
            about["kind"] = version.kind
            payload = _payload(instance, table, number, version)
            yield json.dumps(about)[:-1] + f',"payload":{payload}}}'

    about = {
        "deleted_at": None if record is None else _stamp(record.deleted_at),
        "poison": None if record is None else record.poison,
    }
    head = f'"{store.sys_id(number)}":' + json.dumps(about)[:-1]
    return head + ',"versions":[' + ",".join(written()) + "]}"
