"""The environment of an installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from avesa_dagster.errors import ConfigurationError
from avesa_dagster.settings import Aws, Settings


def test_home_is_avesa_home_or_the_nearest_folder_upwards_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    inside = tmp_path / "work" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert Settings.from_environment({}).home == tmp_path / "user" / ".avesa"
    (tmp_path / "work" / ".avesa").mkdir()
    assert Settings.from_environment({}).home == tmp_path / "work" / ".avesa"
    assert Settings.from_environment({"AVESA_HOME": "here"}).home == inside / "here"


def test_every_tenant_is_in_exactly_one_shard() -> None:
    shards = [Settings.from_environment({"AVESA_SHARD": f"{part}/4"}) for part in (1, 2, 3, 4)]
    for number in range(200):
        assert sum(shard.holds(f"tenant-{number}") for shard in shards) == 1
    assert all(any(s.holds(f"tenant-{n}") for n in range(200)) for s in shards)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AVESA_SHARD", "0/4"),
        ("AVESA_SHARD", "5/4"),
        ("AVESA_SHARD", "x"),
        ("AVESA_PROFILE", "gcp"),
        ("AVESA_ENVIRONMENT", "Prod!"),
        ("AVESA_BUCKET", "a/b"),
        ("AVESA_BUCKET", ""),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    aws = {"AVESA_PROFILE": "aws", "AVESA_BUCKET": "lake", "AVESA_ENVIRONMENT": "prod"}
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_environment({**aws, name: value})


def test_the_aws_profile_names_a_bucket_and_its_tables_by_their_environment() -> None:
    environ = {"AVESA_PROFILE": "aws", "AVESA_BUCKET": "lake"}
    assert Settings.from_environment(environ).aws == Aws("dev", "lake")
    assert Aws("prod", "lake").table("ChunkProgress") == "ChunkProgress-prod"
    assert Settings.from_environment({}).aws is None
