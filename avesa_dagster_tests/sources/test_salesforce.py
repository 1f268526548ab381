"""The Salesforce source: logins, pages, bulk jobs, deletions, the allowance, and what it says."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from avesa_dagster.control.base import ChunkState
from avesa_dagster.control.health import BreakerState
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.errors import (
    AvesaError,
    BulkUnusable,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    FatalError,
    PermissionRefused,
    RetriableError,
    Stopped,
    StoreError,
    Suspended,
    TooMuch,
    Where,
)
from avesa_dagster.extract.request import Mode
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sources import salesforce
from avesa_dagster.sources.base import BulkSource, Source, Span, Window
from avesa_dagster.sources.salesforce import jobs, objects
from avesa_dagster.sources.salesforce.credentials import Credentials, Grant
from avesa_dagster.sources.vault import StoredVault
from avesa_dagster_tests.sources.salesforce_bench import (
    NOW,
    SERVICE,
    TENANT,
    SalesforceBench,
    assert_equals_truth,
    digest,
    open_bench,
)
from avesa_dagster_tests.sources.test_connectwise import everything_said

WINDOW = Window(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
EVER = Span(Window(datetime(2020, 1, 1, tzinfo=UTC), NOW - timedelta(minutes=5)))
NewBench = Callable[..., SalesforceBench]
WRONG = "-".join(("a", "wrong", "word"))
"""A secret that nothing may show; not written out, as a traceback shows the source."""


@pytest.fixture(scope="module")
def org() -> Iterator[Simulator]:
    with Simulator("salesforce") as running:
        yield running


@pytest.fixture
def new(org: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewBench:
    monkeypatch.setattr(jobs, "PATIENCE", jobs.Patience(0.01, 1.5, 0.05, 0.7))
    monkeypatch.setattr(jobs, "PART_RECORDS", 25)
    return lambda **options: open_bench(org, tmp_path / "home", **options)


def pem(key: Any) -> str:
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


RSA_KEY = pem(rsa.generate_private_key(65537, 2048))
EC_KEY = pem(ec.generate_private_key(ec.SECP256R1()))
MY_DOMAIN = {"instance_url": "https://acme.my.salesforce.com", "client_id": "app"}
USER = {"username": "u@acme.example", "password": "word-of-secret"}


# ---- credentials


@pytest.mark.parametrize(
    ("values", "grant"),
    [
        (MY_DOMAIN | {"client_secret": "s"}, Grant.CLIENT_CREDENTIALS),
        (MY_DOMAIN | {"client_secret": "s", "refresh_token": "r"}, Grant.REFRESH_TOKEN),
        (MY_DOMAIN | {"refresh_token": "r"}, Grant.REFRESH_TOKEN),
        (MY_DOMAIN | {"username": "u", "private_key": RSA_KEY}, Grant.JWT_BEARER),
        (MY_DOMAIN | USER | {"client_secret": "s", "security_token": "t"}, Grant.PASSWORD),
        (USER | {"instance_url": "login.salesforce.com", "security_token": "t"}, Grant.PASSWORD),
        (MY_DOMAIN | USER | {"client_secret": "s", "grant": "client_credentials"},
         Grant.CLIENT_CREDENTIALS),
        (MY_DOMAIN | {"client_secret": "s", "password": "", "refresh_token": ""},
         Grant.CLIENT_CREDENTIALS),
    ],
)  # fmt: skip
def test_the_shape_decides_the_grant_unless_it_is_named(
    values: dict[str, str], grant: Grant
) -> None:
    assert Credentials.parse(values, Where("acme", "salesforce")).way() is grant


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instance_url": "https://acme.my.salesforce.com"}, "client_id, client_secret is missing"),
        (MY_DOMAIN | {"private_key": RSA_KEY}, "username is missing"),
        (MY_DOMAIN | {"username": "u", "private_key": "word-of-secret"}, "no private key in PEM"),
        (MY_DOMAIN | {"username": "u", "private_key": EC_KEY}, "no RSA key"),
        (MY_DOMAIN | USER | {"grant": "jwt_bearer"}, "private_key is missing"),
        (MY_DOMAIN | {"client_secret": "s", "grant": "implicit"}, "grant"),
        (MY_DOMAIN | {"client_secret": "s", "instance_url": "https://login.salesforce.com"},
         "My Domain"),
        (MY_DOMAIN | {"client_secret": "s", "instance_url": "https://test.salesforce.com"},
         "My Domain"),
        (MY_DOMAIN | {"client_secret": "s", "instance_url": "https://acme.lightning.force.com"},
         "web pages"),
        (MY_DOMAIN | {"client_secret": "s", "instance_url": "http://acme.my.salesforce.com"},
         "https://"),
        (MY_DOMAIN | {"client_secret": "s", "consumer": "word-of-secret"}, "is not a field"),
    ],
)  # fmt: skip
def test_incomplete_credentials_are_refused_without_showing_them(
    values: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        salesforce.check(values, Where("acme", "salesforce"))
    assert said in str(caught.value)
    assert "tenant=acme service=salesforce" in str(caught.value)
    shown = everything_said(caught.value)
    assert "word-of-secret" not in shown and "PRIVATE KEY" not in shown


def test_a_key_may_have_its_line_ends_escaped_twice() -> None:
    values = MY_DOMAIN | {"username": "u", "private_key": RSA_KEY.strip().replace("\n", "\\n")}
    assert Credentials.parse(values, Where()).signing_key().key_size == 2048


@pytest.mark.parametrize(
    ("address", "is_sandbox"),
    [
        ("https://test.salesforce.com", True),
        ("https://acme--dev.sandbox.my.salesforce.com", True),
        ("https://acme--dev.my.salesforce.com", True),
        ("https://acme.my.salesforce.com", False),
        ("https://login.salesforce.com", False),
    ],
)
def test_a_sandbox_is_known_by_its_address(address: str, is_sandbox: bool) -> None:
    values = USER | {"instance_url": address}
    assert Credentials.parse(values, Where()).is_sandbox is is_sandbox


# ---- logins


@pytest.mark.parametrize("grant", ["client_credentials", "jwt", "refresh_token", "password"])
def test_each_grant_logs_in(new: NewBench, grant: str) -> None:
    bench = new(grant=grant)
    assert bench.open().count("case", EVER) > 100
    assert {entry["status"] for entry in bench.log()} == {200}


def test_a_user_without_an_app_logs_in_by_soap(new: NewBench) -> None:
    bench = new()
    values = bench.credentials("password")
    values = {n: v for n, v in values.items() if n not in ("client_id", "client_secret")}
    assert bench.open(values).count("case", EVER) > 100
    assert bench.log()[0]["kind"] == "soap"
    with pytest.raises(CredentialsRefused) as caught:
        bench.open(values | {"password": WRONG}).count("case", EVER)
    assert "INVALID_LOGIN" in str(caught.value) and "security_token" in str(caught.value)
    assert WRONG not in everything_said(caught.value)


@pytest.mark.parametrize(
    ("grant", "changed", "said"),
    [
        ("client_credentials", {"client_secret": WRONG}, "client_secret"),
        ("client_credentials", {"client_id": "another-app"}, "sandbox"),
        ("refresh_token", {"refresh_token": WRONG}, "replaced by another program"),
        ("password", {"password": WRONG}, "password or security_token"),
        ("jwt", {"private_key": RSA_KEY}, "private_key"),
        ("jwt", {"username": "nobody@acme.example"}, "pre-authorised"),
        ("client_credentials", {"grant": "password", "username": "u", "password": WRONG},
         "password"),
    ],
)  # fmt: skip
def test_a_refused_login_says_why_at_once(
    new: NewBench, grant: str, changed: dict[str, str], said: str
) -> None:
    bench = new()
    with pytest.raises(CredentialsRefused) as caught:
        bench.open(bench.credentials(grant) | changed).count("case", EVER)
    assert said in str(caught.value), str(caught.value)
    assert "tenant=acme service=salesforce" in str(caught.value)
    shown = everything_said(caught.value)
    assert WRONG not in shown and "PRIVATE KEY" not in shown
    assert len(bench.log("token")) <= 2


def test_a_user_of_a_sandbox_is_not_known_to_production(new: NewBench) -> None:
    bench = new()
    values = bench.credentials("jwt")
    bench.control("sandbox", on=True)
    try:
        with pytest.raises(CredentialsRefused) as caught:
            bench.open(values).count("case", EVER)
        assert "is a production address" in str(caught.value)
        assert "https://test.salesforce.com" in str(caught.value)
        sandbox = bench.credentials("jwt") | {"audience": "https://test.salesforce.com"}
        assert bench.open(sandbox).count("case", EVER) > 100
    finally:
        bench.control("sandbox", on=False)


def test_a_web_page_in_place_of_a_token_is_no_answer(new: NewBench) -> None:
    bench = new()
    bench.control("hibernate", on=True, status=200)
    with pytest.raises(RetriableError, match="hibernates"):
        bench.open().count("case", EVER)


def test_the_token_says_where_the_calls_go(new: NewBench) -> None:
    bench = new()
    source = bench.open()
    assert source.count("case", EVER) > 100
    bench.control("instance", to="port")  # the org moves: what was the address refuses the token
    assert source.count("case", EVER) > 100
    kinds = [(entry["kind"], entry["status"]) for entry in bench.log()]
    assert kinds[-3:] == [("count", 401), ("token", 200), ("count", 200)]


def test_a_token_for_a_foreign_host_is_not_used() -> None:
    from avesa_dagster.sources.http import Answer
    from avesa_dagster.sources.records import InvalidPage
    from avesa_dagster.sources.salesforce.login import session

    held = Credentials.parse(MY_DOMAIN | {"client_secret": "s"}, Where())
    for address in ("https://evil.example", "http://acme.my.salesforce.com", "https://127.0.0.1"):
        body = json.dumps({"access_token": "t", "instance_url": address}).encode()
        with pytest.raises(InvalidPage, match="no host of Salesforce"):
            session(held, Answer(200, {}, body))


def test_a_session_that_ends_in_the_middle_is_renewed_once(new: NewBench) -> None:
    bench = new(script={"faults": [{"kind": "session_expired", "on": ["list"], "at": [2, 4]}]})
    bench.extract("case")
    assert_equals_truth(bench, "case")
    assert 2 <= len(bench.log("token")) <= 3  # two at once are renewed as one


def test_a_session_that_may_not_use_rest_makes_no_loop(new: NewBench) -> None:
    bench = new()
    bench.control("api", rest=False)
    try:
        with pytest.raises(PermissionRefused, match="permit the REST API"):
            bench.open().count("case", EVER)
        assert [entry["kind"] for entry in bench.log()] == ["token", "describe"]
    finally:
        bench.control("api", rest=True)


def test_an_org_without_the_api_says_so(new: NewBench) -> None:
    bench = new()
    bench.control("api", enabled=False)
    try:
        with pytest.raises(CredentialsRefused, match="edition"):
            bench.open().count("case", EVER)
    finally:
        bench.control("api", enabled=True)


# ---- refresh tokens that are replaced


def stored(bench: SalesforceBench) -> str:
    return bench.installation.secrets.get(TENANT, SERVICE)["refresh_token"]


def test_a_replaced_refresh_token_is_stored_with_its_session_which_all_share(
    new: NewBench, org: Simulator
) -> None:
    bench = new(connect=False)
    bench.control("rotation", on=True)
    try:
        given = bench.credentials("refresh_token")
        bench.installation.connect(TENANT, SERVICE, given, requests_per_minute=10_000_000)
        first = stored(bench)
        assert first != given["refresh_token"]  # the probe used it up
        source = bench.open()
        assert source.count("case", EVER) > 100
        assert stored(bench) == first, "the probe's session serves"
        bench.control("expire")
        assert source.count("case", EVER) > 100
        second = stored(bench)
        assert second != first
        other = bench.open()  # as in another process
        assert other.count("case", EVER) > 100
        assert stored(bench) == second
        bench.control("expire")
        assert other.count("case", EVER) > 100
        third = stored(bench)
        assert third not in (first, second)
        assert source.count("case", EVER) > 100, "refused, it goes on with the other's session"
        assert stored(bench) == third
        held = bench.installation.secrets.get(TENANT, SERVICE)
        old = json.dumps(json.loads(held["session"]) | {"until": "2026-01-01T00:00:00+00:00"})
        bench.installation.secrets.put(TENANT, SERVICE, held | {"session": old})
        assert bench.open().count("case", EVER) > 100
        assert stored(bench) != third, "a session that is too old is not used"
        held = bench.installation.secrets.get(TENANT, SERVICE)
        bench.installation.secrets.put(TENANT, SERVICE, held | {"session": "spoilt"})
        assert bench.open().count("case", EVER) > 100
    finally:
        bench.control("rotation", on=False)


def test_processes_with_one_refresh_token_go_on_with_each_others(new: NewBench) -> None:
    bench = new(connect=False)
    bench.control("rotation", on=True)
    try:
        given = bench.credentials("refresh_token")
        bench.installation.connect(TENANT, SERVICE, given, requests_per_minute=10_000_000)
        sources = [bench.open() for _ in range(4)]  # each logs in for itself, as a process would
        failures: list[AvesaError] = []

        def work(source: Source) -> None:
            try:
                for _ in range(3):
                    bench.control("expire")
                    source.count("case", EVER)
            except AvesaError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(source,)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A session that others end again and again may be refused; no login may fail.
        assert not [f for f in failures if "token for the grant" in str(f)], failures
        bench.control("expire")
        assert bench.open().count("case", EVER) > 100
    finally:
        bench.control("rotation", on=False)


def test_a_refresh_token_that_cannot_be_stored_is_not_forgotten(
    new: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new(connect=False)
    bench.control("rotation", on=True)
    try:
        given = bench.credentials("refresh_token")
        bench.installation.connect(TENANT, SERVICE, given, requests_per_minute=10_000_000)
        bench.control("expire")
        source = bench.open()

        def full(*arguments: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(FileSecrets, "put", full)
            with pytest.raises(StoreError, match="cannot be stored: the disk is full"):
                source.count("case", EVER)
        before = stored(bench)
        assert source.count("case", EVER) > 100
        assert stored(bench) != before
        assert bench.open().count("case", EVER) > 100
    finally:
        bench.control("rotation", on=False)


def test_new_credentials_are_taken_up_before_giving_up(new: NewBench) -> None:
    bench = new()
    connection = bench.installation.control.registry.get(TENANT, SERVICE)
    assert connection is not None
    wrong = bench.credentials("client_credentials") | {"client_secret": "old"}
    vault = StoredVault(bench.installation.secrets, TENANT, SERVICE)
    source = bench.installation.open_with(
        connection, wrong, live=False, cancelled=lambda: False, vault=vault
    )()
    assert source.count("case", EVER) > 100


# ---- pages


def test_a_window_is_read_whole_whatever_the_batches(new: NewBench) -> None:
    hard = [{"kind": kind, "probability": 0.05} for kind in HARD]
    script = {"page_clamp": 7, "fewer_rows": True, "faults": hard, "max_consecutive": 3}
    bench = new(script=script)
    bench.extract("case")
    bench.extract("account")
    bench.control("hostility")
    assert_equals_truth(bench, "case")
    assert_equals_truth(bench, "account")


HARD = (
    "drop_row", "duplicate_row", "empty_page", "short_page", "filter_ignored", "html_200",
    "error_object_200", "broken_json", "cut_body", "reset_before", "hang_up", "maintenance",
    "session_expired", "lose_cursors", "status",
)  # fmt: skip


def test_an_empty_batch_that_is_not_the_last_ends_nothing(new: NewBench) -> None:
    from avesa_dagster.sources.http import Answer

    bench = new(page_size=200)
    source = bench.open()
    assert isinstance(source, salesforce.Salesforce)
    asked: list[str] = []
    ask = source._http.ask

    def emptied(call: Any, parse: Any) -> Any:
        if "queryAll" not in call.url or "COUNT" in call.params["q"]:
            return ask(call, parse)
        asked.append(call.url)
        empty = {"totalSize": 160, "done": False, "records": [], "nextRecordsUrl": f"{NEXT}-0"}
        return parse(Answer(200, {}, json.dumps(empty).encode()))

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(source._http, "ask", emptied)
        with pytest.raises(FatalError, match="INVALID_QUERY_LOCATOR"):  # it was followed
            source.page("case", EVER)
    assert len(asked) == 1


NEXT = "/services/data/v60.0/query/01g000000000000AAA"


def test_a_select_that_fits_no_address_is_asked_in_parts(
    new: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new()
    monkeypatch.setattr(objects, "LONGEST_SELECT", 260)
    bench.extract("case")
    assert_equals_truth(bench, "case")
    asked = [entry["query"]["q"] for entry in bench.log("list")]
    assert len({text.split(" FROM ")[0] for text in asked}) > 2
    assert max(map(len, asked)) < 700


def test_what_changes_between_two_parts_is_not_patched_together(
    new: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new(script={"mutate_per_request": 3})
    monkeypatch.setattr(objects, "LONGEST_SELECT", 600)
    bench.extract("case")
    versions = bench.control("truth", table="Case")["records"]
    for row in bench.raw("case"):
        known = {digest(json.dumps(v["payload"])) for v in versions[row["record_id"]]["versions"]}
        assert digest(row["payload"]) in known


def test_a_field_that_is_hidden_between_describe_and_query_is_left_out(new: NewBench) -> None:
    lose = {"kind": "lose_field", "table": "Case", "field": "Subject", "on": ["list"], "at": [1]}
    bench = new(page_size=25, script={"faults": [lose]})
    bench.extract("case")
    rows = [json.loads(row["payload"]) for row in bench.raw("case") if not row["is_deleted"]]
    assert len({row["Id"] for row in rows}) == 160
    with_it = ["Subject" in row for row in rows]
    assert any(with_it) and not all(with_it)
    assert len(bench.log("describe")) == 2


def test_a_permission_that_vanishes_in_the_middle_is_named_and_nothing_is_lost(
    new: NewBench,
) -> None:
    lose = {"kind": "lose_object", "table": "Case", "on": ["list"], "at": [3]}
    bench = new(page_size=25, script={"faults": [lose]})
    with pytest.raises(AvesaError) as caught:
        bench.extract("case", token="one")
    text = str(caught.value)
    assert "Case" in text or "case" in text
    assert "tenant=acme service=salesforce table=case" in text
    failed = [c for c in bench.chunks("one", "case") if c.state is ChunkState.FAILED]
    assert failed and all(
        "window=[" in (chunk.error or "") and "read access" in (chunk.error or "")
        for chunk in failed
    )
    bench.control("object", table="Case", accessible=True)
    bench.control("hostility")
    bench.extract("case", token="one")
    assert_equals_truth(bench, "case")


def test_windows_have_whole_seconds_and_stamps_milliseconds(new: NewBench) -> None:
    bench = new()
    source = bench.open()
    first = source.page("case", EVER).records[0]
    assert first.updated_at is not None
    second = first.updated_at.replace(microsecond=0)
    around = Span(Window(second, second + timedelta(seconds=1)))
    assert first.record_id in {r.record_id for r in source.page("case", around).records}
    with pytest.raises(FatalError, match="whole seconds"):
        source.count("case", Span(Window(second + timedelta(milliseconds=1), NOW)))


def test_a_count_that_takes_too_long_is_made_of_halves(new: NewBench) -> None:
    bench = new(script={"timeout_rows": 40})
    assert bench.open().count("case", EVER) == 160


def test_a_window_that_takes_too_long_is_halved(new: NewBench) -> None:
    bench = new(script={"timeout_rows": 30})
    bench.extract("case", token="one")
    assert len(bench.chunks("one", "case")) > 5
    assert_equals_truth(bench, "case")


@pytest.mark.parametrize(
    ("endpoint", "change_field", "said"),
    [
        ("Nothing__c", "SystemModstamp", "has no /services/data"),
        ("CaseHistory", "SystemModstamp", "change_field"),
        ("Case", "Subject", "CreatedDate"),
    ],
)
def test_an_object_that_cannot_be_copied_says_why(
    new: NewBench, endpoint: str, change_field: str, said: str
) -> None:
    bench = new()
    catalog = bench.installation.catalog
    service = catalog.services[SERVICE]
    table = service.tables["case"].model_copy(
        update={"endpoint": endpoint, "change_field": change_field}
    )
    odd = service.model_copy(update={"tables": service.tables | {"case": table}})
    services = catalog.services | {SERVICE: odd}
    bench.installation.__dict__["catalog"] = catalog.model_copy(update={"services": services})
    with pytest.raises(FatalError) as caught:
        bench.open().page("case", EVER)
    assert said in str(caught.value)
    assert "tenant=acme service=salesforce table=case" in str(caught.value)


def test_custom_objects_and_history_come_by_json_alone(new: NewBench) -> None:
    bench = new()
    catalog = bench.installation.catalog
    service = catalog.services[SERVICE]
    project = service.tables["case"].model_copy(update={"endpoint": "Project__c"})
    history = service.tables["case"].model_copy(
        update={"endpoint": "CaseHistory", "change_field": "CreatedDate"}
    )
    tables = service.tables | {"project": project, "history": history}
    odd = service.model_copy(update={"tables": tables})
    services = catalog.services | {SERVICE: odd}
    bench.installation.__dict__["catalog"] = catalog.model_copy(update={"services": services})
    source = bench.open()
    for table in ("project", "history"):
        assert len(source.page(table, EVER)) == source.count(table, EVER) > 10


def test_what_is_never_stored_is_not_even_asked_for(new: NewBench) -> None:
    bench = new()
    catalog = bench.installation.catalog
    service = catalog.services[SERVICE]
    case = service.tables["case"].model_copy(update={"never_stored": ("Subject",)})
    odd = service.model_copy(update={"tables": service.tables | {"case": case}})
    services = catalog.services | {SERVICE: odd}
    bench.installation.__dict__["catalog"] = catalog.model_copy(update={"services": services})
    page = bench.open().page("case", EVER)
    assert len(page) and not [r for r in page.records if b'"Subject"' in r.payload]
    assert "Subject" not in bench.log("list")[-1]["query"]["q"]


# ---- the two forms of a record


def test_what_came_by_pages_is_not_new_when_it_comes_in_bulk(new: NewBench) -> None:
    bench = new()
    kinds = ["huge_text", "nuls", "wide_integer", "year_1700"]
    at = (NOW - timedelta(days=2)).isoformat()
    poisoned = bench.control("poison", table="Case", kinds=kinds, at=at)["ids"]
    bench.control("delete", table="Case", count=5)
    bench.advance(600)
    bench.extract("case")
    by_pages = bench.raw("case")
    assert set(poisoned.values()) <= {row["record_id"] for row in by_pages}
    assert {row["is_deleted"] for row in by_pages} == {True, False}
    _in_bulk(bench, 1)
    bench.extract("case")
    assert len(bench.log("results")) > 4
    assert bench.raw("case") == by_pages


def test_what_came_in_bulk_is_not_new_when_it_comes_by_pages(new: NewBench) -> None:
    bench = new(bulk_records=1, script={"short_ids": True})
    bench.extract("case")
    assert bench.log("results")
    in_bulk = bench.raw("case")
    assert_equals_truth(bench, "case")
    _in_bulk(bench, 1_000_000)
    bench.extract("case")
    assert bench.raw("case") == in_bulk


def _in_bulk(bench: SalesforceBench, records: int) -> None:
    catalog = bench.installation.catalog
    service = catalog.services[SERVICE].model_copy(update={"bulk_records": records})
    services = catalog.services | {SERVICE: service}
    bench.installation.__dict__["catalog"] = catalog.model_copy(update={"services": services})
    bench.installation.__dict__.pop("extractor", None)


# ---- bulk jobs


def bulk_bench(new: NewBench, *faults: dict[str, Any], **options: Any) -> SalesforceBench:
    """One window of 160 cases that is worth a job, in parts of 25."""
    script = {"faults": list(faults)} | options.pop("script", {})
    return new(
        bulk_records=options.pop("bulk_records", 100),
        years=0.04,
        lookback_days=5,
        script=script,
        **options,
    )


def test_a_large_window_comes_as_a_job_which_is_removed(new: NewBench) -> None:
    bench = bulk_bench(new, script={"bulk_polls": 4})
    bench.extract("case", token="one")
    assert_equals_truth(bench, "case")
    assert len(bench.log("job")) == 1
    assert len(bench.log("results")) >= 7
    assert not bench.log("list")
    [chunk] = [c for c in bench.chunks("one", "case") if c.rows]
    assert chunk.rows == chunk.source_count == 160
    assert bench.control("jobs")["jobs"] == []


def test_a_full_pull_comes_as_a_job_too(new: NewBench) -> None:
    bench = bulk_bench(new, bulk_records=20)
    bench.control("delete", table="Account", count=3)
    bench.advance(600)
    bench.extract("account", Mode.FULL)
    assert len(bench.log("job")) == 1
    assert_equals_truth(bench, "account")
    assert bench.control("jobs")["jobs"] == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"kind": "job_fails", "at": [1]}, "ended as Failed"),
        ({"kind": "job_aborted", "at": [1]}, "ended as Aborted"),
        ({"kind": "job_hangs", "at": [1]}, "did not end within"),
        ({"kind": "job_empty", "at": [1]}, "holds 0"),
        ({"kind": "duplicate_header", "probability": 1.0}, "two columns"),
        ({"kind": "wrong_count", "probability": 1.0}, "says 26 records and holds 25"),
        ({"kind": "drop_row", "on": ["results"], "probability": 1.0}, "holds 24"),
        ({"kind": "error", "code": "API_ERROR", "message": "Implementation restriction",
          "on": ["job"], "at": [1]}, "not given in bulk"),
        ({"kind": "error", "code": "EXCEEDEDQUOTA", "on": ["job"], "at": [1]},
         "not given in bulk"),
        ({"kind": "error", "code": "INSUFFICIENT_ACCESS", "on": ["job"], "at": [1]},
         "not given in bulk"),
    ],
)  # fmt: skip
def test_a_job_that_comes_to_nothing_is_said_and_read_by_pages(
    new: NewBench, caplog: pytest.LogCaptureFixture, fault: dict[str, Any], said: str
) -> None:
    bench = bulk_bench(new, fault)
    with caplog.at_level(logging.WARNING, logger="avesa_dagster.extract.chunks"):
        bench.extract("case", token="one")
    [warning] = [r.getMessage() for r in caplog.records]
    assert said in warning and "by pages" in warning
    assert "tenant=acme service=salesforce table=case window=[2026-03-" in warning
    bench.control("hostility")
    assert_equals_truth(bench, "case")
    [chunk] = [c for c in bench.chunks("one", "case") if c.rows]
    assert chunk.rows == chunk.source_count == 160
    assert bench.control("jobs")["jobs"] == []


@pytest.mark.parametrize("kind", ["cut_body", "reset_before", "session_expired", "maintenance"])
def test_a_part_that_is_damaged_is_asked_for_again(new: NewBench, kind: str) -> None:
    bench = bulk_bench(new, {"kind": kind, "on": ["results", "status"], "at": [2, 4, 6]})
    bench.extract("case")
    assert_equals_truth(bench, "case")
    assert len(bench.log("job")) == 1
    assert not bench.log("list")


def test_a_job_of_no_rows_is_not_believed(new: NewBench) -> None:
    bench = bulk_bench(new, script={"bulk_zero": "text"})
    source = bench.open()
    assert isinstance(source, BulkSource)
    empty = Span(Window(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)))
    assert [len(page) for page in source.bulk("case", empty, None)] == [0, 0]


def test_a_job_whose_query_takes_too_long_has_its_window_halved(new: NewBench) -> None:
    bench = bulk_bench(new)
    bench.control("hostility", timeout_rows=120)
    bench.extract("case", token="one")
    chunks = [c for c in bench.chunks("one", "case") if c.rows]
    assert len(chunks) > 1
    bench.control("hostility")
    assert_equals_truth(bench, "case")
    assert bench.control("jobs")["jobs"] == []


class Halt(Exception):
    pass


def stop_after(bench: SalesforceBench, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is killed when so many parts of a job were stored."""
    ledger = bench.installation.control.ledger
    progress, seen = type(ledger).progress, [0]

    def counting(self: Any, *arguments: Any, **named: Any) -> Any:
        done = progress(self, *arguments, **named)
        seen[0] += 1
        if seen[0] > parts:
            raise Halt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(type(ledger), "progress", counting)
        with pytest.raises(Halt):
            bench.extract("case", token="one")


