"""AWS as far as the suite needs it: moto's server, a process of its own, over real HTTP."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from types import TracebackType
from typing import Self

START_SECONDS = 60.0

_SERVER = """
import sys
import threading
from moto.dynamodb.responses import DynamoHandler
from moto.server import ThreadedMotoServer
lock, act = threading.Lock(), DynamoHandler.call_action
def one_at_a_time(self):  # DynamoDB's conditions and transactions are atomic; moto's are not
    with lock:
        return act(self)
DynamoHandler.call_action = one_at_a_time
import copy
from collections import defaultdict
from moto.dynamodb.models.table import Table
def with_the_same_items(table, memo):  # moto copies the table before each transaction, in case it
    twin = copy.copy(table)            # fails; puts and deletes leave the items themselves alone
    items = ((k, dict(v) if isinstance(v, dict) else v) for k, v in table.items.items())
    twin.items = defaultdict(dict, items)
    return twin
Table.__deepcopy__ = with_the_same_items
from moto.secretsmanager.responses import SecretsManagerResponse
secrets_lock, secrets_act = threading.Lock(), SecretsManagerResponse.call_action
def one_secret_at_a_time(self):  # moto takes a label away, and then puts it elsewhere
    with secrets_lock:
        return secrets_act(self)
SecretsManagerResponse.call_action = one_secret_at_a_time
from moto.s3.responses import S3Response
put_lock, put = threading.Lock(), S3Response.put_object
def one_put_at_a_time(self):  # moto looks whether If-Match holds, and then writes
    with put_lock:
        return put(self)
S3Response.put_object = one_put_at_a_time
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
server.stop()
"""
"""Takes a free port, says which, and ends when whoever started it ends or closes its input."""


class Moto:
    """A context manager: the server runs while it is entered, on a free port of this machine.

    Whoever speaks to it sets `environment`; tests that share one take a bucket, or a suffix of
    their tables' names, of their own. With AVESA_TEST_S3, S3 is what answers at that URL.
    """

    def __init__(self) -> None:
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def s3(self) -> str:
        """Where S3 answers."""
        return os.environ.get("AVESA_TEST_S3", self.url)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which boto3 finds the server instead of AWS."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-2",
            "AWS_DEFAULT_REGION": "us-east-2",
            "AWS_EC2_METADATA_DISABLED": "true",
        } | ({} if self.s3 == self.url else {"AWS_ENDPOINT_URL_S3": self.s3})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.url = self._announced(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server; nothing of what it held remains."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    @staticmethod
    def _announced(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        url = process.stdout.readline().strip() if readable else ""
        if not url:
            raise RuntimeError(f"moto's server said nothing within {START_SECONDS:.0f} s")
        return url
