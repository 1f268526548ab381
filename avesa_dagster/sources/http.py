"""Requests that ask the budget first, retry what can be retried, and say what went wrong.

On `requests`, with stamina for the retries. An answer is parsed inside the retried block, so an
answer that is no answer (HTML with status 200, half a body) is asked for again, and never taken
for the end of a stream.
"""

from __future__ import annotations

import email.utils
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import requests.adapters
import stamina
import urllib3
from requests import exceptions as rx

from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    FatalError,
    PermissionRefused,
    RetriableError,
    Stopped,
    Suspended,
    TimedOut,
    TooMuch,
    Where,
)
from avesa_dagster.sources.base import Cancelled, Clock
from avesa_dagster.sources.budget import Budget

# A retry that helped is nobody's business; one that did not is in the error.
stamina.instrumentation.set_on_retry_hooks([])

T = TypeVar("T")
_RETRIED = {408, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_TIMED_OUT = {408, 504, 524}
_TIMEOUTS = (rx.Timeout, urllib3.exceptions.TimeoutError)
_LIMIT = re.compile(r"([0-9]{1,9})(?:\s*;\s*w=([0-9]{1,6}).*)?")
_LIMIT_HEADERS = ("X-RateLimit-Limit", "RateLimit-Limit")
_SAY_AGAIN = 60.0
_DEFAULT_PAUSE = 15.0
_PART = 256 * 1024
_RENEWALS = 2
"""New tokens for one request: another process may end the first one's session too."""
LONGEST_ANSWER = 180.0
"""Seconds in which a body has to arrive; the budget counts on requests that end."""


class NotFound(FatalError):
    """404: the path or the record is not there."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often and how long to try one request.

    Attributes:
        attempts: Tries in all.
        initial: Seconds before the second try; doubles with each, with jitter.
        longest: Seconds at most between two tries, unless the service asks for more.
    """

    attempts: int = 5
    initial: float = 0.5
    longest: float = 20.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """Which budget a connection's requests come from.

    Attributes:
        key: What the service counts by, for example `connectwise/acme`.
        limit: Requests per minute.
        live: True for the live sync.
        reserve: Share of the limit that backfills leave to it.
    """

    budget: Budget
    key: str
    limit: int
    live: bool = False
    reserve: float = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the whole body, and headers whose names know no case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        params: The query.
        body: Sent as it is; its type stands in `headers`.
        authenticated: False leaves the connection's headers out.
        accepted: Statuses that are an answer.
    """

    url: str
    method: str = "GET"
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    authenticated: bool = True
    accepted: frozenset[int] = frozenset({200})


class Dialect:
    """How a service is spoken to, and how it says that something is wrong.

    A service with fixed headers needs no class of its own.

    Args:
        headers: Sent with each authenticated request; never shown.
        secrets: Texts that are cut out of anything that an error quotes.
    """

    permission = "give the user the right to read all of this table"
    """What to do about a 403."""
    address = "api_base_url"
    """The credential that names the service's address."""

    def __init__(self, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
        self._headers = dict(headers)
        self._secrets = tuple(secrets)

    def headers(self, http: Http) -> Mapping[str, str]:
        """The headers of an authenticated request; may ask `http` for a token first."""
        return self._headers

    def located(self, http: Http, url: str) -> str:
        """Where an authenticated request goes: some services say with each token where they are."""
        return url

    def secrets(self) -> tuple[str, ...]:
        return self._secrets

    def renewed(self, http: Http, sent: Mapping[str, str]) -> bool:
        """After a 401: whether the same request is worth another try, with other headers.

        Args:
            sent: The headers that were refused.
        """
        return False

    def trouble(self, call: Call, answer: Answer) -> AvesaError | None:
        """The error in an answer that this service says in its own way; asked for each answer."""
        return None

    def message(self, body: bytes) -> str:
        """What the service says is wrong, out of an error's body."""
        return _message(body)

    def hidden(self, text: str) -> str:
        """The text, without any credential that the service may echo."""
        for secret in sorted(filter(None, self.secrets()), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def quoted(self, body: bytes) -> str:
        """A short piece of what the service said, without any credential."""
        return " ".join(self.hidden(self.message(body))[:2000].split())[:200] or "(nothing)"


class Http:
    """A connection of one thread to one host.

    Args:
        where: Tenant and service, for errors.
        limit_seconds: What an announced limit counts over, unless the header says so itself.
        limit_headers: Headers that announce one, besides those that are known everywhere.
    """

    def __init__(
        self,
        where: Where,
        allowance: Allowance,
        dialect: Dialect,
        *,
        timeout: float,
        clock: Clock,
        cancelled: Cancelled,
        retrying: Retrying = Retrying(),
        limit_seconds: int = 60,
        limit_headers: Sequence[str] = (),
    ) -> None:
        self.requests = 0
        self.retries = 0
        self._asking = False
        self._announced = (0, 0.0)
        self._limit_seconds = limit_seconds
        self._limit_headers = (*limit_headers, *_LIMIT_HEADERS)
        self.server_time: datetime | None = None
        self._where = where
        self._allowance = allowance
        self._dialect = dialect
        self._timeout = timeout
        self._clock = clock
        self._cancelled = cancelled
        self._retrying = retrying
        self._session = requests.Session()
        # A .netrc entry would replace the Authorization header that we set.
        self._session.trust_env = False
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        adapter = requests.adapters.HTTPAdapter(pool_connections=2, pool_maxsize=2)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def present(self) -> datetime:
        """Our clock, or the service's as of its last answer: whichever is behind."""
        ours = self._clock()
        return min(ours, self.server_time or ours)

    def get(
        self,
        url: str,
        parse: Callable[[bytes], T],
        *,
        params: Mapping[str, str | int] | None = None,
        authenticated: bool = True,
    ) -> T:
        """`ask` for a body."""
        call = Call(url, params=params or {}, authenticated=authenticated)
        return self.ask(call, lambda answer: parse(answer.body))

    def ask(self, call: Call, parse: Callable[[Answer], T]) -> T:
        """Asks until the answer parses, or the tries are used up.

        Args:
            parse: Makes the result of the answer; raises RetriableError if it is none.

        Raises:
            NotFound, CredentialsRefused, ConfigurationError, FatalError: At once.
            RetriableError: After the last try.
        """
        if self._asking:  # for a token, on behalf of a request that is tried again itself
            return parse(self._authorised(call))
        self._asking = True
        try:
            return self._again_and_again(call, parse)
        finally:
            self._asking = False

    def _again_and_again(self, call: Call, parse: Callable[[Answer], T]) -> T:
        for attempt in stamina.retry_context(
            on=self._backoff,
            attempts=self._retrying.attempts,
            timeout=None,
            wait_initial=self._retrying.initial,
            wait_max=self._retrying.longest,
            wait_jitter=self._retrying.initial,
        ):
            self.retries += attempt.num > 1
            with attempt:
                return parse(self._authorised(call))
        raise AssertionError("stamina ends by returning or raising")

    def close(self) -> None:
        self._session.close()

    @staticmethod
    def _backoff(error: Exception) -> bool:
        return isinstance(error, RetriableError) and not isinstance(error, TooMuch | Suspended)

    def _authorised(self, call: Call) -> Answer:
        """One try; others with new headers where the ones before were refused for their age."""
        if not call.authenticated:
            return self._once(call, {})
        for _ in range(_RENEWALS):
            headers = self._dialect.headers(self)
            try:
                return self._once(self._located(call), headers)
            except PermissionRefused:
                raise
            except CredentialsRefused:
                if not self._dialect.renewed(self, headers):
                    raise
            self.retries += 1
        headers = self._dialect.headers(self)
        return self._once(self._located(call), headers)

    def _located(self, call: Call) -> Call:
        url = self._dialect.located(self, call.url)
        return call if url == call.url else replace(call, url=url)

    def _once(self, call: Call, headers: Mapping[str, str]) -> Answer:
        if self._cancelled():
            raise Stopped("stopped before the next request", where=self._where)
        allowance, url = self._allowance, call.url
        with allowance.budget.request(
            allowance.key,
            allowance.limit,
            live=allowance.live,
            reserve=allowance.reserve,
            cancelled=self._cancelled,
        ):
            if self._cancelled():
                raise Stopped("stopped before the next request", where=self._where)
            self.requests += 1
            try:
                response = self._session.request(
                    call.method,
                    url,
                    params=dict(call.params),
                    headers={**headers, **call.headers},
                    data=call.body,
                    timeout=(min(10.0, self._timeout), self._timeout),
                    allow_redirects=False,
                    stream=True,
                    # Plain http reaches this machine only: through a proxy it would leave it.
                    proxies=requests.utils.get_environ_proxies(url)
                    if url.startswith("https:")
                    else None,
                )
                body = self._body(response)
            except (rx.MissingSchema, rx.InvalidSchema, rx.InvalidURL, rx.InvalidHeader):
                raise ConfigurationError(
                    f"{urlsplit(url).netloc!r} cannot be asked: the address is not valid",
                    where=self._where,
                ) from None
            except (rx.RequestException, urllib3.exceptions.HTTPError) as error:
                kind = TimedOut if isinstance(error, _TIMEOUTS) else RetriableError
                raise kind(
                    f"{_host(url)} did not answer: {_cause(error)}",
                    where=self._where,
                    hint="check that the address is right and that the host can be reached",
                ) from None
        answer = Answer(response.status_code, response.headers, body)
        self._note_time(answer)
        self._note_limit(answer)
        self._check(call, answer)
        return answer

    def _body(self, response: requests.Response) -> bytes:
        """The whole body, within LONGEST_ANSWER: an answer that drips holds its slot for ever."""
        deadline = time.monotonic() + LONGEST_ANSWER
        parts = []
        with response:
            # read1 returns what has come; a fixed number of bytes would be waited for.
            while part := response.raw.read1(_PART, decode_content=True):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimedOut(
                        f"the answer took longer than {LONGEST_ANSWER:.0f} s", where=self._where
                    )
        return b"".join(parts)

    def _note_time(self, answer: Answer) -> None:
        stamp = answer.headers.get("Date")
        try:
            told = email.utils.parsedate_to_datetime(stamp) if stamp else None
        except ValueError:
            told = None
        if told is not None:
            self.server_time = told if told.tzinfo else told.replace(tzinfo=UTC)

    def _note_limit(self, answer: Answer) -> None:
        """Obeys a limit that the service announces; the budget lets it lapse, so say it again."""
        for name in self._limit_headers:
            told = _LIMIT.fullmatch(answer.headers.get(name, "").strip())
            if told is None or int(told[1]) < 1:
                continue
            seconds = int(told[2] or 0) or self._limit_seconds
            a_minute = max(1, int(told[1]) * 60 // seconds)
            limit, said_at = self._announced
            if a_minute != limit or time.monotonic() > said_at + _SAY_AGAIN:
                self._allowance.budget.announce(self._allowance.key, a_minute)
                self._announced = (a_minute, time.monotonic())
            return

    def _check(self, call: Call, answer: Answer) -> None:
        trouble = self._dialect.trouble(call, answer)
        if trouble is not None:
            wait = trouble.retry_after if isinstance(trouble, RetriableError) else None
            if wait is not None and not isinstance(trouble, Suspended):
                self._allowance.budget.pause(self._allowance.key, wait)
            raise trouble.at(tenant=self._where.tenant, service=self._where.service)
        url, status = call.url, answer.status
        if status in call.accepted:
            return
        said = self.quote(answer.body)
        if status == 401:
            raise CredentialsRefused(
                f"{_host(url)} refused the credentials: {said}",
                where=self._where,
                hint="connect again with valid ones: avesa connect "
                f"{self._where.tenant} {self._where.service} --credentials FILE",
            )
        if status == 403:
            raise PermissionRefused(
                f"{_host(url)} does not permit {urlsplit(url).path}: {said}",
                where=self._where,
                hint=self._dialect.permission,
            )
        if status == 404:
            raise NotFound(f"{_host(url)} has no {urlsplit(url).path}", where=self._where)
        if status == 429:
            wait = _seconds(answer.headers.get("Retry-After"), self._clock())
            self._allowance.budget.pause(
                self._allowance.key, _DEFAULT_PAUSE if wait is None else wait
            )
            raise RetriableError(
                f"{_host(url)} wants fewer requests: {said}",
                where=self._where,
                retry_after=wait,
                hint="lower requests_per_minute if this comes often",
            )
        if 300 <= status < 400:
            target = urlsplit(answer.headers.get("Location", "")).netloc or "elsewhere"
            raise ConfigurationError(
                f"{_host(url)} redirects to {target}; redirects are not followed, so that "
                "credentials stay with the host that they are for",
                where=self._where,
                hint=f"set {self._dialect.address} to the address of the service itself",
            )
        if status in _RETRIED:
            wait = _seconds(answer.headers.get("Retry-After"), self._clock())
            if wait is not None:
                self._allowance.budget.pause(self._allowance.key, wait)
            kind = TimedOut if status in _TIMED_OUT else RetriableError
            raise kind(
                f"{_host(url)} answered {status}: {said}",
                where=self._where,
                retry_after=wait,
            )
        raise FatalError(f"{_host(url)} answered {status}: {said}", where=self._where)

    def quote(self, body: bytes) -> str:
        """See Dialect.quoted."""
        return self._dialect.quoted(body)


def _message(body: bytes) -> str:
    """The `message` of an error in JSON; else the body."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    message = said.get("message") if isinstance(said, dict) else None
    return message if isinstance(message, str) else body.decode("utf-8", "replace")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _cause(error: Exception) -> str:
    """The innermost reason in words; requests wraps it several times, with addresses."""
    seen: BaseException | None = error
    texts: list[str] = []
    while seen is not None and len(texts) < 8:
        if isinstance(seen, socket.gaierror):
            return "its name cannot be resolved"
        if isinstance(seen, ConnectionRefusedError):
            return "it refuses connections"
        if isinstance(seen, ConnectionResetError):
            return "it reset the connection"
        texts.append(type(seen).__name__)
        reason = getattr(seen, "reason", None)
        inner = next((a for a in seen.args if isinstance(a, BaseException)), None)
        seen = (
            reason
            if isinstance(reason, BaseException)
            else inner or seen.__cause__ or seen.__context__
        )
    return texts[-1]


def _seconds(header: str | None, now: datetime) -> float | None:
    """Retry-After in seconds: a number, or an HTTP date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
