"""Credentials of the embedded profile: one private file a tenant, or the environment.

No value ever stands in an exception, a repr or a log line. Where an error of the JSON parser is
met, AVESA's own is raised after it was dropped: `raise ... from None` would still carry the
document in `__context__`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from avesa_dagster.errors import ConfigurationError, StoreError, Where
from avesa_dagster.names import NAME, checked

_log = logging.getLogger(__name__)
_LOCK_SECONDS = 30.0
_EXCLUSIVE_SECONDS = 300.0
"""A block under `exclusive` asks the service, which may take as long as its retries."""


def secret_variable(tenant: str, service: str) -> str:
    """Name of the environment variable that overrides the file for one tenant and service.

    `AVESA_SECRET_{TENANT}_{SERVICE}` in upper case, with `-` written as `__D` and `_` as `__U`.
    So `a-b` and `a_b` never share a variable, and neither do (a, b-c) and (a-b, c): a single
    underscore only ever stands between tenant and service.

    Example: (acme, connectwise) is `AVESA_SECRET_ACME_CONNECTWISE`, (acme-corp, connectwise) is
    `AVESA_SECRET_ACME__DCORP_CONNECTWISE`.

    Raises:
        ConfigurationError: If a name is invalid.
    """
    names = (checked("tenant", tenant), checked("service", service))
    return "AVESA_SECRET_" + "_".join(
        name.replace("_", "__U").replace("-", "__D").upper() for name in names
    )


class FileSecrets:
    """Implements `control.base.Secrets` over `{folder}/{tenant}.json`.

    The folder is made with mode 0700, the files with 0600. A file is replaced whole, under a lock
    between processes, so no reader sees half of it and no two writers lose each other's service.

    Args:
        folder: Where the files lie.
        environ: The environment, usually `os.environ`. A variable named by `secret_variable`
            holds the JSON object {field: value} and wins over the file.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ

    def get(self, tenant: str, service: str, *, fresh: bool = False) -> dict[str, str]:
        """See Secrets.get.

        Raises:
            ConfigurationError: If there are none, they are no JSON object of strings, or group or
                others can read the file.
            StoreError: If the disk fails.
        """
        variable = secret_variable(tenant, service)
        where = Where(tenant, service)
        path = self._path(tenant)
        if variable in self._environ:
            return as_fields(as_object(self._environ[variable], variable, where), variable, where)
        held = self._read(path, where)
        if service not in held:
            raise ConfigurationError(
                f"there are no credentials in {path}",
                where=where,
                hint=f"connect the service, or set {variable} to a JSON object",
            )
        return as_fields(held[service], str(path), where)

    def put(self, tenant: str, service: str, values: dict[str, str]) -> None:
        """Stores the fields of one service in place of those that were there.

        Raises:
            ConfigurationError: If the fields are empty or no strings, or the file that is there
                is unreadable, no JSON object, or open to others; it is left as it is.
            StoreError: If the disk fails; the old file is left whole.
        """
        variable = secret_variable(tenant, service)
        where = Where(tenant, service)
        path = self._path(tenant)
        fields = as_fields(values, "the argument", where)
        with self._locked():
            held = self._read(path, where)
            held[service] = fields
            self._replace(path, held)
        if variable in self._environ:
            _log.warning(
                "%s is set and wins over the credentials just stored [%s]", variable, where
            )

    def remove(self, tenant: str, service: str) -> None:
        """Forgets one service's fields; the last one takes the file with it. None is no error.

        Raises:
            ConfigurationError: As in `put`.
            StoreError: If the disk fails; the old file is left whole.
        """
        where = Where(checked("tenant", tenant), checked("service", service))
        path = self._path(tenant)
        with self._locked():
            held = self._read(path, where)
            if held.pop(service, None) is None:
                return
            if held:
                self._replace(path, held)
            else:
                with _store_errors(path):
                    path.unlink()
                    _sync_folder(self._folder)

    def forget(self, tenant: str) -> list[str]:
        """See Secrets.forget. Variables of the environment stay; `overrides` names them.

        Raises:
            ConfigurationError: The name is invalid.
            StoreError: The disk fails.
        """
        path = self._path(tenant)
        with self._locked(), _store_errors(path):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                content = b"{}"
            held = names_of(content)
            for leftover in (*self._folder.glob(f".{tenant}.*.lock"), _staged(path), path):
                leftover.unlink(missing_ok=True)
            _sync_folder(self._folder)
        return held

    @contextmanager
    def exclusive(self, tenant: str, service: str) -> Iterator[None]:
        """See Secrets.exclusive. By a lock file of its own for each tenant and service.

        Raises:
            ConfigurationError: A name is invalid.
            StoreError: The disk fails, or another holder does not come to an end.
        """
        names = checked("tenant", tenant), checked("service", service)
        with self._locked(f".{'.'.join(names)}.lock", _EXCLUSIVE_SECONDS):
            yield

    def overrides(self, tenant: str) -> list[str]:
        """Names of the environment's variables that hold credentials of a tenant, sorted."""
        prefix = secret_variable(tenant, "x").removesuffix("X")
        # `_` after the prefix goes on with the name of another tenant, `__D` for example.
        return sorted(
            name
            for name in self._environ
            if name.startswith(prefix) and not name.startswith(f"{prefix}_")
        )

    def _path(self, tenant: str) -> Path:
        return self._folder / f"{checked('tenant', tenant)}.json"

    def _read(self, path: Path, where: Where) -> dict[str, object]:
        with _store_errors(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return {}
            with os.fdopen(descriptor, "rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = b"" if mode & 0o077 else file.read()
        if mode & 0o077:
            raise ConfigurationError(
                f"{path} can be read by others (mode {mode:04o})",
                where=where,
                hint=f"run: chmod 600 {path}",
            )
        return as_object(content, str(path), where)

    def _replace(self, path: Path, held: dict[str, object]) -> None:
        # One fixed name is enough under the lock, and a killed writer leaves at most one file.
        fresh = _staged(path)
        with _store_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(fresh, flags, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(json.dumps(held, indent=2, sort_keys=True).encode())
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
                _sync_folder(self._folder)
            except OSError:
                fresh.unlink(missing_ok=True)
                raise

    @contextmanager
    def _locked(self, name: str = ".lock", seconds: float = _LOCK_SECONDS) -> Iterator[None]:
        lock = self._folder / name
        with _store_errors(lock):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + seconds
            while not _try_lock(descriptor, lock):
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{lock} was held by another process for {seconds:.0f} s",
                        hint="look for an `avesa` process that hangs; nothing was written",
                    )
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)  # releases the lock


def _staged(path: Path) -> Path:
    """Where the next content of a file is written."""
    return path.with_name(f".{path.name}.new")


def names_of(document: bytes) -> list[str]:
    """Names of the services in a document of credentials; `*` if it cannot be read."""
    try:
        held = json.loads(document)
    except (ValueError, RecursionError):
        return ["*"]
    known = isinstance(held, dict) and all(NAME.fullmatch(name) for name in held)
    return sorted(held) if known else ["*"]


def _try_lock(descriptor: int, path: Path) -> bool:
    with _store_errors(path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot read or write {path}: {error.strerror}",
            hint="check its permissions and the disk; the credentials that were there are kept",
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_object(document: str | bytes, source: str, where: Where) -> dict[str, object]:
    """A document's JSON object. Raises ConfigurationError, with nothing of the document in it."""
    problem = "is no JSON object"
    parsed: object = None
    try:
        parsed = json.loads(document)
    except json.JSONDecodeError as error:
        problem = f"is no valid JSON (line {error.lineno}, column {error.colno})"
    except (ValueError, RecursionError):  # not UTF-8, a number of thousands of digits, too deep
        problem = "is no valid JSON"
    if not isinstance(parsed, dict):
        raise ConfigurationError(f"{source} {problem}", where=where, hint="repair or replace it")
    return parsed


def as_fields(values: object, source: str, where: Where) -> dict[str, str]:
    """The fields of one service. Raises ConfigurationError, with nothing of them in it."""
    # Names of fields stay out of the error too: in a mangled object they may be the secret.
    fields: dict[str, str] = {}
    if isinstance(values, dict):
        for name, value in values.items():
            if isinstance(name, str) and isinstance(value, str):
                fields[name] = value
        if fields and len(fields) == len(values):
            return fields
    raise ConfigurationError(
        f"the credentials in {source} are no JSON object of texts with at least one field",
        where=where,
        hint='write {"field": "value", ...}; put numbers in quotes',
    )
