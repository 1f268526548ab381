"""The rules of breakers and counters, the same whatever stores them."""

from __future__ import annotations

import dataclasses
import math
from datetime import datetime, timedelta

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control.health import Breaker, BreakerState, Sample
from avesa_dagster.errors import ConfigurationError

_PROBE_LASTS = timedelta(seconds=120)


def after_failure(
    before: Breaker,
    settings: BreakerSettings,
    reason: str,
    *,
    credentials: bool,
    now: datetime,
    at_once: bool,
) -> Breaker:
    """See Breakers.failed. While it is open, further failures are counted and change no time."""
    after = dataclasses.replace(before, failures=before.failures + 1)
    if not (before.state is BreakerState.OPEN and before.credentials):
        after = dataclasses.replace(after, reason=storable(reason), credentials=credentials)
    return _opened(after, settings, now) if _opens(after, settings, at_once) else after


def probing(breaker: Breaker, now: datetime) -> Breaker:
    """Half-open: `probe_at` is then when the prober counts as dead."""
    return dataclasses.replace(breaker, state=BreakerState.HALF_OPEN, probe_at=now + _PROBE_LASTS)


def counter_labels(amount: Sample) -> dict[str, str]:
    """The labels, sorted by name.

    Raises:
        ConfigurationError: The amount is negative or no number, or a label is named twice.
    """
    labels = dict(sorted(amount.labels))
    if len(labels) != len(amount.labels):
        raise ConfigurationError(f"the counter {amount.name} has a label twice: {amount.labels}")
    if not (math.isfinite(amount.value) and amount.value >= 0):
        raise ConfigurationError(
            f"{amount.value} was to be added to {amount.name}", hint="a counter only grows"
        )
    return labels


def storable(text: str) -> str:
    """The text with `?` for what is not valid Unicode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _opens(breaker: Breaker, settings: BreakerSettings, at_once: bool) -> bool:
    match breaker.state:
        case BreakerState.CLOSED:
            return breaker.credentials or at_once or breaker.failures >= settings.failures
        case BreakerState.OPEN:
            return False
        case BreakerState.HALF_OPEN:
            return True


def _opened(breaker: Breaker, settings: BreakerSettings, now: datetime) -> Breaker:
    doublings = min(breaker.openings, 60)  # more has no meaning, and would not fit a float
    wait = min(settings.wait_seconds * 2.0**doublings, settings.longest_wait_seconds)
    return dataclasses.replace(
        breaker,
        state=BreakerState.OPEN,
        opened_at=breaker.opened_at or now,
        probe_at=now + timedelta(seconds=wait),
        openings=breaker.openings + 1,
    )
