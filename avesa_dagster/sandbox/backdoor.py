"""What the back doors of all simulated services have in common; their verbs are in `control`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.conditions import Interval
from avesa_dagster.sandbox.fetched import Fetched
from avesa_dagster.sandbox.outages import Outage, Outages
from avesa_dagster.sandbox.rotation import Rotation
from avesa_dagster.sandbox.timestamps import Clock, seconds, stamp
from avesa_dagster.sandbox.traffic import Limit, Traffic
from avesa_dagster.sandbox.wire import Request, Response

PREFIX = "/__sim__/"
Arguments = dict[str, Any]
Method = Callable[[Arguments], Any]


class AnySite(Protocol):
    """Everything that the HTTP service and the back door share."""

    traffic: Traffic
    fetched: Fetched
    outages: Outages
    clock: Clock
    latency_seconds: float
    mutations_frozen: bool

    def rebuild(self, seed: int, spec: Any, now: float | None) -> None: ...

    def add(self, company_id: str, seed: int, spec: Any) -> Any: ...


class Account(Protocol):
    """What is a company's own. `latency_seconds` None is as on the rest of the site."""

    company_id: str
    latency_seconds: float | None
    revoked: bool
    rotation: Rotation


S = TypeVar("S", bound=AnySite)
C = TypeVar("C")


