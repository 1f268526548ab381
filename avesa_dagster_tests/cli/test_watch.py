"""`avesa alerts` and `avesa metrics` as a person and a script call them."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from avesa_dagster.cli.main import main
from avesa_dagster.control.health import Alarm
from avesa_dagster.installation import Installation
from avesa_dagster.settings import Settings
from avesa_dagster.watch.alerts import settle
from avesa_dagster.watch.findings import findings
from avesa_dagster_tests.watch.servers import Mailbox, answering, listening

MAPPINGS = Path(__file__).parents[2] / "mappings"
SECRET = "T0K3N-very-secret"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def installation(home: Path) -> Iterator[Installation]:
    opened = Installation(Settings(home=home, mappings=MAPPINGS))
    yield opened
    opened.control.close()


@pytest.fixture
def avesa(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("AVESA_HOME", str(home))
        monkeypatch.setenv("AVESA_MAPPINGS", str(MAPPINGS))
        monkeypatch.setattr(sys, "argv", ["avesa", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def configure(home: Path, document: Any) -> None:
    home.mkdir(exist_ok=True)
    path = home / "alerts.json"
    path.write_text(json.dumps(document))
    path.chmod(0o600)


def suspend(installation: Installation) -> None:
    now = installation.clock()
    installation.control.registry.connect(
        "acme",
        "connectwise",
        history_start=now - timedelta(days=30),
        tables=["tickets"],
        requests_per_minute=77,
        now=now,
    )
    installation.control.breakers.failed(
        "acme", "connectwise", "the service refused [x]", credentials=True, now=now
    )


def test_alerts_lists_what_is_wrong_and_since_when(
    avesa: Command, installation: Installation
) -> None:
    assert avesa("alerts") == (0, "Nothing is wrong.\n", "")
    assert avesa("alerts", "--json") == (0, "[]\n", "")
    suspend(installation)
    [row] = json.loads(avesa("alerts", "--json")[1])
    assert (row["key"], row["said_at"]) == ("breaker_open/acme/connectwise", None)
    found = findings(installation.control, installation.catalog, installation.clock())
    since = installation.clock() - timedelta(hours=5)
    settle(found, installation.control.alarms, [], since)
    installation.control.alarms.put(
        Alarm("disagrees/acme/connectwise/tickets", "acme", "3 of 90 differ", since, since)
    )
    rows = json.loads(avesa("alerts", "--json")[1])
    assert [(row["key"], row["since"]) for row in rows] == [
        ("breaker_open/acme/connectwise", since.isoformat()),
        ("disagrees/acme/connectwise/tickets", since.isoformat()),
    ]
    code, said, _ = avesa("alerts")
    assert code == 0
    assert f"{since:%Y-%m-%d %H:%M}" in said
    assert "the service refused [x]" in " ".join(said.split())


def test_alerts_test_says_how_each_notifier_went(avesa: Command, home: Path) -> None:
    heard: list[bytes] = []
    mailbox = Mailbox()
    with listening(answering("200 OK", heard=heard)) as port, listening(mailbox) as mail:
        document = {
            "webhook_url": f"http://127.0.0.1:{port}/{SECRET}",
            "smtp": {
                "host": "127.0.0.1",
                "port": mail,
                "from": "a@b.example",
                "to": ["c@d.example"],
            },
        }
        configure(home, document)
        code, said, _ = avesa("alerts", "--test")
    assert (code, said) == (0, "log: sent\nwebhook: sent\nemail: sent\n")
    assert b"avesa alerts --test" in heard[0]
    assert len(mailbox.mails) == 1


def test_alerts_test_fails_if_one_fails_and_shows_no_secret(avesa: Command, home: Path) -> None:
    with listening(answering("404 Not Found")) as port:
        configure(home, {"webhook_url": f"http://127.0.0.1:{port}/{SECRET}"})
        code, said, error = avesa("alerts", "--test")
        assert code == 1
        assert "log: sent" in said
        assert "webhook: FAILED: the webhook answered 404" in said
        assert SECRET not in said + error
        code, said, error = avesa("alerts", "--test", "--json")
    assert code == 1
    log, webhook = json.loads(said)
    assert log == {"notifier": "log", "error": None}
    assert webhook["error"].startswith("the webhook answered 404")


def test_alerts_test_with_nobody_to_tell_or_a_wrong_file(avesa: Command, home: Path) -> None:
    configure(home, {"log": False})
    code, _, error = avesa("alerts", "--test")
    assert code == 1
    assert "no notifier is configured" in error
    configure(home, {"log": False, "webhook_url": f"http://hooks.example/{SECRET}"})
    code, _, error = avesa("alerts", "--test")
    assert code == 1
    assert "webhook_url" in error
    assert SECRET not in error


def test_metrics_serves_until_it_is_stopped(home: Path, installation: Installation) -> None:
    suspend(installation)
    program = Path(sys.executable).parent / "avesa"
    with subprocess.Popen(
        [program, "metrics", "--port", "0"],
        env={"AVESA_HOME": str(home), "AVESA_MAPPINGS": str(MAPPINGS), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        said = requests.get(address, timeout=10).text
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    assert 'avesa_breaker_state{tenant="acme",service="connectwise"} 2.0' in said
    assert 'avesa_budget_limit{tenant="acme",service="connectwise"} 77.0' in said


def test_metrics_says_that_its_port_is_taken(avesa: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, error = avesa("metrics", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "is in use by another program" in error
    assert "--port" in error
