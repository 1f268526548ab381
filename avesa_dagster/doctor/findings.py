"""Checks and what they find: each small, each by itself; one that crashes is a finding too."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath

from avesa_dagster.errors import AvesaError


class Level(StrEnum):
    WELL = "well"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"
    """Of a check: what it needs has a problem."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is so, or is wrong. Holds no secret.

    Attributes:
        what: One sentence, or a few words.
        where: The table, bucket, file, tenant, … that it is about; empty if `what` says it.
        todo: What to do about it; empty if nothing is to be done.
        blocking: Whatever needs this check cannot be looked at.
    """

    level: Level
    what: str
    where: str = ""
    todo: str = ""
    blocking: bool = False


Findings = Iterator[Finding]
_OURSELVES = "avesa doctor"


def well(what: str, where: str = "") -> Finding:
    return Finding(Level.WELL, what, where)


def warning(what: str, where: str, todo: str) -> Finding:
    return Finding(Level.WARNING, what, where, todo)


def problem(what: str, where: str, todo: str, *, blocking: bool = False) -> Finding:
    return Finding(Level.PROBLEM, what, where, todo, blocking)


def of_error(error: AvesaError, where: str = "", *, blocking: bool = False) -> Finding:
    """The problem that an error tells.

    Args:
        where: If the error does not say whose data it is about.
    """
    todo = error.hint or ""
    if _OURSELVES in todo:
        todo = "see what the checks of permissions, of the bucket and of the clock say"
    return problem(error.what, str(error.where) or where, todo, blocking=blocking)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at.

    Attributes:
        name: For scripts; the same in every version.
        title: For people.
        look: Yields what it finds; raises AvesaError for what ends it.
        needs: Names of checks without which this one would only tell the same again.
    """

    name: str
    title: str
    look: Callable[[], Iterable[Finding]]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Looked:
    """What a check found.

    Attributes:
        lacking: Titles of the checks that failed and are needed, be it by one that is needed; it
            was not looked at then.
    """

    check: Check
    findings: tuple[Finding, ...]
    seconds: float
    lacking: tuple[str, ...] = ()

    @property
    def level(self) -> Level:
        """The worst of its findings."""
        if self.lacking:
            return Level.SKIPPED
        found = {finding.level for finding in self.findings}
        for level in (Level.PROBLEM, Level.WARNING):
            if level in found:
                return level
        return Level.WELL

    @property
    def blocks(self) -> bool:
        return bool(self.lacking) or any(finding.blocking for finding in self.findings)


def look_through(
    checks: Sequence[Check],
    begin: Callable[[Check], None] = lambda check: None,
    before: Iterable[Looked] = (),
) -> Iterator[Looked]:
    """Looks at one after the other, and yields what was found of each.

    Args:
        begin: Told before a check is looked at.
        before: What was looked at before, and may be needed.
    """
    looked = {one.check.name: one for one in before}
    for check in checks:
        lacking = _lacking(check, looked)
        began = time.monotonic()
        if lacking:
            found = Looked(check, (), 0.0, lacking)
        else:
            begin(check)
            findings = tuple(_found(check))
            found = Looked(check, findings, time.monotonic() - began)
        looked[check.name] = found
        yield found


def _lacking(check: Check, looked: Mapping[str, Looked]) -> tuple[str, ...]:
    needed = [looked[name] for name in check.needs if name in looked and looked[name].blocks]
    roots = [title for one in needed for title in one.lacking or (one.check.title,)]
    return tuple(dict.fromkeys(roots))


def counts(looked: Iterable[Looked]) -> Mapping[Level, int]:
    """How many findings of each level there are; of skipped, how many checks."""
    number = dict.fromkeys(Level, 0)
    for one in looked:
        if one.level is Level.SKIPPED:
            number[Level.SKIPPED] += 1
        for finding in one.findings:
            number[finding.level] += 1
    return number


def _found(check: Check) -> Findings:
    try:
        yield from check.look()
    except AvesaError as error:
        yield of_error(error, blocking=True)
    except Exception as error:  # noqa: BLE001 - a check that has a bug must not hide the others
        yield _crashed(error)


def _crashed(error: Exception) -> Finding:
    # Its text stays out: nobody knows what it quotes.
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{PurePath(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return problem(
        f"the check itself failed: {type(error).__name__}",
        place,
        "this is a fault of AVESA, or of something that it did not expect: report it",
        blocking=True,
    )


def together(findings: Sequence[Finding], most: int = 10) -> Findings:
    """Of many findings that say the same, the first ones, and how many more there are."""
    by_level: dict[Level, list[Finding]] = {}
    for finding in findings:
        by_level.setdefault(finding.level, []).append(finding)
    for level, alike in by_level.items():
        yield from alike[:most]
        if len(alike) > most:
            more = replace(alike[most], what=f"and {len(alike) - most} more like this", where="")
            yield replace(more, level=level)
