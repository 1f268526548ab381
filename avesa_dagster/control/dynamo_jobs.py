"""BackfillJobs and ProcessingJobs in DynamoDB.

A job, or a run's row, lies whole in the attribute `document`; the attributes beside it are for
people and for the indexes, which lag behind. What decides something is read consistently:

- `open_jobs` in Health lists the jobs that are unfinished or still have a piece launched. It is
  written in one transaction with the job, so it is exact; ended jobs are found through an index
  and then read.
- `running` in Health says which runs work in which lane, written in one transaction with the
  run's row. A beat writes the row alone.
- `job_lanes` and `modes` are there to be changed: of two who look at the same and then write,
  one is refused and looks again.
- `lanes` keeps the newest row of each lane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import msgspec

from avesa_dagster.control.dynamo_database import (
    Delete,
    DynamoDatabase,
    Item,
    Key,
    Put,
    Row,
    Write,
    merged,
    optional_text,
    to_text,
)
from avesa_dagster.control.dynamo_document import DOCUMENT, packed, unpacked
from avesa_dagster.control.dynamo_tables import BACKFILL_JOBS, HEALTH, PROCESSING_JOBS
from avesa_dagster.control.jobs import (
    UNFINISHED,
    Job,
    JobStatus,
    PieceState,
    Processing,
    unknown_job,
)
from avesa_dagster.names import checked

_OPEN = "open_jobs"
_JOB_LANES = "job_lanes"
_RUNNING = "running"
_LANES = "lanes"
_MODES = "modes"
_BY_SERVICE = BACKFILL_JOBS.index("TenantServiceIndex")
_BY_END = BACKFILL_JOBS.index("EndedIndex")
_BY_JOB = PROCESSING_JOBS.index("JobIndex")
_BY_TENANT = PROCESSING_JOBS.index("TenantIndex")
_BY_AGE = PROCESSING_JOBS.index("AgeIndex")

_NO_END = "0"
"""Sorts before every time."""
_AT_ONCE = 100

_job = msgspec.json.Decoder(Job)
_processing = msgspec.json.Decoder(Processing)


class DynamoJobs:
    """Implements `control.jobs.Jobs`."""

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def create(self, job: Job, *, joins: Callable[[Job], bool] | None = None) -> Job:
        """See Jobs.create.

        Raises:
            ConfigurationError: A name is invalid or a time has no zone; nothing is inserted.
            StoreError: A text is not valid Unicode, or the job is too large for an item.
        """
        checked("tenant", job.tenant)
        checked("service", job.service)
        item = _job_item(job)
        lane = (_JOB_LANES, f"{job.tenant}/{job.service}")

        def prepare() -> tuple[Sequence[Write], Job]:
            writes: list[Write] = []
            if joins is not None:
                held = self._database.get(HEALTH, lane)  # before the jobs: it guards them
                writes.append(Put(HEALTH, {"scope": lane[0], "item": lane[1]}, held))
                for other in self._unfinished(job.tenant, job.service):
                    if joins(other):
                        return (), other
            stored = self._database.get(BACKFILL_JOBS, (job.job_id,))
            if stored is not None:
                return (), unpacked(_job, stored)
            return (Put(BACKFILL_JOBS, item), *writes, *self._listed(job)), job

        return self._database.settle(f"backfill job {job.job_id}", prepare)

    def get(self, job_id: str) -> Job | None:
        """See Jobs.get."""
        row = self._database.get(BACKFILL_JOBS, (job_id,)) if job_id else None
        return None if row is None else unpacked(_job, row)

    def find(
        self,
        tenant: str | None = None,
        service: str | None = None,
        *,
        statuses: Collection[JobStatus] | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """See Jobs.find. Unfinished jobs are all there; one that was made and has ended within the
        last second or so may be missing."""
        prefix = (
            "" if tenant is None else f"{tenant}/" if service is None else f"{tenant}/{service}/"
        )
        created = self._open(prefix)
        if statuses is None or not UNFINISHED.issuperset(statuses):
            created |= self._known(tenant, service)

        def wanted(job: Job) -> bool:
            return (
                (tenant is None or job.tenant == tenant)
                and (service is None or job.service == service)
                and (statuses is None or job.status in statuses)
            )

        newest_first = sorted(created, key=lambda job_id: (created[job_id], job_id), reverse=True)
        found = (job for job in self._read(newest_first) if wanted(job))
        return list(islice(found, limit))

    def ended(self, *, limit: int) -> list[Job]:
        """See Jobs.ended. One that ended within the last second or so may be missing."""
        found: list[Job] = []
        ids: list[str] = []
        last = ""
        for entry in self._database.query(
            BACKFILL_JOBS, "yes", index=_BY_END, backwards=True, page=limit + 10
        ):
            if entry.text("ended_at") != last and len(ids) >= limit:  # those of one moment together
                found += [job for job in self._read(ids) if job.status not in UNFINISHED]
                ids = []
                if len(found) >= limit:
                    break
            last = entry.text("ended_at")
            ids.append(entry.key[0])
        found += [job for job in self._read(ids) if job.status not in UNFINISHED]
        return sorted(found, key=_by_end, reverse=True)[:limit]

    def winding_down(self) -> list[Job]:
        """See Jobs.winding_down."""
        return [
            job
            for job in self._read(sorted(self._open("")))
            if job.status not in UNFINISHED and _has_launched(job)
        ]

    def change(self, job_id: str, change: Callable[[Job], Job], *, now: datetime) -> Job:
        """See Jobs.change.

        Raises:
            StoreError: A text is not valid Unicode, or the job is too large for an item.
        """

        def prepare() -> tuple[Sequence[Write], Job]:
            row = self._database.get(BACKFILL_JOBS, (job_id,)) if job_id else None
            if row is None:
                raise unknown_job(job_id)
            before = unpacked(_job, row)
            after = change(before)
            if after == before:
                return (), before
            after = dataclasses.replace(
                after,
                job_id=before.job_id,
                tenant=before.tenant,
                service=before.service,
                created_at=before.created_at,
                updated_at=now,
            )
            item = merged(BACKFILL_JOBS, (job_id,), row, _job_item(after))
            listed = () if _is_open(after) == _is_open(before) else self._listed(after)
            return (Put(BACKFILL_JOBS, item, row), *listed), after

        return self._database.settle(f"backfill job {job_id}", prepare)

    def remove(self, *, finished_before: datetime) -> int:
        """See Jobs.remove."""
        before, old = to_text(finished_before), list[str]()
        for entry in self._database.query(BACKFILL_JOBS, "yes", index=_BY_END):
            if entry.text("ended_at") >= before:
                break
            old.append(entry.key[0])

        def over(job: Job) -> bool:
            return job.completed_at is not None and job.completed_at < finished_before

        return self._remove(old, over)

    def forget(self, tenant: str) -> int:
        """See Jobs.forget."""
        ids = {**self._open(f"{tenant}/"), **self._known(tenant, None)}
        removed = self._remove(list(ids), lambda job: job.tenant == tenant)
        lanes = self._database.query(HEALTH, _JOB_LANES, f"{tenant}/")
        self._database.remove(HEALTH, [lane.key for lane in lanes])
        return removed

    def _open(self, prefix: str) -> dict[str, str]:
        """When each unfinished or winding-down job was created; exact."""
        found = self._database.query(HEALTH, _OPEN, prefix)
        return {row.key[1].rpartition("/")[2]: row.text("created_at") for row in found}

    def _known(self, tenant: str | None, service: str | None) -> dict[str, str]:
        """When jobs were created, as an index says: of a tenant all, else those that ended."""
        if tenant is None:
            found = self._database.query(BACKFILL_JOBS, "yes", index=_BY_END)
        else:
            found = self._database.query(BACKFILL_JOBS, tenant, service or "", index=_BY_SERVICE)
        return {row.key[0]: row.text("created_at") for row in found}

    def _read(self, ids: Iterable[str]) -> Iterator[Job]:
        """The jobs, in the order given, without those that are gone."""
        waiting = iter(ids)
        while part := list(islice(waiting, _AT_ONCE)):
            rows = self._database.get_many(BACKFILL_JOBS, [(job_id,) for job_id in part])
            for job_id in part:
                if (job_id,) in rows:
                    yield unpacked(_job, rows[(job_id,)])

    def _unfinished(self, tenant: str, service: str) -> list[Job]:
        return self.find(tenant, service, statuses=UNFINISHED)

    def _listed(self, job: Job) -> list[Write]:
        """What makes `open_jobs` say whether the job is open."""
        key = (_OPEN, f"{job.tenant}/{job.service}/{job.job_id}")
        held = self._database.get(HEALTH, key)
        if _is_open(job):
            item = {"scope": key[0], "item": key[1], "created_at": to_text(job.created_at)}
            return [Put(HEALTH, item, held)]
        return [] if held is None else [Delete(HEALTH, held)]

    def _remove(self, ids: Sequence[str], condition: Callable[[Job], bool]) -> int:
        return sum(self._remove_one(job_id, condition) for job_id in ids)

    def _remove_one(self, job_id: str, condition: Callable[[Job], bool]) -> bool:
        removed = False

        def prepare() -> tuple[Sequence[Write], bool]:
            nonlocal removed
            row = self._database.get(BACKFILL_JOBS, (job_id,))
            if row is None:
                return (), removed  # by an earlier try, if there was one
            job = unpacked(_job, row)
            if not condition(job):
                return (), False
            removed = True
            listing = (_OPEN, f"{job.tenant}/{job.service}/{job_id}")
            held = self._database.get(HEALTH, listing)
            listed = () if held is None else (Delete(HEALTH, held),)
            return (Delete(BACKFILL_JOBS, row), *listed), True

        return self._database.settle(f"backfill job {job_id}", prepare)


class DynamoProcessingJobs:
    """Implements `control.jobs.ProcessingJobs`.

    A lane is held by the run that its item in `running` names. A run that was taken for dead, and
    beats again, is listed beside the new holder until it ends.
    """

    def __init__(self, database: DynamoDatabase) -> None:
        self._database = database

    def claim(
        self, row: Processing, *, stale_before: datetime, tenants: int | None = None
    ) -> Processing | None:
        """See ProcessingJobs.claim."""
        for kind in ("tenant", "service", "table"):
            checked(kind, getattr(row, kind))
        to_text(stale_before)

        def prepare() -> tuple[Sequence[Write], Processing | None]:
            guard = self._guard(row) if tenants is not None else []  # before what it guards
            places = self._places(row.lane)
            rows = self._database.get_many(PROCESSING_JOBS, map(_named, places.values()))
            for held in rows.values():
                other = unpacked(_processing, held)
                if other.run_id != row.run_id and _alive(other, stale_before):
                    return (), other
            if tenants is not None:
                others = self._working(row, stale_before)
                if len({other.tenant for other in others}) >= tenants:
                    return (), others[-1]
            return (*guard, *self._taken(row, places, rows)), None

        return self._database.settle(f"the lane {row.lane}", prepare)

    def beat(self, row: Processing) -> None:
        """See ProcessingJobs.beat. One read and one write while the run works.

        Raises:
            ConfigurationError: A time has no zone.
        """

        def prepare() -> tuple[Sequence[Write], None]:
            held = self._database.get(PROCESSING_JOBS, _key(row))
            write = _put_processing(row, held)
            ran = held is not None and unpacked(_processing, held).status == "running"
            if ran and row.status == "running":
                return (write,), None
            return (write, *self._moved(row)), None

        self._database.settle(f"the run {row.run_id}", prepare)

    def under_way(self, tenant: str | None = None, *, stale_before: datetime) -> list[Processing]:
        """See ProcessingJobs.under_way."""
        places = [
            place
            for place in self._database.query(HEALTH, _RUNNING)
            if tenant is None or place.text("tenant_id") == tenant
        ]
        found = [
            unpacked(_processing, held)
            for held in self._database.get_many(PROCESSING_JOBS, map(_named, places)).values()
        ]
        alive = [row for row in found if _alive(row, stale_before)]
        return sorted(alive, key=lambda row: (row.tenant, row.service, row.table, row.run_id))

    def of_job(self, job_id: str) -> list[Processing]:
        """See ProcessingJobs.of_job. One of the last second or so may be missing."""
        if not job_id:
            return []
        keys = [entry.key for entry in self._database.query(PROCESSING_JOBS, job_id, index=_BY_JOB)]
        rows = self._database.get_many(PROCESSING_JOBS, keys).values()
        found = [row for row in (unpacked(_processing, r) for r in rows) if row.job_id == job_id]
        return sorted(found, key=lambda row: (row.started_at, row.table, row.run_id))

    def latest(self, kind: str) -> list[Processing]:
        """See ProcessingJobs.latest."""
        kept = [
            unpacked(_processing, place)
            for place in self._database.query(HEALTH, _LANES, f"{kind}/")
        ]
        beating = [row for row in kept if row.status == "running"]
        now = self._database.get_many(PROCESSING_JOBS, map(_key, beating))
        newest = {
            row.lane: unpacked(_processing, now[_key(row)]) if _key(row) in now else row
            for row in kept
        }
        return [newest[lane] for lane in sorted(newest)]

    def remove(self, *, ended_before: datetime) -> int:
        """See ProcessingJobs.remove."""
        before, old = to_text(ended_before), list[Key]()
        for entry in self._database.query(PROCESSING_JOBS, "yes", index=_BY_AGE):
            if entry.text("aged_at") >= before:
                break
            old.append(entry.key)
        return self._remove(old, lambda row: row.beat_at < ended_before)

    def forget(self, tenant: str) -> int:
        """See ProcessingJobs.forget."""
        keys = {
            entry.key for entry in self._database.query(PROCESSING_JOBS, tenant, index=_BY_TENANT)
        }
        running = self._database.query(HEALTH, _RUNNING)
        keys |= {_named(place) for place in running if place.text("tenant_id") == tenant}
        removed = self._remove(sorted(keys), lambda row: row.tenant == tenant)
        # Places whose row is gone already.
        for scope in (_RUNNING, _LANES):
            places = self._database.query(HEALTH, scope, attributes=("tenant_id",))
            own = [place.key for place in places if place.text("tenant_id") == tenant]
            self._database.remove(HEALTH, own)
        return removed

    def _places(self, lane: str) -> dict[str, Row]:
        """Who is said to work in a lane: the items of `running`."""
        found = self._database.query(HEALTH, _RUNNING, lane)
        return {place.key[1]: place for place in found if place.key[1].partition(" ")[0] == lane}

    def _taken(
        self, row: Processing, places: Mapping[str, Row], rows: Mapping[Key, Row]
    ) -> Iterator[Write]:
        """What puts the row into its lane, if nothing changed since `places` and `rows` were read.
        Whoever held it before has died; it must not seem to run when it is looked at later."""
        for held in rows.values():
            died = unpacked(_processing, held)
            if died.status == "running" and died.run_id != row.run_id:
                died = dataclasses.replace(
                    died, status="failed", error="its process died", ended_at=row.beat_at
                )
                yield _put_processing(died, held)
        for item, place in places.items():
            if item != row.lane:
                yield Delete(HEALTH, place)
        own = rows.get(_key(row)) or self._database.get(PROCESSING_JOBS, _key(row))
        yield _put_processing(row, own)
        yield _put_place(row, places.get(row.lane))
        yield from self._newest(row)

    def _moved(self, row: Processing) -> Iterator[Write]:
        """What makes `running` and `lanes` say what a row says that began or ended."""
        own = (_RUNNING, row.lane)
        place = self._database.get(HEALTH, own)
        if place is not None and _named(place) != _key(row):
            own = (_RUNNING, f"{row.lane} {row.run_id}")  # the lane was given to another
            place = self._database.get(HEALTH, own)
        if row.status == "running":
            yield _put_place(row, place, own[1])
        elif place is not None:
            yield Delete(HEALTH, place)
        yield from self._newest(row)

    def _newest(self, row: Processing) -> Iterator[Write]:
        held = self._database.get(HEALTH, (_LANES, row.lane))
        known = None if held is None else unpacked(_processing, held)
        if known is None or _key(known) == _key(row) or known.beat_at <= row.beat_at:
            item = {
                "scope": _LANES,
                "item": row.lane,
                "tenant_id": row.tenant,
                DOCUMENT: packed(f"the row of run {row.run_id}", row),
            }
            yield Put(HEALTH, item, held)

    def _guard(self, row: Processing) -> list[Write]:
        held = self._database.get(HEALTH, (_MODES, row.mode))
        return [Put(HEALTH, {"scope": _MODES, "item": row.mode}, held)]

    def _working(self, row: Processing, stale_before: datetime) -> list[Processing]:
        """What works for other tenants in the row's mode; nothing if its own tenant has a place."""
        found = sorted(self.under_way(stale_before=stale_before), key=lambda other: other.beat_at)
        working = [o for o in found if o.mode == row.mode and o.run_id != row.run_id]
        return [] if any(other.tenant == row.tenant for other in working) else working

    def _remove(self, keys: Sequence[Key], condition: Callable[[Processing], bool]) -> int:
        removed, waiting = 0, iter(keys)
        while part := list(islice(waiting, _AT_ONCE)):
            found = self._database.get_many(PROCESSING_JOBS, part).values()
            rows = [row for row in (unpacked(_processing, r) for r in found) if condition(row)]
            ended = [row for row in rows if row.status != "running"]
            self._forget_newest(ended)
            removed += self._database.remove(PROCESSING_JOBS, map(_key, ended))
            removed += sum(
                self._remove_one(_key(row), condition) for row in rows if row.status == "running"
            )
        return removed

    def _forget_newest(self, rows: Sequence[Processing]) -> None:
        kept = self._database.get_many(HEALTH, [(_LANES, row.lane) for row in rows])
        own = {_key(row) for row in rows}
        for place in kept.values():
            if _key(unpacked(_processing, place)) in own:
                self._database.delete(HEALTH, place)

    def _remove_one(self, key: Key, condition: Callable[[Processing], bool]) -> bool:
        removed = False

        def prepare() -> tuple[Sequence[Write], bool]:
            nonlocal removed
            held = self._database.get(PROCESSING_JOBS, key)
            if held is None:
                return (), removed  # by an earlier try, if there was one
            row = unpacked(_processing, held)
            if not condition(row):
                return (), False
            removed = True
            return (Delete(PROCESSING_JOBS, held), *self._unlisted(row)), True

        return self._database.settle(f"the run {key[0]}", prepare)

    def _unlisted(self, row: Processing) -> Iterator[Write]:
        """What takes a row's places away."""
        for item in (row.lane, f"{row.lane} {row.run_id}"):
            place = (
                self._database.get(HEALTH, (_RUNNING, item)) if row.status == "running" else None
            )
            if place is not None and _named(place) == _key(row):
                yield Delete(HEALTH, place)
        newest = self._database.get(HEALTH, (_LANES, row.lane))
        if newest is not None and _key(unpacked(_processing, newest)) == _key(row):
            yield Delete(HEALTH, newest)