def test_a_killed_run_goes_on_in_the_middle_of_the_result(
    new: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bulk_bench(new)
    stop_after(bench, 4, monkeypatch)
    before = len(bench.log("results"))
    bench.extract("case", token="one")
    assert_equals_truth(bench, "case")
    assert len(bench.log("job")) == 1
    assert before + len(bench.log("results")[before:]) == 7
    rows = bench.raw("case")
    assert len(rows) == len({row["record_id"] for row in rows}) == 160
    assert bench.control("jobs")["jobs"] == []


@pytest.mark.parametrize("gone", ["locators", "job"])
def test_a_place_that_is_gone_is_replaced_by_a_new_job(
    new: NewBench, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    bench = bulk_bench(new)
    stop_after(bench, 4, monkeypatch)
    if gone == "locators":
        bench.control("end_locators")
    else:
        bench.advance(8 * 86_400)
    bench.extract("case", token="one")
    assert_equals_truth(bench, "case")
    assert len(bench.log("job")) == 2
    assert bench.control("jobs")["jobs"] == []


def test_an_admin_who_aborts_the_job_stops_nothing(
    new: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bulk_bench(new, {"kind": "job_hangs", "at": [1]})
    stop_after(bench, 0, monkeypatch)
    assert bench.control("end_jobs", state="Aborted")["ids"]
    bench.extract("case", token="one")
    bench.control("hostility")
    assert_equals_truth(bench, "case")
    assert bench.control("jobs")["jobs"] == []


def test_jobs_that_were_left_over_are_removed_and_foreign_ones_are_not(
    new: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bulk_bench(new, {"kind": "job_hangs", "at": [1]})
    stop_after(bench, 0, monkeypatch)
    [left] = [job["id"] for job in bench.control("jobs")["jobs"]]
    bench.control("hostility")
    bench.advance(2 * 86_400)
    [foreign] = bench.control("leave_jobs", count=1)["ids"]
    bench.extract("case", token="two")
    jobs_left = [job["id"] for job in bench.control("jobs")["jobs"]]
    assert jobs_left == [foreign] and left != foreign


def test_waiting_for_a_job_ends_when_the_run_is_stopped(new: NewBench) -> None:
    bench = bulk_bench(new, {"kind": "job_hangs", "at": [1]})
    connection = bench.installation.control.registry.get(TENANT, SERVICE)
    assert connection is not None
    stop = threading.Event()
    source = bench.installation.open_source(connection, False, stop.is_set)()
    assert isinstance(source, BulkSource)
    pages = source.bulk("case", EVER, None)
    assert next(pages).last_id
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        next(pages)
    assert time.monotonic() - began < 1.0


def test_a_circle_of_locators_is_noticed(new: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bulk_bench(new)
    source = bench.open()
    assert isinstance(source, BulkSource)
    following = jobs._next
    first: list[str] = []

    def again(answer: Any) -> str:
        first.append(following(answer))
        return first[0]

    monkeypatch.setattr(jobs, "_next", again)
    with pytest.raises(BulkUnusable, match="circle"):
        list(source.bulk("case", EVER, None))


def test_records_that_change_while_the_job_runs_are_not_lost(new: NewBench) -> None:
    bench = bulk_bench(new, script={"mutate_per_request": 2, "delete_per_request": 1})
    bench.extract("case")
    bench.control("hostility")
    bench.advance(600)
    bench.extract("case", Mode.SYNC)
    assert_equals_truth(bench, "case")


# ---- deletions


def test_deleted_records_are_closed_with_what_they_held(new: NewBench) -> None:
    bench = new()
    bench.extract("case")
    gone = bench.control("delete", table="Case", count=4)["ids"]
    bench.advance(600)
    bench.extract("case", Mode.SYNC)
    closed = {row["record_id"]: row for row in bench.raw("case") if row["is_deleted"]}
    assert closed.keys() == set(gone)
    assert all(json.loads(row["payload"])["IsDeleted"] for row in closed.values())
    assert_equals_truth(bench, "case")
    bench.control("undelete", table="Case", ids=gone[:2])
    bench.advance(600)
    bench.extract("case", Mode.SYNC)
    assert_equals_truth(bench, "case")


def test_what_left_the_recycle_bin_is_closed_by_the_list_of_deletions(new: NewBench) -> None:
    bench = new()
    bench.extract("case")
    bench.extract("case", Mode.SYNC)
    gone = bench.control("delete", table="Case", count=4)["ids"]
    bench.advance(3 * 3600)
    bench.control("purge", table="Case", min_age_seconds=3600)
    bench.advance(600)
    bench.control("stats_reset")
    bench.extract("case", Mode.SYNC)
    closed = {row["record_id"] for row in bench.raw("case") if row["is_deleted"]}
    assert closed == set(gone)
    assert_equals_truth(bench, "case")
    assert len(bench.log("deleted")) == 1
    assert len(bench.log("get")) == 4


def test_deletions_that_are_still_listed_cost_no_question_each(new: NewBench) -> None:
    bench = new()
    bench.extract("case")
    bench.extract("case", Mode.SYNC)
    bench.control("delete", table="Case", count=20)
    bench.advance(600)
    bench.control("stats_reset")
    bench.extract("case", Mode.SYNC)
    assert not bench.log("get")
    assert len(bench.log("deleted")) == 1
    assert_equals_truth(bench, "case")


def test_what_nobody_lists_any_more_is_closed_by_a_sweep(new: NewBench) -> None:
    bench = new()
    bench.extract("case")
    bench.extract("case", Mode.SYNC)
    gone = bench.control("hard_delete", table="Case", count=3)["ids"]
    back = bench.control("delete", table="Case", count=2)["ids"]
    bench.advance(600)
    bench.extract("case", Mode.FULL)
    bench.control("undelete", table="Case", ids=back, silent=True)
    bench.advance(600)
    bench.extract("case", Mode.FULL)
    newest: dict[str, dict[str, Any]] = {}
    for row in sorted(bench.raw("case"), key=lambda row: row["observed_at"]):
        newest[row["record_id"]] = row
    assert {i for i, row in newest.items() if row["is_deleted"]} == set(gone)


def test_the_list_of_deletions_is_only_believed_where_it_reaches(new: NewBench) -> None:
    bench = new()
    source = bench.open()
    now = NOW - timedelta(minutes=5)
    assert source.deletions("case", Window(now - timedelta(days=1), now)) == []
    assert source.deletions("case", Window(now - timedelta(days=16), now)) is None
    assert source.deletions("user", Window(now - timedelta(days=1), now)) in ([], None)
    bench.control("delete", table="Case", count=2)
    bench.advance(7200)
    bench.control("purge", table="Case", min_age_seconds=0, log=True)
    source = bench.open()
    assert source.deletions("case", Window(now - timedelta(days=1), now)) is None


def test_a_list_of_too_many_deletions_is_halved(new: NewBench) -> None:
    bench = new()
    for _ in range(4):
        bench.control("delete", table="Case", count=3)
        bench.advance(1800)
    bench.control("purge", table="Case", min_age_seconds=0)
    bench.control("hostility", id_limit=4)
    found = bench.open().deletions("case", Window(NOW - timedelta(hours=1), bench.clock()))
    assert found is not None and len({one.record_id for one in found}) == 12


def test_existence_is_what_both_ways_say(new: NewBench) -> None:
    bench = new()
    source = bench.open()
    ids = [record.record_id for record in source.page("case", EVER).records]
    assert source.exists("case", ids[0])
    bench.control("delete", table="Case", ids=[ids[0]])
    assert not source.exists("case", ids[0])
    bench.control("hard_delete", table="Case", ids=[ids[1]])
    assert not source.exists("case", ids[1])
    bench.control("object", table="Case", accessible=False)
    with pytest.raises(FatalError, match="read access"):
        source.exists("case", ids[2])
    bench.control("object", table="Case", accessible=True)
    with pytest.raises(FatalError, match="is no id of Salesforce"):
        source.exists("case", "1' OR Id != '")


# ---- the customer's allowance


def test_avesa_stops_at_its_share_and_goes_on_when_requests_return(new: NewBench) -> None:
    bench = new(daily_share=0.8, page_size=25, max_chunk_records=100)
    bench.control("allowance", restore=True, max=100, spend=70)
    try:
        with pytest.raises(Suspended) as caught:
            for token in ("one", "two", "three"):
                bench.extract("case", token=token)
        text = str(caught.value)
        assert "of 100 daily requests" in text and "80%" in text
        assert "tenant=acme service=salesforce" in text
        breaker = bench.installation.control.breakers.get(TENANT, SERVICE)
        assert breaker.state is BreakerState.OPEN
        used = bench.control("allowance")["own"]
        assert used <= 10 + 5  # what the other threads had asked by then
        for _ in range(3):  # each probe costs one request, and lets nothing else go
            time.sleep(0.03)
            with pytest.raises(Suspended):
                bench.extract("case", token="one")
        assert bench.control("allowance")["own"] <= used + 3
        bench.control("allowance", restore=True, max=100_000)
        time.sleep(0.03)
        bench.extract("case", token="one")
        assert_equals_truth(bench, "case")
    finally:
        bench.control("allowance", restore=True, max=100_000)


def test_an_allowance_that_is_used_up_suspends_without_a_share_too(new: NewBench) -> None:
    bench = new()
    bench.control("allowance", restore=True, max=100, spend=100)
    try:
        source = bench.open()
        for _ in range(3):
            with pytest.raises(Suspended, match="TotalRequests"):
                source.count("case", EVER)
        assert len(bench.log("describe")) == 1
    finally:
        bench.control("allowance", restore=True, max=100_000)


def test_too_many_at_once_is_waited_for(new: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from avesa_dagster.sources.salesforce import speech

    monkeypatch.setattr(speech, "_MOMENT", 0.05)
    many = {"kind": "error", "code": "CONCURRENT", "on": ["list"], "at": [1, 2]}
    bench = new(script={"faults": [many]})
    bench.extract("case")
    assert_equals_truth(bench, "case")


# ---- errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("TXN_SECURITY_METERING_ERROR", PermissionRefused),
        ("INSUFFICIENT_ACCESS", PermissionRefused),
        ("SERVER_UNAVAILABLE", RetriableError),
        ("UNABLE_TO_LOCK_ROW", RetriableError),
        ("UNKNOWN_EXCEPTION", RetriableError),
        ("MALFORMED_QUERY", FatalError),
        ("INVALID_TYPE", FatalError),
        ("INVALID_QUERY_LOCATOR", FatalError),
        ("QUERY_TIMEOUT", TooMuch),
    ],
)
def test_each_error_is_of_its_kind_and_names_the_window(
    new: NewBench, code: str, kind: type[AvesaError]
) -> None:
    bench = new(script={"faults": [{"kind": "error", "code": code, "probability": 1.0}]})
    bench.control("hostility", faults=[
        {"kind": "error", "code": code, "probability": 1.0, "on": ["list"]}])  # fmt: skip
    with pytest.raises(kind) as caught:
        bench.open().page("case", Span(WINDOW))
    assert "tenant=acme service=salesforce table=case window=[2026-02-01, 2026-03-01)" in str(
        caught.value
    )


@pytest.mark.parametrize("status", [406, 420, 429, 500, 503])
def test_what_passes_is_asked_again(new: NewBench, status: int) -> None:
    fault = {"kind": "status", "status": status, "on": ["list"], "at": [1], "retry_after": 0}
    bench = new(script={"faults": [fault]})
    bench.extract("case")
    assert_equals_truth(bench, "case")


@pytest.mark.parametrize("status", [200, 503])
def test_an_org_that_hibernates_says_so_and_loses_nothing(new: NewBench, status: int) -> None:
    bench = new()
    source = bench.open()
    source.count("case", EVER)
    bench.control("hibernate", on=True, status=status)
    with pytest.raises(RetriableError) as caught:
        source.page("case", EVER)
    assert "hibernates" in str(caught.value) and "table=case" in str(caught.value)
    bench.control("hibernate", on=False)
    bench.extract("case")
    assert_equals_truth(bench, "case")


def test_an_answer_that_stays_untrue_is_no_data(new: NewBench) -> None:
    bench = new(script={"faults": [{"kind": "broken_json", "probability": 1.0}]})
    with pytest.raises(DataError) as caught:
        bench.open().page("case", Span(WINDOW))
    assert "table=case window=[2026-02-01, 2026-03-01)" in str(caught.value)


def test_no_secret_is_in_what_goes_wrong(new: NewBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = new()
    with caplog.at_level(logging.DEBUG):
        for grant in ("client_credentials", "jwt", "refresh_token", "password"):
            values = bench.credentials(grant)
            held = Credentials.parse(values, Where())
            source = bench.open(values)
            source.count("case", EVER)
            assert isinstance(source, salesforce.Salesforce)
            token = source._http._dialect.headers(source._http)["Authorization"].split()[1]
            secrets = [*held.secrets(), token]
            for echoed in secrets[:3]:
                bench.control("hostility", faults=[
                    {"kind": "error", "code": "UNKNOWN_EXCEPTION", "message": f"no {echoed}!",
                     "status": 400, "probability": 1.0, "on": ["list"]}])  # fmt: skip
                with pytest.raises(AvesaError) as caught:
                    source.page("case", EVER)
                shown = everything_said(caught.value)
                assert not [s for s in secrets if s in shown.replace("\\n", "\n")]
            bench.control("hostility")
    assert not [s for s in secrets if s in caplog.text]


def test_the_source_is_one_that_gives_windows_in_bulk(new: NewBench) -> None:
    bench = new(bulk_records=7)
    source = bench.open()
    assert isinstance(source, BulkSource) and source.bulk_records == 7
    assert not source.ids_ascend and source.lists_deletions
    abandoned = replace(Span(), only="500000000000000AAA")
    assert source.count("case", abandoned) == 0
