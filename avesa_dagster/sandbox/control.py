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
    rotate         company_id                 → credentials: the next; those before are good as well
    retire         company_id                 those before are refused from now on
    truth          table, ids                 → records {id: {deleted_at, poison, versions []}}
    truth_current  table, ids                 → records {id: {…}}, pending
    stats          log (how many requests)    → counts, per minute and company too
    fetched        company_id?, table         → pages: what was given and how often, see `fetched`
    stats_reset    the counts of `stats` and `fetched`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from avesa_dagster.sandbox.backdoor import Arguments, BackDoor, stamped
from avesa_dagster.sandbox.hostility import Hostility
from avesa_dagster.sandbox.poison import POISONS
from avesa_dagster.sandbox.schema import TABLES
from avesa_dagster.sandbox.site import DEFAULT_COMPANY, Instance, Site
from avesa_dagster.sandbox.table import Record, Table


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
            "mutate": self._mutate,
            "delete": self._delete,
            "undelete": self._undelete,
            "create": self._create,
            "poison": self._poison,
            "field": self._field,
            "codebase": self._codebase,
            "companies": self._companies,
            "truth": self._truth,
            "truth_current": self._truth_current,
        }

    def _companies_by_id(self) -> Mapping[str, Instance]:
        return self._site.instances

    def _account(self, company: Instance) -> Instance:
        return company

    def _read(self, script: Arguments) -> Hostility:
        return Hostility.parse(script)

    def _obey(self, script: Any, company: Instance | None) -> None:
        if company is None:
            self._site.hostility = script
        else:
            company.hostility = script

    def _joined(self, company: Instance, given: Arguments) -> Any:
        return {"credentials": company.credentials(self._site.url)}

    def _table(self, instance: Instance, given: Arguments) -> Table:
        if given.get("table") not in instance.world.tables:
            raise ValueError(f"table must be one of {list(instance.world.tables)}")
        instance.world.settle(self._site.clock.now())
        return instance.world.tables[given["table"]]

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
        instance = self._company(given)
        with instance.lock:
            table = self._table(instance, given)
            ids = self._chosen(instance, table, given)
            moment = self._moment(given)
            return {"ids": self._site.mutate(instance, table.name, ids, moment)}

    def _delete(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table = self._table(instance, given)
            ids = self._chosen(instance, table, given)
            return {"ids": instance.world.delete(table.name, ids, self._moment(given))}

    def _undelete(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table = self._table(instance, given)
            ids = self._chosen(instance, table, given, deleted=True)
            return {"ids": instance.world.undelete(table.name, ids)}

    def _create(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table = self._table(instance, given)
            count = int(given.get("count", 1))
            moment = self._moment(given)
            return {"ids": self._site.create(instance, table.name, count, moment)}

    def _poison(self, given: Arguments) -> Any:
        instance = self._company(given)
        kinds = given.get("kinds", list(POISONS))
        unknown = set(kinds) - set(POISONS)
        if unknown:
            raise ValueError(f"no poison {sorted(unknown)}; there are {list(POISONS)}")
        with instance.lock:
            table = self._table(instance, given)
            return {"ids": instance.world.poison(table.name, kinds, self._moment(given))}

    def _field(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            instance.world.fields[self._table(instance, given).name].append(str(given["add"]))
        return {}

    def _codebase(self, given: Arguments) -> Any:
        self._site.upgrade(given.get("to"))
        return {"codebase": self._site.codebase}

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

    def _truth(self, given: Arguments) -> bytes:
        """Every version of every record, or of `ids`; written as bytes, payloads untouched."""
        instance = self._company(given)
        with instance.lock:
            table = self._table(instance, given)
            records = [table.records[id] for id in given.get("ids", table.records)]
            return b'{"records":{' + b",".join(map(_history, records)) + b"}}"

    def _truth_current(self, given: Arguments) -> Any:
        instance = self._company(given)
        with instance.lock:
            table = self._table(instance, given)
            records = [table.records[id] for id in given.get("ids", table.records)]
            return {
                "records": {
                    str(record.id): {
                        "updated_at": stamped(record.versions[-1].updated),
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


def _history(record: Record) -> bytes:
    def versions() -> Iterator[bytes]:
        for n, version in enumerate(record.versions):
            about = {"updated_at": stamped(version.updated), "visible": n <= record.shown}
            yield json.dumps(about).encode()[:-1] + b',"payload":' + version.payload + b"}"

    about = {"deleted_at": stamped(record.deleted_at), "poison": record.poison}
    head = b'"%d":' % record.id + json.dumps(about).encode()[:-1]
    return head + b',"versions":[' + b",".join(versions()) + b"]}"
