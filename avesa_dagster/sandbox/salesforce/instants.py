"""Dates and instants as Salesforce writes them, and as SOQL reads them.

JSON has `2013-05-20T20:49:32.000+0000`, Bulk CSV `2013-05-20T20:49:32.000Z`, a date `2013-05-20`.
Inside the simulator an instant is whole seconds since 1970 UTC, as the service keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from avesa_dagster.sandbox.timestamps import DAY, EPOCH

_MINUTES = [f"T{n // 60:02d}:{n % 60:02d}:" for n in range(1440)]
_REST = [f"{n:02d}.000+0000" for n in range(60)]
_BULK = [f"{n:02d}.000Z" for n in range(60)]
_DATETIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)", re.IGNORECASE
)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")


class _Days(dict[int, str]):
    """Days since 1970 to `YYYY-MM-DD`, made when first asked for."""

    def __missing__(self, day: int) -> str:
        text = (EPOCH + timedelta(days=day)).strftime("%Y-%m-%d").rjust(10, "0")
        self[day] = text
        return text


_days = _Days()


def rest_text(epoch: int) -> str:
    """An instant as JSON answers have it."""
    return f"{_days[epoch // DAY]}{_MINUTES[epoch % DAY // 60]}{_REST[epoch % 60]}"


def rest_texts(epochs: Iterable[int | None], *, bulk: bool = False) -> list[str | None]:
    """Many instants at once, as JSON has them or as Bulk CSV has them."""
    days, minutes, ends = _days, _MINUTES, _BULK if bulk else _REST
    return [
        None if at is None else days[at // DAY] + minutes[at % DAY // 60] + ends[at % 60]
        for at in epochs
    ]


def date_text(epoch: int) -> str:
    """The UTC day of an instant."""
    return _days[epoch // DAY]


def bulk_text(rest: str) -> str:
    """An instant of a JSON answer as Bulk CSV has it."""
    return rest.replace("+0000", "Z")


def read_datetime(text: str) -> float | None:
    """Seconds since 1970 of a whole datetime with its zone; None if the text is not one."""
    found = _DATETIME.fullmatch(text.strip())
    if found is None:
        return None
    *parts, fraction, zone = found.groups()
    offset = timedelta(0)
    if zone.upper() != "Z":
        digits = zone.replace(":", "")
        offset = timedelta(hours=int(digits[1:3]), minutes=int(digits[3:5]))
        offset = -offset if zone[0] == "-" else offset
    try:
        year, month, day, hour, minute, second = map(int, parts)
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - offset
    except (ValueError, OverflowError):
        return None
    return (moment - EPOCH).total_seconds() + float(f"0.{fraction or 0}")


def read_date(text: str) -> date | None:
    """A `YYYY-MM-DD`, or None."""
    found = _DATE.fullmatch(text)
    try:
        return None if found is None else date(*map(int, found.groups()))
    except ValueError:
        return None
