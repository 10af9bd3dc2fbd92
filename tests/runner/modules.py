"""Modules put together byte by byte: what no assembler would make."""

from __future__ import annotations

from collections.abc import Iterable

HEADER = b"\0asm\x01\0\0\0"
VOID_TYPE = b"\x60\0\0"


def leb(number: int) -> bytes:
    """Encode an unsigned LEB128 number."""
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def sized(data: bytes) -> bytes:
    return leb(len(data)) + data


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + sized(body)


def vector(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return leb(len(listed)) + b"".join(listed)


def custom(name: bytes, content: bytes = b"") -> bytes:
    return section(0, sized(name) + content)


def functions(bodies: list[bytes]) -> bytes:
    """A module of functions without parameters; a body begins with its locals, without its end."""
    return (
        HEADER
        + section(1, vector([VOID_TYPE]))
        + section(3, vector([b"\0"] * len(bodies)))
        + section(10, vector(sized(body + b"\x0b") for body in bodies))
    )


def empty_functions(number: int) -> bytes:
    return functions([b"\0"] * number)


def branches(size_bytes: int) -> bytes:
    """One function of about this size whose compile time grows with the square of it."""
    step = b"\x20\x00\x0d\x00\x20\x00\x41\x01\x6a\x21\x00"
    return functions([b"\x01\x02\x7f\x02\x40" + step * (size_bytes // len(step)) + b"\x0b"])
