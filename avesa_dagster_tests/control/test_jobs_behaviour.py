"""What every Jobs does: looked up by tenant and service, changed in one step, kept for a while."""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.control.jobs import (
    UNFINISHED,
    Job,
    JobError,
    Jobs,
    JobStatus,
    Piece,
    PieceState,
    Stretch,
    Trigger,
)
from avesa_dagster.errors import ConfigurationError, StoreError

from .conftest import Control, Opener, day

ENDS = set(JobStatus) - UNFINISHED


def job(job_id: str = "b1", tenant: str = "acme", created: float = 0, **fields: Any) -> Job:
    base = Job(
        job_id, tenant, "connectwise", ("tickets",), day(-90), day(0), Trigger.PERSON,
        created_at=day(created), updated_at=day(created),
    )  # fmt: skip
    return replace(base, **fields)


def ids(found: list[Job]) -> list[str]:
    return [one.job_id for one in found]


def test_an_unknown_one_is_none_and_cannot_be_changed(control: Control) -> None:
    control.jobs.create(job())
    assert control.jobs.get("b2") is None
    asked: list[Job] = []
    with pytest.raises(ConfigurationError, match=r"no job 'b2'.*avesa jobs"):
        control.jobs.change("b2", lambda held: asked.append(held) or held, now=day(1))  # type: ignore[func-returns-value]
    assert asked == []
    assert control.jobs.find() == [job()]


def test_a_job_that_is_there_stays_as_it_is(control: Control) -> None:
    assert control.jobs.create(job(note="first")) == job(note="first")
    assert control.jobs.create(job(note="second", tenant="globex")) == job(note="first")
    assert control.jobs.find() == [job(note="first")]


def test_every_field_survives(opener: Opener, tmp_path: Path) -> None:
    pieces = (
        Piece(0, ("a", "b"), "2026-01-01", "2026-02-01", True, PieceState.FAILED, False, 3, day(1),
              "lost 'it' é", 2, day(2)),
        Piece(1, ("b",), "2025-01-01", "2025-12-01", False, derive=True),
    )  # fmt: skip
    full = Job(
        "on7-ab_c", "acme", "connectwise", ("a", "b"), day(-700), day(0), Trigger.HOLE, day(0.5),
        day(0.75), JobStatus.COMPLETED_WITH_ERRORS, 7, True, (Stretch("a", day(1), day(2.25)),),
        True, "waits: \"x\" \0", pieces, 9, 8, 7, 2**40, 6,
        (JobError("x", "a", "[2026-01-01, 2026-02-01)"), JobError("y")), ("r1", "r2"), day(1),
        day(2),
    )  # fmt: skip
    assert len(dataclasses.fields(Job)) == 25
    assert len(dataclasses.fields(Piece)) == 12
    for field in dataclasses.fields(Job):
        if field.default is not dataclasses.MISSING:
            assert getattr(full, field.name) != field.default, field.name
    assert opener(tmp_path).jobs.create(full) == full
    again = opener(tmp_path).jobs
    assert again.get("on7-ab_c") == full
    assert again.find("acme", "connectwise") == [full]


def test_jobs_are_found_by_tenant_service_and_status_newest_first(control: Control) -> None:
    for number, (tenant, service, status) in enumerate(
        [
            ("acme", "connectwise", JobStatus.PENDING),
            ("acme", "servicenow", JobStatus.RUNNING),
            ("acme", "connectwise", JobStatus.COMPLETED),
            ("acme2", "connectwise", JobStatus.PENDING),
            ("acme", "connectwise", JobStatus.PAUSED),
        ]
    ):
        one = job(f"b{number}", tenant, number, status=status)
        control.jobs.create(replace(one, service=service))
    jobs = control.jobs
    assert ids(jobs.find()) == ["b4", "b3", "b2", "b1", "b0"]
    assert ids(jobs.find("acme")) == ["b4", "b2", "b1", "b0"]
    assert ids(jobs.find("acme", "connectwise")) == ["b4", "b2", "b0"]
    assert ids(jobs.find("acme", "connectwise", limit=2)) == ["b4", "b2"]
    assert ids(jobs.find(statuses=UNFINISHED)) == ["b4", "b3", "b1", "b0"]
    assert ids(jobs.find("acme", "connectwise", statuses={JobStatus.PENDING})) == ["b0"]
    assert jobs.find(statuses=set()) == []
    assert jobs.find("nobody") == []


