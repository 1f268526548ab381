"""A job's runs in Dagster: their tags, its record on the backfill page, and jobs from the UI."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from unittest.mock import patch

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from avesa_dagster.backfill.jobs import Backfills, Wish
from avesa_dagster.control.jobs import Job, JobStatus, PieceState, Trigger
from avesa_dagster.defs import tags
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House
from avesa_dagster_tests.defs.inside import Inside, inside

MONTH = f"{datetime.now(UTC):%Y-%m-01}"
RAW = dg.AssetKey(["acme", "raw", "connectwise", "tickets"])
TICKETS = [RAW, dg.AssetKey(["acme", "canonical", "connectwise", "tickets"])]


@pytest.fixture
def acme(house: House, simulator: Simulator) -> Iterator[Inside]:
    """A tenant that nobody backfills yet."""
    house.connect("acme", simulator)
    with inside(house.installation) as inner:
        yield inner


def start(acme: Inside, *tables: str) -> Job:
    wish = Wish("acme", "connectwise", tables=tables or None)
    return acme.installation.backfills.start(wish)[0]


def job_now(acme: Inside, job: Job) -> Job:
    return acme.installation.backfills.get(job.job_id)


def from_the_ui(
    acme: Inside, backfill_id: str | None = "uibackfl", **changes: str
) -> dg.DagsterRun:
    """A queued run of this month's tickets, as Dagster makes one for its backfill page."""
    given = {tags.RANGE_START: MONTH, tags.RANGE_END: MONTH}
    if backfill_id is not None:
        given[tags.BACKFILL] = backfill_id
    names = {tags.TENANT: "acme", tags.SERVICE: "connectwise"}  # by the queue's door
    return acme.queued(dg.RunRequest(asset_selection=TICKETS, tags={**given, **names, **changes}))


def test_the_run_of_a_piece_says_whose_it_is(acme: Inside) -> None:
    job = start(acme)
    (request,) = acme.tick()
    run = acme.queued(request)
    (piece,) = [p for p in job_now(acme, job).pieces if p.state is PieceState.LAUNCHED]
    assert run.tags[tags.JOB] == job.job_id
    assert run.tags[tags.PIECE] == f"{piece.number}.{piece.attempt}" == "0.1"
    assert (run.tags[tags.TENANT], run.tags[tags.SERVICE]) == ("acme", "connectwise")
    assert run.tags[tags.MODE] == "backfill"
    assert run.tags[tags.LANE] == "backfill/acme/connectwise"
    assert (run.tags[tags.RANGE_START], run.tags[tags.RANGE_END]) == (piece.first, piece.last)
    raw = {key.path[3] for key in run.asset_selection or () if key.path[1] == "raw"}
    assert raw == set(piece.tables) == {"companies", "contacts"}
    assert acme.instance.get_runs(dg.RunsFilter(tags={tags.JOB: job.job_id})) == [run]


def test_a_job_runs_to_its_end_and_each_of_its_runs_stands_on_the_backfill_page(
    acme: Inside,
) -> None:
    job = start(acme, "tickets")
    (ended,) = acme.settle()
    assert ended.status is JobStatus.COMPLETED and ended.completed_chunks == ended.total_chunks
    runs = acme.instance.get_runs(dg.RunsFilter(tags={tags.JOB: job.job_id}))
    assert {run.run_id for run in runs} == set(ended.run_ids)
    assert len(runs) == len(ended.pieces) == 2
    for run in runs:
        assert run.status is dg.DagsterRunStatus.SUCCESS
        backfill = acme.instance.get_backfill(run.tags[tags.BACKFILL])
        assert backfill is not None and backfill.tags[tags.JOB] == job.job_id
        assert backfill.asset_backfill_data is not None
        target = backfill.asset_backfill_data.target_subset
        piece = ended.pieces[int(run.tags[tags.PIECE].split(".")[0])]
        asked = target.get_partitions_subset(RAW).get_partition_keys()
        assert (min(asked), max(asked)) == (piece.first, piece.last)
        assert target.asset_keys == run.asset_selection
    held = acme.instance.get_materialized_partitions(RAW)
    assert MONTH in held and len(held) == 4


