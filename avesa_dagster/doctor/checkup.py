"""Which checks there are for an installation, in which order, and what needs what."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from avesa_dagster.doctor import machine
from avesa_dagster.doctor.findings import Check, Findings, warning, well
from avesa_dagster.doctor.tenants import Tenants
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Aws, Settings
from avesa_dagster.watch.recipients import notifiers

if TYPE_CHECKING:
    from avesa_dagster.doctor.account import Account

Open = Callable[[], Installation]


@dataclass
class Checkup:
    """The checks of one installation; what one finds out, later ones use.

    Args:
        installation: Opened by the first check: settings that are wrong are a finding.
        probe: Ask each connected service once.
    """

    open: Open
    probe: bool = False
    opened: Installation | None = None
    _account: Account | None = field(default=None, repr=False)
    _tenants: Tenants | None = field(default=None, repr=False)

    @property
    def installation(self) -> Installation:
        assert self.opened is not None, "the check of the settings comes first"
        return self.opened

    @property
    def settings(self) -> Settings:
        return self.installation.settings

    @property
    def tenants(self) -> Tenants:
        if self._tenants is None:
            self._tenants = Tenants(self.installation)
        return self._tenants

    def first(self) -> list[Check]:
        """What every installation is asked; says which profile it has."""
        return [
            Check("settings", "settings", self._settings),
            Check("software", "Python and packages", machine.software),
            Check("limits", "open files", machine.limits),
        ]

    def then(self) -> list[Check]:
        """What the profile and the tenants are asked. The settings were read before."""
        aws = self.settings.aws
        own = self._embedded() if aws is None else self._aws(aws)
        tables = ("mappings", "home") if aws is None else ("mappings", "account", "tables")
        tenants = (*tables, "registry")
        snapshot = (*tenants, "bucket") if aws else tenants
        asked = Check("probe", "each service, asked once", lambda: self.tenants.probe(), tenants)
        reached = Check("reach", "hosts of the services", lambda: self.tenants.reach(), tenants)
        return [
            Check("mappings", "mappings", self._mappings),
            *own,
            Check("registry", "what is connected", lambda: self.tenants.registry(), tables),
            Check("snapshot", "registry snapshot", lambda: self.tenants.snapshot(), snapshot),
            Check("secrets", "credentials", lambda: self.tenants.credentials(), tenants),
            asked if self.probe else reached,
            Check("items", "control tables", lambda: self.tenants.items(), tenants),
            Check("health", "breakers and alarms", lambda: self.tenants.health(), tenants),
            Check("alerts", "who is told of alarms", self._alerts),
        ]

    def _settings(self) -> Findings:
        self.opened = self.open()
        settings = self.opened.settings
        if settings.aws is None:
            yield well(f"profile embedded, in {settings.home}")
        else:
            yield well(
                f"profile aws, environment {settings.aws.environment}, bucket {settings.aws.bucket}"
            )
            yield from _mixed(settings.aws)

    def _mappings(self) -> Findings:
        catalog = self.installation.catalog
        yield well(
            f"{len(catalog.services)} services, {len(catalog.canonical)} canonical tables",
            str(self.settings.mappings),
        )

    def _alerts(self) -> Findings:
        told = [one.name for one in notifiers(self.settings.home, os.environ)]
        yield well(", ".join(told) if told else "the log only")

    def _embedded(self) -> list[Check]:
        return [Check("home", "AVESA_HOME", lambda: machine.home(self.settings.home))]

    def _aws(self, where: Aws) -> list[Check]:
        # boto3 is no part of the embedded profile.
        from avesa_dagster.doctor import account, bucket, permissions, tables

        account_of = self._known_account
        known = ("clock", "account")
        return [
            Check("disk", "room for uploads", machine.temporary),
            Check("clock", "clock", lambda: account.clock(self.installation.clock)),
            Check("account", "AWS account", self._identity, ("clock",)),
            Check("tables", "tables in DynamoDB", lambda: tables.look(where), known),
            Check(
                "tables_allowed",
                "permissions on tables",
                lambda: permissions.on_tables(where),
                known,
            ),
            Check("bucket", "bucket", lambda: bucket.look(where.bucket, account_of()), known),
            Check(
                "bucket_allowed",
                "reading and writing objects",
                lambda: bucket.promises(where.bucket),
                (*known, "bucket"),
            ),
            Check(
                "secrets_allowed",
                "permissions on secrets",
                lambda: permissions.on_secrets(where),
                known,
            ),
        ]

    def _identity(self) -> Findings:
        from avesa_dagster.doctor.account import identity

        self._account = identity()
        yield well(f"{self._account.number} in {self._account.region}, as {self._account.who}")

    def _known_account(self) -> Account:
        assert self._account is not None, "the check of the account comes first"
        return self._account


def _mixed(where: Aws) -> Findings:
    """Whether the bucket has the name of another environment's."""
    ends = re.search(r"[-.](dev|test|staging|stage|prod)$", where.bucket)
    if ends and not where.environment.startswith(ends[1]):
        yield warning(
            f"AVESA_ENVIRONMENT is {where.environment}, and the bucket's name ends with {ends[1]}",
            where.bucket,
            "two environments must never share a bucket: check AVESA_BUCKET and AVESA_ENVIRONMENT",
        )
