"""A drawing in few colours that becomes a PNG of some hundred bytes, without any library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

_GLYPHS = {
    sign: bytes.fromhex(rows)
    for sign, rows in {
        "0": "0e11111111110e", "1": "040c040404040e", "2": "0e11010204081f",
        "3": "1f02040201110e", "4": "02060a121f0202", "5": "1f101e0101110e",
        "6": "0608101e11110e", "7": "1f010204080808", "8": "0e11110e11110e",
        "9": "0e11110f01020c", "J": "0702020202120c", "F": "1f10101e101010",
        "M": "111b1515111111", "A": "0e1111111f1111", "S": "0f10100e01011e",
        "O": "0e11111111110e", "N": "11111915131111", "D": "1c12111111121c",
    }.items()
}  # fmt: skip
"""Seven rows of five bits, from the top: years and the first letters of months."""
GLYPH_WIDTH, GLYPH_HEIGHT = 6, 7
"""With the space to the next one; pixels."""


class Drawing:
    """A raster of a palette's colours, transparent where nothing was drawn.

    Args:
        width, height: In pixels; `width` is rounded up to an even number.
        colours: At most 15, as #RRGGBB; methods name them.
    """

    def __init__(self, width: int, height: int, colours: Sequence[str]) -> None:
        self._width = width + width % 2
        self._rows = [bytearray(self._width) for _ in range(height)]
        self._colours = {colour: place for place, colour in enumerate(colours, 1)}

    def box(self, colour: str, left: int, top: int, right: int, bottom: int) -> None:
        """Fills [left, right) × [top, bottom), all within the drawing."""
        for row in self._rows[top:bottom]:
            row[left:right] = bytes([self._colours[colour]]) * (right - left)

    def text(self, colour: str, left: int, top: int, text: str) -> None:
        """Writes digits and the first letters of months."""
        for sign in text:
            for down, bits in enumerate(_GLYPHS[sign]):
                for along in range(5):
                    if bits >> (4 - along) & 1:
                        self._rows[top + down][left + along] = self._colours[colour]
            left += GLYPH_WIDTH

    def png(self) -> bytes:
        """As a PNG with four bits a pixel."""
        lines = (
            b"\0" + bytes(a << 4 | b for a, b in zip(row[::2], row[1::2], strict=True))
            for row in self._rows
        )
        palette = b"\0\0\0" + b"".join(bytes.fromhex(colour[1:]) for colour in self._colours)
        head = struct.pack(">IIBBBBB", self._width, len(self._rows), 4, 3, 0, 0, 0)
        return b"".join(
            (
                b"\x89PNG\r\n\x1a\n",
                _part(b"IHDR", head),
                _part(b"PLTE", palette),
                _part(b"tRNS", b"\0"),
                _part(b"IDAT", zlib.compress(b"".join(lines), 9)),
                _part(b"IEND", b""),
            )
        )


def _part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
