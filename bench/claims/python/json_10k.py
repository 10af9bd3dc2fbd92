"""JSON: parse in plain Python or by the json module, then walk the tree.

The same document gives the same answer as guests/json_10k.c, which tells what it is made of.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import TypeAlias

Tree: TypeAlias = "bool | float | str | list[Tree] | dict[str, Tree] | None"

_MASK = 0xFFFFFFFF
_SPACE = frozenset(b" \t\n\r")
_DIGITS = frozenset(b"0123456789")
_SIMPLE = dict(zip(b'"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))
_LITERALS: dict[int, tuple[bytes, Tree]] = {
    ord("n"): (b"null", None),
    ord("f"): (b"false", False),
    ord("t"): (b"true", True),
}


class _Parser:
    """A cursor over the document. Each method starts at its first byte and ends after its last."""

    def __init__(self, data: bytes) -> None:
        self._data = data + b"\0"  # so that no look ahead has to ask whether there is more
        self._at = 0

    def document(self) -> Tree:
        self._skip_space()
        tree = self._value()
        self._skip_space()
        if self._at != len(self._data) - 1:
            raise ValueError(f"data after the document at {self._at}")
        return tree

    def _skip_space(self) -> None:
        while self._data[self._at] in _SPACE:
            self._at += 1

    def _take(self, byte: int) -> bool:
        if self._data[self._at] != byte:
            return False
        self._at += 1
        return True

    def _expect(self, byte: int) -> None:
        if not self._take(byte):
            raise ValueError(f"expected {chr(byte)} at {self._at}")

    def _value(self) -> Tree:
        first = self._data[self._at]
        match first:
            case 0x7B:
                return self._object()
            case 0x5B:
                return self._array()
            case 0x22:
                return self._string()
        if first in _LITERALS:
            word, value = _LITERALS[first]
            if not self._data.startswith(word, self._at):
                raise ValueError(f"unknown literal at {self._at}")
            self._at += len(word)
            return value
        return self._number()

    def _object(self) -> dict[str, Tree]:
        members: dict[str, Tree] = {}
        for _ in self._items(0x7D):
            key = self._string()
            self._skip_space()
            self._expect(0x3A)
            self._skip_space()
            members[key] = self._value()
        return members

    def _array(self) -> list[Tree]:
        return [self._value() for _ in self._items(0x5D)]

    def _items(self, close: int) -> Iterator[None]:
        """Once for each item of a container, with the cursor at the item."""
        self._at += 1
        self._skip_space()
        if self._take(close):
            return
        while True:
            yield
            self._skip_space()
            if self._take(close):
                return
            self._expect(0x2C)
            self._skip_space()

    def _string(self) -> str:
        self._expect(0x22)
        parts: list[str] = []
        start = self._at
        while (byte := self._data[self._at]) != 0x22:
            if byte < 0x20:
                raise ValueError(f"control character at {self._at}")
            if byte == 0x5C:
                parts.append(self._data[start : self._at].decode())
                parts.append(self._escape())
                start = self._at
            else:
                self._at += 1
        parts.append(self._data[start : self._at].decode())
        self._at += 1
        return "".join(parts)

    def _escape(self) -> str:
        name = self._data[self._at + 1]
        self._at += 2
        if name != 0x75:
            return _SIMPLE[name]
        unit = int(self._data[self._at : self._at + 4], 16)
        self._at += 4
        if not 0xD800 <= unit < 0xDC00:
            return chr(unit)
        low = int(self._data[self._at + 2 : self._at + 6], 16)
        self._at += 6
        return chr(0x10000 + ((unit - 0xD800) << 10 | low - 0xDC00))

    def _number(self) -> float:
        start = self._at
        self._take(0x2D)
        whole = self._digits()
        power = 0
        if self._take(0x2E):
            fraction = self._digits()
            whole, power = whole + fraction, -len(fraction)
        if self._data[self._at] in b"eE":
            self._at += 1
            sign = -1 if self._take(0x2D) else 1
            self._take(0x2B)
            power += sign * int(self._digits())
        mantissa = float(int(whole))
        value = mantissa / 10.0**-power if power < 0 else mantissa * 10.0**power
        return -value if self._data[start] == 0x2D else value

    def _digits(self) -> bytes:
        start = self._at
        while self._data[self._at] in _DIGITS:
            self._at += 1
        if start == self._at:
            raise ValueError(f"expected a digit at {start}")
        return self._data[start : self._at]


class _Sum:
    """Number of nodes, and a checksum over them in order."""

    def __init__(self) -> None:
        self.nodes = 0
        self.checksum = 0

    def _add(self, *values: int) -> None:
        for value in values:
            self.checksum = self.checksum * 31 + value & _MASK

    def walk(self, tree: Tree) -> None:
        self.nodes += 1
        match tree:
            case None:
                self._add(0)
            case bool():
                self._add(2 if tree else 1)
            case int() | float():
                self._add(3, int(tree * 64))
            case str():
                self._add(4, len(tree), ord(tree[-1]) if tree else 0)
            case list():
                self._add(5, len(tree))
                for child in tree:
                    self.walk(child)
            case dict():
                self._add(6, len(tree))
                for key, child in tree.items():
                    self._add(len(key), ord(key[-1]) if key else 0)
                    self.walk(child)


def _summed(tree: Tree) -> bytes:
    found = _Sum()
    found.walk(tree)
    return struct.pack("<2I", found.nodes, found.checksum)


def plain(data: bytes) -> bytes:
    """Parse here, byte by byte."""
    return _summed(_Parser(data).document())


def builtin(data: bytes) -> bytes:
    """Parse with the json module, whose scanner is C."""
    return _summed(json.loads(data))
