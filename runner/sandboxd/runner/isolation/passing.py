"""A socket that takes no descriptors: an option of the receiving end, since Linux 6.16.

The supervisor sets it on its end of each child's socket. A runner can then send it bytes only,
whatever the runner's seccomp filter lets through.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from sandboxd.runner.isolation.layers import NO_PASSED_DESCRIPTORS, LayerState, NotInForceError

#: asm-generic/socket.h; the same on x86-64 and aarch64.
SO_PASSRIGHTS: Final = 83


def refuse_descriptors(sock: socket.socket) -> None:
    """Have whoever sends a descriptor to this unix socket fail with EPERM.

    Raises OSError if the kernel does not know the option.
    """
    sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def hold() -> LayerState:
    """Try it on a pair of sockets: one end must refuse, and the other still take, a descriptor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            refuse_descriptors(ours)
            detail = _verify(ours, theirs)
        except (OSError, NotInForceError) as error:
            return LayerState(NO_PASSED_DESCRIPTORS, active=False, detail=str(error))
    return LayerState(NO_PASSED_DESCRIPTORS, active=True, detail=detail)


def _verify(ours: socket.socket, theirs: socket.socket) -> str:
    try:
        socket.send_fds(theirs, [b"x"], [theirs.fileno()])
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    else:
        raise NotInForceError("a descriptor can still be sent")
    # The artifact's goes the other way.
    socket.send_fds(ours, [b"x"], [ours.fileno()])
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    for fd in fds:
        os.close(fd)
    if len(fds) != 1:
        raise NotInForceError("nothing can be passed to a child any more")
    return "a descriptor sent to the supervisor is refused, one from it arrives"