def _is_open(job: Job) -> bool:
    return job.status in UNFINISHED or _has_launched(job)


def _has_launched(job: Job) -> bool:
    return any(piece.state is PieceState.LAUNCHED for piece in job.pieces)


def _by_end(job: Job) -> tuple[bool, datetime, datetime, str]:
    """Sorts ended jobs; those without an end come first."""
    end = job.completed_at
    return end is not None, end or job.created_at, job.created_at, job.job_id


def _job_item(job: Job) -> Item:
    """What is stored of a job; None: no such attribute."""
    document = packed(f"backfill job {job.job_id}", job)
    completed_at = optional_text(job.completed_at)
    ended = job.status not in UNFINISHED
    return {
        "job_id": job.job_id,
        "tenant_id": job.tenant,
        "service_name": job.service,
        "table_name": ", ".join(job.tables)[:1000],
        "start_date": to_text(job.start),
        "end_date": to_text(job.end),
        "chunk_size_days": job.chunk_size_days,
        "job_status": job.status.value,
        "created_at": to_text(job.created_at),
        "updated_at": to_text(job.updated_at),
        "completed_at": completed_at,
        "total_records": job.records,
        "total_chunks": job.total_chunks,
        "completed_chunks": job.completed_chunks,
        "failed_chunks": job.failed_chunks,
        "error_message": job.errors[0].text[:1000] if job.errors else None,
        "ended": "yes" if ended or completed_at else None,
        "ended_at": completed_at or _NO_END if ended or completed_at else None,
        DOCUMENT: document,
    }


