"""GET requests that ask the budget first, retry what can be retried, and say what went wrong.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import requests.adapters
import stamina
import urllib3
from requests import exceptions as rx

from avesa_dagster.errors import (
    ConfigurationError,
    CredentialsRefused,
    FatalError,
    PermissionRefused,
    RetriableError,
    Stopped,
    TimedOut,
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


class Http:
    """A connection of one thread to one host.

    Args:
        where: Tenant and service, for errors.
        headers: Sent with each request; never shown.
        secrets: Texts that are cut out of anything that an error quotes.
        limit_seconds: What an announced limit counts over, unless the header says so itself.
    """

    def __init__(
        self,
        where: Where,
        allowance: Allowance,
        *,
        headers: Mapping[str, str],
        secrets: tuple[str, ...],
        timeout: float,
        clock: Clock,
        cancelled: Cancelled,
        retrying: Retrying = Retrying(),
        limit_seconds: int = 60,
    ) -> None:
        self.requests = 0
        self.retries = 0
        self._announced = (0, 0.0)
        self._limit_seconds = limit_seconds
        self.server_time: datetime | None = None
        self._where = where
        self._allowance = allowance
        self._headers = dict(headers)
        self._secrets = tuple(sorted((s for s in secrets if s), key=len, reverse=True))
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

    def get(
        self,
        url: str,
        parse: Callable[[bytes], T],
        *,
        params: Mapping[str, str | int] | None = None,
        authenticated: bool = True,
    ) -> T:
        """Asks until the answer parses, or the tries are used up.

        Args:
            parse: Makes the result of the body; raises RetriableError if the body is no answer.
            params: The query.
            authenticated: False leaves the connection's headers out.

        Raises:
            NotFound, CredentialsRefused, ConfigurationError, FatalError: At once.
            RetriableError: After the last try.
        """
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
                return parse(self._once(url, params or {}, authenticated))
        raise AssertionError("stamina ends by returning or raising")

    def close(self) -> None:
        self._session.close()

    @staticmethod
    def _backoff(error: Exception) -> bool:
        return isinstance(error, RetriableError)

    def _once(self, url: str, params: Mapping[str, str | int], authenticated: bool) -> bytes:
        if self._cancelled():
            raise Stopped("stopped before the next request", where=self._where)
        allowance = self._allowance
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
                answer = self._session.get(
                    url,
                    params=dict(params),
                    headers=self._headers if authenticated else None,
                    timeout=(min(10.0, self._timeout), self._timeout),
                    allow_redirects=False,
                    stream=True,
                    # Plain http reaches this machine only: through a proxy it would leave it.
                    proxies=requests.utils.get_environ_proxies(url)
                    if url.startswith("https:")
                    else None,
                )
                body = self._body(answer)
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
        self._note_time(answer)
        self._note_limit(answer)
        self._check(url, answer, body)
        return body

    def _body(self, answer: requests.Response) -> bytes:
        """The whole body, within LONGEST_ANSWER: an answer that drips holds its slot for ever."""
        deadline = time.monotonic() + LONGEST_ANSWER
        parts = []
        with answer:
            # read1 returns what has come; a fixed number of bytes would be waited for.
            while part := answer.raw.read1(_PART, decode_content=True):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimedOut(
                        f"the answer took longer than {LONGEST_ANSWER:.0f} s", where=self._where
                    )
        return b"".join(parts)

    def _note_time(self, answer: requests.Response) -> None:
        stamp = answer.headers.get("Date")
        try:
            told = email.utils.parsedate_to_datetime(stamp) if stamp else None
        except ValueError:
            told = None
        if told is not None:
            self.server_time = told if told.tzinfo else told.replace(tzinfo=UTC)

    def _note_limit(self, answer: requests.Response) -> None:
        """Obeys a limit that the service announces; the budget lets it lapse, so say it again."""
        for name in _LIMIT_HEADERS:
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

    def _check(self, url: str, answer: requests.Response, body: bytes) -> None:
        status = answer.status_code
        if status == 200:
            return
        said = self._quote(body)
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
                hint="give the API member's role Inquire level 'All' on this table",
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
                hint="set api_base_url to the address of the service itself",
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

    def _quote(self, body: bytes) -> str:
        """A short piece of what the service said, without any credential that it may echo."""
        text = _message(body)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text[:2000].split())
        return text[:200] if text else "(nothing)"


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
