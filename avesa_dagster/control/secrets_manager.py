"""Credentials of the aws profile: one secret `{tenant}/{environment}` a tenant in Secrets Manager,
a JSON object keyed by service.

A change is made to the version that was read, or not at all: the new version is stored beside it,
and the label AWSCURRENT moved from the one to the other, which AWS refuses if it is elsewhere by
then. So no two writers lose each other's service, and no reader sees half of one.
"""

from __future__ import annotations

import json
import secrets as randomness
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError

from avesa_dagster import aws, settings
from avesa_dagster.control.dynamo_locks import DynamoLocks
from avesa_dagster.control.secrets import as_fields, as_object, names_of
from avesa_dagster.errors import ConfigurationError, RetriableError, Where
from avesa_dagster.names import checked

_CURRENT = "AWSCURRENT"
_TRIES = 50
_NEXT = "avesa-next"
"""Label of the version that was stored last: without one it might be removed before it is current.
Always the same, for a secret bears no more than twenty."""
_ABSENT = "ResourceNotFoundException"
_DELETED = "InvalidRequestException"
_OVERTAKEN = (_ABSENT, _DELETED, "InvalidParameterException", "ResourceExistsException")
"""How AWS says that a secret, or the label of a version, is not where it was a moment ago."""
_DELETION_SECONDS = 60.0
"""A removal without a recovery window takes AWS a moment."""
_LOOK_SECONDS = 2.0

Services = dict[str, object]


class _BeingDeleted(ConfigurationError):
    """The secret is neither there nor gone."""


