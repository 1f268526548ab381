"""The `avesa` command as scripts call it: names, JSON, exit codes, errors that say what to do."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.cli.main import cli, main
from avesa_dagster.sandbox.process import Simulator
from avesa_dagster_tests.defs.conftest import House, house, simulator

__all__ = ["house", "simulator"]
CREDENTIALS = {
    "api_base_url": "https://na.myconnectwise.net",
    "company_id": "initech",
    "public_key": "PUBLIC-very-secret",
    "private_key": "PRIVATE-very-secret",
    "client_id": "CLIENT-very-secret",
}


@pytest.fixture
def avesa(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process, which is quicker: exit code, and all that it said."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
        monkeypatch.setenv("AVESA_HOME", str(house.home))
        monkeypatch.setattr(sys, "argv", ["avesa", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out + said.err

    return run


Command = Callable[..., tuple[int, str]]


def connect(
    house: House, credentials: Any, *more: str, tenant: str = "acme", service: str = "connectwise"
) -> subprocess.CompletedProcess[str]:
    text = credentials if isinstance(credentials, str) else json.dumps(credentials)
    return house.run("avesa", "connect", tenant, service, "--credentials", "-", *more, stdin=text)


def test_connect_tenants_coverage_query_and_disconnect_speak_json(
    house: House, simulator: Simulator
) -> None:
    connected = connect(house, simulator.credentials, "--lookback-days", "40", "--json")
    assert connected.returncode == 0, connected.stderr
    row = json.loads(connected.stdout)
    assert (row["tenant"], row["generation"], row["enabled"]) == ("acme", 1, True)
    assert set(row["tables"]) == {"companies", "contacts", "tickets", "time_entries"}
    closed = {"state": "closed", "failures": 0, "reason": "", "since": None, "probe_at": None}
    tenants = json.loads(house.run("avesa", "tenants", "--json").stdout)
    assert tenants == [{**row, "breaker": closed}]
    coverage = json.loads(house.run("avesa", "coverage", "acme", "--json").stdout)
    assert {item["share"] for item in coverage} == {0.0}
    query = house.run("avesa", "query", "acme", "select count(*) as n from tickets", "--json")
    assert json.loads(query.stdout) == [{"n": 0}], query.stderr
    gone = house.run("avesa", "disconnect", "acme", "connectwise", "--json")
    assert json.loads(gone.stdout)["enabled"] is False
    secret = house.settings.secrets / "acme.json"
    assert not secret.exists() or simulator.credentials["private_key"] not in secret.read_text()


def test_a_file_of_credentials_and_chosen_tables(
    house: House, simulator: Simulator, tmp_path: Path
) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(simulator.credentials))
    run = house.run(
        "avesa", "connect", "acme", "connectwise", "--credentials", str(file),
        "--table", "tickets", "--table", "members", "--requests-per-minute", "77", "--json",
    )  # fmt: skip
    row = json.loads(run.stdout)
    assert sorted(row["tables"]) == ["members", "tickets"]
    assert row["requests_per_minute"] == 77


def test_every_newly_started_dagster_process_knows_a_connected_tenant(
    house: House, simulator: Simulator
) -> None:
    connect(house, simulator.credentials)
    listed = house.run("dagster", "asset", "list", "-m", "avesa_dagster.definitions").stdout
    assert "acme/raw/connectwise/tickets" in listed
    assert "acme/history/tickets" in listed


@pytest.mark.parametrize(
    "tenant",
    ["a/b", "../etc", ".", "Acme", "acme!", "ac me", "😀", "a" * 300, "-a", "", "a\nb", "a.b"],
)
def test_a_tenant_name_that_could_escape_is_refused(avesa: Command, tenant: str) -> None:
    for command in (
        ("connect", "--credentials", "-", "--", tenant, "connectwise"),
        ("query", "--", tenant, "select 1"),
        ("coverage", "--", tenant),
    ):
        code, said = avesa(*command, stdin=json.dumps(CREDENTIALS))
        assert code == 1
        assert "no valid tenant name" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"private_key": None}, "private_key"),
        ({"private_key": ""}, "private_key"),
        ({"company_id": 17}, "company_id"),
        ({"pasword": "x"}, "pasword: is not a field"),
        ({"api_base_url": "http://na.myconnectwise.net"}, "https://"),
        ({"api_base_url": "https://user:pw@na.myconnectwise.net"}, "user"),
        ({"api_base_url": "ftp://na.myconnectwise.net"}, "api_base_url"),
    ],
)
def test_unusable_credentials_name_the_field_and_show_no_value(
    avesa: Command, change: dict[str, Any], said: str
) -> None:
    stdin = json.dumps({**CREDENTIALS, **change})
    code, text = avesa("connect", "acme", "connectwise", "--credentials", "-", stdin=stdin)
    assert code == 1
    assert said in text
    assert "very-secret" not in text
    assert json.loads(avesa("tenants", "--json")[1]) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"PRIVATE-very-secret"', '{"a": PRIVATE-very-secret}']
)
def test_credentials_that_are_no_json_object_are_not_quoted(avesa: Command, text: str) -> None:
    code, said = avesa("connect", "acme", "connectwise", "--credentials", "-", stdin=text)
    assert code == 1
    assert "no JSON object" in said
    assert "very-secret" not in said


def test_a_missing_field_is_named(house: House) -> None:
    run = connect(house, {k: v for k, v in CREDENTIALS.items() if k != "client_id"})
    assert "client_id: is missing" in run.stderr


def test_a_file_that_is_not_there_is_named(house: House) -> None:
    run = house.run("avesa", "connect", "acme", "connectwise", "--credentials", "/no/such.json")
    assert run.returncode == 1
    assert "/no/such.json" in run.stderr


def test_unknown_services_tables_and_tenants_say_what_is_known(
    house: House, simulator: Simulator
) -> None:
    assert "known: connectwise" in connect(house, {}, service="halopsa").stderr
    unknown = connect(house, simulator.credentials, "--table", "tikets")
    assert unknown.returncode == 1
    assert "tickets" in unknown.stderr
    connect(house, simulator.credentials)
    for command in (("query", "globex", "select 1"), ("coverage", "globex"), ("sync", "globex")):
        run = house.run("avesa", *command)
        assert run.returncode == 1
        assert "globex" in run.stderr


def test_refused_credentials_store_nothing(house: House, simulator: Simulator) -> None:
    wrong = {**simulator.credentials, "private_key": "WRONG-very-secret"}
    run = connect(house, wrong)
    assert run.returncode == 1
    assert "refused the credentials" in run.stderr
    assert "very-secret" not in run.stderr
    assert json.loads(house.run("avesa", "tenants", "--json").stdout) == []
    assert not (house.settings.secrets / "acme.json").exists()


def test_an_unreachable_host_is_named(house: House) -> None:
    run = connect(house, {**CREDENTIALS, "api_base_url": "http://127.0.0.1:9"})
    assert run.returncode == 1
    assert "127.0.0.1:9 did not answer: it refuses connections" in run.stderr


@pytest.mark.parametrize(
    "sql",
    [
        "create table t as select 1",
        "drop view tickets",
        "insert into tickets select * from tickets",
        "copy tickets to '/tmp/stolen.csv'",
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "attach '/tmp/other.db'",
        "install httpfs",
        "set enable_external_access = true",
        "select 1; drop view tickets",
        "pragma database_list",
        "selec 1",
        "select nonsense from tickets",
    ],
)
def test_a_query_only_reads_its_own_tables(
    house: House, avesa: Command, simulator: Simulator, sql: str
) -> None:
    house.connect("acme", simulator)
    code, said = avesa("query", "acme", sql)
    assert code == 1
    assert said.startswith("avesa: ")
    assert not Path("/tmp/stolen.csv").exists()


def commands() -> list[str]:
    return [
        "connect", "disconnect", "disable", "enable", "tenants", "erase", "sync", "backfill",
        "jobs", "job", "pause", "resume", "cancel", "retry", "verify", "coverage", "query",
        "alerts", "metrics", "doctor", "bootstrap", "migrate", "simulate", "dev", "env", "demo",
    ]  # fmt: skip


def test_every_command_is_known_here() -> None:
    assert set(commands()) == set(cli.commands)


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_examples(avesa: Command, command: str) -> None:
    code, said = avesa(command, "--help")
    assert code == 0
    assert "Example" in said
    assert f"avesa {command}" in said


def test_simulate_prints_where_it_listens() -> None:
    avesa = Path(sys.executable).parent / "avesa"
    command = [avesa, "simulate", "connectwise", "--tickets", "10", "--exit-with-parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(10) == 0
    assert said["url"].startswith("http://127.0.0.1:")
    assert set(said["credentials"]) == set(CREDENTIALS)


def test_connecting_again_keeps_tables_and_budget_unless_told_otherwise(
    house: House, simulator: Simulator
) -> None:
    chosen = ("--table", "tickets", "--table", "members", "--requests-per-minute", "77")
    connect(house, simulator.credentials, *chosen)
    again = json.loads(connect(house, simulator.credentials, "--json").stdout)
    assert (sorted(again["tables"]), again["requests_per_minute"]) == (["members", "tickets"], 77)
    assert again["generation"] == 2
    fewer = connect(house, simulator.credentials, "--table", "tickets")
    assert "No longer synced" in fewer.stdout and "members" in fewer.stdout


def test_the_command_that_connect_prints_works(house: House, simulator: Simulator) -> None:
    said = connect(house, simulator.credentials, "--lookback-days", "40", tenant="acme-eu").stdout
    (command,) = [line for line in said.splitlines() if "dagster asset materialize" in line]
    words = shlex.split(command[command.index("dagster asset") :])
    run = house.run(*words)
    assert run.returncode == 0, run.stderr
    assert "acme-eu connectwise tickets" in run.stderr


def test_only_its_owner_may_look_into_an_installation(house: House, simulator: Simulator) -> None:
    run = house.run_raw(
        "avesa", "connect", "acme", "connectwise", "--credentials", "-",
        stdin=json.dumps(simulator.credentials),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert house.home.stat().st_mode & 0o077 == 0


def test_coverage_shows_what_no_sync_fetched(house: House, simulator: Simulator) -> None:
    house.connect("acme", simulator, days=200)
    installation = house.installation
    long_ago = installation.clock() - timedelta(days=70)
    installation.control.watermarks.advance(
        "acme", "connectwise", "tickets", lower=long_ago, upper=long_ago, now=long_ago
    )
    coverage = json.loads(house.run("avesa", "coverage", "acme", "--json").stdout)
    tickets = [item for item in coverage if item["table"] == "tickets"]
    assert all(item["share"] == 0.0 and item["holes"] for item in tickets)
