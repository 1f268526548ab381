"""Credentials that AWS does not take, and a clock that it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from avesa_dagster.aws import client
from avesa_dagster.doctor import account
from avesa_dagster.doctor.findings import Level
from avesa_dagster.errors import ConfigurationError, RetriableError
from avesa_dagster_tests.doctor.support import Twisted, refusal, said
from avesa_dagster_tests.lossy import Answer, Call
from avesa_dagster_tests.moto import Moto

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


@contextmanager
def sts(moto: Moto, monkeypatch: pytest.MonkeyPatch, **how: object) -> Iterator[Twisted]:
    """STS behind a proxy."""
    with Twisted(moto.url, **how) as proxy:  # type: ignore[arg-type]
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)
        client.cache_clear()
        yield proxy
    client.cache_clear()


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(600, "problem"), (-600, "problem"), (60, "warning"), (-60, "warning"), (5, "well")],
)
def test_a_clock_that_is_off_is_found(
    aws: Moto, monkeypatch: pytest.MonkeyPatch, ahead: int, level: str
) -> None:
    with sts(aws, monkeypatch, date=NOW - timedelta(seconds=ahead)):
        (found,) = account.clock(lambda: NOW)
    assert found.level.value == level
    if level == "problem":
        side = "ahead of" if ahead > 0 else "behind"
        assert f"10 min {side} that of AWS" in found.what and "NTP" in found.todo


def test_the_clock_needs_no_credentials(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    client.cache_clear()
    (found,) = account.clock(lambda: datetime.now(UTC))
    assert found.level is Level.WELL


def test_aws_out_of_reach_is_found(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    client.cache_clear()
    (text,) = said(account.clock(lambda: NOW))
    assert "cannot be reached" in text and "AWS_ENDPOINT_URL" in text
    with pytest.raises(RetriableError, match="who we are"):
        account.identity()


def test_an_answer_without_a_date_is_no_proof(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    with sts(aws, monkeypatch, twist=lambda call: refusal(call, status=404)):
        (text,) = said(account.clock(lambda: NOW), Level.WARNING)
    assert "does not tell its time" in text


def test_who_we_are(aws: Moto) -> None:
    found = account.identity()
    assert (found.number, found.region, found.partition) == ("123456789012", "us-east-2", "aws")


def test_no_credentials(aws: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    client.cache_clear()
    with pytest.raises(ConfigurationError, match="no AWS credentials") as raised:
        account.identity()
    assert "AWS_PROFILE" in str(raised.value)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("InvalidClientTokenId", "AWS_PROFILE"),
        ("ExpiredToken", "get new ones"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_credentials_that_are_refused(
    aws: Moto, monkeypatch: pytest.MonkeyPatch, code: str, hint: str
) -> None:
    def twist(call: Call) -> Answer:
        text = f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>"
        return Answer(403, (("Content-Type", "text/xml"),), text.encode())

    with sts(aws, monkeypatch, twist=twist), pytest.raises(ConfigurationError) as raised:
        account.identity()
    assert code in str(raised.value) and hint in str(raised.value)


def test_no_region_is_told(aws: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    client.cache_clear()
    with pytest.raises(ConfigurationError, match="no AWS region"):
        list(account.clock(lambda: NOW))


def test_a_region_that_nobody_knows_is_told(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-22")
    client.cache_clear()
    unknown, other = said(account.clock(lambda: datetime.now(UTC)), Level.WARNING)
    assert unknown.startswith("us-east-22: is no region") and "AWS_DEFAULT_REGION" in other