def test_cancelling_the_record_on_dagsters_backfill_page_cancels_the_job(acme: Inside) -> None:
    job = start(acme)
    (request,) = acme.tick()
    run = acme.queued(request)
    acme.tick()
    backfill = acme.instance.get_backfill(run.tags[tags.BACKFILL])
    assert backfill is not None and backfill.status is BulkActionStatus.REQUESTED
    acme.instance.update_backfill(backfill._replace(status=BulkActionStatus.CANCELING))
    assert not acme.tick()
    ended = job_now(acme, job)
    assert ended.status is JobStatus.CANCELLED and "Dagster" in ended.note
    queued = acme.instance.get_run_by_id(run.run_id)
    assert queued is not None and queued.status is dg.DagsterRunStatus.CANCELED
    assert not acme.tick(), "nothing of it is launched again"


def test_cancelling_a_job_takes_its_run_out_of_the_queue_and_says_so_on_the_page(
    acme: Inside,
) -> None:
    job = start(acme)
    run = acme.queued(acme.tick()[0])
    acme.tick()
    acme.installation.backfills.cancel(job.job_id)
    assert not acme.tick()
    queued = acme.instance.get_run_by_id(run.run_id)
    assert queued is not None and queued.status is dg.DagsterRunStatus.CANCELED
    backfill = acme.instance.get_backfill(run.tags[tags.BACKFILL])
    assert backfill is not None and backfill.status is BulkActionStatus.CANCELING
    assert job_now(acme, job).status is JobStatus.CANCELLED


def test_a_run_that_notices_that_it_has_to_stop_is_cancelled_and_its_piece_comes_again(
    acme: Inside,
) -> None:
    job = start(acme, "tickets")
    (request,) = acme.tick()
    with patch.object(Backfills, "stop_reason", lambda *_: "the off-peak hours are over"):
        acme.run(request)
    (stopped,) = acme.instance.get_runs()
    assert stopped.status is dg.DagsterRunStatus.CANCELED
    (again,) = acme.tick()
    assert again.tags[tags.PIECE] == "0.2"
    assert job_now(acme, job).status is JobStatus.RUNNING, "nobody cancelled it"


def test_a_run_that_somebody_ends_in_dagster_cancels_its_job(acme: Inside) -> None:
    job = start(acme, "tickets")
    run = acme.queued(acme.tick()[0])
    acme.instance.report_run_canceling(run)
    acme.instance.report_run_canceled(run)
    assert not acme.tick()
    assert job_now(acme, job).status is JobStatus.CANCELLED


def test_a_backfill_from_the_ui_becomes_a_job_with_its_id(acme: Inside) -> None:
    run = from_the_ui(acme)
    assert not acme.tick()
    (job,) = acme.installation.control.jobs.find()
    assert (job.job_id, job.trigger) == ("uibackfl", Trigger.DAGSTER)
    assert job.tables == ("tickets",) and f"{job.start:%Y-%m-%d}" == MONTH
    known = acme.instance.get_run_by_id(run.run_id)
    assert known is not None and known.tags[tags.JOB] == "uibackfl"
    assert known.tags[tags.PIECE] == "0.1"
    acme.tick()
    assert len(acme.installation.control.jobs.find()) == 1, "it is taken up once"
    acme.installation.backfills.cancel(job.job_id)
    acme.tick()
    known = acme.instance.get_run_by_id(run.run_id)
    assert known is not None and known.status is dg.DagsterRunStatus.CANCELED


def test_a_run_from_the_ui_that_no_tick_saw_is_a_job_when_it_fetches(acme: Inside) -> None:
    given = {tags.RANGE_START: MONTH, tags.RANGE_END: MONTH, tags.BACKFILL: "swiftone"}
    assert acme.run(dg.RunRequest(asset_selection=TICKETS, tags=given)).success
    (job,) = acme.settle()
    assert (job.job_id, job.status) == ("swiftone", JobStatus.COMPLETED)
    assert job.trigger is Trigger.DAGSTER and job.records > 0


def test_a_run_of_the_live_sync_becomes_no_job(acme: Inside) -> None:
    from_the_ui(acme, None, **{tags.MODE: "sync"})
    assert not acme.tick()
    assert not acme.installation.control.jobs.find()


def test_a_queued_run_without_partitions_becomes_no_job_yet(acme: Inside) -> None:
    names = {tags.TENANT: "acme", tags.SERVICE: "connectwise"}
    acme.queued(dg.RunRequest(asset_selection=TICKETS, tags=names))
    assert not acme.tick()
    assert not acme.installation.control.jobs.find()
