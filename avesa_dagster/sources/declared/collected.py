"""Listings that cannot be read from any id on: a window is read whole, kept, and given out sorted.

A window is proven here, before any of it is given out. Where the service counts it, as many records
have to be listed as were counted just before; while a window of the past is read, records only
leave it, so none is missing then. Where it does not, the window is read until two readings in a row
hold the same ids: that finds what was left out by chance, never what is left out each time. What
cannot be proven as a whole is read in halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from avesa_dagster.catalog.http import Keyset, Offset, Pages
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    FatalError,
)
from avesa_dagster.sources.base import Clock, Page, Record, Span, Window
from avesa_dagster.sources.declared.plan import Plan, covers
from avesa_dagster.sources.declared.spool import Part, Spool
from avesa_dagster.sources.declared.walk import Ask, pages

_TRIES = 6
"""Readings of what cannot be halved."""
_FEW = 3
"""Readings of what can."""
_SECOND = timedelta(seconds=1)


class _TooLong(Exception):
    """There are more records than the service lists at once."""


class _Broken(Exception):
    """A reading ended in the middle; another one may go well."""

    def __init__(self, error: AvesaError) -> None:
        self.error = error


class _Held:
    """What was read of one table's window.

    Attributes:
        first: Number of a reading of it all, if it is not proven and was read for its count.
        proven: The part of it that is.
        payloads: Whether that has the records whole.
        begun: Whether somebody was given its beginning.
        told: How many records were said to be in the proven part before it was read.
        total: How many there are.
    """

    def __init__(self, plan: Plan, window: Window | None) -> None:
        self.plan = plan
        self.window = window
        self.spool = Spool()
        self.first: int | None = None
        self.proven: Window | None = None
        self.is_proven = False
        self.payloads = False
        self.begun = False
        self.told: int | None = None
        self.total = 0


class Collected:
    """Counts and pages of such tables, over one connection. Holds one window at a time.

    Args:
        ask: Sends a request.
    """

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._held: _Held | None = None
        self._counted: tuple[Plan, Window | None, int] | None = None

    def count(self, plan: Plan, span: Span) -> int:
        """How many records a span holds: by the service's count, or by what is listed."""
        if span.after is not None or span.upto is not None:
            held = self._proven(plan, span.window, payloads=False, fresh=False)
            self._check_places(held, span)
            return self._size(held, span)
        if span.alive and plan.deleted_field is not None:
            return self._size(self._proven(plan, span.window, payloads=False, fresh=True), span)
        if plan.counted or (span.window is None and plan.listing.count is not None):
            number = self._ask(plan, span, plan.count_call(span), plan.counted_in)
        else:
            number = self._read_for_count(plan, span.window)
        self._counted = (plan, span.window, number)
        return number

    def page(self, plan: Plan, span: Span, *, ids_only: bool) -> Page:
        """The records of a proven window after `span.after`, in the order of their ids."""
        fresh = span.after is None and span.upto is None
        held = self._proven(plan, span.window, payloads=not ids_only, fresh=fresh)
        held.begun = held.begun or fresh
        self._check_places(held, span)
        part = Part(held.proven, span.after, span.upto, span.alive)
        limit = plan.page_size
        if held.told is not None and held.told < held.total and span.upto is None:
            # Who counted that many stops there, though more showed up since: not on a page's end.
            given = held.spool.count(replace(part, after=None, upto=span.after or ""))
            limit += given + limit == held.told
        records, received = held.spool.page(part, limit)
        last = records[-1].record_id if records else None
        more = last is not None and held.spool.holds_any(replace(part, after=last))
        rejected = held.spool.unusable(after=span.after, upto=last if more else span.upto)
        return Page(records, rejected, last, received or self._clock())

    def records(self, plan: Plan, window: Window) -> Iterator[Record]:
        """All records of a window, proven, read now."""
        held = self._proven(plan, window, payloads=False, fresh=True)
        if rejected := held.spool.unusable():
            raise DataError(f"an element of {plan.known.endpoint}: {rejected[0].reason}")
        return held.spool.records(Part(held.proven))

    def close(self) -> None:
        if self._held is not None:
            self._held.spool.close()
            self._held = None

    def _check_places(self, held: _Held, span: Span) -> None:
        """Who goes on in the middle would not be given what has no place."""
        if span.after is not None and not held.begun and (bad := held.spool.displaced()):
            raise DataError(
                f"{len(bad)} record(s) of {held.plan.known.endpoint} have no usable id, so nobody "
                f"can tell whether they come after {span.after}; the first: {bad[0].reason}",
                hint="what was stored before stays; correct them at the service",
            )

    def _size(self, held: _Held, span: Span) -> int:
        part = Part(held.proven, span.after, span.upto, span.alive)
        unusable = held.spool.unusable(after=span.after, upto=span.upto)
        return held.spool.count(part) + len(unusable)

    def _read_for_count(self, plan: Plan, window: Window | None) -> int:
        """Reads a window once; or counts it in one around it, which was read just before."""
        held = self._held
        before = held is not None and held.plan is plan and held.first is not None
        if held is not None and before and held.window != window and covers(held.window, window):
            return held.spool.count(Part(window))
        for number in range(_FEW):
            held = self._anew(plan, window)
            reading = held.spool.begin()
            try:
                self._read(held, window, None, ids_only=True)
            except _TooLong:
                return self._size(self._proven(plan, window, payloads=False, fresh=True), Span())
            except _Broken as broken:
                if number + 1 == _FEW:
                    raise broken.error from None
            else:
                held.first = reading
                return held.spool.count(Part(window)) + len(held.spool.unusable())
        raise AssertionError("the last reading returns or raises")

    def _anew(self, plan: Plan, window: Window | None) -> _Held:
        self.close()
        self._held = _Held(plan, window)
        return self._held

    def _proven(self, plan: Plan, window: Window | None, *, payloads: bool, fresh: bool) -> _Held:
        """The window, read and proven.

        Args:
            fresh: Whoever asks begins: what was given to somebody else is read again.
        """
        held = self._held
        usable = (
            held is not None
            and held.plan is plan
            and held.is_proven
            and held.proven == window
            and (held.payloads or not payloads)
            and not (fresh and held.begun)
        )
        counted, self._counted = self._counted, None
        if held is not None and usable and (counted is None or counted[:2] != (plan, window)):
            return held
        base = held is not None and held.plan is plan and held.first is not None
        if held is None or not base or held.is_proven or not covers(held.window, window):
            held = self._anew(plan, window)
        told = counted[2] if counted is not None and counted[:2] == (plan, window) else None
        self._prove(held, window, told, payloads)
        held.proven, held.is_proven, held.payloads, held.told = window, True, payloads, told
        held.begun = False
        held.total = self._size(held, Span())
        return held

    def _prove(self, held: _Held, window: Window | None, told: int | None, payloads: bool) -> None:
        """Reads a window until it is proven, or its halves are."""
        spool, broken = held.spool, None
        # A reading before can be compared with as long as nothing was read since.
        before = held.first if held.first == spool.reading else None
        tries = _FEW if _halves(held, window) else _TRIES
        for number in range(tries):
            try:
                if held.plan.counted:
                    counted = told if number == 0 else None
                    proven = self._as_counted(
                        held, window, counted, payloads, last=number + 1 == tries
                    )
                else:
                    proven = self._as_before(held, window, before, payloads)
                    before = spool.reading
            except _TooLong:
                broken = None
                break
            except _Broken as stopped:
                before, broken = None, stopped.error
                continue
            if proven:
                return
            broken = None
        halves = _halves(held, window)
        if broken is not None:
            raise broken
        if not halves:
            raise DataError(
                f"the service lists other records of {held.plan.known.endpoint} than it counts, or "
                "others each time, again and again",
                hint="nothing of the window was taken; run it again, and if it stays so, look "
                f"whether this user may read all of them, and at {held.plan.place}",
            )
        spool.forget(spool.reading)
        for half in halves:
            self._prove(held, half, None, payloads)

    def _as_counted(
        self, held: _Held, window: Window | None, told: int | None, payloads: bool, *, last: bool
    ) -> bool:
        """Whether as many records are listed as the service counted before.

        Args:
            last: Records that cannot be taken may be a passing fault unless this is set.
        """
        plan, spool = held.plan, held.spool
        span = Span(window)
        if told is None:
            told = self._ask(plan, span, plan.count_call(span), plan.counted_in)
        if plan.listing.most is not None and told > plan.listing.most:
            raise self._too_long(held, window)
        spool.forget(spool.reading)
        reading = spool.begin()
        self._read(held, window, told, ids_only=not payloads)
        unusable = len(spool.unusable(reading))
        if spool.count(Part(window, reading=reading)) + unusable != told or (unusable and not last):
            return False
        spool.settle(window, reading)
        return True

    def _as_before(
        self, held: _Held, window: Window | None, before: int | None, payloads: bool
    ) -> bool:
        """Whether the same ids are listed as in the reading before, after which nothing was."""
        spool = held.spool
        earlier = Part(window, reading=before)
        had = None if before is None else spool.count(earlier)
        bad = [] if before is None else spool.unusable(before)
        spool.forget(spool.reading)
        reading = spool.begin()
        self._read(held, window, None, ids_only=not payloads)
        if had is None or had != spool.count(Part(window, reading=reading)):
            return False
        if spool.count(earlier) or len(bad) != len(spool.unusable(reading)):
            return False
        spool.settle(window, reading)
        return True

    def _too_long(self, held: _Held, window: Window | None) -> Exception:
        if _halves(held, window):
            return _TooLong()
        return DataError(
            f"the service lists {held.plan.listing.most} records of "
            f"{held.plan.known.endpoint} at most, and there are more",
            hint="it cannot be asked for less than that",
        )

    def _read(
        self, held: _Held, window: Window | None, told: int | None, *, ids_only: bool
    ) -> None:
        """One reading of a window, into the spool."""
        plan, spool = held.plan, held.spool
        most, largest, number, held_in_all = plan.listing.most, 0, 0, 0
        ends = not isinstance(plan.listing.paging, Pages | Offset | Keyset)

        def known(records: list[Record]) -> bool:
            return spool.holds([record.record_id for record in records])

        walk = pages(self._ask, plan, Span(window), ids_only=ids_only, known=known)
        while True:
            try:
                listed = next(walk, None)
            except (CredentialsRefused, ConfigurationError):
                raise
            except (DataError, FatalError) as error:
                if number == 0:
                    raise
                raise _Broken(error) from None  # a cursor that expired, pages that repeat
            if listed is None:
                return
            places = [(plan.place_of(item), item) for item in listed.rejected]
            spool.add(listed.records, places, self._clock())
            number, held_in_all = number + 1, held_in_all + listed.held
            if most is not None and told is None and held_in_all >= most:
                raise self._too_long(held, window)
            full = listed.held >= plan.page_size or (number > 1 and listed.held >= largest)
            largest = max(largest, listed.held)
            if told is None or full or ends:
                continue
            found = spool.count(Part(window, reading=spool.reading))
            if found + len(spool.unusable(spool.reading)) >= told:
                return


def _halves(held: _Held, window: Window | None) -> list[Window]:
    """The window in two parts of about as many records; none if it cannot be asked for in parts."""
    if window is None or not held.plan.listing.closed:
        return []
    if window.end - window.start < 2 * _SECOND:
        return []
    half = window.start + (window.end - window.start) / 2
    middle = _whole(held.spool.middle(window) or half)
    if not window.start < middle < window.end:
        middle = _whole(half)
    if not window.start < middle < window.end:
        return []
    return [Window(window.start, middle), Window(middle, window.end)]


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
