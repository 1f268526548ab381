"""One installation, one simulated service, one `avesa dev` and one browser for the whole story."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import sync_playwright

from avesa_dagster.defs.processes import free_port
from avesa_dagster.sandbox.process import Simulator

from .browser import CHROMIUM, FLAGS, SIZE, DagsterUI
from .graphql import GraphQL

ROOT = Path(__file__).parents[2]
LOOKBACK_DAYS = 200
WORLD = {"tickets": 1_500, "time_entries": 1_500, "companies": 60, "contacts": 150, "years": 1}
_AVESA = Path(sys.executable).parent / "avesa"
_UP_SECONDS = 120
_began = time.monotonic()


def say(text: str) -> None:
    """Tells whoever watches what was seen, and when."""
    print(f"[{time.monotonic() - _began:5.1f} s] {text}", flush=True)


@dataclass
class Stage:
    """Where the story plays.

    Attributes:
        log: What `avesa dev` wrote to its terminal; outside of AVESA_HOME.
        credentials: Of each connected tenant.
        notes: What one act leaves to those after it.
    """

    home: Path
    log: Path
    simulator: Simulator
    api: GraphQL
    ui: DagsterUI
    credentials: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def months(self) -> list[str]:
        """Keys of the tenants' partitions, the open one last."""
        start = datetime.strptime(self.notes["history_start"][:7], "%Y-%m")
        now = datetime.now(UTC)
        count = (now.year - start.year) * 12 + now.month - start.month + 1
        begin = start.year * 12 + start.month - 1
        return [f"{n // 12}-{n % 12 + 1:02}-01" for n in range(begin, begin + count)]

    def avesa(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_AVESA, *arguments],
            env=environment(self.home),
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def connect(self, tenant: str, credentials: dict[str, str]) -> None:
        """`avesa connect`, the credentials on standard input: they lie in no file but its own."""
        self.credentials[tenant] = credentials
        done = self.avesa(
            "connect", tenant, "connectwise", "--credentials", "-", "--json",
            "--lookback-days", str(LOOKBACK_DAYS), stdin=json.dumps(credentials),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.notes["history_start"] = json.loads(done.stdout)["history_start"]

    def query(self, tenant: str, sql: str) -> list[dict[str, Any]]:
        done = self.avesa("query", tenant, sql, "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def wait(self, what: str, seen: Callable[[], Any], within: float) -> float:
        """Waits until something is so; returns the seconds it took."""
        began = time.monotonic()
        while not seen():
            assert time.monotonic() - began < within, f"not within {within} s: {what}"
            time.sleep(0.5)
        return time.monotonic() - began


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "AVESA_HOME": str(home),
        "AVESA_MAPPINGS": str(ROOT / "mappings"),
        "PYTHONPATH": str(ROOT),
    }


def secrets_of(credentials: dict[str, str]) -> dict[str, str]:
    """What nobody may find anywhere: the secret fields, and what goes over the wire."""
    user = f"{credentials['company_id']}+{credentials['public_key']}"
    pair = f"{user}:{credentials['private_key']}"
    names = ("public_key", "private_key", "client_id")
    return {name: credentials[name] for name in names} | {
        "authorization": base64.b64encode(pair.encode()).decode()
    }


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("e2e")
    home, pictures = folder / "home", folder / "pictures"
    home.mkdir()
    pictures.mkdir()
    say(f"AVESA_HOME is {home}, pictures go to {pictures}")
    with (
        Simulator(seed=7, requests_per_minute=2_000, **WORLD) as simulator,
        _dev(home, folder / "dev.log") as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            api = GraphQL(url)
            page = browser.new_page(viewport=SIZE, timezone_id="UTC", locale="en-GB")
            ui = DagsterUI(page, url, api.location(), pictures)
            yield Stage(home, folder / "dev.log", simulator, api, ui)
        finally:
            browser.close()


@contextmanager
def _dev(home: Path, log: Path) -> Iterator[str]:
    """`avesa dev` as in a terminal of its own; ended as with Ctrl-C; yields the UI's address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [_AVESA, "dev", "--port", str(port)],
            env=environment(home),
            cwd=home.parent,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )
    try:
        deadline = time.monotonic() + _UP_SECONDS
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no UI on {url}: {log.read_text()}"
            time.sleep(0.3)
        say(f"avesa dev is up on {url}")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        left = _processes_of(home)
        for survivor in left:
            survivor.kill()
        say(f"Ctrl-C: avesa dev ended with {process.poll()}, {len(left)} processes survived it")


def _hear_ctrl_c() -> None:
    """A shell that runs things in the background has them ignore it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _processes_of(home: Path) -> list[psutil.Process]:
    """Processes that were started for this installation, by their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AVESA_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


_FAILED = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def _in_order(request: pytest.FixtureRequest) -> None:
    """The acts build on each other: after one failed, the rest have nothing to stand on."""
    if request.session.stash.get(_FAILED, False):
        pytest.skip("an act before this one failed")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and report.when != "teardown":
        item.session.stash[_FAILED] = True
        stage = getattr(item, "funcargs", {}).get("stage")
        if isinstance(stage, Stage):
            path = stage.ui.picture(f"failed-{item.name}")
            say(f"picture of the failure: {path}; url {stage.ui.page.url}")