class BackDoor(Generic[S, C]):
    """The control methods that every service has. A subclass adds those on records, and its own.

    Args:
        tables: Names of the service's tables.
        first: Id of the company that is meant where none is named.
        seed, spec: The world that `reset` begins with.
    """

    def __init__(
        self,
        site: S,
        token: str,
        *,
        tables: Collection[str],
        first: str,
        seed: int,
        spec: Any,
    ) -> None:
        self._site = site
        self._token = token
        self._tables = list(tables)
        self._first = first
        self._first_seed, self._first_spec = seed, spec
        self._first_limit = Limit(site.traffic.limit_per_minute)
        self._first_latency = site.latency_seconds
        self._methods: dict[str, Method] = {
            "reset": self._reset,
            "hostility": self._hostility,
            "limit": self._limit,
            "latency": self._latency,
            "fail": lambda given: self._outage({"status": 500} | given),
            "hang": lambda given: self._outage({"seconds": given["seconds"]} | given),
            "heal": self._heal,
            "outages": lambda given: {"outages": site.outages.report()},
            "freeze": lambda given: self._freeze(True),
            "thaw": lambda given: self._freeze(False),
            "clock": self._clock,
            "advance": self._advance,
            "add_company": self._add_company,
            "revoke": lambda given: self._revoke(given, True),
            "restore": lambda given: self._revoke(given, False),
            "rotate": self._rotate,
            "retire": self._retire,
            "stats": lambda given: site.traffic.report(int(given.get("log", 0))),
            "fetched": self._fetched,
            "stats_reset": self._stats_reset,
        }

    # What a subclass says

    def _companies_by_id(self) -> Mapping[str, C]:
        raise NotImplementedError

    def _account(self, company: C) -> Account:
        raise NotImplementedError

    def _read(self, script: Arguments) -> Any:
        """A script of hostility. Raises ValueError for what it does not know."""
        raise NotImplementedError

    def _obey(self, script: Any, company: C | None) -> None:
        """Puts a script in force, for a company or the site; None: the company has none."""
        raise NotImplementedError

    def _joined(self, company: C, given: Arguments) -> Any:
        """What a company that was added is told of itself."""
        raise NotImplementedError

    # What they have in common

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

    def _company(self, given: Arguments) -> C:
        company_id = given.get("company_id", self._first)
        companies = self._companies_by_id()
        if company_id not in companies:
            raise ValueError(f"no company {company_id!r}")
        return companies[company_id]

    def _one(self, given: Arguments) -> C | None:
        """The company that is named, None for the whole site."""
        return self._company(given) if given.get("company_id") is not None else None

    def _meant(self, given: Arguments) -> list[C]:
        """The company that is named, or all."""
        one = self._one(given)
        return list(self._companies_by_id().values()) if one is None else [one]

    def _company_id(self, given: Arguments) -> str | None:
        one = self._one(given)
        return None if one is None else self._account(one).company_id

    def _table_name(self, given: Arguments) -> str | None:
        """The table that is named, None for all."""
        name = given.get("table")
        if name is not None and name not in self._tables:
            raise ValueError(f"table must be one of {self._tables}")
        return None if name is None else str(name)

    def _named_table(self, given: Arguments) -> str:
        name = self._table_name(given)
        if name is None:
            raise ValueError(f"table must be one of {self._tables}")
        return name

    def _moment(self, given: Arguments, name: str = "at") -> int:
        """The whole second that is given, or else the simulator's now."""
        at = instant(given.get(name))
        return int(self._site.clock.now() if at is None else at)

    def _reset(self, given: Arguments) -> Any:
        site = self._site
        site.rebuild(
            int(given.get("seed", self._first_seed)),
            self._first_spec.sized(_sizes(given)),
            instant(given.get("now")),
        )
        site.traffic.forget_own_limits()
        limited = "limit_per_minute" in given
        site.traffic.set_limit(Limit(given["limit_per_minute"]) if limited else self._first_limit)
        self._stats_reset({})
        site.latency_seconds = given.get("latency_ms", self._first_latency * 1000) / 1000
        script = dict(given.get("hostility", {}))
        if "page_clamp" in given:
            script["page_clamp"] = given["page_clamp"]
        self._hostility(script)
        return {"now": stamp(int(site.clock.now()))}

    def _hostility(self, given: Arguments) -> Any:
        one = self._one(given)
        script = {name: value for name, value in given.items() if name != "company_id"}
        self._obey(self._read(script) if one is None or script else None, one)
        return {}

    def _limit(self, given: Arguments) -> Any:
        limit = Limit(given["limit_per_minute"], bool(given.get("announced", False)))
        forget = bool(given.get("forget", True))
        self._site.traffic.set_limit(limit, self._company_id(given), forget=forget)
        return {}

    def _latency(self, given: Arguments) -> Any:
        one, seconds_each = self._one(given), float(given["latency_ms"]) / 1000
        if one is None:
            self._site.latency_seconds = seconds_each
        else:
            self._account(one).latency_seconds = seconds_each
        return {}

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

    def _heal(self, given: Arguments) -> Any:
        names = [given["name"]] if "name" in given else given.get("names")
        company_id, table = self._company_id(given), self._table_name(given)
        return {"met": self._site.outages.heal(names, company_id, table)}

    def _freeze(self, frozen: bool) -> Any:
        self._site.mutations_frozen = frozen
        return {}

    def _clock(self, given: Arguments) -> Any:
        clock = self._site.clock
        if "now" in given:
            now = instant(given["now"])
            if now is None:
                raise ValueError("now is missing")
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
        companies = self._companies_by_id()
        company_id = given.get("company_id") or f"company_{len(companies) + 1}"
        if company_id in companies:
            raise ValueError(f"{company_id!r} is there already")
        seed = int(given.get("seed", len(companies) + 1))
        script = self._read(given["hostility"]) if given.get("hostility") else None
        company = self._site.add(company_id, seed, self._first_spec.sized(_sizes(given)))
        self._obey(script, company)
        about = given | {"company_id": company_id}
        if "limit_per_minute" in given:
            self._limit(about)
        if "latency_ms" in given:
            self._latency(about)
        return self._joined(company, about)

    def _revoke(self, given: Arguments, revoked: bool) -> Any:
        self._account(self._company(given)).revoked = revoked
        return {}

    def _rotate(self, given: Arguments) -> Any:
        company = self._company(given)
        self._account(company).rotation.newest += 1
        return self._joined(company, {})

    def _retire(self, given: Arguments) -> Any:
        rotation = self._account(self._company(given)).rotation
        rotation.oldest = rotation.newest
        return {}

    def _fetched(self, given: Arguments) -> Any:
        company_id, table = self._company_id(given), self._table_name(given)
        return {"pages": self._site.fetched.report(company_id, table)}

    def _stats_reset(self, given: Arguments) -> Any:
        self._site.traffic.reset()
        self._site.fetched.reset()
        return {}


def instant(value: Any) -> float | None:
    """Seconds since 1970 UTC, from a number or an ISO 8601 text."""
    if value is None or isinstance(value, (int, float)):
        return value
    return seconds(str(value))


def stamped(epoch: int | None) -> str | None:
    """The opposite; None stays None."""
    return None if epoch is None else stamp(epoch)


def _sizes(given: Arguments) -> dict[str, Any]:
    sizes = dict(given.get("sizes", {}))
    return sizes | {"years": given["years"]} if "years" in given else sizes


def _changed(given: Arguments) -> Interval | None:
    """The change times that an outage is for; None if neither end is given."""
    start, end = instant(given.get("start")), instant(given.get("end"))
    if start is None and end is None:
        return None
    low = Interval().low if start is None else start
    high = Interval().high if end is None else end
    if low >= high:
        raise ValueError(f"start {given['start']!r} is not before end {given['end']!r}")
    return Interval(low, high)
