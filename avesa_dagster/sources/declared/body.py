"""What lies where in an answer's body, as the bytes that came."""

from __future__ import annotations

import json
import re

import msgspec
from msgspec import Raw

from avesa_dagster.sources.records import InvalidPage

_members = msgspec.json.Decoder(dict[str, Raw])
_scanner = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def members(body: bytes) -> dict[str, bytes]:
    """The members of a JSON object, each byte for byte.

    Raises:
        InvalidPage: The body is no JSON object.
    """
    try:
        return {name: bytes(value) for name, value in _members.decode(body).items()}
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        found = _scanned(body)
    if found is None:
        raise InvalidPage("the answer is no JSON object")
    return found


def at(body: bytes, place: str) -> bytes | None:
    """The bytes at a place, names joined by dots; None if there is nothing.

    Raises:
        InvalidPage: The body is no JSON object, or something on the way is none.
    """
    here: bytes | None = body
    for name in place.split("."):
        if here is None or here.strip() == b"null":
            return None
        here = members(here).get(name)
    return here


def text(raw: bytes) -> str:
    """What a JSON value says, in words: a text's content, else the value itself; null is empty."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidPage("the answer is no JSON") from None
    if value is None:
        return ""
    return value if isinstance(value, str) else raw.decode()


def number(raw: bytes | None) -> int:
    """A count. Raises InvalidPage for anything else."""
    said = text(raw) if raw is not None else ""
    if not re.fullmatch(r"[0-9]{1,18}", said):
        raise InvalidPage("the answer is no count")
    return int(said)


def flag(raw: bytes | None) -> bool:
    """A true or false. Raises InvalidPage for anything else."""
    if raw is None or raw.strip() not in (b"true", b"false"):
        raise InvalidPage("the answer does not say whether more follows")
    return raw.strip() == b"true"


def says_yes(raw: bytes) -> bool:
    """Whether a value is anything but null, false, 0 or an empty text."""
    return raw.strip() not in (b"null", b"false", b"0", b'""')


def _scanned(body: bytes) -> dict[str, bytes] | None:
    """`members` by the standard library: it reads texts that hold half of a surrogate pair."""
    found: dict[str, bytes] = {}
    try:
        said = body.decode().strip(" \t\n\r")
        if not said.startswith("{"):
            return None
        at = _space(said, 1)
        if said[at] == "}":
            return found if not said[at + 1 :] else None
        while True:
            name, at = _scanner.raw_decode(said, _space(said, at))
            at = _space(said, at)
            if not isinstance(name, str) or said[at] != ":":
                return None
            start = _space(said, at + 1)
            _, at = _scanner.raw_decode(said, start)
            found[name] = said[start:at].encode()
            at = _space(said, at)
            if said[at] != ",":
                return found if said[at:] == "}" else None
            at += 1
    except (ValueError, IndexError, RecursionError):
        return None


def _space(said: str, at: int) -> int:
    found = _SPACE.match(said, at)
    return found.end() if found else at
