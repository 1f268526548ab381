"""From the first page of a listing to its last, in each style of paging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from avesa_dagster.catalog.http import Cursor, Keyset, Link, Offset, Pages
from avesa_dagster.errors import DataError
from avesa_dagster.sources.base import Record, Span
from avesa_dagster.sources.declared.plan import Listed, Plan
from avesa_dagster.sources.http import Answer, Call
from avesa_dagster.sources.records import InvalidPage

T = TypeVar("T")
_STALE = 2
"""Short pages in a row that may bring nothing new."""
_BARREN = 100
"""Pages in a row that may hold no record, though more is said to follow."""
Known = Callable[[list[Record]], bool]


class Ask(Protocol):
    """Sends a request about a table until its answer parses."""

    def __call__(
        self, plan: Plan, span: Span, call: Call, parse: Callable[[Answer], T], /
    ) -> T: ...


def pages(
    ask: Ask,
    plan: Plan,
    span: Span,
    *,
    ids_only: bool,
    known: Known,
) -> Iterator[Listed]:
    """The pages of a span, until the service says that it ends.

    Args:
        known: Whether all of these records came in earlier pages.

    Raises:
        DataError: A page brings nothing new, or repeats where it goes on, again and again.
    """
    paging = plan.listing.paging
    place = _Place()
    call = plan.list_call(span, _first(plan), ids_only=ids_only)
    while True:

        def parse(answer: Answer, span: Span = span) -> Listed:
            listed = plan.listed(answer, span)
            if isinstance(paging, Pages | Offset):
                place.check_advance(listed, known)
            if listed.following is not None:
                if listed.following in place.seen:
                    raise InvalidPage("the answer says to go on where it was, and not further")
                if isinstance(paging, Link):
                    plan.next_url(listed.following)
            elif listed.more and isinstance(paging, Cursor | Link):
                raise InvalidPage("the service says that more follows, and not where")
            return listed

        listed = ask(plan, span, call, parse)
        place.note(listed, known)
        yield listed
        if listed.more is False:
            return
        match paging:
            case Keyset():
                if not listed.ids:
                    return
                span = replace(span, after=listed.ids[-1])
                call = plan.list_call(span, ids_only=ids_only)
            case Pages() | Offset():
                if not listed.held and listed.more is None:
                    return
                number = _at(paging, place.number, place.offset)
                call = plan.list_call(span, number, ids_only=ids_only)
            case Cursor() | Link():
                if listed.following is None:
                    return
                if isinstance(paging, Link):
                    call = Call(plan.next_url(listed.following))
                else:
                    cursor = {paging.param: listed.following}
                    call = plan.list_call(span, cursor, ids_only=ids_only)
        if place.barren > _BARREN or (not listed.held and isinstance(paging, Offset)):
            raise DataError(
                f"{plan.known.endpoint} says that more follows, and lists nothing",
                hint=f"see {plan.place}",
            )


class _Place:
    """How far a walk is."""

    def __init__(self) -> None:
        self.number, self.offset, self.barren = 0, 0, 0
        self.seen: set[str] = set()
        self._stale, self._largest = 0, 0
        self._ids: tuple[str, ...] = ()

    def check_advance(self, listed: Listed, known: Known) -> None:
        """Raises InvalidPage for a page that came before; but the last one may hold only what
        moved there from the one before."""
        full = listed.held >= self._largest or self._stale >= _STALE
        if full and listed.ids and (listed.ids == self._ids or _stale(listed, known)):
            raise InvalidPage("the page holds what came before: the paging does not advance")

    def note(self, listed: Listed, known: Known) -> None:
        """After a page, before it is added to what is known."""
        self.number += 1
        self.offset += listed.held
        self.barren = 0 if listed.ids else self.barren + 1
        self._stale = self._stale + 1 if _stale(listed, known) else 0
        self._largest = max(self._largest, listed.held)
        self._ids = listed.ids
        if listed.following is not None:
            self.seen.add(listed.following)


def _stale(listed: Listed, known: Known) -> bool:
    return bool(listed.records) and known(listed.records)


def _first(plan: Plan) -> dict[str, int]:
    paging = plan.listing.paging
    return _at(paging, 0, 0) if isinstance(paging, Pages | Offset) else {}


def _at(paging: Pages | Offset, number: int, offset: int) -> dict[str, int]:
    if isinstance(paging, Pages):
        return {paging.param: paging.first + number}
    return {paging.param: offset}
