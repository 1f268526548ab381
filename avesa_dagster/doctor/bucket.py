"""The bucket of the lake: whose it is, how it is set, and whether it keeps its promises."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from avesa_dagster import aws
from avesa_dagster.doctor.account import REFUSED, Account, client
from avesa_dagster.doctor.findings import Finding, Findings, problem, warning, well
from avesa_dagster.errors import ConfigurationError

PROBES = "_doctor/history/probe/generation-"
"""Where the doctor's own objects lie: no tenant can be called so, and a run, which may delete old
generations of history only, may delete them too."""
BLOCKED = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")

_NOT_SET = {
    "NoSuchBucketPolicy",
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "ServerSideEncryptionConfigurationNotFoundError",
}
_CHANGED = {"412", "PreconditionFailed"}
_OWN = "_"
"""Begins the prefixes that no tenant can have."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a bucket is.

    Attributes:
        region: None: S3 does not say.
    """

    name: str
    region: str | None


@dataclass(slots=True)
class Held:
    """How a bucket is set. None: never, or we may not look (`refused`).

    Attributes:
        versioning: Enabled or Suspended.
        encryption: AES256, aws:kms, …
        blocked: Which of BLOCKED are on.
        policy, lifecycle: As S3 tells them.
        refused: Names of the actions that we lack.
    """

    name: str
    versioning: str | None = None
    encryption: str | None = None
    blocked: frozenset[str] | None = None
    policy: dict[str, Any] | None = None
    lifecycle: list[dict[str, Any]] | None = None
    refused: list[str] = field(default_factory=list)


def placed(name: str, account: Account) -> Placed | None:
    """Where the bucket is; None: there is none.

    Raises:
        ConfigurationError: It belongs to another account, or we may not look.
        RetriableError, StoreError: AWS.
    """
    s3 = client("s3")
    with aws.explained(f"looking at bucket {name}"):
        try:
            answer = s3.head_bucket(Bucket=name)
        except ClientError as error:
            return _told(name, account, error)
        try:
            s3.head_bucket(Bucket=name, ExpectedBucketOwner=account.number)
        except ClientError as error:
            if aws.code_of(error) not in REFUSED:
                raise
            raise ConfigurationError(
                f"bucket {name} belongs to another account than {account.number}",
                hint="nothing of a tenant may be written there: set AVESA_BUCKET to a bucket of "
                "this account, or use that account's credentials",
            ) from None
    return Placed(name, _region(answer))


def held(name: str) -> Held:
    """How a bucket that is there is set.

    Raises:
        ConfigurationError, RetriableError, StoreError: AWS.
    """
    s3, found = client("s3"), Held(name)

    def ask(action: str, call: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        with aws.explained(f"looking at bucket {name}"):
            try:
                return call(Bucket=name)
            except ClientError as error:
                code = aws.code_of(error)
                if code not in REFUSED | _NOT_SET:
                    raise
                if code in REFUSED:
                    found.refused.append(f"s3:{action}")
                return {}

    found.versioning = ask("GetBucketVersioning", s3.get_bucket_versioning).get("Status")
    said = ask("GetEncryptionConfiguration", s3.get_bucket_encryption)
    for rule in said.get("ServerSideEncryptionConfiguration", {}).get("Rules", ()):
        found.encryption = rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm")
    said = ask("GetBucketPublicAccessBlock", s3.get_public_access_block)
    if "PublicAccessBlockConfiguration" in said:
        on = said["PublicAccessBlockConfiguration"]
        found.blocked = frozenset(name for name in BLOCKED if on.get(name))
    said = ask("GetBucketPolicy", s3.get_bucket_policy)
    found.policy = json.loads(said["Policy"]) if "Policy" in said else None
    said = ask("GetLifecycleConfiguration", s3.get_bucket_lifecycle_configuration)
    found.lifecycle = said.get("Rules")
    return found


def look(name: str, account: Account) -> Findings:
    """Whether the bucket is there, ours, in our region, and set as AVESA wants it."""
    place = placed(name, account)
    if place is None:
        yield problem(
            "there is no such bucket",
            name,
            "avesa bootstrap makes it; check AVESA_BUCKET and the account first",
            blocking=True,
        )
        return
    elsewhere = other_region(place, account)
    if elsewhere is not None:
        yield elsewhere
    found = held(name)
    if found.refused:
        yield warning(
            f"how it is set may not be looked at: {', '.join(found.refused)} is denied",
            name,
            "run avesa doctor as an operator too (OperatorPolicy of deploy/aws)",
        )
    unset = [*_unset(found)]
    wrong = [*differences(found)]
    yield from unset
    yield from wrong
    if not (elsewhere or found.refused or unset or wrong):
        yield well(f"in {place.region or account.region}, keeps versions, encrypted, not public")


def other_region(place: Placed, account: Account) -> Finding | None:
    """The problem that a bucket is not where the tables are."""
    if place.region in (None, account.region):
        return None
    return problem(
        f"lies in {place.region}, and AWS_REGION is {account.region}",
        place.name,
        f"set AWS_REGION={place.region}, or AVESA_BUCKET to a bucket in {account.region}",
    )


def lacks(found: Held) -> Iterator[str]:
    """What was never set of what AVESA wants: names of attributes of Held."""
    asked = {
        "versioning": "s3:GetBucketVersioning",
        "encryption": "s3:GetEncryptionConfiguration",
        "blocked": "s3:GetBucketPublicAccessBlock",
        "policy": "s3:GetBucketPolicy",
        "lifecycle": "s3:GetLifecycleConfiguration",
    }
    for name, action in asked.items():
        if getattr(found, name) is None and action not in found.refused:
            yield name


def differences(found: Held) -> Findings:
    """What somebody set otherwise than AVESA wants it."""
    name = found.name
    if found.versioning not in (None, "Enabled"):
        yield problem(
            "keeps no versions any more: versioning is suspended",
            name,
            f"aws s3api put-bucket-versioning --bucket {name} "
            "--versioning-configuration Status=Enabled",
        )
    if found.blocked is not None and len(found.blocked) < len(BLOCKED):
        off = ", ".join(one for one in BLOCKED if one not in found.blocked)
        on = ",".join(f"{one}=true" for one in BLOCKED)
        yield problem(
            f"may be made public: {off} is off",
            name,
            f"aws s3api put-public-access-block --bucket {name} "
            f"--public-access-block-configuration {on}",
        )
    if found.policy is not None and not _only_tls(found.policy, name):
        yield warning(
            "takes requests without TLS: its policy does not deny them",
            name,
            "add the statement OnlyTls of deploy/aws/avesa.yaml to its policy",
        )
    yield from _lifecycle(found)


def tls_policy(name: str, account: Account) -> dict[str, Any]:
    """The policy of a bucket that has none: nobody without TLS."""
    arn = f"arn:{account.partition}:s3:::{name}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OnlyTls",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }


def promises(name: str) -> Findings:
    """Whether objects can be written, read and deleted, and a wrong tag is refused.

    Leaves nothing behind; where versions may not be deleted, what the bucket's lifecycle removes.
    """
    probe = _Probe(name, f"{PROBES}{uuid.uuid4().hex}")
    found: list[Finding] = []
    try:
        found += probe.run()
    finally:
        found += probe.remove()
    yield from found


class _Probe:
    """An object of the doctor's own."""

    def __init__(self, bucket: str, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._versions: list[str | None] = []

    def run(self) -> Findings:
        denied = self._denied("s3:PutObject", partial(self._put, b"1"))
        if denied:
            yield denied
            return
        denied = self._denied("s3:GetObject", self._get)
        if denied:
            yield denied
        denied = self._denied("s3:ListBucketVersions", self._list)
        if denied:
            yield denied
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": f'"{uuid.uuid4().hex}"'}):
            if self._takes(condition):
                yield problem(
                    f"writes in spite of a condition that does not hold ({next(iter(condition))})",
                    self._bucket,
                    "commits of two writers would be lost: this S3 does not do, use AWS's own",
                )
                return
        yield well("objects are written, read and deleted; a wrong tag is refused")

    def remove(self) -> Findings:
        """Removes what was written; if versions may not be deleted, marks it deleted."""
        for version in dict.fromkeys(self._versions):
            asked = {"VersionId": version} if version else {}
            denied = self._denied("s3:DeleteObjectVersion", partial(self._delete, **asked))
            if denied is None:
                continue
            denied = self._denied("s3:DeleteObject", self._delete)
            if denied:
                yield denied
            return

    def _put(self, body: bytes, **condition: str) -> None:
        answer = client("s3").put_object(Bucket=self._bucket, Key=self._key, Body=body, **condition)
        self._versions.append(answer.get("VersionId"))

    def _get(self) -> None:
        client("s3").get_object(Bucket=self._bucket, Key=self._key)["Body"].close()

    def _list(self) -> None:
        client("s3").list_object_versions(Bucket=self._bucket, Prefix=self._key)

    def _delete(self, **version: str) -> None:
        client("s3").delete_object(Bucket=self._bucket, Key=self._key, **version)

    def _takes(self, condition: dict[str, str]) -> bool:
        """Whether a write is done although its condition does not hold."""
        with aws.explained(f"writing {self._key} in bucket {self._bucket}"):
            try:
                self._put(b"2", **condition)
            except ClientError as error:
                if aws.code_of(error) not in _CHANGED:
                    raise
                return False
        return True

    def _denied(self, action: str, call: Callable[[], None]) -> Finding | None:
        """The problem that we may not do this; None: it is done."""
        with aws.explained(f"trying {action} in bucket {self._bucket}"):
            try:
                call()
            except ClientError as error:
                if aws.code_of(error) not in REFUSED:
                    raise
                return problem(
                    f"{action} is denied",
                    f"{self._bucket}/{self._key}",
                    "allow it as deploy/aws/avesa.yaml does; if it is allowed, look at the "
                    "bucket's policy and its key in KMS",
                )
        return None


def _told(name: str, account: Account, error: ClientError) -> Placed | None:
    code = aws.code_of(error)
    if code in ("404", "NoSuchBucket"):
        return None
    region = _region(error.response)
    if code in REFUSED:
        raise ConfigurationError(
            f"bucket {name} is refused (403): it belongs to another account than "
            f"{account.number}, or s3:ListBucket is denied",
            hint="names of buckets are the world's: if you did not make it, choose another "
            "AVESA_BUCKET; if it is yours, allow what deploy/aws/avesa.yaml allows",
        ) from error
    if region is not None and code in ("301", "400", "PermanentRedirect"):
        return Placed(name, region)
    raise error


def _region(answer: Mapping[str, Any]) -> str | None:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region") or None


def _unset(found: Held) -> Findings:
    told = {
        "versioning": (problem, "keeps no versions: what is replaced is lost"),
        "encryption": (warning, "no encryption is set"),
        "blocked": (problem, "may be made public: public access is not blocked"),
        "policy": (warning, "takes requests without TLS: it has no policy"),
        "lifecycle": (warning, "keeps the parts of unfinished uploads for ever: no lifecycle"),
    }
    for name in lacks(found):
        make, what = told[name]
        yield make(what, found.name, "avesa bootstrap sets it")


def _lifecycle(found: Held) -> Findings:
    if found.lifecycle is None:
        return
    rules = [rule for rule in found.lifecycle if rule.get("Status") == "Enabled"]
    for rule in rules:
        after = rule.get("Expiration", {})
        if ("Days" in after or "Date" in after) and not _prefix(rule).startswith(_OWN):
            yield problem(
                f"deletes objects by their age: rule {rule.get('ID', '')!r} of its lifecycle",
                found.name,
                "records that the source has overwritten cannot be fetched again: remove the rule",
            )
    if not any("AbortIncompleteMultipartUpload" in rule and not _prefix(rule) for rule in rules):
        yield warning(
            "keeps the parts of unfinished uploads for ever",
            found.name,
            "add the rule uploads-that-nobody-ended of deploy/aws/avesa.yaml to its lifecycle",
        )


def _prefix(rule: Mapping[str, Any]) -> str:
    within = rule.get("Filter", {})
    found = rule.get("Prefix") or within.get("Prefix") or within.get("And", {}).get("Prefix")
    return str(found or "")


def _only_tls(policy: Mapping[str, Any], name: str) -> bool:
    return any(
        said.get("Effect") == "Deny"
        and said.get("Principal") in ("*", {"AWS": "*"})
        and bool({"s3:*", "*"} & set(_listed(said.get("Action"))))
        and any(str(arn).endswith((f":{name}/*", ":::*")) for arn in _listed(said.get("Resource")))
        and str(said.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport")).lower()
        == "false"
        for said in _listed(policy.get("Statement"))
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
