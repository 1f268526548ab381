"""Checks of what is connected: the registry, credentials, services, and what is wrong with them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from avesa_dagster.control.base import TenantService
from avesa_dagster.control.health import BreakerState
from avesa_dagster.doctor.account import difference
from avesa_dagster.doctor.findings import (
    Finding,
    Findings,
    Level,
    of_error,
    problem,
    together,
    warning,
    well,
)
from avesa_dagster.errors import AvesaError, StoreError, Where
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Aws
from avesa_dagster.watch.alerts import standing
from avesa_dagster.watch.findings import Kind, title

_AT_ONCE = 16
_PATIENCE = 4.0
_PORTS = {"http": 80, "https": 443}
_MARKS = 200
"""Connections of which the watermarks are read."""
_JOBS = 50


class Tenants:
    """What is connected, read once and looked at from several sides.

    Attributes:
        rows: The readable rows of the registry; none before `registry` was looked at.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._broken: set[tuple[str, str]] = set()
        self.rows: list[TenantService] = []

    @property
    def enabled(self) -> list[TenantService]:
        return [row for row in self.rows if row.enabled]

    def registry(self) -> Findings:
        """Whether every connection can be read, and the mappings know its service and tables."""
        if not self._begun():
            yield Finding(
                Level.WARNING,
                "nothing was ever connected",
                str(self._installation.settings.home),
                "connect a tenant: avesa connect TENANT SERVICE",
                blocking=True,
            )
            return
        broken = list(self._read())
        yield from together(broken)
        yield from together(list(self._unknown()))
        if not self.rows and not broken:
            yield warning("no tenant is connected", "", "connect one: avesa connect TENANT SERVICE")
        elif not broken:
            tenants = len({row.tenant for row in self.enabled})
            yield well(f"{len(self.enabled)} service(s) of {tenants} tenant(s) are enabled")

    def snapshot(self) -> Findings:
        """Whether definitions are built from what the registry says."""
        held = {(row.tenant, row.service): row for row in self._installation.snapshot.read()}
        rows = {(row.tenant, row.service): row for row in self.rows}
        known = (held.keys() | rows.keys()) - self._broken
        differing = sorted(key for key in known if held.get(key) != rows.get(key))
        if differing:
            names = [" ".join(key) for key in differing]
            yield problem(
                f"the snapshot that definitions are built from differs from the registry in "
                f"{len(names)} connection(s)",
                ", ".join(names[:5]) + (", …" if len(names) > 5 else ""),
                "avesa tenants --refresh, then reload the code location if no daemon runs",
            )
        else:
            yield well("equals the registry")

    def credentials(self) -> Findings:
        """Whether the credentials of every enabled service are there and have all their fields."""
        yield from self._each(self._credentials, "credentials are complete")

    def reach(self) -> Findings:
        """Whether the hosts of the services are found and take a connection. Asks them nothing."""
        addresses: dict[tuple[str, int], list[str]] = {}
        for row, values in zip(self.enabled, self._values(), strict=True):
            address = _address(self._installation, row, values) if values else None
            if address:
                addresses.setdefault(address, []).append(f"{row.tenant} {row.service}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            outcomes = list(pool.map(_connects, addresses))
        found = []
        for (host, port), (error, who) in zip(
            addresses, zip(outcomes, addresses.values(), strict=True), strict=True
        ):
            if error:
                more = f" and {len(who) - 1} more" if len(who) > 1 else ""
                found.append(
                    problem(
                        f"{host}:{port} {error}",
                        f"{who[0]}{more}",
                        "check the address in the credentials, DNS, proxy, and security groups; "
                        "services that allow by address must know ours",
                    )
                )
        yield from together(found)
        if not found:
            yield well(f"{len(addresses)} host(s) take connections")

    def probe(self) -> Findings:
        """Asks each enabled service once, within its budget, and looks at its clock."""
        yield from self._each(self._probe, "every service answers")

    def items(self) -> Findings:
        """Whether what the other tables hold can be read: items that lack attributes are found."""
        control = self._installation.control
        reads: list[Callable[[], object]] = [
            control.breakers.all,
            control.alarms.all,
            lambda: control.jobs.find(limit=_JOBS),
        ]
        for row in self.rows[:_MARKS]:
            for table in row.tables:
                reads.append(_mark(control.watermarks.get, row.tenant, row.service, table))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = [finding for finding in pool.map(_readable, reads) if finding]
        yield from together(found)
        if not found:
            yield well("breakers, alarms, jobs and watermarks can be read")

    def health(self) -> Findings:
        """What AVESA itself holds to be wrong: breakers that are open, alarms that stand."""
        found = list(self._breakers())
        for alarm in standing(self._installation.control.alarms):
            if not alarm.key.startswith(f"{Kind.BREAKER_OPEN}/"):
                since = f"since {alarm.since:%Y-%m-%d %H:%M} UTC"
                found.append(
                    warning(f"{alarm.text} ({since})", title(alarm.key), "avesa alerts lists all")
                )
        yield from together(found)
        if not found:
            yield well("no breaker is open, no alarm stands")

    def _breakers(self) -> Iterator[Finding]:
        for breaker in self._installation.control.breakers.all():
            if breaker.state is BreakerState.CLOSED:
                continue
            where = f"{breaker.tenant} {breaker.service}"
            since = f"{breaker.opened_at:%Y-%m-%d %H:%M} UTC" if breaker.opened_at else "some time"
            told = f"is not asked since {since}: {' '.join(breaker.reason.split())}"
            if breaker.credentials:
                yield problem(told, where, "connect it again with valid credentials: avesa connect")
            else:
                yield warning(told, where, "it is probed, and goes on by itself once it answers")

    def _begun(self) -> bool:
        """Whether there is a registry: the embedded one would be made by looking."""
        settings = self._installation.settings
        return settings.aws is not None or (settings.control / "control.db").exists()

    def _read(self) -> Iterator[Finding]:
        """Reads the registry; if a row is broken, row by row."""
        registry, aws = self._installation.control.registry, self._installation.settings.aws
        try:
            self.rows = registry.all()
        except StoreError:
            if aws is None:
                raise
        else:
            return
        for tenant, service in _keys(aws):
            try:
                row = registry.get(tenant, service)
            except StoreError as broken:
                self._broken.add((tenant, service))
                yield of_error(broken)
            else:
                self.rows += [row] if row else []

    def _unknown(self) -> Iterator[Finding]:
        """What is connected and the mappings do not describe (any more)."""
        services = self._installation.catalog.services
        for row in self.enabled:
            where = f"{row.tenant} {row.service}"
            todo = "bring its mappings back (AVESA_MAPPINGS), or avesa disable it"
            if row.service not in services:
                yield problem("the mappings do not describe this service", where, todo)
                continue
            gone = [table for table in row.tables if table not in services[row.service].tables]
            if gone:
                yield warning(f"the mappings do not describe {', '.join(gone)}", where, todo)

    def _each(self, look: Callable[[TenantService], list[Finding]], good: str) -> Findings:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = [finding for found in pool.map(look, self.enabled) for finding in found]
        yield from together(found)
        if not any(finding.level is not Level.WELL for finding in found):
            yield well(f"{good} ({len(self.enabled)} service(s))")

    def _credentials(self, row: TenantService) -> list[Finding]:
        where = Where(row.tenant, row.service)
        try:
            values = self._installation.secrets.get(row.tenant, row.service)
            self._installation.speaker(row.service).check(values, where)
        except AvesaError as error:
            return [of_error(error, str(where))]
        return []

    def _values(self) -> list[Mapping[str, str] | None]:
        """The credentials of the enabled services; None: unreadable, which is told elsewhere."""

        def read(row: TenantService) -> Mapping[str, str] | None:
            try:
                return self._installation.secrets.get(row.tenant, row.service)
            except AvesaError:
                return None

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(read, self.enabled))

    def _probe(self, row: TenantService) -> list[Finding]:
        where = f"{row.tenant} {row.service}"
        try:
            source = self._installation.open_once(row)()
            try:
                source.newest_id(row.tables[0])
                ahead = self._installation.clock() - source.now()
            finally:
                source.close()
        except AvesaError as error:
            return [of_error(error, where)]
        return [one for one in difference(ahead, where) if one.level is not Level.WELL]


