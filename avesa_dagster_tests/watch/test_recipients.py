"""alerts.json: whose it is, what it may hold, and that a mistake shows no secret."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.errors import ConfigurationError
from avesa_dagster.watch.recipients import notifiers

from .conftest import MESSAGE
from .servers import answering, listening

SECRET = "S3CR3T-very-secret"
SMTP = {
    "host": "mail.example.org", "port": 587, "user": "avesa", "password": SECRET,
    "from": "avesa@example.org", "to": ["ops@example.org"],
}  # fmt: skip
WHOLE = {"webhook_url": f"https://hooks.example/{SECRET}", "smtp": SMTP, "log": True}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def put(document: Any, mode: int = 0o600) -> Path:
        path = tmp_path / "alerts.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        path.chmod(mode)
        return tmp_path

    return put


def names(home: Path, **environ: str) -> list[str]:
    return [notifier.name for notifier in notifiers(home, environ)]


def test_without_a_file_the_log_is_told(tmp_path: Path) -> None:
    assert names(tmp_path) == ["log"]
    assert names(tmp_path, AVESA_ALERT_WEBHOOK="https://hooks.example/x") == ["log", "webhook"]


def test_what_the_file_says_is_used(write: Callable[..., Path]) -> None:
    assert names(write(WHOLE)) == ["log", "webhook", "email"]
    assert names(write({"log": False})) == []
    assert names(write({})) == ["log"]
    assert names(write({"webhook_url": None, "smtp": None})) == ["log"]
    assert names(write({**WHOLE, "smtp": {k: SMTP[k] for k in ("host", "from", "to")}})) == [
        "log", "webhook", "email",
    ]  # fmt: skip


def test_the_environment_overrides_the_webhook(write: Callable[..., Path]) -> None:
    heard: list[bytes] = []
    with listening(answering("200 OK", heard=heard)) as port:
        home = write({"webhook_url": f"https://hooks.example/{SECRET}", "log": False})
        environ = {"AVESA_ALERT_WEBHOOK": f"http://127.0.0.1:{port}/"}
        [webhook] = notifiers(home, environ)
        webhook.send(MESSAGE)
    assert len(heard) == 1
    with pytest.raises(ConfigurationError, match=r"AVESA_ALERT_WEBHOOK: .* https://") as raised:
        notifiers(home, {"AVESA_ALERT_WEBHOOK": f"http://hooks.example/{SECRET}"})
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_read_is_refused(write: Callable[..., Path], mode: int) -> None:
    with pytest.raises(ConfigurationError, match=r"can be read by others.*chmod 600"):
        notifiers(write(WHOLE, mode), {})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"webhook_url": f"http://hooks.example/{SECRET}"}, "webhook_url: .*https://"),
        ({"webhook_url": [SECRET]}, "webhook_url"),
        ({SECRET: 1}, r"\(a field\)"),
        ({"webhook": f"https://hooks.example/{SECRET}"}, "webhook: "),
        ({"log": SECRET}, "log"),
        ({"smtp": SECRET}, "smtp"),
        ({"smtp": {**SMTP, "port": 465}}, r"smtp\.port: 465 .*STARTTLS"),
        ({"smtp": {**SMTP, "port": SECRET}}, r"smtp\.port"),
        ({"smtp": {**SMTP, "host": f"a b {SECRET}"}}, r"smtp\.host"),
        ({"smtp": {**SMTP, "host": "a..b"}}, r"smtp\.host"),
        ({"smtp": {**SMTP, "user": None}}, "smtp: user and password belong together"),
        ({"smtp": {**SMTP, "to": []}}, r"smtp\.to"),
        ({"smtp": {**SMTP, "to": ["ops@example.org", f"x\r\nBcc: {SECRET}@x"]}}, r"smtp\.to\.1"),
        ({"smtp": {**SMTP, "from": f"AVESA <{SECRET}@example.org>"}}, r"smtp\.from"),
        ({"smtp": {k: v for k, v in SMTP.items() if k != "from"}}, r"smtp\.from: Field required"),
        (f'{{"webhook_url": "{SECRET}', "no valid JSON .line 1, column"),
        (f'["{SECRET}"]', "the document"),
        ("[" * 100_000, "no valid JSON"),
    ],
)
def test_a_mistake_names_the_file_and_the_field_and_shows_no_value(
    write: Callable[..., Path], document: Any, says: str
) -> None:
    home = write(document)
    with pytest.raises(ConfigurationError, match=says) as raised:
        notifiers(home, {})
    assert "alerts.json" in str(raised.value)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_bytes_that_are_no_text_are_no_file(tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"
    path.write_bytes(b'{"log": "\xff\xfe"}')
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="no valid JSON"):
        notifiers(tmp_path, {})


def test_no_notifier_shows_what_it_holds(write: Callable[..., Path]) -> None:
    for notifier in notifiers(write(WHOLE), {}):
        assert SECRET not in f"{notifier!r} {notifier}"
