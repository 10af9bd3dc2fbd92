"""What the kernel says of a child, whatever the child says of itself."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.supervisor.child import Child

_PR_SET_NAME = 15
MIB = 1 << 20


@pytest.fixture(params=["VmHWM: 1 kB", "VmHWM:9999999kB", "VmHWM:x kB", "VmHWM:-99999kB", "a\nb"])
async def liar(request: pytest.FixtureRequest) -> AsyncIterator[Child]:
    """A child that has taken a name that looks like the line with its peak memory."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(_PR_SET_NAME, request.param.encode()[:15], 0, 0, 0)
            theirs.send(b"named")
            signal.pause()
        finally:
            os._exit(0)
    ours.recv(5)
    child = Child(1, ours, 0)
    child.set_pidfd(os.pidfd_open(pid))
    yield child
    child.kill()
    os.waitpid(pid, 0)  # noqa: ASYNC222 - it was killed
    child.close()
    theirs.close()


def kernel_says(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    told = next(line for line in status.split("\n") if line.startswith("VmHWM:\t"))
    return int(told.split()[1]) * 1024


async def test_a_name_does_not_change_the_peak_of_memory(liar: Child) -> None:
    peak = liar.peak_rss_bytes()
    assert MIB < peak < 4096 * MIB
    assert peak == kernel_says(liar.pid)
