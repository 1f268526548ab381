"""Who AWS thinks that we are, and whether our clock is one that it accepts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from botocore.exceptions import ClientError
from botocore.session import get_session

from avesa_dagster import aws
from avesa_dagster.doctor.findings import Findings, problem, warning, well
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.sources.base import Clock

ATTEMPTS = 2
"""Tries of one call: who waits for a diagnosis does not want back-off."""
REFUSED = {"AccessDenied", "AccessDeniedException", "AuthorizationError", "403"}
"""How AWS says that one may not."""

_ANYWHERE = "aws-global"
_TOLERATED = timedelta(minutes=5)
_NOTICED = timedelta(seconds=30)
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed"}


@dataclass(frozen=True, slots=True)
class Account:
    """Whose account is spoken to, and as whom.

    Attributes:
        number: Of the account, 12 digits.
        who: The ARN of the user or of the role's session.
    """

    number: str
    who: str
    region: str

    @property
    def partition(self) -> str:
        """`aws`, `aws-cn` or `aws-us-gov`, as ARNs name it."""
        return self.who.split(":")[1]


def client(name: str) -> Any:
    """A client that gives up soon.

    Raises:
        ConfigurationError: No region is set.
    """
    return aws.client(name, attempts=ATTEMPTS, seconds=15)


def identity() -> Account:
    """Asks AWS who we are; this needs no permission.

    Raises:
        ConfigurationError: There are no credentials, or they are refused.
        RetriableError: AWS cannot be reached.
    """
    sts, region = _sts()
    with aws.explained(f"asking AWS in {region} who we are"):
        try:
            said = sts.get_caller_identity()
        except ClientError as error:
            raise _refused(error) from error
    return Account(said["Account"], said["Arn"], region)


def clock(now: Clock) -> Findings:
    """Our clock against AWS's; needs no credentials."""
    sts, region = _sts()
    url = sts.meta.endpoint_url
    yield from _region(region)
    try:
        with requests.get(url, timeout=5, allow_redirects=False, stream=True) as answer:
            told = answer.headers.get("Date")
    except requests.RequestException as error:
        yield problem(
            f"AWS cannot be reached: {type(error).__name__}",
            url,
            "check network, proxy, AWS_REGION and AWS_ENDPOINT_URL",
            blocking=True,
        )
        return
    ours = now()
    theirs = _moment(told)
    if theirs is None:
        yield warning(
            "it does not tell its time", url, "compare the clock yourself: timedatectl status"
        )
        return
    yield from difference(ours - theirs, "AWS")


def difference(ahead: timedelta, whose: str) -> Findings:
    """What it means that our clock is ahead of another one by so much; negative: behind it."""
    seconds = abs(ahead).total_seconds()
    told = f"this machine's clock is {_span(seconds)} {_side(ahead)} that of {whose}"
    todo = "let it be set by NTP: timedatectl set-ntp true, or chronyc makestep"
    if abs(ahead) > _TOLERATED:
        refuses = "AWS refuses our signatures, and windows" if whose == "AWS" else "windows"
        yield problem(f"{told}: {refuses} end at the wrong time", "", todo)
    elif abs(ahead) > _NOTICED:
        yield warning(told, "", todo)
    else:
        yield well(f"agrees with that of {whose}")


def _sts() -> tuple[Any, str]:
    """A client of STS, and our region. Where none is set, STS would answer from anywhere."""
    sts = client("sts")
    region = sts.meta.region_name
    if region in (None, _ANYWHERE):
        raise ConfigurationError("no AWS region is set", hint="set AWS_REGION, as us-east-2")
    return sts, str(region)


def _region(name: str) -> Findings:
    session = get_session()
    known = {
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("dynamodb", partition)
    }
    if name not in known:
        yield warning(
            "is no region that this boto3 knows", name, "check AWS_REGION, for example us-east-2"
        )
    default = os.environ.get("AWS_DEFAULT_REGION")
    if default and default != name:
        yield warning(
            f"AWS_DEFAULT_REGION is {default}, and AVESA's own parts use {name}",
            "",
            "Dagster's parts take AWS_DEFAULT_REGION: set it as AWS_REGION",
        )


def _moment(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _side(ahead: timedelta) -> str:
    return "ahead of" if ahead > timedelta(0) else "behind"


def _refused(error: ClientError) -> ConfigurationError:
    code = aws.code_of(error)
    if code in _EXPIRED:
        hint = "they are too old, or the clock is off: get new ones, and see the check of the clock"
    elif code == "SignatureDoesNotMatch":
        hint = "AWS_SECRET_ACCESS_KEY is not the one of AWS_ACCESS_KEY_ID, or the clock is off"
    else:
        hint = "give the task a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID to valid ones"
    return ConfigurationError(f"AWS refuses the credentials: {code}", hint=hint)
