"""The simulator's back door: `POST /__sim__/{method}`, JSON in and out, header `X-Sim-Token`.

The verbs and arguments of `sandbox.control`, so that one suite can drive every service; a company
is an org, a table an object (`Case`), an id the text that the API emits (15 characters will do).
Instants are ISO 8601 or seconds since 1970 UTC. `company_id` may be left out everywhere: the first
org is meant, or where it is written `company_id?` the whole site.

    reset          seed, sizes{}, years, now, limit_per_minute, latency_ms, page_clamp, hostility{}
    hostility      company_id?, a script, see `hostility`; {} ends it
    limit          limit_per_minute | null, company_id?, announced, forget: refused as too many
                   requests at once (403, no Retry-After). `announced`: told as per-app-api-usage
    latency        latency_ms, company_id?
    fail, hang     company_id?, table, start, end, on, status, seconds, name → name
    heal           name | names, company_id?, table → met {name: requests}
    outages        → outages []
    mutate         table, ids | count, at → ids
    create         table, count, at → ids
    delete         table, ids | count, at → ids: into the recycle bin
    undelete       table, ids | count, at, silent (no stamp tells it) → ids
    poison         table, kinds, at → ids {kind: id}, of the kinds that the object's fields allow
    freeze, thaw, clock, advance, add_company (and `sandbox`), companies, revoke, restore
    truth          table, ids, fields → records {id: {deleted_at, gone_at, poison, versions []}}
    truth_current  table, ids, fields → records {id: {updated_at, sha256, versions, deleted, gone,
                   archived, visible, restricted, poison, deleted_at}}, pending. `sha256` is of the
                   compact JSON, keys sorted, ASCII only, of the payload: every field (or `fields`)
                   as REST gives it, compound ones left out. With
                   `fields`, a few seconds for 200,000 records
    stats, fetched, stats_reset

Only here:

    counts         table → all, live, deleted, archived, gone
    bump           table, ids | count | all, at → changed: SystemModstamp moves, nothing else
    formulas       table: its calculated fields change and no stamp tells it → epoch
    hard_delete    table, ids | count → ids: no query and no getDeleted knows them any more
    purge          table, min_age_seconds (7200), log → ids: the recycle bin is emptied; with `log`
                   getDeleted forgets, too
    merge          table, master, ids, at → ids
    archive        table, before → archived
    credentials    grant (client_credentials, jwt, refresh_token, password) → credentials
    session        lifetime_seconds: of the sessions to come
    expire         company_id?: all sessions → expired
    rotation       on: whether refresh tokens are rotated
    instance       to (same, localhost, port) → instance_url that tokens tell; elsewhere data is 401
    sandbox        on: the org is a sandbox, or a production org
    hibernate      on, status (200): every answer is an HTML page
    api            enabled, rest: false is API_DISABLED_FOR_ORG, or a session not valid for REST
    allowance      max, spend (by other apps, now), restore, jobs_max, storage_mb_max, per_app
                   {limit, name} → what is used and left
    concurrency    limit, held (by other apps), long_seconds
    fields         table, hide [], show [], add ["Name__c:type"] → hidden []
    object         table, accessible
    jobs           → jobs []
    end_jobs       ids, state (Failed, Aborted), message, → ids: those named, or all that run
    leave_jobs     count, own (false: another user's) → ids: left over from before
    end_locators   → ended: of queries and of results
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.outages import Outage
from avesa_dagster.sandbox.salesforce import bulk, faults, hostility, plan
from avesa_dagster.sandbox.salesforce.org import POISONS, Org
from avesa_dagster.sandbox.salesforce.rows import values_of
from avesa_dagster.sandbox.salesforce.schema import TABLES
from avesa_dagster.sandbox.salesforce.site import DEFAULT_COMPANY, Site, Tenancy
from avesa_dagster.sandbox.salesforce.table import ARCHIVED, GONE, Table, Version
from avesa_dagster.sandbox.timestamps import seconds, stamp
from avesa_dagster.sandbox.traffic import Limit
from avesa_dagster.sandbox.wire import Request, Response

PREFIX = "/__sim__/"
_AT_ONCE = 2000
Arguments = dict[str, Any]


def _instant(value: Any) -> float | None:
    if value is None or isinstance(value, (int, float)):
        return value
    return seconds(str(value))


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
        first = site.tenancies[DEFAULT_COMPANY].org
        self._first_seed, self._first_spec = first.seed, first.spec
        self._first_limit = Limit(site.traffic.limit_per_minute)
        self._first_latency: float | None = None
        own = [name for name in dir(self) if name.startswith("do_")]
        self._methods: dict[str, Callable[[Arguments], Any]] = {
            name.removeprefix("do_"): getattr(self, name) for name in own
        }

    def handle(self, request: Request) -> Response:
        """Run one method; a mistake in the arguments is a 400 that says what it was."""
        given_token = request.headers.get("x-sim-token", "")
        if not secrets.compare_digest(given_token.encode(), self._token.encode()):
            return json_response(403, {"error": "X-Sim-Token is missing or wrong"})
        name = request.path[len(PREFIX) :]
        if name not in self._methods:
            return json_response(404, {"error": f"no method {name!r}", "is": list(self._methods)})
        if self._first_latency is None:
            self._first_latency = self._site.latency_seconds
        try:
            given = json.loads(request.body or b"{}")
            return json_response(200, self._methods[name](given))
        except (ValueError, KeyError, TypeError) as problem:
            return json_response(400, {"error": f"{type(problem).__name__}: {problem}"})

    # ---- whom and what

    def _tenancy(self, given: Arguments) -> Tenancy:
        company_id = given.get("company_id", DEFAULT_COMPANY)
        if company_id not in self._site.tenancies:
            raise ValueError(f"no company {company_id!r}")
        return self._site.tenancies[company_id]

    def _one(self, given: Arguments) -> Tenancy | None:
        """The org that is named, None for the whole site."""
        return self._tenancy(given) if given.get("company_id") is not None else None

    def _company_id(self, given: Arguments) -> str | None:
        one = self._one(given)
        return None if one is None else one.org.company_id

    def _table_name(self, given: Arguments) -> str | None:
        """The table that is named, None for all."""
        name = given.get("table")
        if name is not None and name not in TABLES:
            raise ValueError(f"table must be one of {list(TABLES)}")
        return None if name is None else str(name)

    def _table(self, tenancy: Tenancy, given: Arguments) -> Table:
        name = self._table_name(given)
        if name is None:
            raise ValueError(f"table must be one of {list(TABLES)}")
        tenancy.org.settle(self._site.clock.now())
        return tenancy.org.tables[name]

    def _moment(self, given: Arguments) -> int:
        at = _instant(given.get("at"))
        return int(self._site.clock.now() if at is None else at)

    def _numbers(self, table: Table, ids: Iterable[str]) -> list[int]:
        numbers = {id: plan.number_of(table, str(id)) for id in ids}
        unknown = [id for id, number in numbers.items() if number is None]
        if unknown:
            raise ValueError(f"no {table.info.name} {unknown}")
        return [number for number in numbers.values() if number is not None]

    def _chosen(
        self, org: Org, table: Table, given: Arguments, *, deleted: bool = False
    ) -> list[int]:
        """The records given, or `count` of those that can be meant."""
        if "ids" in given:
            return self._numbers(table, given["ids"])
        if deleted:
            gone = org.deleted_numbers(table.info.name)
            return org.some(table.info.name, int(given.get("count", len(gone))), gone)
        return sorted(org.some(table.info.name, int(given["count"])))

    def _ids(self, org: Org, table: Table, numbers: Iterable[int]) -> dict[str, list[str]]:
        return {"ids": [org.id(table.info.name, number) for number in numbers]}

    # ---- the site

    def do_reset(self, given: Arguments) -> Any:
        site, sizes = self._site, dict(given.get("sizes", {}))
        if "years" in given:
            sizes["years"] = given["years"]
        site.rebuild(
            int(given.get("seed", self._first_seed)),
            self._first_spec.sized(sizes),
            _instant(given.get("now")),
        )
        site.traffic.forget_own_limits()
        limited = "limit_per_minute" in given
        site.traffic.set_limit(Limit(given["limit_per_minute"]) if limited else self._first_limit)
        self.do_stats_reset({})
        if "latency_ms" in given:
            site.latency_seconds = float(given["latency_ms"]) / 1000
        else:
            site.latency_seconds = self._first_latency or 0.0
        script = dict(given.get("hostility", {}))
        if "page_clamp" in given:
            script["page_clamp"] = given["page_clamp"]
        self.do_hostility(script)
        return {"now": stamp(int(site.clock.now()))}

    def do_hostility(self, given: Arguments) -> Any:
        one = self._one(given)
        script = {name: value for name, value in given.items() if name != "company_id"}
        if one is None:
            self._site.hostility = hostility.parse(script)
        else:
            one.org.hostility = hostility.parse(script) if script else None
        return {}

    def do_limit(self, given: Arguments) -> Any:
        one, announced = self._one(given), bool(given.get("announced", False))
        most = given["limit_per_minute"]
        self._site.traffic.set_limit(
            Limit(most, announced),
            None if one is None else one.org.company_id,
            forget=bool(given.get("forget", True)),
        )
        for tenancy in self._site.tenancies.values() if one is None else [one]:
            told = (int(most), "avesa") if announced and most is not None else None
            tenancy.org.allowance.per_app = told
        return {}

    def do_latency(self, given: Arguments) -> Any:
        one, seconds_each = self._one(given), float(given["latency_ms"]) / 1000
        if one is None:
            self._site.latency_seconds = seconds_each
        else:
            one.org.latency_seconds = seconds_each
        return {}

    def do_fail(self, given: Arguments) -> Any:
        return self._outage({"status": 500} | given)

    def do_hang(self, given: Arguments) -> Any:
        return self._outage({"seconds": given["seconds"]} | given)

    def _outage(self, given: Arguments) -> Any:
        known = {"company_id", "table", "start", "end", "on", "status", "name", "seconds"}
        if set(given) - known:
            raise ValueError(f"an outage has no {sorted(set(given) - known)}")
        on = given.get("on")
        outage = Outage(
            name=str(given.get("name", "")),
            company_id=self._company_id(given),
            table=self._table_name(given),
            changed=_changed(given),
            on=None if on is None else frozenset([on] if isinstance(on, str) else on),
            status=given.get("status"),
            seconds=float(given.get("seconds", 0.0)),
        )
        return {"name": self._site.outages.declare(outage)}

    def do_heal(self, given: Arguments) -> Any:
        names = [given["name"]] if "name" in given else given.get("names")
        company_id, table = self._company_id(given), self._table_name(given)
        return {"met": self._site.outages.heal(names, company_id, table)}

    def do_outages(self, given: Arguments) -> Any:
        return {"outages": self._site.outages.report()}

    def do_freeze(self, given: Arguments) -> Any:
        self._site.mutations_frozen = True
        return {}

    def do_thaw(self, given: Arguments) -> Any:
        self._site.mutations_frozen = False
        return {}

    def do_clock(self, given: Arguments) -> Any:
        clock = self._site.clock
        if "now" in given:
            now = _instant(given["now"])
            if now is None:
                raise ValueError("now is missing")
            clock.set(now)
        if "offset_seconds" in given:
            clock.follow_real_time(float(given["offset_seconds"]))
        if "stopped" in given:
            clock.freeze(bool(given["stopped"]))
        return {"now": stamp(int(clock.now())), "epoch": clock.now()}

    def do_advance(self, given: Arguments) -> Any:
        self._site.clock.advance(float(given["seconds"]))
        return self.do_clock({})

    def do_stats(self, given: Arguments) -> Any:
        return self._site.traffic.report(int(given.get("log", 0)))

    def do_fetched(self, given: Arguments) -> Any:
        company_id, table = self._company_id(given), self._table_name(given)
        return {"pages": self._site.fetched.report(company_id, table)}

    def do_stats_reset(self, given: Arguments) -> Any:
        self._site.traffic.reset()
        self._site.fetched.reset()
        return {}

    # ---- orgs, and who may enter

    def do_add_company(self, given: Arguments) -> Any:
        site = self._site
        company_id = given.get("company_id") or f"company_{len(site.tenancies) + 1}"
        if company_id in site.tenancies:
            raise ValueError(f"{company_id!r} is there already")
        sizes = dict(given.get("sizes", {}))
        if "years" in given:
            sizes["years"] = given["years"]
        seed = int(given.get("seed", len(site.tenancies) + 1))
        script = hostility.parse(given["hostility"]) if given.get("hostility") else None
        tenancy = site.add(company_id, seed, self._first_spec.sized(sizes))
        tenancy.org.hostility = script
        tenancy.org.sandbox = bool(given.get("sandbox", False))
        about = given | {"company_id": company_id}
        if "limit_per_minute" in given:
            self.do_limit(about)
        if "latency_ms" in given:
            self.do_latency(about)
        return self.do_credentials(about)

    def do_companies(self, given: Arguments) -> Any:
        return {
            "companies": {
                company_id: {
                    "credentials": tenancy.app.credentials(self._site.url, "client_credentials"),
                    "sizes": asdict(tenancy.org.spec),
                    "sandbox": tenancy.org.sandbox,
                }
                for company_id, tenancy in list(self._site.tenancies.items())
            }
        }

    def do_credentials(self, given: Arguments) -> Any:
        tenancy, kind = self._tenancy(given), str(given.get("grant", "client_credentials"))
        with tenancy.org.lock:
            return {"credentials": tenancy.app.credentials(self._site.url, kind)}

    def do_revoke(self, given: Arguments) -> Any:
        self._tenancy(given).org.revoked = True
        return {}

    def do_restore(self, given: Arguments) -> Any:
        self._tenancy(given).org.revoked = False
        return {}

    def do_session(self, given: Arguments) -> Any:
        self._tenancy(given).app.session_seconds = float(given["lifetime_seconds"])
        return {}

    def do_expire(self, given: Arguments) -> Any:
        now = self._site.clock.now()
        return {"expired": self._site.sessions.end_all(self._company_id(given), now)}

    def do_rotation(self, given: Arguments) -> Any:
        self._tenancy(given).app.rotation = bool(given["on"])
        return {}

    def do_instance(self, given: Arguments) -> Any:
        site = self._site
        places = {"same": site.url, "port": site.other_url}
        places["localhost"] = site.url.replace("127.0.0.1", "localhost")
        if given.get("to") not in places:
            raise ValueError(f"to must be one of {list(places)}")
        site.instance_url = places[given["to"]]
        return {"instance_url": site.instance_url}

    def do_sandbox(self, given: Arguments) -> Any:
        self._tenancy(given).org.sandbox = bool(given["on"])
        return {}

    def do_hibernate(self, given: Arguments) -> Any:
        on, status = bool(given.get("on", True)), int(given.get("status", 200))
        self._tenancy(given).org.hibernating = status if on else None
        return {}

    def do_api(self, given: Arguments) -> Any:
        org = self._tenancy(given).org
        org.api_enabled = bool(given.get("enabled", org.api_enabled))
        org.rest_allowed = bool(given.get("rest", org.rest_allowed))
        return {}

    def do_allowance(self, given: Arguments) -> Any:
        now, allowance = self._site.clock.now(), self._tenancy(given).org.allowance
        if given.get("restore"):
            allowance.restore()
        allowance.most = int(given.get("max", allowance.most))
        allowance.jobs_most = int(given.get("jobs_max", allowance.jobs_most))
        allowance.storage_most_mb = float(given.get("storage_mb_max", allowance.storage_most_mb))
        if "per_app" in given:
            told = given["per_app"]
            allowance.per_app = None if told is None else (int(told["limit"]), str(told["name"]))
        if "spend" in given:
            allowance.spend_by_others(now, float(given["spend"]))
        return allowance.report(now)

    def do_concurrency(self, given: Arguments) -> Any:
        kept = self._tenancy(given).concurrency
        kept.most = int(given.get("limit", kept.most))
        kept.held = int(given.get("held", kept.held))
        kept.long_seconds = float(given.get("long_seconds", kept.long_seconds))
        return {"limit": kept.most, "held": kept.held, "long_seconds": kept.long_seconds}

    # ---- the schema

    def do_fields(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            hide, show = set(given.get("hide", ())), set(given.get("show", ()))
            if (hide | show) - set(table.fields):
                raise ValueError(f"no field {sorted((hide | show) - set(table.fields))}")
            for token in given.get("add", ()):
                tenancy.org.add_field(table.info.name, token)
            table.hidden = (table.hidden | hide) - show
            return {"hidden": sorted(table.hidden)}

    def do_object(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            self._table(tenancy, given).accessible = bool(given["accessible"])
        return {}

    # ---- records

    def do_mutate(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given)
            moment = self._moment(given)
            changed = self._site.mutate(tenancy, table.info.name, numbers, moment)
            return self._ids(tenancy.org, table, changed)

    def do_create(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            count, moment = int(given.get("count", 1)), self._moment(given)
            made = self._site.create(tenancy, table.info.name, count, moment)
            return self._ids(tenancy.org, table, made)

    def do_delete(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given)
            gone = tenancy.org.delete(table.info.name, numbers, self._moment(given))
            return self._ids(tenancy.org, table, gone)

    def do_undelete(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given, deleted=True)
            at = None if given.get("silent") else self._moment(given)
            back = tenancy.org.undelete(table.info.name, numbers, at)
            return self._ids(tenancy.org, table, back)

    def do_poison(self, given: Arguments) -> Any:
        tenancy, kinds = self._tenancy(given), given.get("kinds", list(POISONS))
        if set(kinds) - set(POISONS):
            unknown = sorted(set(kinds) - set(POISONS))
            raise ValueError(f"no poison {unknown}; there are {list(POISONS)}")
        with tenancy.org.lock:
            name = self._table(tenancy, given).info.name
            made = tenancy.org.poison(name, kinds, self._moment(given))
            return {"ids": {kind: tenancy.org.id(name, number) for kind, number in made.items()}}

    def do_bump(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            if given.get("all"):
                numbers: Sequence[int] = table.by_number(0, len(table), False)
            else:
                numbers = self._chosen(tenancy.org, table, given)
            moved = tenancy.org.bump(table.info.name, numbers, self._moment(given))
            return {"changed": len(moved)}

    def do_formulas(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            table.epoch += 1
            return {"epoch": table.epoch}

    def do_hard_delete(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given)
            gone = tenancy.org.hard_delete(table.info.name, numbers, self._moment(given))
            return self._ids(tenancy.org, table, gone)

    def do_purge(self, given: Arguments) -> Any:
        tenancy, now = self._tenancy(given), self._site.clock.now()
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            before = now - float(given.get("min_age_seconds", 7200))
            log = bool(given.get("log", False))
            gone = tenancy.org.purge(table.info.name, before, int(now), log=log)
            return self._ids(tenancy.org, table, gone)

    def do_merge(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            [master] = self._numbers(table, [given["master"]])
            losers = self._numbers(table, given["ids"])
            gone = tenancy.org.merge(table.info.name, master, losers, self._moment(given))
            return self._ids(tenancy.org, table, gone)

    def do_archive(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table, before = self._table(tenancy, given), _instant(given["before"])
            if "IsArchived" not in table.fields or before is None:
                raise ValueError(f"{table.info.name} is never archived")
            return {"archived": table.archive(int(before))}

    # ---- bulk jobs

    def do_jobs(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            return {"jobs": [job.report() for job in tenancy.jobs.all(self._site.clock.now())]}

    def do_end_jobs(self, given: Arguments) -> Any:
        tenancy, state = self._tenancy(given), given.get("state", "Aborted")
        if state not in ("Failed", "Aborted"):
            raise ValueError("state must be Failed or Aborted")
        with tenancy.org.lock:
            now, ended = self._site.clock.now(), []
            for job in tenancy.jobs.all(now):
                if job.id not in given.get("ids", [job.id]):
                    continue
                if job.state in ("UploadComplete", "InProgress"):
                    ended.append(job.id)
                    if state == "Aborted":
                        bulk.abort(job)
                    else:
                        bulk.fail(job, str(given.get("message", "InternalServerError")))
            return {"ids": ended}

    def do_leave_jobs(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            users = tenancy.org.known_ids("User")
            user = users[0] if given.get("own", True) else users[-1]
            count, now = int(given.get("count", 1)), self._site.clock.now()
            return {"ids": tenancy.jobs.leave(tenancy.org, count, user, now, 60.0)}

    def do_end_locators(self, given: Arguments) -> Any:
        return {"ended": faults.end_locators(self._tenancy(given))}

    # ---- the truth

    def _all(self, table: Table, given: Arguments) -> list[int]:
        if "ids" in given:
            return self._numbers(table, given["ids"])
        return list(range(len(table)))

    def do_counts(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            flags = table.flags
            return {
                "all": len(table),
                "live": table.number_count(0, len(table), False),
                "visible": table.number_count(0, len(table), True),
                "archived": sum(bool(one & ARCHIVED) for one in flags),
                "gone": sum(bool(one & GONE) for one in flags),
            }

    def do_truth(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            found = {}
            for number in self._all(table, given):
                record = table.records.get(number)
                versions = [table.untouched(number)] if record is None else record.versions
                payloads = _payloads(table, [number] * len(versions), versions, given)
                found[tenancy.org.id(table.info.name, number)] = {
                    "deleted_at": None if record is None else _stamp(record.deleted_at),
                    "gone_at": None if record is None else _stamp(record.gone_at),
                    "poison": None if record is None else record.poison,
                    "versions": [
                        {
                            "updated_at": stamp(version.stamp),
                            "visible": version.shown_at is not None,
                            "payload": payload,
                        }
                        for version, payload in zip(versions, payloads, strict=True)
                    ],
                }
            return {"records": found}

    def do_truth_current(self, given: Arguments) -> Any:
        tenancy = self._tenancy(given)
        with tenancy.org.lock:
            table, numbers = self._table(tenancy, given), []
            numbers = self._all(table, given)
            records: dict[str, Any] = {}
            for at in range(0, len(numbers), _AT_ONCE):
                part = numbers[at : at + _AT_ONCE]
                versions = [table.latest(number) for number in part]
                payloads = _payloads(table, part, versions, given)
                for number, version, payload in zip(part, versions, payloads, strict=True):
                    id = tenancy.org.id(table.info.name, number)
                    records[id] = self._current(tenancy, table, number, version, payload)
            return {"records": records, "pending": table.pending}

    def _current(
        self, tenancy: Tenancy, table: Table, number: int, version: Version, payload: Any
    ) -> dict[str, Any]:
        record, flags = table.records.get(number), table.flags[number]
        text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
        count = 1 if record is None else len(record.versions)
        conditions = self._site.conditions_of(tenancy)
        return {
            "updated_at": stamp(version.stamp),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "versions": count,
            "deleted": version.deleted or bool(flags & GONE),
            "gone": bool(flags & GONE),
            "archived": bool(flags & ARCHIVED),
            "visible": record is None or record.shown == count - 1,
            "restricted": tenancy.org.restricted(conditions, table.info.name, number),
            "poison": None if record is None else record.poison,
            "deleted_at": None if record is None else _stamp(record.deleted_at),
        }


def _payloads(
    table: Table, numbers: Sequence[int], versions: Sequence[Version], given: Arguments
) -> list[dict[str, Any]]:
    return values_of(table, table.states(numbers, versions), given.get("fields"))


def _stamp(epoch: int | None) -> str | None:
    return None if epoch is None else stamp(epoch)
