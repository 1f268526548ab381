"""A `Source` that does what a service file says.

Where ids can be asked for in stretches, and these be counted, extraction pages and proves by ids as
it does for any service. Every other listing is read and proven window by window (`collected`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from typing import TypeVar

from avesa_dagster.catalog.http import HttpService, Keyset, Listing
from avesa_dagster.catalog.models import Service
from avesa_dagster.errors import AvesaError, PermissionRefused, Where
from avesa_dagster.sources.asking import HttpSource, asking, place_of
from avesa_dagster.sources.base import Clock, Deletion, Page, Record, Rejected, Span, Window
from avesa_dagster.sources.declared.collected import Collected
from avesa_dagster.sources.declared.plan import Plan
from avesa_dagster.sources.http import Answer, Call, Http, NotFound
from avesa_dagster.sources.records import ascending

T = TypeVar("T")


class DeclaredSource(HttpSource):
    """A `Source` over one connection.

    Args:
        root: The address with the root of all paths.
    """

    def __init__(
        self, service: Service, http: Http, root: str, where: Where, *, clock: Clock
    ) -> None:
        spoken = service.http
        assert spoken is not None
        super().__init__(service, http, where, clock)
        self._plans = plans(service, spoken, root)
        self._lists = deletion_plans(service, spoken, root)
        self._collected = Collected(self._ask, clock)
        listings = (spoken.listing, *spoken.tables.values())
        self.ids_ascend = all(_ascends(listing) for listing in listings)
        self.lists_deletions = spoken.deletions is not None

    def now(self) -> datetime:
        if self._http.server_time is None:
            tables = self._service.tables
            first = next((name for name in tables if tables[name].enabled), next(iter(tables)))
            plan = self._plans[first]
            with suppress(PermissionRefused, NotFound), self._asking(plan, None, Span()):
                self._http.ask(plan.newest_call(), plan.newest_in)  # a refusal tells the time too
        return self._http.present()

    def count(self, table: str, span: Span) -> int:
        plan = self._plans[table]
        if span.only is not None:
            return len(self._one(plan, span))
        if plan.by_id:
            return self._ask(plan, span, plan.count_call(span), plan.counted_in)
        return self._collected.count(plan, span)

    def page(self, table: str, span: Span, *, ids_only: bool = False) -> Page:
        plan = self._plans[table]
        if span.only is not None:
            return self._one(plan, span)
        if not plan.by_id:
            try:
                return self._collected.page(plan, span, ids_only=ids_only)
            except AvesaError as error:
                raise error.at(**place_of(self._where, plan.name, span)) from None

        def parse(answer: Answer) -> Page:
            listed = plan.listed(answer, span)
            last = listed.ids[-1] if listed.ids else None
            full = len(listed.records) + len(listed.rejected) >= self._service.page_size
            return Page(listed.records, listed.rejected, last, self._clock(), full=full)

        return self._ask(plan, span, plan.list_call(span, ids_only=ids_only), parse)

    def newest_id(self, table: str) -> str | None:
        """The greatest id where ids ascend; else any."""
        plan = self._plans[table]
        return self._ask(plan, Span(), plan.newest_call(), plan.newest_in)

    def exists(self, table: str, record_id: str) -> bool:
        """Asked at the record's own address where there is one: a list leaves out what this user
        may not see, as if it were gone."""
        plan, span = self._plans[table], Span(only=record_id, alive=True)
        try:
            return bool(len(self._one(plan, span, by_list=plan.record_call(record_id) is None)))
        except NotFound:
            return False
        except PermissionRefused:
            return True

    def deletions(self, table: str, window: Window) -> list[Deletion] | None:
        plan = self._lists.get(table)
        if plan is None:
            return None
        try:
            found = self._collected.records(plan, window)
            return [Deletion(one.record_id, one.updated_at) for one in found if one.updated_at]
        except (PermissionRefused, NotFound):
            return None
        except AvesaError as error:
            raise error.at(**place_of(self._where, plan.name, Span(window))) from None

    def close(self) -> None:
        self._collected.close()
        super().close()

    def _one(self, plan: Plan, span: Span, *, by_list: bool = True) -> Page:
        """The record with one id, if it is there and in the span.

        Args:
            by_list: Whether a list with this id alone will do, where there is one.
        """
        assert span.only is not None
        asked = plan.listing.filter
        call = plan.record_call(span.only)
        alone = Span(only=span.only)
        records: list[Record]
        rejected: list[Rejected]
        if by_list and asked is not None and "only" in asked.names():
            records, rejected = self._ask(plan, alone, plan.list_call(alone), _listed(plan, alone))
        else:
            assert call is not None  # the service file was checked: one of the two is there
            only = span.only
            records, rejected = self._ask(
                plan, alone, call, lambda answer: plan.record_in(answer, only)
            )
        kept = [
            record
            for record in records
            if not (span.alive and record.deleted)
            and (
                span.window is None
                or (record.updated_at is not None and record.updated_at in span.window)
            )
        ]
        last = kept[-1].record_id if kept else None
        return Page(kept, rejected, last, self._clock())

    def _ask(self, plan: Plan, span: Span, call: Call, parse: Callable[[Answer], T]) -> T:
        with self._asking(plan, plan.name, span):
            return self._http.ask(call, parse)

    def _asking(self, plan: Plan, table: str | None, span: Span) -> AbstractContextManager[None]:
        hint = f"If it is so from the beginning, see {plan.place}"
        return asking(self._where, table, span, plan.known.endpoint, hint=hint)


def plans(service: Service, spoken: HttpService, root: str) -> Mapping[str, Plan]:
    """What is asked about each table."""
    file = f"services/{service.service}.json, http"
    return {
        name: Plan(
            name,
            known,
            spoken.tables.get(name, spoken.listing),
            f"{file}.tables.{name}" if name in spoken.tables else f"{file}.listing",
            root,
            service.page_size,
            spoken.record,
            spoken.deleted_field,
        )
        for name, known in service.tables.items()
    }


def deletion_plans(service: Service, spoken: HttpService, root: str) -> Mapping[str, Plan]:
    """What is asked about each table's deletions. Their own count is not believed: an element may
    come twice, where a record was deleted twice."""
    gone = spoken.deletions
    if gone is None:
        return {}
    place = f"services/{service.service}.json, http.deletions.listing"
    listing = gone.listing.model_copy(update={"count": None})
    element = {"id": gone.id, "change_field": gone.deleted_at}
    return {
        name: Plan(name, known.model_copy(update=element), listing, place, root, service.page_size)
        for name, known in service.tables.items()
    }


def _ascends(listing: Listing) -> bool:
    return isinstance(listing.paging, Keyset) and listing.paging.newest is not None


def _listed(plan: Plan, span: Span) -> Callable[[Answer], tuple[list[Record], list[Rejected]]]:
    def parse(answer: Answer) -> tuple[list[Record], list[Rejected]]:
        listed = plan.listed(answer, span)
        ascending([record.record_id for record in listed.records], span, key=plan.order)
        return listed.records, listed.rejected

    return parse
