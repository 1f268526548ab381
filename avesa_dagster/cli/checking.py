"""`avesa verify`: does the lake hold what the source shows?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.status import Status

from avesa_dagster.cli.output import as_json_option, print_json, print_table
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus
from avesa_dagster.extract.verifier import Verifier
from avesa_dagster.extract.verify import Step, Verified, joined
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked
from avesa_dagster.sources.base import Window

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_LOOK_EVERY = 1.0
_PATIENCE = 90.0
"""Seconds after which a job that did not begin makes one ask whether a daemon runs."""


@click.command(
    epilog="""\b
Examples:
  avesa verify acme connectwise
  avesa verify acme connectwise --table tickets --start 2026-03-01 --end 2026-04-01 --keys
  avesa verify acme connectwise --repair --wait
"""
)
@click.argument("tenant")
@click.argument("service")
@click.option("--table", "tables", multiple=True, help="A table to compare; may be repeated.")
@click.option("--start", type=_DAY, help="First day, in UTC; by default all of the history.")
@click.option("--end", type=_DAY, help="Day after the last one, in UTC; by default the present.")
@click.option("--keys", is_flag=True, help="Compare the keys of every window, not counts first.")
@click.option("--repair", is_flag=True, help="Start a job that fetches the bad windows again.")
@click.option("--wait", is_flag=True, help="With --repair: until it ended, then compare again.")
@as_json_option
def verify(
    tenant: str,
    service: str,
    tables: tuple[str, ...],
    start: datetime | None,
    end: datetime | None,
    keys: bool,
    repair: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Compare what the lake holds of TENANT's SERVICE with the source, and name the bad windows.

    It compares up to what the last sync promised, by counts, and where they disagree by keys. Two
    differences that cancel out in one count are found with --keys. A change that the source made
    without a new change time is not found: only a fetch sees it.

    Exit code 0: everything that was asked for was compared and agrees, or does so after --repair
    --wait. 1: something disagrees, could not be compared, or was never fetched.
    """
    if wait and not repair:
        raise click.UsageError("--wait goes with --repair")
    checked("tenant", tenant)
    installation = Installation.from_environment()
    verifier = Verifier(installation.extractor)
    connection = verifier.connection(tenant, checked("service", service))
    chosen = verifier.tables(connection, tables)
    start, end = _in_utc(start), _in_utc(end)
    verifier.check_range(connection, start, end)
    talk = Console(stderr=True, quiet=as_json)
    found = []
    for table in chosen:
        with talk.status(f"{tenant} {service} {table}") as status:
            report = _teller(status, f"{tenant} {service} {table}")
            verified = verifier.verify(
                connection, table, start=start, end=end, keys=keys, report=report
            )
        found.append(_Found(verified))
        if not as_json:
            _say(verified)
    if repair:
        _repair(installation, verifier, connection, found, wait, talk, as_json)
    if as_json:
        print_json([_described(one) for one in found])
    if not all(one.well for one in found):
        raise click.exceptions.Exit(1)


@dataclass(slots=True)
class _Found:
    """What was found of a table; after a repair, what its bad windows came to."""

    verified: Verified
    job: Job | None = None
    after: list[Verified] = field(default_factory=list)

    @property
    def well(self) -> bool:
        if self.verified.agrees:
            return True
        return self.repaired and self.verified.complete and not self.verified.unsure

    @property
    def repaired(self) -> bool:
        return bool(self.after) and all(verified.agrees for verified in self.after)


def _repair(
    installation: Installation,
    verifier: Verifier,
    connection: TenantService,
    found: Sequence[_Found],
    wait: bool,
    talk: Console,
    as_json: bool,
) -> None:
    """Starts a job over the bad windows; with `wait`, compares these again when it has ended."""
    bad = {
        one.verified.table: verifier.to_fetch(connection, one.verified)
        for one in found
        if one.verified.bad
    }
    if not bad:
        return
    tenant, service = connection.tenant, connection.service
    job = installation.backfills.repair(tenant, service, bad)
    if not as_json:
        windows = sum(map(len, bad.values()))
        click.echo(f"Job {job.job_id} fetches {windows} window(s) again; a running daemon does it.")
    if wait:
        job = _ended(installation, job, talk)
        if not as_json:
            click.echo(
                f"Job {job.job_id}: {job.status.value}{f' ({job.note})' if job.note else ''}"
            )
    for one in found:
        if one.verified.table in bad:
            one.job = job
            if wait and job.status in (JobStatus.COMPLETED, JobStatus.COMPLETED_WITH_ERRORS):
                one.after = [_again(verifier, connection, one.verified)]
                if not as_json:
                    _say(one.after[0])


