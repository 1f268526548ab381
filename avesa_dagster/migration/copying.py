"""Objects from one lake to another, byte for byte, and the proof that they are the same.

One kind is translated: a history's manifest names the tags of the partitions that it covers, and a
tag is the store's own. In the target it names those of the same partitions there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from avesa_dagster.errors import StoreError
from avesa_dagster.lake.objects import Conflict, ObjectInfo, Objects

THREADS = 12
AT_ONCE_BYTES = 64 * 1024 * 1024
"""A larger object does not pass through memory as a whole."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Listed = Mapping[str, ObjectInfo]


@dataclass(frozen=True, slots=True)
class Difference:
    """How a target's objects differ from the source's: keys.

    Attributes:
        missing: Only in the source.
        foreign: Only in the target.
        other: In both, and not the same, as far as it was looked at.
    """

    missing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.missing or self.foreign or self.other)


@dataclass(frozen=True, slots=True)
class Lakes:
    """Source and target of one tenant's objects."""

    source: Objects
    target: Objects
    tenant: str
    besides: str
    """A key of the target that is not looked at."""

    def listed(self) -> tuple[dict[str, ObjectInfo], dict[str, ObjectInfo]]:
        """All objects of the tenant in source and target, by key."""
        prefix = f"{self.tenant}/"
        source = {info.key: info for info in self.source.list(prefix)}
        target = {info.key: info for info in self.target.list(prefix) if info.key != self.besides}
        return source, target

    def by_size(self, source: Listed, target: Listed) -> Difference:
        """What differs as far as a listing shows."""
        other = [
            key
            for key in sorted(source.keys() & target.keys())
            if source[key].size != target[key].size and not is_manifest(key)
        ]
        return _difference(source, target, other)

    def copy(
        self, keys: Sequence[str], source: Listed, target: Listed, done: Callable[[int], None]
    ) -> None:
        """Copies objects, manifests last; what the target has under these keys is replaced.

        Raises:
            StoreError: An object is not there any more, or somebody else writes there.
        """

        def copy(key: str) -> int:
            held = target.get(key)
            if source[key].size > AT_ONCE_BYTES:
                return self._stream(key)
            data = _read(self.source, key)
            try:
                self.target.put_if(key, data, tag=held.tag if held else None)
            except Conflict:
                # Whoever else moves the same installation at the same time wrote the same.
                if _read(self.target, key) != data:
                    raise
            return len(data)

        plain = [key for key in keys if not is_manifest(key)]
        for size in at_once(copy, plain):
            done(size)
        for key in keys:
            if is_manifest(key):
                wanted, held = self._translated(key), self.target.stat(key)
                self.target.put_if(key, wanted, tag=held.tag if held else None)
                done(len(wanted))

    def compare(
        self, source: Listed, target: Listed, done: Callable[[int], None]
    ) -> tuple[Difference, dict[str, str]]:
        """Reads all that both hold.

        Returns:
            What differs, and the SHA-256 of each object of the source (of a manifest: as it is to
            be in the target).
        """

        def hashes(key: str) -> tuple[str, str, str | None]:
            if is_manifest(key):
                wanted = hashlib.sha256(self._translated(key)).hexdigest()
            else:
                wanted = _hash(self.source, source[key])
            return key, wanted, _hash(self.target, target[key]) if key in target else None

        found: dict[str, str] = {}
        other = []
        for key, wanted, held in at_once(hashes, sorted(source)):
            found[key] = wanted
            if held is not None and held != wanted:
                other.append(key)
            done(source[key].size)
        return _difference(source, target, other), found

    def _stream(self, key: str) -> int:
        with self.source.open(key) as read, self.target.create(key) as path:
            with path.open("wb") as write:
                shutil.copyfileobj(read, write, 8 * 1024 * 1024)
            return path.stat().st_size

    def _translated(self, key: str) -> bytes:
        """The source's manifest with the target's tags; of a partition that has changed since, a
        tag that nothing has, so that it stays one that the generation does not cover."""
        data = _read(self.source, key)
        try:
            said: dict[str, Any] = json.loads(data)
            inputs = dict(said["inputs"])
        except (ValueError, TypeError, KeyError):
            return data  # no manifest, there as here: readers are exact without it
        for name, tag in inputs.items():
            own, theirs = self.source.stat(name), self.target.stat(name)
            holds = own is not None and theirs is not None and own.tag == tag
            inputs[name] = theirs.tag if holds and theirs else f"before-{tag}"
        return json.dumps({**said, "inputs": inputs}, indent=1).encode()


def is_manifest(key: str) -> bool:
    """Whether it is a history's manifest."""
    parts = key.split("/")
    return len(parts) == 4 and parts[1] == "history" and parts[3] == "manifest.json"


def is_derived(key: str) -> bool:
    """Whether it can be made anew from raw."""
    return key.split("/")[1:2] in (["canonical"], ["history"])


def digest(hashes: Mapping[str, str]) -> str:
    """SHA-256 over all keys and hashes: a line `{hash}  {key}` each, by key (as `sha256sum`)."""
    whole = hashlib.sha256()
    for key in sorted(hashes):
        whole.update(f"{hashes[key]}  {key}\n".encode())
    return whole.hexdigest()


def at_once(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int = THREADS
) -> Iterator[_Result]:
    """What the work makes of each item, in their order, several at once; ends with the first
    error."""
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _difference(source: Listed, target: Listed, other: Sequence[str]) -> Difference:
    return Difference(
        tuple(sorted(source.keys() - target.keys())),
        tuple(sorted(target.keys() - source.keys())),
        tuple(other),
    )


def _read(objects: Objects, key: str) -> bytes:
    try:
        return objects.get(key)
    except KeyError:
        raise StoreError(
            f"{key} was there and is gone", hint="is somebody at work there? run it again"
        ) from None


def _hash(objects: Objects, info: ObjectInfo) -> str:
    if info.size <= AT_ONCE_BYTES:
        return hashlib.sha256(_read(objects, info.key)).hexdigest()
    try:
        with objects.open(info.key) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except KeyError:
        raise StoreError(
            f"{info.key} was there and is gone", hint="is somebody at work there? run it again"
        ) from None
