"""Objects: written whole or not at all.

A key names bytes. A reader sees all of an object's bytes or no object; nothing half-written is
ever listed. `LocalObjects` keeps them as files; `lake.s3.S3Objects` keeps them in a bucket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

import duckdb

from avesa_dagster.errors import StoreError

_ABSENT = (FileNotFoundError, NotADirectoryError)
"""Below a file there is no object either, just as in S3."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A listed object. `tag` changes whenever the object is replaced.

    `written` is when it was last written, by the store's own clock.
    """

    key: str
    size: int
    tag: str
    written: datetime


class Conflict(StoreError):
    """A conditional write found another state than it expected; nothing was written."""


class Objects(Protocol):
    def create(self, key: str) -> AbstractContextManager[Path]:
        """Yields a path to write the object's bytes to; publishes them when the block ends.

        An exception in the block leaves nothing behind. An object of that key is replaced.
        """
        ...

    def put(self, key: str, data: bytes) -> ObjectInfo: ...

    def put_if(self, key: str, data: bytes, *, tag: str | None) -> ObjectInfo:
        """Writes only if the object's tag is `tag` (None: only if there is no object).

        Raises:
            Conflict: Somebody else wrote first.
        """
        ...

    def get(self, key: str) -> bytes:
        """Raises KeyError if there is no such object."""
        ...

    def stat(self, key: str) -> ObjectInfo | None: ...

    def list(self, prefix: str) -> list[ObjectInfo]:
        """All objects whose key begins with `prefix` (a folder: ends with `/`), by key."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; none there is no error."""
        ...

    def location(self, key: str) -> str:
        """A path or URL that DuckDB can read, once `attach` was called for its connection."""
        ...

    def attach(self, connection: duckdb.DuckDBPyConnection, *, tenant: str | None = None) -> None:
        """Lets a connection read locations, before anything locks it.

        Args:
            connection: The database; it may read objects, and neither write nor list them.
            tenant: Only what lies below this one's prefix, where the objects are read for DuckDB;
                paths that DuckDB opens by itself are the lock's to forbid (`sandbox.lock`).
        """
        ...

    def open(self, key: str) -> io.BufferedIOBase:
        """An object's bytes, as a file that seeks. Raises KeyError if there is no such object."""
        ...

    def clean(self, now: float) -> None:
        """Removes what killed writers left unpublished more than a day ago.

        Args:
            now: Seconds since the epoch.
        """
        ...

    def prune(self, folder: str) -> int:
        """Removes whatever deleted objects of a folder leave: no trace of them remains.

        No writer may be at work below the first part of its name: a tenant's.

        Returns:
            How many remains there were.
        """
        ...


ABANDONED_SECONDS = 24 * 3600
"""A write that began so long ago, and was never published, is nobody's any more."""


def checked_key(key: str) -> str:
    """The key, if it names an object, or a folder (then it ends with `/`), within the lake.

    Raises:
        StoreError: It does not.
    """
    if any(part in ("", ".", "..") for part in key.rstrip("/").split("/")):
        raise StoreError(f"{key!r} is no key of an object")
    return key


def with_slash(prefix: str) -> str:
    """A folder's key, checked, with the slash that ends it."""
    return checked_key(prefix).rstrip("/") + "/"


@contextmanager
def explained_files(root: Path, key: str) -> Iterator[None]:
    """Turns what the system says of files below `root` into `StoreError`."""
    try:
        yield
    except OSError as error:
        hint = "check the folder's owner and permissions, and that the disk is well"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space and run it again; what was stored before is whole"
        raise StoreError(
            f"{root}: {key} cannot be read or written: {error.strerror or error}",
            hint=hint,
        ) from error


class LocalObjects:
    """Objects as files below a folder.

    Args:
        root: The folder; made when the first object is written.
    """

    _STAGING = ".staging"

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def clean(self, now: float) -> None:
        """Removes what killed writers left in staging more than a day ago.

        Args:
            now: Seconds since the epoch.
        """
        for path in (self.root / self._STAGING).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - ABANDONED_SECONDS:
                    path.unlink()

    def prune(self, folder: str) -> int:
        """Removes a folder without objects: whatever is in it that is no object, and what killed
        writers left in staging for all that its name begins with. See Objects.prune.

        Returns:
            How many staged files were removed.
        """
        removed = 0
        path = self._path(with_slash(folder))
        with self._explained(folder):
            for staged in (self.root / self._STAGING).glob(f"{_owner(folder)}.*"):
                staged.unlink()
                removed += 1
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
            if path.parent.exists():
                _sync(path.parent)
        return removed

    def location(self, key: str) -> str:
        return str(self._path(key))

    def attach(self, connection: duckdb.DuckDBPyConnection, *, tenant: str | None = None) -> None:
        """Nothing to do: DuckDB opens paths by itself."""

    def open(self, key: str) -> io.BufferedIOBase:
        with self._explained(key):
            try:
                return self._path(key).open("rb")
            except _ABSENT:
                raise KeyError(key) from None

    @contextmanager
    def create(self, key: str) -> Iterator[Path]:
        target = self._path(key)
        staged = self.root / self._STAGING / f"{_owner(key)}.{uuid.uuid4().hex}"
        with self._explained(key):
            staged.parent.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._explained(key):
                yield staged
                if not staged.exists():
                    raise StoreError(f"{key}: nothing was written")
                # The kernel's own times are coarse: two writes within one tick of its clock could
                # share time, size and a reused inode, and so a tag.
                now = time.time_ns()
                os.utime(staged, ns=(now, now))
                _sync(staged)
                staged.replace(target)
                _sync(target.parent)
        finally:
            staged.unlink(missing_ok=True)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        with self.create(key) as path:
            path.write_bytes(data)
        info = self.stat(key)
        if info is None:
            raise StoreError(f"{key}: was written and is gone", hint="is something cleaning up?")
        return info

    def put_if(self, key: str, data: bytes, *, tag: str | None) -> ObjectInfo:
        with self._explained(key):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f"{self._STAGING}.lock").open("a")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = self.stat(key)
            if (held.tag if held else None) != tag:
                raise Conflict(f"{key}: somebody else wrote it first", hint="read it and retry")
            return self.put(key, data)

    def get(self, key: str) -> bytes:
        with self._explained(key):
            try:
                return self._path(key).read_bytes()
            except _ABSENT:
                raise KeyError(key) from None

    def stat(self, key: str) -> ObjectInfo | None:
        with self._explained(key):
            try:
                status = self._path(key).stat()
            except _ABSENT:
                return None
        return _info(key, status) if S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> list[ObjectInfo]:
        found = []
        folder = self._path(prefix)
        with self._explained(prefix):
            for parent, _, files in os.walk(folder, onerror=_unless_absent):
                for name in files:
                    path = Path(parent, name)
                    try:
                        status = path.stat()
                    except _ABSENT:
                        continue
                    key = path.relative_to(self.root).as_posix()
                    found.append(_info(key, status))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        with self._explained(key), contextlib.suppress(*_ABSENT):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _explained(self, key: str) -> AbstractContextManager[None]:
        return explained_files(self.root, key)


def _owner(key: str) -> str:
    """The first part of a key: mostly a tenant's name."""
    return key.split("/", 1)[0]


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    tag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
    return ObjectInfo(key, status.st_size, tag, datetime.fromtimestamp(status.st_mtime, UTC))


def _unless_absent(error: OSError) -> None:
    """A folder that cannot be listed is no empty folder; one that is not there is."""
    if not isinstance(error, _ABSENT):
        raise error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
