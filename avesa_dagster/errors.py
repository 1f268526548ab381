"""One tree of errors, by what the caller can do about them.

Every error says what failed, for whom (tenant, service, table, window), what was kept and what
to do next. Texts never carry a credential: they are built from names and numbers only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Where:
    """Whose data an error is about. Every part is optional; an unknown part stays out."""

    tenant: str | None = None
    service: str | None = None
    table: str | None = None
    window: str | None = None

    def __str__(self) -> str:
        parts = [
            f"{field.name}={value}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        ]
        return " ".join(parts)


class AvesaError(Exception):
    """Base of all errors that AVESA raises on purpose.

    Args:
        what: One sentence: what failed, and where in the input.
        where: Tenant, service, table and window, as far as they are known.
        hint: What to do about it; also says what was kept when that matters.
    """

    def __init__(self, what: str, *, where: Where | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where or Where()
        self.hint = hint
        super().__init__(what, where, hint)

    def at(
        self,
        *,
        tenant: str | None = None,
        service: str | None = None,
        table: str | None = None,
        window: str | None = None,
    ) -> Self:
        """Fills in what the place that raised did not know; never overwrites."""
        self.where = Where(
            self.where.tenant or tenant,
            self.where.service or service,
            self.where.table or table,
            self.where.window or window,
        )
        return self

    def __str__(self) -> str:
        text = self.what
        if where := str(self.where):
            text += f" [{where}]"
        if self.hint:
            text += f" — {self.hint}"
        return text


class FatalError(AvesaError):
    """Trying again cannot help; a person has to act."""


class CredentialsRefused(FatalError):
    """The service refused the tenant's credentials (401)."""


class PermissionRefused(CredentialsRefused):
    """The credentials are known, but may not do this (403)."""


class ConfigurationError(FatalError):
    """Settings, mappings, names or arguments are wrong; the text says which and what is allowed."""


class RetriableError(AvesaError):
    """The same request may succeed later.

    Args:
        retry_after: Seconds that the service asked to wait, if it did.
    """

    def __init__(
        self,
        what: str,
        *,
        where: Where | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.retry_after = retry_after


class TimedOut(RetriableError):
    """The service took too long; asking for less may help."""


class TooMuch(TimedOut):
    """The service gave up on the request: the same one again would be as much."""


class Suspended(RetriableError):
    """Nothing is asked of this tenant's service for now: its breaker is open, or what the service
    allows in a day is used up."""


class DataError(AvesaError):
    """What the service sent cannot be taken as the truth: counts, windows or records disagree."""


class RecordsRejected(DataError):
    """Records that cannot be stored as they are; they lie beside the raw objects."""


class BulkUnusable(DataError):
    """What a service gave in bulk, or its refusal to: its pages tell the same."""


class BulkGone(BulkUnusable):
    """The service does not keep a bulk job, or its place in it, any more: a new one may do."""


class MassDeletionSuspected(DataError):
    """A sweep would delete more than the set share; a lost permission looks the same."""


class StoreError(AvesaError):
    """The lake or a control table cannot be read or written (disk full, corrupt, no permission)."""


class Stopped(AvesaError):
    """The run was told to stop; nothing failed, and what was stored stays."""