def _alive(row: Processing, stale_before: datetime) -> bool:
    return row.status == "running" and row.beat_at >= stale_before


def _key(row: Processing) -> tuple[str, str]:
    """Of its item in ProcessingJobs."""
    return row.run_id, f"{row.tenant}#{row.service}#{row.table}"


def _named(place: Row) -> tuple[str, str]:
    """The key in ProcessingJobs that an item of `running` names."""
    return place.text("run_id"), place.text("row")


def _put_place(row: Processing, held: Row | None, item: str | None = None) -> Put:
    run_id, name = _key(row)
    return Put(
        HEALTH,
        {
            "scope": _RUNNING,
            "item": item or row.lane,
            "tenant_id": row.tenant,
            "run_id": run_id,
            "row": name,
        },
        held,
    )


def _put_processing(row: Processing, held: Row | None) -> Put:
    document = packed(f"the row of run {row.run_id}", row)
    attributes: dict[str, Any] = {
        "tenant_id": row.tenant,
        "service_name": row.service,
        "table_name": row.table,
        "processing_mode": row.mode,
        "job_id": row.job_id or None,
        "status": row.status,
        "started_at": to_text(row.started_at),
        "beat_at": to_text(row.beat_at),
        "completed_at": optional_text(row.ended_at),
        "records_processed": row.records,
        "error_message": None if row.error is None else row.error[:1000],
        "kept": "yes",
        "aged_at": to_text(row.beat_at)[: 13 if row.status == "running" else None],
        DOCUMENT: document,
    }
    return Put(PROCESSING_JOBS, merged(PROCESSING_JOBS, _key(row), held, attributes), held)