def test_a_change_replaces_the_row_and_says_when(control: Control) -> None:
    control.jobs.create(job())
    changed = control.jobs.change(
        "b1", lambda held: replace(held, status=JobStatus.RUNNING, records=7), now=day(1)
    )
    assert changed == job(status=JobStatus.RUNNING, records=7, updated_at=day(1))
    assert control.jobs.get("b1") == changed
    assert control.jobs.find(statuses={JobStatus.RUNNING}) == [changed]
    assert control.jobs.find(statuses={JobStatus.PENDING}) == []
    assert control.jobs.change("b1", lambda held: replace(held), now=day(2)) == changed
    assert control.jobs.get("b1") == changed, "nothing changed, so nothing was updated"


def test_a_change_cannot_make_another_job_of_it(control: Control) -> None:
    control.jobs.create(job())
    other = replace(job("b9", "globex", 9, service="servicenow"), note="changed")
    changed = control.jobs.change("b1", lambda held: other, now=day(1))
    assert changed == replace(job(), note="changed", updated_at=day(1))
    assert control.jobs.find() == [changed]
    assert control.jobs.find("acme", "connectwise") == [changed]


def test_an_error_within_a_change_leaves_the_row(control: Control) -> None:
    control.jobs.create(job())

    def refuse(held: Job) -> Job:
        raise ConfigurationError(f"{held.job_id} cannot be")

    with pytest.raises(ConfigurationError, match="b1 cannot be"):
        control.jobs.change("b1", refuse, now=day(1))
    assert control.jobs.get("b1") == job()


def test_what_cannot_be_kept_is_refused(control: Control) -> None:
    with pytest.raises(ConfigurationError, match="tenant name"):
        control.jobs.create(job(tenant="../acme"))
    with pytest.raises(ConfigurationError, match="service name"):
        control.jobs.create(job(service="a/b"))
    with pytest.raises(ConfigurationError, match="time zone"):
        control.jobs.create(job(created_at=day(0).replace(tzinfo=None)))
    assert control.jobs.find() == []
    control.jobs.create(job())
    with pytest.raises((StoreError, ConfigurationError), match="Unicode"):
        control.jobs.change("b1", lambda held: replace(held, note="a\ud800b"), now=day(1))
    assert control.jobs.get("b1") == job()


def test_finished_jobs_leave_in_time_and_unfinished_ones_never(control: Control) -> None:
    for status in JobStatus:
        for ended in (10, 40):
            finished = status in ENDS
            control.jobs.create(
                job(f"{status.value}{ended}", status=status,
                    completed_at=day(ended) if finished else None)
            )  # fmt: skip
    control.jobs.change(
        "failed10",
        lambda held: replace(held, status=JobStatus.PENDING, completed_at=None),
        now=day(41),
    )
    assert control.jobs.remove(finished_before=day(10)) == 0, "not earlier"
    assert control.jobs.remove(finished_before=day(40)) == 3
    left = {one.job_id for one in control.jobs.find()}
    assert left == {f"{s.value}{e}" for s in JobStatus for e in (10, 40)} - {
        "completed10", "completed_with_errors10", "cancelled10",
    }  # fmt: skip


def test_one_tenant_is_forgotten(control: Control) -> None:
    for number, tenant in enumerate(["acme", "acme", "acme2"]):
        control.jobs.create(job(f"b{number}", tenant))
    assert control.jobs.forget("acme") == 2
    assert control.jobs.forget("acme") == 0
    assert ids(control.jobs.find()) == ["b2"]
    assert control.jobs.get("b0") is None


