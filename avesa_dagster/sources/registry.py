"""Which services can be spoken to: one line each, and what other packages bring."""

from __future__ import annotations

from types import ModuleType

from avesa_dagster import outside
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.sources import connectwise, salesforce, servicenow

_SERVICES: dict[str, ModuleType] = {
    "connectwise": connectwise,
    "salesforce": salesforce,
    "servicenow": servicenow,
}


def source_module(service: str) -> ModuleType:
    """The service's folder: has FIELDS, `check` and `connect` (see `connectwise/__init__.py`).

    Raises:
        ConfigurationError: There is no such service, or a package that brings one is broken.
    """
    module = _SERVICES.get(service)
    if module is not None:
        return module
    found = outside.services()
    if service not in found:
        raise ConfigurationError(
            f"there is no service {service!r}",
            hint=f"known: {', '.join(sorted({*_SERVICES, *found}))}",
        )
    return found[service].module
