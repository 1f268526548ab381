"""The two profiles: what an installation is made of, and where it lies. The one place that chooses.

Nothing is opened before it is used; no AWS library is imported by the embedded profile.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from avesa_dagster.catalog.models import BreakerSettings
from avesa_dagster.control.base import Secrets
from avesa_dagster.control.compaction import compact
from avesa_dagster.control.health import DriftLog
from avesa_dagster.control.jobs import ProcessingJobs
from avesa_dagster.control.secrets import FileSecrets
from avesa_dagster.control.snapshot import FileSnapshot, Snapshot
from avesa_dagster.control.sqlite import SqliteControl
from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.lake.objects import LocalObjects, Objects
from avesa_dagster.lake.snapshot import FOLDER, ObjectSnapshot
from avesa_dagster.settings import Aws, Settings
from avesa_dagster.sources.budget import Budget, SqliteBudget
from avesa_dagster.watch.stores import Stores

if TYPE_CHECKING:
    from avesa_dagster.control.dynamo import DynamoControl
    from avesa_dagster.control.secrets_manager import SecretsManagerSecrets
    from avesa_dagster.lake.s3 import S3Objects
    from avesa_dagster.sources.dynamo_budget import DynamoBudget


class Control(Stores, Protocol):
    """The control tables."""

    @property
    def processing(self) -> ProcessingJobs: ...

    @property
    def drift(self) -> DriftLog: ...

    def close(self) -> None: ...


class Profile(Protocol):
    """What an installation is made of."""

    @property
    def objects(self) -> Objects: ...

    @property
    def control(self) -> Control: ...

    @property
    def secrets(self) -> Secrets: ...

    @property
    def budget(self) -> Budget: ...

    @property
    def snapshot(self) -> Snapshot: ...

    def alone(self) -> AbstractContextManager[None]:
        """A block that one process of the installation is in at a time: erasing a tenant.

        Raises:
            ConfigurationError, StoreError: Another one is in it.
        """
        ...

    def compact(self) -> None:
        """What was removed is not in free pages of files, or earlier versions of them, either."""
        ...

    def remains(self, tenant: str) -> list[str]:
        """Where something of a tenant lies that the parts do not know, in words."""
        ...


class Embedded:
    """Everything in the folder AVESA_HOME, on one machine.

    Args:
        breaker: When breakers open, and for how long.
        now: For removing what killed writers left.
    """

    def __init__(self, settings: Settings, breaker: BreakerSettings, now: datetime) -> None:
        self._settings = settings
        self._breaker = breaker
        self._now = now

    @cached_property
    def objects(self) -> LocalObjects:
        objects = LocalObjects(self._settings.lake)
        objects.clean(self._now.timestamp())
        return objects

    @cached_property
    def control(self) -> SqliteControl:
        self._settings.make_home()
        return SqliteControl(self._settings.control / "control.db", breaker=self._breaker)

    @cached_property
    def secrets(self) -> FileSecrets:
        return FileSecrets(self._settings.secrets, os.environ)

    @cached_property
    def budget(self) -> SqliteBudget:
        return SqliteBudget(self._settings.control / "budget.db")

    @cached_property
    def snapshot(self) -> FileSnapshot:
        return FileSnapshot(self._settings.snapshot)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See Profile.alone."""
        path = self._settings.control / ".erasing.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written: {error.strerror}",
                hint="check AVESA_HOME and its owner",
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    "another erasure runs in this installation", hint="wait until it has ended"
                ) from None
            yield

    def compact(self) -> None:
        """See Profile.compact."""
        for name in ("control.db", "budget.db"):
            compact(self._settings.control / name)

    def remains(self, tenant: str) -> list[str]:
        """See Profile.remains."""
        said = [
            str(path)
            for path in (self._settings.lake / tenant, self._settings.secrets / f"{tenant}.json")
            if path.exists()
        ]
        corrupt = self._settings.control / "budget.db.corrupt"
        name = re.compile(rb"/%b(?![a-z0-9_-])" % tenant.encode())
        if corrupt.exists() and name.search(corrupt.read_bytes()):
            said.append(f"{corrupt}, which was kept because it is corrupt")
        return said


class OnAws:
    """Objects in S3, tables in DynamoDB, secrets in Secrets Manager: any number of hosts."""

    def __init__(self, aws: Aws, breaker: BreakerSettings) -> None:
        self._aws = aws
        self._breaker = breaker

    @cached_property
    def objects(self) -> S3Objects:
        from avesa_dagster.lake.s3 import S3Objects

        return S3Objects(self._aws.bucket)

    @cached_property
    def control(self) -> DynamoControl:
        from avesa_dagster.control.dynamo import DynamoControl

        return DynamoControl(self._aws, breaker=self._breaker)

    @cached_property
    def secrets(self) -> SecretsManagerSecrets:
        from avesa_dagster.control.dynamo_locks import DynamoLocks
        from avesa_dagster.control.secrets_manager import SecretsManagerSecrets

        return SecretsManagerSecrets(self._aws, DynamoLocks(self.control.database))

    @cached_property
    def budget(self) -> DynamoBudget:
        from avesa_dagster.sources.dynamo_budget import DynamoBudget

        return DynamoBudget(self.control.database)

    @cached_property
    def snapshot(self) -> ObjectSnapshot:
        return ObjectSnapshot(self.objects)

    def alone(self) -> AbstractContextManager[None]:
        """See Profile.alone."""
        from avesa_dagster.control.dynamo_locks import DynamoLocks

        return DynamoLocks(self.control.database, patience=30.0).exclusive("erasure", Where())

    def compact(self) -> None:
        """See Profile.compact: earlier versions of the registry's snapshot go.

        The tables are AWS's; so are their backups, and they end by age.
        """
        self.objects.forget_replaced(FOLDER)

    def remains(self, tenant: str) -> list[str]:
        """See Profile.remains."""
        return self.secrets.remains(tenant)


def profile_of(settings: Settings, breaker: BreakerSettings, now: datetime) -> Profile:
    """The profile that the settings name."""
    if settings.aws is not None:
        return OnAws(settings.aws, breaker)
    return Embedded(settings, breaker, now)
