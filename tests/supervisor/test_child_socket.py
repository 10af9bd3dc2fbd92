"""The supervisor's end of a child's socket: bytes come in, descriptors do not."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from sandboxd.supervisor import zygote


def _refuses() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, zygote.SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


def test_a_child_can_send_bytes_but_no_descriptor() -> None:
    if not _refuses():
        pytest.skip("needs Linux 6.16")
    ours, fds = zygote._open_pair([], refuse_descriptors=True)
    with ours, socket.socket(fileno=fds[0]) as theirs:
        with pytest.raises(PermissionError):
            socket.send_fds(theirs, [b"x"], [0])
        theirs.send(b"bytes")
        assert ours.recv(16) == b"bytes"


def test_a_child_can_still_be_sent_a_descriptor() -> None:
    ours, fds = zygote._open_pair([], refuse_descriptors=_refuses())
    with ours, socket.socket(fileno=fds[0]) as theirs:
        socket.send_fds(ours, [b"x"], [0])
        _, received, _, _ = socket.recv_fds(theirs, 1, 1)
        assert len(received) == 1
        os.close(received[0])


def test_a_kernel_without_the_option_is_asked_for_nothing() -> None:
    ours, fds = zygote._open_pair([], refuse_descriptors=False)
    with ours, socket.socket(fileno=fds[0]) as theirs:
        socket.send_fds(theirs, [b"x"], [0])
        assert ours.recv(1) == b"x"


def test_an_option_that_does_not_read_back_is_an_error_and_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A number that unix sockets know and that reads back as 1: SO_PASSRIGHTS of a kernel that lies.
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(zygote, "SO_PASSRIGHTS", socket.SO_TYPE)
    with pytest.raises(OSError, match=r".") as failed:
        zygote._open_pair([], refuse_descriptors=True)
    assert failed.value.errno == errno.ENOPROTOOPT
    assert len(os.listdir("/proc/self/fd")) == before