def _keys(aws: Aws) -> list[tuple[str, str]]:
    """The keys of all rows of the registry in DynamoDB, whatever else the rows hold."""
    from avesa_dagster.control.dynamo_database import DynamoDatabase
    from avesa_dagster.control.dynamo_tables import TENANT_SERVICES

    rows = DynamoDatabase(aws).scan(TENANT_SERVICES, ("tenant_id",))
    return sorted((row.key[0], row.key[1]) for row in rows)


def _mark(
    get: Callable[[str, str, str], object], tenant: str, service: str, table: str
) -> Callable[[], object]:
    return lambda: get(tenant, service, table)


def _readable(read: Callable[[], object]) -> Finding | None:
    try:
        read()
    except AvesaError as error:
        return of_error(error)
    return None


def _address(
    installation: Installation, row: TenantService, values: Mapping[str, str]
) -> tuple[str, int] | None:
    """Host and port of a service, by its credentials; None if they name none."""
    described = installation.catalog.services.get(row.service)
    named = [described.http.address] if described and described.http else []
    for name in _candidates(named, values):
        text = values[name]
        parts = urlsplit(text if "://" in text else f"https://{text}")
        try:
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            continue
        if parts.hostname and port:
            return _way(parts.scheme, parts.hostname, port)
    return None


def _way(scheme: str, host: str, port: int) -> tuple[str, int]:
    """What is connected to: the proxy, if the environment names one for this host."""
    proxy = (
        get_environ_proxies(f"{scheme}://{host}:{port}").get(scheme) if scheme == "https" else ""
    )
    parts = urlsplit(proxy or "")
    if parts.hostname:
        return parts.hostname, parts.port or _PORTS.get(parts.scheme, 80)
    return host, port


def _candidates(named: Iterable[str], values: Mapping[str, str]) -> Iterator[str]:
    """Names of fields that hold an address, the likeliest first."""
    yield from (name for name in named if name in values)
    yield from (name for name in values if name.endswith("_url"))


def _connects(address: tuple[str, int]) -> str:
    """What is wrong with a host; empty: it takes a connection."""
    try:
        with socket.create_connection(address, timeout=_PATIENCE):
            return ""
    except socket.gaierror:
        return "is not found: DNS knows no such host"
    except TimeoutError:
        return f"does not answer within {_PATIENCE:.0f} s"
    except OSError as error:
        return f"takes no connection: {error.strerror or type(error).__name__}"
