"""Output that survives the death of the runner.

The outbox is a shared memory file that the supervisor made. The runner maps it
before it is locked down and writes what the guest writes straight into it; the supervisor
reads it after the answer, or after the kill.

Layout, with ``capacity = (file size - 4096) // 4``::

    0     u64 little-endian: committed bytes of standard output
    8     u64: of standard error
    16    u64: of the log, a serialized ``sandboxd.v1.Logs``
    24    u64: of a result that is too long for a frame
    32    zero, up to 64
    4096 + i * capacity    region i: 0 standard output, 1 standard error, 2 log, 3 result

A length is written after the bytes it covers, so that whoever reads at any moment sees only
whole bytes, and for the log only whole entries.
"""

import ctypes
import os
from enum import IntEnum

from sandboxd.runner import mapping

HEADER_BYTES = 64
REGIONS_OFFSET_BYTES = 4096

# Logs.entries: field 1, length-delimited.
_LOG_ENTRY_TAG = b"\x0a"


class Region(IntEnum):
    """A region of the outbox; the value is its position in header and file."""

    STDOUT = 0
    STDERR = 1
    LOG = 2
    RESULT = 3


class Outbox:
    """The runner's side of the outbox. One call writes at a time."""

    def __init__(self, fd: int):
        """Map the memory file `fd`. Does not close it and does not keep it.

        Raises ValueError if the file is too small and OSError if it cannot be mapped.
        """
        self._size = os.fstat(fd).st_size
        self.capacity = (self._size - REGIONS_OFFSET_BYTES) // len(Region)
        if self.capacity < 1:
            raise ValueError(f"an outbox of {self._size} bytes has no room for output")
        self._address = mapping.map_shared(fd, self._size, "outbox")
        self._committed = (ctypes.c_uint64 * len(Region)).from_address(self._address)
        # Copies of the lengths that are trusted over the shared ones.
        self._lengths = [0] * len(Region)
        self._empty = False
        self.reset()

    def close(self) -> None:
        """Unmap. The outbox must not be used afterwards."""
        if self._address:
            mapping.unmap(self._address, self._size)
            self._address = 0

    def reset(self) -> None:
        """Empty all regions."""
        if not self._empty:
            self._lengths = [0] * len(Region)
            self._committed[:] = [0] * len(Region)
            self._empty = True

    def append_stdout(self, data: bytes) -> int:
        """Append to standard output as much as fits; return how many bytes did."""
        return self.append(Region.STDOUT, data)

    def append_stderr(self, data: bytes) -> int:
        """Append to standard error as much as fits; return how many bytes did."""
        return self.append(Region.STDERR, data)

    def append_log(self, entry: bytes) -> bool:
        """Append one serialized LogEntry; return False, and write nothing, if it does not fit."""
        framed = _LOG_ENTRY_TAG + _varint(len(entry)) + entry
        if len(framed) > self.capacity - self._lengths[Region.LOG]:
            return False
        self.append(Region.LOG, framed)
        return True

    def append(self, region: Region, data: bytes) -> int:
        """Append to a region as much as fits; return how many bytes did."""
        self._empty = False
        start = self._lengths[region]
        count = min(len(data), self.capacity - start)
        offset = REGIONS_OFFSET_BYTES + region * self.capacity + start
        ctypes.memmove(self._address + offset, data, count)
        self._lengths[region] = start + count
        self._committed[region] = start + count
        return count


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
