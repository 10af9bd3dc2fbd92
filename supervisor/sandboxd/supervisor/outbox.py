"""The outbox: memory that a runner shares with the supervisor for what its guest writes.

Standard output, standard error and log entries go here and not into frames, so that they survive
the certain kill; a long result does, so that frames stay short. The supervisor reads with pread and
never maps the file: a runner that shrinks it would turn a mapping into SIGBUS, but only makes pread
return less. It is sealed against that, too.

Layout: four little-endian u64 (lengths of standard output, standard error, log, result) at offset
0; the four regions, `capacity_bytes` each, from offset 4096. The log region is a serialized
`sandboxd.v1.Logs`. The file is sparse: only pages that were written to cost memory.
"""

from __future__ import annotations

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


class Outbox:
    """The supervisor's end. `fd` is passed to the zygote; `capacity_bytes` is of each region."""

    __slots__ = ("capacity_bytes", "fd")

    def __init__(self, output_limit_bytes: int) -> None:
        self.fd = -1
        self.capacity_bytes = -(-(output_limit_bytes + LOG_OVERHEAD_BYTES) // 4096) * 4096
        self.fd = os.memfd_create("sandboxd-outbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, REGIONS_OFFSET + 4 * self.capacity_bytes)
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

    def _read(self, region: int, length: int) -> bytes:
        if length == 0:
            return b""
        return os.pread(self.fd, length, REGIONS_OFFSET + region * self.capacity_bytes)

    def __del__(self) -> None:
        # By reference count: a call that still has to read the outbox keeps it alive after its
        # runner is dead.
        if self.fd >= 0:
            os.close(self.fd)
