"""Closing every descriptor that a child was not given, and numbering those that it was."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import struct
from typing import Final

from sandboxd.runner.isolation.policy import SOCKET_FD, ChildPolicy
from sandboxd.runner.isolation.program import Call, Check, Work, call, pointer

#: Descriptors below this number are checked one by one. close_range(2) closes those above as
#: well; in a zygote only the cgroups of a large pool have such numbers.
_CHECKED: Final = 256
_UINT_MAX: Final = 0xFFFFFFFF
_STANDARD_STREAMS: Final = (0, 1, 2)
_POLLNVAL: Final = 0x20
_SIGSET_BYTES: Final = 8
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_pollfd: Final = struct.Struct("=ihh")
# ppoll(2) passes over a negative descriptor.
_SKIPPED: Final = _pollfd.pack(-1, 0, 0)
_name, _NAME = pointer(b"closed\0")
_no_time, _NO_TIME = pointer(bytes(16))


def close(policy: ChildPolicy) -> Work:
    """Close every descriptor that is not kept, then occupy the standard streams among them, and
    give those that are moved their numbers.

    Fails with EBADF if a descriptor to keep is not open, and raises ValueError if one that is
    moved would take the number of one that stays.
    """
    if len(policy.open_fds) < len(policy.keep_fds) + len(policy.moved_fds):
        raise ValueError("a descriptor that is moved takes the number of one that is kept")
    keep = policy.keep_fds
    calls = [call("fcntl", fd, fcntl.F_GETFD, expected=(0, fcntl.FD_CLOEXEC)) for fd in keep]
    # Above all others first: a number to be taken may be that of another to be moved.
    aside = max((*keep, *policy.moved_fds, *policy.open_fds), default=0) + 1
    moves = list(enumerate(policy.moved_fds))
    calls += [_move(fd, aside + at) for at, fd in moves]
    calls += _close_all_but(sorted({*keep, *(aside + at for at, _ in moves)}))
    calls += _occupy_standard_streams(keep)
    calls += [_move(aside + at, SOCKET_FD + at) for at, _ in moves]
    if moves:
        calls.append(call("close_range", aside, _UINT_MAX))
    return Work(tuple(calls))


def _move(fd: int, number: int) -> Call:
    return call("dup3", fd, number, os.O_CLOEXEC, expected=(number,))


def _close_all_but(keep: list[int]) -> list[Call]:
    calls, first = [], 0
    for fd in keep:
        if fd > first:
            calls.append(call("close_range", first, fd - 1))
        first = fd + 1
    return [*calls, call("close_range", first, _UINT_MAX)]


def _occupy_standard_streams(keep: frozenset[int]) -> list[Call]:
    # A native panic or glibc's abort message goes to descriptor 2, whatever that is by then. An
    # empty sealed memory file reads as end of file and refuses every write with EPERM; unlike
    # /dev/null it needs no file system.
    missing = [fd for fd in _STANDARD_STREAMS if fd not in keep]
    if not missing:
        return []
    # The lowest free number is the first that is missing, or something was not closed.
    inert = missing[0]
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    left = "descriptors were left open"
    return [
        call("memfd_create", _name, flags, expected=(inert,), wrong=left),
        call("fcntl", inert, fcntl.F_ADD_SEALS, _SEALS),
        *(call("dup3", inert, fd, os.O_CLOEXEC, expected=(fd,)) for fd in missing[1:]),
    ]


def verify(policy: ChildPolicy) -> Work:
    """Ask with one ppoll(2) that nothing else is open."""
    soft_limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # ppoll(2) takes no more entries than the limit allows descriptors.
    bound = _CHECKED if soft_limit == resource.RLIM_INFINITY else min(_CHECKED, soft_limit)
    ours = policy.open_fds.union(_STANDARD_STREAMS)
    closed = [fd for fd in range(bound) if fd not in ours]
    asked = (_pollfd.pack(fd, 0, 0) if fd not in ours else _SKIPPED for fd in range(bound))
    answer = (_pollfd.pack(fd, 0, _POLLNVAL) if fd not in ours else _SKIPPED for fd in range(bound))
    buffer = ctypes.create_string_buffer(b"".join(asked), bound * _pollfd.size)
    # Any number of answers will do: the buffer says which descriptors they are about.
    numbers = tuple(range(len(closed), -1, -1))
    return Work(
        (
            call(
                "ppoll",
                ctypes.addressof(buffer),
                bound,
                _no_time,
                0,
                _SIGSET_BYTES,
                expected=numbers,
            ),
        ),
        (Check(memoryview(buffer).cast("B"), b"".join(answer), _left_open),),
        f"{len(policy.open_fds)} kept, no other open below {bound}",
        held=(buffer,),
    )


def _left_open(polled: bytes) -> str:
    left = [fd for fd, _, seen in _pollfd.iter_unpack(polled) if fd >= 0 and seen != _POLLNVAL]
    return f"descriptors {left} are still open"
