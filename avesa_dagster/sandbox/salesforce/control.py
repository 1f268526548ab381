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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from avesa_dagster.sandbox.backdoor import Arguments, BackDoor, instant, stamped
from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.salesforce import bulk, faults, hostility, plan
from avesa_dagster.sandbox.salesforce.org import POISONS, Org
from avesa_dagster.sandbox.salesforce.rows import values_of
from avesa_dagster.sandbox.salesforce.schema import TABLES
from avesa_dagster.sandbox.salesforce.site import DEFAULT_COMPANY, Site, Tenancy
from avesa_dagster.sandbox.salesforce.table import ARCHIVED, GONE, Table, Version
from avesa_dagster.sandbox.timestamps import stamp

_AT_ONCE = 2000


class Control(BackDoor[Site, Tenancy]):
    """The control methods of one site."""

    def __init__(self, site: Site, token: str) -> None:
        first = site.tenancies[DEFAULT_COMPANY].org
        super().__init__(
            site,
            token,
            tables=TABLES,
            first=DEFAULT_COMPANY,
            seed=first.seed,
            spec=first.spec,
        )
        own = [name for name in dir(self) if name.startswith("do_")]
        self._methods |= {name.removeprefix("do_"): getattr(self, name) for name in own}

    def _companies_by_id(self) -> Mapping[str, Tenancy]:
        return self._site.tenancies

    def _account(self, company: Tenancy) -> Org:
        return company.org

    def _read(self, script: Arguments) -> Hostility:
        return hostility.parse(script)

    def _obey(self, script: Any, company: Tenancy | None) -> None:
        if company is None:
            self._site.hostility = script
        else:
            company.org.hostility = script

    def _joined(self, company: Tenancy, given: Arguments) -> Any:
        company.org.sandbox = bool(given.get("sandbox", False))
        return self.do_credentials(given)

    def _rotate(self, given: Arguments) -> Any:
        self._company(given).org.rotation.newest += 1
        return self.do_credentials(given)

    def _limit(self, given: Arguments) -> Any:
        most, announced = given["limit_per_minute"], bool(given.get("announced", False))
        told = (int(most), "avesa") if announced and most is not None else None
        for tenancy in self._meant(given):
            tenancy.org.allowance.per_app = told
        return super()._limit(given)

    # ---- whom and what

    def _table(self, tenancy: Tenancy, given: Arguments) -> Table:
        name = self._named_table(given)
        tenancy.org.settle(self._site.clock.now())
        return tenancy.org.tables[name]

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

    # ---- orgs, and who may enter

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
        tenancy, kind = self._company(given), str(given.get("grant", "client_credentials"))
        with tenancy.org.lock:
            return {"credentials": tenancy.app.credentials(self._site.url, kind)}

    def do_session(self, given: Arguments) -> Any:
        self._company(given).app.session_seconds = float(given["lifetime_seconds"])
        return {}

    def do_expire(self, given: Arguments) -> Any:
        now = self._site.clock.now()
        return {"expired": self._site.sessions.end_all(self._company_id(given), now)}

    def do_rotation(self, given: Arguments) -> Any:
        self._company(given).app.rotation = bool(given["on"])
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
        self._company(given).org.sandbox = bool(given["on"])
        return {}

    def do_hibernate(self, given: Arguments) -> Any:
        on, status = bool(given.get("on", True)), int(given.get("status", 200))
        self._company(given).org.hibernating = status if on else None
        return {}

    def do_api(self, given: Arguments) -> Any:
        org = self._company(given).org
        org.api_enabled = bool(given.get("enabled", org.api_enabled))
        org.rest_allowed = bool(given.get("rest", org.rest_allowed))
        return {}

    def do_allowance(self, given: Arguments) -> Any:
        now, allowance = self._site.clock.now(), self._company(given).org.allowance
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
        kept = self._company(given).concurrency
        kept.most = int(given.get("limit", kept.most))
        kept.held = int(given.get("held", kept.held))
        kept.long_seconds = float(given.get("long_seconds", kept.long_seconds))
        return {"limit": kept.most, "held": kept.held, "long_seconds": kept.long_seconds}

    # ---- the schema

    def do_fields(self, given: Arguments) -> Any:
        tenancy = self._company(given)
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
        tenancy = self._company(given)
        with tenancy.org.lock:
            self._table(tenancy, given).accessible = bool(given["accessible"])
        return {}

    # ---- records

    def do_mutate(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given)
            moment = self._moment(given)
            changed = self._site.mutate(tenancy, table.info.name, numbers, moment)
            return self._ids(tenancy.org, table, changed)

    def do_create(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            count, moment = int(given.get("count", 1)), self._moment(given)
            made = self._site.create(tenancy, table.info.name, count, moment)
            return self._ids(tenancy.org, table, made)

    def do_delete(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given)
            gone = tenancy.org.delete(table.info.name, numbers, self._moment(given))
            return self._ids(tenancy.org, table, gone)

    def do_undelete(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given, deleted=True)
            at = None if given.get("silent") else self._moment(given)
            back = tenancy.org.undelete(table.info.name, numbers, at)
            return self._ids(tenancy.org, table, back)

    def do_poison(self, given: Arguments) -> Any:
        tenancy, kinds = self._company(given), given.get("kinds", list(POISONS))
        if set(kinds) - set(POISONS):
            unknown = sorted(set(kinds) - set(POISONS))
            raise ValueError(f"no poison {unknown}; there are {list(POISONS)}")
        with tenancy.org.lock:
            name = self._table(tenancy, given).info.name
            made = tenancy.org.poison(name, kinds, self._moment(given))
            return {"ids": {kind: tenancy.org.id(name, number) for kind, number in made.items()}}

    def do_bump(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            if given.get("all"):
                numbers: Sequence[int] = table.by_number(0, len(table), False)
            else:
                numbers = self._chosen(tenancy.org, table, given)
            moved = tenancy.org.bump(table.info.name, numbers, self._moment(given))
            return {"changed": len(moved)}

    def do_formulas(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            table.epoch += 1
            return {"epoch": table.epoch}

    def do_hard_delete(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            numbers = self._chosen(tenancy.org, table, given)
            gone = tenancy.org.hard_delete(table.info.name, numbers, self._moment(given))
            return self._ids(tenancy.org, table, gone)

    def do_purge(self, given: Arguments) -> Any:
        tenancy, now = self._company(given), self._site.clock.now()
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            before = now - float(given.get("min_age_seconds", 7200))
            log = bool(given.get("log", False))
            gone = tenancy.org.purge(table.info.name, before, int(now), log=log)
            return self._ids(tenancy.org, table, gone)

    def do_merge(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            [master] = self._numbers(table, [given["master"]])
            losers = self._numbers(table, given["ids"])
            gone = tenancy.org.merge(table.info.name, master, losers, self._moment(given))
            return self._ids(tenancy.org, table, gone)

    def do_archive(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            table, before = self._table(tenancy, given), instant(given["before"])
            if "IsArchived" not in table.fields or before is None:
                raise ValueError(f"{table.info.name} is never archived")
            return {"archived": table.archive(int(before))}

    # ---- bulk jobs

    def do_jobs(self, given: Arguments) -> Any:
        tenancy = self._company(given)
        with tenancy.org.lock:
            return {"jobs": [job.report() for job in tenancy.jobs.all(self._site.clock.now())]}

    def do_end_jobs(self, given: Arguments) -> Any:
        tenancy, state = self._company(given), given.get("state", "Aborted")
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
        tenancy = self._company(given)
        with tenancy.org.lock:
            users = tenancy.org.known_ids("User")
            user = users[0] if given.get("own", True) else users[-1]
            count, now = int(given.get("count", 1)), self._site.clock.now()
            return {"ids": tenancy.jobs.leave(tenancy.org, count, user, now, 60.0)}

    def do_end_locators(self, given: Arguments) -> Any:
        return {"ended": faults.end_locators(self._company(given))}

    # ---- the truth

    def _all(self, table: Table, given: Arguments) -> list[int]:
        if "ids" in given:
            return self._numbers(table, given["ids"])
        return list(range(len(table)))

    def do_counts(self, given: Arguments) -> Any:
        tenancy = self._company(given)
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
        tenancy = self._company(given)
        with tenancy.org.lock:
            table = self._table(tenancy, given)
            found = {}
            for number in self._all(table, given):
                record = table.records.get(number)
                versions = [table.untouched(number)] if record is None else record.versions
                payloads = _payloads(table, [number] * len(versions), versions, given)
                found[tenancy.org.id(table.info.name, number)] = {
                    "deleted_at": None if record is None else stamped(record.deleted_at),
                    "gone_at": None if record is None else stamped(record.gone_at),
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
        tenancy = self._company(given)
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
            "deleted_at": None if record is None else stamped(record.deleted_at),
        }


def _payloads(
    table: Table, numbers: Sequence[int], versions: Sequence[Version], given: Arguments
) -> list[dict[str, Any]]:
    return values_of(table, table.states(numbers, versions), given.get("fields"))
