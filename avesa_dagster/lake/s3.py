"""Objects in an S3 bucket that keeps versions.

A tag is a version's id: S3 makes a new one with each write, tells it in listings, and keeps what
was replaced until the bucket's lifecycle removes it. An ETag would not do: it is the same for
equal bytes. Conditional writes are by ETag, since S3 has none by version: the version is looked at
right before. Only who puts back equal bytes in that instant goes unnoticed, and what is replaced
then is what was expected.
"""

from __future__ import annotations

import io
import random
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
from botocore.exceptions import ClientError

from avesa_dagster.aws import code_of, explained
from avesa_dagster.errors import StoreError
from avesa_dagster.lake.bucket import ABSENT, NOT_WITHIN, Bucket, Said
from avesa_dagster.lake.layout import never_replaced
from avesa_dagster.lake.objects import (
    ABANDONED_SECONDS,
    Conflict,
    ObjectInfo,
    checked_key,
    explained_files,
    with_slash,
)
from avesa_dagster.lake.ranges import TAIL_BYTES, Opened, RangeFiles, Stream
from avesa_dagster.names import checked

PART_BYTES = 32 * 1024 * 1024
"""A larger object is uploaded in parts of this size, or of a larger one if they were too many."""

_ROUNDS = 10
"""Of a conditional write that S3 leaves undecided."""

_REPLACED = {"412", "PreconditionFailed", *ABSENT}
_UNDECIDED = {"409", "ConditionalRequestConflict"}

Listed = list[Said]  # Within the class, `list` is a method.


