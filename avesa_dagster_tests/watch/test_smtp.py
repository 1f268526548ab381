"""E-mail: a real conversation, encrypted unless it stays on this machine, and bounded."""

from __future__ import annotations

import email
import email.policy
import socket
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avesa_dagster.errors import AvesaError, CredentialsRefused, FatalError, RetriableError
from avesa_dagster.watch.notify import Message, Severity, SmtpNotifier

from .conftest import HASTY, MESSAGE, no_talk_left, soon
from .servers import Handler, Mailbox, a_certificate, listening

SECRET = "P4SS-very-secret"
TO = ("ops@example.org", "boss@example.org")


def notifier(port: int, host: str = "127.0.0.1", **more: object) -> SmtpNotifier:
    return SmtpNotifier(
        host, port, sender="avesa@example.org", recipients=TO, patience=HASTY, **more  # type: ignore[arg-type]
    )  # fmt: skip


def sent(message: Message) -> email.message.EmailMessage:
    mailbox = Mailbox()
    with listening(mailbox) as port:
        notifier(port).send(message)
    [mail] = mailbox.mails
    return email.message_from_string(mail, policy=email.policy.default)


def test_a_mail_arrives_whole() -> None:
    mailbox = Mailbox()
    with listening(mailbox) as port:
        notifier(port).send(replace(MESSAGE, text="Zürich ✓\n.\nafter a dot"))
    mail = email.message_from_string(mailbox.mails[0], policy=email.policy.default)
    assert mail["Subject"] == "AVESA ERROR: a subject"
    assert (mail["From"], mail["To"]) == ("avesa@example.org", ", ".join(TO))
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].endswith("@example.org>")
    # SMTP doubles a dot at the beginning of a line.
    assert mail.get_content().replace("\n..\n", "\n.\n") == "Zürich ✓\n.\nafter a dot\n"
    assert soon(lambda: mailbox.commands[-1] == "QUIT")
    words = [command.split()[0].upper() for command in mailbox.commands]
    assert words == ["EHLO", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]


@settings(deadline=None, max_examples=50)
@given(subject=st.text(), severity=st.sampled_from(Severity))
def test_no_subject_adds_a_header_or_cannot_be_sent(subject: str, severity: Severity) -> None:
    mail = sent(replace(MESSAGE, subject=subject, severity=severity, text=subject))
    assert set(mail.keys()) <= {
        "Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted",
        "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
    }  # fmt: skip
    assert mail["To"] == ", ".join(TO)
    assert mail["Subject"].startswith(f"AVESA {severity.upper()}:")


def test_another_machine_is_only_spoken_to_in_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *a, **k: real("127.0.0.1" if host == "mail.test" else host, *a, **k),
    )
    with a_certificate(tmp_path, "mail.test") as (server, client):
        mailbox = Mailbox(tls=server, login=("avesa", SECRET))
        with listening(mailbox) as port:
            one = notifier(port, "mail.test", user="avesa", password=SECRET, context=client)
            one.send(MESSAGE)
        assert mailbox.encrypted
        assert len(mailbox.mails) == 1
        before = mailbox.commands.index("STARTTLS")
        assert not any(c.startswith(("AUTH", "MAIL")) for c in mailbox.commands[:before])

        stranger = Mailbox(tls=server)
        untrusted = pytest.raises(RetriableError, match="certificate cannot be verified")
        with listening(stranger) as port, untrusted:
            notifier(port, "mail.test").send(MESSAGE)
    plain = Mailbox(login=("avesa", SECRET))
    with listening(plain) as port, pytest.raises(FatalError, match="STARTTLS"):
        notifier(port, "mail.test", user="avesa", password=SECRET).send(MESSAGE)
    assert not any(c.startswith(("AUTH", "MAIL")) for c in plain.commands + stranger.commands)


def test_a_wrong_password_is_said_and_not_shown() -> None:
    mailbox = Mailbox(login=("avesa", "another"))
    refusal = pytest.raises(CredentialsRefused, match="refused the user or the password")
    with listening(mailbox) as port, refusal as raised:
        notifier(port, user="avesa", password=SECRET).send(MESSAGE)
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert mailbox.mails == []


def test_one_recipient_that_is_refused_does_not_silence_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Picky(Mailbox):
        def _say(self, connection: socket.socket, text: str) -> None:  # type: ignore[override]
            refused = self.commands and self.commands[-1].upper() == f"RCPT TO:<{TO[1].upper()}>"
            Mailbox._say(connection, "550 no such user" if refused else text)

    mailbox = Picky()
    with listening(mailbox) as port:
        notifier(port).send(MESSAGE)
    assert len(mailbox.mails) == 1
    assert "refused 1 of 2 recipients" in caplog.text
    assert "example.org" not in caplog.text


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"220-welcome\r\n")
        time.sleep(0.02)


def quiet(connection: socket.socket) -> None:
    while connection.recv(1000):
        pass


def quiet_after_data(connection: socket.socket) -> None:
    class Slow(Mailbox):
        def _say(self, connection: socket.socket, text: str) -> None:  # type: ignore[override]
            if text == "250 taken":
                quiet(connection)
            Mailbox._say(connection, text)

    Slow()(connection)


@pytest.mark.parametrize(
    ("handle", "kind"),
    [
        (drip, RetriableError),
        (quiet, RetriableError),
        (quiet_after_data, RetriableError),
        (lambda connection: None, RetriableError),
        (Mailbox(answers={"MAIL": "451 later"}), RetriableError),
        (Mailbox(answers={"MAIL": f"554 go away {SECRET}"}), FatalError),
        (Mailbox(answers={"RCPT": "550 nobody"}), FatalError),
        (Mailbox(answers={"DATA": "554 spam"}), FatalError),
    ],
    ids=["drips", "quiet", "quiet after data", "hangs up", "later", "refuses", "nobody", "spam"],
)
def test_a_bad_mail_server_is_left_soon(handle: Handler, kind: type[AvesaError]) -> None:
    with listening(handle) as port:
        began = time.monotonic()
        with pytest.raises(AvesaError) as raised:
            notifier(port).send(MESSAGE)
        assert time.monotonic() - began < HASTY.whole + 1
        assert isinstance(raised.value, kind)
        told = "".join(traceback.format_exception(raised.value))
        assert SECRET not in told
        assert "example.org" not in told
        assert soon(no_talk_left)


def test_a_farewell_that_never_comes_does_not_undo_what_was_taken() -> None:
    class Rude(Mailbox):
        def _say(self, connection: socket.socket, text: str) -> None:  # type: ignore[override]
            if text == "221 bye":
                quiet(connection)
            Mailbox._say(connection, text)

    mailbox = Rude()
    with listening(mailbox) as port:
        notifier(port).send(MESSAGE)
    assert len(mailbox.mails) == 1
