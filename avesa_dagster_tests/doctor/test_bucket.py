"""A bucket that is missing, another's, elsewhere, or not set as it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from avesa_dagster import aws as boto
from avesa_dagster.doctor import bucket
from avesa_dagster.doctor.account import Account, identity
from avesa_dagster.doctor.bootstrap import planned
from avesa_dagster.doctor.findings import Finding, Level
from avesa_dagster.errors import ConfigurationError
from avesa_dagster.settings import Aws
from avesa_dagster_tests.conftest import new_bucket
from avesa_dagster_tests.doctor.support import Twisted, everything, own, refusal, said, shared
from avesa_dagster_tests.lossy import Answer, Call
from avesa_dagster_tests.moto import Moto

ACCOUNT = Account("123456789012", "arn:aws:sts::123456789012:user/moto", "us-east-2")


def s3() -> Any:
    return boto.client("s3")


@contextmanager
def twisted(moto: Moto, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Iterator[Twisted]:
    """S3 behind a proxy; the other services as they are."""
    with Twisted(moto.url, **how) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        boto.client.cache_clear()
        yield proxy
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    boto.client.cache_clear()


def look(name: str) -> list[Finding]:
    return list(bucket.look(name, ACCOUNT))


def test_what_bootstrap_made_is_well(aws: Moto) -> None:
    where = own()
    for step in planned(where).steps[:6]:
        step.make()
    (found,) = look(where.bucket)
    assert found.level is Level.WELL and "us-east-2" in found.what


def test_no_bucket(aws: Moto) -> None:
    name = own().bucket
    (text,) = said(look(name))
    assert text.startswith(f"{name}: there is no such bucket") and "avesa bootstrap" in text


def test_a_bucket_that_is_refused_may_be_anothers(
    aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        twisted(aws, monkeypatch, twist=lambda call: refusal(call, "AccessDenied", 403)),
        pytest.raises(ConfigurationError) as raised,
    ):
        look("somebodys")
    assert "another account than 123456789012" in str(raised.value)
    assert "choose another" in str(raised.value)


def anothers(call: Call) -> Answer | None:
    """A bucket that everybody may list, of another account: as S3 answers for it."""
    if call.headers.get("x-amz-expected-bucket-owner"):
        return refusal(call, "AccessDenied", 403)
    return None


def test_a_public_bucket_of_another_account_is_found(
    aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_bucket()
    with twisted(aws, monkeypatch, twist=anothers):
        with pytest.raises(ConfigurationError, match="belongs to another account than"):
            look(name)
        plan = planned(Aws("t1", name))
    assert not plan.steps and name in plan.refused[0].what


def test_a_bucket_in_another_region(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_bucket()
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    boto.client.cache_clear()
    account = identity()
    texts = said(bucket.look(name, account))
    assert f"{name}: lies in us-east-2, and AWS_REGION is eu-west-1" in texts[0]
    assert "set AWS_REGION=us-east-2" in texts[0]
    assert planned(Aws("t1", name)).refused


def test_a_bucket_elsewhere_that_only_redirects(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    def redirect(call: Call) -> Answer:
        return Answer(301, (("x-amz-bucket-region", "eu-central-1"),), b"")

    with twisted(aws, monkeypatch, twist=redirect):
        place = bucket.placed("elsewhere", ACCOUNT)
    assert place == bucket.Placed("elsewhere", "eu-central-1")


def test_what_was_never_set_is_named(aws: Moto) -> None:
    name = own().bucket
    s3().create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    problems, warnings = said(look(name)), said(look(name), Level.WARNING)
    assert any("keeps no versions" in text for text in problems)
    assert any("may be made public" in text for text in problems)
    assert any("without TLS" in text for text in warnings)
    assert any("unfinished uploads" in text for text in warnings)
    assert all("avesa bootstrap sets it" in text for text in problems + warnings)


def test_what_was_set_otherwise_is_named_and_left(aws: Moto) -> None:
    name = new_bucket()
    s3().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    blocked = {**dict.fromkeys(bucket.BLOCKED, True), "BlockPublicPolicy": False}
    s3().put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=blocked)
    policy = bucket.tls_policy(name, ACCOUNT)
    policy["Statement"][0]["Condition"] = {"Bool": {"aws:SecureTransport": "true"}}
    s3().put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    rules = [
        {
            "ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 30},
        },
        {
            "ID": "ours", "Status": "Enabled", "Filter": {"Prefix": "_dagster/"},
            "Expiration": {"Days": 30},
        },
    ]  # fmt: skip
    s3().put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    problems = said(look(name))
    assert ["suspended" in text for text in problems] == [True, False, False]
    assert "BlockPublicPolicy is off" in problems[1] and "BlockPublicPolicy=true" in problems[1]
    assert "'tidy'" in problems[2] and "remove the rule" in problems[2]
    texts = said(look(name), Level.WARNING)
    assert any("its policy does not deny" in text for text in texts)
    assert any("unfinished uploads" in text for text in texts)
    plan = planned(Aws("t1", name))
    assert len(plan.differing) == 5
    bucket_steps = [step.what for step in plan.steps if step.what.startswith("bucket")]
    assert bucket_steps == [f"bucket {name}: encryption (AES256)"]


def test_how_it_is_set_may_be_hidden(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    where = shared()

    def hide(call: Call) -> Answer | None:
        return refusal(call, "AccessDenied", 403) if "?versioning" in call.path else None

    with twisted(aws, monkeypatch, twist=hide):
        hidden, policy = said(look(where.bucket), Level.WARNING)
        assert not said(look(where.bucket))
        plan = planned(where)
    assert "s3:GetBucketVersioning is denied" in hidden and "policy" in policy
    assert [step.what for step in plan.steps] == [f"bucket {where.bucket}: nobody without TLS"]
    assert "GetBucketVersioning" in plan.differing[0].what


def test_objects_are_written_and_nothing_is_left(aws: Moto) -> None:
    where = shared()
    before = everything(where)
    (found,) = bucket.promises(where.bucket)
    assert found.level is Level.WELL
    assert everything(where) == before


def test_an_s3_that_forgets_conditions_is_found(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_bucket()
    with twisted(aws, monkeypatch, strip=("if-none-match", "if-match")):
        (text,) = said(bucket.promises(name))
        assert "in spite of a condition" in text
        assert not s3().list_object_versions(Bucket=name).get("Versions")


def test_what_is_denied_is_named(aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_bucket()
    denied = ""

    def deny(call: Call) -> Answer | None:
        refused = call.operation == denied and bucket.PROBES in call.path
        return refusal(call, "AccessDenied", 403) if refused else None

    with twisted(aws, monkeypatch, twist=deny):
        for method in ("PUT", "GET", "DELETE"):
            denied = method
            (text,) = said(bucket.promises(name))
            action = f"s3:{method.capitalize()}Object"
            assert f"{action} is denied" in text and "avesa.yaml" in text


def test_a_run_that_may_not_delete_versions_marks_its_probe_deleted(
    aws: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = new_bucket()

    def deny(call: Call) -> Answer | None:
        denied = call.operation == "DELETE" and "versionId=" in call.path
        return refusal(call, "AccessDenied", 403) if denied else None

    with twisted(aws, monkeypatch, twist=deny):
        assert not said(bucket.promises(name))
    assert not s3().list_objects_v2(Bucket=name).get("Contents")


def test_no_tenant_can_own_the_probes() -> None:
    from avesa_dagster.names import NAME

    assert NAME.fullmatch(bucket.PROBES.split("/")[0]) is None
