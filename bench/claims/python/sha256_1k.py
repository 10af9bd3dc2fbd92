"""SHA-256 in plain Python, and by hashlib."""

from __future__ import annotations

import hashlib

_MASK = 0xFFFFFFFF


def _fraction_bits(root: int, prime: int) -> int:
    """First 32 bits of the fraction of a prime's square (2) or cube (3) root, by integers alone."""
    scaled = prime << 32 * root
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**root <= scaled else (low, middle - 1)
    return low & _MASK


_PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, n))]
_INITIAL = tuple(_fraction_bits(2, prime) for prime in _PRIMES[:8])
_K = tuple(_fraction_bits(3, prime) for prime in _PRIMES)


def plain(data: bytes) -> bytes:
    """Return the digest (FIPS 180-4)."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + (8 * len(data)).to_bytes(8)
    state = _INITIAL
    for at in range(0, len(padded), 64):
        state = _compress(state, padded[at : at + 64])
    return b"".join(word.to_bytes(4) for word in state)


def _compress(state: tuple[int, ...], block: bytes) -> tuple[int, ...]:
    w = [int.from_bytes(block[at : at + 4]) for at in range(0, 64, 4)]
    for i in range(16, 64):
        x, y = w[i - 15], w[i - 2]
        s0 = (x >> 7 | x << 25) ^ (x >> 18 | x << 14) ^ x >> 3
        s1 = (y >> 17 | y << 15) ^ (y >> 19 | y << 13) ^ y >> 10
        w.append((w[i - 16] + (s0 & _MASK) + w[i - 7] + (s1 & _MASK)) & _MASK)
    a, b, c, d, e, f, g, h = state
    for k, word in zip(_K, w, strict=True):
        s1 = (e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)
        t1 = h + (s1 & _MASK) + (g ^ e & (f ^ g)) + k + word
        s0 = (a >> 2 | a << 30) ^ (a >> 13 | a << 19) ^ (a >> 22 | a << 10)
        t2 = (s0 & _MASK) + (a & b | c & (a | b))
        a, b, c, d, e, f, g, h = t1 + t2 & _MASK, a, b, c, d + t1 & _MASK, e, f, g
    mixed = zip(state, (a, b, c, d, e, f, g, h), strict=True)
    return tuple(old + new & _MASK for old, new in mixed)


def builtin(data: bytes) -> bytes:
    """Return the digest as OpenSSL or the interpreter's own C code computes it."""
    return hashlib.sha256(data).digest()
