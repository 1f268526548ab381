"""The subcommand `salesforce` of `python -m avesa_dagster.sandbox`."""

from __future__ import annotations

from avesa_dagster.sandbox.command import Services, declare
from avesa_dagster.sandbox.salesforce.oauth import GRANTS
from avesa_dagster.sandbox.salesforce.org import OrgSpec
from avesa_dagster.sandbox.salesforce.service import serve


def add_to(services: Services) -> None:
    """Declare the subcommand and its options."""
    declare(
        services,
        "salesforce",
        "a Salesforce org",
        serve,
        OrgSpec,
        limit="per app",
        grants=GRANTS,
        grant=GRANTS[0],
    )
