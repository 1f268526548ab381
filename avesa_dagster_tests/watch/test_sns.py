"""Messages through a topic, as a queue that subscribed to it receives them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.aws import client
from avesa_dagster.errors import AvesaError, ConfigurationError, RetriableError, TimedOut
from avesa_dagster.watch import sns
from avesa_dagster.watch.alerts import settle
from avesa_dagster.watch.findings import Finding, Kind
from avesa_dagster.watch.notify import Severity
from avesa_dagster.watch.recipients import notifiers
from avesa_dagster.watch.sns import SnsNotifier, check_topic
from avesa_dagster_tests.moto import Moto

from .conftest import MESSAGE, NOW
from .servers import Handler, answering, listening

TOPIC = "arn:aws:sns:us-east-2:123456789012:avesa-alarms-prod"
HASTY = sns.Patience(step=0.6, whole=0.9)
PATIENT = sns.Patience(step=5, whole=10)


class Topic:
    """A topic, and queues that subscribe to it."""

    def __init__(self) -> None:
        self.arn: str = client("sns").create_topic(Name=f"t{uuid.uuid4().hex}")["TopicArn"]

    def subscribe(self, **only: object) -> Callable[[], list[dict[str, Any]]]:
        """Subscribes a queue that gets what has these attributes; returns what reads it."""
        sqs = client("sqs")
        url = sqs.create_queue(QueueName=f"q{uuid.uuid4().hex}")["QueueUrl"]
        asked = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        filtered = {"FilterPolicy": json.dumps(only)} if only else {}
        client("sns").subscribe(
            TopicArn=self.arn,
            Protocol="sqs",
            Endpoint=asked["Attributes"]["QueueArn"],
            Attributes=filtered,
        )

        def received() -> list[dict[str, Any]]:
            got = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
            return [json.loads(message["Body"]) for message in got.get("Messages", [])]

        return received


@pytest.fixture
def topic(aws: Moto) -> Topic:
    return Topic()


def test_a_message_arrives_with_what_subscriptions_filter_by(topic: Topic) -> None:
    received = topic.subscribe()
    SnsNotifier(topic.arn).send(replace(MESSAGE, text="Zürich ✓\nline 2"))
    [body] = received()
    assert body["Subject"] == "AVESA ERROR: a subject"
    assert body["Message"] == "Zürich ✓\nline 2"
    assert {name: one["Value"] for name, one in body["MessageAttributes"].items()} == {
        "severity": "error",
        "tenant": "acme",
        "service": "connectwise",
        "key": "kind/acme",
    }


def test_a_subscription_hears_of_its_tenant_only(topic: Topic) -> None:
    everything = topic.subscribe()
    acme = topic.subscribe(tenant=["acme"], severity=["error"])
    notifier = SnsNotifier(topic.arn)
    notifier.send(MESSAGE)
    notifier.send(replace(MESSAGE, tenant="other"))
    notifier.send(replace(MESSAGE, severity=Severity.HEALED))
    several = replace(MESSAGE, tenant=None, service=None, key="several", text="")
    notifier.send(several)
    assert len(everything()) == 4
    assert len(acme()) == 1


def test_alarms_are_told_and_ended_through_a_topic(topic: Topic, control: Any) -> None:
    received = topic.subscribe()
    finding = Finding(Kind.LATE, "acme", "connectwise", "tickets", Severity.WARNING, "late")
    told = [SnsNotifier(topic.arn)]
    assert settle([finding], control.alarms, told, NOW) == {}
    assert settle([finding], control.alarms, told, NOW) == {}
    assert settle([], control.alarms, told, NOW) == {}
    subjects = [body["Subject"] for body in received()]
    assert subjects == [
        "AVESA WARNING: acme connectwise tickets: sync is late",
        "AVESA HEALED: over: acme connectwise tickets: sync is late",
    ]


@given(text=st.text(max_size=300))
def test_any_subject_becomes_one_that_sns_takes(text: str) -> None:
    subject = sns._subject(f"AVESA ERROR: {text}")
    assert 1 <= len(subject) < 100
    assert all(" " <= character <= "~" for character in subject)
    assert subject.startswith("AVESA ERROR:")


@given(text=st.text(), times=st.integers(0, 3000))
def test_any_text_becomes_one_that_fits(text: str, times: int) -> None:
    body = sns._body(text * times)
    assert len(body.encode()) <= 262_144 - 2000
    assert len(text * times) > 40_000 or body == (text * times).encode("utf-8", "replace").decode()


def test_a_long_text_arrives_shortened(topic: Topic) -> None:
    received = topic.subscribe()
    SnsNotifier(topic.arn).send(replace(MESSAGE, subject="s" * 500, text="ü" * 300_000))
    [body] = received()
    assert body["Subject"].endswith("sss...") and len(body["Subject"]) == 99
    assert body["Message"].endswith("ü…") and len(body["Message"].encode()) < 262_144


@pytest.mark.parametrize(
    "arn",
    [
        "",
        "avesa-alarms",
        "arn:aws:sqs:us-east-2:123456789012:avesa",
        "arn:aws:sns:us-east-2:1234:avesa",
        "arn:aws:sns:us-east-2:123456789012:avesa.fifo",
        "arn:aws:sns:us-east-2:123456789012:avesa:9e7a1b0c-subscription",
        "arn:aws:sns:../x:123456789012:avesa",
        f"{TOPIC}\n",
        f" {TOPIC}",
    ],
)
def test_what_is_no_topic_is_refused(arn: str) -> None:
    with pytest.raises(ConfigurationError, match="no ARN like"):
        SnsNotifier(arn)


def test_a_topic_says_in_which_region_it_is() -> None:
    assert check_topic(TOPIC) == "us-east-2"
    assert check_topic("arn:aws-us-gov:sns:us-gov-west-1:123456789012:a_b") == "us-gov-west-1"
    assert check_topic("arn:aws-cn:sns:cn-north-1:123456789012:a") == "cn-north-1"


def test_a_topic_that_is_gone(topic: Topic) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot publish to the SNS topic .*: NotFound"):
        SnsNotifier(f"{topic.arn}-other").send(MESSAGE)


def silent(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def drips(connection: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"x" * 12:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


REFUSED = b"<ErrorResponse><Error><Code>AuthorizationError</Code></Error></ErrorResponse>"


def refusing(connection: socket.socket) -> None:
    connection.recv(65_536)
    head = f"HTTP/1.1 403 No\r\nContent-Type: text/xml\r\nContent-Length: {len(REFUSED)}\r\n\r\n"
    connection.sendall(head.encode() + REFUSED)


@pytest.mark.parametrize(
    ("handle", "kind"),
    [
        (silent, RetriableError),
        (drips, TimedOut),
        (answering("500 Internal Server Error"), RetriableError),
        (answering("503 Slow Down"), RetriableError),
        (refusing, ConfigurationError),
    ],
    ids=["says nothing", "drips", "is broken", "is busy", "refuses"],
)
def test_an_sns_that(
    aws: Moto, monkeypatch: pytest.MonkeyPatch, handle: Handler, kind: type[AvesaError]
) -> None:
    patience = PATIENT if kind is ConfigurationError else HASTY  # it answers, at its leisure
    with listening(handle) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client.cache_clear()
        began = time.monotonic()
        with pytest.raises(kind):
            SnsNotifier(TOPIC, patience=patience).send(MESSAGE)
        assert time.monotonic() - began < patience.whole + 1.5
    for talk in [thread for thread in threading.enumerate() if thread.name == "SNS talk"]:
        talk.join(10)  # both tries end by their own timeouts, or with the peer
        assert not talk.is_alive()


def test_the_file_and_the_variable_choose_the_topic(tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"
    path.write_text(json.dumps({"sns_topic": TOPIC, "log": False}))
    path.chmod(0o600)
    [chosen] = notifiers(tmp_path, {})
    assert isinstance(chosen, SnsNotifier)
    assert chosen._topic == TOPIC
    [chosen] = notifiers(tmp_path, {"AVESA_ALERT_TOPIC": f"{TOPIC}-other"})
    assert isinstance(chosen, SnsNotifier)
    assert chosen._topic == f"{TOPIC}-other"
    assert [n.name for n in notifiers(tmp_path / "none", {"AVESA_ALERT_TOPIC": TOPIC})] == [
        "log",
        "sns",
    ]
    with pytest.raises(ConfigurationError, match=r"AVESA_ALERT_TOPIC: .* no ARN"):
        notifiers(tmp_path, {"AVESA_ALERT_TOPIC": "avesa"})
    path.write_text(json.dumps({"sns_topic": "avesa"}))
    with pytest.raises(ConfigurationError, match=r"alerts\.json: sns_topic: the topic is no ARN"):
        notifiers(tmp_path, {})


def test_whoever_watches_without_aws_does_not_load_its_client() -> None:
    """Importing takes half a second and 30 MB."""
    code = (
        "import sys, avesa_dagster.watch.recipients, avesa_dagster.watch.cloudwatch\n"
        "sys.exit('boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
