"""Modules as bytes: what no assembler would write."""

from __future__ import annotations

MAGIC = b"\0asm\x01\0\0\0"
TYPE, IMPORT, FUNCTION, TABLE, MEMORY, EXPORT, START, ELEMENT, CODE, DATA = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 10, 11),
)
END = b"\x0b"
_EMPTY_TYPE = b"\x60\0\0"


def leb(number: int) -> bytes:
    """An unsigned LEB128 number."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def name(text: bytes) -> bytes:
    return leb(len(text)) + text


def vector(count: int, items: bytes) -> bytes:
    return leb(count) + items


def section(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + leb(len(content)) + content


def custom(title: bytes, content: bytes) -> bytes:
    return section(0, name(title) + content)


def body(code: bytes, local_groups: bytes = b"\0") -> bytes:
    whole = local_groups + code + END
    return leb(len(whole)) + whole


def module(*sections: bytes) -> bytes:
    return MAGIC + b"".join(sections)


def functions(count: int, one: bytes) -> bytes:
    """A module of `count` times the same function of type () -> ()."""
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(count, b"\0" * count)),
        section(CODE, vector(count, body(one) * count)),
    )


# --- bombs: small to send, dear to compile --------------------------------------------------------


def many_empty_functions(count: int = 1_000_000) -> bytes:
    return functions(count, b"")


def one_huge_function(operations: int = 700_000) -> bytes:
    """Adds a local to itself, each time through another branch: bad for the optimizer."""
    # block; local.get 0; br_if 0; local.get 0; i32.const 3; i32.mul; local.set 0; end
    step = b"\x02\x40\x20\0\x0d\0\x20\0\x41\x03\x6c\x21\0\x0b"
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(1, b"\0")),
        section(CODE, vector(1, body(step * operations, b"\x01\x01\x7f"))),
    )


def br_table(targets: int) -> bytes:
    return functions(1, b"\x41\0\x0e" + leb(targets) + b"\0" * targets + b"\0")


def nested_blocks(depth: int) -> bytes:
    return functions(1, b"\x02\x40" * depth + END * depth)


def many_imports(count: int = 100_000) -> bytes:
    entries = b"".join(name(b"m") + name(b"%d" % i) + b"\0\0" for i in range(count))
    return module(section(TYPE, vector(1, _EMPTY_TYPE)), section(IMPORT, vector(count, entries)))


def many_exports(count: int = 100_000) -> bytes:
    entries = b"".join(name(b"%d" % i) + b"\0\0" for i in range(count))
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(1, b"\0")),
        section(EXPORT, vector(count, entries)),
        section(CODE, vector(1, body(b""))),
    )


def many_types(count: int = 900_000) -> bytes:
    return module(section(TYPE, vector(count, _EMPTY_TYPE * count)))


def many_locals() -> bytes:
    """One function that declares 4 billion locals in ten bytes."""
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(1, b"\0")),
        section(CODE, vector(1, body(b"", b"\x01" + leb(0xFFFFFFFF) + b"\x7f"))),
    )


def huge_data(size: int = 7_000_000) -> bytes:
    """One page of memory and a segment that needs a hundred."""
    segment = b"\0\x41\0\x0b" + leb(size) + b"\x5a" * size
    return module(section(MEMORY, vector(1, b"\0\x01")), section(DATA, vector(1, segment)))


def many_data_segments(count: int = 1_000_000) -> bytes:
    segment = b"\0\x41\0\x0b\0"
    return module(
        section(MEMORY, vector(1, b"\0\x01")), section(DATA, vector(count, segment * count))
    )


def sparse_data() -> bytes:
    """Two bytes of data, 4 GiB apart: a copy-on-write image of them would be 4 GiB."""
    low, high = b"\0\x41\0\x0b\x01a", b"\0\x41\x7f\x0b\x01z"
    return module(
        section(MEMORY, vector(1, b"\0" + leb(65536))), section(DATA, vector(2, low + high))
    )


def name_section_garbage(size: int = 2_000_000) -> bytes:
    """Valid, but its names are noise: they must not be believed, nor refused."""
    noise = bytes((i * 197 + 13) & 0xFF for i in range(4096)) * (size // 4096)
    return functions(1, b"") + custom(b"name", b"\x01" + leb(len(noise)) + noise)


def long_export_name(size: int = 200_000) -> bytes:
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(1, b"\0")),
        section(EXPORT, vector(1, name(b"n" * size) + b"\0\0")),
        section(CODE, vector(1, body(b""))),
    )


def nested_components(depth: int = 5_000) -> bytes:
    component = b"\0asm\x0d\0\x01\0"
    inner = component
    for _ in range(depth):
        inner = component + b"\x04" + leb(len(inner)) + inner
        if len(inner) > 1_000_000:
            break
    return inner


# --- lies -----------------------------------------------------------------------------------------


def lying_section_length() -> bytes:
    return MAGIC + b"\x01" + leb(0xFFFFFFF0) + b"\x01\x60\0\0"


def lying_vector_length() -> bytes:
    return MAGIC + section(TYPE, leb(0xFFFFFFFF) + _EMPTY_TYPE)


def lying_body_length() -> bytes:
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(1, b"\0")),
        section(CODE, vector(1, leb(1_000_000) + b"\0\x0b")),
    )


def bad_utf8_export() -> bytes:
    return module(
        section(TYPE, vector(1, _EMPTY_TYPE)),
        section(FUNCTION, vector(1, b"\0")),
        section(EXPORT, vector(1, name(b"\xff\xfe\x80") + b"\0\0")),
        section(CODE, vector(1, body(b""))),
    )


def overlong_leb() -> bytes:
    return MAGIC + b"\x01" + b"\x80" * 8 + b"\0"


def sections_out_of_order() -> bytes:
    return module(section(CODE, b"\0"), section(TYPE, b"\0"))


def gc_types() -> bytes:
    """An array type, which only GC has."""
    return module(section(TYPE, vector(1, b"\x5e\x7f\0")))


def exceptions_tag() -> bytes:
    return module(section(TYPE, vector(1, _EMPTY_TYPE)), section(13, b"\x01\0\0"))
