"""When things happen in a simulated business: busy days and quiet ones, and ties on one second."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from random import Random

from avesa_dagster.sandbox.timestamps import DAY

_WEEKEND_SHARE = 0.12
_TIE_SHARE = 0.06
"""Share of the records that one mass update gives the same lastUpdated."""


def created_moments(rng: Random, count: int, start: int, end: int) -> list[int]:
    """Ascending whole seconds in [start, end): lognormal days, quiet weekends, office hours."""
    days = max(1, (end - start) // DAY)
    weights = []
    for day in range(days):
        weekday = ((start + day * DAY) // DAY + 3) % 7
        weights.append(rng.lognormvariate(0, 0.4) * (_WEEKEND_SHARE if weekday >= 5 else 1.0))
    chosen = rng.choices(range(days), cum_weights=list(accumulate(weights)), k=count)
    moments = []
    for day in chosen:
        hour = min(23.99, max(0.0, rng.gauss(13.5, 3.2)))
        moments.append(min(end - 1, start + day * DAY + int(hour * 3600)))
    return sorted(moments)


def updated_moments(rng: Random, created: list[int], end: int) -> list[int]:
    """lastUpdated for each created moment: never before it, always before `end`, with many ties.

    Every twentieth record shares its second with the one before it where it can; and one mass
    update gives about 6 % of all records the same second, more than a page of a large table.
    """
    updated: list[int] = []
    for n, moment in enumerate(created):
        lag = rng.expovariate(1 / 1800) if rng.random() < 0.3 else rng.expovariate(1 / (5 * DAY))
        at = moment + int(lag)
        if at >= end:
            at = moment + int(rng.random() * (end - moment))
        if n % 20 == 0 and updated and updated[-1] >= moment:
            at = updated[-1]
        updated.append(at)
    if len(created) >= 20:
        mass = created[len(created) * 3 // 5]
        eligible = bisect_right(created, mass)
        for n in rng.sample(range(eligible), min(eligible, int(len(created) * _TIE_SHARE))):
            updated[n] = mass
    return updated
