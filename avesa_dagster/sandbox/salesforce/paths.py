"""What the paths of the service name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from avesa_dagster.sandbox.salesforce.describe import version_of

_DATA = re.compile(r"/services/data(?:/(v[^/]+)(?:/(.*))?)?")
_SOAP = re.compile(r"/services/Soap/[uc]/[\d.]+(?:/.*)?")
_HOSTS = {"login.salesforce.com": "login", "test.salesforce.com": "test"}


@dataclass(frozen=True, slots=True)
class Route:
    """A path, read.

    Attributes:
        kind: token, soap, versions, resources, sobjects, describe, basic, get, deleted, updated,
            query, more, limits, recordcount, job (a new one), status (of jobs), results, pages,
            composite, or unknown.
        version: `v60.0`; `number` is 60.0.
        name: of an object, a job or a locator.
        key: of a record.
        everything: whether it is queryAll.
    """

    kind: str
    version: str = ""
    number: float = 0.0
    name: str = ""
    key: str = ""
    everything: bool = False


def host_of(path: str, host: str) -> tuple[str, str]:
    """(`login`, `test` or `instance`; the path without it).

    The login hosts are asked for by a first part of the path, `/login.salesforce.com/services/…`,
    or by a Host header that begins with `login.` or `test.`.
    """
    first, _, rest = path.lstrip("/").partition("/")
    if first in _HOSTS:
        return _HOSTS[first], f"/{rest}"
    name = host.partition(".")[0].lower()
    return (name if name in _HOSTS.values() else "instance"), path


def route(path: str, method: str) -> Route:
    """Read a path (without its host)."""
    path = path.rstrip("/")
    if path == "/services/oauth2/token":
        return Route("token")
    if _SOAP.fullmatch(path):
        return Route("soap")
    found = _DATA.fullmatch(path)
    if found is None:
        return Route("unknown")
    version, rest = found[1], found[2]
    if version is None:
        return Route("versions")
    number = version_of(version)
    if number is None:
        return Route("unknown")
    if not rest:
        return Route("resources", version, number)
    return _resource(rest.split("/"), method, version, number)


def _resource(parts: list[str], method: str, version: str, number: float) -> Route:
    match parts:
        case ["sobjects"]:
            return Route("sobjects", version, number)
        case ["sobjects", name]:
            return Route("basic", version, number, name)
        case ["sobjects", name, ("describe" | "deleted" | "updated") as what]:
            return Route(what, version, number, name)
        case ["sobjects", name, key]:
            return Route("get", version, number, name, key)
        case [("query" | "queryAll") as which]:
            return Route("query", version, number, everything=which == "queryAll")
        case [("query" | "queryAll"), locator]:
            return Route("more", version, number, locator)
        case ["limits"]:
            return Route("limits", version, number)
        case ["limits", "recordCount"]:
            return Route("recordcount", version, number)
        case ["jobs", "query"]:
            return Route("job" if method == "POST" else "status", version, number)
        case ["jobs", "query", name]:
            return Route("status", version, number, name)
        case ["jobs", "query", name, ("results" | "resultPages") as what]:
            return Route("results" if what == "results" else "pages", version, number, name)
        case ["composite", "batch"]:
            return Route("composite", version, number)
    return Route("unknown", version, number)
