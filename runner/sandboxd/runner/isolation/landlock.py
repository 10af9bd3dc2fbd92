"""A Landlock domain without a single rule: no file, no TCP, nobody to signal."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import NotInForceError
from sandboxd.runner.isolation.policy import ChildPolicy
from sandboxd.runner.isolation.program import OPENED_LAST, OPENS, Call, Work, call, pointer


@dataclass(frozen=True, slots=True)
class _Right:
    """Rights of linux/landlock.h that came with one version of the ABI."""

    abi: int
    files: int
    network: int
    scopes: int
    meaning: str


_RIGHTS: Final = (
    _Right(1, 0x1FFF, 0, 0, "files"),
    _Right(2, 1 << 13, 0, 0, "renaming across directories"),
    _Right(3, 1 << 14, 0, 0, "truncation"),
    _Right(4, 0, 0b11, 0, "TCP"),
    _Right(5, 1 << 15, 0, 0, "device ioctls"),
    _Right(6, 0, 0, 0b11, "abstract sockets and signals"),
)
_ABI_WITH_NETWORK: Final = 4
_ABI_WITH_SCOPES: Final = 6

#: Of the running kernel; 0 if it has no Landlock.
ABI: Final = kernel.landlock_abi()


def rights_of(abi: int) -> tuple[int, int, int]:
    """Every file, network and scope right that a version of the ABI can handle, as masks."""
    known = [right for right in _RIGHTS if right.abi <= abi]
    return (
        sum(right.files for right in known),
        sum(right.network for right in known),
        sum(right.scopes for right in known),
    )


_RULESET_BYTES: Final = 24


def _attributes() -> bytes:
    # An older kernel refuses a structure that is longer than the one it knows, unless the rest
    # is zero: the rest is.
    return struct.pack("=QQQ", *rights_of(ABI))


_ruleset, _RULESET = pointer(_attributes())
_root, _ROOT = pointer(b"/\0")
# struct sockaddr_in: port 0 of 127.0.0.1.
_address, _ADDRESS = pointer(struct.pack("=HHI8x", socket.AF_INET, 0, 0x0100007F))
_AT_FDCWD: Final = -100
_OPEN_ROOT: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
#: Something else already keeps sockets away.
_NO_SOCKETS: Final = (-errno.EAFNOSUPPORT, -errno.EPERM, -errno.EACCES)


def restrict(_policy: ChildPolicy) -> Work:
    """Enter a domain that handles every right of the running kernel and grants none.

    Needs NO_NEW_PRIVS, and a single thread: the others would stay outside. Fails also if '/' could
    not be opened before: then the verification would prove nothing. Raises NotInForceError if the
    kernel has no Landlock.
    """
    if ABI == 0:
        raise NotInForceError("this kernel has no Landlock, or it is switched off")
    return Work(
        (
            call("openat", _AT_FDCWD, _root, _OPEN_ROOT, expected=(OPENS,)),
            call("close", OPENED_LAST),
            call("landlock_create_ruleset", _ruleset, _RULESET_BYTES, expected=(OPENS,)),
            call("landlock_restrict_self", OPENED_LAST),
            call("close", OPENED_LAST),
        )
    )


def verify(policy: ChildPolicy) -> Work:
    """Try to open '/', to bind a TCP port and to signal the parent; all must be refused."""
    open_root = call(
        "openat",
        *(_AT_FDCWD, _root, _OPEN_ROOT),
        expected=(-errno.EACCES,),
        wrong="'/' can still be opened",
    )
    calls = [open_root]
    if ABI >= _ABI_WITH_NETWORK:
        calls += _bind_port()
    if ABI >= _ABI_WITH_SCOPES and policy.parent_pid > 0:
        pid = policy.parent_pid
        wrong = f"process {pid} can still be signalled"
        calls.append(call("kill", pid, 0, expected=(-errno.EPERM,), wrong=wrong))
    covered = ", ".join(right.meaning for right in _RIGHTS if right.abi <= ABI)
    return Work(tuple(calls), detail=f"ABI {ABI}: {covered}")


def _bind_port() -> list[Call]:
    # Without a socket the other two get EBADF, and only then.
    return [
        call("socket", socket.AF_INET, _STREAM, expected=(OPENS, *_NO_SOCKETS)),
        call(
            "bind",
            *(OPENED_LAST, _address, 16),
            expected=(-errno.EACCES, -errno.EBADF),
            wrong="a TCP port can still be bound",
        ),
        call("close", OPENED_LAST, expected=(0, -errno.EBADF)),
    ]
