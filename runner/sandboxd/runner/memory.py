"""Bounded access to a guest's linear memory.

Pointers and lengths are unsigned 32-bit numbers that a hostile guest chose. The memory may have
moved or grown whenever guest code ran, so nothing about it is kept.
"""

import ctypes
from typing import Any

from sandboxd.runner.entry_points import memory_data, memory_data_size
from sandboxd.runner.outcomes import Stop, broke_abi

_memchr = ctypes.CDLL(None)["memchr"]
_memchr.restype = ctypes.c_void_p
_memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


class GuestMemory:
    """A linear memory in a store; valid as long as the store is."""

    __slots__ = ("_context", "_memory", "_place")

    def __init__(self, context: int, memory: Any):
        """`context` is the address of a `wasmtime_context_t`, `memory` a `wasmtime_memory_t`."""
        self._context = context
        # Kept alive: its address is what the engine is given.
        self._memory = memory
        self._place = ctypes.addressof(memory)

    @property
    def size_bytes(self) -> int:
        """Size in bytes, now."""
        size: int = memory_data_size(self._context, self._place)
        return size

    def read(self, pointer: int, length: int, what: str) -> bytes:
        """Copy bytes out; raises Stop (host error naming `what`) if they reach outside.

        The caller bounds the length to 2 GiB - 1 first.
        """
        if not length:
            return b""
        size = self.size_bytes
        if pointer + length > size:
            raise _outside(what, pointer, length, size)
        return ctypes.string_at(memory_data(self._context, self._place) + pointer, length)

    def write(self, pointer: int, data: bytes, what: str) -> None:
        """Copy bytes in; raises Stop (host error naming `what`) if they reach outside."""
        length = len(data)
        if not length:
            return
        size = self.size_bytes
        if pointer + length > size:
            raise _outside(what, pointer, length, size)
        ctypes.memmove(memory_data(self._context, self._place) + pointer, data, length)

    def find_nul(self, pointer: int, max_length: int, what: str) -> int | None:
        """Distance from pointer to the first NUL, if that is at most `max_length`.

        None if there is none within it but memory goes on; raises Stop (host error)
        if memory ends before a NUL.
        """
        left = self.size_bytes - pointer
        if left > 0:
            base = memory_data(self._context, self._place) + pointer
            found = _memchr(base, 0, min(left, max_length + 1))
            if found is not None:
                return int(found - base)
            if left > max_length:
                return None
        raise broke_abi(f"{what} at {pointer} has no NUL before the end of memory")

    def check(self, pointer: int, length: int, what: str) -> None:
        """Raise Stop (host error naming `what`) unless the bytes lie inside; none always do."""
        size = self.size_bytes
        if length and pointer + length > size:
            raise _outside(what, pointer, length, size)


def _outside(what: str, pointer: int, length: int, size: int) -> Stop:
    return broke_abi(
        f"{what} of {length} bytes at {pointer} reaches outside the guest's memory of {size} bytes"
    )
