"""Telling somebody: through the log, a webhook, or e-mail (`watch.sns`: or a topic of SNS).

A notifier returns when its receiver took the message and raises otherwise, after about ten
seconds at the latest. The webhook's address is as good as a password: whoever has it can write.
So it stands in no error and no log, and neither does its host. That is also why this is
`http.client`: `requests` and urllib3 log the path of each request at DEBUG.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import logging
import smtplib
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from enum import StrEnum
from typing import Protocol
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from avesa_dagster.errors import (
    AvesaError,
    ConfigurationError,
    CredentialsRefused,
    FatalError,
    RetriableError,
)
from avesa_dagster.watch.conversation import Patience, bounded, cause, loopback, nameable, trusting

_log = logging.getLogger(__name__)

_AGAIN = {408, 425, 429}
_SUBJECT = 200
"""Characters of a subject line."""


class Severity(StrEnum):
    WARNING = "warning"
    ERROR = "error"
    HEALED = "healed"


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody is told.

    Attributes:
        subject: One line.
        text: Plain text, of one or more lines.
        tenant, service: Whose; None if it is about several.
        key: What and whose, for example `breaker_open/acme/connectwise`; `several` for several.
    """

    subject: str
    text: str
    severity: Severity
    tenant: str | None
    service: str | None
    key: str


class Notifier(Protocol):
    """A way to tell somebody."""

    @property
    def name(self) -> str:
        """Of a-z, 0-9 and '-'; unique among the notifiers of an installation, and stable."""
        ...

    def send(self, message: Message) -> None:
        """Returns when the receiver took the message.

        Raises:
            AvesaError: It was not taken, or nobody knows. No secret is in the text.
        """
        ...


class LogNotifier:
    """Writes each message into the log of this process, an end as visibly as a beginning."""

    name = "log"

    def send(self, message: Message) -> None:
        """See Notifier.send."""
        level = logging.ERROR if message.severity is Severity.ERROR else logging.WARNING
        _log.log(level, "%s: %s", message.subject, message.text)