class S3Objects:
    """Objects as those of a bucket that is the lake's own; a key is a key.

    Args:
        bucket: Keeps versions; `avesa bootstrap` makes it so.
        region: Of the bucket; None: as boto3 finds it.
        encryption: `AES256` or `aws:kms`, asked for with each write; None: as the bucket is set.
        kms_key: For `aws:kms`; None: the account's own key for S3.
        part_bytes: See PART_BYTES; S3 takes no less than 5 MiB.
    """

    def __init__(
        self,
        bucket: str,
        *,
        region: str | None = None,
        encryption: str | None = None,
        kms_key: str | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        asked = {"ServerSideEncryption": encryption, "SSEKMSKeyId": kms_key}
        given = {name: value for name, value in asked.items() if value}
        self._bucket = Bucket(bucket, region, given, part_bytes)
        self._root = f"s3://{bucket}/"

    def location(self, key: str) -> str:
        return self._root + checked_key(key)

    def attach(self, connection: duckdb.DuckDBPyConnection, *, tenant: str | None = None) -> None:
        within = self._root if tenant is None else f"{self._root}{checked('tenant', tenant)}/"
        files = RangeFiles("s3", self._root, within, self._opened, never_replaced)
        connection.register_filesystem(files)

    @contextmanager
    def create(self, key: str) -> Iterator[Path]:
        checked_key(key)
        with tempfile.TemporaryDirectory(prefix="avesa-object-") as folder:
            staged = Path(folder, "object")
            with explained_files(Path(folder), key):
                yield staged
                if not staged.exists():
                    raise StoreError(f"{key}: nothing was written")
                with self._explained(f"writing {key}"):
                    self._bucket.put_file(key, staged)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        checked_key(key)
        with self._explained(f"writing {key}"):
            return self._written(key, self._bucket.put(key, data, uuid.uuid4().hex))

    def put_if(self, key: str, data: bytes, *, tag: str | None) -> ObjectInfo:
        checked_key(key)
        writer = uuid.uuid4().hex
        retried = False
        with self._explained(f"writing {key}"):
            condition = self._condition(key, tag)
            for _ in range(_ROUNDS):
                try:
                    return self._written(key, self._bucket.put(key, data, writer, **condition))
                except ClientError as error:
                    if code_of(error) not in _REPLACED | _UNDECIDED:
                        raise
                    # At a first try, nothing that is there can be ours.
                    retried = retried or bool(error.response["ResponseMetadata"]["RetryAttempts"])
                    ours = self._bucket.written_by(key, writer, after=tag) if retried else None
                    if ours:
                        return _info(key, ours)
                    if code_of(error) in _REPLACED:
                        break
                time.sleep(random.uniform(0.02, 0.2))
        raise _conflict(key)

    def get(self, key: str) -> bytes:
        checked_key(key)
        with self._explained(f"reading {key}"):
            return self._bucket.body(key)[1]

    def open(self, key: str) -> io.BufferedIOBase:
        return io.BufferedReader(Stream(self._opened(key)), buffer_size=TAIL_BYTES)

    def stat(self, key: str) -> ObjectInfo | None:
        checked_key(key)
        with self._explained(f"looking at {key}"):
            said = self._bucket.head(key)
        return _info(key, said) if said else None

    def list(self, prefix: str) -> list[ObjectInfo]:
        folder = with_slash(prefix)
        with self._explained(f"listing {folder}"):
            found = [
                _info(said["Key"], said)
                for page in self._bucket.versions(folder)
                for said in page.get("Versions", ())
                if said["IsLatest"]
            ]
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        checked_key(key)
        with self._explained(f"removing {key}"):
            self._bucket.delete(key)

    def clean(self, now: float) -> None:
        """Aborts uploads in parts that began more than a day ago and never ended.

        Args:
            now: Seconds since the epoch.
        """
        before = datetime.fromtimestamp(now, UTC) - timedelta(seconds=ABANDONED_SECONDS)
        with self._explained("looking for uploads that never ended"):
            for upload in self._bucket.uploads(""):
                if upload["Initiated"] < before:
                    self._bucket.abort(upload["Key"], upload["UploadId"])

    def prune(self, folder: str) -> int:
        """Removes every version that the bucket keeps below a folder, objects that are still there
        among them, and what killed writers uploaded. See Objects.prune.

        Returns:
            How many versions, marks of deletions and uploads were removed.

        Raises:
            StoreError: S3 keeps one of them, for example by an object lock.
        """
        folder = with_slash(folder)
        removed = 0
        with self._explained(f"removing what is left of {folder}"):
            # The first page again and again: what a marker of the next one names may be gone.
            while held := self._first_versions(folder):
                self._bucket.erase(held)
                removed += len(held)
            for upload in self._bucket.uploads(folder):
                self._bucket.abort(upload["Key"], upload["UploadId"])
                removed += 1
        return removed

    def forget_replaced(self, folder: str) -> None:
        """Removes the versions below a folder that another one replaced. Writers may be at work.

        Raises:
            StoreError: S3 keeps one of them.
        """
        folder = with_slash(folder)
        with self._explained(f"removing what was replaced below {folder}"):
            pages = list(self._bucket.versions(folder))
            listed = (said for page in pages for said in page.get("Versions", ()))
            self._bucket.erase([said for said in listed if not said["IsLatest"]])

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return explained(f"{what} in bucket {self._bucket.name}")

    def _first_versions(self, folder: str) -> Listed:
        page = next(iter(self._bucket.versions(folder)), {})
        return [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]

    def _written(self, key: str, version: str) -> ObjectInfo:
        said = self._bucket.head(key, version)
        if said is None:
            raise StoreError(f"{key}: was written and is gone", hint="is something cleaning up?")
        return _info(key, said)

    def _condition(self, key: str, tag: str | None) -> dict[str, str]:
        """What S3 is to check when it writes over the version of a tag.

        Raises:
            Conflict: Another version is there already.
        """
        if tag is None:
            return {"IfNoneMatch": "*"}
        held = self._bucket.head(key)
        if held is None or _tag(held) != tag:
            raise _conflict(key)
        return {"IfMatch": held["ETag"]}

    def _opened(self, key: str) -> Opened:
        """The newest version of an object. Raises KeyError if there is no such object."""
        checked_key(key)
        with self._explained(f"reading {key}"):
            try:
                said, tail = self._bucket.body(key, Range=f"bytes=-{TAIL_BYTES}")
            except ClientError as error:
                if code_of(error) not in NOT_WITHIN:
                    raise
                # No range lies within an object without bytes.
                said, tail = self._bucket.body(key)
        size = int(said.get("ContentRange", f"/{len(tail)}").rpartition("/")[2])
        version = said.get("VersionId")
        pinned = {"VersionId": version} if version else {"IfMatch": said["ETag"]}

        def fetch(offset: int, count: int) -> bytes:
            with self._explained(f"reading {key}"):
                span = f"bytes={offset}-{offset + count - 1}"
                data = self._bucket.body(key, Range=span, **pinned)[1]
            if len(data) != count:
                raise StoreError(f"{key}: {len(data)} bytes came where {count} were asked for")
            return data

        return Opened(size, _tag(said), tail, fetch)


def _conflict(key: str) -> Conflict:
    return Conflict(f"{key}: somebody else wrote it first", hint="read it and retry")


def _tag(said: Said) -> str:
    version = said.get("VersionId", "null")
    if version != "null":
        return str(version)
    # It was written before the bucket kept versions; whatever replaces it has one.
    etag = said["ETag"].strip('"')
    return f"null-{etag}-{said['LastModified'].astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _info(key: str, said: Said) -> ObjectInfo:
    """Of what a head says, or a listing of versions, which may tell fractions of a second."""
    size = said["Size"] if "Size" in said else said["ContentLength"]
    written = said["LastModified"].astimezone(UTC).replace(microsecond=0)
    return ObjectInfo(key, size, _tag(said), written)
