"""Record ids: 15 case-sensitive characters, and the 18 that the API emits. [GK]

The last three of the 18 tell which of the other characters are upper case, so that an id survives a
system that ignores case. Ids of one object ascend as its records were entered; every second serial
is left out, so gaps say nothing, and of a few dozen records some differ in case alone.
"""

from __future__ import annotations

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUE = {digit: n for n, digit in enumerate(_DIGITS)}
_CHECK = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_UPPER = [sum(char.isupper() << n for n, char in enumerate(pair)) for pair in _PAIRS]
_MIDDLE = "5g00000"
_STEP = 2
LARGEST = 62**5 // _STEP - 1
"""The largest record number of one object."""


def _check(five: str) -> str:
    return _CHECK[sum(char.isupper() << n for n, char in enumerate(five))]


class IdMaker:
    """Ids of one key prefix (three characters, such as `500`), from record numbers from 0."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._head = prefix + _MIDDLE
        self._check = _check(self._head[:5]) + _check(self._head[5:])

    def make(self, number: int) -> str:
        """The 18-character id of a record number."""
        high, low = divmod(number * _STEP + 1, 3844)
        top, middle = divmod(high, 3844)
        bits = _DIGITS[top].isupper() | _UPPER[middle] << 1 | _UPPER[low] << 3
        return f"{self._head}{_DIGITS[top]}{_PAIRS[middle]}{_PAIRS[low]}{self._check}{_CHECK[bits]}"

    def number(self, text: str) -> int | None:
        """The record number of an id of 15 or 18 characters; None if it is none of this prefix."""
        serial = self.serial(text)
        if serial is None or serial % _STEP != 1:
            return None
        return serial // _STEP

    def serial(self, text: str) -> int | None:
        """What the digits of an id count to; None if it is none of this prefix."""
        short = shorten(text)
        if short is None or not short.startswith(self._head):
            return None
        serial = 0
        for char in short[len(self._head) :]:
            serial = serial * 62 + _VALUE[char]
        return serial

    def bound(self, text: str) -> int:
        """How many record numbers have an id below this one (any valid id); it need not exist."""
        short = shorten(text)
        assert short is not None
        if not short.startswith(self._head):
            return 0 if short < self._head else LARGEST + 1
        serial = self.serial(text)
        assert serial is not None
        return max(0, -(-(serial - 1) // _STEP))


def shorten(text: str) -> str | None:
    """The 15 case-sensitive characters of an id; None if it cannot be one.

    Of an 18-character id in the wrong case the right case is found again.
    """
    if len(text) not in (15, 18) or not text.isalnum() or not text.isascii():
        return None
    if len(text) == 15:
        return text
    fixed = []
    for block in range(3):
        bits = _CHECK.find(text[15 + block].upper())
        if bits < 0:
            return None
        for n, char in enumerate(text[block * 5 : block * 5 + 5]):
            fixed.append(char.upper() if bits >> n & 1 else char.lower())
    return "".join(fixed)


def lengthen(short: str) -> str:
    """The 18 characters of a 15-character id."""
    return short + "".join(_check(short[at : at + 5]) for at in (0, 5, 10))
