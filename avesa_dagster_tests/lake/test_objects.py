"""Objects are written whole or not at all. A new implementation is one line in OPENERS."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from avesa_dagster.errors import StoreError
from avesa_dagster.lake.objects import Conflict, LocalObjects, Objects
from avesa_dagster.lake.s3 import S3Objects

Fixtures = Callable[[str], Any]

OPENERS: dict[str, Callable[[Fixtures], Objects]] = {
    "local": lambda fixture: LocalObjects(fixture("tmp_path") / "lake"),
    "s3": lambda fixture: S3Objects(fixture("bucket")),
}


@pytest.fixture(params=OPENERS)
def objects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Objects:
    # What is staged is staged where the test looks.
    monkeypatch.setattr(tempfile, "tempdir", str(request.getfixturevalue("tmp_path")))
    return OPENERS[request.param](request.getfixturevalue)


def keys(objects: Objects, prefix: str = "a/") -> list[str]:
    return [info.key for info in objects.list(prefix)]


# Behaviour: every implementation.


def test_what_is_put_can_be_read_listed_and_deleted(objects: Objects) -> None:
    info = objects.put("a/b/one", b"bytes")
    assert objects.get("a/b/one") == b"bytes"
    with objects.open("a/b/one") as file:
        assert (file.seek(2), file.read()) == (2, b"tes")
    assert objects.stat("a/b/one") == info
    assert objects.list("a/") == objects.list("a/b/") == [info]
    assert info.size == 5
    objects.delete("a/b/one")
    objects.delete("a/b/one")
    assert (objects.stat("a/b/one"), keys(objects)) == (None, [])


def test_what_is_absent_is_told_apart_from_what_is_empty(objects: Objects) -> None:
    objects.put("a/empty", b"")
    assert objects.get("a/empty") == b""
    for absent in ("a", "a/other", "a/empty/below"):
        assert objects.stat(absent) is None
        with pytest.raises(KeyError):
            objects.get(absent + "/x")
        with pytest.raises(KeyError):
            objects.open(absent + "/x")
        objects.delete(absent + "/x")
    assert keys(objects, "a/empty/below/") == keys(objects, "nothing/") == []


def test_lists_are_ordered_by_key(objects: Objects) -> None:
    for name in ("b/2", "b/1", "a-b", "a", "b/10"):
        objects.put(f"a/{name}", b"x")
    assert keys(objects) == sorted(keys(objects))
    assert len(keys(objects)) == 5


def test_a_tag_changes_with_each_replacement_even_by_equal_bytes(objects: Objects) -> None:
    # Many, for a clock may be coarse; fewer where each is a request.
    times = 300 if isinstance(objects, LocalObjects) else 40
    tags = {objects.put("a/x", b"same").tag for _ in range(times)}
    assert len(tags) == times


def test_what_is_being_created_is_not_seen_until_it_is_whole(objects: Objects) -> None:
    objects.put("a/x", b"old")
    with objects.create("a/x") as path, path.open("wb") as file:
        file.write(b"new, but h")
        file.flush()
        assert objects.get("a/x") == b"old"
        assert keys(objects) == ["a/x"]
        file.write(b"alf")
    assert objects.get("a/x") == b"new, but half"


def test_a_create_that_fails_leaves_nothing(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), objects.create("a/x") as path:
        path.write_bytes(b"half")
        raise ValueError("stop")
    assert (objects.stat("a/x"), keys(objects)) == (None, [])
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]


def test_a_create_that_writes_nothing_is_an_error(objects: Objects) -> None:
    with pytest.raises(StoreError, match="nothing was written"), objects.create("a/x"):
        pass
    assert objects.stat("a/x") is None


def test_put_if_writes_only_over_the_tag_it_knows(objects: Objects) -> None:
    first = objects.put_if("a/x", b"1", tag=None)
    with pytest.raises(Conflict):
        objects.put_if("a/x", b"2", tag=None)
    second = objects.put_if("a/x", b"2", tag=first.tag)
    with pytest.raises(Conflict):
        objects.put_if("a/x", b"3", tag=first.tag)
    with pytest.raises(Conflict):
        objects.put_if("a/other", b"3", tag=second.tag)
    assert objects.get("a/x") == b"2"
    assert objects.stat("a/other") is None


def test_of_threads_that_put_if_at_once_one_wins(objects: Objects) -> None:
    def win(number: int) -> bool:
        barrier.wait()
        try:
            objects.put_if("a/x", str(number).encode(), tag=None)
        except Conflict:
            return False
        return True

    for _ in range(20):
        objects.delete("a/x")
        barrier = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(win, range(8))) == 1


@pytest.mark.parametrize(
    "key", ["", "/", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/./b", "a/.."]
)
def test_a_key_that_leaves_the_lake_is_refused(objects: Objects, key: str) -> None:
    for use in (
        objects.get,
        objects.stat,
        objects.list,
        objects.delete,
        objects.location,
        objects.open,
        lambda k: objects.put(k, b"x"),
        lambda k: objects.put_if(k, b"x", tag=None),
    ):
        with pytest.raises(StoreError, match="is no key"):
            use(key)


# Files: crashes, full disks, races between processes.


def count_up(root: Path) -> int:
    """Adds one to a counter 25 times, by put_if; returns how often somebody else was first."""
    lake, lost = LocalObjects(root), 0
    for _ in range(25):
        while True:
            held = lake.stat("a/count")
            value = int(lake.get("a/count")) if held else 0
            try:
                lake.put_if("a/count", str(value + 1).encode(), tag=held.tag if held else None)
                break
            except Conflict:
                lost += 1
    return lost


def test_processes_that_count_together_lose_no_count(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(count_up, [tmp_path] * 4))
    assert LocalObjects(tmp_path).get("a/count") == b"100"


CRASH = """
import sys
from pathlib import Path
from avesa_dagster.lake.objects import LocalObjects
with LocalObjects(Path(sys.argv[1])).create("a/x") as path:
    with path.open("wb") as file:
        file.write(b"half of i")
        file.flush()
        print("half", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("held", [None, b"old"])
def test_a_process_killed_while_creating_leaves_what_was_there(
    tmp_path: Path, held: bytes | None
) -> None:
    lake = LocalObjects(tmp_path)
    if held is not None:
        lake.put("a/x", held)
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert keys(lake) == ([] if held is None else ["a/x"])
    assert held is None or lake.get("a/x") == held
    lake.put("a/x", b"new")
    assert lake.get("a/x") == b"new"


def test_a_full_disk_is_explained_and_leaves_what_was_there(tmp_path: Path) -> None:
    lake = LocalObjects(tmp_path)
    lake.put("a/x", b"old")
    with pytest.raises(StoreError, match="No space left") as caught, lake.create("a/x") as path:
        path.write_bytes(b"half")
        # Linux answers every write to this device as a full disk would.
        with Path("/dev/full").open("wb") as full:
            full.write(b"x" * 100_000)
    assert "free some space" in str(caught.value)
    assert lake.get("a/x") == b"old"
    assert not list((tmp_path / ".staging").iterdir())


def test_a_write_beyond_the_file_size_limit_leaves_what_was_there(tmp_path: Path) -> None:
    lake = LocalObjects(tmp_path)
    lake.put("a/x", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot be read or written"):
            lake.put("a/x", os.urandom(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert lake.get("a/x") == b"old"
    assert not list((tmp_path / ".staging").iterdir())


def test_a_file_in_place_of_a_folder_is_explained(tmp_path: Path) -> None:
    lake = LocalObjects(tmp_path)
    lake.put("a", b"a file")
    for key in ("a/x", "a/b/c/x"):
        with pytest.raises(StoreError, match="cannot be read or written"):
            lake.put(key, b"x")
    assert lake.get("a") == b"a file"


def test_a_root_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("not a folder")
    lake = LocalObjects(tmp_path / "root")
    with pytest.raises(StoreError, match="check the folder's owner"):
        lake.put("a/x", b"x")
    with pytest.raises(StoreError, match="check the folder's owner"):
        lake.put_if("a/x", b"x", tag=None)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We may be root, whom no permission stops; so the system call itself refuses."""
    lake = LocalObjects(tmp_path)
    lake.put("a/b/x", b"x")
    scan = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        lake.list("a/")
