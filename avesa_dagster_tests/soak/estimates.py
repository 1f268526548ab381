"""What `--dry-run` says a job will cost, beside what it then costs."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from avesa_dagster.control.jobs import Job, JobStatus
from avesa_dagster_tests.soak import truth
from avesa_dagster_tests.soak.house import COMPANY, UNLIMITED, House, house
from avesa_dagster_tests.soak.verdicts import Findings, Outcome, Scene

_LATENCY_MS = 200
_REQUESTS_WITHIN = 0.15
_TIME_WITHIN = 0.25
_BUDGET = 200
"""Requests a minute, as real installations have."""


def prove(scene: Scene) -> Outcome:
    """Two jobs: one that the service's latency bounds, one that the budget bounds.

    They are estimated as people do it: after the tenant's first backfill, which the estimate may
    have learnt from.
    """
    tickets, hours = scene.size((9_000, 6_000), (2_500, 1_500))

    def quiet(config: dict[str, Any]) -> None:
        config["upkeep"]["verify_hours"] = 0

    with house(
        scene,
        backfill=quiet,
        connectwise={"page_size": 25},
        seed=71,
        tickets=tickets,
        time_entries=hours,
        companies=200,
        contacts=600,
        years=2,
        latency_ms=_LATENCY_MS,
    ) as place:
        findings = Findings(scene)
        scene.say(f"avesa dev is up after {place.dev.start():.0f} s")
        place.connect("acme", place.simulator.credentials, days=730)
        job_id = scene.wait("the onboarding job", lambda: place.first_job("acme"), 120).job_id
        place.dev.stop_schedules()
        place.until_ended(job_id, 900)
        _compare(place, findings, "latency bounds it", limit=UNLIMITED)
        _compare(place, findings, "the budget bounds it", limit=_BUDGET)
        return findings.outcome(f"Estimates at {_LATENCY_MS} ms")


def _compare(place: House, findings: Findings, name: str, *, limit: int) -> None:
    """Estimates a job over everything, runs it, and judges."""
    scene = place.scene
    place.installation.control.registry.connect(
        "acme",
        truth.SERVICE,
        history_start=place.installation.backfills.connection("acme", truth.SERVICE).history_start,
        tables=place.installation.backfills.connection("acme", truth.SERVICE).tables,
        requests_per_minute=limit,
        now=place.installation.clock(),
    )
    said = place.dev.avesa_json("backfill", "acme", truth.SERVICE, "--dry-run")
    scene.say(
        f"{name}: {said['requests']} requests in {said['seconds']} s, {said['chunks']} chunks, "
        f"{said['asked']} requests told this"
    )
    before = _asked(place)
    job_id = str(place.dev.avesa_json("backfill", "acme", truth.SERVICE)["job_id"])
    job = place.until_ended(job_id, 120 + 5 * said["seconds"])
    requests = _asked(place) - before
    seconds = (_ended(job) - job.created_at).total_seconds()
    findings.judge(f"{name}: the job ended as", job.status.value, job.status is JobStatus.COMPLETED)
    _judge(findings, f"{name}: requests", said["requests"], requests, _REQUESTS_WITHIN)
    estimated = said["seconds"] + said["wait_seconds"]
    _judge(findings, f"{name}: seconds", estimated, seconds, _TIME_WITHIN)
    findings.note(f"{name}: load average {os.getloadavg()[0]:.1f}")


def _judge(findings: Findings, what: str, estimated: float, found: float, within: float) -> None:
    off = estimated / found - 1
    findings.judge(
        f"{what}, estimated and found",
        f"{estimated:,.0f}, {found:,.0f}: {off:+.0%}",
        abs(off) <= within,
        f"± {within:.0%}",
    )


def _asked(place: House) -> int:
    """Requests that the service has counted of the tenant's company."""
    return int(place.simulator.control("stats")["by_credential"].get(COMPANY, 0))


def _ended(job: Job) -> datetime:
    assert job.completed_at is not None
    return job.completed_at