def _again(verifier: Verifier, connection: TenantService, verified: Verified) -> Verified:
    """Compares what was bad once more, by keys."""
    windows = [bad.window for bad in verified.bad]
    return verifier.verify(connection, verified.table, only=joined(windows), keys=True)


def _ended(installation: Installation, job: Job, talk: Console) -> Job:
    """Waits until the job has ended."""
    began = time.monotonic()
    with talk.status(f"job {job.job_id}") as status:
        while job.status in UNFINISHED:
            time.sleep(_LOOK_EVERY)
            job = installation.backfills.get(job.job_id)
            text = f"job {job.job_id}: {job.completed_chunks} of {job.total_chunks} chunks"
            waits = job.started_at is None and time.monotonic() - began > _PATIENCE
            hint = "it has not begun; is a daemon running (avesa dev)?" if waits else ""
            status.update(" ".join(part for part in (text, job.note or hint) if part))
    return job


def _teller(status: Status, what: str) -> Callable[[Step], None]:
    def tell(step: Step) -> None:
        bad = f", {step.bad} bad" if step.bad else ""
        status.update(
            f"{what}: {step.done} of {step.done + step.left} windows, back to "
            f"{step.window.start:%Y-%m-%d}{bad}, {step.requests} requests"
        )

    return tell


def _say(verified: Verified) -> None:
    """One table's result, for people."""
    click.echo(f"{verified.table}: {_verdict(verified)} ({verified.requests} requests)")
    for line in _remarks(verified):
        click.echo(f"  {line}")
    if verified.bad:
        rows = [
            (
                *_moments(bad.window),
                bad.source_count,
                bad.lake_count,
                bad.missing,
                f"{bad.reason}: {', '.join(bad.ids)}{'…' if bad.missing > len(bad.ids) else ''}",
            )
            for bad in verified.bad
        ]
        print_table(("from", "to", "source", "lake", "missing", "reason"), rows)


def _verdict(verified: Verified) -> str:
    if verified.error is not None:
        return f"STOPPED at {verified.reached:%Y-%m-%d %H:%M}: {verified.error}"
    if not verified.compared and not verified.unsure:
        return "NOT COMPARED: nothing of it was fetched yet; see avesa coverage"
    if verified.bad:
        return f"{len(verified.bad)} bad window(s)"
    if verified.unsure:
        return f"{len(verified.unsure)} window(s) could not be compared"
    first, last = verified.compared[-1].start, verified.compared[0].end
    return f"agrees, {first:%Y-%m-%d} to {last:%Y-%m-%d %H:%M}"


def _remarks(verified: Verified) -> list[str]:
    """What is no loss, and worth knowing."""
    remarks = [f"{unsure.window}: {unsure.reason}" for unsure in verified.unsure]
    if len(verified.compared) > 1:
        holes = len(verified.compared) - 1 - len(verified.unsure)
        if holes > 0:
            remarks.append(f"{holes} hole(s) in between were never fetched; see avesa coverage")
    if verified.deleted_unseen:
        shown = ", ".join(verified.deleted_ids)
        remarks.append(
            f"{verified.deleted_unseen} deleted at the source, which the next full sync closes: "
            f"{shown}"
        )
    if verified.hidden:
        remarks.append(
            f"{verified.hidden} that the source has and does not list: look whether the API "
            "member may read all of them"
        )
    if verified.undecided:
        remarks.append(f"{verified.undecided} not listed, and not asked for one by one: too many")
    return remarks


def _described(found: _Found) -> dict[str, Any]:
    """One table's result, for scripts."""
    verified = found.verified
    names = (
        "tenant", "service", "table", "agrees", "complete", "reached", "moved_on",
        "deleted_unseen", "deleted_ids", "hidden", "undecided", "requests",
    )  # fmt: skip
    bad = [
        {
            **_window(b.window), "source_count": b.source_count, "lake_count": b.lake_count,
            "missing": b.missing, "ids": b.ids, "reason": b.reason,
        }
        for b in verified.bad
    ]  # fmt: skip
    return {
        **{name: getattr(verified, name) for name in names},
        "compared": [_window(window) for window in verified.compared],
        "bad": bad,
        "unsure": [{**_window(u.window), "reason": u.reason} for u in verified.unsure],
        "error": None if verified.error is None else str(verified.error),
        "job_id": found.job.job_id if found.job else None,
        "job_status": found.job.status.value if found.job else None,
        "repaired": found.repaired if found.after else None,
    }


def _window(window: Window) -> dict[str, datetime]:
    return {"start": window.start, "end": window.end}


def _moments(window: Window) -> tuple[datetime, datetime]:
    return window.start, window.end


def _in_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
