"""Telling people what is wrong, once, and once more when it is over.

Each notifier is told by itself: one that fails is tried again at the next call, and the others
hear nothing twice. What a notifier was told is remembered in a row of Alarms beside the alarm's
own, with the key `{key}@{notifier}`, so a crash costs at most one message said twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from avesa_dagster.control.health import Alarm, Alarms
from avesa_dagster.errors import AvesaError
from avesa_dagster.watch.findings import Finding, title
from avesa_dagster.watch.notify import Message, Notifier, Severity

_log = logging.getLogger(__name__)

_SINGLE = 5
"""So many are messages of their own; more are put together."""
_TOGETHER = 50
"""Lines in one message at most; Slack takes 40,000 characters."""
_TALKING = 10.0
"""Seconds after which a notifier's next message waits for the next call."""
_SEPARATOR = "@"
_SEVERITIES = (Severity.HEALED, Severity.WARNING, Severity.ERROR)


@dataclass(frozen=True, slots=True)
class _News:
    """One thing that one notifier has to be told. `finding` is None if it is over."""

    alarm: Alarm
    finding: Finding | None

    @property
    def severity(self) -> Severity:
        return self.finding.severity if self.finding else Severity.HEALED

    def message(self) -> Message:
        _, tenant, service, *_ = *self.alarm.key.split("/"), "", ""
        subject, text = title(self.alarm.key), self.alarm.text
        if self.finding is None:
            subject, text = f"over: {subject}", f"no longer found: {text}"
        return Message(subject, text, self.severity, tenant, service, self.alarm.key)


def standing(alarms: Alarms) -> list[Alarm]:
    """What is wrong as of the last `settle`, oldest first; `said_at`: when the first was told."""
    return [alarm for alarm in alarms.all() if _SEPARATOR not in alarm.key]


def settle(
    found: Iterable[Finding], alarms: Alarms, notifiers: Sequence[Notifier], now: datetime
) -> dict[str, AvesaError]:
    """Tells each notifier what is new, and what is over, and remembers it.

    Call it from one place at a time, with everything that is wrong in the whole installation.
    A notifier that fails, or has taken ten seconds, is left; what is not said by then waits for
    the next call. A notifier that was configured later is told what is wrong by then; one that is
    gone is forgotten.

    Returns:
        The error of each notifier that failed; it is in the log too.

    Raises:
        StoreError: Alarms cannot be read or written. What was said meanwhile is said again.
    """
    wrong = {finding.key: finding for finding in found}
    rows = {alarm.key: alarm for alarm in alarms.all()}
    new = {
        finding.key: Alarm(finding.key, finding.tenant, finding.text, now)
        for finding in wrong.values()
        if finding.key not in rows
    }
    rows |= new
    alarms.put(*new.values())
    failures = {}
    for notifier in notifiers:
        failure = _tell(notifier, wrong, rows, alarms, now)
        if failure is not None:
            _log.warning("the notifier %s failed: %s", notifier.name, failure)
            failures[notifier.name] = failure
    _forget_what_is_over(wrong, rows, alarms, {notifier.name for notifier in notifiers})
    return failures


def _tell(
    notifier: Notifier,
    wrong: dict[str, Finding],
    rows: dict[str, Alarm],
    alarms: Alarms,
    now: datetime,
) -> AvesaError | None:
    """Sends until all is said, a message fails, or the time is up."""
    began = time.monotonic()
    for batch in _batches(list(_news(notifier.name, wrong, rows))):
        if time.monotonic() - began > _TALKING:
            return None
        try:
            notifier.send(_message(batch))
        except AvesaError as error:
            return error
        _remember(batch, notifier.name, rows, alarms, now)
    return None


def _news(name: str, wrong: dict[str, Finding], rows: dict[str, Alarm]) -> Iterator[_News]:
    """What the notifier was not told yet, oldest first."""
    for key, alarm in sorted(rows.items(), key=lambda item: (item[1].since, item[0])):
        if _SEPARATOR in key:
            continue
        finding, told = wrong.get(key), _told(key, name) in rows
        if (finding is not None) != told:
            yield _News(alarm, finding)


def _batches(news: list[_News]) -> list[list[_News]]:
    if len(news) <= _SINGLE:
        return [[one] for one in news]
    return [news[at : at + _TOGETHER] for at in range(0, len(news), _TOGETHER)]


def _message(batch: list[_News]) -> Message:
    if len(batch) == 1:
        return batch[0].message()
    over = sum(news.finding is None for news in batch)
    counts = [f"{len(batch) - over} wrong"] if len(batch) > over else []
    counts += [f"{over} over"] if over else []
    lines = ((news.severity, news.message()) for news in batch)
    return Message(
        subject=f"several: {', '.join(counts)}",
        text="\n".join(f"{severity.upper()}: {m.subject}: {m.text}" for severity, m in lines),
        severity=max((news.severity for news in batch), key=_SEVERITIES.index),
        tenant=None,
        service=None,
        key="several",
    )


def _remember(
    batch: Sequence[_News], name: str, rows: dict[str, Alarm], alarms: Alarms, now: datetime
) -> None:
    over = [_told(news.alarm.key, name) for news in batch if news.finding is None]
    said: dict[str, Alarm] = {}
    for news in batch:
        if news.finding is None:
            continue
        if rows[news.alarm.key].said_at is None:
            said[news.alarm.key] = replace(news.alarm, said_at=now)
        told = _told(news.alarm.key, name)
        said[told] = replace(news.alarm, key=told, said_at=now)
    alarms.remove(*over)
    for told in over:
        del rows[told]
    alarms.put(*said.values())
    rows |= said


def _forget_what_is_over(
    wrong: dict[str, Finding], rows: dict[str, Alarm], alarms: Alarms, names: set[str]
) -> None:
    """Removes alarms of which nobody is left to be told that they are over."""
    waiting, gone = set(), list[str]()
    for row in list(rows):
        key, separator, name = row.partition(_SEPARATOR)
        if not separator or key in wrong:
            continue
        if name in names:
            waiting.add(key)
        else:
            gone.append(row)
    for key in rows:
        if _SEPARATOR not in key and key not in wrong and key not in waiting:
            gone.append(key)
    alarms.remove(*gone)


def _told(key: str, name: str) -> str:
    return f"{key}{_SEPARATOR}{name}"
