"""Credentials: what every Secrets does, and how the files are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avesa_dagster.control.base import Secrets
from avesa_dagster.control.secrets import FileSecrets, secret_variable
from avesa_dagster.errors import AvesaError, ConfigurationError, StoreError

SECRET = "hunter2-swordfish"
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,5}", fullmatch=True)


# Every implementation.


def test_what_was_put_comes_back(secrets: Secrets) -> None:
    secrets.put("acme", "connectwise", {"key": SECRET, "site": "né\ud83d\ude00"[:2]})
    secrets.put("acme", "salesforce", {"token": "other"})
    assert secrets.get("acme", "connectwise") == {"key": SECRET, "site": "né"}
    secrets.put("acme", "connectwise", {"key": "new"})
    assert secrets.get("acme", "connectwise") == {"key": "new"}
    assert secrets.get("acme", "salesforce") == {"token": "other"}


def test_removed_credentials_are_gone_and_others_stay(secrets: Secrets) -> None:
    secrets.put("acme", "connectwise", {"key": SECRET})
    secrets.put("acme", "salesforce", {"token": "other"})
    secrets.remove("acme", "connectwise")
    secrets.remove("acme", "never")
    secrets.remove("nobody", "connectwise")
    with pytest.raises(ConfigurationError, match="tenant=acme service=connectwise"):
        secrets.get("acme", "connectwise")
    assert secrets.get("acme", "salesforce") == {"token": "other"}


def test_one_at_a_time_is_in_the_exclusive_block_and_others_go_on(secrets: Secrets) -> None:
    secrets.put("acme", "salesforce", {"token": "0"})

    def count() -> None:
        for _ in range(20):
            with secrets.exclusive("acme", "salesforce"):
                held = int(secrets.get("acme", "salesforce")["token"])
                secrets.put("acme", "salesforce", {"token": str(held + 1)})

    with secrets.exclusive("acme", "connectwise"), ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count) for _ in range(4)]:
            done.result()
    assert secrets.get("acme", "salesforce") == {"token": "80"}
    with pytest.raises(ConfigurationError), secrets.exclusive("../acme", "salesforce"):
        pass


@pytest.mark.parametrize("tenant", ["../etc/passwd", "a/b", "", "A", ".lock"])
def test_a_name_escapes_no_path(secrets: Secrets, tenant: str) -> None:
    for call in (
        lambda: secrets.get(tenant, "s"),
        lambda: secrets.put(tenant, "s", {"a": "b"}),
        lambda: secrets.remove(tenant, "s"),
    ):
        with pytest.raises(ConfigurationError):
            call()


@pytest.mark.parametrize("values", [{}, {"a": 1}, {SECRET: None}, [SECRET], SECRET])
def test_what_is_no_object_of_texts_is_refused(secrets: Secrets, values: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        secrets.put("acme", "connectwise", values)  # type: ignore[arg-type]
    assert SECRET not in everything(caught.value)


# The files and the environment.


def everything(error: BaseException) -> str:
    """All that a logger, a tracker or a person could see of an error, hidden causes too."""
    text = ""
    seen: BaseException | None = error
    while seen is not None:
        text += repr(seen) + str(seen) + repr(seen.args) + repr(getattr(seen, "__dict__", ""))
        text += repr(getattr(seen, "doc", "")) + repr(getattr(seen, "object", ""))
        seen = seen.__cause__ or seen.__context__
    return text + "".join(traceback.format_exception(error))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folder_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        FileSecrets(tmp_path / "s", {}).put("acme", "connectwise", {"key": SECRET})
    finally:
        os.umask(before)
    assert mode(tmp_path / "s") == 0o700
    assert mode(tmp_path / "s" / "acme.json") == 0o600
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [".lock", "acme.json"]


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, open_mode: int) -> None:
    secrets = FileSecrets(tmp_path, {})
    secrets.put("acme", "connectwise", {"key": SECRET})
    (tmp_path / "acme.json").chmod(open_mode)
    for call in (
        lambda: secrets.get("acme", "connectwise"),
        lambda: secrets.put("acme", "x", {"a": "b"}),
    ):
        with pytest.raises(ConfigurationError, match=r"chmod 600 .*acme\.json"):
            call()


def test_the_environment_wins_over_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"AVESA_SECRET_ACME_CONNECTWISE": json.dumps({"key": "from-environment"})}
    secrets = FileSecrets(tmp_path, environ)
    secrets.put("acme", "connectwise", {"key": SECRET})
    assert secrets.get("acme", "connectwise") == {"key": "from-environment"}
    assert "AVESA_SECRET_ACME_CONNECTWISE is set" in caplog.text
    assert SECRET not in caplog.text
    assert "from-environment" not in caplog.text + repr(secrets) + repr(vars(secrets).keys())


def test_the_names_of_variables() -> None:
    assert secret_variable("acme", "connectwise") == "AVESA_SECRET_ACME_CONNECTWISE"
    assert secret_variable("a-b", "c_d") == "AVESA_SECRET_A__DB_C__UD"


@given(first=st.tuples(NAMES, NAMES), second=st.tuples(NAMES, NAMES))
def test_no_two_share_a_variable(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert (secret_variable(*first) == secret_variable(*second)) == (first == second)


def test_lookalikes_have_variables_of_their_own() -> None:
    pairs = [
        ("a", "b-c"), ("a-b", "c"), ("a_b", "c"), ("a", "b_c"), ("a-", "b"), ("a_", "b"),
        ("a--", "b"), ("a-d", "b"), ("a_d", "b"), ("a-_", "b"), ("a_-", "b"), ("a", "d-b"),
    ]  # fmt: skip
    assert len({secret_variable(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    "document",
    [
        f'{{"connectwise": {{"key": "{SECRET}"'.encode(),
        f'"{SECRET}"'.encode(),
        f'{{"connectwise": "{SECRET}"}}'.encode(),
        f'{{"connectwise": {{"{SECRET}": 7}}}}'.encode(),
        f'{{"connectwise": {{"key": "{SECRET}", "number": 7}}}}'.encode(),
        SECRET.encode() + b"\xff\xfe",
        b"[" * 100_000 + SECRET.encode(),
        b'{"connectwise": ' + b"9" * 5_000 + b"}",
        b"",
    ],
)
def test_no_secret_stands_in_any_error(tmp_path: Path, document: bytes) -> None:
    path = tmp_path / "acme.json"
    path.write_bytes(document)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as caught:
        FileSecrets(tmp_path, {}).get("acme", "connectwise")
    assert SECRET not in everything(caught.value)
    assert "acme.json" in str(caught.value)
    assert path.read_bytes() == document
    text = document.decode("utf-8", "replace")
    with pytest.raises(ConfigurationError) as caught:
        FileSecrets(tmp_path, {"AVESA_SECRET_ACME_X": text.replace('{"connectwise": ', "")}).get(
            "acme", "x"
        )
    assert SECRET not in everything(caught.value)


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "acme.json"
    path.write_text("{")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError):
        FileSecrets(tmp_path, {}).put("acme", "connectwise", {"key": SECRET})
    assert path.read_text() == "{"


def test_a_disk_that_refuses_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        FileSecrets(tmp_path / "file", {}).put("acme", "connectwise", {"key": SECRET})
    assert SECRET not in everything(caught.value)


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".acme.json.new"
    left.write_text("half")
    left.chmod(0o644)
    FileSecrets(tmp_path, {}).put("acme", "connectwise", {"key": SECRET})
    assert not left.exists()
    assert mode(tmp_path / "acme.json") == 0o600


def _put(folder: str, worker: int, count: int) -> None:
    secrets = FileSecrets(Path(folder), {})
    for number in range(count):
        secrets.put("acme", f"s{worker}-{number}", {"key": f"{worker}"})


def test_processes_that_put_at_once_lose_nothing(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_put, args=(str(tmp_path), n, 15)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(json.loads((tmp_path / "acme.json").read_text())) == 60


def test_a_killed_writer_leaves_a_whole_file_and_no_lock(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    victim = spawn.Process(target=_put, args=(str(tmp_path), 0, 100_000))
    victim.start()
    while not (tmp_path / "acme.json").exists():
        time.sleep(0.005)
    time.sleep(0.1)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    secrets = FileSecrets(tmp_path, {})
    try:
        secrets.put("acme", "after", {"key": "1"})
    except AvesaError as error:
        pytest.fail(f"the lock or the file was left broken: {error}")
    assert secrets.get("acme", "s0-0") == {"key": "0"}


def test_what_is_forgotten_leaves_no_lock_of_the_tenant(tmp_path: Path) -> None:
    secrets = FileSecrets(tmp_path, {})
    secrets.put("acme", "salesforce", {"key": SECRET})
    for tenant in ("acme", "acme-two"):
        with secrets.exclusive(tenant, "salesforce"):
            pass
    secrets.forget("acme")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".acme-two.salesforce.lock",
        ".lock",
    ]


def test_whoever_waits_too_long_for_the_block_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avesa_dagster.control.secrets._EXCLUSIVE_SECONDS", 0.05)
    secrets = FileSecrets(tmp_path, {})
    with (
        secrets.exclusive("acme", "salesforce"),
        pytest.raises(StoreError, match="was held by another process"),
        secrets.exclusive("acme", "salesforce"),
    ):
        pass
