"""What the aws profile's parts share: clients, and complaints of AWS told as our errors.

boto3 finds account and region by itself (environment, profile, role of the task), and another
endpoint by AWS_ENDPOINT_URL; no call is made before a part is first used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)

from avesa_dagster.errors import AvesaError, ConfigurationError, RetriableError, StoreError, Where

ATTEMPTS = 8
"""Tries of one call, by boto3: with back-off, over about a minute."""

_REFUSED = {
    "400",  # what HEAD says of credentials that expired: it has no text
    "403",
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "AuthFailure",
    "AuthorizationError",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "InvalidToken",
    "KMSAccessDenied",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_MISSING = {"NoSuchBucket", "ResourceNotFoundException", "NotFound", "NotFoundException"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
_BUSY = {
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "SlowDown",
    "Throttled",
    "Throttling",
    "ThrottlingException",
    "TransactionInProgressException",
}


@lru_cache(maxsize=32)
def client(
    name: str, region: str | None = None, *, attempts: int = ATTEMPTS, seconds: float = 60
) -> Any:
    """A boto3 client, one a process: threads may share it.

    Args:
        name: `s3`, `dynamodb`, `secretsmanager`, `sns`, `cloudwatch`, …
        region: None: AWS_REGION, or as boto3 finds it.
        attempts: Tries of one call; 1 for a call that must not be made twice.
        seconds: How long a try waits for an answer.

    Raises:
        ConfigurationError: No region is set.
    """
    config = Config(
        # Its `standard` mode gives up soon: short waits, and tries that all calls share.
        retries={"mode": "legacy", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=seconds,
        max_pool_connections=32,
    )
    for logger in (logging.getLogger("boto3"), logging.getLogger("botocore")):
        # At DEBUG they write down whole answers, secrets among them.
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
    try:
        # boto3 itself looks for AWS_DEFAULT_REGION only.
        region = region or os.environ.get("AWS_REGION") or None
        return _session(region).client(name, config=config)
    except NoRegionError:
        raise ConfigurationError(
            "no AWS region is set", hint="set AWS_REGION, for example us-east-2"
        ) from None


def _session(region: str | None) -> boto3.session.Session:
    """A session of its own, with credentials of the present; what AWS's interfaces look like,
    which is megabytes, is read once a process."""
    session = botocore.session.Session()
    session.register_component("data_loader", _loader())
    return boto3.session.Session(botocore_session=session, region_name=region)


@cache
def _loader() -> Any:
    return botocore.session.Session().get_component("data_loader")


@contextmanager
def explained(what: str, where: Where | None = None) -> Iterator[None]:
    """Turns what AWS says into errors that say what to do; what AWS calls a value is never told.

    Args:
        what: What was being done to which table, bucket or secret.

    Raises:
        ConfigurationError: Credentials, region, permission, or something that is not there.
        RetriableError: AWS was busy or out of reach for longer than its client tries.
        StoreError: Anything else that it refuses.
    """
    try:
        yield
    except ClientError as error:
        raise _told(what, error, where) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigurationError(
            f"{what}: there are no AWS credentials",
            where=where,
            hint="give the task a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID",
        ) from error
    except BotoCoreError as error:
        raise RetriableError(
            f"{what}: AWS cannot be reached: {type(error).__name__}",
            where=where,
            hint="check network, region and AWS_ENDPOINT_URL, then run it again",
        ) from error


def code_of(error: ClientError) -> str:
    """The error's code, as `NoSuchKey`."""
    return str(error.response.get("Error", {}).get("Code", "Unknown"))


def _told(what: str, error: ClientError, where: Where | None) -> AvesaError:
    code = code_of(error)
    text = f"{what}: {code}"
    if code in _REFUSED:
        hint = "avesa doctor says which permission is missing, and whether the clock is right"
        return ConfigurationError(text, where=where, hint=hint)
    if code in _MISSING:
        hint = "avesa bootstrap makes what is missing; check AVESA_ENVIRONMENT and AWS_REGION"
        return ConfigurationError(text, where=where, hint=hint)
    if code in _ELSEWHERE:
        hint = "it lies in another region: set AWS_REGION to its own"
        return ConfigurationError(text, where=where, hint=hint)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _BUSY or status >= 500:
        return RetriableError(text, where=where, hint="AWS is busy; run it again")
    return StoreError(text, where=where, hint="nothing half-written is visible; avesa doctor")
