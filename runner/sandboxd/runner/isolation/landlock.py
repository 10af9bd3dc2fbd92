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


def _attributes() -> bytes:
    # An older kernel refuses a structure that is longer than the one it knows, unless the rest
    # is zero: the rest is.
    return struct.pack("=QQQ", *rights_of(ABI))


_RULESET: Final = _attributes()


def restrict(_parent_pid: int) -> None:
    """Enter a domain that handles every right of the running kernel and grants none.

    Needs NO_NEW_PRIVS, and a single thread: the others would stay outside. Raises OSError, also
    if '/' could not be opened before: then the verification would prove nothing.
    """
    if ABI == 0:
        raise NotInForceError("this kernel has no Landlock, or it is switched off")
    os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    ruleset = kernel.landlock_create_ruleset(_RULESET)
    try:
        kernel.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)


def verify_restricted(parent_pid: int) -> str:
    """Check that '/', TCP and signals to the parent are refused; return what was checked."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        pass
    else:
        raise NotInForceError("'/' can still be opened")
    if ABI >= _ABI_WITH_NETWORK:
        _verify_no_tcp()
    if ABI >= _ABI_WITH_SCOPES and parent_pid > 0:
        _verify_no_signal(parent_pid)
    covered = ", ".join(right.meaning for right in _RIGHTS if right.abi <= ABI)
    return f"ABI {ABI}: {covered}"


def _verify_no_tcp() -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.bind(("127.0.0.1", 0))
    except OSError as error:
        # EAFNOSUPPORT and EPERM: something else already keeps sockets away.
        if error.errno not in {errno.EACCES, errno.EAFNOSUPPORT, errno.EPERM}:
            raise
    else:
        raise NotInForceError("a TCP port can still be bound")


def _verify_no_signal(pid: int) -> None:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return
    raise NotInForceError(f"process {pid} can still be signalled")
