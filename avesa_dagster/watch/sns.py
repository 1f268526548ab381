"""Telling a topic of Amazon SNS, which tells whoever subscribed to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from avesa_dagster.errors import ConfigurationError
from avesa_dagster.watch.conversation import Patience, bounded

if TYPE_CHECKING:
    from avesa_dagster.watch.notify import Message

_TOPIC = re.compile(
    r"arn:aws[a-z-]*:sns:(?P<region>[a-z]{2}(?:-[a-z0-9]+)+):\d{12}:[A-Za-z0-9_-]{1,256}"
)
_SUBJECT = 99
"""Characters of a subject; SNS takes less than 100, of ASCII without control characters."""
_BODY = 200_000
"""Bytes of a message; SNS takes 262,144 together with its attributes."""
_TRIES = 2


class SnsNotifier:
    """Publishes to a topic. Subscriptions may filter by the attributes severity, tenant, service
    and key; tenant and service are not there where the message is about several.

    Makes no call, and does not load boto3, before it sends.

    Args:
        topic_arn: Of a standard topic; its region is where it is published.
        patience: How long AWS is waited for.

    Raises:
        ConfigurationError: It is no ARN of such a topic.
    """

    name = "sns"

    def __init__(
        self,
        topic_arn: str,
        *,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._region = check_topic(topic_arn)
        self._topic = topic_arn
        self._patience = patience

    def send(self, message: Message) -> None:
        """See Notifier.send. A message whose acknowledgement is lost may arrive twice.

        Raises:
            TimedOut, RetriableError: AWS did not answer, or says that it cannot now.
            ConfigurationError: The topic is not there, or credentials or permission are missing.
            StoreError: It does not take the message.
        """
        # Here, because whoever watches an installation without AWS need not load its client.
        from avesa_dagster.aws import client, explained

        published = {
            "TopicArn": self._topic,
            "Subject": _subject(f"AVESA {message.severity.upper()}: {message.subject}"),
            "Message": _body(message.text) or message.severity.upper(),
            "MessageAttributes": _attributes(message),
        }

        def talk(late: Callable[[], bool]) -> None:
            sns = client("sns", self._region, attempts=_TRIES, seconds=self._patience.step)
            if not late():
                sns.publish(**published)

        with explained(f"cannot publish to the SNS topic {self._topic}"):
            # Its own timeouts end the conversation's thread: no socket can be had to be shut.
            bounded(talk, lambda: None, who="SNS", seconds=self._patience.whole)


def check_topic(arn: str) -> str:
    """Returns the region of a topic.

    Raises:
        ConfigurationError: It is no ARN of a standard topic.
    """
    match = _TOPIC.fullmatch(arn)
    if match is None:
        raise ConfigurationError(
            "the topic is no ARN like arn:aws:sns:us-east-2:123456789012:avesa-alarms-prod",
            hint="take the stack's output Topic; a FIFO topic cannot be used",
        )
    return match["region"]


def _subject(text: str) -> str:
    words = " ".join(text.split())
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in words)
    return shown if len(shown) <= _SUBJECT else f"{shown[: _SUBJECT - 3]}..."


def _body(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= _BODY:
        return data.decode()
    return f"{data[:_BODY].decode('utf-8', 'ignore')}…"


def _attributes(message: Message) -> dict[str, Any]:
    values = {
        "severity": message.severity.value,
        "tenant": message.tenant,
        "service": message.service,
        "key": message.key,
    }
    return {
        name: {"DataType": "String", "StringValue": value}
        for name, value in values.items()
        if value
    }
