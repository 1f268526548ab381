"""Who is told: `AVESA_HOME/alerts.json` and the environment.

```json
{"webhook_url": "https://hooks.slack.com/services/…", "log": true,
 "sns_topic": "arn:aws:sns:us-east-2:123456789012:avesa-alarms-prod",
 "smtp": {"host": "mail.example.org", "port": 587, "user": "avesa", "password": "…",
          "from": "avesa@example.org", "to": ["ops@example.org"]}}
```

The file is the owner's alone (0600), for it holds secrets. AVESA_ALERT_WEBHOOK overrides
`webhook_url`, AVESA_ALERT_TOPIC `sns_topic`. Without any of it, messages go to the log.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from avesa_dagster.errors import ConfigurationError, StoreError
from avesa_dagster.watch.conversation import nameable
from avesa_dagster.watch.notify import (
    LogNotifier,
    Notifier,
    SmtpNotifier,
    WebhookNotifier,
    check_webhook,
)
from avesa_dagster.watch.sns import SnsNotifier, check_topic

FILE = "alerts.json"
WEBHOOK = "AVESA_ALERT_WEBHOOK"
TOPIC = "AVESA_ALERT_TOPIC"

_ADDRESS = re.compile(r"[!-~]+@[A-Za-z0-9.-]+")
_NO_ADDRESS = re.compile(r"[<>,;:\"\\()\[\]]")
_FIELD = re.compile(r"[a-z_]{1,20}|[0-9]{1,3}")
_SMTPS = 465


def _address(value: str) -> str:
    if not _ADDRESS.fullmatch(value) or _NO_ADDRESS.search(value):
        raise ValueError("is no plain address like ops@example.org")
    return value


Address = Annotated[str, AfterValidator(_address)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Smtp(_Model):
    host: str = Field(pattern=r"^[A-Za-z0-9.:_-]+$")
    port: int = Field(default=587, ge=1, le=65_535)
    user: str | None = Field(default=None, min_length=1)
    password: SecretStr | None = None
    sender: Address = Field(alias="from")
    to: tuple[Address, ...] = Field(min_length=1)

    @field_validator("host")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not nameable(value):
            raise ValueError("is no name of a host")
        return value

    @field_validator("port")
    @classmethod
    def _starttls(cls, value: int) -> int:
        if value == _SMTPS:
            raise ValueError("465 is for TLS from the first byte; use STARTTLS, usually port 587")
        return value

    @model_validator(mode="after")
    def _both(self) -> _Smtp:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together: give both or neither")
        return self


class _File(_Model):
    webhook_url: SecretStr | None = None
    sns_topic: str | None = None
    smtp: _Smtp | None = None
    log: bool = True

    @field_validator("webhook_url")
    @classmethod
    def _usable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                check_webhook(value.get_secret_value())
            except ConfigurationError as error:
                raise ValueError(error.what) from None
        return value

    @field_validator("sns_topic")
    @classmethod
    def _a_topic(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_topic(value)
            except ConfigurationError as error:
                raise ValueError(error.what) from None
        return value


def notifiers(home: Path, environ: Mapping[str, str]) -> list[Notifier]:
    """The notifiers that the installation is configured with, the log first.

    Args:
        home: The folder of the installation, AVESA_HOME.
        environ: The environment, usually `os.environ`.

    Raises:
        ConfigurationError: The file, or the variable, is wrong, or others can read the file. Names
            each field, and never shows a value.
        StoreError: The file cannot be read.
    """
    path = home / FILE
    content = _content(path)
    file = _File() if content is None else _parsed(content, path)
    chosen: list[Notifier] = [LogNotifier()] if file.log else []
    if environ.get(WEBHOOK):
        try:
            chosen.append(WebhookNotifier(environ[WEBHOOK]))
        except ConfigurationError as error:
            raise ConfigurationError(f"{WEBHOOK}: {error.what}", hint=error.hint) from None
    elif file.webhook_url is not None:
        chosen.append(WebhookNotifier(file.webhook_url.get_secret_value()))
    if environ.get(TOPIC):
        try:
            chosen.append(SnsNotifier(environ[TOPIC]))
        except ConfigurationError as error:
            raise ConfigurationError(f"{TOPIC}: {error.what}", hint=error.hint) from None
    elif file.sns_topic is not None:
        chosen.append(SnsNotifier(file.sns_topic))
    if smtp := file.smtp:
        password = smtp.password.get_secret_value() if smtp.password else None
        chosen.append(
            SmtpNotifier(
                smtp.host,
                smtp.port,
                sender=smtp.sender,
                recipients=smtp.to,
                user=smtp.user,
                password=password,
            )
        )
    return chosen


def _content(path: Path) -> bytes | None:
    """What the file holds; None if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = b"" if mode & 0o077 else file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error.strerror}", hint="check its permissions"
        ) from error
    if mode & 0o077:
        raise ConfigurationError(
            f"{path} can be read by others (mode {mode:04o})", hint=f"run: chmod 600 {path}"
        )
    return content


def _parsed(content: bytes, path: Path) -> _File:
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path} is no valid JSON (line {error.lineno}, column {error.colno})"
        ) from None
    except (ValueError, RecursionError):  # not UTF-8, or too deep
        raise ConfigurationError(f"{path} is no valid JSON") from None
    try:
        return _File.model_validate(document)
    except ValidationError as error:
        wrong = "; ".join(
            f"{_place(item['loc'])}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(
            f"{path}: {wrong}", hint="it may hold: webhook_url, sns_topic, smtp, log"
        ) from None


def _place(location: tuple[int | str, ...]) -> str:
    # A name that nobody expects may be a secret in the wrong place.
    names = (str(part) if _FIELD.fullmatch(str(part)) else "(a field)" for part in location)
    return ".".join(names) or "the document"
