"""What of a connection was fetched: until when, by the watermark, and the same for upkeep."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.backfill.covered import connection_coverage, connection_holes
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Catalog, Grain
from avesa_dagster.control.base import Chunk, TenantService
from avesa_dagster.control.coverage import PartitionCoverage, State, holes
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.sources.base import Window

NOW = datetime(2026, 7, 14, 10, tzinfo=UTC)
START = datetime(2026, 5, 1, tzinfo=UTC)
MAPPINGS = Path(__file__).parents[2] / "mappings"
CATALOG = load_catalog(MAPPINGS)
LAG = timedelta(seconds=CATALOG.services["connectwise"].lag_seconds)
GRACE = timedelta(minutes=CATALOG.backfill.upkeep.hole_minutes)


def catalog_of(grain: Grain) -> Catalog:
    own = CATALOG.backfill.services["connectwise"].model_copy(update={"partitions": grain})
    backfill = CATALOG.backfill.model_copy(update={"services": {"connectwise": own}})
    return CATALOG.model_copy(update={"backfill": backfill})


class Books:
    """The control tables of one connected tenant."""

    def __init__(self, folder: Path, *, start: datetime = START, grain: Grain = Grain.MONTHLY):
        self.control = SqliteControl(folder / "control.db")
        self.catalog = catalog_of(grain)
        self.connection = self.control.registry.connect(
            "acme", "connectwise", history_start=start, tables=["tickets", "contacts"],
            requests_per_minute=None, now=NOW - timedelta(days=1),
        )  # fmt: skip

    def fetched(
        self, start: datetime, end: datetime, *, table: str = "tickets", kind: str = "window"
    ) -> None:
        ledger = self.control.ledger
        chunk = Chunk(
            "run", "acme", "connectwise", table, f"{kind}{start:%Y%m%dT%H%M}-{end:%Y%m%dT%H%M}",
            f"{start:%Y-%m}-01", kind, start, end,
        )  # fmt: skip
        ledger.plan([chunk], now=NOW)
        ledger.begin(chunk, now=NOW)
        ledger.complete(chunk, source_count=0, requests=1, now=NOW)

    def synced(self, upper: datetime) -> None:
        self.control.watermarks.advance(
            "acme", "connectwise", "tickets", lower=upper, upper=upper, now=NOW
        )

    def coverage(self, *tables: str, now: datetime = NOW) -> list[PartitionCoverage]:
        ledger, marks = self.control.ledger, self.control.watermarks
        return connection_coverage(
            self.connection, self.catalog, ledger, marks, now, tables or ("tickets",)
        )

    def holes(self, *tables: str, now: datetime = NOW) -> dict[str, list[Window]]:
        ledger, marks = self.control.ledger, self.control.watermarks
        return connection_holes(
            self.connection, self.catalog, ledger, marks, now, tables or ("tickets",)
        )


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_without_a_sync_everything_up_to_the_lag_is_due(books: Books) -> None:
    assert books.holes() == {"tickets": [Window(START, NOW - LAG)]}
    books.fetched(START, NOW - timedelta(hours=1))
    assert books.holes() == {"tickets": [Window(NOW - timedelta(hours=1), NOW - LAG)]}
    assert [item.state for item in books.coverage()] == [
        State.RECONCILED, State.RECONCILED, State.PARTIAL,
    ]  # fmt: skip


def test_what_the_next_sync_will_fetch_is_no_hole_yet(books: Books) -> None:
    upper = NOW - LAG - GRACE + timedelta(minutes=1)
    books.fetched(START, upper)
    books.synced(upper)
    assert books.holes() == {"tickets": []}
    assert [item.reconciled for item in books.coverage()] == [True] * 3


def test_what_the_live_sync_should_have_fetched_long_ago_is_a_hole(books: Books) -> None:
    upper = NOW - LAG - GRACE - timedelta(minutes=1)
    books.fetched(START, upper)
    books.synced(upper)
    assert books.holes() == {"tickets": [Window(upper, NOW - LAG)]}


def test_a_watermark_covers_nothing_by_itself(books: Books) -> None:
    books.synced(NOW - LAG)
    assert books.holes() == {"tickets": [Window(START, NOW - LAG)]}


def test_a_watermark_ahead_of_our_clock_makes_nothing_due_that_has_not_happened(
    books: Books,
) -> None:
    books.fetched(START, NOW - LAG)
    books.synced(NOW + timedelta(hours=1))
    assert books.holes() == {"tickets": []}


def test_a_month_that_has_only_just_begun_is_not_due(books: Books) -> None:
    begun = datetime(2026, 8, 1, 0, 1, tzinfo=UTC)
    august = datetime(2026, 8, 1, tzinfo=UTC)
    books.fetched(START, august)
    books.synced(august - timedelta(minutes=30))
    items = books.coverage(now=begun)
    assert [item.state for item in items[-2:]] == [State.RECONCILED, State.NOT_DUE]
    assert books.holes(now=begun) == {"tickets": []}


def test_the_tables_are_the_connections_in_its_order_or_those_asked_for(books: Books) -> None:
    books.fetched(START, NOW, table="contacts", kind="full")
    both = connection_coverage(
        books.connection, CATALOG, books.control.ledger, books.control.watermarks, NOW
    )
    assert [item.table for item in both] == ["contacts"] * 3 + ["tickets"] * 3
    assert both[:3] == books.coverage("contacts")
    assert both == books.coverage("contacts", "tickets", "contacts")
    assert {item.state for item in both[:3]} == {State.RECONCILED}
    assert set(books.holes("contacts", "tickets")) == {"contacts", "tickets"}


def test_an_unknown_table_or_service_says_what_is_known(books: Books) -> None:
    with pytest.raises(ConfigurationError, match=r"'members' is no table.*contacts, tickets"):
        books.coverage("tickets", "members")
    with pytest.raises(ConfigurationError, match=r"'members' is no table"):
        books.holes("members")
    books.connection = replace(books.connection, service="halopsa")
    with pytest.raises(ConfigurationError, match=r"no such service.*connectwise"):
        books.coverage()
    with pytest.raises(ConfigurationError, match=r"no such service.*connectwise"):
        books.holes()


def test_a_disconnected_connection_shows_what_is_not_fetched_since(books: Books) -> None:
    books.fetched(START, NOW - timedelta(days=3))
    gone = books.control.registry.disconnect("acme", "connectwise", now=NOW - timedelta(days=3))
    assert isinstance(gone, TenantService)
    books.connection = gone
    assert books.holes() == {"tickets": [Window(NOW - timedelta(days=3), NOW - LAG)]}


HOURS = int((NOW - START).total_seconds() // 3600)
fetches = st.lists(
    st.tuples(
        st.integers(-30, HOURS), st.integers(1, 500), st.sampled_from(["window", "full", "sweep"])
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(fetches, st.none() | st.integers(0, HOURS), st.sampled_from(list(Grain)))
def test_the_quick_way_to_the_holes_agrees_with_the_calendar(
    tmp_path_factory: pytest.TempPathFactory,
    fetched: list[tuple[int, int, str]],
    synced: int | None,
    grain: Grain,
) -> None:
    start = START + timedelta(days=3, hours=5)  # within a partition of any grain
    books = Books(tmp_path_factory.mktemp("books"), start=start, grain=grain)
    for first, length, kind in fetched:
        lower = START + timedelta(hours=first)
        books.fetched(lower, lower + timedelta(hours=length), kind=kind)
    if synced is not None:
        books.synced(NOW - timedelta(hours=synced))
    assert books.holes() == holes(books.coverage())
