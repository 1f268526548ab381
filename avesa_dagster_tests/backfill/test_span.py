"""From days to partitions: what is left out follows from the lookback."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.backfill.span import job_partitions, recent_keys, requested
from avesa_dagster.catalog.models import Catalog, Grain
from avesa_dagster.errors import ConfigurationError

from .support import NOW, SERVICE, catalog_of, connection_of, job_of


def keys(
    start: date | None,
    end: date | None,
    *,
    lookback: int = 730,
    history: datetime = datetime(2025, 1, 1, tzinfo=UTC),
) -> list[str]:
    catalog = catalog_of()
    own = catalog.backfill.services[SERVICE].model_copy(update={"lookback_days": lookback})
    backfill = catalog.backfill.model_copy(update={"services": {SERVICE: own}})
    catalog = catalog.model_copy(update={"backfill": backfill})
    return [part.key for part in requested(connection_of(start=history), catalog, start, end, NOW)]


def test_without_both_it_is_all_of_history() -> None:
    found = keys(None, None)
    assert (found[0], found[-1], len(found)) == ("2025-01-01", "2026-07-01", 19)


def test_without_an_end_it_goes_up_to_the_present() -> None:
    assert keys(date(2026, 5, 20), None) == ["2026-05-01", "2026-06-01", "2026-07-01"]
    assert keys(NOW.date(), None) == ["2026-07-01"]


def test_without_a_start_it_is_the_lookback_before_the_end_within_history() -> None:
    assert keys(None, date(2026, 5, 1), lookback=60) == ["2026-03-01", "2026-04-01"]
    assert keys(None, date(2025, 3, 1), lookback=600) == ["2025-01-01", "2025-02-01"]
    assert keys(None, date(2030, 1, 1), lookback=10) == ["2026-07-01"]


def test_the_end_is_the_first_day_that_is_not_asked_for() -> None:
    assert keys(date(2026, 4, 1), date(2026, 5, 1)) == ["2026-04-01"]
    assert keys(date(2026, 4, 30), date(2026, 5, 2)) == ["2026-04-01", "2026-05-01"]
    assert keys(date(2026, 6, 30), date(2030, 1, 1)) == ["2026-06-01", "2026-07-01"]


def test_a_history_that_begins_within_a_month_has_that_month() -> None:
    history = datetime(2026, 5, 20, tzinfo=UTC)
    assert keys(date(2026, 5, 1), None, history=history)[0] == "2026-05-01"
    assert keys(None, date(2026, 5, 10), history=history) == ["2026-05-01"]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (date(2026, 5, 1), date(2026, 5, 1), "empty.*2026-05-01"),
        (date(2026, 5, 2), date(2026, 5, 1), "empty"),
        (date(2024, 12, 31), None, "2024-12-31.*history begins 2025-01-01"),
        (date(1, 1, 1), None, "history begins 2025-01-01"),
        (None, date(2025, 1, 1), "2025-01-01.*history begins 2025-01-01"),
        (None, date(1, 1, 1), "history begins 2025-01-01"),
        (date(2026, 7, 15), None, "2026-07-15.*future"),
        (date(9999, 12, 30), date(9999, 12, 31), "future"),
    ],
)
def test_a_range_that_cannot_be_is_refused_and_says_why(
    start: date | None, end: date | None, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        keys(start, end)
    assert "tenant=acme service=connectwise" in str(refused.value)


DAYS = st.none() | st.dates(date(2024, 11, 1), date(2026, 9, 1)) | st.dates()


@given(grain=st.sampled_from(Grain), start=DAYS, end=DAYS, lookback=st.integers(1, 36_500))
def test_any_range_is_whole_partitions_of_history_or_refused(
    grain: Grain, start: date | None, end: date | None, lookback: int
) -> None:
    catalog = catalog_of(grain=grain)
    own = catalog.backfill.services[SERVICE].model_copy(update={"lookback_days": lookback})
    backfill = catalog.backfill.model_copy(update={"services": {SERVICE: own}})
    catalog = catalog.model_copy(update={"backfill": backfill})
    connection = connection_of()
    try:
        found = requested(connection, catalog, start, end, NOW)
    except ConfigurationError:
        first = connection.history_start.date()
        assert (start or end) and (
            (start is not None and (start < first or start > NOW.date()))
            or (end is not None and end <= first)
            or (start is not None and end is not None and start >= end)
        )
        return
    all_of_it = requested(connection, catalog, None, None, NOW)
    place = all_of_it.index(found[0])
    assert found == all_of_it[place : place + len(found)], "contiguous partitions of history"
    if start is not None:
        assert found[0].start.date() <= start < found[0].end.date()
    last = min(NOW, NOW if end is None else datetime(end.year, end.month, end.day, tzinfo=UTC))
    assert found[-1].start < last <= found[-1].end
    if start is None and end is not None:
        assert found[0].end > last - timedelta(days=lookback)


def test_the_partitions_of_a_job_are_those_that_were_asked_for() -> None:
    catalog = catalog_of()
    found = requested(connection_of(), catalog, date(2025, 3, 1), date(2026, 3, 1), NOW)
    job = job_of(start=found[0].start, end=found[-1].end)
    assert job_partitions(job, catalog) == found


@pytest.mark.parametrize(
    ("grain", "expected"),
    [(Grain.MONTHLY, {"2026-06-01", "2026-07-01"}), (Grain.DAILY, {"2026-07-13", "2026-07-14"})],
)
def test_the_recent_partitions_are_the_newest_of_the_connection(
    grain: Grain, expected: set[str]
) -> None:
    catalog: Catalog = catalog_of(grain=grain)
    assert recent_keys(connection_of(), catalog, NOW) == expected
    assert recent_keys(connection_of(start=NOW), catalog, NOW) <= expected
