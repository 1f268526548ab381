"""The tests on a second S3, which shares no code with moto's: LocalStack's own provider.

`python -m avesa_dagster_tests.second_s3 [what pytest takes]` installs it in a folder of its own
(it wants Python 3.12), starts it on a free port, and runs the tests with AVESA_TEST_S3; without
arguments, those of the lake and the whole conformance suite. Everything but S3 stays moto's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

_WANTED = (
    "localstack-core[base-runtime]==2026.3.0",
    "cbor2==5.8.0",
    "cryptography==43.0.3",
    "pyopenssl==24.3.0",
)
_TESTS = {
    "lake": ("lake", "canonical", "test_erasure_on_aws.py", "-k", "s3 or aws"),
    "conformance": ("conformance", "extract/test_two_at_once.py", "extract/test_kill.py"),
}
_START_SECONDS = 120.0


def main(arguments: list[str]) -> int:
    """Runs the tests; the worst of pytest's exit codes."""
    with localstack(Path(tempfile.gettempdir(), "avesa-localstack")) as url:
        os.environ["AVESA_TEST_S3"] = url
        if arguments:
            return _pytest(arguments)
        here = Path(__file__).parent
        lake, conformance = (
            [str(here / word) if (here / word).exists() else word for word in words]
            for words in _TESTS.values()
        )
        first = _pytest([*lake, "-m", ""])
        os.environ["AVESA_CONFORMANCE_PROFILE"] = "aws"
        return max(first, _pytest(conformance))


@contextmanager
def localstack(folder: Path) -> Iterator[str]:
    """S3 of LocalStack at the URL, until the block ends. Installed in `folder` the first time."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing LocalStack in {folder}", file=sys.stderr)
        subprocess.run([_python(), "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_WANTED], check=True)
        (folder / "installed").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="avesa-s3-") as data:
        environment = os.environ | {
            "GATEWAY_SERVER": "hypercorn",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "SERVICES": "s3",
            "FILESYSTEM_ROOT": data,
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "DNS_ADDRESS": "0",
        }
        with Path(data, "log").open("wb") as log:
            server = subprocess.Popen(
                [python, "-m", "localstack.runtime.main"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            yield _ready(f"http://127.0.0.1:{port}", server, Path(data, "log"))
        finally:
            server.kill()
            server.wait()


def _python() -> str:
    """A Python that LocalStack can be installed for."""
    if sys.version_info >= (3, 12):
        return sys.executable
    for name in ("python3.12", "python3.13", "python3.14"):
        found = shutil.which(name)
        if (
            found
            and subprocess.run([found, "-V"], capture_output=True, check=False).returncode == 0
        ):
            return found
    raise SystemExit("LocalStack wants Python 3.12 or newer; there is none on the PATH")


def _ready(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/_localstack/health", timeout=5).ok:
                return url
        except requests.ConnectionError:
            time.sleep(0.5)
    raise SystemExit(f"LocalStack did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _pytest(arguments: list[str]) -> int:
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]
    return subprocess.run([*words, "--timeout", "1800", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
