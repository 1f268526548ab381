"""Which services can be spoken to: one line each."""

from __future__ import annotations

from types import ModuleType

from avesa_dagster.errors import ConfigurationError
from avesa_dagster.sources import connectwise

_SERVICES: dict[str, ModuleType] = {"connectwise": connectwise}


def source_module(service: str) -> ModuleType:
    """The service's folder: has FIELDS, `check` and `connect` (see `connectwise/__init__.py`)."""
    module = _SERVICES.get(service)
    if module is None:
        raise ConfigurationError(
            f"there is no service {service!r}", hint=f"known: {', '.join(sorted(_SERVICES))}"
        )
    return module
