"""`avesa migrate`: what it prints, what it refuses, and its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from avesa_dagster.aws import client
from avesa_dagster.cli.main import main
from avesa_dagster.defs.processes import sole_daemon
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.erasable import furnish
from avesa_dagster_tests.extract.support import MAPPINGS
from avesa_dagster_tests.migration.homes import files, new_target
from avesa_dagster_tests.migration.old import parquet

Avesa = Callable[..., tuple[int, str, str]]
KEY = "key of acme-content"


@pytest.fixture
def avesa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Avesa:
    """Runs `avesa migrate …` in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("AVESA_HOME", str(tmp_path / "here"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avesa", "migrate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture
def into_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: object) -> None:
    where = new_target(tmp_path)
    monkeypatch.setenv("AVESA_PROFILE", "aws")
    monkeypatch.setenv("AVESA_BUCKET", where.bucket)
    monkeypatch.setenv("AVESA_ENVIRONMENT", where.environment)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home at rest with two tenants."""
    installation = Installation(Settings(home=tmp_path / "home", mappings=MAPPINGS))
    for tenant in ("acme", "acme2"):
        furnish(installation, tenant)
        installation.control.jobs.forget(tenant)
    installation.control.close()
    for path in (tmp_path / "home" / "control").glob("budget.db*"):
        path.unlink()  # still open here, so that it would change whenever it is closed
    return tmp_path / "home"


@pytest.mark.usefixtures("into_aws")
def test_a_home_is_moved_compared_and_moved_again(home: Path, avesa: Avesa) -> None:
    before = files(home)
    code, out, err = avesa(str(home), "--dry-run")
    assert code == 0 and "would be moved" in out and "Nothing was written" in out, err
    assert avesa(str(home), "--verify-only")[0] == 1
    code, out, err = avesa(str(home), "--tenant", "acme", "--json")
    report = json.loads(out)
    assert code == 0 and report["well"] and report["tenants"][0]["copied"] == 4, err
    assert len(report["tenants"][0]["digest"]) == 64
    code, out, err = avesa(str(home))
    assert code == 0 and "arrived" in out and "moved" in out and "acme2" in out, err
    assert "Do not start avesa dev on the old folder" in out
    assert avesa(str(home), "--verify-only")[0] == 0
    secrets = client("secretsmanager")
    held = [s["Name"] for s in secrets.list_secrets()["SecretList"]]
    assert any(name.startswith("acme/") for name in held)
    assert KEY not in out + err + json.dumps(report)
    assert files(home) == before


@pytest.mark.usefixtures("into_aws")
def test_a_difference_is_named_and_fails(home: Path, avesa: Avesa) -> None:
    avesa(str(home))
    settings = Settings.from_environment()
    assert settings.aws is not None
    key = "acme/raw/connectwise/tickets/dt=2026-01-01/0001.parquet"
    client("s3").put_object(Bucket=settings.aws.bucket, Key=key, Body=b"other")
    code, out, _ = avesa(str(home), "--verify-only")
    assert code == 1 and f"{key}: other bytes in the target" in out.replace("\n", " ")


@pytest.mark.usefixtures("into_aws")
def test_a_home_with_a_daemon_is_refused(home: Path, avesa: Avesa) -> None:
    (home / "dagster").mkdir()
    with sole_daemon(home / "dagster"):
        code, _, err = avesa(str(home))
    assert code == 1 and "avesa dev" in err and "stop it" in err


def test_into_the_embedded_profile_nothing_is_moved(home: Path, avesa: Avesa) -> None:
    code, _, err = avesa(str(home))
    assert code == 1 and "AVESA_PROFILE is embedded" in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("somewhere", "--from-avesa1", "old"), ("somewhere", "--build"),
     ("--from-avesa1", "old", "--verify-only")],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(avesa: Avesa, arguments: tuple[str, ...]) -> None:
    code, _, err = avesa(*arguments)
    assert code == 2 and "Usage" in err


def test_an_import_says_what_it_did_and_what_is_left_to_do(tmp_path: Path, avesa: Avesa) -> None:
    info = {"lastUpdated": "2026-05-01T08:00:00Z"}
    rows = [{"id": number, "summary": "s", "_info": info} for number in (1, 2)]
    folder = tmp_path / "old" / "acme" / "raw" / "connectwise" / "service" / "tickets"
    folder.mkdir(parents=True)
    name = "2026-05-02T00:00:00_c0_batch001.parquet"
    (folder / name).write_bytes(parquet(pa.Table.from_pylist(rows)))
    place = str(tmp_path / "old")
    code, out, _ = avesa("--from-avesa1", place, "--dry-run")
    assert code == 0 and "Nothing was written" in out and "tickets" in out
    assert not (tmp_path / "here" / "lake").exists()
    code, out, _ = avesa("--from-avesa1", place)
    assert code == 0
    assert "acme/canonical/connectwise/tickets 2026-05-01 … 2026-05-01, then acme/history" in out
    code, out, _ = avesa("--from-avesa1", place, "--build", "--json")
    said = json.loads(out)
    assert code == 0 and said["files"][0]["already"] == 1
    assert said["built"] == {
        "partitions": 1, "versions": 2, "histories": {"acme/tickets": 2},
    }  # fmt: skip
    (folder / "no-time.parquet").write_bytes(b"")
    code, out, _ = avesa("--from-avesa1", place)
    assert code == 1 and "its name does not say when it was fetched" in out.replace("\n", " ")


def test_no_such_folder_is_said(avesa: Avesa) -> None:
    code, _, err = avesa("--from-avesa1", "/nowhere/at/all")
    assert code == 1 and "is no folder" in err
