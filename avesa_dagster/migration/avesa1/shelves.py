"""Where the files of the platform before lie: a bucket, or a folder that was copied from one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from avesa_dagster.errors import ConfigurationError, StoreError


@dataclass(frozen=True, slots=True)
class Shelved:
    """A file. `tag` changes when it is replaced."""

    key: str
    size: int
    tag: str


class Shelf(Protocol):
    def list(self) -> Iterator[Shelved]:
        """All files below it; keys are relative to it, with slashes."""
        ...

    def read(self, key: str) -> bytes: ...


class FolderShelf:
    """A folder that holds what the bucket held.

    Raises:
        ConfigurationError: There is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ConfigurationError(f"{root} is no folder", hint="give a folder, or s3://bucket")
        self._root = root

    def list(self) -> Iterator[Shelved]:
        for path in sorted(self._root.rglob("*")):
            if path.is_file():
                status = path.stat()
                key = path.relative_to(self._root).as_posix()
                yield Shelved(key, status.st_size, f"{status.st_mtime_ns:x}")

    def read(self, key: str) -> bytes:
        try:
            return (self._root / key).read_bytes()
        except OSError as error:
            raise StoreError(
                f"{self._root / key} cannot be read: {error.strerror}",
                hint="what was imported before stays; run it again",
            ) from error


class BucketShelf:
    """A bucket, or what lies below a prefix of it, perhaps of another account.

    Args:
        client: boto3's, for S3.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def list(self) -> Iterator[Shelved]:
        from avesa_dagster.aws import explained

        asked = {"Bucket": self._bucket, "Prefix": self._prefix}
        while True:
            with explained(f"listing bucket {self._bucket}"):
                page = self._client.list_objects_v2(**asked)
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                yield Shelved(key, item["Size"], item["ETag"].strip('"'))
            if not page.get("NextContinuationToken"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, key: str) -> bytes:
        from avesa_dagster.aws import explained

        with explained(f"reading {key} in bucket {self._bucket}"):
            answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}{key}")
            data: bytes = answer["Body"].read()
        return data


def shelf(place: str, *, profile: str | None = None, region: str | None = None) -> Shelf:
    """The shelf at a folder's path or an address `s3://bucket/prefix`.

    Args:
        profile, region: Of AWS, where they are others than the installation's.
    """
    if not place.startswith("s3://"):
        return FolderShelf(Path(place).expanduser())
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigurationError(f"{place} names no bucket", hint="write s3://bucket/prefix")
    return BucketShelf(elsewhere("s3", profile, region), bucket, prefix)


def elsewhere(name: str, profile: str | None, region: str | None) -> Any:
    """A boto3 client of another profile or region.

    Raises:
        ConfigurationError: There is no such profile, or no region.
    """
    from avesa_dagster import aws

    if profile is None:
        return aws.client(name, region)
    import boto3
    from botocore.config import Config
    from botocore.exceptions import NoRegionError, ProfileNotFound

    try:
        session = boto3.session.Session(profile_name=profile, region_name=region)
        retries = {"mode": "standard", "total_max_attempts": aws.ATTEMPTS}
        return session.client(name, config=Config(retries=retries))
    except ProfileNotFound:
        raise ConfigurationError(f"there is no AWS profile {profile!r}") from None
    except NoRegionError:
        raise ConfigurationError("no AWS region is set", hint="give --old-region") from None
