"""The installation as a Dagster resource, opened once a process."""

from __future__ import annotations

from functools import cache

import dagster as dg

from avesa_dagster.installation import Installation


@cache
def installation_of_this_process() -> Installation:
    return Installation.from_environment()


class AvesaResource(dg.ConfigurableResource[Installation]):
    """Gives assets and sensors the installation that AVESA_HOME names. Holds no secret."""

    def installation(self) -> Installation:
        return installation_of_this_process()
