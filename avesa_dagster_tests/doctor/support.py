"""AWS that is not as it should be: a proxy before moto's server that answers as it is told."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime
from functools import cache
from typing import Any

import pytest

from avesa_dagster import aws, settings
from avesa_dagster.control.dynamo_tables import TABLES, Table, create_arguments
from avesa_dagster.doctor.bootstrap import planned
from avesa_dagster.doctor.findings import Finding, Level
from avesa_dagster.doctor.tables import owner_tags
from avesa_dagster_tests.lossy import Answer, Call, Lossy
from avesa_dagster_tests.moto import Moto

Answers = Callable[[Call], Answer | None]


@dataclass
class Twisted(Lossy):
    """A context manager.

    Attributes:
        twist: What is answered in place of the server; None: what the server answers.
        date: The clock of every answer.
        strip: Headers that the server does not get to see.
    """

    twist: Answers = lambda call: None
    date: datetime | None = None
    strip: tuple[str, ...] = ()

    def answer(self, call: Call) -> Answer | None:
        twisted = self.twist(call)
        if twisted is not None:
            return twisted
        kept = {name: value for name, value in call.headers.items() if name not in self.strip}
        answer = super().answer(replace(call, headers=kept))
        if answer is None or self.date is None:
            return answer
        headers = [pair for pair in answer.headers if pair[0].lower() != "date"]
        return replace(answer, headers=(*headers, ("Date", format_datetime(self.date, True))))


def steady(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    """What the fixture `aws` does; but clients outlive a test that left the environment as it was.
    To make them takes longer than most tests do."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    before = _environment()
    yield moto
    if _environment() != before:
        aws.client.cache_clear()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def refusal(call: Call, code: str = "AccessDeniedException", status: int = 400) -> Answer:
    """How a JSON service refuses, or, to a call of S3, how S3 does."""
    if call.is_json:
        body = json.dumps({"__type": f"com.amazonaws#{code}", "message": "no"}).encode()
        return Answer(status, (("Content-Type", "application/x-amz-json-1.0"),), body)
    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, (("Content-Type", "application/xml"),), text.encode())


def own() -> settings.Aws:
    """An environment and a bucket that no other test has."""
    name = uuid.uuid4().hex[:12]
    return settings.Aws(f"t{name}", f"lake-{name}")


def made() -> settings.Aws:
    """One that `bootstrap` made. moto does not read the condition of the bucket's policy, and
    denies everything by it: so it is taken away again."""
    where = own()
    for step in planned(where).steps:
        step.make()
    aws.client("s3").delete_bucket_policy(Bucket=where.bucket)
    return where


@cache
def shared() -> settings.Aws:
    """One that was made, for tests that change nothing of it."""
    return made()


def only(*tables: Table) -> settings.Aws:
    """One that has these tables only, and no bucket."""
    where = own()
    for table in tables:
        arguments = create_arguments(table, where.table(table.name))
        aws.client("dynamodb").create_table(**arguments, Tags=owner_tags(where))
    return where


def said(findings: Iterable[Finding], level: Level = Level.PROBLEM) -> list[str]:
    """The findings of a level, as people read them. Each of them says what to do."""
    chosen = [finding for finding in findings if finding.level is level]
    assert all(finding.todo for finding in chosen), chosen
    return [f"{one.where}: {one.what} → {one.todo}" for one in chosen]


def everything(where: settings.Aws) -> dict[str, Any]:
    """All that an installation has in AWS, but for what its requests count."""
    dynamodb, s3 = aws.client("dynamodb"), aws.client("s3")
    held: dict[str, Any] = {}
    for table in TABLES:
        name = where.table(table.name)
        held[name] = (
            dynamodb.describe_table(TableName=name)["Table"],
            dynamodb.scan(TableName=name)["Items"],
        )
    listed = s3.list_object_versions(Bucket=where.bucket)
    held["objects"] = (listed.get("Versions"), listed.get("DeleteMarkers"))
    return held
