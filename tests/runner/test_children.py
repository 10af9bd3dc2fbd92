"""What a child does around its lock-down."""

import os
import socket

import pytest

from sandboxd.runner import children


def test_a_lock_down_that_fails_is_told_over_the_socket_wherever_it_is_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        identity = os.fstat(theirs.fileno())
        # Before it is moved its new number is another's or nobody's; afterwards it is its own.
        monkeypatch.setattr(children, "SOCKET_FD", ours.fileno())
        assert children._number_of(identity, theirs.fileno()) == theirs.fileno()
        monkeypatch.setattr(children, "SOCKET_FD", 1 << 20)
        assert children._number_of(identity, theirs.fileno()) == theirs.fileno()
        moved = os.dup(theirs.fileno())
        monkeypatch.setattr(children, "SOCKET_FD", moved)
        assert children._number_of(identity, -1) == moved
        os.close(moved)
