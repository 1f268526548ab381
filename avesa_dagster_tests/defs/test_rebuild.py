"""The job table lost, and made anew from Dagster's runs and the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from avesa_dagster.backfill.jobs import Wish
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.jobs import Job, JobStatus, Piece, PieceState, Trigger
from avesa_dagster.control.snapshot import read_snapshot
from avesa_dagster.defs import tags
from avesa_dagster.defs.backfills import tick
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.launches import piece_launch
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.defs.rebuild import rebuild
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House


@pytest.fixture
def instance(house: House, simulator: Simulator) -> Iterator[dg.DagsterInstance]:
    with instance_in(prepare(house.settings)) as opened:
        house.connect("acme", simulator, days=1000)
        yield opened


def move(instance: dg.DagsterInstance, house: House) -> list[dg.RunRequest]:
    rows = read_snapshot(house.settings.snapshot)
    loaded = {(row.tenant, row.service): row for row in rows}
    return list(tick(instance, house.installation, loaded, None))


def run(
    instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus
) -> dg.DagsterRun:
    return create_run_for_test(
        instance,
        tags=dict(request.tags),
        status=status,
        asset_selection=frozenset(request.asset_selection or ()),
    )


def lose(installation: Installation) -> list[Job]:
    """All rows of the job table are gone; returns what they were."""
    lost = installation.control.jobs.find()
    installation.control.jobs.forget("acme")
    assert installation.control.jobs.find() == []
    return lost


def asked(job: Job) -> tuple[object, ...]:
    return (
        job.tenant, job.service, set(job.tables), job.start, job.end, job.trigger,
        job.created_at.replace(microsecond=0), job.chunk_size_days, job.at_once,
    )  # fmt: skip


def stretches(job: Job) -> set[tuple[frozenset[str], str, str]]:
    return {(frozenset(piece.tables), piece.first, piece.last) for piece in job.pieces}


def test_a_job_under_way_is_what_it_was_and_goes_on(
    house: House, instance: dg.DagsterInstance
) -> None:
    installation = house.installation
    wish = Wish("acme", "connectwise", chunk_size_days=7, at_once=True)
    made, _ = installation.backfills.start(wish)
    (first,) = move(instance, house)
    run(instance, first, dg.DagsterRunStatus.SUCCESS)
    chunks(installation, made, made.pieces[0])
    (second,) = [request for request in move(instance, house) if request.tags != first.tags][:1]
    run(instance, second, dg.DagsterRunStatus.STARTED)
    (before,) = lose(installation)

    done = rebuild(instance, installation)
    assert done.left == {}
    (after,) = done.jobs
    assert asked(after) == asked(before)
    assert stretches(after) == stretches(before)
    assert after.completed_chunks == before.completed_chunks == 1
    move(instance, house)
    now = installation.backfills.get(made.job_id)
    assert now.status is JobStatus.RUNNING
    assert [piece.state for piece in now.pieces[:2]] == [PieceState.DONE, PieceState.LAUNCHED]
    assert rebuild(instance, installation).jobs == (), "what is there is left as it is"


def test_a_finished_job_ends_as_it_had(house: House, instance: dg.DagsterInstance) -> None:
    installation = house.installation
    wish = Wish("acme", "connectwise", tables=["companies"], trigger=Trigger.ONBOARDING)
    made, _ = installation.backfills.start(wish)
    (request,) = move(instance, house)
    run(instance, request, dg.DagsterRunStatus.SUCCESS)
    chunks(installation, made, made.pieces[0])
    move(instance, house)
    assert installation.backfills.get(made.job_id).status is JobStatus.COMPLETED
    lose(installation)
    rebuild(instance, installation)
    assert move(instance, house) == []
    after = installation.backfills.get(made.job_id)
    assert (after.status, after.trigger) == (JobStatus.COMPLETED, Trigger.ONBOARDING)


def test_what_dagster_itself_launched_is_known_again(
    house: House, instance: dg.DagsterInstance
) -> None:
    installation = house.installation
    row = installation.backfills.connection("acme", "connectwise")
    made, _ = installation.backfills.start(Wish("acme", "connectwise", tables=["tickets"]))
    launch = piece_launch(made, made.pieces[0], row, installation.catalog)
    installation.control.jobs.forget("acme")
    own = (tags.JOB, tags.PIECE, tags.ASKED)
    by_hand = {key: value for key, value in launch.tags.items() if key not in own}
    by_hand[tags.BACKFILL] = "abcdefgh"
    request = dg.RunRequest(asset_selection=list(launch.keys), tags=by_hand)
    started = run(instance, request, dg.DagsterRunStatus.STARTED)
    move(instance, house)
    (before,) = lose(installation)
    assert before.job_id == "abcdefgh"
    (after,) = rebuild(instance, installation).jobs
    assert (after.job_id, after.trigger, after.tables) == (
        "abcdefgh",
        Trigger.DAGSTER,
        ("tickets",),
    )
    assert stretches(after) == stretches(before)
    move(instance, house)
    held = instance.get_run_by_id(started.run_id)
    assert held is not None and not held.is_finished, "its run goes on"


def test_a_job_of_a_service_that_was_disconnected_is_left_and_named(
    house: House, instance: dg.DagsterInstance
) -> None:
    installation = house.installation
    made, _ = installation.backfills.start(Wish("acme", "connectwise", tables=["companies"]))
    (request,) = move(instance, house)
    run(instance, request, dg.DagsterRunStatus.SUCCESS)
    installation.disconnect("acme", "connectwise")
    lose(installation)
    done = rebuild(instance, installation)
    assert done.jobs == ()
    assert "disconnected" in done.left[made.job_id]


def test_a_deleted_run_leaves_a_gap_that_is_filled_from_the_plan(
    house: House, instance: dg.DagsterInstance
) -> None:
    installation = house.installation
    installation.backfills.start(Wish("acme", "connectwise"))
    (first,) = move(instance, house)
    gone = run(instance, first, dg.DagsterRunStatus.SUCCESS)
    (second, *_) = move(instance, house)
    run(instance, second, dg.DagsterRunStatus.STARTED)
    instance.delete_run(gone.run_id)
    (before,) = lose(installation)
    (after,) = rebuild(instance, installation).jobs
    assert [piece.number for piece in after.pieces] == list(range(len(after.pieces)))
    assert stretches(after) == stretches(before)


def test_old_ended_jobs_do_not_come_back(house: House, instance: dg.DagsterInstance) -> None:
    installation = house.installation
    installation.backfills.start(Wish("acme", "connectwise", tables=["companies"]))
    (request,) = move(instance, house)
    run(instance, request, dg.DagsterRunStatus.SUCCESS)
    lose(installation)
    days = installation.catalog.backfill.scheduling.keep_finished_days
    later = installation.clock() + timedelta(days=days + 1)
    aged = Installation(house.settings, clock=lambda: later)
    assert rebuild(instance, aged).jobs == ()


def chunks(installation: Installation, job: Job, piece: Piece) -> None:
    """Every window of the piece's first table is finished under the job, in one chunk."""
    ledger, now = installation.control.ledger, installation.clock()
    day = datetime.fromisoformat(piece.last).replace(tzinfo=UTC)
    chunk = Chunk(
        job.job_id, job.tenant, job.service, piece.tables[0], "one", piece.last, "full",
        day, day + timedelta(days=28),
    )  # fmt: skip
    (planned,) = ledger.plan([chunk], now=now)
    ledger.complete(ledger.begin(planned, now=now), source_count=0, requests=1, now=now)
