"""Mapping descriptors through libc.

Python's own mmap object keeps a duplicate of the descriptor open inside the locked-down process,
and asks for its size, which the lock-down refuses.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc["mmap"]
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_munmap = _libc["munmap"]
_munmap.restype = ctypes.c_int
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


def map_shared(fd: int, size_bytes: int, what: str) -> int:
    """Map a file for reading and writing, seen by all who map it; return the address.

    Raises OSError, naming `what` it is.
    """
    return _map(fd, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, what)


def map_private(fd: int, size_bytes: int, what: str) -> int:
    """Map a file for reading and return the address. Raises OSError, naming `what`."""
    return _map(fd, size_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE, what)


def unmap(address: int, size_bytes: int) -> None:
    """Give a mapping back."""
    _munmap(address, size_bytes)


def _map(fd: int, size_bytes: int, protection: int, flags: int, what: str) -> int:
    address: int = _mmap(None, size_bytes, protection, flags, fd, 0)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return address
