"""A simulated service, an installation with its own mappings, and `avesa dev` on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from avesa_dagster.backfill.progress import job_chunks
from avesa_dagster.control.base import Chunk
from avesa_dagster.control.jobs import UNFINISHED, Job
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.installation import Installation
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster.settings import Settings
from avesa_dagster_tests.soak.cloud import place_of
from avesa_dagster_tests.soak.dev import Dev, mappings_with
from avesa_dagster_tests.soak.truth import SERVICE
from avesa_dagster_tests.soak.verdicts import Failed, Scene

UNLIMITED = 100_000
COMPANY = "acme_msp"
"""The simulator's first company."""


@dataclass(frozen=True)
class House:
    """Where a scenario plays."""

    scene: Scene
    simulator: Simulator
    installation: Installation
    dev: Dev

    def connect(
        self,
        tenant: str,
        credentials: Mapping[str, str],
        *,
        days: int,
        limit: int = UNLIMITED,
        tables: tuple[str, ...] = (),
    ) -> None:
        self.installation.connect(
            tenant,
            SERVICE,
            credentials,
            lookback_days=days,
            requests_per_minute=limit,
            tables=tables,
        )

    def job(self, job_id: str) -> Job:
        return self.installation.backfills.get(job_id)

    def first_job(self, tenant: str) -> Job | None:
        found = self.installation.control.jobs.find(tenant)
        return found[-1] if found else None

    def chunks(self, job: Job) -> list[Chunk]:
        return job_chunks(job, self.installation.control.ledger)

    def ended(self, job_id: str) -> Job | None:
        job = self.job(job_id)
        return None if job.status in UNFINISHED else job

    def until_ended(self, job_id: str, seconds: float) -> Job:
        """Waits for the end of a job, and says every ten seconds how far it is.

        Raises:
            Failed: It did not end in time.
        """
        told = [""]

        def look() -> Job | None:
            job = self.job(job_id)
            text = f"{job_id} {progress(job)}"
            if text != told[0]:
                told[0] = text
                self.scene.say(text)
            return self.ended(job_id)

        return self.scene.wait(f"the end of job {job_id}", look, seconds)

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with instance_in(self.installation.settings.dagster_home) as instance:
            yield instance

    def runs(self, job_id: str) -> str:
        """The runs of a job in words, newest first, for whoever has to find out why."""
        with self.instance() as instance:
            found = instance.get_runs(dg.RunsFilter(tags={"avesa/job": job_id}))
        return ", ".join(f"{r.tags.get('avesa/piece')} {r.status.value}" for r in found[:12])


def progress(job: Job) -> str:
    """How far a job is, in words."""
    done = sum(piece.state.value == "done" for piece in job.pieces)
    note = f" ({job.note})" if job.note else ""
    return (
        f"{job.status.value}{note}: {job.completed_chunks} of {job.total_chunks} chunks, "
        f"{done} of {len(job.pieces)} pieces"
    )


@contextmanager
def house(
    scene: Scene,
    *,
    backfill: Callable[[dict[str, Any]], None] = lambda config: None,
    connectwise: Mapping[str, object] | None = None,
    **world: Any,
) -> Iterator[House]:
    """Opens a house; `avesa dev` is not started yet.

    The world is five minutes old, so that no record lies in the service's lag.

    Args:
        backfill, connectwise: Changes of the mappings, see `mappings_with`.
        world: Options of the simulator.
    """
    mappings = mappings_with(scene.folder, backfill=backfill, connectwise=connectwise)
    home = scene.folder / "home"
    settings = Settings.from_environment(
        {**place_of(home), "AVESA_HOME": str(home), "AVESA_MAPPINGS": str(mappings)}
    )
    prepare(settings)
    began = datetime.now(UTC) - timedelta(minutes=5)
    dev = Dev(home, mappings, scene.folder / "dev.log")
    with Simulator(now=began.isoformat(timespec="seconds"), **world) as simulator:
        simulator.control("clock", offset_seconds=0)
        try:
            yield House(scene, simulator, Installation(settings), dev)
        finally:
            left = dev.stop()
            if left:
                scene.say(f"{len(left)} processes survived Ctrl-C")


def refused(house: House, *arguments: str) -> str:
    """What a command says that has to fail.

    Raises:
        Failed: It did not fail.
    """
    done = house.dev.avesa(*arguments)
    if done.returncode == 0:
        raise Failed(f"avesa {' '.join(arguments)} was not refused: {done.stdout}")
    return done.stderr.strip()
