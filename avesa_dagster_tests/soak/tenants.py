"""Many tenants at once, three of them in trouble: the others must hardly notice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus
from avesa_dagster_tests.soak import truth
from avesa_dagster_tests.soak.house import House, house
from avesa_dagster_tests.soak.verdicts import Findings, Outcome, Scene

_RATIO = 1.2
_PLACES = 3
"""Tenants that fetch at once."""
_DAYS = 50
_LARGE_DAYS = 500
_SIZES = {"tickets": 250, "companies": 60}
_TABLES = tuple(_SIZES)
_REFUSED, _BROKEN, _LARGE = "refused", "broken", "large"


@dataclass(frozen=True)
class _Measured:
    """How the well ones fared.

    Attributes:
        seconds: From the first job's creation to the end of the last of theirs.
        each: Seconds of each of their jobs, from the first job's creation to its end.
        wrong: What is not as at the service, in words.
        others: What became of the jobs of those in trouble.
        load: Of the machine, on average.
        held: Seconds for which those in trouble held one of the places for tenants.
    """

    seconds: float
    each: tuple[float, ...]
    ended_well: int
    wrong: tuple[str, ...]
    others: str
    load: float
    held: float


def prove(scene: Scene) -> Outcome:
    """The same tenants twice: without those in trouble, and with them."""
    findings = Findings(scene)
    count = scene.size(27, 5)
    without = _measure(_part(scene, "without"), count, trouble=False)
    scene.say(f"without those in trouble: {without.seconds:.0f} s")
    beside = _measure(_part(scene, "with"), count, trouble=True)
    ratio = beside.seconds / without.seconds
    for name, one in (("without", without), ("with", beside)):
        findings.judge(
            f"{name} the three: of {count} tenants ended as completed, exact",
            f"{one.ended_well}; {one.wrong[0] if one.wrong else 'all records agree'}",
            one.ended_well == count and not one.wrong,
            str(count),
        )
        middle = sorted(one.each)[len(one.each) // 2]
        findings.tell(
            f"{name} the three: seconds until the last, and the middle one, had ended",
            f"{one.seconds:.0f}, {middle:.0f}; load average {one.load:.1f}",
        )
    what = "the others take so many times as long beside the three"
    if scene.quick:
        findings.tell(what, f"{ratio:.2f}, of so few")
    else:
        findings.judge(what, f"{ratio:.2f}", ratio <= _RATIO, f"≤ {_RATIO}")
    findings.tell("those in trouble, meanwhile", beside.others)
    alone = beside.seconds - beside.held / _PLACES
    findings.tell(
        "the same ratio, if the machine was as fast in both: by the places that the three held",
        f"{beside.seconds / alone:.2f} ({beside.held:.0f} s of one of {_PLACES} places)",
    )
    return findings.outcome(f"{count} tenants, and three in trouble")


def _part(scene: Scene, name: str) -> Scene:
    folder = scene.folder / name
    folder.mkdir()
    return replace(scene, folder=folder, say=lambda text: scene.say(f"{name}: {text}"))


def _measure(scene: Scene, count: int, *, trouble: bool) -> _Measured:
    def quiet(config: dict[str, Any]) -> None:
        config["upkeep"]["verify_hours"] = 0
        config["scheduling"]["max_tenants"] = _PLACES

    with house(
        scene, backfill=quiet, connectwise={"page_size": 25}, seed=61, latency_ms=100
    ) as place:
        place.simulator.control("clock", offset_seconds=-300)
        well = [f"tenant{number:02}" for number in range(count)]
        for number, tenant in enumerate(well):
            if trouble and number == count // 2:
                _connect_trouble(place)  # in the midst of the others
            _connect(place, tenant, _SIZES, _DAYS, seed=number + 100)
        place.simulator.control("clock", offset_seconds=0)
        if trouble:
            place.simulator.control("revoke", company_id=_REFUSED)
            place.simulator.control("fail", company_id=_BROKEN, status=500)
        scene.say(f"avesa dev is up after {place.dev.start():.0f} s")
        place.dev.stop_schedules()
        jobs, load = _until_ended(scene, place, well)
        others = _others(place) if trouble else ""
        began = min(job.created_at for job in place.installation.control.jobs.find())
        held = _held(place, max(map(_end, jobs)))
        each = tuple((_end(job) - began).total_seconds() for job in jobs)
        compared = [
            one
            for tenant in well
            for one in truth.compare(place.installation, place.simulator, tenant, tenant, _TABLES)
        ]
    return _Measured(
        seconds=max(each),
        each=each,
        ended_well=sum(job.status is JobStatus.COMPLETED for job in jobs),
        wrong=tuple(text for one in compared for text in one.wrong),
        others=others,
        load=load,
        held=held,
    )


def _connect_trouble(place: House) -> None:
    large = {table: 10 * size for table, size in _SIZES.items()}
    _connect(place, _REFUSED, _SIZES, _DAYS, seed=1)
    _connect(place, _BROKEN, _SIZES, _DAYS, seed=2)
    _connect(place, _LARGE, large, _LARGE_DAYS, seed=3)


def _connect(place: House, tenant: str, sizes: dict[str, int], days: int, *, seed: int) -> None:
    """A tenant with a company of its own, of the same name."""
    said = place.simulator.control(
        "add_company", company_id=tenant, seed=seed, sizes=sizes, years=days / 365
    )
    place.connect(tenant, said["credentials"], days=days, tables=_TABLES)


def _until_ended(scene: Scene, place: House, tenants: Sequence[str]) -> tuple[list[Job], float]:
    """The jobs, and the machine's load average until they had ended."""
    told, loads = [""], [os.getloadavg()[0]]

    def look() -> list[Job] | None:
        loads.append(os.getloadavg()[0])
        jobs = [place.first_job(tenant) for tenant in tenants]
        done = [job for job in jobs if job is not None and job.status not in UNFINISHED]
        text = f"{len(done)} of {len(tenants)} have ended"
        if text != told[0]:
            told[0] = text
            scene.say(f"{text}; load {os.getloadavg()[0]:.1f}")
        return done if len(done) == len(tenants) else None

    jobs = scene.wait("the end of the tenants' jobs", look, 60 + 60 * len(tenants))
    return jobs, sum(loads) / len(loads)


def _held(place: House, until: datetime) -> float:
    """Seconds from launch to end of the runs of those in trouble, up to a moment."""
    total = 0.0
    with place.instance() as instance:
        for record in instance.get_run_records():
            began = record.create_timestamp.timestamp()
            if record.dagster_run.tags.get("avesa/tenant") in (_REFUSED, _BROKEN, _LARGE):
                ended = min(record.end_time or until.timestamp(), until.timestamp())
                total += max(0.0, ended - began)
    return total


def _end(job: Job) -> datetime:
    assert job.completed_at is not None
    return job.completed_at


def _others(place: House) -> str:
    found = []
    for tenant in (_REFUSED, _BROKEN, _LARGE):
        job = place.first_job(tenant)
        if job is not None:
            done = sum(piece.state.value == "done" for piece in job.pieces)
            found.append(f"{tenant} {job.status.value}, {done} of {len(job.pieces)} runs done")
    breakers = place.installation.control.breakers.all()
    return f"{'; '.join(found)}; suspended: {', '.join(b.tenant for b in breakers) or 'none'}"
