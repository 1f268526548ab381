"""The installation as a Dagster resource, opened once a process."""

from __future__ import annotations

from functools import cache

import dagster as dg

from avesa_dagster.defs.processes import say_where
from avesa_dagster.installation import Installation


@cache
def installation_of_this_process() -> Installation:
    return Installation.from_environment()


class AvesaResource(dg.ConfigurableResource[Installation]):
    """Gives assets and sensors the installation that AVESA_HOME names. Holds no secret."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """A run says where it is, before it does anything."""
        if context.run is not None and context.instance is not None:
            say_where(context.instance, context.run.run_id)

    def installation(self) -> Installation:
        return installation_of_this_process()
