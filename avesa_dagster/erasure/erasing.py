"""The steps of an erasure.

The order makes it safe to kill at any point and to run again: the tenant is disconnected first, so
that nothing writes; its registry row goes last but one, so that it can be found; a journal, which
says what was removed so far, goes last, when the receipt was delivered.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from avesa_dagster import __version__
from avesa_dagster.backfill.beats import STALE
from avesa_dagster.control.base import TenantService
from avesa_dagster.control.jobs import UNFINISHED, Job, JobStatus
from avesa_dagster.erasure.journal import Journal, Journals
from avesa_dagster.errors import ConfigurationError, RetriableError, Where
from avesa_dagster.installation import Installation
from avesa_dagster.names import checked

Say = Callable[[str], None]
"""Told in words what is being done."""
_LOOK_SECONDS = 0.5


class RunHistory(Protocol):
    """Where the orchestrator keeps what it knows of runs."""

    def under_way(self, tenant: str) -> list[str]:
        """Cancels what has not begun yet; returns what of the tenant runs, in words."""
        ...

    def erase(self, tenant: str, numbers: Collection[int], say: Say) -> Mapping[str, int]:
        """Removes what is of the tenant, and its name from what is also of others.

        May be called again.

        Args:
            numbers: Of its connections, as far as they are known.

        Returns:
            How many of what were removed.
        """
        ...

    def settle(self) -> None:
        """Waits until a daemon, if one runs, knows the tenant no more."""
        ...

    def compact(self) -> None:
        """Makes sure that what was removed is not in free pages of files either."""
        ...

    def named(self, tenant: str, numbers: Collection[int]) -> list[str]:
        """Where the tenant is still named, in words."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erasure removed; nothing of the tenant's data.

    Attributes:
        connections: Service and number of each connection. A number is never given again.
        objects, bytes: Of the lake.
        keys_sha256: SHA-256 over the sorted keys of these objects, each with a newline after it.
        rows: Table to rows removed. A row that was removed just before a kill may be missing.
        secrets: Services whose credentials were removed; `*` is a file that could not be read.
        runs: What was removed from the orchestrator: kind to number.
        not_erased: Where the tenant is still named or configured, in words.
        interruptions: Times that the erasure was begun and did not end.
    """

    tenant: str
    began_at: str
    erased_at: str
    avesa_version: str
    connections: list[dict[str, str | int]]
    objects: int
    bytes: int
    keys_sha256: str
    rows: dict[str, int]
    secrets: list[str]
    runs: dict[str, int]
    not_erased: list[str]
    interruptions: int

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def survey(
    installation: Installation, tenant: str, history: RunHistory
) -> tuple[list[TenantService], int, int]:
    """What there is to erase: connections, objects, and their bytes.

    Raises:
        ConfigurationError: The name is invalid, or nothing is known of the tenant.
    """
    held = installation.objects.list(f"{checked('tenant', tenant)}/")
    if not _known(installation, tenant, history):
        raise ConfigurationError(
            f"nothing is known of a tenant {tenant!r}",
            hint="avesa tenants lists those that are connected, or were",
        )
    return _connections(installation, tenant), len(held), sum(info.size for info in held)


def erase(
    installation: Installation,
    tenant: str,
    history: RunHistory,
    deliver: Callable[[Receipt], None],
    *,
    wait_seconds: float = 120.0,
    say: Say = lambda text: None,
) -> Receipt:
    """Removes a tenant: disconnects it, waits for its runs to end, and removes all it finds.

    Args:
        deliver: Given the receipt when all is done; only then the erasure counts as ended.
        wait_seconds: How long its runs may take to end.

    Raises:
        ConfigurationError: The name is invalid, nothing is known of the tenant, it was connected
            again meanwhile, or another erasure runs.
        RetriableError: Its runs did not end in time; it is disconnected, its records are there.
        StoreError: Something cannot be read or written. What was removed is in the journal; erasing
            again goes on.
    """
    checked("tenant", tenant)
    with installation.profile.alone():
        survey(installation, tenant, history)
        journals = Journals(installation.objects)
        journal = journals.open(tenant, installation.clock())
        journal.attempts += 1
        journals.save(tenant, journal)
        erasure = _Erasure(installation, tenant, history, journals, journal, say)
        return erasure.run(deliver, wait_seconds)


@dataclass(frozen=True, slots=True)
class _Erasure:
    """The steps, in their order."""

    installation: Installation
    tenant: str
    history: RunHistory
    journals: Journals
    journal: Journal
    say: Say

    def run(self, deliver: Callable[[Receipt], None], wait_seconds: float) -> Receipt:
        self._disconnect()
        self._stop(wait_seconds)
        self._remove_data()
        self._remove_connections()
        self.say("looking again")
        self.history.settle()
        if _connections(self.installation, self.tenant):
            raise self._connected_again()
        self._stop(wait_seconds)  # a daemon may have begun a run before it knew
        self._remove_data()
        self._compact()
        receipt = self._receipt()
        self.say("delivering the receipt")
        deliver(receipt)
        self.say("closing the journal")
        self.journals.remove(self.tenant)
        return receipt

    def _disconnect(self) -> None:
        self.say("disconnecting")
        rows = _connections(self.installation, self.tenant)
        for row in rows:
            self.journal.connections[row.service] = row.number
        self._save()
        for row in rows:
            if row.enabled:
                self.installation.control.registry.disconnect(
                    self.tenant, row.service, now=self.installation.clock()
                )
        self.installation.refresh_snapshot()

    def _stop(self, wait_seconds: float) -> None:
        self.say("waiting for its runs to end")
        deadline = time.monotonic() + wait_seconds
        while busy := self._under_way():
            if time.monotonic() > deadline:
                raise RetriableError(
                    f"still under way after {wait_seconds:.0f} s: {', '.join(busy)}",
                    where=Where(self.tenant),
                    hint="the tenant is disconnected, so that they end soon, or end them in the "
                    "Dagster UI; then run it again",
                )
            time.sleep(_LOOK_SECONDS)
        self._keep_disconnected()

    def _under_way(self) -> list[str]:
        control, now = self.installation.control, self.installation.clock()
        for job in control.jobs.find(self.tenant, statuses=UNFINISHED):
            control.jobs.change(job.job_id, lambda held: _cancelled(held, now), now=now)
        beating = control.processing.under_way(self.tenant, stale_before=now - STALE)
        fetching = {f"run {row.run_id} ({row.service} {row.table})" for row in beating}
        return sorted(fetching | set(self.history.under_way(self.tenant)))

    def _remove_data(self) -> None:
        """Everything but the registry's rows; may be called again."""
        self._remove_secrets()
        self._remove_objects()
        self._remove_rows()
        self.say("removing runs")
        found = self.history.erase(self.tenant, self._numbers(), self.say)
        self._add(self.journal.runs, found)

    def _remove_secrets(self) -> None:
        self.say("removing credentials")
        removed = self.installation.secrets.forget(self.tenant)
        self.journal.secrets = sorted({*self.journal.secrets, *removed})
        self._save()

    def _remove_objects(self) -> None:
        objects = self.installation.objects
        while held := objects.list(f"{self.tenant}/"):
            self.journal.objects |= {info.key: info.size for info in held}
            self._save()
            self.say(f"removing {len(held)} objects")
            for number, info in enumerate(held):
                objects.delete(info.key)
                if number % 100 == 99:
                    self.say(f"removed {number + 1} of {len(held)} objects")
        objects.prune(self.tenant)

    def _remove_rows(self) -> None:
        control, budget = self.installation.control, self.installation.budget
        known = {*self.installation.catalog.services, *self.journal.connections}
        tables: dict[str, Callable[[], int]] = {
            "LastUpdated": lambda: control.watermarks.forget(self.tenant),
            "ChunkProgress": lambda: control.ledger.forget(self.tenant),
            "BackfillJobs": lambda: control.jobs.forget(self.tenant),
            "ProcessingJobs": lambda: control.processing.forget(self.tenant),
            "Breakers": lambda: control.breakers.forget(self.tenant),
            "Counters": lambda: control.counters.forget(self.tenant),
            "Alarms": lambda: control.alarms.forget(self.tenant),
            "Drift": lambda: control.drift.forget(self.tenant),
            "Budget": lambda: sum(
                budget.forget(f"{service}/{self.tenant}") for service in sorted(known)
            ),
        }
        for table, forget in tables.items():
            self.say(f"removing rows of {table}")
            self._add(self.journal.rows, {table: forget()})

    def _remove_connections(self) -> None:
        self.say("removing the connection")
        removed = self.installation.control.registry.forget(self.tenant)
        self._add(self.journal.rows, {"TenantServices": removed})
        self._keep_disconnected()
        self.installation.refresh_snapshot()

    def _compact(self) -> None:
        self.say("rewriting the databases")
        self.installation.profile.compact()
        self.history.compact()

    def _keep_disconnected(self) -> None:
        if any(row.enabled for row in _connections(self.installation, self.tenant)):
            raise self._connected_again()

    def _connected_again(self) -> ConfigurationError:
        return ConfigurationError(
            "the tenant was connected again while it was being erased",
            where=Where(self.tenant),
            hint="erase it again, or connect it again: its credentials and its history may be gone",
        )

    def _numbers(self) -> list[int]:
        return sorted(self.journal.connections.values())

    def _add(self, to: dict[str, int], counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            to[name] = to.get(name, 0) + count
        self._save()

    def _save(self) -> None:
        self.journals.save(self.tenant, self.journal)

    def _receipt(self) -> Receipt:
        journal = self.journal
        keys = "".join(f"{key}\n" for key in sorted(journal.objects))
        return Receipt(
            tenant=self.tenant,
            began_at=journal.began_at,
            erased_at=self.installation.clock().isoformat(),
            avesa_version=__version__,
            connections=[
                {"service": service, "number": number}
                for service, number in sorted(journal.connections.items())
            ],
            objects=len(journal.objects),
            bytes=sum(journal.objects.values()),
            keys_sha256=hashlib.sha256(keys.encode()).hexdigest(),
            rows=dict(sorted(journal.rows.items())),
            secrets=journal.secrets,
            runs=dict(sorted(journal.runs.items())),
            not_erased=self._not_erased(),
            interruptions=journal.attempts - 1,
        )

    def _not_erased(self) -> list[str]:
        said = [
            f"credentials in the environment variable {name}"
            for name in self.installation.secrets.overrides(self.tenant)
        ]
        if self.tenant in self.installation.catalog.backfill.tenants:
            said.append("settings of its own in backfill_config.json")
        said += self.installation.profile.remains(self.tenant)
        return said + self.history.named(self.tenant, self._numbers())


def _connections(installation: Installation, tenant: str) -> list[TenantService]:
    return [row for row in installation.control.registry.all() if row.tenant == tenant]


def _known(installation: Installation, tenant: str, history: RunHistory) -> bool:
    """Whether anything of a tenant is found anywhere: a row, a file, a run."""
    control = installation.control
    rows = _connections(installation, tenant)
    return bool(
        rows
        or Journals(installation.objects).exists(tenant)
        or installation.objects.list(f"{tenant}/")
        or installation.profile.remains(tenant)
        or control.jobs.find(tenant, limit=1)
        or control.ledger.covered(tenant)
        or control.drift.log(tenant, limit=1)
        or any(alarm.tenant == tenant for alarm in control.alarms.all())
        or history.named(tenant, [row.number for row in rows])
    )


def _cancelled(job: Job, now: datetime) -> Job:
    if job.status not in UNFINISHED:
        return job
    note = "its tenant is being erased"
    return replace(job, status=JobStatus.CANCELLED, note=note, completed_at=now)
