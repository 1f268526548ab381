"""Services that are declared in JSON: Helpdesk, which has no code, and parts of ConnectWise."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stamina.instrumentation

from avesa_dagster.canonical.versions import build_partition
from avesa_dagster.catalog.load import load_catalog
from avesa_dagster.catalog.models import Service
from avesa_dagster.cli.main import main
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    PermissionRefused,
    RecordsRejected,
    RetriableError,
    Stopped,
    Where,
)
from avesa_dagster.extract.proof import segments
from avesa_dagster.extract.request import Mode
from avesa_dagster.lake.layout import versions_key
from avesa_dagster.sources.base import Page, Record, Source, Span, Window
from avesa_dagster.sources.budget import SqliteBudget
from avesa_dagster.sources.declared import Declared
from avesa_dagster.sources.declared.source import DeclaredSource
from avesa_dagster.sources.declared.spool import Part, Spool
from avesa_dagster.sources.http import Allowance, Retrying
from avesa_dagster.sources.vault import MemoryVault
from avesa_dagster_tests.extract.support import LOOKBACK_DAYS, MAPPINGS, SharedClock, small_segments
from avesa_dagster_tests.extract.support import Bench as ConnectWiseBench
from avesa_dagster_tests.extract.support import (
    assert_equals_truth as assert_lake_equals_connectwise,
)
from avesa_dagster_tests.sources.helpdesk.bench import (
    DAYS,
    HASTY,
    HERE,
    NOW,
    SERVICE,
    TENANT,
    UNPACED,
    assert_equals_truth,
    catalog,
    listing,
    mappings_with_helpdesk,
    open_bench,
)
from avesa_dagster_tests.sources.helpdesk.simulator import HOSTILE, PIN, SECOND, Answer, Helpdesk
from avesa_dagster_tests.sources.test_connectwise import capturing, everything_said

stamina.instrumentation.set_on_retry_hooks([])
EVER = Window(datetime(1900, 1, 1, tzinfo=UTC), NOW - timedelta(minutes=1))
FEBRUARY = Window(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
COUNT_PATH = {"path": "/{endpoint}/count", "at": "count"}
IDS = {"style": "keyset", "ids": "text"}
BY_ID = {
    "param": None, "parts": None,
    "params": {
        "updated_since": "{start}", "updated_before": "{end}", "after_id": "{after}",
        "upto_id": "{upto}", "id": "{only}",
    },
}  # fmt: skip
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "a link, counted": ("link", {}),
    "a link, not counted": ("link", {"count": None}),
    "a link in a header, counted in one": (
        "header",
        {"count": {"header": "X-Total"}, "paging": {"style": "link"}},
    ),
    "a cursor": (
        "cursor",
        {"paging": {"style": "cursor", "next": "links.next", "more": "meta.more"}},
    ),
    "pages, counted elsewhere": ("page", {"count": COUNT_PATH, "paging": {"style": "page"}}),
    "pages, not counted": ("page", {"count": None, "paging": {"style": "page"}}),
    "an offset": (
        "offset",
        {"count": None, "paging": {"style": "offset", "more": "meta.more"}},
    ),
    "ids, counted": (
        "id",
        {"filter": {"params": BY_ID["params"]}, "count": COUNT_PATH, "paging": IDS},
    ),
    "ids, not counted": (
        "id",
        {"filter": {"params": BY_ID["params"]}, "count": None, "paging": IDS},
    ),
    "since only": (
        "page",
        {"filter": {"params": {"updated_since": "{start}"}}, "paging": {"style": "page"}},
    ),
    "no filter": ("page", {"filter": None, "count": None, "paging": {"style": "page"}}),
    "inclusive ends": (
        "link",
        {"filter": {"params": {"updated_after": "{before}", "updated_until": "{last}"}}},
    ),
    "seconds since 1970": (
        "link",
        {"filter": {"params": {"updated_since": "{start}", "updated_before": "{end}"},
                    "time": "epoch"}},
    ),
    "plain times": (
        "link",
        {"filter": {"params": {"updated_since": "{start}", "updated_before": "{end}"},
                    "time": "plain"}},
    ),
}  # fmt: skip


@pytest.fixture
def desk() -> Iterator[Callable[..., Helpdesk]]:
    """Makes services with 130 tickets, of which many changed at the same second."""
    entered: list[Helpdesk] = []

    def make(**options: Any) -> Helpdesk:
        service = Helpdesk(SharedClock(NOW), **options).__enter__()
        entered.append(service)
        service.fill(NOW, DAYS, tickets=130, customers=25, agents=3)
        return service

    yield make
    for service in entered:
        service.__exit__(None, None, None)


@pytest.fixture
def connected(tmp_path: Path) -> Callable[..., Source]:
    """Opens a source of its own, as the `http` block says."""
    budget = SqliteBudget(tmp_path / "budget.db")

    def connect(
        service: Helpdesk,
        http: dict[str, Any] | None = None,
        *,
        credentials: dict[str, str] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        retrying: Retrying = HASTY,
        **file: Any,
    ) -> Source:
        known = catalog(http, **file).services[SERVICE]
        values = credentials or service.credentials
        return Declared(known).connect(
            known,
            values,
            Where(TENANT, SERVICE),
            Allowance(budget, "helpdesk/acme", UNPACED),
            clock=service.clock,
            cancelled=cancelled,
            retrying=retrying,
            vault=MemoryVault(values),
        )()

    return connect


def read(source: Source, span: Span, **options: Any) -> dict[str, bytes]:
    """What extraction proves and takes of a span: id to payload, and each id once."""
    found: dict[str, bytes] = {}
    counted = 0
    for segment in segments(source, "tickets", span, **options):
        counted += segment.count
        found |= {r.record_id: r.payload for page in segment.pages for r in page.records}
    assert counted == len(found)
    return found


def truth(service: Helpdesk, window: Window, table: str = "tickets") -> dict[str, bytes]:
    return {
        record_id: held.payloads[-1]
        for record_id, held in service.alive(table).items()
        if held.changed in window
    }


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_exact_in_every_window_and_can_go_on_from_every_page(
    style: str, desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    paging, changed = STYLES[style]
    service = desk(paging=paging)
    source = connected(service, listing(**changed))
    moments = sorted(held.changed for held in service.alive("tickets").values())
    middle = moments[60]
    windows = [
        EVER, FEBRUARY, Window(middle, middle + SECOND), Window(middle - SECOND, middle),
        Window(NOW, NOW + SECOND),
    ]  # fmt: skip
    for window in windows:
        assert read(source, Span(window)) == truth(service, window), window
    whole = truth(service, FEBRUARY)
    assert len(whole) > 30
    span = Span(FEBRUARY)
    rest = dict(whole)
    while rest:
        page = source.page("tickets", span)
        assert [record.record_id for record in page.records] == sorted(rest)[: len(page.records)]
        for record in page.records:
            del rest[record.record_id]
        span = replace(span, after=page.last_id)
        other = connected(service, listing(**changed))
        assert read(other, span) == rest
        assert other.count("tickets", span) == len(rest)
        other.close()
    source.close()


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_exact_while_the_service_misbehaves(
    style: str, seed: int, desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    paging, changed = STYLES[style]
    faults = dict(HOSTILE)
    if paging == "page" and changed.get("count") is None:
        del faults["short"]  # what a numbered page lacks, no other page has: nobody could tell
    service = desk(paging=paging, seed=seed, faults=faults)
    source = connected(service, listing(**changed), retrying=replace(HASTY, attempts=25))
    found = read(source, Span(FEBRUARY))
    left = truth(service, FEBRUARY)  # those that moved on meanwhile may have been seen
    assert left.items() <= found.items()
    for record_id, payload in found.items():
        assert payload in service.tables["tickets"][record_id].payloads


def test_a_service_file_alone_can_be_connected(
    desk: Callable[..., Helpdesk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = desk()
    mappings = mappings_with_helpdesk(tmp_path / "mappings")
    monkeypatch.setenv("AVESA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AVESA_MAPPINGS", str(mappings))
    (tmp_path / "acme.json").write_text(json.dumps(service.credentials))

    def avesa(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["avesa", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out + said.err

    code, said = avesa("connect", "acme", "helpdesk", "--credentials", str(tmp_path / "acme.json"))
    assert (code, "agents, customers, tickets" in said) == (0, True), said
    (tmp_path / "wrong.json").write_text(json.dumps(service.credentials | {"pin": "some-wrong-1"}))
    code, said = avesa("connect", "acme", "helpdesk", "--credentials", str(tmp_path / "wrong.json"))
    assert code == 1
    assert "refused the credentials" in said
    assert "some-wrong-1" not in said
    (tmp_path / "less.json").write_text('{"base_url": "http://helpdesk.example", "pim": "some-1"}')
    code, said = avesa("connect", "acme", "helpdesk", "--credentials", str(tmp_path / "less.json"))
    assert code == 1
    for part in ("base_url: must begin with https://", "pim: is not a field", "pin: is missing"):
        assert part in said
    assert "some-1" not in said
    assert "Helpdesk needs base_url, pin" in said

    asked: list[tuple[str, bool]] = []

    def prompt(name: str, hide_input: bool) -> str:
        asked.append((name, hide_input))
        return service.credentials[name]

    monkeypatch.setattr("click.prompt", prompt)
    code, said = avesa("connect", "acme", "helpdesk")
    assert code == 0, said
    assert asked == [("base_url", False), ("pin", True)]


def test_it_equals_the_truth_through_changes_deletions_and_every_fault(
    desk: Callable[..., Helpdesk], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service = desk(faults=HOSTILE)
    bench = open_bench(service, tmp_path / "home")
    tables = ("tickets", "customers")
    for table in tables:
        extracted = bench.extract(table, Mode.FULL if table == "customers" else Mode.BACKFILL)
        assert sum(part.rows for part in extracted.partitions) >= (
            0 if table == "customers" else 120
        )
    bench.advance(600)
    bench.extract("tickets", Mode.SYNC)
    for table in tables:
        some = list(service.alive(table))[:8]
        for record_id in some[:5]:
            service.touch(table, record_id)
        for record_id in some[4:7]:
            service.delete(table, record_id)
        service.put(table, f"{table}-new", service.clock(), name="new", subject="new")
    bench.advance(600)
    for table in tables:
        extracted = bench.extract(table, Mode.SYNC)
        assert extracted.deleted == 3, "the list of deletions tells at once"
        assert_equals_truth(bench, table)
    next(iter(service.alive("tickets").values())).deleted = True  # and in no list
    assert bench.extract("tickets", Mode.FULL).deleted == 1
    bench.extract("customers", Mode.FULL)
    for table in tables:
        assert_equals_truth(bench, table)
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file() and "secrets" not in path.parts:
            assert PIN.encode() not in path.read_bytes(), path
    assert PIN not in caplog.text


def test_rows_of_the_canonical_tables(desk: Callable[..., Helpdesk], tmp_path: Path) -> None:
    service = desk()
    bench = open_bench(service, tmp_path / "home")
    bench.extract("tickets")
    parts = {row["dt"] for row in bench.raw("tickets")}
    rows: list[dict[str, Any]] = []
    for part in parts:
        build_partition(
            bench.installation.objects, bench.installation.catalog, tenant=TENANT,
            service=SERVICE, table="tickets", partition=part,
        )  # fmt: skip
        key = versions_key(TENANT, SERVICE, "tickets", part)
        rows += pq.ParquetFile(bench.installation.objects.location(key)).read().to_pylist()
    assert len(rows) == 130
    one = next(row for row in rows if row["ticket_number"] == "7")
    assert one["summary"] == "Printer 7 is on fire 🔥"
    assert (one["company_id"], one["owner_name"]) == ("cu_1", "Agent 1")
    assert one["created_date"] == service.tables["tickets"][one["id"]].changed


def test_what_was_proven_stays_and_the_retry_goes_on_after_it(
    desk: Callable[..., Helpdesk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = desk()
    bench = open_bench(service, tmp_path / "home")
    small_segments(20)
    pages = 0
    real = DeclaredSource.page

    def dying(self: DeclaredSource, table: str, span: Span, *, ids_only: bool = False) -> Page:
        nonlocal pages
        pages += 1
        if pages > 3:
            raise Stopped("killed")
        return real(self, table, span, ids_only=ids_only)

    monkeypatch.setattr(DeclaredSource, "page", dying)
    with pytest.raises(Stopped):
        bench.extract("tickets", token="again")
    stored = len(bench.raw("tickets"))
    assert 0 < stored < 130
    monkeypatch.setattr(DeclaredSource, "page", real)
    bench.extract("tickets", token="again")
    rows = bench.raw("tickets")
    assert_equals_truth(bench, "tickets")
    assert len(rows) == len({row["record_id"] for row in rows}) == 130, "and nothing twice"


def test_a_count_that_is_never_listed_is_an_error_that_says_where(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk()
    hidden = next(iter(truth(service, FEBRUARY)))
    real = service._page

    def without(table: str, query: dict[str, str], rows: list[bytes], *rest: int) -> Answer:
        return real(table, query, [row for row in rows if hidden.encode() not in row], *rest)

    service._page = without  # type: ignore[method-assign, assignment]
    with pytest.raises(DataError, match="than it counts") as caught:
        read(connected(service), Span(FEBRUARY))
    assert "tenant=acme service=helpdesk table=tickets window=[2026-02-01" in str(caught.value)
    assert len(service.asked) < 300


@pytest.mark.parametrize("style", ["a link, counted", "pages, counted elsewhere"])
def test_a_record_that_shows_up_between_count_and_list_pushes_none_out(
    style: str, desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    paging, changed = STYLES[style]
    service = desk(paging=paging, page_clamp=1000)
    # One page holds as many as are counted: who stops there would miss the last of them.
    source = connected(service, listing(**changed), page_size=130)
    late = iter(["a-late-one"])

    def hook(table: str, query: dict[str, str]) -> None:
        if query["limit"] != "1" and (record_id := next(late, None)):
            service.put(table, record_id, FEBRUARY.start)

    service.hook = hook
    found: dict[str, bytes] = {}
    for segment in segments(source, "tickets", Span(EVER)):
        found |= {r.record_id: r.payload for page in segment.pages for r in page.records}
    assert "a-late-one" in found
    assert found == truth(service, EVER)


@pytest.mark.parametrize("counted", [True, False])
def test_a_window_with_more_than_is_ever_listed_is_read_in_parts(
    counted: bool, desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk(paging="offset", limit=40)
    paging = {"style": "offset", "more": "meta.more"}
    count = {"at": "meta.count"} if counted else None
    http = listing(paging=paging, count=count, most=40)
    assert read(connected(service, http), Span(EVER)) == truth(service, EVER)
    service.put("agents", "ag_x", NOW)
    for number in range(45):
        service.put("tickets", f"tied-{number}", FEBRUARY.start)
    with pytest.raises(DataError, match="40 records of tickets at most"):
        read(connected(service, http), Span(EVER))


def test_a_cursor_that_expires_begins_the_reading_again(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk(paging="cursor")
    paging = {"style": "cursor", "next": "links.next"}
    expired = iter([True, True])

    def hook(table: str, query: dict[str, str]) -> Answer | None:
        return Answer(410) if "cursor" in query and next(expired, False) else None

    service.hook = hook
    assert read(connected(service, listing(paging=paging)), Span(EVER)) == truth(service, EVER)
    service.hook = lambda table, query: Answer(410) if "cursor" in query else None
    with pytest.raises(AvesaError, match="answered 410"):
        read(connected(service, listing(paging=paging)), Span(EVER))
    assert len(service.asked) < 100


@pytest.mark.parametrize(
    ("paging", "changed", "said"),
    [
        ("link", {"paging": {"style": "page"}, "count": None}, "the paging does not advance"),
        ("offset", {"paging": {"style": "page", "param": "p"}, "count": None}, "does not advance"),
        ("link", {"records": "items"}, "the answer holds no items"),
        ("link", {"count": {"at": "meta.total"}}, "the answer is no count"),
        ("link", {"count": {"header": "X-Nothing"}}, "the answer is no count"),
        ("link", {"records": "meta"}, "no list of records"),
        ("link", {"paging": {"style": "link", "next": "links.next", "more": "meta.moar"}},
         "does not say whether more follows"),
        ("link", {"filter": {"params": {"since": "{start}", "till": "{end}"}}}, "is outside of"),
        ("link", {"path": "/{endpoint}/all"}, "has no /api/v2/tickets/all"),
    ],
)  # fmt: skip
def test_a_listing_that_is_described_wrongly_is_an_error_and_never_a_part(
    paging: str,
    changed: dict[str, Any],
    said: str,
    desk: Callable[..., Helpdesk],
    tmp_path: Path,
) -> None:
    service = desk(paging=paging)
    bench = open_bench(service, tmp_path / "home")
    bench.installation.__dict__["catalog"] = catalog(listing(**changed))
    with pytest.raises(AvesaError) as caught:
        bench.extract("tickets")
    assert said in str(caught.value)
    if "windows failed" not in str(caught.value) and "has no" not in said:
        assert "services/helpdesk.json, http.listing" in str(caught.value)
    assert len(service.asked) < 600


def test_a_next_page_on_another_host_gets_no_credentials(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk()
    with capturing() as (elsewhere, seen):

        def hook(table: str, query: dict[str, str]) -> Answer:
            said = {"data": [], "meta": {"count": 9}, "links": {"next": f"http://{elsewhere}/x"}}
            return Answer(body=json.dumps(said).encode())

        service.hook = hook
        with pytest.raises(DataError, match="gets no credentials") as caught:
            connected(service).page("tickets", Span(FEBRUARY))
        assert elsewhere in str(caught.value)
        assert seen == []


def test_the_resolution_has_to_be_the_services(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk()
    bounds = {"updated_after": "{before}", "updated_until": "{last}"}
    held = next(iter(service.alive("tickets").values()))
    held.payloads.append(held.payloads[-1].replace(b'Z"}', b'.250Z"}'))
    source = connected(service, listing(filter={"params": bounds}))
    with pytest.raises(ConfigurationError, match="finer than seconds") as caught:
        source.page("tickets", Span(EVER))
    assert "services/helpdesk.json, http.listing.filter.resolution" in str(caught.value)
    fine = listing(filter={"params": bounds, "resolution": "milliseconds"})
    connected(service, fine).page("tickets", Span(EVER))
    assert service.asked[-1][1]["updated_until"] == "2026-03-18T11:58:59.999Z"


AUTHS: dict[str, tuple[dict[str, Any], dict[str, str], Callable[[Any, dict[str, str]], bool]]] = {
    "basic": (
        {"kind": "basic", "username": "{user}/token", "password": "{pin}"},
        {"user": "me@example.com"},
        lambda headers, query: (
            headers["Authorization"]
            == "Basic " + base64.b64encode(f"me@example.com/token:{PIN}".encode()).decode()
        ),
    ),
    "an API key in a header": (
        {"kind": "header", "header": "X-Key", "value": "{pin}"},
        {},
        lambda headers, query: headers["X-Key"] == PIN and "Authorization" not in headers,
    ),
    "an API key as a parameter": (
        {"kind": "query", "param": "key", "value": "{pin}"},
        {},
        lambda headers, query: query.get("key") == PIN and "Authorization" not in headers,
    ),
    "client credentials in the form": (
        {"kind": "client_credentials", "path": "/oauth/token", "client_secret": "{pin}",
         "scope": "read"},
        {"client_id": "app"},
        lambda headers, query: headers["Authorization"] == "Bearer access-1",
    ),
    "client credentials by basic authentication": (
        {"kind": "client_credentials", "path": "/oauth/token", "client_secret": "{pin}",
         "sent": "basic"},
        {"client_id": "app"},
        lambda headers, query: headers["Authorization"] == "Bearer access-1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", AUTHS)
def test_every_kind_of_authentication(
    kind: str,
    desk: Callable[..., Helpdesk],
    connected: Callable[..., Source],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    auth, more, accepts = AUTHS[kind]
    service = desk()
    service.authorised = accepts
    fields = {"base_url": "address", **dict.fromkeys(more, "text"), "pin": "secret"}
    http = {"auth": auth, "credentials": fields}
    values = service.credentials | more
    source = connected(service, http, credentials=values)
    assert read(source, Span(EVER)) == truth(service, EVER)
    service.authorised = lambda headers, query: False
    with pytest.raises(CredentialsRefused) as caught:
        source.count("tickets", Span(EVER))
    said = everything_said(caught.value) + caplog.text
    assert PIN not in said
    assert base64.b64encode(f"me@example.com/token:{PIN}".encode()).decode() not in said
    wrong = "-".join(("a", "wrong", "word"))
    with pytest.raises(CredentialsRefused) as caught:
        connected(service, http, credentials=values | {"pin": wrong}).count("tickets", Span(EVER))
    assert wrong not in everything_said(caught.value)


def test_an_access_token_that_ends_in_the_middle_is_renewed(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    auth, more, _ = AUTHS["client credentials in the form"]
    service = desk()
    fields = {"base_url": "address", "client_id": "text", "pin": "secret"}
    asked = 0

    def accepts(headers: Any, query: dict[str, str]) -> bool:
        nonlocal asked
        asked += 1
        return bool(
            headers["Authorization"] == ("Bearer access-1" if asked < 4 else "Bearer access-2")
        )

    service.authorised = accepts
    values = service.credentials | more
    source = connected(service, {"auth": auth, "credentials": fields}, credentials=values)
    assert read(source, Span(EVER)) == truth(service, EVER)
    assert service.tokens == 2


def test_an_error_inside_of_a_200_and_a_refusal_are_said_without_the_token(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk()
    source = connected(service)
    body = json.dumps({"error": {"message": f"not for {PIN}"}, "data": []}).encode()
    service.hook = lambda table, query: Answer(body=body)
    with pytest.raises(RetriableError, match="inside of a 200: not for \\*\\*\\*"):
        source.page("tickets", Span(FEBRUARY))
    service.hook = lambda table, query: Answer(403, body)
    with pytest.raises(PermissionRefused, match="the role Reporter") as caught:
        source.page("tickets", Span(FEBRUARY))
    assert "not for ***" in str(caught.value)


def test_deletions_by_the_list_by_a_mark_and_by_asking(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk()
    source = connected(service)
    first, second, *_ = service.alive("tickets")
    service.delete("tickets", first)
    window = Window(NOW - SECOND, NOW + timedelta(seconds=60))
    assert source.lists_deletions
    found = source.deletions("tickets", window)
    assert found is not None
    assert [one.record_id for one in found] == [first]
    assert source.deletions("customers", window) == []
    assert (source.exists("tickets", first), source.exists("tickets", second)) == (False, True)
    assert len(source.page("tickets", Span(only=first))) == 0
    service.authorised = lambda headers, query: "type" not in query
    service.hook = lambda table, query: Answer(403)
    assert source.exists("tickets", second)

    marking = desk(soft=True)
    source = connected(marking, {"deleted_field": "deleted", "deletions": None})
    first, second, *_ = marking.alive("tickets")
    marking.delete("tickets", first)
    assert not source.lists_deletions
    assert source.deletions("tickets", window) is None
    now = Span(window)
    assert (source.count("tickets", now), source.count("tickets", replace(now, alive=True))) == (
        1,
        0,
    )
    assert [r.deleted for r in source.page("tickets", now).records] == [True]
    assert source.page("tickets", replace(now, alive=True)).records == []
    assert (source.exists("tickets", first), source.exists("tickets", second)) == (False, True)
    assert read(source, Span(EVER, alive=True)) == truth(marking, EVER)


def test_a_table_that_is_listed_in_another_way(
    desk: Callable[..., Helpdesk], tmp_path: Path
) -> None:
    service = desk()
    whole = {"records": "data", "paging": {"style": "link", "next": "links.next"}}
    bench = open_bench(service, tmp_path / "home", {"tables": {"agents": whole}})
    bench.extract("agents", Mode.FULL)
    assert_equals_truth(bench, "agents")
    assert all("updated_since" not in query for path, query in service.asked if "agents" in path)


def test_the_limit_that_a_header_announces_is_obeyed(
    desk: Callable[..., Helpdesk], tmp_path: Path
) -> None:
    bench = open_bench(desk(), tmp_path / "home")
    bench.open().newest_id("tickets")
    assert bench.installation.budget.use("helpdesk/acme", UNPACED).limit == 100_000


def test_nobody_asks_after_being_stopped(
    desk: Callable[..., Helpdesk], connected: Callable[..., Source]
) -> None:
    service = desk()
    source = connected(service, cancelled=lambda: len(service.asked) >= 3)
    with pytest.raises(Stopped):
        read(source, Span(EVER))
    assert len(service.asked) == 3


def test_a_record_that_cannot_be_taken_is_kept_and_said(
    desk: Callable[..., Helpdesk], tmp_path: Path
) -> None:
    service = desk()
    bench = open_bench(service, tmp_path / "home")
    small_segments(20)  # what is proven is not asked for again: it must not pass what is bad
    record = service.tables["tickets"][sorted(truth(service, FEBRUARY))[3]]
    good = record.payloads[-1]
    record.payloads[-1] = good.replace(b'"updated_at": "', b'"updated_at": "at ')
    with pytest.raises(RecordsRejected, match="1 record"):
        bench.extract("tickets", token="again")
    assert len({row["record_id"] for row in bench.raw("tickets")}) == 129
    record.payloads[-1] = good
    bench.extract("tickets", token="again")
    assert_equals_truth(bench, "tickets")


def test_a_listing_lies_on_disk_and_in_little_memory(tmp_path: Path) -> None:
    spool = Spool()
    spool.begin()
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    tracemalloc.start()
    for page in range(15):
        records = [
            Record(f"{number:08}", moment + number * SECOND, b"x" * 2000)
            for number in range(page * 1000, page * 1000 + 1000)
        ]
        spool.add(records, [], moment)
    assert spool.count(Part(Window(moment, moment + 500 * SECOND))) == 500
    records, received = spool.page(Part(after="00000499"), 1000)
    assert [records[0].record_id, records[-1].record_id] == ["00000500", "00001499"]
    assert (received, records[0].updated_at) == (moment, moment + 500 * SECOND)
    del records
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000
    assert peak < 20_000_000
    spool.close()


MISTAKES: list[tuple[tuple[str, ...], Any, str]] = [
    (("autth",), {}, "http.autth: unknown key; allowed here: auth, credentials"),
    (("auth", "sort"), 1, "http.auth.sort: unknown key; allowed here: header, kind, value"),
    (("auth", "kind"), "magic", "'basic', 'header', 'query', 'client_credentials'"),
    (("auth", "value"), "Bearer {token}", "there is no {token}; allowed here: {pin}"),
    (("headers",), {"X": "{base_url}"}, "there is no {base_url}; allowed here: {pin}"),
    (("credentials", "base_url"), "text", "exactly one field of the kind address"),
    (("credentials", "pin"), "pin", "http.credentials.pin: Input should be 'address', 'text'"),
    (("credentials", "other"), "text", "credentials.other is used neither by auth nor"),
    (("root",), "api/", "http.root: Value error, a path begins with '/'"),
    (
        ("listing", "paging", "nxet"),
        "a",
        "http.listing.paging.nxet: unknown key; allowed here: more",
    ),
    (("listing", "paging"), {"style": "keyset", "ids": "text"}, "needs {after} in the filter"),
    (("listing", "paging"), {"style": "cursor"}, "http.listing.paging: Value error, give either"),
    (("listing", "count"), {}, "http.listing.count: Value error, give either at"),
    (("listing", "path"), "/{end_point}", "there is no {end_point}; allowed here: {endpoint}"),
    (("listing", "filter", "params", "updated_since"), "{strat}", "there is no {strat}"),
    (("listing", "filter", "params"), {"a": "{end}"}, "a window that ends has to start"),
    (("listing", "filter", "params"), {"a": "{start}{before}"}, "use before or start"),
    (("listing", "filter", "params"), {"a": "{start} {after}"}, "are for paging by keyset"),
    (("listing", "filter", "parts"), ["x"], "give either params, or param and parts"),
    (("listing", "filter", "resolution"), "days", "'seconds', 'milliseconds' or 'microseconds'"),
    (("listing", "ids_only"), {"fields": "id"}, "ids_only cannot be used with deleted_field"),
    (("record",), None, "one record has to be found by its id"),
    (("record", "path"), "/x", "http.record: Value error, the path of a record needs {id}"),
    (("deletions", "listing", "filter"), None, "deletions.listing.filter needs the {start}"),
    (("tables",), {"tikets": {"paging": {"style": "page"}}}, "there is no table 'tikets'"),
]


@pytest.mark.parametrize(("place", "value", "said"), MISTAKES)
def test_a_mistake_names_file_and_place(
    place: tuple[str, ...], value: Any, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "helpdesk"
    shutil.copytree(HERE, folder)
    path = folder / "services" / "helpdesk.json"
    document = json.loads(path.read_text())
    here = document["http"]
    for name in place[:-1]:
        here = here[name]
    here[place[-1]] = value
    if "ids_only" in place:
        document["http"]["deleted_field"] = "deleted"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError) as caught:
        load_catalog(MAPPINGS, [folder])
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def declared_connectwise(bench: ConnectWiseBench) -> dict[str, str]:
    """Has ConnectWise spoken to by its file alone, and returns the credentials that this takes."""
    known = bench.installation.catalog
    http = json.loads((Path(__file__).parent / "connectwise_http.json").read_text())
    service = known.services["connectwise"]
    described = service.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"http": http}
    services = {"connectwise": Service.model_validate(described)}
    bench.installation.__dict__["catalog"] = known.model_copy(update={"services": services})
    credentials = bench.simulator.credentials
    info = f"{bench.simulator.url}/login/companyinfo/{credentials['company_id']}"
    with urllib.request.urlopen(info, timeout=30) as answer:
        codebase = json.loads(answer.read())["Codebase"]
    return credentials | {"api_base_url": f"{bench.simulator.url}/{codebase.strip('/')}"}


def test_connectwise_as_a_service_file_is_exact_and_asks_no_more(bench: ConnectWiseBench) -> None:
    own = bench.extract("tickets").requests
    values = declared_connectwise(bench)
    bench.installation.connect(
        "acme", "connectwise", values, requests_per_minute=UNPACED, lookback_days=LOOKBACK_DAYS
    )
    assert bench.extract("tickets").requests <= own
    faults = [
        {"kind": kind, "probability": 0.04}
        for kind in ("drop_row", "duplicate_row", "repeat_page", "cut_body", "broken_json",
                     "html_200", "filter_ignored")
    ]  # fmt: skip
    bench.control(
        "hostility", faults=[*faults, {"kind": "status", "status": 500, "probability": 0.05}]
    )
    bench.extract("companies")
    for table in ("tickets", "companies"):
        bench.control("mutate", table=table, count=6)
        bench.control("delete", table=table, count=2)
    bench.advance(600)
    bench.extract("tickets", Mode.SYNC)
    for table in ("tickets", "companies"):
        bench.extract(table, Mode.FULL)
    bench.control("hostility", faults=[])
    for table in ("tickets", "companies"):
        assert_lake_equals_connectwise(bench, table)
