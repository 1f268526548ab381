"""An embedded installation that is moved away: read, and never changed.

Its database is copied and the copy is opened: SQLite makes files beside a database even to read it,
and an older one would be upgraded.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from avesa_dagster.backfill.beats import STALE
from avesa_dagster.control.base import TenantService, Watermark
from avesa_dagster.control.health import Drift
from avesa_dagster.control.jobs import ACTIVE, PieceState
from avesa_dagster.control.secrets import FileSecrets, names_of
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.lake.objects import LocalObjects
from avesa_dagster.migration.rows import EVERY_LINE, Rows, drift_of
from avesa_dagster.names import NAME

_DATABASE = "control.db"
_TRIES = 5
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Home:
    """An embedded installation's parts, as they were when it was opened.

    Attributes:
        folder: Its AVESA_HOME.
        control: A copy of its control tables.
    """

    folder: Path
    control: SqliteControl
    objects: LocalObjects
    secrets: FileSecrets

    def tenants(self) -> list[str]:
        """Whoever is in the registry or has a folder in the lake or a file of credentials."""
        found = {row.tenant for row in self.control.registry.all()}
        lake, secrets = self.folder / "lake", self.folder / "secrets"
        if lake.is_dir():
            found |= {path.name for path in lake.iterdir() if path.is_dir()}
        found |= {path.stem for path in secrets.glob("*.json")}
        return sorted(name for name in found if NAME.fullmatch(name))

    def connections(self, tenant: str) -> list[TenantService]:
        return [row for row in self.control.registry.all() if row.tenant == tenant]

    def numbers_given(self) -> int:
        """The greatest number that any connection has or had."""
        query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'TenantServices'"
        return int(self._ask(query)[0][0])

    def busy(self, now: datetime) -> list[str]:
        """What of it is at work, in words."""
        jobs = [
            f"job {job.job_id} ({job.tenant} {job.service}) is {job.status.value}"
            if job.status in ACTIVE
            else f"job {job.job_id} ({job.tenant} {job.service}) has a run that was not seen to end"
            for job in self.control.jobs.find()
            if job.status in ACTIVE or any(p.state is PieceState.LAUNCHED for p in job.pieces)
        ]
        runs = self.control.processing.under_way(stale_before=now - STALE)
        return jobs + [f"run {row.run_id} fetches {row.tenant} {row.table}" for row in runs]

    def rows(self, tenant: str) -> Rows:
        """What is moved of a tenant besides its objects and connections."""
        return Rows(
            secrets=self._secrets(tenant),
            watermarks=self._watermarks(tenant),
            chunks={
                f"{service}/{table}/{token}/{chunk.chunk_id}": chunk
                for service, table, token in self._ask(
                    "SELECT DISTINCT service, table_name, token FROM ChunkProgress"
                    " WHERE tenant = ?",
                    tenant,
                )
                for chunk in self.control.ledger.rows(token, tenant, service, table)
            },
            jobs={job.job_id: job for job in self.control.jobs.find(tenant)},
            drift=self._drift(tenant),
        )

    def _secrets(self, tenant: str) -> dict[str, dict[str, str]]:
        path = self.folder / "secrets" / f"{tenant}.json"
        named = set(names_of(path.read_bytes())) if path.exists() else set()
        if named == {"*"}:
            raise ConfigurationError(
                f"{path} is no document of credentials",
                where=Where(tenant),
                hint="repair or remove it; nothing was moved",
            )
        found = {service: self.secrets.get(tenant, service) for service in sorted(named)}
        for row in self.connections(tenant):
            if row.service not in found and self.secrets.overrides(tenant):
                try:
                    found[row.service] = self.secrets.get(tenant, row.service)
                except ConfigurationError:
                    continue  # disconnected: it has none
        return found

    def _watermarks(self, tenant: str) -> dict[str, Watermark]:
        keys = self._ask("SELECT service, table_name FROM LastUpdated WHERE tenant = ?", tenant)
        found = {}
        for service, table in keys:
            mark = self.control.watermarks.get(tenant, service, table)
            if mark is not None:
                found[f"{service}/{table}"] = mark
        return found

    def _drift(self, tenant: str) -> dict[str, Any]:
        endpoints = self._ask(
            "SELECT service, table_name FROM DriftFields WHERE tenant = ?", tenant
        )
        lines: list[Drift] = self.control.drift.log(tenant, limit=EVERY_LINE)
        return drift_of(self.control.drift, tenant, endpoints, lines)

    def _ask(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self.control.database.read() as connection:
            found: list[tuple[Any, ...]] = connection.execute(query, values).fetchall()
        return found


@contextmanager
def opened(folder: Path) -> Iterator[Home]:
    """Opens the installation in a folder.

    Raises:
        ConfigurationError: There is none.
        StoreError: It cannot be read, or somebody keeps writing into it.
    """
    database = folder / "control" / _DATABASE
    if not database.is_file():
        raise ConfigurationError(
            f"{folder} is no embedded installation: it has no control/{_DATABASE}",
            hint="give the folder that was its AVESA_HOME",
        )
    with tempfile.TemporaryDirectory(prefix="avesa-migrate-") as scratch:
        copy = Path(scratch, _DATABASE)
        _copy(database, copy)
        control = SqliteControl(copy)
        try:
            secrets = FileSecrets(folder / "secrets", os.environ)
            yield Home(folder, control, LocalObjects(folder / "lake"), secrets)
        finally:
            control.close()


def _copy(database: Path, copy: Path) -> None:
    """Copies a database, with what is not yet merged into it, as of one moment."""
    names = ("", "-wal")
    for _ in range(_TRIES):
        before = [_state(Path(f"{database}{name}")) for name in names]
        try:
            for name, state in zip(names, before, strict=True):
                Path(f"{copy}{name}").unlink(missing_ok=True)
                if state is not None:
                    shutil.copyfile(f"{database}{name}", f"{copy}{name}")
        except OSError as error:
            raise StoreError(
                f"{database} cannot be copied: {error.strerror}",
                hint="check that it may be read, and the space in the temporary folder",
            ) from error
        if before == [_state(Path(f"{database}{name}")) for name in names] and _whole(copy):
            return
        time.sleep(_PAUSE_SECONDS)
    raise StoreError(
        f"{database} is corrupt, or is being written all the time",
        hint="stop whatever works with the installation, then run it again",
    )


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _whole(copy: Path) -> bool:
    try:
        with closing(sqlite3.connect(copy)) as connection:
            (said,) = connection.execute("PRAGMA quick_check").fetchone()
    except sqlite3.DatabaseError:
        return False
    return bool(said == "ok")
