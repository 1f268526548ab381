"""Bulk API 2.0: one job for a large window, its result in CSV, read part by part.

A result is kept for days, and each part of it has a locator that can be asked for again: who knows
the job and the locator goes on there, in whatever process.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from avesa_dagster.errors import (
    BulkGone,
    BulkUnusable,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    FatalError,
    PermissionRefused,
    RetriableError,
    Stopped,
    TooMuch,
)
from avesa_dagster.sources.base import Cancelled
from avesa_dagster.sources.http import Answer, Call, Http, NotFound
from avesa_dagster.sources.oauth import header
from avesa_dagster.sources.records import InvalidPage, parsed
from avesa_dagster.sources.salesforce.login import VERSION
from avesa_dagster.sources.salesforce.speech import Refused

T = TypeVar("T")
_log = logging.getLogger(__name__)
_JOBS = f"/services/data/v{VERSION}/jobs/query"
_JSON = {"Content-Type": "application/json"}
_CSV = {"Accept": "text/csv"}
_ENDED = "null"
"""The locator after the last part, as the service writes it."""
_TIMED_OUT = "QUERY_TIMEOUT"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a job is waited for, in seconds: between two looks, longer each time, and in all."""

    first: float = 1.0
    growth: float = 1.5
    longest: float = 20.0
    deadline: float = 3600.0


PATIENCE = Patience()
PART_RECORDS = 5_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a job's result one is.

    Attributes:
        locator: Of the next part; empty before the first, `null` after the last.
    """

    job: str
    locator: str = ""

    def __str__(self) -> str:
        return f"{self.job}/{self.locator}"

    @classmethod
    def parse(cls, text: str) -> Place:
        job, _, locator = text.partition("/")
        return cls(job, locator)

    @property
    def ended(self) -> bool:
        return self.locator == _ENDED


class Jobs:
    """The bulk jobs of one connection.

    Args:
        patience: None: PATIENCE.
        part_records: Records in a part of a result, all in memory at once; None: PART_RECORDS.
    """

    def __init__(
        self,
        http: Http,
        cancelled: Cancelled,
        *,
        patience: Patience | None = None,
        part_records: int | None = None,
    ) -> None:
        self._http = http
        self._cancelled = cancelled
        self._patience = patience or PATIENCE
        self._part_records = part_records or PART_RECORDS

    def begin(self, query: str) -> Place:
        """Starts a job.

        Raises:
            BulkUnusable: The service does not take it.
            Refused: A field is not there (INVALID_FIELD).
        """
        said = {
            "operation": "queryAll",
            "query": query,
            "contentType": "CSV",
            "columnDelimiter": "COMMA",
            "lineEnding": "LF",
        }
        call = Call(
            _JOBS,
            method="POST",
            headers=_JSON,
            body=json.dumps(said).encode(),
            accepted=frozenset({200, 201}),
        )
        try:
            return Place(self._http.ask(call, _job_id))
        except FatalError as error:
            if _is_of_all(error) or (isinstance(error, Refused) and error.code == "INVALID_FIELD"):
                raise
            raise BulkUnusable(f"it is not given in bulk: {error.what}") from None

    def wait(self, place: Place) -> None:
        """Returns when the job's result is there.

        Raises:
            BulkGone: There is no such job.
            BulkUnusable: It failed, was aborted, or does not end.
            TooMuch: Its query took too long.
            Stopped: The run was told to stop; the job goes on.
        """
        deadline = time.monotonic() + self._patience.deadline
        pause = self._patience.first
        while True:
            state, why = self._about(place, Call(f"{_JOBS}/{place.job}"), _state)
            if state == "JobComplete":
                return
            if state == "Failed" and _TIMED_OUT in why:
                raise TooMuch(f"the bulk job {place.job} took too long: {why[:200]}")
            if state in ("Failed", "Aborted"):
                raise BulkUnusable(f"the bulk job {place.job} ended as {state}: {why[:200]}")
            if time.monotonic() + pause > deadline:
                raise BulkUnusable(
                    f"the bulk job {place.job} did not end within "
                    f"{self._patience.deadline:.0f} s (it is {state})"
                )
            self._sleep(pause)
            pause = min(self._patience.longest, pause * self._patience.growth)

    def parts(self, place: Place, read: Callable[[Answer], T]) -> Iterator[tuple[T, Place]]:
        """The parts of the result from the place on, each with the place after it.

        Args:
            read: Makes something of a part, and raises InvalidPage if it is none.

        Raises:
            BulkGone: The job or the place is gone.
            BulkUnusable: The result cannot be read.
        """
        seen = {place.locator}
        while not place.ended:
            params: dict[str, str | int] = {"maxRecords": self._part_records}
            if place.locator:
                params["locator"] = place.locator
            call = Call(f"{_JOBS}/{place.job}/results", params=params, headers=_CSV)
            found, locator = self._about(place, call, lambda answer: (read(answer), _next(answer)))
            if locator in seen:
                raise BulkUnusable(f"the result of the bulk job {place.job} goes in a circle")
            seen.add(locator)
            place = Place(place.job, locator)
            yield found, place

    def remove(self, place: Place) -> None:
        """Aborts the job if it may be under way, and deletes it; whatever comes of that."""
        url = f"{_JOBS}/{place.job}"
        end = Call(url, method="PATCH", headers=_JSON, body=b'{"state":"Aborted"}')
        calls = [Call(url, method="DELETE", accepted=frozenset({200, 204, 404}))]
        if not place.locator:
            calls.insert(0, end)
        for call in calls:
            try:
                self._http.ask(call, lambda answer: None)
            except Refused:
                continue  # it had ended by itself
            except (FatalError, RetriableError, DataError) as error:
                _log.info("the bulk job %s stays for some days: %s", place.job, error)

    def _about(self, place: Place, call: Call, read: Callable[[Answer], T]) -> T:
        try:
            return self._http.ask(call, read)
        except InvalidPage as error:
            raise BulkUnusable(f"the bulk job {place.job}: {error.what}") from None
        except NotFound:
            raise BulkGone(f"the service has no bulk job {place.job} any more") from None
        except Refused as error:
            raise BulkGone(f"the bulk job {place.job} is not to be had: {error.what}") from None
        except FatalError as error:
            if _is_of_all(error):
                raise
            raise BulkUnusable(f"the bulk job {place.job}: {error.what}") from None

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._cancelled():
                raise Stopped("stopped while a bulk job was under way")
            time.sleep(min(left, 0.2))


def _is_of_all(error: FatalError) -> bool:
    """Whether pages would meet the same error."""
    if isinstance(error, PermissionRefused):
        return False
    return isinstance(error, CredentialsRefused | ConfigurationError)


def _document(answer: Answer) -> dict[str, object]:
    said = parsed(answer.body)
    if not isinstance(said, dict):
        raise InvalidPage("the answer is no bulk job")
    return said


def _job_id(answer: Answer) -> str:
    job = _document(answer).get("id")
    if not isinstance(job, str) or not job.isalnum():
        raise InvalidPage("the answer is no bulk job")
    return job


def _state(answer: Answer) -> tuple[str, str]:
    said = _document(answer)
    state = said.get("state")
    if not isinstance(state, str):
        raise InvalidPage("the answer is no state of a bulk job")
    return state, str(said.get("errorMessage") or "no reason given")


def _next(answer: Answer) -> str:
    locator = header(answer, "Sforce-Locator")
    if not locator:
        raise InvalidPage("the part of the result does not say what follows it")
    return locator