def test_those_that_ended_come_last_end_first(control: Control) -> None:
    for number, status in enumerate([*JobStatus, *JobStatus]):
        finished = status in ENDS
        control.jobs.create(
            job(f"b{number:02}", created=number, status=status,
                completed_at=day(100 - number) if finished else None)
        )  # fmt: skip
    ended = [f"b{n:02}" for n, status in enumerate([*JobStatus, *JobStatus]) if status in ENDS]
    assert ids(control.jobs.ended(limit=99)) == ended
    assert ids(control.jobs.ended(limit=3)) == ended[:3]


def test_those_that_ended_and_whose_runs_have_not_are_known(control: Control) -> None:
    launched = Piece(0, ("a",), "2026-01-01", "2026-01-01", True, PieceState.LAUNCHED)
    waiting = replace(launched, state=PieceState.WAITING)
    misleading = JobError('"state":"launched" {"state":"launched"}')
    for number, status in enumerate(JobStatus):
        for name, piece in (("l", launched), ("w", waiting)):
            done = replace(piece, number=1, state=PieceState.DONE)
            control.jobs.create(
                job(f"{name}{number}", created=number, status=status, pieces=(piece, done),
                    errors=(misleading,))
            )  # fmt: skip
    expected = {f"l{number}" for number, status in enumerate(JobStatus) if status in ENDS}
    assert set(ids(control.jobs.winding_down())) == expected


def _add(opener: Opener, folder: str, gate: Barrier, worker: int, times: int) -> None:
    jobs: Jobs = opener(Path(folder)).jobs
    for number in range(times):
        gate.wait(60)
        jobs.change(
            "b1",
            lambda held, number=number: replace(  # type: ignore[misc]
                held, records=held.records + 1, run_ids=(*held.run_ids, f"{worker}-{number}")
            ),
            now=day(1),
        )


def test_two_processes_change_at_once_and_lose_nothing(opener: Opener, tmp_path: Path) -> None:
    jobs = opener(tmp_path).jobs
    jobs.create(job())
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(2)
    workers = [
        spawn.Process(target=_add, args=(opener, str(tmp_path), gate, n, 40)) for n in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    held = jobs.get("b1")
    assert held is not None
    assert held.records == 80
    for worker_number in range(2):
        mine = [run for run in held.run_ids if run.startswith(f"{worker_number}-")]
        assert mine == [f"{worker_number}-{number}" for number in range(40)]


def test_who_asks_for_what_another_fetches_joins_it(control: Control) -> None:
    control.jobs.create(job("b1", created=1))
    control.jobs.create(job("b2", created=2, status=JobStatus.COMPLETED))
    control.jobs.create(job("b3", created=3, tenant="globex"))
    control.jobs.create(job("b4", created=4, status=JobStatus.PAUSED))
    asked: list[str] = []

    def joins(other: Job) -> bool:
        asked.append(other.job_id)
        return other.job_id == "b1"

    assert control.jobs.create(job("b5", created=5), joins=joins).job_id == "b1"
    assert asked == ["b4", "b1"], "the unfinished ones of its lane, newest first"
    assert control.jobs.get("b5") is None
    assert control.jobs.create(job("b6"), joins=lambda other: False) == job("b6")


def test_of_many_who_ask_for_the_same_at_once_all_but_one_join(
    opener: Opener, tmp_path: Path
) -> None:
    stores = [opener(tmp_path).jobs for _ in range(4)]

    def ask(number: int) -> str:
        return stores[number % 4].create(job(f"b{number}"), joins=lambda other: True).job_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
    assert len(stores[0].find()) == 1


def test_of_many_threads_one_makes_a_job_and_one_ends_it(opener: Opener, tmp_path: Path) -> None:
    stores = [opener(tmp_path).jobs for _ in range(4)]

    def end(held: Job) -> Job:
        if held.status is not JobStatus.PENDING:
            raise ConfigurationError("it has ended")
        return replace(held, status=JobStatus.CANCELLED)

    def work(number: int) -> int:
        stored = stores[number % 4].create(job(note=str(number)))
        try:
            stores[number % 4].change("b1", end, now=day(number))
        except ConfigurationError:
            return int(stored.note)
        return int(stored.note) + 100

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(work, range(16)))
    assert len({number % 100 for number in said}) == 1, "all saw the same job"
    assert sum(number >= 100 for number in said) == 1, "one ended it"
