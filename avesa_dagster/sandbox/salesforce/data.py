"""What is answered to requests that are allowed: descriptions, rows, jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from avesa_dagster.sandbox.answers import json_response
from avesa_dagster.sandbox.faults import spoil
from avesa_dagster.sandbox.fetched import Fetch
from avesa_dagster.sandbox.hostility import ON_PAGE, Fault
from avesa_dagster.sandbox.listing import Page as Listed
from avesa_dagster.sandbox.salesforce import bulk, describe, faults, query, replication, rows
from avesa_dagster.sandbox.salesforce import plan as plans
from avesa_dagster.sandbox.salesforce.asked import Asked, stream_of
from avesa_dagster.sandbox.salesforce.hostility import AFTERWARDS, ON_JOB
from avesa_dagster.sandbox.salesforce.plan import Schema
from avesa_dagster.sandbox.salesforce.problems import ApiError
from avesa_dagster.sandbox.salesforce.site import Site, Tenancy
from avesa_dagster.sandbox.salesforce.soql import parse
from avesa_dagster.sandbox.salesforce.table import DELETED, GONE, UNSEEN
from avesa_dagster.sandbox.salesforce.values import Batch
from avesa_dagster.sandbox.timestamps import stamp
from avesa_dagster.sandbox.wire import Request, Response

AT_ONCE = 2000
"""Rows of results that are made at once."""


class Data:
    """Answers requests under the lock of their org, which the caller holds."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def answer(
        self, request: Request, asked: Asked, tenancy: Tenancy, fault: Fault | None
    ) -> tuple[Response, bool]:
        where, now, org = asked.where, self.site.clock.now(), tenancy.org
        conditions = self.site.conditions_of(tenancy)
        if where.kind in ("job", "status", "results", "pages"):
            return self._bulk(request, asked, tenancy, fault)
        match where.kind:
            case "query" | "more":
                return self._query(request, asked, tenancy, fault)
            case "resources":
                told: Any = describe.resources(where.version)
            case "sobjects":
                told = describe.sobjects(org, where.version)
            case "limits":
                told = describe.limits(org, now)
            case "recordcount":
                told = self._record_counts(request, tenancy)
            case "get":
                return self._record(asked, tenancy), False
            case _:
                try:
                    table = org.table(where.name)
                except ApiError:
                    raise ApiError("NOT_FOUND") from None
                if where.kind == "describe":
                    told = describe.describe(table, where.version)
                elif where.kind == "basic":
                    told = describe.basic(table, where.version)
                elif where.kind == "deleted":
                    told = replication.deleted(org, table, request.query, conditions, now)
                else:
                    told = replication.updated(org, table, request.query, conditions, now)
        return json_response(200, told), False

    def _record_counts(self, request: Request, tenancy: Tenancy) -> dict[str, Any]:
        org, conditions = tenancy.org, self.site.conditions_of(tenancy)
        names = request.query.get("sObjects", "")
        wanted = names.split(",") if names else list(org.tables)
        known = {name.lower(): table for name, table in org.tables.items() if table.accessible}
        now = self.site.clock.now()
        counts = [
            {
                "count": self.site.record_counts.count(org, table, conditions, now),
                "name": table.info.name,
            }
            for name in wanted
            if (table := known.get(name.strip().lower())) is not None
        ]
        return {"sObjects": counts}

    def _record(self, asked: Asked, tenancy: Tenancy) -> Response:
        """One record with all fields."""
        org, where = tenancy.org, asked.where
        try:
            table = org.table(where.name)
        except ApiError:
            raise ApiError("NOT_FOUND") from None
        number = plans.number_of(table, where.key)
        flags = 0 if number is None else table.flags[number]
        if number is None or flags & (GONE | UNSEEN):
            raise ApiError("NOT_FOUND")
        if flags & DELETED:
            raise ApiError("ENTITY_IS_DELETED")
        name = table.info.name
        if org.restricted(self.site.conditions_of(tenancy), name, number):
            raise ApiError("INSUFFICIENT_ACCESS")
        found = plans.check(org, parse(f"SELECT FIELDS(ALL) FROM {name} LIMIT 1"))
        [text] = query.render(org, found, [number], None, where.version)
        return json_response(200, text)

    # ---- queries

    def _query(
        self, request: Request, asked: Asked, tenancy: Tenancy, fault: Fault | None
    ) -> tuple[Response, bool]:
        site, org, where = self.site, tenancy.org, asked.where
        hostility, plan = site.hostility_to(tenancy), asked.plan
        conditions = site.conditions_of(tenancy)
        assert plan is not None
        ignored = fault is not None and fault.kind == "filter_ignored" and where.kind == "query"
        if ignored and not plan.query.aggregate:
            plan = plans.without_condition(plan)
        if plan.query.aggregate:
            body = query.aggregate_body(org, plan, asked.everything, hostility)
            return json_response(200, body), False
        clamp, short = conditions.page_clamp, fault is not None and fault.kind == "short_page"
        size = query.batch_size(request.headers.get("sforce-query-options"), clamp)
        whole = size
        if short and fault is not None:
            size = min(size, int(fault.parameters.get("rows", max(1, size // 2))))
        if where.kind == "more":
            name, cursor, offset = tenancy.cursors.find(where.name, site.clock.now())
            page = query.page(
                org, tenancy.cursors, cursor, name, offset, size, where.version, hostility
            )
        else:
            cursor = query.begin(org, plan, asked.everything, hostility, site.clock.now())
            page = query.page(org, tenancy.cursors, cursor, None, 0, size, where.version, hostility)
        effective = ignored or (short and len(page.numbers) < min(whole, page.total))
        effective |= self._spoil(page, fault, asked, tenancy)
        site.disturb(tenancy, plan.table.info.name, page.cursor.numbers)
        response = json_response(200, query.body(page))
        response.rows = len(page.rows)
        if page.rows:
            self._account(response, asked, tenancy, page.offset, str(whole))
        return response, effective

    def _spoil(self, page: query.Page, fault: Fault | None, asked: Asked, tenancy: Tenancy) -> bool:
        """Damage the rows of a batch; False if no fault did."""
        hostility = self.site.hostility_to(tenancy)
        listed = Listed(page.rows, None, ())
        previous = hostility.previous_page(stream_of(asked, tenancy.org.company_id), page.rows)
        if fault is None or fault.kind not in ON_PAGE - {"filter_ignored", "short_page"}:
            return False
        if not spoil(fault, listed, previous, hostility):
            return False
        if fault.kind == "empty_page":
            page.next_url = None
        return True

    def _account(
        self, response: Response, asked: Asked, tenancy: Tenancy, offset: int, size: str
    ) -> None:
        """See to it that a page of records is counted when it is sent."""
        plan = asked.plan
        assert plan is not None and asked.table is not None
        maker = partial(tenancy.org.id, asked.table)
        low, high = plan.changed.low, plan.changed.high
        found = Fetch(
            company_id=tenancy.org.company_id,
            table=asked.table,
            conditions=plan.query.where_text,
            order_by=plan.query.order_text,
            page=str(offset) if offset else None,
            page_id=None,
            page_size=size,
            fields=",".join(".".join(one.path) for one in plan.fields),
            changed_from=None if low == float("-inf") else stamp(int(low)),
            changed_to=None if high == float("inf") else stamp(int(high)),
            above_id=maker(plan.above - 1) if plan.above else "",
        )
        response.sending = partial(self._note, response, found)

    def _note(self, response: Response, found: Fetch, listening: bool) -> None:
        """Count a page of records that is about to be sent."""
        spoilt = response.fault not in (None, "slow", "hang", *AFTERWARDS)
        self.site.fetched.note(found, response.rows or 0, spoilt=spoilt, delivered=listening)

    # ---- bulk jobs

    def _bulk(
        self, request: Request, asked: Asked, tenancy: Tenancy, fault: Fault | None
    ) -> tuple[Response, bool]:
        where, now, org, jobs = asked.where, self.site.clock.now(), tenancy.org, tenancy.jobs
        if where.number < bulk.OLDEST_VERSION:
            raise ApiError("NOT_FOUND")
        hostility = self.site.hostility_to(tenancy)
        conditions = self.site.conditions_of(tenancy)
        if where.kind == "job":
            own = fault if fault is not None and fault.kind in ON_JOB else None
            made = jobs.create(org, request.body, where.number, own, now)
            return json_response(200, made.report(whole=False)), own is not None
        if not where.name:
            if request.method != "GET":
                raise ApiError("METHOD_NOT_ALLOWED")
            for each in jobs.all(now):
                bulk.progress(org, each, hostility, now, polled=False)
            return json_response(
                200, bulk.listed(jobs.all(now), request.query, where.version)
            ), False
        job = jobs.find(where.name, now)
        if where.kind == "status":
            return self._job(request, job, tenancy), False
        if request.method != "GET":
            raise ApiError("METHOD_NOT_ALLOWED")
        bulk.progress(org, job, hostility, now, polled=False)
        if where.kind == "pages":
            told = bulk.result_pages(job, request.query, where.number, conditions)
            return json_response(200, told), False
        found = bulk.results(job, request.query, where.number, conditions)
        return self._results(request, asked, tenancy, found, fault)

    def _job(self, request: Request, job: bulk.Job, tenancy: Tenancy) -> Response:
        """A look at a job, its end, or its deletion."""
        hostility, now = self.site.hostility_to(tenancy), self.site.clock.now()
        if request.method == "DELETE":
            tenancy.jobs.delete(job)
            return Response(204)
        bulk.progress(tenancy.org, job, hostility, now, polled=request.method == "GET")
        if request.method == "PATCH":
            try:
                wanted = json.loads(request.body)["state"]
            except (ValueError, KeyError, TypeError):
                wanted = None
            if wanted != "Aborted":
                raise ApiError("INVALIDJOB", "state can only become Aborted")
            bulk.abort(job)
        elif request.method != "GET":
            raise ApiError("METHOD_NOT_ALLOWED")
        if job.numbers:
            self.site.disturb(tenancy, job.table, job.numbers)
        return json_response(200, job.report())

    def _results(
        self,
        request: Request,
        asked: Asked,
        tenancy: Tenancy,
        found: bulk.Results,
        fault: Fault | None,
    ) -> tuple[Response, bool]:
        job, hostility = found.job, self.site.hostility_to(tenancy)
        conditions = self.site.conditions_of(tenancy)
        plan = job.plan
        assert plan is not None
        places: Sequence[int] = job.numbers[found.start : found.end]
        told, effective = len(places), False
        spoilt = None
        if fault is not None and fault.kind in ON_PAGE:
            spoilt = faults.spoil_places(fault, places, hostility)
        elif fault is not None and fault.kind == "wrong_count":
            told, effective = told + int(fault.parameters.get("by", 1)), True
        if spoilt is not None:
            places, effective = spoilt, True
        twice = fault is not None and fault.kind == "duplicate_header"
        response = Response(200, headers=[("Content-Type", "text/csv")], framing="chunked")
        response.headers.append(("Sforce-NumberOfRecords", str(told)))
        response.headers.append(("Sforce-Locator", found.locator))
        response.rows = len(places)
        response.stream = rows.as_csv(
            partial(self._read, tenancy, job, places),
            rows.header(plan, job.version),
            len(places),
            delimiter=rows.DELIMITERS[job.delimiter],
            line_ending=rows.LINE_ENDINGS[job.line_ending],
            short_ids=conditions.short_ids,
            twice=twice,
            at_once=AT_ONCE,
        )
        nothing = job.fault is not None and job.fault.kind == "job_empty"
        if nothing or (not job.numbers and conditions.bulk_zero != "header"):
            text = b"Records not found for this query\n"
            empty = nothing or conditions.bulk_zero == "empty"
            response.stream, response.rows = iter([b"" if empty else text]), 0
        response.stream = self._stored(response.stream, tenancy)
        self.site.disturb(tenancy, job.table, job.numbers)
        if response.rows:
            size = request.query.get("maxRecords") or str(conditions.bulk_page)
            self._account(response, asked, tenancy, found.start, size)
        return response, effective or twice

    def _read(
        self, tenancy: Tenancy, job: bulk.Job, places: Sequence[int], start: int, end: int
    ) -> tuple[Schema, Batch]:
        """Rows of a job, as they were when it completed."""
        assert job.plan is not None
        with tenancy.org.lock:
            batch = job.plan.table.batch(places[start:end], job.sequence, bulk=True)
            for one in job.plan.fields:
                if not one.steps:
                    batch.raw(one.about.name)
            return tenancy.org, batch

    def _stored(self, stream: Iterator[bytes], tenancy: Tenancy) -> Iterator[bytes]:
        for piece in stream:
            tenancy.org.allowance.store(self.site.clock.now(), len(piece))
            yield piece
