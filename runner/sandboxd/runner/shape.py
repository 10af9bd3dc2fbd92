"""The shape of a module, held against limits before the engine sees a byte of it.

The engine's time and memory grow with what a module declares, not with its size: a byte can declare
a function, five can declare four billion locals. So the compiler first walks the headers:
sections, vector counts, names of imports and exports, sizes and local declarations of function
bodies. It never looks at an instruction, a type or an initializer, and every loop is bounded by a
limit of the table below, so its own cost is: at most about a second, for 26 MB of CPython a few
hundredths of that.

It is no validator: what it does not know it leaves to the engine, which refuses it. What it refuses
as malformed, the engine refuses, too (tests/runner/test_shape.py compares them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandboxd.runner.signatures import MAX_EXTERNS, MAX_NAME_BYTES

HEADER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class ShapeLimit:
    """One limit: a stable name for programs, the maximum, what is counted, and why."""

    name: str
    maximum: int
    counted: str
    reason: str


_TABLE: Final = (
    ShapeLimit("sections", 4096, "sections", "each one costs a step here; real modules have 20"),
    ShapeLimit("types", 20_000, "types", "the engine makes a trampoline for each"),
    ShapeLimit("imports", MAX_EXTERNS, "imports", "all are described in answers to clients"),
    ShapeLimit("exports", MAX_EXTERNS, "exports", "as imports, and a trampoline for each function"),
    ShapeLimit("name_bytes", MAX_NAME_BYTES, "bytes in a name", "names appear in answers"),
    ShapeLimit(
        "functions",
        100_000,
        "functions",
        "an empty one costs the compiler 50 us and 5 KiB; CPython has 11,000",
    ),
    ShapeLimit(
        "function_bytes",
        512 << 10,
        "bytes in one function",
        "time grows with the square: 1 MiB of branches took 30 s; CPython's largest has 104 KiB",
    ),
    ShapeLimit("code_bytes", 64 << 20, "bytes of code", "the artifact is several times as large"),
    ShapeLimit(
        "locals",
        10_000,
        "locals in one function",
        "five bytes declare four billion of them; each is a variable of the compiler",
    ),
    ShapeLimit(
        "locals_total",
        4_000_000,
        "locals in all functions",
        "as locals, and each declaration costs a step here",
    ),
    ShapeLimit("globals", 100_000, "globals", "each takes room in every instance"),
    ShapeLimit("tables", 100, "tables", "each is a reservation in every instance"),
    ShapeLimit("memories", 100, "memories", "more than one is for the engine to refuse"),
    ShapeLimit("element_segments", 100_000, "element segments", "each is initialized in turn"),
    ShapeLimit("data_segments", 100_000, "data segments", "each is initialized in turn"),
    ShapeLimit("custom_sections", 1024, "custom sections", "real modules have a dozen"),
    ShapeLimit(
        "custom_section_bytes",
        64 << 20,
        "bytes in one custom section",
        "debug information is large; the engine reads names",
    ),
)

LIMITS: Final = {limit.name: limit for limit in _TABLE}


class MalformedError(Exception):
    """The headers are not well-formed; no engine takes the module. `offset` is in bytes."""

    def __init__(self, message: str, offset: int):
        self.message = message
        self.offset = offset
        super().__init__(f"{message} (at offset {offset})")


class LimitExceededError(Exception):
    """The module exceeds a limit of the table. `actual` is what it has, as far as was counted."""

    def __init__(self, limit: ShapeLimit, actual: int):
        self.limit = limit
        self.actual = actual
        super().__init__(f"the module has {actual} {limit.counted}; the limit is {limit.maximum}")


START_FUNCTIONS = "start_functions"
_START_SECTION = 8


def check_shape(wasm: bytes) -> Counter[str]:
    """Hold a module's shape against the limits; return what was counted, by name of the limit.

    `wasm` begins with the header of a core module, which is not looked at. For limits on one thing
    (one function, one name) the largest is returned. `START_FUNCTIONS` is counted, too. Raises
    `MalformedError` or `LimitExceededError`, for the first cause met, and nothing else.
    """
    walk = _Walk(wasm)
    walk.sections()
    return walk.seen


class _Walk:
    def __init__(self, wasm: bytes) -> None:
        self._wasm = wasm
        self.seen: Counter[str] = Counter()

    # --- counting -----------------------------------------------------------------------------

    def _add(self, name: str, number: int) -> None:
        """Add to a sum. Sections that come twice, which is for the engine to refuse, add up."""
        self.seen[name] += number
        self._check(name, self.seen[name])

    def _largest(self, name: str, number: int) -> None:
        if number > self.seen[name]:
            self.seen[name] = number
            self._check(name, number)

    def _check(self, name: str, number: int) -> None:
        limit = LIMITS[name]
        if number > limit.maximum:
            raise LimitExceededError(limit, number)

    # --- reading ------------------------------------------------------------------------------

    def _u32(self, at: int, end: int) -> tuple[int, int]:
        """Decode an unsigned 32-bit LEB128 number; return it, and the offset after it.

        Strict: at most five bytes, no more than 32 bits. Padding with zeros is allowed, as
        the specification does.
        """
        value = shift = 0
        for offset in range(at, min(at + 5, end)):
            byte = self._wasm[offset]
            if shift == 28 and byte > 0x0F:
                what = "too long" if byte & 0x80 else "too large"
                raise MalformedError(f"a 32-bit number is {what}", offset)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, offset + 1
            shift += 7
        raise MalformedError("unexpected end in a number", end)

    def _sized(self, at: int, end: int, what: str) -> tuple[int, int]:
        """Read the length of something; return where it begins and ends, which is inside."""
        size, start = self._u32(at, end)
        if size > end - start:
            raise MalformedError(f"{what} of {size} bytes reaches beyond its end", at)
        return start, start + size

    def _count(self, at: int, end: int, name: str) -> tuple[int, int]:
        """Read the count of a vector whose items take a byte or more, and add it to a sum."""
        count, start = self._u32(at, end)
        if count > end - start:
            raise MalformedError(f"{count} {LIMITS[name].counted} do not fit their section", at)
        self._add(name, count)
        return count, start

    def _name(self, at: int, end: int) -> int:
        start, after = self._sized(at, end, "a name")
        self._largest("name_bytes", after - start)
        return after

    # --- sections -----------------------------------------------------------------------------

    def sections(self) -> None:
        """Walk all sections."""
        at, end = HEADER_BYTES, len(self._wasm)
        while at < end:
            self._add("sections", 1)
            kind = self._wasm[at]
            start, after = self._sized(at + 1, end, "a section")
            read = _SECTIONS.get(kind)
            if read is not None:
                read(self, start, after)
            elif kind == _START_SECTION:
                self.seen[START_FUNCTIONS] += 1
            elif kind in _COUNTED:
                self._count(start, after, _COUNTED[kind])
            at = after

    def _custom(self, at: int, end: int) -> None:
        self._add("custom_sections", 1)
        self._largest("custom_section_bytes", end - at)
        self._name(at, end)

    def _imports(self, at: int, end: int) -> None:
        count, at = self._count(at, end, "imports")
        for _ in range(count):
            at = self._name(self._name(at, end), end)
            after = self._import_type(at, end)
            if after is None:
                return
            at = after

    def _import_type(self, at: int, end: int) -> int | None:
        """Return the offset after the type of an import; None if it is not known here."""
        if at >= end:
            raise MalformedError("unexpected end in an import", end)
        match self._wasm[at]:
            case 0:  # a function, by the index of its type
                return self._u32(at + 1, end)[1]
            case 1:  # a table: the type of its elements, and limits
                after = self._value_type(at + 1, end)
                return None if after is None else self._limits(after, end)
            case 2:
                return self._limits(at + 1, end)
            case 3:  # a global: its type, and whether it is mutable
                after = self._value_type(at + 1, end)
                return None if after is None else after + 1
        return None

    def _value_type(self, at: int, end: int) -> int | None:
        """Return the offset after a value type; None if it is not known here."""
        if at >= end:
            raise MalformedError("unexpected end in a type", end)
        byte = self._wasm[at]
        if byte in _VALUE_TYPES:
            return at + 1
        if byte in _LONG_REFERENCES and at + 1 < end and self._wasm[at + 1] in _VALUE_TYPES:
            return at + 2
        return None

    def _limits(self, at: int, end: int) -> int | None:
        """Return the offset after limits; None if they are of a kind that is not enabled."""
        if at >= end:
            raise MalformedError("unexpected end in limits", end)
        if self._wasm[at] > 1:
            return None
        after = self._u32(at + 1, end)[1]
        return self._u32(after, end)[1] if self._wasm[at] else after

    def _exports(self, at: int, end: int) -> None:
        count, at = self._count(at, end, "exports")
        for _ in range(count):
            at = self._name(at, end)
            # One byte for the kind, then an index.
            at = self._u32(at + 1, end)[1]

    def _code(self, at: int, end: int) -> None:
        self._add("code_bytes", end - at)
        count, at = self._u32(at, end)
        if count > end - at:
            raise MalformedError(f"{count} functions do not fit their section", at)
        self._check("functions", count)
        for _ in range(count):
            start, after = self._sized(at, end, "a function")
            self._largest("function_bytes", after - start)
            # By far the most common: no locals.
            if start == after or self._wasm[start]:
                self._locals(start, after)
            at = after

    def _locals(self, at: int, end: int) -> None:
        wasm = self._wasm
        declarations, at = self._u32(at, end)
        if declarations > end - at:
            raise MalformedError(f"{declarations} declarations of locals do not fit", at)
        self._check("locals", declarations)
        total = 0
        for _ in range(declarations):
            if at < end and wasm[at] < 0x80:
                number, at = wasm[at], at + 1
            else:
                number, at = self._u32(at, end)
            total += number
            after = self._value_type(at, end)
            if after is None:
                break
            at = after
        self._largest("locals", total)
        # A declaration of none costs a step, too.
        self._add("locals_total", max(total, declarations))


# i32, i64, f32, f64, v128, funcref, externref
_VALUE_TYPES: Final = frozenset({0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70, 0x6F})
# (ref null ...) and (ref ...), before a heap type
_LONG_REFERENCES: Final = frozenset({0x63, 0x64})

_SECTIONS: Final[dict[int, Callable[[_Walk, int, int], None]]] = {
    0: _Walk._custom,
    2: _Walk._imports,
    7: _Walk._exports,
    10: _Walk._code,
}
# Sections of which only the length of their vector is read.
_COUNTED: Final = {
    1: "types",
    3: "functions",
    4: "tables",
    5: "memories",
    6: "globals",
    9: "element_segments",
    11: "data_segments",
}
