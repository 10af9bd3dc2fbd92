"""The outbox: memory that a runner shares with the supervisor for what its guest writes.

Standard output, standard error and log entries go here and not into frames, so that they survive
the certain kill; a long result does, so that frames stay short. The supervisor reads with pread and
never maps the file: a runner that shrinks it would turn a mapping into SIGBUS, but only makes pread
return less. It is sealed against that, too.

The other way goes a long input, through the *inbox*, a fifth region of the same file: it is copied
once into memory that the runner has mapped already, and not pushed through a socket.

Layout: four little-endian u64 (lengths of standard output, standard error, log, result) at offset
0, and the capacity of the inbox at offset 32; the four regions, `capacity_bytes` each, from offset
4096; the inbox. The log region is a serialized `sandboxd.v1.Logs`. The file is sparse: only pages
that were written to cost memory, and what long calls leave is given back once none comes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass

from sandboxd.supervisor.frames import more_fields_than
from sandboxd.v1 import call_pb2

HEADER = struct.Struct("<QQQQ")
REGIONS_OFFSET = 4096
_ZEROS = bytes(HEADER.size)
# Log entries count 16 bytes each against the output limit (docs/abi.md); on the wire an entry costs
# up to this much beside its message, so the region is larger than the limit by what 1,024 need.
LOG_OVERHEAD_BYTES = 32 * 1024
MAX_LOG_ENTRIES = 1024
_LOGS = call_pb2.Logs.DESCRIPTOR


@dataclass(frozen=True, slots=True)
class Written:
    """What a guest wrote: raw bytes of each region, and whether the lengths were believable."""

    stdout: bytes
    stderr: bytes
    log: bytes
    result: bytes
    honest: bool


NOTHING = Written(b"", b"", b"", b"", honest=True)


# Pages that calls left in a region are kept for the next ones up to here, however long none comes.
KEPT_BYTES = 64 * 1024
_INBOX = 4
_INBOX_CAPACITY = struct.Struct("<Q")
_INBOX_CAPACITY_OFFSET = 32
# FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h
_PUNCH_HOLE = 0x01 | 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def file_bytes(output_limit_bytes: int, inbox_bytes: int) -> int:
    """Return how large the file of an outbox and inbox is that hold so much."""
    return REGIONS_OFFSET + 4 * _capacity(output_limit_bytes) + inbox_bytes


def _capacity(output_limit_bytes: int) -> int:
    return -(-(output_limit_bytes + LOG_OVERHEAD_BYTES) // 4096) * 4096


class Outbox:
    """The supervisor's end of outbox and inbox.

    `fd` is passed to the zygote; `capacity_bytes` is of each region of the outbox.
    """

    __slots__ = ("_held_bytes", "capacity_bytes", "fd", "inbox_bytes")

    def __init__(self, output_limit_bytes: int, inbox_bytes: int = 0) -> None:
        self.fd = -1
        self.capacity_bytes = _capacity(output_limit_bytes)
        self.inbox_bytes = inbox_bytes
        # The longest that each region has held since its pages were given back.
        self._held_bytes = [0] * 5
        self.fd = os.memfd_create("sandboxd-outbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, file_bytes(output_limit_bytes, inbox_bytes))
        if inbox_bytes:
            os.pwrite(self.fd, _INBOX_CAPACITY.pack(inbox_bytes), _INBOX_CAPACITY_OFFSET)
        fcntl.fcntl(
            self.fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )

    def take(self, limit_bytes: int) -> Written:
        """Return what was written and empty the outbox.

        Lengths beyond the region or, together, beyond `limit_bytes` are lies of a runner that has
        been taken over: each part is cut at the limit and `honest` is False.
        """
        header = os.pread(self.fd, HEADER.size, 0)
        if header == _ZEROS:
            return NOTHING
        out, err, log, result = HEADER.unpack(header)
        os.pwrite(self.fd, _ZEROS, 0)
        honest = (
            out + err + result <= limit_bytes
            and log <= limit_bytes + LOG_OVERHEAD_BYTES
            and max(out, err, log, result) <= self.capacity_bytes
        )
        if not honest:
            out = min(out, limit_bytes)
            err = min(err, limit_bytes - out)
            log = result = 0
        written_log = self._read(2, log)
        if written_log and more_fields_than(written_log, MAX_LOG_ENTRIES, _LOGS):
            # Parsing a million empty entries would hold up everybody; and zeros are no log.
            written_log, honest = b"", False
        return Written(
            self._read(0, out), self._read(1, err), written_log, self._read(3, result), honest
        )

    def put(self, data: bytes) -> None:
        """Put the input of the next call into the inbox; the caller knows that it fits."""
        self._held_bytes[_INBOX] = max(self._held_bytes[_INBOX], len(data))
        at = REGIONS_OFFSET + 4 * self.capacity_bytes
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, at)
            at += written
            view = view[written:]

    def _read(self, region: int, length: int) -> bytes:
        if length == 0:
            return b""
        self._held_bytes[region] = max(self._held_bytes[region], length)
        return os.pread(self.fd, length, REGIONS_OFFSET + region * self.capacity_bytes)

    def give_back(self) -> None:
        """Give back the pages that long calls left. Not while there is a call."""
        for region, length in enumerate(self._held_bytes):
            if length > KEPT_BYTES:
                at = REGIONS_OFFSET + region * self.capacity_bytes
                if _libc.fallocate(self.fd, _PUNCH_HOLE, at, length):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            self._held_bytes[region] = 0

    def close(self) -> None:
        """Forget it: its last call is over, or there was none. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        # By reference count: a call that still has to read the outbox keeps it alive after its
        # runner is dead.
        self.close()
