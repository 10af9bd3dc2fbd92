"""Bounded access to a guest's linear memory.

The engine package's own `Memory.read` and `write` copy byte by byte or several times. Pointers and
lengths are unsigned 32-bit numbers that a hostile guest chose. The memory may have
moved or grown whenever guest code ran, so nothing about it is kept.
"""

import ctypes
from typing import Any

from wasmtime import _ffi as ffi

from sandboxd.runner.outcomes import broke_abi

_memchr = ctypes.CDLL(None)["memchr"]
_memchr.restype = ctypes.c_void_p
_memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


class GuestMemory:
    """A linear memory in a store; valid as long as the store is."""

    def __init__(self, context: Any, memory: Any):
        """`context` is a `wasmtime_context_t` pointer, `memory` a `wasmtime_memory_t`."""
        self._context = context
        self._memory = ctypes.byref(memory)

    @property
    def size_bytes(self) -> int:
        """Size in bytes, now."""
        return int(ffi.wasmtime_memory_data_size(self._context, self._memory))

    def read(self, pointer: int, length: int, what: str) -> bytes:
        """Copy bytes out; raises Stop (host error naming `what`) if they reach outside.

        The caller bounds the length to 2 GiB - 1 first.
        """
        self.check(pointer, length, what)
        return ctypes.string_at(self._base() + pointer, length) if length else b""

    def write(self, pointer: int, data: bytes, what: str) -> None:
        """Copy bytes in; raises Stop (host error naming `what`) if they reach outside."""
        self.check(pointer, len(data), what)
        if data:
            ctypes.memmove(self._base() + pointer, data, len(data))

    def find_nul(self, pointer: int, max_length: int, what: str) -> int | None:
        """Distance from pointer to the first NUL, if that is at most `max_length`.

        None if there is none within it but memory goes on; raises Stop (host error)
        if memory ends before a NUL.
        """
        left = self.size_bytes - pointer
        if left > 0:
            base = self._base() + pointer
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
            raise broke_abi(
                f"{what} of {length} bytes at {pointer} reaches outside "
                f"the guest's memory of {size} bytes"
            )

    def _base(self) -> int:
        return ctypes.addressof(ffi.wasmtime_memory_data(self._context, self._memory).contents)
