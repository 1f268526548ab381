"""RSA with SHA-256 as JWT bearer wants it: a key made from a seed, its PEM, checking a signature.

For a simulator on one's own machine; nothing here withstands an attacker.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from random import Random

_BITS = 2048
_EXPONENT = 65_537
_SMALL = [n for n in range(3, 2000, 2) if all(n % p for p in range(3, int(n**0.5) + 1, 2))]
_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")
"""The DigestInfo before a SHA-256 digest (RFC 8017, 9.2)."""
_RSA_ENCRYPTION = bytes.fromhex("300d06092a864886f70d0101010500")


@dataclass(frozen=True, slots=True)
class Key:
    """A private key: its two primes."""

    p: int
    q: int

    @property
    def modulus(self) -> int:
        return self.p * self.q

    @property
    def private(self) -> int:
        return pow(_EXPONENT, -1, (self.p - 1) * (self.q - 1))


def generate(rng: Random) -> Key:
    """A key of 2,048 bits; the same for the same random numbers. Takes about half a second."""
    return Key(_prime(rng), _prime(rng))


def _prime(rng: Random) -> int:
    while True:
        found = rng.getrandbits(_BITS // 2) | 3 << (_BITS // 2 - 2) | 1
        if any(found % small == 0 for small in _SMALL) or (found - 1) % _EXPONENT == 0:
            continue
        if all(_passes(found, rng.randrange(2, found - 1)) for _ in range(6)):
            return found


def _passes(number: int, base: int) -> bool:
    """One round of Miller and Rabin."""
    odd, halvings = number - 1, 0
    while odd % 2 == 0:
        odd, halvings = odd // 2, halvings + 1
    x = pow(base, odd, number)
    if x in (1, number - 1):
        return True
    for _ in range(halvings - 1):
        x = x * x % number
        if x == number - 1:
            return True
    return False


def verify(key: Key, message: bytes, signature: bytes) -> bool:
    """Whether a PKCS #1 v1.5 signature with SHA-256 is the key's own."""
    length = _BITS // 8
    if len(signature) != length:
        return False
    digest = _SHA256 + hashlib.sha256(message).digest()
    expected = b"\x00\x01" + b"\xff" * (length - len(digest) - 3) + b"\x00" + digest
    return pow(int.from_bytes(signature), _EXPONENT, key.modulus).to_bytes(length) == expected


def to_pem(key: Key) -> str:
    """The key as PKCS #8 in PEM."""
    d = key.private
    numbers = [0, key.modulus, _EXPONENT, d, key.p, key.q]
    numbers += [d % (key.p - 1), d % (key.q - 1), pow(key.q, -1, key.p)]
    inner = _der(0x30, b"".join(_integer(number) for number in numbers))
    whole = _der(0x30, _integer(0) + _RSA_ENCRYPTION + _der(0x04, inner))
    text = base64.b64encode(whole).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    name = "PRIVATE" + " KEY"
    return "\n".join([f"-----BEGIN {name}-----", *lines, f"-----END {name}-----", ""])


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 128 | len(length)]) + length + content


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1))
