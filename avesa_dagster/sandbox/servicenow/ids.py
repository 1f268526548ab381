"""sys_ids: 32 hexadecimal digits that say nothing, and can be computed both ways.

The first eight digits of a record's sys_id are a one-to-one scramble of its number in its table.
So a million records need neither a list of ids nor a dictionary of numbers, and the order by sys_id
has nothing to do with the order of creation.
"""

from __future__ import annotations

import hashlib
import re

_BITS = 0xFFFF_FFFF
_LOW_TAIL = (1 << 96) - 1
_FIRST, _SECOND = 2_654_435_761, 2_246_822_519
_FIRST_INVERSE, _SECOND_INVERSE = pow(_FIRST, -1, 1 << 32), pow(_SECOND, -1, 1 << 32)
_TAIL = 0x9E37_79B9_7F4A_7C15_F39C_C061
_GUID = re.compile(r"[0-9a-f]{32}")
RANK_BITS = 64


def rank(sys_id: str) -> int:
    """A number that orders as the first eight characters of a sys_id do."""
    return int.from_bytes(sys_id.encode()[:8].ljust(8, b"\0"), "big")


class Ids:
    """The sys_ids of one table."""

    def __init__(self, seed: str) -> None:
        digest = hashlib.sha256(seed.encode()).digest()
        self._shift = int.from_bytes(digest[:4], "big")
        self._tail = int.from_bytes(digest[4:16], "big")

    def _head(self, number: int) -> int:
        mixed = ((number + self._shift) * _FIRST) & _BITS
        mixed ^= mixed >> 15
        return mixed * _SECOND & _BITS

    def sys_id(self, number: int) -> str:
        tail = (number * _TAIL + self._tail) & _LOW_TAIL
        return f"{self._head(number):08x}{tail:024x}"

    def rank(self, number: int) -> int:
        """`rank` of the number's sys_id."""
        return int.from_bytes(b"%08x" % self._head(number), "big")

    def _number_of_head(self, head: int) -> int:
        mixed = head * _SECOND_INVERSE & _BITS
        mixed ^= mixed >> 15 ^ mixed >> 30
        return (mixed * _FIRST_INVERSE - self._shift) & _BITS

    def number_of_rank(self, rank: int) -> int:
        """The number whose sys_id has this rank; the rank must be one of a sys_id of ours."""
        return self._number_of_head(int(rank.to_bytes(8, "big"), 16))

    def number(self, sys_id: str) -> int | None:
        """The number that has this sys_id, were the table long enough; None if none can."""
        if _GUID.fullmatch(sys_id) is None:
            return None
        number = self._number_of_head(int(sys_id[:8], 16))
        return number if self.sys_id(number) == sys_id else None
