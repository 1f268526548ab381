"""Notes, a service that AVESA does not know: what another package brings to connect it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import Where
from avesa_dagster.sources.base import Clock, Deletion, Page, Source, Span, Window
from avesa_dagster.sources.credentials import Address, ServiceCredentials
from avesa_dagster.sources.http import Allowance, Dialect, Http, NotFound
from avesa_dagster.sources.records import InvalidPage, RecordDecoder, ascending, parsed, within
from avesa_dagster.sources.rotation import Rotating
from avesa_dagster.sources.vault import Vault

MAPPINGS = Path(__file__).parent / "mappings"
T = TypeVar("T")


class Credentials(ServiceCredentials):
    url: Address
    token: SecretStr


FIELDS = tuple(Credentials.model_fields)


def check(values: Mapping[str, object], where: Where) -> None:
    Credentials.parse(values, where)


def connect(
    service: Service, values: Mapping[str, object], where: Where, allowance: Allowance,
    *, clock: Clock, vault: Vault, **how: Any,
) -> Callable[[], Source]:  # fmt: skip
    def speak(given: Mapping[str, object]) -> Dialect:
        token = Credentials.parse(given, where).token.get_secret_value()
        return Dialect({"Authorization": f"Bearer {token}"}, [token])

    url, speech = Credentials.parse(values, where).url, Rotating(values, vault, speak, ("url",))
    how |= {"timeout": service.request_timeout_seconds, "clock": clock}
    return lambda: Notes(service, url, Http(where, allowance, speech, **how), clock)


class Notes:
    """A `Source`. Ids are integers and ascend."""

    lists_deletions, ids_ascend = False, True

    def __init__(self, service: Service, url: str, http: Http, clock: Clock) -> None:
        self._service, self._url, self._http, self._clock = service, url, http, clock
        self._decoders = {name: RecordDecoder(table) for name, table in service.tables.items()}
        self.close = http.close

    requests = property(lambda self: self._http.requests)
    retries = property(lambda self: self._http.retries)

    def now(self) -> datetime:
        if self._http.server_time is None:
            self.newest_id(next(iter(self._decoders)))
        return self._http.present()

    def count(self, table: str, span: Span) -> int:
        return self._get(table, "/count", span, _count)

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        def parse(body: bytes) -> Page:
            records, rejected = self._decoders[table].decode(body)
            ascending([record.record_id for record in records], span, key=int)
            kept = within(span.window, records, rejected, undated=False)
            last = records[-1].record_id if records else None
            return Page(kept, rejected, last, self._clock())

        return self._get(table, "", span, parse, limit=self._service.page_size)

    def newest_id(self, table: str) -> str | None:
        decoder = self._decoders[table]
        newest, _ = self._get(table, "", Span(), decoder.decode, limit=1, newest=1)
        return newest[0].record_id if newest else None

    def exists(self, table: str, record_id: str) -> bool:
        try:
            self._get(table, f"/{int(record_id)}", Span(), parsed)
        except NotFound:
            return False
        return True

    def deletions(self, table: str, window: Window) -> list[Deletion] | None:
        return None

    def _get(
        self, table: str, below: str, span: Span, parse: Callable[[bytes], T], **more: int
    ) -> T:
        bounds = {"after": span.after, "upto": span.upto, "only": span.only}
        asked: dict[str, str | int] = more | {n: int(b) for n, b in bounds.items() if b is not None}
        if span.window is not None:
            asked["since"] = int(span.window.start.timestamp())
            asked["until"] = int(span.window.end.timestamp())
        path = f"{self._url}/{self._service.tables[table].endpoint}{below}"
        return self._http.get(path, parse, params=asked)


def _count(body: bytes) -> int:
    said = parsed(body)
    if not isinstance(said, dict) or not isinstance(said.get("count"), int):
        raise InvalidPage("the answer is no count")
    return int(said["count"])
