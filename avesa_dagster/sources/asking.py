"""Asking about a table: what goes wrong says whose table and window it concerns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import AvesaError, DataError, Where
from avesa_dagster.sources.base import Clock, Span
from avesa_dagster.sources.http import Http
from avesa_dagster.sources.records import InvalidPage

_KEPT = "nothing of that page was taken; what was stored before stays"


class HttpSource:
    """What every source over one connection begins with."""

    def __init__(self, service: Service, http: Http, where: Where, clock: Clock) -> None:
        self._service = service
        self._http = http
        self._where = where
        self._clock = clock

    @property
    def requests(self) -> int:
        return self._http.requests

    @property
    def retries(self) -> int:
        return self._http.retries

    def close(self) -> None:
        self._http.close()


def place_of(where: Where, table: str | None, span: Span) -> dict[str, str | None]:
    """What an error about a span of a table is to name, for `AvesaError.at`."""
    return {
        "tenant": where.tenant,
        "service": where.service,
        "table": table,
        "window": str(span.window) if span.window else None,
    }


@contextmanager
def asking(
    where: Where, table: str | None, span: Span, endpoint: str, *, hint: str = ""
) -> Iterator[None]:
    """Gives the errors of the block their place.

    Args:
        table: None: whoever asks says which one it is for.
        endpoint: The service's own name of the table.
        hint: What else to do about answers that cannot be true.

    Raises:
        DataError: In place of an InvalidPage: it was asked for again and again.
    """
    here = place_of(where, table, span)
    try:
        yield
    except InvalidPage as error:
        raise DataError(
            f"{endpoint} answers with what cannot be true: {error.what}",
            hint=f"{_KEPT}. {hint}" if hint else _KEPT,
        ).at(**here) from None
    except AvesaError as error:
        error.at(**here)
        raise
