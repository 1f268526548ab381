"""The subcommand `servicenow` of `python -m avesa_dagster.sandbox`."""

from __future__ import annotations

from avesa_dagster.sandbox.command import Services, declare
from avesa_dagster.sandbox.servicenow.service import serve
from avesa_dagster.sandbox.servicenow.site import GRANTS
from avesa_dagster.sandbox.servicenow.world import WorldSpec


def add_to(services: Services) -> None:
    """Declare the subcommand and its options."""
    declare(
        services,
        "servicenow",
        "a ServiceNow instance",
        serve,
        WorldSpec,
        limit="per user",
        grants=GRANTS,
        grant="basic",
    )
