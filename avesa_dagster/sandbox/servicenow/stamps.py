"""Date texts of ServiceNow: stored ones in UTC, displayed ones in a user's zone and format.

Instants are whole seconds since 1970 UTC. Stored: `YYYY-MM-DD HH:MM:SS`, without a zone [SND].
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from avesa_dagster.sandbox.timestamps import DAY, EPOCH

_FIRST_DAY = date(1970, 1, 1).toordinal()
_TIMES = [f"{h:02d}:{m:02d}:{s:02d}" for h in range(24) for m in range(60) for s in range(60)]
_STORED = re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?")
_TOKEN = re.compile(r"yyyy|MM|dd|HH|hh|mm|ss|a")
_DIRECTIVES = {"yyyy": "%Y", "MM": "%m", "dd": "%d", "HH": "%H", "hh": "%I", "mm": "%M"} | {
    "ss": "%S",
    "a": "%p",
}
_HALF_HOUR = 1800
"""Zones change their offset at no other moments."""
_EARLIEST = (date.min.toordinal() - _FIRST_DAY) * DAY
_LATEST = (date.max.toordinal() - _FIRST_DAY + 1) * DAY - 1


class _Days(dict[int, str]):
    """`YYYY-MM-DD` and a space, by the day counted from 1970-01-01."""

    def __missing__(self, day: int) -> str:
        text = self[day] = date.fromordinal(_FIRST_DAY + day).isoformat() + " "
        return text


_days = _Days()


def day_text(day: int) -> str:
    """`YYYY-MM-DD` of a day counted from 1970-01-01."""
    return _days[day][:-1]


def stored(epoch: int) -> str:
    """The text that is stored and compared: UTC."""
    return _days[epoch // DAY] + _TIMES[epoch % DAY]


def read(text: str) -> int | None:
    """The instant of a stored text, or of a day without time; None if it is neither."""
    if _STORED.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment.replace(tzinfo=UTC) - EPOCH) // timedelta(seconds=1)


def duration_display(seconds: int) -> str:
    """A duration as people read it: `2 Minutes 23 Seconds`."""
    parts = []
    for unit, length in (("Day", DAY), ("Hour", 3600), ("Minute", 60), ("Second", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {unit}{'' if count == 1 else 's'}")
    return " ".join(parts) or "0 Seconds"


class Zone:
    """A user's time zone and formats. Formats are made of yyyy MM dd HH hh mm ss a.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: there is no zone of that name (a KeyError).
    """

    def __init__(
        self, name: str, date_format: str = "yyyy-MM-dd", time_format: str = "HH:mm:ss"
    ) -> None:
        self.name = name
        self.key = f"{name} {date_format} {time_format}"
        self._zone = ZoneInfo(name)
        self._offsets: dict[int, int] = {}
        usual = (date_format, time_format) == ("yyyy-MM-dd", "HH:mm:ss")
        form = f"{date_format} {time_format}"
        self._form = None if usual else _TOKEN.sub(lambda token: _DIRECTIVES[token[0]], form)
        self._day_form = _TOKEN.sub(lambda token: _DIRECTIVES[token[0]], date_format)

    def _offset(self, epoch: int) -> int:
        part = epoch // _HALF_HOUR
        known = self._offsets.get(part)
        if known is None:
            try:
                local = (EPOCH + timedelta(seconds=epoch)).astimezone(self._zone).utcoffset()
            except OverflowError:  # the first and the last day there is
                local = None
            known = self._offsets[part] = 0 if local is None else int(local.total_seconds())
        return known

    def display(self, epoch: int) -> str:
        """An instant as this user sees it."""
        local = epoch + self._offset(epoch)
        if not _EARLIEST <= local <= _LATEST:
            local = epoch
        if self._form is None:
            return stored(local)
        return (EPOCH + timedelta(seconds=local)).strftime(self._form)

    def display_day(self, text: str) -> str:
        """A stored date `YYYY-MM-DD` as this user sees it; dates have no zone."""
        if self._form is None or not text:
            return text
        return date.fromisoformat(text).strftime(self._day_form)

    def instant(self, local_text: str) -> int | None:
        """The instant of a stored-looking text that is meant in this zone; None if it is none."""
        if _STORED.fullmatch(local_text) is None:
            return None
        try:
            moment = datetime.fromisoformat(local_text)
        except ValueError:
            return None
        return (moment.replace(tzinfo=self._zone) - EPOCH) // timedelta(seconds=1)
