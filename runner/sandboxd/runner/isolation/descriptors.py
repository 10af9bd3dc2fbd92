"""Closing every descriptor that a child was not given."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import struct
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import NotInForceError

#: Descriptors below this number are checked one by one. close_range(2) closes those above as
#: well; a zygote never has that many.
_CHECKED: Final = 256
_UINT_MAX: Final = 0xFFFFFFFF
_STANDARD_STREAMS: Final = (0, 1, 2)
_POLLNVAL: Final = 0x20
_pollfd: Final = struct.Struct("=ihh")
# Built once, in the parent: what is asked about every descriptor, and the answer of a closed one.
_ASKED: Final = b"".join(_pollfd.pack(fd, 0, 0) for fd in range(_CHECKED))
_CLOSED: Final = b"".join(_pollfd.pack(fd, 0, _POLLNVAL) for fd in range(_CHECKED))
_Pollfds = ctypes.c_char * len(_ASKED)
# poll(2) passes over a negative descriptor.
_SKIPPED: Final = _pollfd.pack(-1, 0, 0)
_poll = ctypes.CDLL(None, use_errno=True).poll
_poll.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int)
_poll.restype = ctypes.c_int


def close_all_but(keep: frozenset[int]) -> None:
    """Close every descriptor outside keep, then occupy the standard streams that it lacks.

    Raises OSError with EBADF if a descriptor to keep is not open.
    """
    for fd in keep:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    first = 0
    for fd in sorted(keep):
        if fd > first:
            kernel.close_range(first, fd - 1)
        first = fd + 1
    kernel.close_range(first, _UINT_MAX)
    _occupy_standard_streams(keep)


def _occupy_standard_streams(keep: frozenset[int]) -> None:
    # A native panic or glibc's abort message goes to descriptor 2, whatever that is by then. An
    # empty sealed memory file reads as end of file and refuses every write with EPERM; unlike
    # /dev/null it needs no file system.
    missing = [fd for fd in _STANDARD_STREAMS if fd not in keep]
    if not missing:
        return
    inert = os.memfd_create("closed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(inert, fcntl.F_ADD_SEALS, seals)
    for fd in missing:
        if fd != inert:
            os.dup2(inert, fd, inheritable=False)
    if inert not in missing:
        os.close(inert)


def verify_closed(keep: frozenset[int]) -> str:
    """Check with one poll(2) that nothing else is open; return what was checked."""
    soft_limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # poll(2) takes no more entries than the limit allows descriptors.
    bound = _CHECKED if soft_limit == resource.RLIM_INFINITY else min(_CHECKED, soft_limit)
    asked, expected = bytearray(_ASKED), bytearray(_CLOSED)
    for fd in keep.union(_STANDARD_STREAMS):
        if fd < bound:
            entry = slice(fd * _pollfd.size, (fd + 1) * _pollfd.size)
            asked[entry] = expected[entry] = _SKIPPED
    # What lies beyond the bound stays as it was asked.
    expected[bound * _pollfd.size :] = asked[bound * _pollfd.size :]
    if _poll(_Pollfds.from_buffer(asked), bound, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"poll: {os.strerror(number)}")
    if asked != expected:
        polled = _pollfd.iter_unpack(asked[: bound * _pollfd.size])
        left = [fd for fd, _, seen in polled if fd >= 0 and seen != _POLLNVAL]
        raise NotInForceError(f"descriptors {left} are still open")
    return f"{len(keep)} kept, no other open below {bound}"
