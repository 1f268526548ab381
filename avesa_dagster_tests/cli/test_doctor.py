"""`avesa doctor` as a person and a script call it, in both profiles."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avesa_dagster import aws as boto
from avesa_dagster.cli.main import main
from avesa_dagster.defs.homes import prepare
from avesa_dagster.defs.processes import instance_in
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster_tests.doctor.support import made, steady
from avesa_dagster_tests.moto import Moto

MAPPINGS = Path(__file__).parents[2] / "mappings"
SECRET = "S3CR3T-of-a-tenant"
CREDENTIALS = {
    "api_base_url": "http://127.0.0.1:9", "company_id": "c", "public_key": SECRET,
    "private_key": SECRET, "client_id": SECRET,
}  # fmt: skip
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    yield from steady(moto, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def avesa(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("AVESA_HOME", str(home))
    monkeypatch.setenv("AVESA_MAPPINGS", str(MAPPINGS))
    monkeypatch.setenv("DAGSTER_HOME", os.environ.get("DAGSTER_HOME", ""))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avesa", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def levels(out: str) -> dict[str, str]:
    return {check["name"]: check["level"] for check in json.loads(out)["checks"]}


def findings(out: str, level: str) -> list[str]:
    """Of a level, as `check: where: what → todo`."""
    return [
        f"{check['name']}: {one['where']}: {one['what']} → {one['todo']}"
        for check in json.loads(out)["checks"]
        for one in check["findings"]
        if one["level"] == level
    ]


def test_before_anything_was_done_it_warns_and_makes_nothing(avesa: Command, home: Path) -> None:
    code, out, _ = avesa("doctor", "--json")
    assert code == 0, out
    document = json.loads(out)
    assert document["well"] and not document["problems"] and document["warnings"] >= 3
    assert levels(out)["registry"] == "warning" and levels(out)["secrets"] == "skipped"
    assert not home.exists()


def test_an_installation_that_nobody_runs_is_a_problem_and_says_so(
    avesa: Command, home: Path
) -> None:
    settings = Settings(home=home, mappings=MAPPINGS)
    installation = Installation(settings)
    installation.connect("acme", "connectwise", CREDENTIALS, probe=False)
    installation.control.close()
    with instance_in(prepare(settings)):
        home.chmod(0o755)
    code, out, err = avesa("doctor")
    assert code == 1 and SECRET not in out + err
    lines = [line.rstrip() for line in out.splitlines()]
    assert f"    ✗ {home}: is open to others (mode 0755), and records of tenants lie there" in lines
    assert f"      → chmod 700 {home}" in lines
    assert any(line.startswith("✓ mappings") for line in lines)
    assert "no daemon runs: none ever ran" in out and "avesa dev" in out
    assert "acme connectwise: 127.0.0.1:9 takes no connection" in out
    assert lines[-1].startswith("3 problems")
    home.chmod(0o700)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("AVESA_PROFILE", "cloud", "known: embedded, aws"),
        ("AVESA_PROFILE", "aws", "AVESA_BUCKET is not set"),
        ("AVESA_SHARD", "9/8", "write part/parts"),
    ],
)
def test_settings_that_are_wrong_end_it_with_what_to_do(
    avesa: Command, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.delenv("AVESA_BUCKET", raising=False)
    code, out, _ = avesa("doctor", "--json")
    assert code == 1
    assert [text for text in findings(out, "problem") if told in text]
    assert set(levels(out)) == {"settings", "software", "limits"}


def test_mappings_that_are_broken_are_named_and_the_rest_goes_on(
    avesa: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(MAPPINGS, tmp_path / "mappings")
    broken = tmp_path / "mappings" / "services" / "connectwise.json"
    broken.write_text("{")
    monkeypatch.setenv("AVESA_MAPPINGS", str(tmp_path / "mappings"))
    code, out, _ = avesa("doctor", "--json")
    assert code == 1
    (text,) = findings(out, "problem")
    assert text.startswith("mappings: ") and str(broken) in text
    found = levels(out)
    assert found["home"] == "warning" and found["code"] == found["registry"] == "skipped"


def test_all_of_aws(avesa: Command, aws: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    where = made()
    monkeypatch.setenv("AVESA_PROFILE", "aws")
    monkeypatch.setenv("AVESA_ENVIRONMENT", where.environment)
    monkeypatch.setenv("AVESA_BUCKET", where.bucket)
    installation = Installation.from_environment()
    installation.connect("acme", "connectwise", CREDENTIALS, probe=False)
    code, out, err = avesa("doctor", "--json")
    (reach,) = findings(out, "problem")
    assert code == 1 and reach.startswith("reach: acme connectwise: 127.0.0.1:9")
    bad = {name for name, level in levels(out).items() if level != "well"}
    # moto reads no condition of a policy, so there is none; no database of Dagster's is there.
    assert bad == {"reach", "bucket", "dagster", "daemon", "sensors"}, out
    assert SECRET not in out + err

    secret = f"acme/{where.environment}"
    boto.client("secretsmanager").put_secret_value(SecretId=secret, SecretString=f"{{{SECRET}")
    code, out, err = avesa("doctor")
    assert code == 1 and f"secret {secret} is no valid JSON" in out and SECRET not in out + err

    boto.client("dynamodb").delete_table(TableName=where.table("Budgets"))
    monkeypatch.setenv("AVESA_BUCKET", "another-lake-prod")
    code, out, _ = avesa("doctor", "--json")
    texts = findings(out, "problem")
    assert code == 1
    assert any(t.startswith(f"tables: {where.table('Budgets')}: the table is not") for t in texts)
    assert any("belongs to another installation, of the bucket" in text for text in texts)
    assert any("bucket: another-lake-prod: there is no such bucket" in text for text in texts)
    assert any("ends with prod" in text for text in findings(out, "warning"))
    assert levels(out)["registry"] == levels(out)["bucket_allowed"] == "skipped"


def test_no_credentials_of_aws(
    avesa: Command, aws: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    boto.client.cache_clear()
    monkeypatch.setenv("AVESA_PROFILE", "aws")
    monkeypatch.setenv("AVESA_BUCKET", "a-lake")
    code, out, _ = avesa("doctor", "--json")
    assert code == 1
    (text,) = findings(out, "problem")
    assert text.startswith("account: ") and "no AWS credentials" in text and "AWS_PROFILE" in text
    lacking = [check["not_looked_at_for"] for check in json.loads(out)["checks"]]
    assert ["AWS account"] in lacking and levels(out)["clock"] == "well"
