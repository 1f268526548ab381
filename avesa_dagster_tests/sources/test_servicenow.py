"""The ServiceNow source: logins, pages, what it may not see, deletions, and what it says.

What every service has to do is proven in `conformance/test_servicenow.py`.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.conformance.bench import NOW, TENANT, Bench, open_bench
from avesa_dagster.conformance.judge import assert_truth, newest
from avesa_dagster.control.base import ChunkState
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    FatalError,
    PermissionRefused,
    RecordsRejected,
    RetriableError,
    StoreError,
    TooMuch,
    Where,
)
from avesa_dagster.extract.request import Mode
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.sources import servicenow
from avesa_dagster.sources.base import Source, Span, Window
from avesa_dagster.sources.servicenow.credentials import Credentials, Grant
from avesa_dagster_tests.sources.servicenow_bench import (
    ENROLMENT,
    EVER,
    SERVICE,
    Asked,
    Forward,
    Said,
    at_request,
    credentials,
    front,
    log,
    open_source,
    redescribed,
    store,
    stored,
)
from avesa_dagster_tests.sources.test_connectwise import everything_said

NewBench = Callable[..., Bench]
WRONG = "-".join(("a", "wrong", "word"))
"""A secret that nothing may show; not written out, as a traceback shows the source."""
HERE = "tenant=acme service=servicenow"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def rig() -> Iterator[Simulator]:
    with Simulator("servicenow", grant="password") as running:
        yield running


@pytest.fixture
def new(rig: Simulator, tmp_path: Path) -> NewBench:
    def opened(table: str = "incident", **options: Any) -> Bench:
        options = {"page_clamp": 1000} | options
        return open_bench(rig, ENROLMENT, tmp_path / "home", table, **options)

    return opened


def secrets_of(rig: Simulator) -> list[str]:
    held = rig.credentials
    pair = base64.b64encode(f"{held['username']}:{held['password']}".encode()).decode()
    return [held["password"], held["client_secret"], pair, WRONG]


def assert_unseen(rig: Simulator, error: BaseException) -> None:
    shown = everything_said(error)
    assert not [secret for secret in secrets_of(rig) if secret in shown]


def assert_placed(bench: Bench, error: AvesaError, token: str = "one") -> list[str]:
    """The error names the tenant, the service, the table and each window that failed.

    Returns:
        What the ledger says of each of them, which is as much, and what to do.
    """
    text = str(error)
    assert f"{HERE} table={bench.table}" in text
    failed = [chunk for chunk in bench.chunks(token) if chunk.state is ChunkState.FAILED]
    said = [chunk.error or "" for chunk in failed] or [text]
    assert all(f"{HERE} table={bench.table} window=[" in one for one in said), said
    assert len(said) == 1 or f"{len(said)} of " in text
    return said


# ---- credentials files

SITE = {"instance_url": "https://acme.service-now.com"}
USER = {"username": "u", "password": "word-of-secret"}
APP = {"client_id": "app", "client_secret": "word-of-secret"}


@pytest.mark.parametrize(
    ("values", "grant"),
    [
        (SITE | USER, Grant.BASIC),
        (SITE | APP, Grant.CLIENT_CREDENTIALS),
        (SITE | USER | APP, Grant.PASSWORD),
        (SITE | APP | {"refresh_token": "r"}, Grant.REFRESH_TOKEN),
        (SITE | USER | APP | {"grant": "basic"}, Grant.BASIC),
        (SITE | USER | APP | {"grant": "client_credentials"}, Grant.CLIENT_CREDENTIALS),
        (SITE | USER | APP | {"refresh_token": "r", "grant": "password"}, Grant.PASSWORD),
        (SITE | USER | {"client_id": "", "client_secret": "", "refresh_token": ""}, Grant.BASIC),
        (SITE | APP | {"username": "", "password": ""}, Grant.CLIENT_CREDENTIALS),
        ({"instance_url": "acme.service-now.com/"} | USER, Grant.BASIC),
        ({"instance_url": "http://127.0.0.1:8080"} | USER, Grant.BASIC),
        ({"instance_url": "http://localhost:8080"} | USER, Grant.BASIC),
    ],
)
def test_the_shape_decides_the_grant_unless_it_is_named(
    values: dict[str, str], grant: Grant
) -> None:
    held = Credentials.parse(values, Where())
    assert held.way() is grant
    assert not held.instance_url.endswith("/")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (USER, "instance_url: is missing"),
        (SITE, "username, password is missing"),
        (SITE | {"username": "u"}, "password is missing"),
        (SITE | {"password": "word-of-secret"}, "username is missing"),
        (SITE | {"client_id": "app"}, "client_secret is missing"),
        (SITE | USER | {"client_id": "app"}, "for the grant password, client_secret is missing"),
        (SITE | APP | {"username": "u"}, "for the grant password, password is missing"),
        (SITE | APP | {"password": "word-of-secret"}, "password is not for the grant client_cred"),
        (SITE | USER | {"client_secret": "word-of-secret"}, "client_secret is not for the grant"),
        (SITE | USER | {"refresh_token": "word-of-secret"}, "refresh_token is not for the grant"),
        (SITE | USER | APP | {"refresh_token": "word-of-secret"}, 'is meant with "grant"'),
        (SITE | USER | {"grant": "client_credentials"}, "client_id, client_secret is missing"),
        (SITE | APP | {"grant": "basic"}, "username, password is missing"),
        (SITE | APP | {"grant": "refresh_token"}, "refresh_token is missing"),
        (SITE | USER | {"grant": "word-of-secret"}, "grant: Input should be 'basic'"),
        (SITE | USER | {"consumer": "word-of-secret"}, "consumer: is not a field"),
        (SITE | USER | {"username": "a:word-of-secret"}, "colon"),
        ({"instance_url": "http://acme.service-now.com"} | USER, "https://"),
        ({"instance_url": "http://10.0.0.1"} | USER, "https://"),
        ({"instance_url": "https://u:word-of-secret@acme.example"} | USER, "neither a user"),
        ({"instance_url": "ftp://acme.service-now.com"} | USER, "is no address"),
        (SITE | USER | {"password": ["word-of-secret"]}, "password: "),
    ],
)  # fmt: skip
def test_incomplete_or_contradictory_credentials_are_refused_without_showing_them(
    values: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        servicenow.check(values, Where(TENANT, SERVICE))
    assert said in str(caught.value), str(caught.value)
    assert HERE in str(caught.value)
    assert "ServiceNow needs instance_url and username, password" in str(caught.value)
    assert "word-of-secret" not in everything_said(caught.value)


# ---- logins


@pytest.mark.parametrize("grant", [grant.value for grant in Grant])
def test_each_grant_logs_in(new: NewBench, rig: Simulator, grant: str) -> None:
    bench = new(records=7)
    values = credentials(rig, grant)
    bench.control("stats_reset")
    assert open_source(bench, values).count("incident", EVER) == 7
    tokens = [] if grant == "basic" else [("token", "POST", "/oauth_token.do")]
    asked = [(entry["kind"], entry["method"], entry["path"]) for entry in log(bench)]
    assert asked == [*tokens, ("count", "GET", "/api/now/stats/incident")]
    assert {entry["status"] for entry in log(bench)} == {200}


def test_a_token_is_renewed_before_it_ends(new: NewBench) -> None:
    """Nothing is ever refused, though each token lives for a good second."""
    bench = new()
    bench.control("expire_tokens")
    bench.control("token", lifetime=1.2)
    source = open_source(bench)
    assert source.count("incident", EVER) == 60
    time.sleep(1.25)
    assert source.count("incident", EVER) == 60
    bench.control("token", lifetime=1800)
    assert {entry["status"] for entry in log(bench)} == {200}
    assert len(log(bench, "token")) == 2


def test_a_token_that_ends_in_the_middle_is_renewed_once(new: NewBench) -> None:
    bench = new(page_size=5, chunk_days=10)
    end = at_request(20, lambda: bench.control("expire_tokens"))
    bench.control("stats_reset")
    bench.run(bench.request(), cancelled=end)
    assert_truth(bench)
    refused = [entry for entry in log(bench) if entry["status"] == 401]
    assert 1 <= len(refused) <= 4  # a request of each thread
    assert len(log(bench, "token")) == 2


def test_a_token_that_does_not_say_how_long_it_lasts_is_used_until_it_is_refused(
    new: NewBench, rig: Simulator
) -> None:
    bench = new(records=7)
    said: dict[str, object] = {}

    def answer(asked: Asked, forward: Forward) -> Said | None:
        if not asked.path.endswith(".do"):
            return None
        return 200, JSON, json.dumps(json.loads(forward(asked)[2]) | said).encode()

    with front(rig.url, answer) as url:
        for expires in ("soon", "", None, True, {}, 1e400, "1799", -5):
            said["expires_in"] = expires
            bench.control("stats_reset")
            source = open_source(bench, rig.credentials | {"instance_url": url})
            assert [source.count("incident", EVER) for _ in range(2)] == [7, 7], expires
            assert len(log(bench, "token")) == (2 if expires == -5 else 1), expires


def test_what_is_no_token_is_not_used(new: NewBench, rig: Simulator) -> None:
    bench = new(records=7)
    bodies = (b"", b"[]", b"null", b"{}", b'{"access_token":""}', b'{"access_token":7}', b"<html>")
    for body in bodies:
        with front(rig.url, lambda asked, forward, body=body: (200, JSON, body)) as url:
            source = open_source(bench, rig.credentials | {"instance_url": url})
            with pytest.raises((DataError, RetriableError)) as caught:
                source.count("incident", EVER)
        assert f"{HERE} table=incident" in str(caught.value), body
    assert not log(bench, "count")


NO_CLIENT_CREDENTIALS = "glide.oauth.inbound.client.credential.grant_type.enabled"
NO_PASSWORDS = "glide.oauth.inbound.ropc.grant_type.disabled"


@pytest.mark.parametrize(
    ("grant", "changed", "acts", "said", "hint"),
    [
        ("basic", {"password": WRONG}, (), "User Not Authenticated", "username and password"),
        ("basic", {"username": "nobody"}, (), "User Not Authenticated", "username and password"),
        ("basic", {}, [("revoke", {})], "User Not Authenticated", "not locked out"),
        ("password", {"password": WRONG}, (), "the grant password: access_denied", "locked out"),
        ("password", {"client_secret": WRONG}, (), "the grant password", "client_secret"),
        ("password", {}, [("revoke", {})], "the grant password: access_denied", "locked out"),
        ("password", {}, [("property", {"name": NO_PASSWORDS, "value": True})],
         "unauthorized_client", NO_PASSWORDS),
        ("client_credentials", {"client_secret": WRONG}, (), "access_denied", "client_secret"),
        ("client_credentials", {}, [("property", {"name": NO_CLIENT_CREDENTIALS, "value": False})],
         "the grant client_credentials: unauthorized_client", NO_CLIENT_CREDENTIALS),
        ("refresh_token", {"refresh_token": WRONG}, (), "invalid_grant", "have a new one made"),
        ("refresh_token", {}, [("expire_tokens", {"refresh": True})], "invalid_grant",
         "may have ended"),
    ],
)  # fmt: skip
def test_a_refused_login_says_why_and_what_to_do(
    new: NewBench,
    rig: Simulator,
    grant: str,
    changed: dict[str, str],
    acts: list[tuple[str, dict[str, Any]]],
    said: str,
    hint: str,
) -> None:
    bench = new(records=7)
    values = credentials(rig, grant) | changed
    for method, arguments in acts:
        bench.control(method, **arguments)
    bench.control("stats_reset")
    with pytest.raises(CredentialsRefused) as caught:
        open_source(bench, values).count("incident", EVER)
    assert not isinstance(caught.value, PermissionRefused)
    text = str(caught.value)
    assert said in text and hint in text, text
    assert f"{HERE} table=incident" in text
    assert "connect again: avesa connect acme servicenow --credentials FILE" in text
    assert_unseen(rig, caught.value)
    assert len(log(bench)) == 1, "credentials that are refused lock a user out"


def test_a_connection_that_is_refused_is_not_made(new: NewBench, rig: Simulator) -> None:
    bench = new(records=7)
    before = stored(bench)
    with pytest.raises(CredentialsRefused) as caught:
        bench.installation.connect(TENANT, SERVICE, credentials(rig, "basic") | {"password": WRONG})
    assert_unseen(rig, caught.value)
    assert stored(bench) == before


def test_basic_authentication_that_is_off_is_named(new: NewBench, rig: Simulator) -> None:
    """A 401 in whatever words, which may hold what was sent."""
    bench = new(records=7)

    def answer(asked: Asked, forward: Forward) -> Said | None:
        sent = asked.headers["Authorization"]
        error = {"error": {"message": "User Not Authenticated", "detail": f"Basic is off: {sent}"}}
        return 401, JSON, json.dumps(error).encode()

    with front(rig.url, answer) as url:
        source = open_source(bench, credentials(rig, "basic") | {"instance_url": url})
        with pytest.raises(CredentialsRefused) as caught:
            source.count("incident", EVER)
    assert "Basic is off: Basic ***" in str(caught.value)
    assert "may use basic authentication (else add client_id" in str(caught.value)
    assert_unseen(rig, caught.value)


def test_a_user_that_is_locked_out_in_the_middle_ends_the_run(
    new: NewBench, rig: Simulator
) -> None:
    bench = new(page_size=5, chunk_days=10)
    request = bench.request()
    with pytest.raises(CredentialsRefused) as caught:
        bench.run(request, cancelled=at_request(20, lambda: bench.control("revoke")))
    assert HERE in str(caught.value) and "locked out" in str(caught.value)
    assert_unseen(rig, caught.value)
    bench.control("restore")
    bench.advance(120)
    bench.run(request)
    assert_truth(bench)


# ---- refresh tokens that are replaced


class Replacing:
    """Before an instance: gives another refresh token with each use, and the used one is dead."""

    def __init__(self, first: str) -> None:
        self.good = self.first = first
        self.given: list[str] = []
        self.refused = 0

    def __call__(self, asked: Asked, forward: Forward) -> Said | None:
        if not asked.path.endswith(".do"):
            return None
        sent = re.search(rb"refresh_token=(token-\d+|[0-9a-f]{64})", asked.body)
        if sent is None or sent[1].decode() != self.good:
            self.refused += 1
            return 401, JSON, b'{"error":"invalid_grant"}'
        status, headers, body = forward(
            replace(asked, body=asked.body.replace(sent[1], self.first.encode()))
        )
        self.good = f"token-{len(self.given)}"
        self.given.append(self.good)
        return status, headers, json.dumps(json.loads(body) | {"refresh_token": self.good}).encode()


def test_a_replaced_refresh_token_is_stored_with_its_session_which_all_share(
    new: NewBench, rig: Simulator
) -> None:
    bench = new(records=7)
    values = credentials(rig, "refresh_token")
    replacing = Replacing(values["refresh_token"])
    with front(rig.url, replacing) as url:
        bench.installation.connect(TENANT, SERVICE, values | {"instance_url": url})
        assert stored(bench)["refresh_token"] == "token-0"  # the probe used the first one up
        source = open_source(bench)
        other = open_source(bench)  # as in another process
        for here in (source, other):
            assert here.count("incident", EVER) == 7
        assert stored(bench)["refresh_token"] == "token-0", "the probe's session serves"
        for number, here in enumerate((source, other, source), start=1):
            bench.control("expire_tokens")
            assert here.count("incident", EVER) == 7
            assert stored(bench)["refresh_token"] == replacing.good == f"token-{number}"
        assert other.count("incident", EVER) == 7, "refused, it goes on with the other's session"
        assert stored(bench)["refresh_token"] == "token-3"
        assert stored(bench).keys() == {*values, "session"}
    assert replacing.refused == 0


def test_a_replaced_refresh_token_that_cannot_be_stored_is_not_forgotten(
    new: NewBench, rig: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new(records=7)
    values = credentials(rig, "refresh_token")
    replacing = Replacing(values["refresh_token"])
    with front(rig.url, replacing) as url:
        store(bench, values | {"instance_url": url})
        source = open_source(bench)

        def full(*arguments: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(FileSecrets, "put", full)
            with pytest.raises(StoreError, match="cannot be stored: the disk is full") as caught:
                source.count("incident", EVER)
        assert values["refresh_token"] not in everything_said(caught.value)
        assert "token-0" not in str(caught.value)
        assert source.count("incident", EVER) == 7
        assert stored(bench)["refresh_token"] == "token-1"


# ---- an instance that sleeps

LOGIN = {"kind": "redirect", "location": "https://acme.service-now.com/login_redirect.do?to="}
ASLEEP = {"kind": "redirect", "location": "https://developer.servicenow.com/dev.do#!/asleep"}


@pytest.mark.parametrize("fault", [None, LOGIN])
def test_an_instance_that_hibernates_loses_nothing_and_goes_on_when_it_wakes(
    new: NewBench, fault: dict[str, Any] | None
) -> None:
    bench = new(page_size=5, chunk_days=10, parallel=1)
    request = bench.request()

    def sleep() -> None:
        if fault is None:
            bench.control("hibernate")
        else:
            bench.hostile(fault | {"probability": 1.0})

    with pytest.raises(RetriableError) as caught:
        bench.run(request, cancelled=at_request(40, sleep))
    assert "answers with a web page: the instance hibernates" in str(caught.value)
    assert HERE in str(caught.value)
    before = bench.raw()
    states = {chunk.state for chunk in bench.chunks(request.token)}
    assert before and ChunkState.COMPLETED in states and states != {ChunkState.COMPLETED}
    bench.control("hibernate", on=False)
    bench.hostile()
    bench.advance(120)  # until a suspended service is probed
    bench.run(request)
    assert_truth(bench)
    after = bench.raw()
    assert len(after) == len({row["record_id"] for row in after}) == 60
    assert all(row in after for row in before)


def test_an_instance_that_hibernates_gives_no_token(new: NewBench) -> None:
    bench = new(records=7)
    source = open_source(bench)
    bench.control("hibernate")
    with pytest.raises(RetriableError, match="hibernates"):
        source.count("incident", EVER)
    bench.control("hibernate", on=False)
    assert source.count("incident", EVER) == 7


def test_a_redirect_to_the_page_of_those_that_sleep_is_no_change_of_address(
    new: NewBench,
) -> None:
    bench = new(records=7)
    bench.hostile(ASLEEP | {"probability": 1.0})
    with pytest.raises(RetriableError, match="hibernates"):
        open_source(bench).count("incident", EVER)


def test_a_redirect_to_another_host_is_named_and_not_followed(new: NewBench) -> None:
    bench = new(records=7)
    bench.hostile({"kind": "redirect", "location": "https://moved.invalid", "probability": 1.0})
    with pytest.raises(ConfigurationError, match=r"redirects to moved\.invalid.*instance_url"):
        open_source(bench).count("incident", EVER)
    bench.hostile()


# ---- errors inside of a 200, and pages that are too much


@pytest.mark.parametrize("error", [{"message": "Oops", "detail": "{sent}"}, "Oops: {sent}"])
def test_an_error_inside_of_a_200_is_an_error_whatever_came_before_it(
    new: NewBench, rig: Simulator, error: Any
) -> None:
    bench = new(records=7)

    def answer(asked: Asked, forward: Forward) -> Said | None:
        status, headers, body = forward(asked)
        said = json.dumps(error).replace("{sent}", asked.headers["Authorization"])
        return status, headers, body[:-1] + b',"error":' + said.encode() + b"}"

    with front(rig.url, answer) as url:
        source = open_source(bench, credentials(rig, "basic") | {"instance_url": url})
        with pytest.raises(RetriableError, match=r"an error inside of a 200: Oops") as caught:
            source.page("incident", EVER)
    assert f"{HERE} table=incident window=[2020-03-18" in str(caught.value)
    assert_unseen(rig, caught.value)


@pytest.mark.parametrize(
    ("oversize", "sound"), [("cancel", 40), ("cancel", 3), ("cancel", 1), ("truncate", 3)]
)
def test_pages_are_made_smaller_down_to_what_works(
    new: NewBench, oversize: str, sound: int
) -> None:
    """Sixty records of one second, which no smaller window tells apart."""
    bench = new(page_size=400)
    bench.change("mutate", count=60, at="2026-03-01T00:00:00Z")
    bench.hostile(sound_rows=sound, oversize=oversize)
    source = open_source(bench)
    ids: list[str] = []
    while page := source.page("incident", replace(EVER, after=ids[-1] if ids else None)):
        ids += [record.record_id for record in page.records]
        if len(ids) >= 4:
            break
    sizes = [int(entry["query"]["sysparm_limit"]) for entry in log(bench, "list")]
    assert sizes[0] == 400 and sizes[-1] <= sound and sizes[-1] <= 50
    assert ids == sorted(bench.truth())[: len(ids)]
    bench.hostile()
    bench.control("stats_reset")
    source.page("incident", EVER)
    [again] = log(bench, "list")
    assert int(again["query"]["sysparm_limit"]) == 50, "one heavy place made all pages tiny"


def test_a_window_of_heavy_records_is_read_whole(new: NewBench) -> None:
    bench = new(page_size=100)
    bench.change("mutate", count=20, at="2026-03-01T00:00:00Z")
    bench.hostile(sound_rows=12, oversize="cancel")
    bench.extract()
    assert_truth(bench)


def test_a_record_that_is_too_much_by_itself_names_the_window(
    new: NewBench, rig: Simulator
) -> None:
    bench = new(page_size=4, records=2, parallel=1)
    bench.change("mutate", count=2, at="2026-03-01T00:00:00Z")
    bench.hostile(sound_rows=0, oversize="cancel")
    with pytest.raises(TooMuch) as caught:
        open_source(bench).page("incident", replace(EVER, after="0"))
    text = str(caught.value)
    assert "Transaction cancelled: maximum execution time exceeded" in text
    assert f"{HERE} table=incident window=[2020-03-18" in text
    assert "even the one record that comes after 0 is too much" in text
    sizes = [entry["query"]["sysparm_limit"] for entry in log(bench, "list")]
    assert sizes == ["4", "1", "1", "1"]
    with pytest.raises(TooMuch) as caught:
        bench.extract(token="one")
    assert all("even the one record" in said for said in assert_placed(bench, caught.value))
    bench.hostile()
    bench.extract(token="one")
    assert_truth(bench)


def test_a_window_that_is_too_much_is_halved_and_its_pages_are_large_again(
    new: NewBench,
) -> None:
    """The query is too slow, whatever the page; counts are cancelled, too."""
    bench = new(page_size=100, parallel=1)
    bench.hostile(quota_rows=25)
    source = open_source(bench)
    with pytest.raises(TooMuch):
        source.page("incident", EVER)
    few = Span(Window(NOW - timedelta(days=5), NOW))
    assert source.page("incident", few).records
    sizes = [int(entry["query"]["sysparm_limit"]) for entry in log(bench, "list")]
    assert sizes == [100, 50, 12, 3, 1, 1, 1, 100]
    bench.control("stats_reset")
    bench.extract(token="one")
    assert len(bench.chunks("one")) > 3
    assert_truth(bench)
    given = [e for e in log(bench, "list") if e["rows"] and e["fault"] is None]
    assert {entry["query"]["sysparm_limit"] for entry in given} == {"100"}


# ---- what this user may not see


def visible(bench: Bench) -> set[str]:
    about = bench.control("truth_current", table=bench.called)["records"]
    return {record_id for record_id, record in about.items() if not record["restricted"]}


@pytest.mark.parametrize(
    ("restricted", "rows", "clamp"),
    [
        ({"restricted_ids": ["0", "8"]}, "omit", 1000),
        ({"restricted_ids": ["0", "8"]}, "empty", 7),
        ({"restricted_ids": ["0", "8"]}, "omit", 7),
        ({"restricted_ids": ["4", "c"]}, "omit", 7),
        ({"restricted_ids": ["8", "g"]}, "empty", 7),
        ({"restricted_share": 0.9}, "omit", 7),
        ({"restricted_window": ["2026-02-10T00:00:00Z", "2026-03-10T00:00:00Z"]}, "empty", 1000),
    ],
)
def test_pages_that_are_made_short_or_empty_end_no_stream(
    new: NewBench, restricted: dict[str, Any], rows: str, clamp: int
) -> None:
    """`clamp`: the instance gives fewer records in a page than it is asked for."""
    bench = new(records=90, page_size=10)
    bench.hostile(page_clamp=clamp, restricted_rows=rows, **restricted)
    shown = visible(bench)
    assert 0 < len(shown) < 80
    bench.extract(token="one")
    assert {row["record_id"] for row in bench.raw()} == shown
    chunks = bench.chunks("one")
    assert {chunk.state for chunk in chunks} == {ChunkState.COMPLETED}
    assert sum(chunk.rows for chunk in chunks) == len(shown)
    assert sum(chunk.source_count or 0 for chunk in chunks) == 90, "what is hidden is not counted"
    bench.hostile()
    bench.extract()
    assert_truth(bench)


def test_a_table_that_may_not_be_read_is_named(new: NewBench) -> None:
    bench = new()
    bench.control("table", table="incident", readable="denied")
    with pytest.raises(PermissionRefused) as caught:
        open_source(bench).page("incident", EVER)
    text = str(caught.value)
    assert "does not permit /api/now/table/incident: User Not Authorized" in text
    assert f"{HERE} table=incident window=[2020-03-18" in text and "itil" in text
    assert len([e for e in log(bench) if e["status"] == 403]) == 1
    assert open_source(bench).count("sys_user", EVER) > 0  # this table only


def test_a_table_that_lists_nothing_is_counted_and_not_taken_for_empty(new: NewBench) -> None:
    bench = new(page_size=25)
    bench.control("table", table="incident", readable="empty")
    bench.extract(token="one")
    assert bench.raw() == []
    chunks = bench.chunks("one")
    assert (sum(c.rows for c in chunks), sum(c.source_count or 0 for c in chunks)) == (0, 60)
    bench.control("table", table="incident", readable=True)
    bench.extract()
    assert_truth(bench)
    for readable in ("empty", "denied"):
        bench.control("table", table="incident", readable=readable)
        try:
            assert bench.extract(Mode.FULL).deleted == 0
        except PermissionRefused:
            assert readable == "denied"
    assert not [row for row in bench.raw() if row["is_deleted"]]


@pytest.mark.parametrize("mode", [Mode.BACKFILL, Mode.FULL])
@pytest.mark.parametrize("readable", ["denied", "empty"])
def test_a_permission_that_vanishes_in_the_middle_loses_nothing(
    new: NewBench, readable: str, mode: Mode
) -> None:
    bench = new(page_size=5, chunk_days=10, parallel=1)
    if mode is Mode.FULL:
        bench.extract()
        bench.change("delete", count=3)
        bench.settle()
    held = {row["record_id"] for row in bench.raw()}
    request = bench.request(mode, "one")

    def lose() -> None:
        bench.control("table", table="incident", readable=readable)

    lost = at_request(60, lose)
    if readable == "denied":
        with pytest.raises(PermissionRefused) as caught:
            bench.run(request, cancelled=lost)
        said = assert_placed(bench, caught.value)
        assert all("give the API user a role" in one for one in said)
    else:
        bench.run(request, cancelled=lost)
        chunks = bench.chunks("one")
        assert sum(c.rows for c in chunks) < sum(c.source_count or 0 for c in chunks)
    gone = {id for id, known in bench.truth().items() if known.deleted}
    closed = {row["record_id"] for row in bench.raw() if row["is_deleted"]}
    assert closed <= gone, "records that may not be read were closed"
    assert held <= {row["record_id"] for row in bench.raw()}
    bench.control("table", table="incident", readable=True)
    bench.run(request)
    if readable == "empty":  # its ledger says that rows are missing
        bench.extract(mode)
    assert_truth(bench)


# ---- queries


def blocks_of(conditions: str) -> list[list[str]]:
    return [
        [clause for clause in block.split("^") if not clause.startswith("ORDERBY")]
        for block in conditions.split("^NQ")
    ]


def test_every_block_of_every_query_has_both_bounds(new: NewBench) -> None:
    """An alternative without one would bring in the rest of the table."""
    bench = new(page_size=5, chunk_days=10)
    bench.extract()
    bench.settle()
    bench.extract(Mode.FULL)
    asked = log(bench, table="incident")
    asked = [entry for entry in asked if entry["query"].get("sysparm_no_count") is None]
    assert len(asked) > 20 and {entry["kind"] for entry in asked} == {"list", "count"}
    for entry in asked:
        for block in blocks_of(entry["conditions"]):
            assert not [clause for clause in block if clause.startswith("OR")]
            signs = [clause[len("sys_updated_on") :][:2] for clause in block if "updated" in clause]
            assert [sign.strip("=2") for sign in signs] == [">", "<"], entry["conditions"]
        if entry["kind"] == "list":
            assert "ORDERBYsys_id" in entry["conditions"]


def test_a_window_is_of_whole_seconds(new: NewBench) -> None:
    bench = new()
    half = Window(NOW - timedelta(days=1, microseconds=5), NOW)
    with pytest.raises(FatalError, match="whole seconds"):
        open_source(bench).count("incident", Span(half))


@pytest.mark.parametrize("ignore", ["all_but_id", "all"])
def test_a_window_that_is_not_obeyed_is_noticed(new: NewBench, ignore: str) -> None:
    bench = new(page_size=25)
    bench.hostile({"kind": "filter_ignored", "ignore": ignore, "probability": 1.0})
    window = Window(NOW - timedelta(days=20), NOW - timedelta(days=10))
    page = open_source(bench).page("incident", Span(window))
    assert all(record.updated_at in window for record in page.records if record.updated_at)
    assert page.rejected and "is outside of [2026-02-2" in page.rejected[0].reason
    with pytest.raises(AvesaError) as caught:
        bench.extract(token="one")
    assert isinstance(caught.value, RecordsRejected | DataError)
    assert_placed(bench, caught.value)
    bench.hostile()
    bench.extract(token="one")
    assert_truth(bench)


@pytest.mark.parametrize("no_rows", [False, True])
@pytest.mark.parametrize("table", ["incident", "sys_user"])
def test_a_change_field_that_does_not_exist_is_noticed(
    new: NewBench, table: str, no_rows: bool
) -> None:
    """ServiceNow drops such a condition, and all records come back; or, by a property, none."""
    bench = new(table, page_size=25)
    bench.control("property", name="glide.invalid_query.returns_no_rows", value=no_rows)
    redescribed(bench, table, change_field="sys_changed_on.value")
    with pytest.raises(FatalError) as caught:
        bench.extract(token="one")
    assert f"{table} cannot be asked by sys_changed_on" in str(caught.value)
    assert all("set change_field" in said for said in assert_placed(bench, caught.value))
    assert ChunkState.COMPLETED not in {chunk.state for chunk in bench.chunks("one")}
    assert bench.raw() == []


@pytest.mark.parametrize("no_rows", [False, True])
def test_a_table_without_a_change_time_is_copied_by_another_date(
    new: NewBench, no_rows: bool
) -> None:
    bench = new()
    bench.control("property", name="glide.invalid_query.returns_no_rows", value=no_rows)
    redescribed(bench, "incident", endpoint="syslog")
    with pytest.raises(FatalError) as caught:
        bench.extract(token="one")
    assert "syslog cannot be asked by sys_updated_on" in str(caught.value)
    assert "sys_created_on.value" in assert_placed(bench, caught.value)[0]
    redescribed(bench, "incident", change_field="sys_created_on.value")
    bench.extract()
    assert {row["record_id"] for row in bench.raw()} == set(
        bench.control("truth_current", table="syslog")["records"]
    )


def test_a_table_in_which_nothing_happened_is_not_suspected(new: NewBench) -> None:
    bench = new()
    bench.control("property", name="glide.invalid_query.returns_no_rows", value=True)
    source = open_source(bench)
    long_ago = Span(Window(NOW.replace(year=2020), NOW.replace(year=2021)))
    assert [source.count("incident", long_ago) for _ in range(3)] == [0, 0, 0]
    assert (len(log(bench, "count")), len(log(bench, "list"))) == (3, 1)  # it is looked at once
    moment = Span(Window(NOW.replace(year=2020), NOW.replace(year=2020) + timedelta(minutes=5)))
    bench.control("stats_reset")
    assert open_source(bench).count("incident", moment) == 0
    assert len(log(bench, "count")) == 1  # a live sync asks again and again


@pytest.mark.parametrize("endpoint", ["u_no_such_table", "time_card"])
def test_a_table_that_is_not_there_is_named(new: NewBench, endpoint: str) -> None:
    bench = new("time_card")
    bench.control("table", table="time_card", installed=False)
    redescribed(bench, "time_card", endpoint=endpoint)
    with pytest.raises(FatalError) as caught:
        bench.extract(token="one")
    assert f"has no such table: Invalid table {endpoint}" in str(caught.value)
    assert "(--table)" in str(caught.value) or "(--table)" in assert_placed(bench, caught.value)[0]
    assert {entry["status"] for entry in log(bench, table=endpoint)} == {400}


def test_a_sys_id_that_is_no_guid_is_read_and_none_gets_into_a_query(
    new: NewBench, rig: Simulator
) -> None:
    bench = new(page_size=5)
    at = (NOW - timedelta(days=2)).isoformat()
    odd = bench.control("poison", table="incident", kinds=["odd_sys_id"], at=at)["ids"]
    bench.extract()
    assert set(odd.values()) <= {row["record_id"] for row in bench.raw()}
    assert_truth(bench)
    evil = "0^NQactive=true"

    def answer(asked: Asked, forward: Forward) -> Said | None:
        status, headers, body = forward(asked)
        return status, headers, body.replace(min(bench.truth()).encode(), evil.encode())

    with front(rig.url, answer) as url:
        source = open_source(bench, rig.credentials | {"instance_url": url})
        page = source.page("incident", EVER)
    assert [item.reason for item in page.rejected] == [f"its sys_id {evil!r} is none"]
    assert evil not in {record.record_id for record in page.records}


# ---- limits


def test_an_hourly_rule_lowers_the_budget(new: NewBench) -> None:
    bench = new(records=7)
    key, limit = f"{SERVICE}/{TENANT}", 10_000_000
    budget = bench.installation.budget
    bench.control("rates", rules=[{"scope": "user", "per_hour": 36_000}])
    open_source(bench).count("incident", EVER)
    assert budget.use(key, limit).limit == 600
    assert budget.use(key, 50).limit == 50  # it raises none
    bench.control("rates", rules=[{"scope": "user", "per_hour": 30}])
    open_source(bench).count("incident", EVER)
    assert budget.use(key, limit).limit == 1
    bench.control("rates", rules=[])


def test_a_refusal_for_the_rate_is_waited_for(new: NewBench) -> None:
    bench = new(page_size=5)
    bench.hostile({"kind": "status", "status": 429, "retry_after": 1, "at": [3]})
    began = time.monotonic()
    bench.extract()
    assert time.monotonic() - began >= 1.0
    assert [entry["status"] for entry in log(bench)].count(429) == 1
    bench.hostile()
    assert_truth(bench)


# ---- deletions


def test_deletions_come_from_the_audit_where_it_may_be_read(new: NewBench) -> None:
    bench = new()
    bench.extract()
    gone = bench.change("delete", count=5)
    back = bench.change("undelete", ids=gone[:2])
    bench.settle()
    bench.extract(Mode.SYNC)
    closed = {row["record_id"] for row in bench.raw() if row["is_deleted"]}
    assert closed == set(gone) - set(back)
    assert not log(bench, "get")
    assert_truth(bench)


def test_the_deletion_of_a_subclass_is_one_of_the_table(new: NewBench) -> None:
    bench = new("cmdb_ci")
    kinds = {id: r["kind"] for id, r in
             bench.control("truth_current", table="cmdb_ci")["records"].items()}  # fmt: skip
    server = next(record_id for record_id, kind in kinds.items() if kind == "cmdb_ci_server")
    bench.extract()
    bench.change("delete", ids=[server])
    bench.control("delete", table="incident", count=1)
    bench.settle()
    bench.extract(Mode.SYNC)
    assert [row["record_id"] for row in bench.raw() if row["is_deleted"]] == [server]


@pytest.mark.parametrize("readable", ["denied", "empty"])
def test_a_sweep_finds_deletions_where_the_audit_may_not_be_read(
    new: NewBench, readable: str
) -> None:
    bench = new()
    bench.extract()
    gone = set(bench.change("delete", count=5))
    bench.settle()
    bench.control("table", table="sys_audit_delete", readable=readable)
    window = Window(NOW - timedelta(days=1), bench.clock().replace(microsecond=0))
    assert open_source(bench).deletions("incident", window) is None
    bench.extract(Mode.SYNC)
    assert not [row for row in bench.raw() if row["is_deleted"]]
    bench.extract(Mode.FULL)
    assert {row["record_id"] for row in bench.raw() if row["is_deleted"]} == gone
    assert_truth(bench)


def test_a_sweep_finds_what_the_audit_does_not_tell(new: NewBench) -> None:
    bench = new()
    bench.extract()
    gone = set(bench.change("delete", count=5))
    bench.control("purge_audit")
    bench.settle()
    bench.extract(Mode.SYNC)
    assert not [row for row in bench.raw() if row["is_deleted"]]
    bench.extract(Mode.FULL)
    assert {row["record_id"] for row in bench.raw() if row["is_deleted"]} == gone


# ---- contents


def test_times_are_in_utc_whatever_the_user_sees(new: NewBench) -> None:
    bench = new(chunk_days=5)
    bench.control(
        "user", time_zone="Asia/Kolkata", date_format="dd/MM/yyyy", time_format="hh:mm:ss a"
    )
    bench.extract()
    assert_truth(bench)
    truth = bench.truth()
    for row in bench.raw():
        cell = json.loads(row["payload"])["sys_updated_on"]
        assert row["updated_at"] == truth[row["record_id"]].updated_at
        assert cell["value"] == row["updated_at"].strftime("%Y-%m-%d %H:%M:%S")
        assert re.fullmatch(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d (AM|PM|am|pm)", cell["display_value"])


def test_references_are_stored_as_ids_and_names(new: NewBench) -> None:
    bench = new()
    bench.extract()
    names = {}
    for table in ("sys_user", "core_company"):
        for record_id, about in bench.control("truth", table=table)["records"].items():
            names[record_id] = about["versions"][-1]["payload"]["name"]
    by_id = newest(bench.raw())
    incidents = {id: json.loads(row["payload"]) for id, row in by_id.items()}
    references = [
        cell for fields in incidents.values() for cell in (fields["company"], fields["caller_id"])
    ]
    assert [cell for cell in references if cell["value"]]
    for cell in references:
        assert set(cell) == {"display_value", "value"}
        assert cell["display_value"] == names.get(cell["value"], "")
    assert bench.canonical() == set(incidents)
    tickets = bench.installation.reader().current(TENANT, "tickets")
    wanted = "id, company_id, company_name, contact_id, contact_name, status"
    for id, company, its_name, contact, theirs, status in tickets.project(wanted).fetchall():
        fields = incidents[id]
        shown = (company or "", its_name or "", contact or "", theirs or "", status)
        assert shown == (
            fields["company"]["value"],
            fields["company"]["display_value"],
            fields["caller_id"]["value"],
            fields["caller_id"]["display_value"],
            fields["state"]["display_value"],
        )


# ---- counts


@pytest.mark.parametrize("wrong", [+3, -3])
def test_a_count_that_disagrees_with_the_rows_is_never_complete(
    new: NewBench, rig: Simulator, wrong: int
) -> None:
    bench = new(page_size=25)

    def answer(asked: Asked, forward: Forward) -> Said | None:
        if "/api/now/stats/" not in asked.path:
            return None
        status, headers, body = forward(asked)
        count = int(json.loads(body)["result"]["stats"]["count"])
        said = {"result": {"stats": {"count": str(max(0, count + (wrong if count else 0)))}}}
        return status, headers, json.dumps(said).encode()

    held = stored(bench)
    with front(rig.url, answer) as url:
        store(bench, held | {"instance_url": url})
        with pytest.raises(DataError) as caught:
            bench.extract(token="one")
    assert re.search(r"counts \d+ records of incident but lists \d+", str(caught.value))
    assert_placed(bench, caught.value)
    chunks = [chunk for chunk in bench.chunks("one") if chunk.source_count or chunk.error]
    assert {chunk.state for chunk in chunks} == {ChunkState.FAILED}
    store(bench, held)
    bench.extract(token="one")
    assert_truth(bench)


NO_COUNTS = (
    b'{"result":{"stats":{}}}', b'{"result":[]}', b'{"result":{"stats":{"count":"-1"}}}',
    b'{"result":{"stats":{"count":null}}}', b'{"result":{"stats":{"count":2.5}}}', b"{}", b"[]",
)  # fmt: skip


def test_what_is_no_count_is_not_taken_for_one(new: NewBench, rig: Simulator) -> None:
    bench = new(records=7)
    values = credentials(rig, "basic")
    for body in NO_COUNTS:
        with front(rig.url, lambda asked, forward, body=body: (200, JSON, body)) as url:
            source: Source = open_source(bench, values | {"instance_url": url})
            with pytest.raises(DataError, match="is no count") as caught:
                source.count("incident", EVER)
        assert f"{HERE} table=incident window=[" in str(caught.value)