class SecretsManagerSecrets:
    """Implements `control.base.Secrets`.

    Args:
        where: Whose environment ends the secrets' names.
        locks: For `exclusive`.
        cached: Seconds for which what was read is not read again by this object.
    """

    def __init__(self, where: settings.Aws, locks: DynamoLocks, *, cached: float = 5.0) -> None:
        self._environment = where.environment
        self._locks = locks
        self._cached = cached
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Services]] = {}

    def get(self, tenant: str, service: str, *, fresh: bool = False) -> dict[str, str]:
        """See Secrets.get.

        Raises:
            ConfigurationError: There are none, or they are no JSON object of texts.
            RetriableError, StoreError: AWS.
        """
        where = Where(checked("tenant", tenant), checked("service", service))
        with self._lock:
            read_at, held = self._known.get(tenant, (0.0, {}))
        if fresh or service not in held or time.monotonic() - read_at > self._cached:
            _, held = self._read(tenant, where)
            with self._lock:
                self._known[tenant] = (time.monotonic(), held)
        name = self._name(tenant)
        if service not in held:
            raise ConfigurationError(
                f"there are no credentials in secret {name}",
                where=where,
                hint="connect the service: avesa connect",
            )
        return as_fields(held[service], f"secret {name}", where)

    def put(self, tenant: str, service: str, values: dict[str, str]) -> None:
        """Stores the fields of one service in place of those that were there.

        Raises:
            ConfigurationError: The fields are empty or no texts, or what is there is unreadable; it
                is left as it is.
            RetriableError, StoreError: AWS; what was there is kept.
        """
        where = Where(checked("tenant", tenant), checked("service", service))
        fields = as_fields(values, "the argument", where)
        self._change(tenant, lambda held: {**held, service: fields}, where)

    def remove(self, tenant: str, service: str) -> None:
        """Forgets one service's fields; the last one takes the secret with it."""
        where = Where(checked("tenant", tenant), checked("service", service))

        def without(held: Services) -> Services | None:
            if service not in held:
                return None
            return {name: fields for name, fields in held.items() if name != service}

        if self._change(tenant, without, where) == {}:
            self._delete(tenant, where)

    def forget(self, tenant: str) -> list[str]:
        """See Secrets.forget. Removed at once: no recovery window."""
        where = Where(checked("tenant", tenant))
        try:
            document = self._document(tenant, where)
        except _BeingDeleted:
            document = None
        self._delete(tenant, where)
        return [] if document is None else names_of(document[1].encode())

    @contextmanager
    def exclusive(self, tenant: str, service: str) -> Iterator[None]:
        """See Secrets.exclusive."""
        where = Where(checked("tenant", tenant), checked("service", service))
        with self._locks.exclusive(f"secret/{tenant}/{service}", where):
            self._reread(tenant)
            yield

    def overrides(self, tenant: str) -> list[str]:
        """See Secrets.overrides: the environment is not asked here."""
        return []

    def remains(self, tenant: str) -> list[str]:
        """The tenant's secret, in words, if AWS has not removed it yet."""
        try:
            self._document(tenant, Where(tenant))
        except _BeingDeleted as error:
            return [f"{error.what} by AWS; look again in a while"]
        return []

    def _reread(self, tenant: str) -> None:
        with self._lock:
            self._known.pop(tenant, None)

    def _name(self, tenant: str) -> str:
        return f"{tenant}/{self._environment}"

    @property
    def _client(self) -> Any:
        return aws.client("secretsmanager")

    def _document(self, tenant: str, where: Where) -> tuple[str, str] | None:
        """Version and text; None if there is no secret."""
        name = self._name(tenant)
        with aws.explained(f"secret {name}", where):
            try:
                answer = self._client.get_secret_value(SecretId=name, VersionStage=_CURRENT)
            except ClientError as error:
                if aws.code_of(error) == _ABSENT:
                    return None
                if aws.code_of(error) == _DELETED:
                    raise _BeingDeleted(
                        f"secret {name} is being deleted",
                        where=where,
                        hint="restore it in Secrets Manager, or wait until it is gone",
                    ) from None
                raise
        text = answer.get("SecretString")
        if text is None:
            raise ConfigurationError(
                f"secret {name} holds bytes, not text", where=where, hint="store a JSON object"
            )
        return answer["VersionId"], text

    def _read(self, tenant: str, where: Where) -> tuple[str | None, Services]:
        document = self._document(tenant, where)
        if document is None:
            return None, {}
        version, text = document
        return version, as_object(text, f"secret {self._name(tenant)}", where)

    def _change(
        self, tenant: str, change: Callable[[Services], Services | None], where: Where
    ) -> Services | None:
        """Returns what holds afterwards; None: nothing was to be changed."""
        deadline = time.monotonic() + _DELETION_SECONDS
        for _ in range(_TRIES):
            try:
                version, held = self._read(tenant, where)
                wanted = change(held)
                if wanted is None:
                    return None
                if self._replace(tenant, version, json.dumps(wanted, sort_keys=True), where):
                    self._reread(tenant)
                    return wanted
            except _BeingDeleted:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
        raise RetriableError(
            f"others keep changing secret {self._name(tenant)}",
            where=where,
            hint="what was there is kept; run it again",
        )

    def _replace(self, tenant: str, version: str | None, text: str, where: Where) -> bool:
        """Whether the secret held that version until now."""
        name = self._name(tenant)
        token = randomness.token_hex(16)  # the new version's id: a repeated request is the same one
        with aws.explained(f"secret {name}", where):
            try:
                if version is None:
                    self._client.create_secret(
                        Name=name, SecretString=text, ClientRequestToken=token
                    )
                    return True
                self._client.put_secret_value(
                    SecretId=name,
                    SecretString=text,
                    ClientRequestToken=token,
                    VersionStages=[_NEXT],
                )
                self._client.update_secret_version_stage(
                    SecretId=name,
                    VersionStage=_CURRENT,
                    MoveToVersionId=token,
                    RemoveFromVersionId=version,
                )
            except ClientError as error:
                return self._mine(error, tenant, token, where)
        return True

    def _mine(self, error: ClientError, tenant: str, token: str, where: Where) -> bool:
        """After a refusal: whether an earlier try, of which the answer was lost, took effect.

        Raises:
            ClientError: It is a failure of another kind.
        """
        if aws.code_of(error) not in _OVERTAKEN:
            raise error
        document = self._document(tenant, where)
        return document is not None and document[0] == token

    def _delete(self, tenant: str, where: Where) -> None:
        name = self._name(tenant)
        with aws.explained(f"secret {name}", where):
            try:
                self._client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
            except ClientError as error:
                if aws.code_of(error) not in (_ABSENT, _DELETED):
                    raise
        self._reread(tenant)
