"""What all assets share: freshness, how a failure reads, whose run it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg

from avesa_dagster.canonical.checks import Finding
from avesa_dagster.control.base import TenantService
from avesa_dagster.defs import tags
from avesa_dagster.errors import AvesaError, FatalError

STALE = timedelta(hours=26)
FRESH = dg.FreshnessPolicy.time_window(fail_window=STALE, warn_window=timedelta(hours=3))
"""The live sync is hourly: three missed ones are worth a look, a missed full one is a failure."""

ANSWERS = "service_answers"
"""The check on raw assets that shows the breaker of the tenant's service."""
PREVIEWED = 8
"""Columns of a canonical preview."""


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Makes an error of ours the run's: what failed, where, and what to do."""
    try:
        yield
    except AvesaError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error": type(error).__name__},
            allow_retries=not isinstance(error, FatalError),
        ) from None


def name_run(context: dg.AssetExecutionContext, connection: TenantService) -> None:
    """Tags a run that somebody launched by hand, so that a list of runs says whose each is."""
    if tags.TENANT not in context.run.tags:
        names = {tags.TENANT: connection.tenant, tags.SERVICE: connection.service}
        context.instance.add_run_tags(context.run.run_id, names)


def checked(name: str, finding: Finding) -> dg.AssetCheckResult:
    """An invariant's outcome; broken is an error."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=finding.broken == 0,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"broken": finding.broken, "example": finding.example or "none"},
    )
