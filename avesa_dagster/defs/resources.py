"""The installation as a Dagster resource, opened once a process."""

from __future__ import annotations

from functools import cache

import dagster as dg

from avesa_dagster.installation import Installation


@cache
def _installation() -> Installation:
    return Installation.from_environment()


class AvesaResource(dg.ConfigurableResource[Installation]):
    """Gives assets and sensors the installation that AVESA_HOME names. Holds no secret."""

    def installation(self) -> Installation:
        return _installation()