class WebhookNotifier:
    """Posts `{"text": ...}`, which Slack, Mattermost and many others take.

    Redirects are not followed. https goes through the proxy of the environment (HTTPS_PROXY).

    Args:
        url: https, or http to this machine.
        context: TLS; None: the authorities of the system.
        patience: How long the receiver is waited for.

    Raises:
        ConfigurationError: The address cannot be used; it is not in the text.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        *,
        context: ssl.SSLContext | None = None,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        check_webhook(url)
        self._patience = patience
        self._parts = urlsplit(url)
        self._context = context

    def send(self, message: Message) -> None:
        """See Notifier.send.

        Raises:
            TimedOut, RetriableError: It did not answer, or says that it cannot now.
            FatalError: It does not take the message.
        """
        said = f"AVESA {message.severity.upper()}: {message.subject}\n{message.text}"
        body = json.dumps({"text": _for_slack(said)}).encode()
        target = self._parts.path or "/"
        if self._parts.query:
            target += f"?{self._parts.query}"
        held: list[http.client.HTTPConnection] = []

        def talk(late: Callable[[], bool]) -> int:
            connection = self._connection()
            held.append(connection)
            try:
                connection.connect()
                if late():
                    return 0
                connection.request("POST", target, body, {"Content-Type": "application/json"})
                return connection.getresponse().status
            finally:
                connection.close()

        try:
            status = bounded(
                talk,
                lambda: held[0].sock if held else None,
                who="the webhook",
                seconds=self._patience.whole,
            )
        except (OSError, http.client.HTTPException) as error:
            refused = type(error) is OSError and error.errno is None  # as http.client says it
            why = "the proxy does not connect to it" if refused else cause(error)
            raise RetriableError(
                f"the webhook did not take the message: {why}",
                hint="check webhook_url, and that its host can be reached",
            ) from None
        _check(status)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._patience.step)
        context = self._context or trusting()
        proxy = None if loopback(host) or proxy_bypass(host) else getproxies().get("https")
        if not proxy:
            return http.client.HTTPSConnection(
                host, port, timeout=self._patience.step, context=context
            )
        try:
            via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            proxy_port = via.port or 80
        except ValueError:
            raise ConfigurationError("HTTPS_PROXY is no address of a proxy") from None
        connection = http.client.HTTPSConnection(
            via.hostname or "", proxy_port, timeout=self._patience.step, context=context
        )
        headers = {}
        if via.username:
            pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        connection.set_tunnel(host, port, headers)
        return connection


def check_webhook(url: str) -> None:
    """Refuses an address that a webhook cannot have.

    Raises:
        ConfigurationError: Without the address.
    """

    def refused(why: str) -> ConfigurationError:
        return ConfigurationError(
            f"the webhook's address {why}",
            hint="write https://…, as the service that receives it shows it",
        )

    if not url.isascii() or not url.isprintable() or " " in url:
        raise refused("holds spaces or signs that no address has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused("is no address") from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not nameable(host) or port == 0:
        raise refused("is no address that begins with https://")
    if parts.username or parts.password or parts.fragment:
        raise refused("must hold neither a user nor a fragment")
    if parts.scheme == "http" and not loopback(host):
        raise refused("must begin with https:// (plain http only reaches this machine)")


class _Smtp(smtplib.SMTP):
    """Not connected yet, so that its socket can be had while it connects."""

    def __init__(self, host: str, timeout: float) -> None:
        super().__init__(timeout=timeout)
        self._host = host  # what the certificate must name; `connect` does not set it


class SmtpNotifier:
    """Sends an e-mail. STARTTLS always, but to this machine.

    Args:
        sender, recipients: Plain addresses.
        user, password: Both or neither.
        context: TLS; None: the authorities of the system.
    """

    name = "email"

    def __init__(
        self,
        host: str,
        port: int,
        *,
        sender: str,
        recipients: Sequence[str],
        user: str | None = None,
        password: str | None = None,
        context: ssl.SSLContext | None = None,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._patience = patience
        self._host, self._port = host, port
        self._sender, self._recipients = sender, tuple(recipients)
        self._user, self._password = user, password
        self._context = context

    def send(self, message: Message) -> None:
        """See Notifier.send. A recipient that is refused while another is taken is a warning.

        Raises:
            CredentialsRefused: User or password are wrong.
            TimedOut, RetriableError: It did not answer, or says that it cannot now.
            FatalError: It does not take the message, or offers no encryption.
        """
        mail = self._mail(message)
        opened: list[smtplib.SMTP] = []

        def talk(late: Callable[[], bool]) -> int:
            # Asks for this machine's name, which may be slow too.
            smtp = _Smtp(self._host, self._patience.step)
            opened.append(smtp)
            try:
                return self._talk(smtp, mail, late)
            finally:
                smtp.close()

        def sock() -> socket.socket | None:
            return opened[0].sock if opened else None

        try:
            refused = bounded(talk, sock, who="the mail server", seconds=self._patience.whole)
        except smtplib.SMTPException as error:
            raise _mail_error(error) from None
        except OSError as error:
            raise RetriableError(
                f"the mail server did not take the message: {cause(error)}",
                hint="check smtp.host and smtp.port, and that it can be reached",
            ) from None
        if refused:
            _log.warning(
                "the mail server refused %d of %d recipients", refused, len(self._recipients)
            )

    def _talk(self, smtp: smtplib.SMTP, mail: EmailMessage, late: Callable[[], bool]) -> int:
        """Returns how many recipients were refused."""

        def encrypt() -> None:
            smtp.starttls(context=self._context or trusting())

        def log_in() -> None:
            smtp.login(self._user or "", self._password or "")

        refused: dict[str, tuple[int, bytes]] = {}

        def deliver() -> None:
            refused.update(smtp.send_message(mail, self._sender, self._recipients))

        steps: list[Callable[[], object]] = [lambda: smtp.connect(self._host, self._port)]
        if not loopback(self._host):
            steps.append(encrypt)
        if self._user is not None:
            steps.append(log_in)
        for step in (*steps, deliver):
            if late():
                return 0
            step()
        with suppress(OSError, smtplib.SMTPException):
            smtp.putcmd("QUIT")  # its answer would tell nothing: the message was taken
        return len(refused)

    def _mail(self, message: Message) -> EmailMessage:
        subject = " ".join(f"AVESA {message.severity.upper()}: {message.subject}".split())
        mail = EmailMessage()
        mail["Subject"] = _valid(subject)[:_SUBJECT]
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._recipients)
        mail["Date"] = email.utils.localtime()
        mail["Message-ID"] = email.utils.make_msgid(domain=self._sender.rpartition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(_valid(message.text), cte="quoted-printable")  # not all take 8 bits
        return mail


def _check(status: int) -> None:
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise ConfigurationError(
            "the webhook redirects elsewhere; redirects are not followed",
            hint="set webhook_url to where the messages are to go",
        )
    text = f"the webhook answered {status}"
    if status in _AGAIN or status >= 500:
        raise RetriableError(text, hint="it is tried again later")
    raise FatalError(text, hint="check webhook_url; the receiver may have revoked it")


def _mail_error(error: smtplib.SMTPException) -> AvesaError:
    """What a mail server refused. Its own words stay out: they may quote what was sent."""
    match error:
        case smtplib.SMTPAuthenticationError():
            return CredentialsRefused(
                "the mail server refused the user or the password",
                hint="check smtp.user and smtp.password",
            )
        case smtplib.SMTPRecipientsRefused():
            return FatalError("the mail server refused every recipient", hint="check smtp.to")
        case smtplib.SMTPNotSupportedError():
            return FatalError(
                "the mail server does not offer what is needed (STARTTLS, or a login)",
                hint="use the port for submission, usually 587",
            )
        case smtplib.SMTPResponseException():
            kind = RetriableError if 400 <= error.smtp_code < 500 else FatalError
            return kind(f"the mail server answered {error.smtp_code}")
        case _:
            return RetriableError(
                "the mail server closed the connection, or was silent for too long",
                hint="check smtp.host and smtp.port",
            )


def _for_slack(text: str) -> str:
    # `<!channel>` in an error's text must not wake everybody.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
