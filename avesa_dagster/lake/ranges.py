"""Objects that are no files, read by ranges: for DuckDB as a file system, for pyarrow as a file.

DuckDB reads one file from many threads at once, each time as a `seek` and a `read`. It holds no
lock between the two, so a file with one position would give a thread another thread's bytes, of
the right number and unnoticed. Here each thread has a position of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fsspec import AbstractFileSystem

from avesa_dagster.errors import AvesaError

TAIL_BYTES = 256 * 1024
"""Read when an object is opened: Parquet keeps at its end what is read first, and many an object
is smaller than this."""

AHEAD = 32
"""Objects that are opened before DuckDB asks for them."""

KEPT_BYTES = 64 * 1024 * 1024
"""Of tails of opened objects that a connection keeps."""

_AHEAD = ThreadPoolExecutor(16, thread_name_prefix="avesa-ahead")


@dataclass(frozen=True, slots=True)
class Opened:
    """One version of an object: whatever happens to its key, these bytes are read.

    Attributes:
        size: Bytes of the object.
        tag: Of this version.
        tail: Its last bytes, at most TAIL_BYTES.
        fetch: Reads `count` bytes from `offset`; both lie within the object.
    """

    size: int
    tag: str
    tail: bytes
    fetch: Callable[[int, int], bytes]

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer only at the object's end."""
        end = min(offset + count, self.size)
        if offset >= end:
            return b""
        held_from = self.size - len(self.tail)
        if offset >= held_from:
            return self.tail[offset - held_from : end - held_from]
        return self.fetch(offset, end - offset)


class Stream(io.RawIOBase):
    """An opened object as a file of one reader."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._opened.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._opened.at(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Shared:
    """An opened object as a file of many threads, each with a position of its own."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._positions: dict[int, int] = {}
        self.closed = False

    def seek(self, offset: int) -> int:
        self._positions[threading.get_ident()] = offset
        return offset

    def read(self, count: int = -1) -> bytes:
        thread = threading.get_ident()
        if thread not in self._positions:
            if self._positions:
                raise io.UnsupportedOperation("several threads read it: each seeks before it reads")
            self._positions[thread] = 0
        offset = self._positions[thread]
        data = self._opened.at(offset, self._opened.size if count < 0 else count)
        self._positions[thread] = offset + len(data)
        return data

    def tell(self) -> int:
        return self._positions.get(threading.get_ident(), 0)

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class Ahead:
    """Opens objects that are never replaced, each once while it is remembered, and before it is
    asked for: DuckDB opens a file several times and few files at once, and where an object is a
    small one, nothing but the way there and back takes time.

    Args:
        opener: Opens the object of a location.
    """

    def __init__(self, opener: Callable[[str], Opened]) -> None:
        self._opener = opener
        # A future that is done already calls back at once.
        self._lock = threading.RLock()
        self._places: dict[str, int] = {}
        self._order: list[str] = []
        self._held: OrderedDict[str, Future[Opened]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    def note(self, path: str) -> None:
        """Says that a location will be asked for, after those that were noted before."""
        with self._lock:
            if path not in self._places:
                self._places[path] = len(self._order)
                self._order.append(path)

    def open(self, path: str) -> Opened:
        """Raises what the opener raises."""
        with self._lock:
            place = self._places.get(path, len(self._order))
            asked = self._ask(path)
            for other in self._order[place + 1 : place + 1 + AHEAD]:
                self._ask(other)
        # What went wrong ahead of time may go well now.
        with contextlib.suppress(AvesaError, KeyError):
            return asked.result()
        self._drop(path)
        return self._opener(path)

    def _ask(self, path: str) -> Future[Opened]:
        asked = self._held.get(path)
        if asked is None:
            asked = self._held[path] = _AHEAD.submit(self._opener, path)
            asked.add_done_callback(lambda done: self._note_size(path, done))
        self._held.move_to_end(path)
        return asked

    def _note_size(self, path: str, done: Future[Opened]) -> None:
        with self._lock:
            if self._held.get(path) is not done or done.exception() is not None:
                return
            self._sizes[path] = len(done.result().tail)
            self._bytes += self._sizes[path]
            while self._bytes > KEPT_BYTES:
                self._drop(next(iter(self._held)))

    def _drop(self, path: str) -> None:
        with self._lock:
            self._held.pop(path, None)
            self._bytes -= self._sizes.pop(path, 0)


class RangeFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """What DuckDB reads objects through: it opens single ones, and can neither list nor write.

    Args:
        protocol: As `s3`.
        within: What each location begins with, as `s3://bucket/` or `s3://bucket/acme/`.
        opener: Opens the object of a location's rest after `root`; KeyError if there is none.
        root: As `s3://bucket/`.
        lasting: Whether the object of a location's rest is never replaced.
    """

    cachable = False

    def __init__(
        self,
        protocol: str,
        root: str,
        within: str,
        opener: Callable[[str], Opened],
        lasting: Callable[[str], bool],
    ) -> None:
        super().__init__()
        self.protocol = protocol
        self._root = root
        self._within = within
        self._opener = opener
        self._lasting = lasting
        self._ahead = Ahead(lambda path: opener(path.removeprefix(root)))
        self._last: dict[int, tuple[str, Opened]] = {}

    def glob(self, path: str, **_: Any) -> list[str]:
        """The one location that a pattern of `database.plain` means; other patterns mean none."""
        plain = _unplain(path)
        if plain is None:
            return []
        if plain.startswith(self._within) and self._lasting(plain.removeprefix(self._root)):
            self._ahead.note(plain)
        return [plain]

    def open(self, path: str, mode: str = "rb", **_: Any) -> _Shared:
        if mode != "rb":
            raise PermissionError(f"{path}: objects of the lake are only read here")
        opened = self._opened(path)
        # DuckDB asks for size and time right after it opened, by the path.
        self._last[threading.get_ident()] = (path, opened)
        return _Shared(opened)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self._known(path).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """A moment that stands for the version, not the one at which it was written: DuckDB keeps
        what it read for as long as this moment is the same, and it counts in seconds."""
        digest = hashlib.sha256(self._known(path).tag.encode()).digest()
        seconds = int.from_bytes(digest[:8], "big") % (10**9)
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self._opened(path)
        except (FileNotFoundError, PermissionError):
            return False
        return True

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def isdir(self, path: str) -> bool:
        return False

    def _known(self, path: str) -> Opened:
        last = self._last.get(threading.get_ident())
        return last[1] if last and last[0] == path else self._opened(path)

    def _opened(self, path: str) -> Opened:
        if not path.startswith(self._within):
            raise PermissionError(f"{path} is out of reach")
        rest = path.removeprefix(self._root)
        try:
            return self._ahead.open(path) if self._lasting(rest) else self._opener(rest)
        except KeyError:
            raise FileNotFoundError(f"there is no {path}") from None


def _unplain(pattern: str) -> str | None:
    """What `database.plain` was applied to; None if the pattern has other wild characters."""
    text = pattern.replace("[*]", "\0").replace("[?]", "\1").replace("[[]", "\2")
    if any(char in "*?[" for char in text):
        return None
    return text.replace("\0", "*").replace("\1", "?").replace("\2", "[")
