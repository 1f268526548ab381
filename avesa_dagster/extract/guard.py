"""The breaker of one tenant's service, as an extraction meets it."""

from __future__ import annotations

from collections.abc import Callable

from avesa_dagster.control.health import Breaker, Breakers, BreakerState
from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    DataError,
    FatalError,
    PermissionRefused,
    RetriableError,
    Suspended,
    Where,
)
from avesa_dagster.sources.base import Clock

Probe = Callable[[], None]
"""Asks the service one cheap question; raises what went wrong."""


class Guard:
    """Keeps a run from asking a service that does not answer, and notices when it answers again.

    Failures of one window do not suspend a tenant: at the threshold the service is asked one cheap
    question, and only if that fails too, the breaker opens.

    Args:
        threshold: Failures in a row.
    """

    def __init__(
        self, breakers: Breakers, where: Where, threshold: int, probe: Probe, clock: Clock
    ) -> None:
        self._breakers = breakers
        self._where = where
        self._tenant, self._service = where.tenant or "", where.service or ""
        self._threshold = threshold
        self._probe = probe
        self._clock = clock
        self._exhausted = False

    def admit(self) -> None:
        """Lets the caller go on, or probes if it is time to.

        Raises:
            Suspended: The breaker is open.
            CredentialsRefused: The probe was refused.
        """
        breaker = self._breakers.get(self._tenant, self._service)
        if breaker.state is BreakerState.CLOSED:
            return
        if not self._breakers.probe(self._tenant, self._service, now=self._clock()):
            raise self._suspended(breaker)
        self._ask()

    def worked(self) -> None:
        """A chunk arrived."""
        if self._exhausted:  # this chunk was under way before
            return
        breaker = self._breakers.get(self._tenant, self._service)
        if breaker.failures or breaker.state is not BreakerState.CLOSED:
            self._breakers.succeeded(self._tenant, self._service)

    def failed(self, error: AvesaError) -> None:
        """Counts what speaks against the service as a whole.

        Raises:
            Suspended: The breaker opened.
        """
        if isinstance(error, PermissionRefused):  # one table, not the service
            return
        if isinstance(error, CredentialsRefused):
            self._count(error)
            return
        if not isinstance(error, RetriableError):
            return
        if isinstance(error, Suspended):  # the source knows that nothing will be answered
            self._exhausted = True
            self._count(error)
            return
        breaker = self._breakers.get(self._tenant, self._service)
        if breaker.failures + 1 >= self._threshold:
            self._ask()
            return
        if self._count(error).state is BreakerState.OPEN:  # others counted at the same moment
            self._ask()

    def _ask(self) -> None:
        try:
            self._probe()
        except PermissionRefused:
            self._breakers.succeeded(self._tenant, self._service)
        except CredentialsRefused as error:
            self._count(error)
            raise error.at(table=self._where.table) from None
        except (RetriableError, DataError) as error:
            raise self._suspended(self._count(error)) from None
        except ConfigurationError:  # nothing was asked
            raise
        except FatalError:  # this table is not there, and the service says so
            self._breakers.succeeded(self._tenant, self._service)
        else:
            self._breakers.succeeded(self._tenant, self._service)

    def _count(self, error: AvesaError) -> Breaker:
        return self._breakers.failed(
            self._tenant,
            self._service,
            str(error),
            credentials=isinstance(error, CredentialsRefused),
            at_once=isinstance(error, Suspended),
            now=self._clock(),
        )

    def _suspended(self, breaker: Breaker) -> Suspended:
        again = "" if breaker.probe_at is None else f" at {breaker.probe_at:%H:%M:%S} UTC"
        return Suspended(
            f"the service is suspended: {breaker.reason}",
            where=self._where,
            hint=f"nothing is lost; it is probed again{again} and goes on by itself",
        )
