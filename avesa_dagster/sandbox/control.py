"""The simulator's back door: `POST /__sim__/{method}`, JSON in and out, header `X-Sim-Token`.

Every method that concerns one company's records takes `company_id`; without it the first company is
meant. Where it is written `company_id?`, leaving it out means the whole site. Instants are ISO 8601
texts or seconds since 1970 UTC. What is not given to `reset` is as it was when the process started,
except `now` (the real time) and `hostility` (none).

    reset          seed, sizes{}, years, now, limit_per_minute, latency_ms, page_clamp, hostility{}
    hostility      company_id?, a script, see `hostility`; {} ends it. A company's own script is in
                   force for it in place of the site's
    limit          limit_per_minute | null, company_id?, announced, forget → {}
                   per credential; a company's own limit goes before the site's. `announced`: every
                   answer tells it in X-RateLimit-Limit and X-RateLimit-Remaining. `forget` (true):
                   the requests of the last minute do not count against it
    latency        latency_ms, company_id?
    fail           company_id?, table, start, end, on, status (500), name → name; see `outages`
                   Until healed, requests that match answer with this status. With `start` or `end`
                   only those whose own conditions bound the change time and overlap [start, end)
    hang           seconds, and as `fail` (status: as usual): they are answered so much later, or
                   when healed
    heal           name | names, company_id?, table (none: all outages) → met {name: requests}
    outages        → outages [{name, company_id, table, status, seconds, met}]
    mutate         table, ids | count, at     → ids
    create         table, count, at           → ids
    delete         table, ids | count, at     → ids
    undelete       table, ids | count         → ids
    poison         table, kinds, at           → ids {kind: id}
    field          table, add: records that are new or change from now on have such a field
    freeze, thaw   the changes that a script makes by itself
    clock          now | offset_seconds, stopped  → now, epoch
    advance        seconds                    → now, epoch
    codebase       to                         → codebase
    add_company    company_id, seed, sizes{}, years, limit_per_minute, announced, latency_ms,
                   hostility{}                → credentials
    companies      → companies {company_id: {credentials, sizes{}}}
    revoke, restore  company_id
    truth          table, ids                 → records {id: {deleted_at, poison, versions []}}
    truth_current  table, ids                 → records {id: {…}}, pending
    stats          log (how many requests)    → counts, per minute and company too
    fetched        company_id?, table         → pages: what was given and how often, see `fetched`
    stats_reset    the counts of `stats` and `fetched`
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
from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.outages import Outage
from avesa_dagster.sandbox.poison import POISONS
from avesa_dagster.sandbox.schema import TABLES
from avesa_dagster.sandbox.site import DEFAULT_COMPANY, Instance, Site
from avesa_dagster.sandbox.table import Record, Table
from avesa_dagster.sandbox.timestamps import seconds, stamp
from avesa_dagster.sandbox.traffic import Limit
from avesa_dagster.sandbox.wire import Request, Response

PREFIX = "/__sim__/"
Arguments = dict[str, Any]


def _instant(value: Any) -> float | None:
    if value is None or isinstance(value, (int, float)):
        return value
    return seconds(str(value))


def _whole_second(value: Any) -> int | None:
    instant = _instant(value)
    return None if instant is None else int(instant)


def _changed(given: Arguments) -> Interval | None:
    """The change times that an outage is for; None if neither end is given."""
    start, end = _instant(given.get("start")), _instant(given.get("end"))
    if start is None and end is None:
        return None
    changed = Interval(
        Interval().low if start is None else start, Interval().high if end is None else end
    )
    if changed.low >= changed.high:
        raise ValueError(f"start {given['start']!r} is not before end {given['end']!r}")
    return changed


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
            "latency": self._latency,
            "fail": lambda given: self._outage({"status": 500} | given),
            "hang": lambda given: self._outage({"seconds": given["seconds"]} | given),
            "heal": self._heal,
            "outages": lambda given: {"outages": self._site.outages.report()},
            "mutate": self._mutate,
            "delete": self._delete,
            "undelete": self._undelete,
            "create": self._create,
            "poison": self._poison,
            "field": self._field,
            "freeze": lambda given: self._freeze(True),
            "thaw": lambda given: self._freeze(False),
            "clock": self._clock,
            "advance": self._advance,
            "codebase": self._codebase,
            "add_company": self._add_company,
            "companies": self._companies,
            "revoke": lambda given: self._revoke(given, True),
            "restore": lambda given: self._revoke(given, False),
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

    def _table(self, instance: Instance, given: Arguments) -> Table:
        if given.get("table") not in instance.world.tables:
            raise ValueError(f"table must be one of {list(instance.world.tables)}")
        instance.world.settle(self._site.clock.now())
        return instance.world.tables[given["table"]]

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
            self._site.hostility = Hostility.parse(script)
        else:
            instance.hostility = Hostility.parse(script) if script else None
        return {}

    def _limit(self, given: Arguments) -> Any:
        instance = self._one(given)
        self._site.traffic.set_limit(
            Limit(given["limit_per_minute"], bool(given.get("announced", False))),
            None if instance is None else instance.company_id,
            forget=bool(given.get("forget", True)),
        )
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

    def _table_name(self, given: Arguments) -> str | None:
        """The table that is named, None for all."""
        name = given.get("table")
        if name is not None and name not in TABLES:
            raise ValueError(f"table must be one of {list(TABLES)}")
        return None if name is None else str(name)

    def _chosen(
        self, instance: Instance, table: Table, given: Arguments, *, deleted: bool = False
    ) -> list[int]:
        """The ids given, or `count` of the records that can be meant."""
        if "ids" in given:
            unknown = [id for id in given["ids"] if id not in table.records]
            if unknown:
                raise ValueError(f"no {table.name} {unknown}")
            return list(given["ids"])
        if deleted:
            gone = [r.id for r in table.records.values() if r.deleted_at is not None]
            return instance.world.some(table.name, int(given.get("count", len(gone))), gone)
        return sorted(instance.world.some(table.name, int(given["count"])))

    def _mutate(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            table = self._table(instance, given)
            ids = self._chosen(instance, table, given)
            at = _whole_second(given.get("at"))
            return {"ids": self._site.mutate(instance, table.name, ids, at)}

    def _delete(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            table = self._table(instance, given)
            ids = self._chosen(instance, table, given)
            at = _whole_second(given.get("at"))
            moment = int(self._site.clock.now()) if at is None else at
            return {"ids": instance.world.delete(table.name, ids, moment)}

    def _undelete(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            table = self._table(instance, given)
            ids = self._chosen(instance, table, given, deleted=True)
            return {"ids": instance.world.undelete(table.name, ids)}

    def _create(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            table = self._table(instance, given)
            at = _whole_second(given.get("at"))
            count = int(given.get("count", 1))
            return {"ids": self._site.create(instance, table.name, count, at)}

    def _poison(self, given: Arguments) -> Any:
        instance = self._instance(given)
        kinds = given.get("kinds", list(POISONS))
        unknown = set(kinds) - set(POISONS)
        if unknown:
            raise ValueError(f"no poison {sorted(unknown)}; there are {list(POISONS)}")
        with instance.lock:
            table = self._table(instance, given)
            at = _whole_second(given.get("at"))
            moment = int(self._site.clock.now()) if at is None else at
            return {"ids": instance.world.poison(table.name, kinds, moment)}

    def _field(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            instance.world.fields[self._table(instance, given).name].append(str(given["add"]))
        return {}

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

    def _codebase(self, given: Arguments) -> Any:
        self._site.upgrade(given.get("to"))
        return {"codebase": self._site.codebase}

    def _add_company(self, given: Arguments) -> Any:
        site = self._site
        company_id = given.get("company_id") or f"company_{len(site.instances) + 1}"
        if company_id in site.instances:
            raise ValueError(f"{company_id!r} is there already")
        sizes = dict(given.get("sizes", {}))
        if "years" in given:
            sizes["years"] = given["years"]
        seed = int(given.get("seed", len(site.instances) + 1))
        hostility = Hostility.parse(given["hostility"]) if given.get("hostility") else None
        instance = site.add(company_id, seed, self._first_spec.sized(sizes))
        instance.hostility = hostility
        about = given | {"company_id": company_id}
        if "limit_per_minute" in given:
            self._limit(about)
        if "latency_ms" in given:
            self._latency(about)
        return {"credentials": instance.credentials(site.url)}

    def _companies(self, given: Arguments) -> Any:
        return {
            "companies": {
                instance.company_id: {
                    "credentials": instance.credentials(self._site.url),
                    "sizes": asdict(instance.world.spec),
                }
                for instance in list(self._site.instances.values())
            }
        }

    def _revoke(self, given: Arguments, revoked: bool) -> Any:
        self._instance(given).revoked = revoked
        return {}

    def _fetched(self, given: Arguments) -> Any:
        instance = self._one(given)
        company_id = None if instance is None else instance.company_id
        return {"pages": self._site.fetched.report(company_id, self._table_name(given))}

    def _stats_reset(self, given: Arguments) -> Any:
        self._site.traffic.reset()
        self._site.fetched.reset()
        return {}

    def _truth(self, given: Arguments) -> bytes:
        """Every version of every record, or of `ids`; written as bytes, payloads untouched."""
        instance = self._instance(given)
        with instance.lock:
            table = self._table(instance, given)
            records = [table.records[id] for id in given.get("ids", table.records)]
            return b'{"records":{' + b",".join(map(_history, records)) + b"}}"

    def _truth_current(self, given: Arguments) -> Any:
        instance = self._instance(given)
        with instance.lock:
            table = self._table(instance, given)
            records = [table.records[id] for id in given.get("ids", table.records)]
            return {
                "records": {
                    str(record.id): {
                        "updated_at": _stamp(record.versions[-1].updated),
                        "sha256": hashlib.sha256(record.versions[-1].payload).hexdigest(),
                        "versions": len(record.versions),
                        "deleted": record.deleted_at is not None,
                        "visible": record.shown == len(record.versions) - 1,
                        "restricted": self._site.restricted(instance, table.name, record.id),
                        "poison": record.poison,
                    }
                    for record in records
                },
                "pending": table.pending,
            }


def _stamp(epoch: int | None) -> str | None:
    return None if epoch is None else stamp(epoch)


def _history(record: Record) -> bytes:
    def versions() -> Iterator[bytes]:
        for n, version in enumerate(record.versions):
            about = {"updated_at": _stamp(version.updated), "visible": n <= record.shown}
            yield json.dumps(about).encode()[:-1] + b',"payload":' + version.payload + b"}"

    about = {"deleted_at": _stamp(record.deleted_at), "poison": record.poison}
    head = b'"%d":' % record.id + json.dumps(about).encode()[:-1]
    return head + b',"versions":[' + b",".join(versions()) + b"]}"
