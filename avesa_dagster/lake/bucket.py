"""A bucket of S3 that keeps versions: what is asked of it, one method a question.

The answer to a write may be lost though it happened, and boto3 then writes again. Each write
carries a random id of its writer in the object's metadata, by which its own earlier effect is
recognised, also below what others have written since.

Everything here raises what boto3 raises; `lake.s3` explains it.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3.exceptions import SSLError

from avesa_dagster.aws import client, code_of
from avesa_dagster.errors import ConfigurationError, StoreError

Said = dict[str, Any]
"""What S3 says of an object or version: in an answer's headers, or in a listing."""

ABSENT = {"404", "NoSuchKey"}
NOT_WITHIN = {"416", "InvalidRange"}

_WRITER = "avesa-writer"
_CHECKSUM = "CRC32"
"""Said when an upload begins: S3 refuses parts with a sum of another kind, and parts without."""
_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 4
_ROUNDS = 8
"""Of reading a body that broke off."""

_BROKEN = (ResponseStreamingError, ReadTimeoutError, FlexibleChecksumError, SSLError)
_BUSY = {"InternalError", "ServiceUnavailable", "SlowDown"}


class Bucket:
    """A bucket.

    Args:
        name: The bucket.
        region: Of the bucket; None: as boto3 finds it.
        encryption: Asked for with each write: `ServerSideEncryption`, `SSEKMSKeyId`.
        part_bytes: What is larger is uploaded in parts of this size.
    """

    def __init__(
        self, name: str, region: str | None, encryption: dict[str, str], part_bytes: int
    ) -> None:
        self.name = name
        self._region = region
        self._encryption = encryption
        self._part_bytes = part_bytes
        self._there = False

    @property
    def _s3(self) -> Any:
        return client("s3", self._region)

    def put(self, key: str, body: Any, writer: str, **condition: str) -> str:
        """Writes an object whole; returns its version.

        Args:
            key: The object.
            body: Bytes, or a file of them.
            writer: A random id.
            condition: `IfMatch` or `IfNoneMatch`.
        """
        answer = self._s3.put_object(
            Bucket=self.name,
            Key=key,
            Body=body,
            Metadata={_WRITER: writer},
            **self._encryption,
            **condition,
        )
        return self._version(answer)

    def put_file(self, key: str, file: Path) -> None:
        """Writes a file as an object; nothing of it is there before all of it is."""
        writer = uuid.uuid4().hex
        if file.stat().st_size > self._part_bytes:
            self._upload(key, file, writer)
        else:
            with file.open("rb") as body:
                self.put(key, body, writer)

    def delete(self, key: str) -> None:
        self._s3.delete_object(Bucket=self.name, Key=key)

    def head(self, key: str, version: str | None = None) -> Said | None:
        """What S3 says of an object; None if there is none.

        Raises:
            ConfigurationError: There is no such bucket.
        """
        asked = {"VersionId": version} if version else {}
        try:
            said: Said = self._s3.head_object(Bucket=self.name, Key=key, **asked)
        except ClientError as error:
            if code_of(error) not in ABSENT:
                raise
            self._see()
            return None
        self._there = True
        return said

    def body(self, key: str, **asked: str) -> tuple[Said, bytes]:
        """What S3 says of an object, and its bytes, or those of a `Range` and `VersionId`.

        Raises:
            KeyError: There is no such object.
        """
        for left in reversed(range(_ROUNDS)):
            try:
                said = self._s3.get_object(Bucket=self.name, Key=key, **asked)
                with contextlib.closing(said["Body"]) as body:
                    return said, body.read()
            except ClientError as error:
                if code_of(error) == "NoSuchKey":
                    raise KeyError(key) from None
                raise
            except _BROKEN as error:
                # boto3 asks again for an answer, not for a body that broke off.
                if not left:
                    raise ResponseStreamingError(error=error) from error
                time.sleep(random.uniform(0.02, 0.5))
        raise AssertionError("the last round returns or raises")

    def versions(self, prefix: str) -> Iterator[Said]:
        """Pages of `Versions` and `DeleteMarkers`: by key, and of a key the newest first."""
        pages = self._s3.get_paginator("list_object_versions")
        yield from pages.paginate(Bucket=self.name, Prefix=prefix)

    def written_by(self, key: str, writer: str, *, after: str | None) -> Said | None:
        """The version that a writer wrote, if it is there.

        Args:
            key: The object.
            writer: Whose.
            after: A version that is older for sure; None: all of them may be looked at.
        """
        for page in self.versions(key):
            for listed in page.get("Versions", ()):
                if listed["Key"] != key:
                    continue
                if listed["VersionId"] == after:
                    return None
                said = self.head(key, listed["VersionId"])
                if said is not None and said["Metadata"].get(_WRITER) == writer:
                    return said
        return None

    def erase(self, listed: Sequence[Said]) -> None:
        """Removes versions and marks of deletions for good.

        Raises:
            StoreError: S3 keeps one of them.
        """
        named = [{"Key": said["Key"], "VersionId": said["VersionId"]} for said in listed]
        for first in range(0, len(named), 1000):
            left = named[first : first + 1000]
            for wait in range(_ROUNDS):
                left = self._erased(left, last=wait == _ROUNDS - 1)
                if not left:
                    break
                time.sleep(random.uniform(0.5, 1) * 2**wait / 10)

    def _erased(self, named: list[Said], *, last: bool) -> list[Said]:
        """Erases versions; returns those of which S3 says that it was busy: boto3 sees a success.

        Raises:
            StoreError: S3 keeps one of them.
        """
        answer = self._s3.delete_objects(Bucket=self.name, Delete={"Objects": named, "Quiet": True})
        refused = answer.get("Errors", ())
        for one in refused:
            if last or one["Code"] not in _BUSY:
                raise StoreError(
                    f"bucket {self.name} keeps a version of {one['Key']}: {one['Code']}",
                    hint="it needs s3:DeleteObjectVersion, and no object lock; then run it again",
                )
        return [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in refused]

    def uploads(self, prefix: str) -> list[Said]:
        """Uploads in parts that did not end."""
        pages = self._s3.get_paginator("list_multipart_uploads")
        asked = pages.paginate(Bucket=self.name, Prefix=prefix)
        return [upload for page in asked for upload in page.get("Uploads", ())]

    def abort(self, key: str, upload: str) -> None:
        """Ends an upload in parts, and removes them; none there is no error."""
        try:
            self._s3.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise

    def _version(self, answer: Said) -> str:
        version = answer.get("VersionId", "null")
        if version == "null":
            raise ConfigurationError(
                f"bucket {self.name} keeps no versions",
                hint="avesa bootstrap turns versioning on; S3 may need 15 minutes to follow",
            )
        return str(version)

    def _see(self) -> None:
        """A missing bucket answers like a missing object, and is no empty lake."""
        if self._there:
            return
        try:
            self._s3.head_bucket(Bucket=self.name)
        except ClientError as error:
            if code_of(error) != "404":
                raise
            raise ConfigurationError(
                f"there is no bucket {self.name}",
                hint="avesa bootstrap makes what is missing; check the bucket's name and region",
            ) from error
        self._there = True

    def _upload(self, key: str, file: Path, writer: str) -> None:
        begun = self._s3.create_multipart_upload(
            Bucket=self.name,
            Key=key,
            Metadata={_WRITER: writer},
            ChecksumAlgorithm=_CHECKSUM,
            **self._encryption,
        )
        upload = begun["UploadId"]
        try:
            self._complete(key, upload, self._parts(key, file, upload), writer)
        except BaseException:
            # It is why it failed that matters; `clean` finds an upload that was left.
            with contextlib.suppress(ClientError, BotoCoreError):
                self.abort(key, upload)
            raise

    def _parts(self, key: str, file: Path, upload: str) -> list[Said]:
        total = file.stat().st_size
        size = max(self._part_bytes, -(-total // _MOST_PARTS))

        def send(number: int) -> Said:
            with file.open("rb") as source:
                source.seek((number - 1) * size)
                data = source.read(size)
            answer = self._s3.upload_part(
                Bucket=self.name,
                Key=key,
                UploadId=upload,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm=_CHECKSUM,
            )
            sums = {name: answer[name] for name in answer if name == f"Checksum{_CHECKSUM}"}
            return {"PartNumber": number, "ETag": answer["ETag"], **sums}

        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            sending = [pool.submit(send, number) for number in range(1, -(-total // size) + 1)]
            try:
                return [one.result() for one in sending]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _complete(self, key: str, upload: str, parts: list[Said], writer: str) -> None:
        try:
            answer = self._s3.complete_multipart_upload(
                Bucket=self.name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            # Completed, and the answer was lost: then there is no such upload any more.
            if code_of(error) != "NoSuchUpload" or not self.written_by(key, writer, after=None):
                raise
        else:
            self._version(answer)
